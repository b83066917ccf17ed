"""Label counts in the buffers of a module: the one source that state dicts, wrappers and calls share."""

import copy
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from agreement import assert_same_but_for_rounding
from torch import nn

import fused_balanced_loss as fbl
from fused_balanced_loss import (
    BalancedLoss,
    DistributionBalancedLoss,
    LabelStatistics,
    LinearBalancedLoss,
    LossSpec,
)

STATISTICS = LabelStatistics.from_counts([1, 30, 4, 70, 11, 2, 55], 100, mu=0.9)
OTHER = LabelStatistics.from_counts([90, 3, 60, 5, 2, 150, 12], 200, mu=0.3)
N, C = 6, 7
NAMES = sorted(
    name
    for name in fbl.__all__
    if name.endswith("Loss") and name not in ("FocalLoss", "BalancedLoss", "LinearBalancedLoss")
)


def other_buffers():
    return DistributionBalancedLoss(OTHER).state_dict()


def change_in_place(module):
    for name, value in other_buffers().items():
        getattr(module, name).copy_(value)


def batch(*shape, dtype=torch.float32, requires_grad=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = shape or (N, C)
    logits = (3 * torch.randn(shape, generator=generator)).to(dtype).requires_grad_(requires_grad)
    return logits, torch.rand(shape, generator=generator) < 0.3


def value_and_gradient(loss, *arguments, logits, **options):
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, *arguments, **options)
    return value.detach(), torch.autograd.grad(value.sum(), logits)[0]


def test_state_dict_carries_the_counts():
    state = DistributionBalancedLoss(STATISTICS).state_dict()
    assert set(state) == {"counts", "num_samples", "mu_bits"}
    assert torch.equal(state["counts"], STATISTICS.counts)
    assert state["counts"].dtype == state["num_samples"].dtype == torch.int64
    assert state["num_samples"].item() == 100
    assert state["mu_bits"].view(torch.float64).item() == 0.9
    assert state["counts"].data_ptr() != STATISTICS.counts.data_ptr()


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_loading_a_state_dict_replaces_the_statistics(name, assign):
    make = getattr(fbl, name)
    logits, targets = batch()
    module, other = make(STATISTICS), make(OTHER)
    before = module(logits, targets)
    file = io.BytesIO()
    torch.save(other.state_dict(), file)
    file.seek(0)
    module.load_state_dict(torch.load(file, weights_only=True), assign=assign)
    assert module.statistics == OTHER
    after = module(logits, targets)
    assert_same_but_for_rounding(after, other(logits, targets))
    assert abs(after / before - 1) > 1e-3
    # The statistics that the module was built from, and those of other modules, stay what they were.
    assert STATISTICS.counts.tolist() == [1, 30, 4, 70, 11, 2, 55]
    assert_same_but_for_rounding(make(STATISTICS)(logits, targets), before)


def test_loading_works_as_part_of_a_model():
    model = nn.ModuleDict({"loss": DistributionBalancedLoss(STATISTICS)})
    model.load_state_dict(nn.ModuleDict({"loss": DistributionBalancedLoss(OTHER)}).state_dict())
    assert model["loss"].statistics == OTHER


