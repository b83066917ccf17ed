"""Random calls of the losses against the equations in float64.

python tests/fuzz.py --cases 200000          as many cases as that, going on where the last run ended
python tests/fuzz.py --case 12345 --shrink   one case, printed, and the simplest that fails alike
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

# Before triton is imported anywhere: its kernels are run by the interpreter.
os.environ.setdefault("TRITON_INTERPRET", "1")
# The library that lies beside these tests, installed or not.
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from fuzzing.cases import Case, draw
from fuzzing.check import check, kind
from fuzzing.shrink import shrink

from fused_balanced_loss.backends.select import IMPLS

# Cases between two lines of progress, and between two writings of the state.
PROGRESS = 1000


def main(arguments: list[str] | None = None) -> int:
    """0 where every case is right, 1 where some are not, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    only = tuple(options.only.split(",")) if options.only else ()
    unknown = set(only) - set(IMPLS)
    if unknown:
        _parser().error(f"--only: expected some of {', '.join(IMPLS)}, got {', '.join(sorted(unknown))}")
    torch.set_num_threads(options.threads)
    if options.case is not None:
        return _one(draw(options.seed, options.case, only, options.presets), options.shrink)
    path = (
        options.state
        or Path("build")
        / f"fuzz-{options.seed}-{'-'.join(only) or 'all'}{'-presets' * options.presets}-{options.first}.json"
    )
    state: dict[str, Any] = {"next": options.first, "failures": {}}
    if options.resume and path.exists():
        state = json.loads(path.read_text())
    last = options.first + options.cases
    interrupted, begin, began_at = False, time.monotonic(), state["next"]
    try:
        while state["next"] < last:
            number = state["next"]
            wrong = check(draw(options.seed, number, only, options.presets))
            if wrong:
                state["failures"][str(number)] = wrong
                if sum(kind(one) == kind(wrong) for one in state["failures"].values()) <= 3:
                    print(f"case {number}: {wrong}", flush=True)
            state["next"] = number + 1
            if state["next"] % PROGRESS == 0:
                _save(path, state)
                rate = (state["next"] - began_at) / (time.monotonic() - begin)
                print(f"{state['next']} of {last}: {len(state['failures'])} wrong, {rate:.0f} a second", flush=True)
    except KeyboardInterrupt:
        interrupted = True
    _save(path, state)
    _summary(state, options.seed, path)
    return 130 if interrupted else int(bool(state["failures"]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="number of cases (default 10,000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="another seed has other cases (default 0)")
    parser.add_argument("--resume", action="store_true", help="go on after the last case that the state file knows")
    parser.add_argument("--state", type=Path, help="the state file (default build/fuzz-SEED-IMPLS-FIRST.json)")
    parser.add_argument("--only", help=f"implementations, by commas; some of {', '.join(IMPLS)}")
    parser.add_argument("--presets", action="store_true", help="losses by name alone: few C++ kernels to build")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch and of the C++ kernels (default 1)")
    parser.add_argument("--case", type=int, help="run this case alone and print it")
    parser.add_argument("--shrink", action="store_true", help="with --case: find the simplest case that fails alike")
    return parser


def _one(case: Case, shrinking: bool) -> int:
    wrong = check(case)
    print(f"{case}\n{wrong or 'is right'}")
    if wrong and shrinking:
        case, wrong = shrink(case, wrong)
        print(f"\nsimplest:\n{case}\n{wrong}")
    return int(bool(wrong))


def _save(path: Path, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".new")
    whole.write_text(json.dumps(state, indent=1))
    os.replace(whole, path)


def _summary(state: dict[str, Any], seed: int, path: Path) -> None:
    kinds = Counter(kind(wrong) for wrong in state["failures"].values())
    print(f"\nseed {seed}: cases before {state['next']}, {len(state['failures'])} wrong; state in {path}")
    for name, count in kinds.most_common():
        number = next(number for number, wrong in state["failures"].items() if kind(wrong) == name)
        print(f"{count:7d}  {name}   (--case {number})")


if __name__ == "__main__":
    sys.exit(main())
