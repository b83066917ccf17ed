"""Host time of one call of the loss on a GPU, in a process of its own; prints a JSON line for each case.

    python benchmarks/host_time.py [--calls 300]

On a machine with an NVIDIA GPU its driver is used, and calls are made without waiting for the device. Elsewhere
``stub_driver.py`` stands for it: that leaves out what cuLaunchKernelEx itself takes, 2 to 3 us. A bare kernel of five
arguments, launched by Triton's own call, takes its turn beside each case: the ratio counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
import torch._dynamo
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

SHAPES = ((32, 18_211), (32, 90))
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@triton.jit
def bare_kernel(x_ptr, y_ptr, number, stride, factor, BLOCK: tl.constexpr):  # noqa: N803
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at * stride, tl.load(x_ptr + at, mask=at < number) * factor, mask=at < number)


def in_turns(calls, number):
    """Median seconds of each call, by name; all take turns, ten calls each."""
    times = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(20):
            call()
    for _ in range(max(1, number // 10)):
        for name, call in calls.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            for _ in range(10):
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=300)
    number = parser.parse_args().calls
    torch.set_num_threads(1)
    stub = None
    if torch.cuda.is_available():
        device = torch.device("cuda")
    else:
        from stub_driver import Stub, take_cpu_for_gpu

        stub, device = Stub(), torch.device("cpu")
        take_cpu_for_gpu()
    from fused_balanced_loss import DistributionBalancedLoss, LabelStatistics, SparseTargets

    looked_up, run = [0], JITFunction.run

    def counted(self, *args, **kwargs):
        looked_up[0] += 1
        return run(self, *args, **kwargs)

    x = torch.zeros(1024, device=device)
    generator = torch.Generator().manual_seed(0)
    for rows, labels in SHAPES:
        known = LabelStatistics.from_counts(torch.randint(5, 2000, (labels,), generator=generator), 200_000)
        loss = DistributionBalancedLoss(known, mu=0.05, impl="triton")
        ids = [torch.randperm(labels, generator=generator)[:12].tolist() for _ in range(rows)]
        sparse = SparseTargets.from_lists(ids, labels)
        for dtype in DTYPES:
            for form, targets in (("csr", sparse.to(device)), ("uint8", sparse.to_dense().to(device))):
                logits = torch.randn(rows, labels, generator=generator).to(device, DTYPES[dtype]).requires_grad_()

                def forward(loss=loss, logits=logits, targets=targets):
                    with torch.no_grad():
                        return loss(logits, targets)

                def both(loss=loss, logits=logits, targets=targets):
                    logits.grad = None
                    loss(logits, targets).backward()

                calls = {"bare kernel": lambda: bare_kernel[(1,)](x, x, 1024, 1, 2.0, BLOCK=1024)}
                calls |= {"forward": forward, "forward and backward": both}
                result = {"rows": rows, "labels": labels, "dtype": dtype, "targets": form}
                result["driver"] = "stub" if stub else "real"
                result["seconds"] = in_turns(calls, number)
                JITFunction.run = counted
                for name in ("forward", "forward and backward"):
                    before, looked_up[0] = stub.launches if stub else 0, 0
                    calls[name]()
                    launches = stub.launches - before if stub else None
                    result[name] = {"launches": launches, "looked_up": looked_up[0]}
                JITFunction.run = run
                if stub is None:
                    expected = DistributionBalancedLoss(known, mu=0.05, impl="eager")(logits.detach().float(), targets)
                    result["error"] = abs(float(forward()) / float(expected) - 1)
                print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
