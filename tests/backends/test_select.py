"""One call's failure is that call's: it is raised, and later calls are computed as before."""

import pytest
import torch
from test_losses import problem

from fused_balanced_loss import LossSpec, balanced_loss
from fused_balanced_loss.backends import cpp, select

DB = LossSpec.preset("DB", corpus="reuters")


def test_an_error_of_one_call_reaches_the_caller_and_changes_nothing(monkeypatch):
    logits, targets, statistics = problem(4, 70)
    expected = balanced_loss(logits, targets, DB, statistics)
    with monkeypatch.context() as patch:

        def out_of_memory(*_, **__):
            raise MemoryError("no memory")

        patch.setattr(cpp, "value", out_of_memory)
        with torch.no_grad(), pytest.raises(MemoryError):
            balanced_loss(logits, targets, DB, statistics)
    with pytest.raises(Exception, match="vmap"):
        torch.func.vmap(lambda z: balanced_loss(z[None], targets[:1], DB, statistics))(logits)
    torch.testing.assert_close(balanced_loss(logits, targets, DB, statistics), expected)


@pytest.mark.parametrize("name", ["eager", "compile", "cpp"])
def test_every_implementation_can_be_named(name, device):
    if name == "cpp" and device.type != "cpu":
        pytest.skip("the C++ kernel is for the CPU")
    logits, targets, statistics = problem(4, 70)
    expected = balanced_loss(logits.double(), targets, DB, statistics, impl="reference")
    loss = balanced_loss(logits.to(device), targets.to(device), DB, statistics, impl=name)
    torch.testing.assert_close(loss.cpu().double(), expected, rtol=1e-5, atol=0)


def test_a_name_that_cannot_be_had_says_why(monkeypatch):
    logits, targets, statistics = problem(4, 70)
    monkeypatch.setattr(cpp, "unavailable", lambda problem: "there is no C++ compiler")
    with pytest.raises(RuntimeError, match="impl: 'cpp' cannot take this call: there is no C"):
        balanced_loss(logits, targets, DB, statistics, impl="cpp")
    assert balanced_loss(logits, targets, DB, statistics).isfinite()
    with pytest.raises(ValueError, match=f"impl: expected one of .*{select.IMPLS[-1]}"):
        balanced_loss(logits, targets, DB, statistics, impl="fast")
