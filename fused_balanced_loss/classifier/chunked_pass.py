"""One pass over a linear classifier in chunks of labels: loss and gradients, one chunk of logits at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends.problem import Problem, compute_dtype
from ..backends.select import select
from ..optim.rule import GradientConsumer
from .label_chunks import LabelChunks, default_chunk_size, even_chunk_size, keeps_gradient, row_stride
from .products import add_product, product, reads_gaps, scaled_product, without_gaps


class Gradients(NamedTuple):
    """Gradients; None where not asked for.

    features: [N, D] in the accumulation dtype, yet to be multiplied by ``ChunkedPass.late_scale``.
    weight: [C, D] in the weight's dtype; if that is float16, yet to be multiplied by ``late_scale``.
    bias: [C] in the accumulation dtype, yet to be multiplied by ``late_scale``.
    """

    features: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class ChunkedPass:
    """One call's passes over the classifier: what forward and backward share besides features, weight and bias.

    Args:
        problem: of all labels, without logits; the dtype of its empty logits is that of the products.
        impl: which implementation computes the loss of a chunk.
        chunk_size: labels of a chunk; None for chunks of one size, about ``default_chunk_size``.
        shape: (N, D) of the features.
        own_labels: first label and number of labels of the weight's rows, which in a shard are not all of them.
        scale: factor on loss and gradients. The kernel of the loss takes it. Where products or weights are float16,
            whose range the gradient of a mean can leave, it comes after the products, as ``late_scale``; that is 1
            for all others.
        weight_dtype: of the classifier's weight.
        update: whether the backward updates the weights.

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
        weight_dtype: torch.dtype,
        *,
        update: bool,
    ) -> None:
        self.dtype = problem.logits.dtype
        self.backend = select(impl, problem)
        is_late = torch.float16 in (self.dtype, weight_dtype)
        self._kernel_scale, self.late_scale = (1.0, scale) if is_late else (scale, 1.0)
        first, num_labels = own_labels
        most = default_chunk_size(*shape, self.dtype, problem.logits.device, update=update)
        size = min(chunk_size, max(num_labels, 1)) if chunk_size else even_chunk_size(most, num_labels)
        self._chunks = LabelChunks(problem, size, first, num_labels)
        num_columns = len(self._chunks.rows) * row_stride(size)
        self.may_keep = keeps_gradient(shape[0], num_columns, self.dtype, problem.logits.device)
        # The gradients of the chunks' logits, and their transposes, from one pass to the next.
        self._kept: list[tuple[Tensor, Tensor]] = []

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
        keep: bool = False,
    ) -> tuple[Tensor, Gradients]:
        """``scale`` times the sum of the loss of ``features @ weight.T + bias``, and the gradients asked for.

        Args:
            features: [N, D]. weight: [C, D]. bias: [C], or None. Another dtype than that of the products is converted,
                the weight's chunk by chunk.
            wants: whether the gradients of features, weight and bias are wanted.
            take_gradients: gets the gradients of weight and bias chunk by chunk, without ``late_scale``, so that they
                never exist whole.
            keep: keeps the gradient of the logits for the next pass, which then makes gradients alone: its loss is 0.
        """
        features, weight = without_gaps(features.detach().to(self.dtype)), weight.detach()
        exact, size = compute_dtype(self.dtype), self._chunks.size
        want_features, want_weight, want_bias = wants
        # All views are made before the loop: each would be an operator for each chunk.
        weights = _Weights(weight, size, self.dtype)
        biases = None if bias is None else _parts_of(bias.detach().to(self.dtype), size)
        kept, self._kept = self._kept, []
        chunks = kept or self._memory(features, whole=keep)
        d_features = d_weight = d_bias = None
        if want_features:
            # The first chunk's product writes it, but a shard may have no chunk.
            d_features = (features.new_empty if chunks else features.new_zeros)(features.shape, dtype=exact)
        d_weights: Sequence[Tensor] = ()
        d_biases: Sequence[Tensor] = ()
        if take_gradients is not None:
            # One gradient for all chunks is memory that is in cache already.
            memory = features.new_empty(size, features.shape[1], dtype=exact)
            rest = [memory[: rows.stop - rows.start] for rows in self._chunks.rows[-1:]]
            d_weights = [memory] * (len(self._chunks.rows) - 1) + rest
        else:
            if want_weight:
                d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
                d_weights = _parts_of(d_weight, size)
            if want_bias:
                d_bias = features.new_empty(len(weight), dtype=exact)
                d_biases = _parts_of(d_bias, size)
        weight_scale = 1.0 if weight.dtype == torch.float16 else self.late_scale
        losses = []
        for number, problem in enumerate(self._chunks):
            rows = self._chunks.rows[number]
            w, w_t = weights.chunk(number)
            logits, logits_t = chunks[number]
            if not kept:
                if biases is None:
                    torch.mm(features, w_t, out=logits)
                else:
                    torch.addmm(biases[number], features, w_t, out=logits)
                problem = problem._replace(logits=logits)
                if not (keep or any(wants)):
                    losses.append(self.backend.value(problem, "sum", self._kernel_scale))
                    continue
                value, _ = self.backend.value_and_gradient(problem, self._kernel_scale, out=logits)
                losses.append(value)
            # This product comes before the weight's rows may change.
            if d_features is not None and number == 0:
                product(d_features, logits, w)
            elif d_features is not None:
                add_product(d_features, logits, w)
            if take_gradients is not None:
                product(d_weights[number], logits_t, features)
                take_gradients(rows, d_weights[number], logits.sum(0, dtype=exact))
                continue
            if d_bias is not None:
                torch.sum(logits, 0, dtype=exact, out=d_biases[number])
            if d_weight is not None:
                scaled_product(d_weights[number], logits_t, features, weight_scale)
        if keep:
            self._kept = chunks
        if len(losses) == 1:
            loss = losses[0]
        else:
            loss = torch.stack(losses).sum() if losses else features.new_zeros((), dtype=exact)
        return loss if self.late_scale == 1.0 else loss * self.late_scale, Gradients(d_features, d_weight, d_bias)

    def _memory(self, features: Tensor, whole: bool) -> list[tuple[Tensor, Tensor]]:
        """Memory for the logits [N, b] of each chunk, and their transposes; ``whole``: the chunks do not share it."""
        rows, size = self._chunks.rows, self._chunks.size
        if not rows:
            return []
        stride, rest = row_stride(size), rows[-1].stop - rows[-1].start
        found = []
        for _ in rows if whole else rows[:1]:
            memory = features.new_empty(len(features), stride)
            if reads_gaps(memory):
                memory[:, rest:].zero_()
            logits = memory if stride == size else memory[:, :size]
            found.append((logits, logits.t()))
        if not whole:
            found *= len(rows)
        if rest < size:
            last = found[-1][0][:, :rest]
            found[-1] = last, last.t()
        return found


