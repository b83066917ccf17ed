"""Strides, offsets, expansions and the negative bit of every argument: results are those of contiguous copies."""

import contextlib

import pytest
import torch
from agreement import assert_same_but_for_rounding
from fuzzing.memory import bytes_of, forms_of, place
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fused_balanced_loss import BalancedLoss, LabelStatistics, LossSpec, SparseTargets, balanced_loss
from fused_balanced_loss.backends.select import IMPLS
from fused_balanced_loss.classifier.functional import linear_balanced_loss

pytestmark = pytest.mark.slow

HERE = tuple(name for name in IMPLS if name not in ("triton", "compile"))
SPECS = {name: LossSpec.preset(name, corpus="reuters") for name in ("BCE", "DB", "CB-NTR", "ASL")}
TARGETS = (torch.bool, torch.uint8, torch.int8, torch.int64, torch.float32, torch.bfloat16, torch.float64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
N, D = 4, 6


class Drawn:
    """Arguments in memory of some form, and contiguous copies of them."""

    def __init__(self, data, seed):
        self.data, self.generator = data, torch.Generator().manual_seed(seed)
        self.owners = []

    def uniform(self, *shape):
        return torch.rand(shape, generator=self.generator)

    def argument(self, name, values):
        """(the argument, its contiguous copy)"""
        negative = values.dtype not in (torch.bool, torch.uint8)
        form = self.data.draw(st.sampled_from(forms_of(values.dim(), negative)), label=name)
        base, view = place(values, form)
        tensor = view(base)
        if self.data.draw(st.booleans(), label=f"{name} in inference mode"):
            with torch.inference_mode():
                base = base.clone()
                tensor = view(base)
        self.owners.append((base, bytes_of(base).clone()))
        return tensor, tensor.clone(memory_format=torch.contiguous_format).resolve_neg()

    def unchanged(self):
        return all(torch.equal(bytes_of(base), before) for base, before in self.owners)


def batch(drawn, width):
    """Targets, sample weight, label mask and their copies; either of the latter two may be missing."""
    data = drawn.data
    label = drawn.uniform(N, width) < 0.3
    dtype = data.draw(st.sampled_from((*TARGETS, "ids")), label="targets")
    if dtype == "ids":
        whole = SparseTargets.from_dense(label)
        forms = [form for form in forms_of(1, True) if not form.startswith("expanded")]
        crow, col = (
            place(part, data.draw(st.sampled_from(forms), label=name))
            for name, part in (("crow", whole.crow), ("col", whole.col))
        )
        checked = data.draw(st.booleans(), label="check")
        targets = SparseTargets(crow[1](crow[0]), col[1](col[0]), width, check=checked), whole
    else:
        targets = drawn.argument("targets", label.to(dtype))
    options = [{}, {}]
    if data.draw(st.booleans(), label="with sample_weight"):
        weights = drawn.uniform(N).to(data.draw(st.sampled_from(FLOATS), label="dtype of sample_weight"))
        for option, value in zip(options, drawn.argument("sample_weight", weights), strict=True):
            option["sample_weight"] = value
    if data.draw(st.booleans(), label="with label_mask"):
        shape = data.draw(st.sampled_from([(width,), (N, width)]), label="shape of label_mask")
        for option, value in zip(options, drawn.argument("label_mask", drawn.uniform(*shape) < 0.7), strict=True):
            option["label_mask"] = value
    return targets, options


def leaf(tensor):
    """Requiring grad, in the same memory; an inference tensor cannot."""
    return tensor if tensor.is_inference() else tensor.detach().requires_grad_()


@contextlib.contextmanager
def only_refusals_of(impl):
    """A kernel that was named may say that it cannot take a call: such an example tells nothing."""
    try:
        yield
    except RuntimeError as error:
        assume(not (impl == "cpp" and str(error).startswith("impl: ")))
        raise


def results(loss, inputs, upstream):
    wanted = [part for part in inputs if part is not None and part.requires_grad]
    if not wanted:
        return (loss.detach(),)
    return (loss.detach(), *torch.autograd.grad(loss, wanted, upstream))


# The first call of a variant builds a kernel.
@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), module=st.booleans())
@pytest.mark.parametrize("impl", HERE)
def test_losses_over_logits(impl, data, seed, module):
    drawn, width = Drawn(data, seed), data.draw(st.sampled_from((1, 5, 17, 40)), label="labels")
    spec = SPECS[data.draw(st.sampled_from(sorted(SPECS)), label="loss")]
    dtype = data.draw(st.sampled_from(FLOATS), label="dtype")
    reduction = data.draw(st.sampled_from(("none", "sum", "mean")), label="reduction")
    gradient = data.draw(st.sampled_from(("forward", "backward")), label="gradient")
    statistics = LabelStatistics.from_counts(
        torch.randint(1, 400, (width,), generator=drawn.generator), 500, degenerate="ignore"
    )
    logits = drawn.argument("logits", (drawn.uniform(N, width) * 6 - 3).to(dtype))
    targets, options = batch(drawn, width)
    out = torch.float64 if dtype == torch.float64 else torch.float32
    upstream = [torch.tensor(0.5, dtype=out)] * 2
    if reduction == "none":
        upstream = drawn.argument("upstream", drawn.uniform(N, width).to(out))
    settings_ = {"reduction": reduction, "gradient": gradient, "impl": impl}
    found = []
    for k in range(2):
        z = leaf(logits[k]) if not logits[0].is_inference() else logits[k]
        with only_refusals_of(impl):
            if module:
                loss = BalancedLoss(spec, statistics, **settings_)(z, targets[k], **options[k])
            else:
                loss = balanced_loss(z, targets[k], spec, statistics, **settings_, **options[k])
        up = upstream[k].clone() if upstream[k].is_inference() else upstream[k]
        found.append(results(loss, [z], up))
    assert drawn.unchanged()
    assert_same_but_for_rounding(*found)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("impl", HERE)