def test_loading_degenerate_counts_does_not_warn_again():
    with pytest.warns(UserWarning, match="counts: 1 of 7"):
        degenerate = LabelStatistics.from_counts([0, 30, 4, 70, 11, 2, 55], 100, mu=0.9)
    module = DistributionBalancedLoss(STATISTICS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.load_state_dict(DistributionBalancedLoss(degenerate).state_dict())
    assert module.statistics == degenerate


def test_loading_another_number_of_labels_fails_and_changes_nothing():
    module = DistributionBalancedLoss(STATISTICS)
    other = DistributionBalancedLoss(LabelStatistics.from_counts([1, 2], 4, mu=0.9))
    with pytest.raises(RuntimeError, match="size mismatch for counts"):
        module.load_state_dict(other.state_dict())
    assert module.statistics.counts.tolist() == STATISTICS.counts.tolist()


@pytest.mark.parametrize(
    "convert",
    [
        lambda module: module.to(torch.bfloat16),
        nn.Module.half,
        nn.Module.bfloat16,
        nn.Module.double,
        lambda module: module.to("cpu", torch.float16),
    ],
)
def test_conversion_of_the_model_leaves_counts_and_result_alone(convert):
    # 2049 and 100001 do not exist in half precision.
    statistics = LabelStatistics.from_counts([2049, 99999, 257, 70, 11, 2, 50001], 100001, mu=1 / 3)
    module = DistributionBalancedLoss(statistics)
    logits, targets = batch()
    before = value_and_gradient(module, targets, logits=logits)
    model = nn.ModuleList([module])
    assert convert(model) is model
    assert module.counts.tolist() == statistics.counts.tolist()
    assert module.num_samples.item() == 100001
    assert module.counts.dtype == module.num_samples.dtype == torch.int64
    assert module.statistics.mu == 1 / 3 and module.state_dict()["mu_bits"].view(torch.float64).item() == 1 / 3
    after = value_and_gradient(module, targets, logits=logits)
    assert_same_but_for_rounding(before, after)
    assert module.state_dict()["counts"].dtype == torch.int64


def test_a_module_made_in_inference_mode_moves():
    with torch.inference_mode():
        module = DistributionBalancedLoss(STATISTICS)
    module.to("cpu").double()
    assert torch.equal(module.counts, STATISTICS.counts.to(module.counts))


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_to_empty_keeps_the_counts(device):
    with torch.device(device):
        loss = DistributionBalancedLoss(STATISTICS)
    loss.to_empty(device="cpu")
    assert torch.equal(loss.counts, STATISTICS.counts) and loss.num_samples == 100


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, saved_and_loaded])
@pytest.mark.parametrize("statistics", [STATISTICS, None])
def test_copies_compute_the_same_and_share_nothing(statistics, duplicate, used):
    module = BalancedLoss(LossSpec.preset("DB" if statistics else "FL"), statistics, reduction="sum")
    logits, targets = batch()
    if used:
        module(logits, targets)
    other = duplicate(module)
    assert type(other) is BalancedLoss
    assert (other.spec, other.reduction, other.impl) == (module.spec, "sum", "auto")
    assert other.statistics == module.statistics
    assert_same_but_for_rounding(other(logits, targets), module(logits, targets))
    if statistics is not None:
        before = module(logits, targets)
        other.load_state_dict(DistributionBalancedLoss(OTHER).state_dict())
        assert module.statistics == STATISTICS
        assert module.counts.tolist() == STATISTICS.counts.tolist()
        assert_same_but_for_rounding(module(logits, targets), before)


def test_repr_follows_a_loaded_state():
    module = DistributionBalancedLoss(STATISTICS)
    module.load_state_dict(DistributionBalancedLoss(OTHER).state_dict())
    assert "num_samples=200" in repr(module)


def fresh(state, **options):
    """What a new module gives from a state dict: what any other way to these buffers must give."""
    module = BalancedLoss(LossSpec.preset("DB"), STATISTICS, **options)
    module.load_state_dict(state)
    return module


def test_functional_call_takes_the_buffers_that_it_is_given():
    logits, targets = batch()
    module, other = DistributionBalancedLoss(STATISTICS), DistributionBalancedLoss(OTHER)
    before = module(logits, targets)
    for _ in range(3):
        # Each call's buffers are new tensors; their ids and addresses may be those of the last.
        buffers = {name: value.clone() for name, value in other.named_buffers()}
        assert_same_but_for_rounding(
            torch.func.functional_call(module, buffers, (logits, targets)), other(logits, targets)
        )
        assert_same_but_for_rounding(module(logits, targets), before)
        buffers = {name: value.clone() for name, value in module.named_buffers()}
        assert_same_but_for_rounding(torch.func.functional_call(other, buffers, (logits, targets)), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda module: setattr(module, "statistics", OTHER),
        lambda module: change_in_place(module),
        lambda module: [setattr(module, name, value.clone()) for name, value in other_buffers().items()],
        lambda module: [setattr(getattr(module, name), "data", value) for name, value in other_buffers().items()],
        lambda module: module.load_state_dict(DistributionBalancedLoss(OTHER).state_dict(), assign=True),
    ],
    ids=["setter", "in-place", "buffers", "data", "assign"],
)
@pytest.mark.parametrize("inference", [False, True])
def test_the_buffers_are_the_one_source(change, inference):
    logits, targets = batch()
    with torch.inference_mode(inference):
        module = DistributionBalancedLoss(STATISTICS)
        module(logits, targets)
        change(module)
        assert_same_but_for_rounding(module(logits, targets), DistributionBalancedLoss(OTHER)(logits, targets))
        assert module.statistics == OTHER
        state = {name: value.clone() for name, value in module.state_dict().items()}
    assert state["counts"].tolist() == OTHER.counts.tolist() and state["num_samples"].item() == 200
    assert fresh(state).statistics == OTHER


