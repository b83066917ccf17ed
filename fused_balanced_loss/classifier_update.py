"""In-place optimizers of a linear classifier, applied to a chunk of its rows while that chunk's gradient is at hand."""

from __future__ import annotations

from torch import Tensor, nn

from .classifier_pass import Sink


class ClassifierUpdate(nn.Module):
    """Base of :class:`SGDUpdate` and :class:`AdamWUpdate`."""

    def prepare(self, weight: Tensor, bias: Tensor | None) -> None:
        """Makes the state for a classifier's weight [C, D] and bias [C]; called once, by what owns them."""
        raise NotImplementedError

    def step(self, weight: Tensor, bias: Tensor | None, factor: Tensor, finite: Tensor) -> Sink:
        """Begins one step; the result takes each chunk's rows and the gradients of their weight and bias.

        Args:
            factor: no dimensions; what the gradients are yet to be multiplied by.
            finite: bool, no dimensions; False makes the step change nothing.
        """
        raise NotImplementedError
