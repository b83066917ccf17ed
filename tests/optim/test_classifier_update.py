"""In-place optimizers of the classifier: against torch.optim, and what stochastic rounding promises."""

import copy
import math
import sys

import pytest
import torch
from agreement import assert_rounds_alike, assert_same_but_for_rounding

from fused_balanced_loss.backends import cpp_build
from fused_balanced_loss.classifier.functional import linear_balanced_loss
from fused_balanced_loss.classifier.module import LinearBalancedLoss
from fused_balanced_loss.label_statistics import LabelStatistics
from fused_balanced_loss.metrics import ThresholdedF1
from fused_balanced_loss.optim import base, select
from fused_balanced_loss.optim import cpp as cpp_update
from fused_balanced_loss.optim import eager as torch_update
from fused_balanced_loss.optim.stochastic_rounding import column_keys, round_stochastically, row_keys, step_key
from fused_balanced_loss.optim.update import AdamWUpdate, SGDUpdate
from fused_balanced_loss.spec import LossSpec

C, D, N = 53, 24, 16
ONE, YES = torch.tensor(1.0), torch.tensor(True)
OPTIMIZERS = {
    "sgd": (lambda **k: SGDUpdate(0.1, **k), lambda p: torch.optim.SGD(p, 0.1)),
    "momentum": (
        lambda **k: SGDUpdate(0.1, momentum=0.9, weight_decay=0.05, **k),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.05),
    ),
    "adamw": (
        lambda **k: AdamWUpdate(0.02, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1, **k),
        lambda p: torch.optim.AdamW(p, 0.02, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1),
    ),
}


@pytest.fixture(params=["torch", "cpp", "triton"])
def backend(request, device, monkeypatch):
    """Each implementation of the step; Triton's by its interpreter where there is no GPU."""
    begin = begin_of(request.param, device)
    monkeypatch.setattr(base, "select_update", lambda step: begin)
    return request.param


def begin_of(name, device):
    if name == "torch":
        return torch_update.begin
    if name == "cpp":
        if device.type != "cpu":
            pytest.skip("the C++ kernel takes CPU tensors")
        return cpp_update.begin
    pytest.importorskip("triton")
    from fused_balanced_loss.optim import triton as triton_update

    return triton_update.begin


def classifier(dtype, device, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(C, D, generator=generator).to(device, dtype)
    return weight, torch.randn(C, generator=generator).to(device, dtype) if bias else None


def gradients(steps, device, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(C, D, generator=generator).to(device), torch.randn(C, generator=generator).to(device))
        for _ in range(steps)
    ]


def apply(update, weight, bias, d_weight, d_bias, *, factor=0.5, finite=True, chunk=20):
    device = weight.device
    sink = update.step(weight, bias, torch.tensor(factor, device=device), torch.tensor(finite, device=device))
    for start in range(0, C, chunk):
        rows = slice(start, min(start + chunk, C))
        sink(rows, d_weight[rows].clone(), d_bias[rows].clone())


def trained(update, dtype, device, steps=3, **options):
    weight, bias = classifier(dtype, device)
    update = update.to(device)
    update.prepare(weight, bias)
    for d_weight, d_bias in gradients(steps, device):
        apply(update, weight, bias, d_weight, d_bias, **options)
    return weight, bias, update


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_twenty_steps_are_those_of_torch(name, bias, device, backend):
    ours, theirs = OPTIMIZERS[name]
    weight, offset = classifier(torch.float32, device, bias)
    parameters = [torch.nn.Parameter(value.clone()) for value in (weight, offset) if value is not None]
    update, optimizer = ours().to(device), theirs(parameters)
    update.prepare(weight, offset)
    for number, (d_weight, d_bias) in enumerate(gradients(20, device)):
        if number == 10:
            update.lr = optimizer.param_groups[0]["lr"] = 0.03
        for parameter, gradient in zip(parameters, (d_weight, d_bias), strict=False):
            parameter.grad = gradient * 0.5
        optimizer.step()
        apply(update, weight, offset, d_weight, d_bias)
    for parameter, value in zip(parameters, (weight, offset), strict=False):
        torch.testing.assert_close(value, parameter.detach(), rtol=2e-6, atol=2e-6)
    assert update.steps == 20 and update.skipped == 0