def test_the_setter_writes_in_place_for_whoever_shares_the_buffers():
    module = DistributionBalancedLoss(STATISTICS)
    state = module.state_dict()
    shared = copy.copy(module)
    module.statistics = OTHER
    assert state["counts"].tolist() == OTHER.counts.tolist()
    assert shared.statistics == OTHER
    assert STATISTICS.counts.tolist() == [1, 30, 4, 70, 11, 2, 55]


def test_unchanged_buffers_give_the_same_statistics_without_a_look_at_their_values(monkeypatch):
    module = DistributionBalancedLoss(STATISTICS)
    assert module.statistics is STATISTICS
    with monkeypatch.context() as context:
        context.setattr(type(module), "_derive", None)
        assert module.statistics is STATISTICS
    # As DistributedDataParallel does at each forward: a new version of the same values.
    module.counts.copy_(module.counts.clone())
    assert module.statistics is STATISTICS


def test_the_setter_refuses_what_does_not_fit():
    module = DistributionBalancedLoss(STATISTICS)
    with pytest.raises(ValueError, match=r"^statistics: expected 7 labels, got 2"):
        module.statistics = LabelStatistics.from_counts([1, 2], 4, mu=0.9)
    with pytest.raises(ValueError, match=r"^statistics: expected LabelStatistics, which .*; got None"):
        module.statistics = None
    with pytest.raises(TypeError, match=r"^statistics: expected LabelStatistics, got Tensor"):
        module.statistics = OTHER.counts
    assert module.statistics == STATISTICS


def test_the_setter_of_a_loss_that_needs_no_statistics():
    module = fbl.FocalLoss()
    assert module.statistics is None
    module.statistics = STATISTICS
    assert module.state_dict()["counts"].tolist() == STATISTICS.counts.tolist()
    module.statistics = None
    assert module.state_dict() == {}


def without_mu(module, prefix=""):
    """The state dict of an earlier version."""
    return {prefix + name: value.clone() for name, value in module.state_dict().items() if name != "mu_bits"}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_the_state_of_an_earlier_version_has_no_mu(nested, assign):
    module = DistributionBalancedLoss(STATISTICS)
    holder = nn.ModuleDict({"loss": module}) if nested else module
    prefix = "loss." if nested else ""
    state = without_mu(DistributionBalancedLoss(STATISTICS), prefix)
    names = set(state)
    holder.load_state_dict(state, strict=True, assign=assign)
    assert module.statistics == STATISTICS and set(state) == names
    # The mu of other counts is not known.
    with pytest.raises(RuntimeError, match=r"mu: expected a number, .*these statistics have none.*from_targets"):
        holder.load_state_dict(without_mu(DistributionBalancedLoss(OTHER), prefix), assign=assign)
    assert module.statistics == STATISTICS
    given = DistributionBalancedLoss(STATISTICS, mu=0.9)
    given.load_state_dict(without_mu(DistributionBalancedLoss(OTHER)), assign=assign)
    assert given.statistics == LabelStatistics.from_counts(OTHER.counts, 200)


def test_an_object_of_an_earlier_version_has_no_mu():
    module = DistributionBalancedLoss(STATISTICS, mu=0.9)
    before = module(*batch())
    state = module.__getstate__()
    state["_buffers"] = {name: value for name, value in state["_buffers"].items() if name != "mu_bits"}
    old = DistributionBalancedLoss.__new__(DistributionBalancedLoss)
    old.__setstate__(state)
    assert old.statistics.mu is None
    assert_same_but_for_rounding(old(*batch()), before)