def test_loss_with_its_classifier(impl, data, seed):
    drawn, width = Drawn(data, seed), data.draw(st.sampled_from((1, 5, 17, 40)), label="labels")
    spec = SPECS[data.draw(st.sampled_from(sorted(SPECS)), label="loss")]
    dtype = data.draw(st.sampled_from((torch.float32, torch.float64)), label="dtype")
    statistics = LabelStatistics.from_counts(
        torch.randint(1, 400, (width,), generator=drawn.generator), 500, degenerate="ignore"
    )
    classifier = [
        drawn.argument("features", (drawn.uniform(N, D) * 2 - 1).to(dtype)),
        drawn.argument("weight", (drawn.uniform(width, D) * 2 - 1).to(dtype)),
        drawn.argument("bias", drawn.uniform(width).to(dtype)),
    ]
    if data.draw(st.booleans(), label="no bias"):
        classifier[2] = None, None
    targets, options = batch(drawn, width)
    settings_ = {
        "reduction": data.draw(st.sampled_from(("sum", "mean")), label="reduction"),
        "gradient": data.draw(st.sampled_from(("forward", "backward")), label="gradient"),
        "chunk_size": data.draw(st.sampled_from((None, 1, 7)), label="chunk_size"),
        "impl": impl,
    }
    # A tensor of inference mode cannot be kept for a backward: then there is none.
    grad = not any(part[0] is not None and part[0].is_inference() for part in classifier)
    found = []
    for k in range(2):
        inputs = [part[k] if part[k] is None or not grad else leaf(part[k]) for part in classifier]
        with only_refusals_of(impl):
            loss = linear_balanced_loss(*inputs, targets[k], spec, statistics, **settings_, **options[k])
        found.append(results(loss, inputs, torch.tensor(0.5, dtype=dtype)))
    assert drawn.unchanged()
    assert_same_but_for_rounding(*found, units=64)
