"""Weights of labels from counts: the formulas, timm's numbers, and bad arguments."""

import pytest
import torch
from timm_losses import timm_module

from fused_balanced_loss import LabelStatistics, class_weights

STATISTICS = LabelStatistics.from_counts([2, 8, 0, 5], 10, degenerate="ignore")


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("neg_pos", {}, [4, 0.25, 9, 1]),
        ("neg_pos", {"power": 0.5, "cap": 2}, [2, 0.5, 2, 1]),
        ("neg_pos", {"power": 0}, [1, 1, 1, 1]),
        ("inv_freq", {}, [5 / 4.5625, 1.25 / 4.5625, 10 / 4.5625, 2 / 4.5625]),
        ("inv_freq", {"cap": 1}, [1, 1.25 / 4.5625, 1, 2 / 4.5625]),
        ("effective_num", {"beta": 0.0}, [1, 1, 1, 1]),
    ],
)
def test_formulas(name, options, expected):
    found = class_weights(STATISTICS, name, **options)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_effective_number_keeps_its_digits_near_one():
    found = class_weights(STATISTICS, "effective_num", beta=1 - 1e-12)
    counts = torch.tensor([2.0, 8, 1, 5], dtype=torch.float64)
    torch.testing.assert_close(found, 1 / counts / (1 / counts).mean(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["neg_pos", "inv_freq", "effective_num"])
@pytest.mark.parametrize("options", [{}, {"power": 0.5}, {"beta": 0.9}, {"max_weight": 1.5}])
def test_numbers_of_timm(name, options):
    """But for a label that all samples carry, whose count ours lowers by one."""
    theirs = timm_module("class_weights")
    counts = torch.randint(0, 999, (500,), generator=torch.Generator().manual_seed(0))
    kind, expected = theirs.compute_class_weights(counts, 1000, method=name, **options)
    assert kind == ("pos_weight" if name == "neg_pos" else "class_weight")
    ours = {("cap" if key == "max_weight" else key): value for key, value in options.items()}
    found = class_weights(LabelStatistics.from_counts(counts, 1000, degenerate="ignore"), name, **ours)
    torch.testing.assert_close(found.float(), expected, rtol=1e-6, atol=0)


def test_label_that_all_samples_carry_keeps_a_weight():
    statistics = LabelStatistics.from_counts([10, 5], 10, degenerate="ignore")
    torch.testing.assert_close(class_weights(statistics, "neg_pos"), torch.tensor([1 / 9, 1.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1, 2], "neg_pos", {}), TypeError, "^statistics: expected LabelStatistics, got list$"),
        ((STATISTICS, "median", {}), ValueError, "^name: expected one of 'neg_pos', 'inv_freq', 'effective_num'; got"),
        ((STATISTICS, "neg_pos", {"power": float("inf")}), ValueError, "^power: expected a finite number >= 0"),
        ((STATISTICS, "neg_pos", {"power": -1}), ValueError, "^power: expected a finite number >= 0, got -1$"),
        ((STATISTICS, "effective_num", {"beta": 1}), ValueError, r"^beta: expected a number in \[0, 1\), got 1$"),
        ((STATISTICS, "inv_freq", {"cap": 0}), ValueError, "^cap: expected a number > 0, got 0$"),
        ((STATISTICS, "inv_freq", {"cap": float("nan")}), ValueError, "^cap: expected a number > 0, got nan$"),
    ],
)
def test_bad_arguments(arguments, error, message):
    statistics, name, options = arguments
    with pytest.raises(error, match=message):
        class_weights(statistics, name, **options)
