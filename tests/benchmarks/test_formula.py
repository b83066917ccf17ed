"""The formula that the benchmarks' contestants use is the equations, as the library's oracle reads them."""

from pathlib import Path

import pytest
import torch

from fused_balanced_loss import balanced_loss
from fused_balanced_loss.spec import PRESETS


@pytest.mark.parametrize("loss", PRESETS)
def test_formula_gives_the_value_and_gradient_of_the_oracle(loss, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    import peers
    import problems

    problem = problems.make_problem(4, 60)
    spec, z = peers.spec_of(peers.EAGER, loss), problem.logits
    mine = problems.formula(z, problem.dense, problem.counts, problem.statistics.num_samples, spec)
    oracle = balanced_loss(z, problem.dense, spec, problem.statistics, impl="reference")
    torch.testing.assert_close(mine, oracle, rtol=1e-5, atol=0)
    (mine_gradient,), (gradient,) = torch.autograd.grad(mine, z), torch.autograd.grad(oracle, z)
    torch.testing.assert_close(mine_gradient, gradient, rtol=1e-4, atol=1e-6 * gradient.abs().max().item())
