"""A few hundred of the random calls of tests/fuzz.py, the same in every run."""

import pytest
from fuzzing import check as check_module
from fuzzing.cases import Case, draw
from fuzzing.check import check
from fuzzing.shrink import shrink

from fused_balanced_loss.backends.select import IMPLS

SEED, BLOCK = 20, 20
QUICK = tuple(name for name in IMPLS if name not in ("triton", "compile"))


def failures(numbers, only):
    """Each wrong case, as arguments of tests/fuzz.py. Losses by name, where others would need kernels of their own."""
    found, presets = [], not set(only) <= {"eager", "reference"}
    for number in numbers:
        case = draw(SEED, number, only, presets)
        wrong = check(case)
        if wrong:
            words = f"--seed {SEED} --only {','.join(only)} {'--presets ' * presets}--case {number} --shrink"
            found.append(f"{words}: {wrong}\n{case}")
    return "\n".join(found)


@pytest.mark.parametrize("first", range(0, 6 * BLOCK, BLOCK))
@pytest.mark.parametrize("impl", QUICK)
def test_random_calls_are_right(impl, first):
    assert not failures(range(first, first + BLOCK), (impl,))


def test_random_calls_of_the_triton_kernels_are_right():
    pytest.importorskip("triton")
    if "triton" not in IMPLS:
        pytest.skip("no implementation has this name")
    assert not failures(range(4), ("triton",))


def test_a_case_is_the_same_again_and_prints_what_it_is():
    one, other = draw(3, 14), draw(3, 14)
    assert one == other != draw(3, 15)
    assert str(one) == str(other) and str(one).startswith("Case(number=14, values=")


def test_a_wrong_case_is_found_and_made_simple(monkeypatch):
    """Holds a loss that is off by a hundredth against the equations."""
    right = check_module.balanced_loss
    monkeypatch.setattr(check_module, "balanced_loss", lambda *a, **k: right(*a, **k) * 1.01)
    case = Case(0, 1, impl="eager", rows=(4,), labels=9, targets="float32", sample_weight="float32", reduction="mean")
    wrong = check(case)
    assert wrong and wrong.startswith("loss is ")
    simple, again = shrink(case, wrong)
    assert again and simple.sample_weight is None and simple.reduction == "sum" and simple.rows == (1,)