def _parts_of(tensor: Tensor, size: int, dim: int = 0) -> Sequence[Tensor]:
    """Parts of ``size`` along a dimension. One part is no view: each view takes the host a microsecond or two."""
    return (tensor,) if size >= tensor.shape[dim] else tensor.split(size, dim)


class _Weights:
    """Chunks of a weight [C, D] and their transposes, in the dtype of the products."""

    def __init__(self, weight: Tensor, size: int, dtype: torch.dtype) -> None:
        weight = without_gaps(weight)
        self._given = _parts_of(weight, size)
        self._converted: dict[int, tuple[Tensor, Tensor]] = {}
        if weight.dtype == dtype:
            self._transposed = _parts_of(weight.t(), size, 1)
            return
        # Under autocast; one memory for all chunks.
        memory = weight.new_empty(min(size, len(weight)), weight.shape[1], dtype=dtype)
        for width in {len(self._given[0]), len(self._given[-1])}:
            self._converted[width] = memory[:width], memory[:width].t()

    def chunk(self, number: int) -> tuple[Tensor, Tensor]:
        """The weights [b, D] of a chunk, and [D, b]; a converted chunk holds until the next is asked for."""
        given = self._given[number]
        if not self._converted:
            return given, self._transposed[number]
        converted = self._converted[len(given)]
        converted[0].copy_(given)
        return converted