@pytest.mark.parametrize("other", ["cpp", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state", ["float32", "bfloat16", "row"])
def test_implementations_round_alike(state, dtype, other, device):
    """As PyTorch's: the same random bits, and arithmetic that differs in last digits alone."""
    results = []
    for begin in (torch_update.begin, begin_of(other, device)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(base, "select_update", lambda step, begin=begin: begin)
            results.append(trained(AdamWUpdate(0.02, state=state, max_row_norm=2.0), dtype, device))
    (weight, bias, update), (weight2, bias2, update2) = results
    tensors = [(weight, weight2), (bias, bias2)]
    tensors += zip(update.state_dict().values(), update2.state_dict().values(), strict=True)
    for one, two in tensors:
        assert_rounds_alike(one, two)


@pytest.mark.parametrize("state", ["float32", "bfloat16", "row"])
def test_random_bits_do_not_depend_on_the_chunk_size(state, device, backend):
    make = lambda: AdamWUpdate(0.02, state=state, max_row_norm=3.0)  # noqa: E731
    whole = trained(make(), torch.bfloat16, device, chunk=C)
    cut = trained(make(), torch.bfloat16, device, chunk=7)
    assert_rounds_alike(whole[0], cut[0])
    assert_rounds_alike(whole[1], cut[1], share=0.1)
    for name, value in whole[2].state_dict().items():
        assert_rounds_alike(value, cut[2].state_dict()[name], share=0.1 if name.startswith("bias") else 2e-3)


def test_a_shard_rounds_as_the_whole(device):
    weight, bias, _ = trained(AdamWUpdate(0.02, state="row"), torch.bfloat16, device)
    own, own_bias = classifier(torch.bfloat16, device)
    update, first = AdamWUpdate(0.02, state="row").to(device), 31
    own, own_bias = own[first:].clone(), own_bias[first:].clone()
    update.prepare(own, own_bias, first_label=first)
    for d_weight, d_bias in gradients(3, device):
        sink = update.step(own, own_bias, torch.tensor(0.5, device=device), torch.tensor(True, device=device))
        sink(slice(0, C - first), d_weight[first:].clone(), d_bias[first:].clone())
    assert_rounds_alike(own, weight[first:], share=5e-3)
    assert_rounds_alike(own_bias, bias[first:], share=0.1)


def test_row_state_averages_squares_by_label(device, backend):
    weight, bias = classifier(torch.float32, device)
    update = AdamWUpdate(0.02, state="row", weight_decay=0.0).to(device)
    update.prepare(weight, bias)
    expected = weight.clone()
    mean = torch.zeros(C, 1, device=device)
    first = torch.zeros(C, D, device=device)
    for step, (d_weight, d_bias) in enumerate(gradients(3, device), 1):
        apply(update, weight, bias, d_weight, d_bias, factor=1.0)
        mean = 0.999 * mean + 0.001 * d_weight.square().mean(1, keepdim=True)
        first = 0.9 * first + 0.1 * d_weight
        root = (mean / (1 - 0.999**step)).sqrt()
        expected -= 0.02 * first / (1 - 0.9**step) / (root + 1e-8)
        torch.testing.assert_close(update.exp_avg_sq, mean[:, 0])
        # The first moment is kept in 8 bits.
        torch.testing.assert_close(weight, expected, rtol=0, atol=0.02 * step * 2**-7)
    assert update.exp_avg.dtype == torch.bfloat16 and update.exp_avg_sq.dtype == torch.float32


def test_row_norm_is_of_weight_and_bias(device, backend):
    weight, bias = classifier(torch.float32, device)
    before = torch.cat([weight, bias[:, None]], 1)
    update = SGDUpdate(1.0, max_row_norm=2.0).to(device)
    update.prepare(weight, bias)
    ((d_weight, d_bias),) = gradients(1, device)
    d_weight[3], d_bias[3] = 0.0, 0.0
    d_weight[4], d_bias[4] = d_weight[4] / 100, 0.0
    apply(update, weight, bias, d_weight, d_bias, factor=1.0)
    step = before - torch.cat([weight, bias[:, None]], 1)
    gradient = torch.cat([d_weight, d_bias[:, None]], 1)
    norm = gradient.norm(dim=1, keepdim=True)
    expected = torch.where(norm > 2.0, gradient * (2.0 / norm), gradient)
    assert (norm > 2.0).any() and (norm < 2.0).sum() == 2
    torch.testing.assert_close(step, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("state", ["float32", "row"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_that_is_not_finite_changes_nothing(state, dtype, device, backend):
    weight, bias, update = trained(AdamWUpdate(0.02, state=state), dtype, device)
    before = copy.deepcopy((weight, bias, update.state_dict()))
    for d_weight, d_bias in gradients(2, device, seed=5):
        apply(update, weight, bias, d_weight * math.inf, d_bias * math.nan, factor=math.inf, finite=False)
    assert torch.equal(weight, before[0]) and torch.equal(bias, before[1])
    for name, value in update.state_dict().items():
        assert torch.equal(value, before[2][name] + (2 if name == "skipped" else 0)), name


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_nan_and_infinity_survive_rounding(rounding, device, backend):
    weight, bias = classifier(torch.bfloat16, device)
    weight[2, 3], weight[5, 1], weight[6, 2], bias[7] = math.nan, math.inf, -math.inf, math.nan
    # Patterns whose last bits rounding could carry away.
    odd = torch.tensor([0x7F800001, 0x7FFFFFFF, -1], dtype=torch.int32, device=device).view(torch.float32)
    update = SGDUpdate(1.0, rounding=rounding).to(device)
    update.prepare(weight, bias)
    d_weight, d_bias = torch.zeros(C, D, device=device), torch.zeros(C, device=device)
    d_weight[9, :3] = odd
    kept = weight.clone()
    apply(update, weight, bias, d_weight, d_bias)
    assert weight[9, :3].isnan().all() and weight[9, 3:].isfinite().all()
    kept[9] = weight[9]
    torch.testing.assert_close(weight, kept, rtol=0, atol=0, equal_nan=True)
    assert bias[7].isnan() and bias.isnan().sum() == 1


def rounded(value, step=1, seed=0, which=0):
    key = step_key(torch.tensor(seed), torch.tensor(step), which)
    out, bits = torch.empty(value.shape, dtype=torch.bfloat16), torch.empty(value.shape, dtype=torch.int32)
    keys = row_keys(key, 0, len(value)), column_keys(value.shape[1], value.device)
    round_stochastically(out, value, *keys, bits, torch.empty_like(bits))
    return out


def test_stochastic_rounding_is_unbiased():
    torch.manual_seed(0)
    value = torch.randn(256, 512)
    low = (value.view(torch.int32) & -(1 << 16)).view(torch.float32)
    high = ((value.view(torch.int32) & -(1 << 16)) + (1 << 16)).view(torch.float32)
    up = (value - low) / (high - low)
    count = 64
    ups = torch.zeros_like(value)
    for step in range(count):
        out = rounded(value, step).float()
        assert ((out == low) | (out == high)).all()
        ups += (out == high).float()
    # Sums of independent coins: over all, by row, by column and by place, all within what chance allows.
    excess, variance = ups - count * up, count * up * (1 - up)
    for total, spread in (
        (excess.sum(), variance.sum()),
        (excess.sum(0), variance.sum(0)),
        (excess.sum(1), variance.sum(1)),
    ):
        assert (total.abs() / spread.sqrt()).max() < 5
    deviations = (excess / variance.clamp(min=1).sqrt())[variance > 4]
    assert abs(deviations.var().item() - 1) < 0.02


def test_random_bits_of_neighbours_are_unrelated():
    half = torch.full((512, 512), 1 + 2**-8)

    def coins(**place):
        return (rounded(half, **place).float() > 1).float() - 0.5

    one = coins()
    limit = 5 / one.numel() ** 0.5 * 0.25
    others = [coins(step=2), coins(seed=1), coins(seed=1 << 32), coins(which=1)]
    others += [one.roll(k, dim) for dim in (0, 1) for k in (1, 2, 16, 256)]
    for other in others:
        assert (one * other).mean().abs() < limit
    assert one.mean().abs() < 2 * limit


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_resumed_run_gives_the_bits_of_one_uninterrupted(name, device, backend):
    make = lambda **k: OPTIMIZERS[name][0](state="bfloat16", seed=7, **k).to(device)  # noqa: E731
    weight, bias = classifier(torch.bfloat16, device)
    update = make()
    update.prepare(weight, bias)
    steps = gradients(6, device)
    for one in steps[:3]:
        apply(update, weight, bias, *one)
    saved = copy.deepcopy((weight, bias, update.state_dict()))
    copied = copy.deepcopy(update)
    for one in steps[3:]:
        apply(update, weight, bias, *one)
    for resumed in (make(), copied):
        weight2, bias2 = saved[0].clone(), saved[1].clone()
        if resumed is not copied:
            resumed.prepare(weight2, bias2)
            resumed.load_state_dict(saved[2])
        for one in steps[3:]:
            apply(resumed, weight2, bias2, *one)
        assert torch.equal(weight, weight2) and torch.equal(bias, bias2)
        assert all(torch.equal(a, b) for a, b in zip(update.buffers(), resumed.buffers(), strict=True))


def test_clipping_bounds_a_gradient_whose_square_is_infinite(device, backend):
    weight, bias = classifier(torch.float32, device)
    update = AdamWUpdate(0.1, state="row", max_row_norm=1.0, weight_decay=0.0).to(device)
    update.prepare(weight, bias)
    d_weight, d_bias = torch.zeros(C, D, device=device), torch.zeros(C, device=device)
    d_weight[3] = 1e25
    expected = weight.clone()
    apply(update, weight, bias, d_weight, d_bias)
    assert torch.equal(weight, expected) and update.exp_avg_sq.isfinite().all()


def test_gradients_may_lie_in_any_order(device, backend):
    weight, bias = classifier(torch.float32, device)
    expected = weight.clone()
    update = SGDUpdate(1.0).to(device)
    update.prepare(weight, bias)
    sink = update.step(weight, bias, torch.tensor(1.0, device=device), torch.tensor(True, device=device))
    d_weight = torch.randn(D, C, device=device).t()
    sink(slice(0, C), d_weight.clone(memory_format=torch.preserve_format), torch.zeros(2 * C, device=device)[::2])
    torch.testing.assert_close(weight, expected - d_weight)


def test_seed_matters_and_the_same_repeats(device, backend):
    one, two, other = (trained(SGDUpdate(1e-3, seed=seed), torch.bfloat16, device)[0] for seed in (3, 3, 4))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_dtype_conversion_leaves_the_state(device):
    statistics = LabelStatistics.from_counts(torch.arange(1, C + 1), 100)
    update = AdamWUpdate(0.01)
    loss = LinearBalancedLoss(LossSpec.preset("DB", corpus="reuters"), statistics, D, update=update).to(
        device, torch.bfloat16
    )
    assert loss.weight.dtype == torch.bfloat16 and update.exp_avg.dtype == torch.float32
    assert {name for name in loss.state_dict() if name.startswith("update.")} >= {"update.exp_avg", "update.steps"}


def test_meta_device_begins_at_zero():
    statistics = LabelStatistics.from_counts(torch.arange(1, C + 1), 100)
    update = AdamWUpdate(0.01, seed=5)
    loss = LinearBalancedLoss(LossSpec.preset("DB", corpus="reuters"), statistics, D, update=update, device="meta")
    loss.to_empty(device="cpu")
    assert update.seed == 5 and update.steps == 0 and not update.exp_avg.any()


def problem(seed, device, num_samples=768, dtype=torch.float32):
    """Labels from a linear teacher, long-tailed, of features [n, D]."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_samples, D, generator=generator) * 2
    teacher = torch.randn(C, D, generator=generator) / D**0.5
    threshold = torch.linspace(1.0, 4.5, C)
    targets = features @ teacher.t() + torch.randn(num_samples, C, generator=generator) * 0.2 > threshold
    return features.to(device, dtype), targets.to(device)


def final_f1(seed, device, dtype, update=None, optimizer=None, epochs=20):
    features, targets = problem(seed, device, dtype=dtype)
    train, test = slice(0, 512), slice(512, None)
    statistics = LabelStatistics.from_targets(targets[train].cpu(), degenerate="ignore")
    torch.manual_seed(seed)
    loss = LinearBalancedLoss(LossSpec.preset("DB", corpus="reuters"), statistics, D, update=update).to(device, dtype)
    own = None if optimizer is None else optimizer(loss.parameters())
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(512, generator=generator).split(64):
            value = loss(features[rows], targets[rows])
            value.backward()
            if own is not None:
                own.step()
                own.zero_grad()
    f1 = ThresholdedF1(C)
    f1.update(loss.logits(features[test]).float(), targets[test])
    return float(f1.best()[1])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_to_the_end_reaches_the_f1_of_torch(seed, device):
    theirs = final_f1(seed, device, torch.float32, optimizer=lambda p: torch.optim.AdamW(p, 0.02))
    for state, margin in (("float32", 0.002), ("bfloat16", 0.01), ("row", 0.02)):
        ours = final_f1(seed, device, torch.float32, update=AdamWUpdate(0.02, state=state))
        print(f"seed {seed}: micro-F1 torch.optim.AdamW {theirs:.4f}, in place, {state} state {ours:.4f}")
        assert ours >= theirs - margin
    theirs = final_f1(seed, device, torch.float32, optimizer=lambda p: torch.optim.SGD(p, 20.0, momentum=0.9))
    ours = final_f1(seed, device, torch.float32, update=SGDUpdate(20.0, momentum=0.9))
    print(f"seed {seed}: micro-F1 torch.optim.SGD {theirs:.4f}, in place {ours:.4f}")
    assert abs(ours - theirs) <= 0.002


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bfloat16_learns_by_stochastic_rounding_alone(seed, device):
    """A step of 3e-4 is below half a unit in the last place of most weights."""
    full = final_f1(seed, device, torch.float32, optimizer=lambda p: torch.optim.AdamW(p, 3e-4), epochs=160)
    f1 = {
        rounding: final_f1(seed, device, torch.bfloat16, update=AdamWUpdate(3e-4, rounding=rounding), epochs=160)
        for rounding in ("stochastic", "nearest")
    }
    print(f"seed {seed}: micro-F1 float32 {full:.4f}, bfloat16 {f1}")
    assert f1["stochastic"] >= full - 0.01
    assert f1["nearest"] < full - 0.03


def backward(loss, features, targets, upstream=1.0):
    value = loss(features, targets)
    value.backward(torch.tensor(upstream, device=value.device))
    return value.detach()


def linear(device, update, dtype=torch.float32, **options):
    torch.manual_seed(0)
    statistics = LabelStatistics.from_counts(torch.arange(1, C + 1), 100)
    return LinearBalancedLoss(LossSpec.preset("DB", corpus="reuters"), statistics, D, update=update, **options).to(
        device, dtype
    )


def test_module_steps_as_torch_does_with_an_encoder_before_it(device):
    features, targets = problem(0, device, N)
    losses = [linear(device, None, chunk_size=17), linear(device, AdamWUpdate(0.01), chunk_size=17)]
    encoders = [torch.nn.Linear(D, D).to(device) for _ in losses]
    encoders[1].load_state_dict(encoders[0].state_dict())
    optimizers = [
        torch.optim.AdamW([*encoders[0].parameters(), *losses[0].parameters()], 0.01),
        torch.optim.AdamW(encoders[1].parameters(), 0.01),
    ]
    for _ in range(20):
        for encoder, loss, optimizer in zip(encoders, losses, optimizers, strict=True):
            backward(loss, encoder(features), targets)
            optimizer.step()
            optimizer.zero_grad()
    for name in ("weight", "bias"):
        for one, two in (losses, encoders):
            torch.testing.assert_close(getattr(one, name), getattr(two, name), rtol=1e-4, atol=1e-5)
    assert losses[1].weight.grad is None and losses[1].bias.grad is None


def test_evaluation_and_no_grad_step_nothing(device):
    features, targets = problem(0, device, N)
    loss = linear(device, SGDUpdate(1.0))
    before = loss.weight.detach().clone()
    loss.eval()
    loss(features, targets)
    loss.train()
    with torch.no_grad():
        loss(features, targets)
    loss(features, targets)
    assert torch.equal(loss.weight, before) and loss.update.steps == 0


def test_loss_scale_undoes_the_upstream_factor(device):
    features, targets = problem(0, device, N)
    plain, scaled = (linear(device, SGDUpdate(1.0)) for _ in range(2))
    backward(plain, features, targets)
    scaled.update.loss_scale = torch.tensor(1024.0)
    backward(scaled, features, targets, 1024.0)
    assert_same_but_for_rounding(plain.weight, scaled.weight)


@pytest.mark.parametrize("upstream", [math.inf, math.nan])
def test_upstream_that_is_not_finite_is_skipped(upstream, device):
    features, targets = problem(0, device, N)
    loss = linear(device, AdamWUpdate(0.1))
    before = loss.weight.detach().clone()
    backward(loss, features, targets, upstream)
    assert torch.equal(loss.weight, before) and loss.update.skipped == 1 and loss.update.steps == 0


def test_features_that_are_not_finite_are_skipped(device):
    features, targets = problem(0, device, N)
    features[3, 4] = math.nan
    loss = linear(device, AdamWUpdate(0.1))
    before = loss.weight.detach().clone()
    backward(loss, features, targets)
    assert torch.equal(loss.weight, before) and loss.update.skipped == 1


def test_a_second_backward_is_an_error(device):
    features, targets = problem(0, device, N)
    loss = linear(device, SGDUpdate(1.0))
    value = loss(features, targets)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_learning_rate_as_a_tensor(device):
    features, targets = problem(0, device, N)
    rate = torch.tensor(0.5, device=device)
    by_number, by_tensor = linear(device, SGDUpdate(0.5)), linear(device, SGDUpdate(rate))
    for value in (0.5, 0.25):
        by_number.update.lr = value
        rate.fill_(value)
        for loss in (by_number, by_tensor):
            backward(loss, features, targets)
    assert_same_but_for_rounding(by_number.weight, by_tensor.weight)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graph():
    device = torch.device("cuda")
    features, targets = problem(0, device, N)
    losses = [linear(device, AdamWUpdate(torch.tensor(0.01, device=device), state="row"), torch.bfloat16) for _ in "12"]
    features, stream = features.bfloat16(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for loss in losses:
            backward(loss, features, targets)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        losses[0](features, targets).backward()
    for _ in range(5):
        graph.replay()
        losses[1](features, targets).backward()
    # A captured product may take another workspace, and so another path.
    assert_rounds_alike(losses[0].weight, losses[1].weight, share=0.02)
    assert losses[0].update.steps == 6


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SGDUpdate(-1.0), ValueError, "lr: expected a number of at least 0 and finite, got -1.0"),
        (lambda: SGDUpdate(math.nan), ValueError, "lr: "),
        (lambda: SGDUpdate("1"), TypeError, "lr: expected a number, got str"),
        (lambda: SGDUpdate(torch.ones(2)), ValueError, "lr: expected a floating-point tensor of one element"),
        (lambda: SGDUpdate(1.0, momentum=1.0), ValueError, "momentum: "),
        (lambda: SGDUpdate(1.0, weight_decay=-1), ValueError, "weight_decay: "),
        (lambda: SGDUpdate(1.0, max_row_norm=0.0), ValueError, "max_row_norm: expected a number above 0"),
        (
            lambda: SGDUpdate(1.0, rounding="up"),
            ValueError,
            "rounding: expected one of 'stochastic', 'nearest'; got 'up'",
        ),
        (lambda: SGDUpdate(1.0, seed=-1), ValueError, "seed: "),
        (lambda: SGDUpdate(1.0, seed=1.0), TypeError, "seed: "),
        (lambda: SGDUpdate(1.0, state="row"), ValueError, "state: "),
        (
            lambda: AdamWUpdate(1.0, state="half"),
            ValueError,
            "state: expected one of 'float32', 'bfloat16', 'row'; got",
        ),
        (lambda: AdamWUpdate(1.0, betas=(0.9, 1.0)), ValueError, "betas: "),
        (lambda: AdamWUpdate(1.0, betas=0.9), TypeError, "betas: expected two numbers, got 0.9"),
        (lambda: AdamWUpdate(1.0, eps=True), TypeError, "eps: "),
        (lambda: setattr(SGDUpdate(1.0), "loss_scale", 0.0), ValueError, "loss_scale: "),
    ],
)
def test_bad_settings(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_classifiers_that_do_not_fit():
    weight, bias = classifier(torch.float32, "cpu")
    with pytest.raises(TypeError, match="weight: expected float32 or bfloat16 for an update in place, got "):
        SGDUpdate(1.0).prepare(weight.half(), None)
    with pytest.raises(ValueError, match="weight: expected rows side by side"):
        SGDUpdate(1.0).prepare(weight.t(), None)
    update = AdamWUpdate(1.0)
    with pytest.raises(RuntimeError, match=r"update: expected prepare\(weight, bias\) before"):
        update.step(weight, bias, ONE, YES)
    update.prepare(weight, None)
    with pytest.raises(RuntimeError, match="update: prepared for a classifier already"):
        update.prepare(weight, None)
    with pytest.raises(ValueError, match=r"weight: expected the classifier that update was prepared for.*bias_exp_avg"):
        update.step(weight, bias, ONE, YES)
    with pytest.raises(ValueError, match=r"exp_avg \[50, 24\], got \[53, 24\]"):
        update.step(weight[:50], None, ONE, YES)


def test_a_shard_without_labels_counts_the_step(device):
    weight, bias = torch.empty(0, D, device=device), torch.empty(0, device=device)
    update = AdamWUpdate(0.1, state="row").to(device)
    update.prepare(weight, bias, first_label=C)
    update.step(weight, bias, ONE.to(device), YES.to(device))
    assert update.steps == 1


def test_functional_form(device):
    features, targets = problem(0, device, N)
    weight, bias = (torch.nn.Parameter(value) for value in classifier(torch.float32, device))
    before = weight.detach().clone()
    update = SGDUpdate(1.0).to(device)
    update.prepare(weight, bias)
    spec = LossSpec.preset("BCE")
    linear_balanced_loss(features, weight, bias, targets, spec, None, update=update).backward()
    assert update.steps == 1 and not torch.equal(weight, before)


def test_a_variant_that_cannot_be_built_leaves_the_others(monkeypatch):
    """Which implementation steps is decided for each variant, and by the build alone."""
    load_or_build = cpp_build._load_or_build

    def without_bfloat16(source, command):
        if "-DWEIGHT_BITS=16" in command:
            raise cpp_build.KernelBuildError("no bfloat16 today")
        return load_or_build(source, command)

    monkeypatch.setattr(cpp_build, "_load_or_build", without_bfloat16)
    chosen, decide = [], select.select_update
    monkeypatch.setattr(base, "select_update", lambda step: chosen.append(decide(step)) or chosen[-1])
    cpu = torch.device("cpu")
    forget_kernels()
    try:
        with pytest.warns(UserWarning, match="no bfloat16 today") as caught:
            trained(AdamWUpdate(0.02), torch.bfloat16, cpu, steps=2)
        assert len(caught) == 1
        trained(AdamWUpdate(0.02), torch.float32, cpu, steps=2)
        trained(AdamWUpdate(0.02), torch.bfloat16, cpu, steps=2)
    finally:
        forget_kernels()
    torch_steps, cpp_steps = [torch_update.begin] * 2, [cpp_update.begin] * 2
    assert chosen == torch_steps + cpp_steps + torch_steps


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="chooses the compiler by an environment variable")
def test_without_a_compiler_pytorch_steps_after_one_warning(monkeypatch, tmp_path):
    monkeypatch.setenv("FUSED_BALANCED_LOSS_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    forget_kernels()
    cpu = torch.device("cpu")
    try:
        with pytest.warns(UserWarning, match="no-such-compiler") as caught:
            weight, bias, _ = trained(AdamWUpdate(0.02), torch.bfloat16, cpu)
        assert len(caught) == 1
        monkeypatch.setattr(base, "select_update", lambda step: torch_update.begin)
        expected = trained(AdamWUpdate(0.02), torch.bfloat16, cpu)
        assert torch.equal(weight, expected[0]) and torch.equal(bias, expected[1])
    finally:
        forget_kernels()


def forget_kernels():
    cpp_build.forget()
    cpp_update.kernel.cache_clear()
