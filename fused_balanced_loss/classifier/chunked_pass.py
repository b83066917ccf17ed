"""One pass over a linear classifier in chunks of labels: loss and gradients, one chunk of logits at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..backends import device as devices
from ..backends.problem import Problem, compute_dtype
from ..backends.select import select
from ..optim.rule import GradientConsumer
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
    size = CHUNK_BYTES.get(devices.kind(device), CHUNK_BYTES["cuda"]) // (dtype.itemsize * (num_rows + num_features))
    return max(_MULTIPLE, size // _MULTIPLE * _MULTIPLE)


class ChunkedPass:
    """One call's passes over the classifier: what forward and backward share besides features, weight and bias.

    Args:
        problem: of all labels, without logits; the dtype of its empty logits is that of the products.
        impl: which implementation computes the loss of a chunk.
        chunk_size: labels of a chunk; None for ``default_chunk_size``.
        shape: (N, D) of the features.
        own_labels: first label and number of labels of the weight's rows, which in a shard are not all of them.
        scale: factor on loss and gradients.

    Raises:
        ValueError, RuntimeError: as :class:`LabelChunks` and ``select``.
    """

    def __init__(
        self,
        problem: Problem,
        impl: str,
        chunk_size: int | None,
        shape: tuple[int, int],
        own_labels: tuple[int, int],
        scale: float,
    ) -> None:
        self.dtype = problem.logits.dtype
        self.backend = select(impl, problem)
        self.scale = scale
        size = chunk_size or default_chunk_size(*shape, self.dtype, problem.logits.device)
        first, num_labels = own_labels
        self._chunks = LabelChunks(problem, min(size, max(num_labels, 1)), first, num_labels)

    def given(self) -> list[Tensor]:
        """The caller's tensors that a later pass reads again."""
        return self._chunks.problem.given()

    def run(
        self,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *,
        wants: tuple[bool, bool, bool] = (False, False, False),
        take_gradients: GradientConsumer | None = None,
    ) -> tuple[Tensor, Gradients]:
        """``scale`` times the sum of the loss of ``features @ weight.T + bias``, and the gradients asked for.

        Args:
            features: [N, D]. weight: [C, D]. bias: [C], or None. Another dtype than that of the products is converted,
                the weight's chunk by chunk.
            wants: whether the gradients of features, weight and bias are wanted.
            take_gradients: gets the gradients of weight and bias chunk by chunk, unscaled, so that they never exist
                whole.
        """
        features, weight = features.detach().to(self.dtype), weight.detach()
        exact = compute_dtype(self.dtype)
        want_features, want_weight, want_bias = wants
        # Rows of whole 256 bytes, in the last chunk too: accesses of 16 bytes hold at any number of labels.
        width = min(self._chunks.size, -(-len(weight) // _MULTIPLE) * _MULTIPLE)
        buffer = features.new_empty(len(features), width)
        loss = torch.zeros((), dtype=exact, device=features.device)
        d_features = features.new_zeros(features.shape, dtype=exact) if want_features else None
        d_weight = d_bias = None
        if take_gradients is None:
            d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if want_weight else None
            d_bias = features.new_empty(len(weight), dtype=exact) if want_bias else None
        product: Tensor | None = None
        for rows, problem in self._chunks:
            w = weight[rows].to(self.dtype)
            logits = buffer[:, : len(w)]
            if bias is None:
                torch.mm(features, w.t(), out=logits)
            else:
                torch.addmm(bias.detach()[rows].to(self.dtype), features, w.t(), out=logits)
            problem = problem._replace(logits=logits)
            if not any(wants):
                loss += self.backend.value(problem, "sum", 1.0)
                continue
            value, _ = self.backend.value_and_gradient(problem, 1.0, out=logits)
            loss += value
            # This product comes before the weight's rows may change.
            if d_features is not None:
                _add_product(d_features, logits, w)
            if take_gradients is not None:
                if product is None and exact == self.dtype:
                    # One product for all chunks is memory that is in cache already.
                    product = features.new_empty(self._chunks.size, features.shape[1])
                out = None if product is None else product[: len(w)]
                take_gradients(rows, _product(logits.t(), features, out), logits.sum(0, dtype=exact))
                continue
            if d_bias is not None:
                torch.sum(logits, 0, dtype=exact, out=d_bias[rows])
            if d_weight is not None:
                _scaled_product(d_weight[rows], logits.t(), features, self.scale)
        return loss * self.scale, Gradients(d_features, d_weight, d_bias)


def _product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b, in float32 for half precision; float32 and float64 to ``out`` where that is given."""
    if out is not None:
        return torch.mm(a, b, out=out)
    if devices.multiplies_into_float32(a.device) and compute_dtype(a.dtype) != a.dtype:
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
