"""One rank of test_statistics_module.py, under torchrun: the ranks begin with different label counts."""

import datetime
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_module
from torch.nn.parallel import DistributedDataParallel

from fused_balanced_loss import DistributionBalancedLoss, LabelStatistics, LinearBalancedLoss, LossSpec

FIRST = LabelStatistics.from_counts([1, 30, 4, 70, 11, 2, 55], 100, mu=0.9)
SECOND = LabelStatistics.from_counts([90, 3, 60, 5, 2, 150, 12], 200, mu=0.3)
N, D, C = 6, 5, 7


class Model(nn.Module):
    def __init__(self, statistics):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(D, C)
        self.loss = DistributionBalancedLoss(statistics)

    def forward(self, features, targets):
        return self.loss(self.linear(features), targets)


def head(statistics):
    torch.manual_seed(0)
    return LinearBalancedLoss(LossSpec.preset("DB"), statistics, D)


def gradient(module, *arguments):
    module.zero_grad()
    loss = module(*arguments)
    loss.backward()
    return loss.detach(), next(module.parameters()).grad.clone()


def check_ddp(make):
    """The batch is the same on both ranks, so the mean of their gradients is that of one process."""
    generator = torch.Generator().manual_seed(1)
    arguments = torch.randn(N, D, generator=generator), torch.rand(N, C, generator=generator) < 0.3
    first, second = gradient(make(FIRST), *arguments), gradient(make(SECOND), *arguments)
    assert abs(first[0] - second[0]) > 0.001
    module = make(SECOND if dist.get_rank() else FIRST)
    module(*arguments)
    wrapped = DistributedDataParallel(module)
    for got, expected in zip(gradient(wrapped, *arguments), first, strict=True):
        torch.testing.assert_close(got, expected)
    holder = getattr(module, "loss", module)
    assert holder.statistics == FIRST
    # Only the first rank learns of other counts; the next forward tells the second.
    if dist.get_rank() == 0:
        holder.statistics = SECOND
    for got, expected in zip(gradient(wrapped, *arguments), second, strict=True):
        torch.testing.assert_close(got, expected)
    assert holder.statistics == SECOND


def check_distribute_module():
    """The buffers become DTensors."""
    module = DistributionBalancedLoss(FIRST)
    logits, targets = torch.randn(N, C, generator=torch.Generator().manual_seed(2)), torch.ones(N, C) > 0
    expected = [DistributionBalancedLoss(statistics)(logits, targets) for statistics in (FIRST, SECOND)]
    distribute_module(module, init_device_mesh("cpu", (2,)))
    assert isinstance(module.counts, DTensor)
    torch.testing.assert_close(module(logits, targets), expected[0])
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, targets), expected[0])
    module.statistics = SECOND
    torch.testing.assert_close(compiled(logits, targets), expected[1])
    assert module.counts.full_tensor().tolist() == SECOND.counts.tolist()
    torch.testing.assert_close(module(logits, targets), expected[1])


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    for make in (Model, head):
        check_ddp(make)
    check_distribute_module()
    dist.destroy_process_group()