@pytest.mark.parametrize("impl", ["auto", "eager", "reference"])
def test_mu_comes_from_the_statistics(impl):
    logits, targets = batch()
    module = DistributionBalancedLoss(STATISTICS, impl=impl)
    for statistics in (STATISTICS, OTHER):
        module.statistics = statistics
        given = DistributionBalancedLoss(statistics, mu=statistics.mu, impl=impl)
        assert_same_but_for_rounding(
            value_and_gradient(module, targets, logits=logits), value_and_gradient(given, targets, logits=logits)
        )


def test_the_spec_with_a_number_is_one_object():
    """By it the backends find what they have kept."""
    from fused_balanced_loss.backends.constants import resolved

    spec, statistics = LossSpec.preset("DB"), copy.copy(STATISTICS)
    kept = resolved(spec, statistics)
    assert kept == spec.replace(mu=0.9)
    assert resolved(spec, statistics) is kept and resolved(LossSpec.preset("DB"), statistics) is kept
    given, plain = spec.replace(mu=0.3), LossSpec.preset("FL")
    assert resolved(given, statistics) is given and resolved(plain, None) is plain


def test_statistics_without_mu_are_refused_where_the_loss_needs_it():
    counts = LabelStatistics.from_counts(STATISTICS.counts, 100)
    message = r"^mu: expected a number, as .*from_targets.*, give mu=, or take .* corpus='reuters' or 'pubmed'"
    with pytest.raises(ValueError, match=message):
        DistributionBalancedLoss(counts)
    with pytest.raises(ValueError, match=message):
        fbl.balanced_loss(*batch(), LossSpec.preset("R-FL"), counts)
    with pytest.raises(ValueError, match=message):
        LinearBalancedLoss(LossSpec.preset("DB-0FL"), counts, 3)
    module = DistributionBalancedLoss(STATISTICS)
    with pytest.raises(ValueError, match=message):
        module.statistics = counts
    assert module.statistics == STATISTICS
    for spec in (LossSpec.preset("DB", corpus="pubmed"), LossSpec.preset("CB-NTR"), LossSpec.preset("FL")):
        BalancedLoss(spec, counts)(*batch())


@pytest.mark.parametrize("impl", ["auto", "eager"])
def test_compiled_calls_take_mu_from_statistics_that_they_see_first(impl):
    torch.compiler.reset()
    spec, statistics = LossSpec.preset("DB"), copy.copy(STATISTICS)
    compiled = torch.compile(
        lambda *arguments: fbl.balanced_loss(*arguments, spec, statistics, impl=impl), fullgraph=True, backend="eager"
    )
    for size in (2, 3, 4):
        logits, targets = batch(size, C)
        torch.testing.assert_close(compiled(logits, targets), DistributionBalancedLoss(STATISTICS)(logits, targets))


def test_the_fused_classifier_takes_mu_from_the_statistics():
    features, (_, targets) = torch.randn(N, 5, generator=torch.Generator().manual_seed(3)), batch()
    losses = []
    for mu in (None, 0.9):
        torch.manual_seed(0)
        head = LinearBalancedLoss(LossSpec.preset("DB").replace(mu=mu), STATISTICS, 5)
        losses.append(head(features, targets).detach())
    assert_same_but_for_rounding(*losses)


def test_buffers_that_are_no_counts_are_refused():
    module = DistributionBalancedLoss(STATISTICS)
    module.counts.fill_(-3)
    with pytest.raises(ValueError, match=r"^counts: expected integers in \[0, num_samples = 100\], got -3 for label 0"):
        module(*batch())


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("counts", [[1, 30, 4, 70, 11, 2, 500], [1, 2]])
def test_a_state_that_is_refused_changes_nothing(counts, assign):
    module = nn.ModuleDict({"loss": DistributionBalancedLoss(STATISTICS)})
    state = {"loss.counts": torch.tensor(counts), "loss.num_samples": torch.tensor(200)}
    state["loss.mu_bits"] = other_buffers()["mu_bits"]
    with pytest.raises(RuntimeError, match=r"loss\.counts"):
        module.load_state_dict(state, assign=assign)
    assert module["loss"].statistics == STATISTICS
    assert module["loss"].state_dict()["num_samples"].item() == 100
    assert state["loss.num_samples"].item() == 200


