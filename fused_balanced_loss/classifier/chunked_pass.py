"""One pass over a linear classifier in chunks of labels: loss and gradients, one chunk of logits at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..backends.memory import empty
from ..backends.problem import compute_dtype
from ..backends.select import Backend
from ..optim.rule import Sink
from .label_chunks import LabelChunks

# Bytes of a chunk's weights and logits together, by device type: what stays in cache between its three products.
CHUNK_BYTES = {"cpu": 12 << 20, "cuda": 20 << 20}
_MULTIPLE = 128


class Gradients(NamedTuple):
    """Gradients of the loss's sum; None where not asked for.

    features: [N, D] in the accumulation dtype, unscaled.
    weight: [C, D] in the weight's dtype, times ``scale``, but for float16, which is unscaled.
    bias: [C] in the accumulation dtype, unscaled.
    """

    features: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def default_chunk_size(num_rows: int, num_features: int, dtype: torch.dtype, device: torch.device) -> int:
    """Labels of a chunk, a multiple of 128."""
    size = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) // (dtype.itemsize * (num_rows + num_features))
    return max(_MULTIPLE, size // _MULTIPLE * _MULTIPLE)


def classifier_pass(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    chunks: LabelChunks,
    chunk_size: int,
    backend: Backend,
    scale: float,
    *,
    wants: tuple[bool, bool, bool] = (False, False, False),
    sink: Sink | None = None,
) -> tuple[Tensor, Gradients]:
    """``scale`` times the sum of the loss of ``features @ weight.T + bias``, and the gradients asked for.

    Args:
        features: [N, D] in the dtype of the products.
        weight: [C, D]; another dtype than that of the features is converted chunk by chunk.
        bias: [C], or None.
        wants: whether the gradients of features, weight and bias are wanted. With ``sink`` those of weight and bias
            go there chunk by chunk, unscaled, and never exist whole.
    """
    exact = compute_dtype(features.dtype)
    want_features, want_weight, want_bias = wants
    # A chunk smaller than the others has its rows as far apart: 16-byte accesses hold at any number of labels.
    buffer = features.new_empty(len(features), min(chunk_size, -(-len(weight) // _MULTIPLE) * _MULTIPLE))
    loss = torch.zeros((), dtype=exact, device=features.device)
    d_features = features.new_zeros(features.shape, dtype=exact) if want_features else None
    d_weight = empty(weight.shape, weight.dtype, weight.device) if want_weight and sink is None else None
    d_bias = features.new_empty(len(weight), dtype=exact) if want_bias and sink is None else None
    product: Tensor | None = None
    for rows, problem in chunks:
        w = weight[rows].to(features.dtype)
        logits = buffer[:, : len(w)]
        if bias is None:
            torch.mm(features, w.t(), out=logits)
        else:
            torch.addmm(bias[rows].to(features.dtype), features, w.t(), out=logits)
        problem = problem._replace(logits=logits)
        if not any(wants):
            loss += backend.value(problem, "sum", 1.0)
            continue
        value, _ = backend.value_and_gradient(problem, 1.0, out=logits)
        loss += value
        # Before the weight's rows may change.
        if d_features is not None:
            _add_product(d_features, logits, w)
        if sink is not None:
            if product is None and exact == features.dtype:
                # Memory that is in cache already, for every chunk.
                product = features.new_empty(min(chunk_size, len(weight)), features.shape[1])
            out = None if product is None else product[: len(w)]
            sink(rows, _product(logits.t(), features, out), logits.sum(0, dtype=exact))
            continue
        if d_bias is not None:
            torch.sum(logits, 0, dtype=exact, out=d_bias[rows])
        if d_weight is not None:
            _scaled_product(d_weight[rows], logits.t(), features, scale)
    return loss * scale, Gradients(d_features, d_weight, d_bias)


def _product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b, in float32 for half precision; float32 and float64 to ``out`` where that is given."""
    if out is not None:
        return torch.mm(a, b, out=out)
    if a.is_cuda and compute_dtype(a.dtype) != a.dtype:
        return torch.mm(a, b, out_dtype=torch.float32)
    if a.dtype == torch.float16:
        # A sum over the batch can leave float16's range.
        return torch.mm(a.float(), b.float())
    return torch.mm(a, b).to(compute_dtype(a.dtype))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += _product(a, b)


def _scaled_product(out: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
    """scale * a @ b to ``out``; float16 unscaled, whose range a mean's gradient can leave."""
    if out.dtype == torch.float16:
        scale = 1.0
    if out.dtype == a.dtype:
        torch.addmm(out, a, b, beta=0, alpha=scale, out=out)
    else:
        out.copy_(_product(a, b).mul_(scale))