@pytest.mark.parametrize("assign", [False, True])
def test_a_module_on_the_meta_device(assign):
    with torch.device("meta"):
        module = DistributionBalancedLoss(STATISTICS)
    assert module.counts.is_meta
    assert module.statistics == STATISTICS
    if assign:
        module.load_state_dict(DistributionBalancedLoss(OTHER).state_dict(), assign=True)
        assert module.statistics == OTHER
    else:
        module.statistics = OTHER
        module.to_empty(device="cpu")
    assert module.statistics == OTHER
    assert module.state_dict()["counts"].tolist() == OTHER.counts.tolist()
    assert_same_but_for_rounding(module(*batch()), DistributionBalancedLoss(OTHER)(*batch()))


def test_to_empty_keeps_counts_that_were_changed_in_place():
    module = DistributionBalancedLoss(STATISTICS)
    change_in_place(module)
    module.to_empty(device="cpu")
    assert module.counts.tolist() == OTHER.counts.tolist() and module.statistics == OTHER


@pytest.mark.parametrize("duplicate", [copy.deepcopy, saved_and_loaded])
def test_copies_take_what_the_buffers_hold(duplicate):
    module = DistributionBalancedLoss(STATISTICS)
    change_in_place(module)
    other = duplicate(module)
    assert other.statistics == OTHER
    other.load_state_dict(DistributionBalancedLoss(STATISTICS).state_dict())
    assert other.statistics == STATISTICS and module.statistics == OTHER


def test_fake_buffers_have_no_values_to_derive_from():
    from torch._subclasses import FakeTensorMode

    module = DistributionBalancedLoss(STATISTICS)
    real = dict(module.named_buffers())
    with FakeTensorMode() as mode:
        for name, value in real.items():
            setattr(module, name, mode.from_tensor(value))
        assert module.statistics is STATISTICS
        module.statistics = OTHER
        assert module.statistics is OTHER
    for name, value in real.items():
        setattr(module, name, value)
    assert module.statistics == STATISTICS


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_modules_follow_their_buffers_or_raise(backend):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch.compiler.reset()
    counter = CompileCounterWithBackend(backend)
    module, other = DistributionBalancedLoss(STATISTICS), DistributionBalancedLoss(OTHER)
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for size in (2, 3, 4, 5, 6):
        logits, targets = batch(size, C)
        torch.testing.assert_close(compiled(logits, targets), module(logits, targets))
    # The second size makes the batch dynamic; none after it compiles.
    assert counter.frame_count <= 2
    module.statistics = OTHER
    torch.testing.assert_close(compiled(logits, targets), other(logits, targets))
    module.load_state_dict(DistributionBalancedLoss(STATISTICS).state_dict())
    torch.testing.assert_close(compiled(logits, targets), DistributionBalancedLoss(STATISTICS)(logits, targets))
    change_in_place(module)
    with pytest.raises(RuntimeError, match=r"^counts, num_samples: expected the values of the last call"):
        compiled(logits, targets)
    torch.testing.assert_close(module(logits, targets), other(logits, targets))
    torch.testing.assert_close(compiled(logits, targets), other(logits, targets))


def test_functional_call_with_other_buffers_under_compile_raises():
    torch.compiler.reset()
    module, other = DistributionBalancedLoss(STATISTICS), DistributionBalancedLoss(OTHER)
    call = torch.compile(
        lambda buffers, *arguments: torch.func.functional_call(module, buffers, arguments), backend="eager"
    )
    same = {name: value.clone() for name, value in module.named_buffers()}
    torch.testing.assert_close(call(same, *batch()), module(*batch()))
    with pytest.raises(RuntimeError, match=r"^counts, num_samples: expected the values of the last call"):
        call(dict(other.named_buffers()), *batch())


@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="needs gloo"
)
@pytest.mark.distributed
def test_ranks_train_with_the_counts_of_the_first():
    script = Path(__file__).with_name("statistics_rank.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    path = os.pathsep.join([str(script.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    run = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[:5000]
