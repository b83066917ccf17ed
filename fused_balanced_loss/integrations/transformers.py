"""The losses in transformers' Trainer, without a subclass of it::

    trainer = Trainer(
        model,
        TrainingArguments(..., batch_eval_metrics=True),
        compute_loss_func=compute_loss_func(DistributionBalancedLoss(statistics)),
        data_collator=DataCollatorForMultiLabel(tokenizer, num_labels),
        compute_metrics=compute_metrics(ThresholdedF1(num_labels)),
    )

Each sample has its label ids under ``labels``. Multi-hot labels, dense and of any dtype, need no collator of ours.
Gradient accumulation, DataParallel and torchrun need nothing further. ``label_smoothing_factor`` smooths the targets of
the loss, although Trainer warns that it has left its own smoothing away.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedTokenizerBase

from ..collate import SparseTargetsCollator
from ..metrics import TOTAL, ThresholdedF1
from ..modules import BalancedLoss
from ..spec import LossSpec
from ..targets import SparseTargets, row_offsets

IGNORED = -100


class PaddedLabelIds(dict[str, Tensor]):
    """Label ids of n samples as a mapping of tensors, which Trainer moves, pads and gathers like any other.

    ``label_ids``: int64 [n, K], ascending, then -100; K is at least 1. ``num_labels``: int64 [n], C in every row.

    Those of :meth:`from_targets` are known to be valid, and their sizes are known on the host, so that a GPU is never
    waited for. That knowledge goes along with ``to``, pickling and pinning, and rests on the tensor ``label_ids`` too,
    because Trainer makes a new mapping of the same tensors. What was gathered, cut or made by hand is looked at.
    """

    # The numbers of labels and of ids, padding not counted, where the host knows them without a look at the device.
    _known: tuple[int, int] | None = None

    @classmethod
    def from_targets(cls, targets: SparseTargets) -> PaddedLabelIds:
        """From valid targets [n, C]."""
        counts = targets.crow.diff()
        # The last row makes the width at least 1, also of no samples.
        rows = [*torch.split(targets.col, counts.tolist()), targets.col.new_full((1,), IGNORED)]
        ids = pad_sequence(rows, batch_first=True, padding_value=IGNORED)[:-1]
        padded = cls(label_ids=ids, num_labels=torch.full_like(counts, targets.num_labels))
        return padded._remember((targets.num_labels, len(targets.col)))

    def to_targets(self, num_labels: int) -> SparseTargets:
        """SparseTargets [n, C] on the same device, for a model of ``num_labels`` labels.

        Raises:
            ValueError: where the label ids are of another number of labels, out of range, repeated or out of order.
        """
        # An evaluation without batch_eval_metrics gives numpy arrays.
        ids = torch.as_tensor(self["label_ids"])
        known = self._known or getattr(ids, "_known_label_ids", None)
        own = {known[0]} if known else set(torch.as_tensor(self["num_labels"]).tolist())
        if own - {num_labels}:
            raise ValueError(
                f"labels: expected label ids of {num_labels} labels, as the model's logits, got ids of "
                f"{', '.join(map(str, sorted(own)))} labels; give DataCollatorForMultiLabel the model's number"
            )
        present = ids != IGNORED
        crow = row_offsets(present.sum(1))
        # ``ids[present]`` would wait for the device to learn its own length. Each id goes to its place, and padding
        # goes to one place behind them all.
        num_ids = known[1] if known else int(crow[-1])
        ids, present = ids.reshape(-1), present.reshape(-1)
        place = torch.where(present, present.cumsum(0) - 1, num_ids)
        col = ids.new_empty(num_ids + 1).scatter_(0, place, ids)[:num_ids]
        return SparseTargets(crow, col, num_labels, check=not known)

    def ne(self, ignored: int) -> Tensor:
        """What Trainer sums to count the items of a step; every label of every sample is one, as in a dense target."""
        return self["num_labels"]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PaddedLabelIds:
        """The same label ids on ``device``."""
        moved = PaddedLabelIds({name: part.to(device, non_blocking=non_blocking) for name, part in self.items()})
        return moved if self._known is None else moved._remember(self._known)

    def __setitem__(self, name: str, value: Tensor) -> None:
        # Another tensor may hold anything.
        self._known = None
        super().__setitem__(name, value)

    def __copy__(self) -> PaddedLabelIds:
        # DataLoader pins a copy of a mapping: the copy knows as much.
        twin = PaddedLabelIds(self)
        twin._known = self._known
        return twin

    def _remember(self, known: tuple[int, int]) -> PaddedLabelIds:
        self._known = known
        self["label_ids"]._known_label_ids = known  # type: ignore[attr-defined]
        return self


class DataCollatorForMultiLabel:
    """Pads the texts of a batch to the longest, and makes targets of each sample's list of label ids under ``labels``.

    Args:
        tokenizer: pads.
        num_labels: C.
        sparse: True gives :class:`PaddedLabelIds`, whose size does not depend on C; False dense uint8 [n, C].
        pad_to_multiple_of: as the tokenizer's ``pad`` takes it.

    Raises:
        TypeError, ValueError: for a batch without ``labels``, and label ids that are out of range or repeated.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        num_labels: int,
        *,
        sparse: bool = True,
        pad_to_multiple_of: int | None = None,
    ) -> None:
        pad = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=pad_to_multiple_of)
        self.collate = SparseTargetsCollator(num_labels, collate=pad)
        self.sparse = sparse

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> Any:
        batch = self.collate(samples)
        targets = batch["labels"]
        batch["labels"] = PaddedLabelIds.from_targets(targets) if self.sparse else targets.to_dense()
        return batch


def compute_loss_func(loss: Callable[[Tensor, Any], Tensor]) -> Callable[..., Tensor]:
    """Trainer's ``compute_loss_func`` from a loss of the family, or any other that means over the N * C elements.

    The mean is over the samples and labels of an optimizer step: all its accumulated batches on all processes. So
    accumulation, and the number of processes, leave the gradient what it is for one large batch, short last batches
    included. (With ``average_tokens_across_devices=False`` it is the mean of the processes' means.)

    Args:
        loss: from logits [n, C] and targets (SparseTargets, or what the collator gave) to the mean loss.

    Raises:
        ValueError: for a loss whose reduction is not the mean. In a step: for label ids of another number of labels
            than the model's, and for a ``label_smoothing_factor`` of Trainer's that the loss cannot have.
    """
    if getattr(loss, "reduction", "mean") != "mean":
        raise ValueError(f"loss: expected reduction 'mean', got {loss.reduction!r}")  # type: ignore[attr-defined]

    # By factor: a new one would look at the values of its buffers, and wait for their device.
    used_by_factor: dict[float, Callable[[Tensor, Any], Tensor]] = {0.0: loss}

    def compute(outputs: Any, labels: Any, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = model_logits(outputs)
        factor = label_smoothing_factor()
        if factor not in used_by_factor:
            used_by_factor[factor] = smoothed_loss(loss, factor)
        used = used_by_factor[factor]
        return step_loss(used, logits, labels, logits.shape[-1], num_items_in_batch)

    return compute


def label_smoothing_factor() -> float:
    """That of the Trainer that asks for a loss, 0 outside of one.

    Trainer gives its arguments to no loss function, and leaves its own smoothing away where there is one: so it is
    looked for among the callers.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        caller = frame.f_locals.get("self") if frame.f_code.co_name == "compute_loss" else None
        if caller is not None and hasattr(caller, "compute_loss_func"):
            return float(caller.args.label_smoothing_factor)
    return 0.0


def smoothed_loss(loss: Callable[[Tensor, Any], Tensor], factor: float) -> Callable[[Tensor, Any], Tensor]:
    """The loss with smoothed targets; shares the statistics. Raises ValueError for a loss that cannot have them."""
    if not isinstance(loss, BalancedLoss):
        raise ValueError(
            f"label_smoothing_factor: expected 0 with a loss that is no BalancedLoss, got {factor}; Trainer does not "
            "smooth the targets of a loss function"
        )
    twin = copy.copy(loss)
    twin.spec = smoothed_spec(loss.spec, factor)
    return twin


def smoothed_spec(spec: LossSpec, factor: float) -> LossSpec:
    """The spec with Trainer's ``label_smoothing_factor``; raises ValueError where it has another."""
    own = spec.label_smoothing
    if own not in (0.0, factor):
        raise ValueError(f"label_smoothing_factor: expected 0 or {own}, as in the loss's spec, got {factor}")
    return spec.replace(label_smoothing=factor)


def step_loss(
    loss: Callable[[Tensor, Any], Tensor], values: Tensor, labels: Any, num_labels: int, num_items: Tensor | int | None
) -> Tensor:
    """The mean loss of a Trainer's batch as its share of the mean over the optimizer step.

    ``loss`` makes the mean loss of values [n, ...] and targets [n, num_labels]. ``num_items`` is what Trainer gives as
    ``num_items_in_batch``; None leaves the mean over the batch. Raises TypeError for no labels, and for SparseTargets
    in training, and ValueError for label ids of another number of labels than the model's.
    """
    if isinstance(labels, SparseTargets) and num_items is None and torch.is_grad_enabled():
        # Trainer cannot count their items, and would silently add up accumulated batches instead of their mean.
        raise TypeError("labels: expected those of DataCollatorForMultiLabel or a dense tensor, got SparseTargets")
    if labels is None:
        raise TypeError("labels: expected label ids or a dense tensor under 'labels' in every batch, got None")
    mean = loss(values, _targets(labels, num_labels))
    if num_items is None:
        return mean
    # Under DataParallel it is one number a device, which Trainer's own scaling expects to be added up.
    step_items = num_items.sum() if isinstance(num_items, Tensor) else num_items
    return mean * (values.shape[:-1].numel() * num_labels / step_items)


def compute_metrics(metric: ThresholdedF1 | Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
    """Trainer's ``compute_metrics``: micro- and macro-F1 at the threshold of the best micro-F1, and that threshold.

    A function of your own can be given instead: its ``EvalPrediction`` then has multi-hot ``label_ids``, uint8 [n, C],
    as from a collator that makes dense labels.

    With ``TrainingArguments(batch_eval_metrics=True)`` each batch is counted and forgotten, so that memory does not
    grow with the evaluation set. The results are ``micro_f1``, ``macro_f1`` and ``threshold``, and for the metric's
    label groups ``head_micro_f1`` and so on.

    Args:
        metric: counts, and is reset after each evaluation; reset it yourself after one that was interrupted. Or a
            function, as Trainer takes it.

    Raises in an evaluation:
        ValueError: for label ids of another number of labels than the model's.
    """

    if callable(metric):
        return _with_multi_hot_labels(metric)

    def compute(prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        logits = torch.as_tensor(model_logits(prediction.predictions))
        metric.update(logits, _targets(prediction.label_ids, logits.shape[-1]))
        if not compute_result:
            return {}
        threshold = metric.best().threshold
        result = {"threshold": threshold}
        for group, scores in metric.scores(threshold).items():
            prefix = "" if group == TOTAL else f"{group}_"
            result |= {f"{prefix}{kind}_f1": value for kind, value in scores.items()}
        metric.reset()
        return result

    return compute


def _with_multi_hot_labels(function: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
    def compute(prediction: EvalPrediction, **options: Any) -> dict[str, float]:
        labels = prediction.label_ids
        if isinstance(labels, PaddedLabelIds):
            logits = model_logits(prediction.predictions)
            dense = labels.to_targets(logits.shape[-1]).to_dense()
            # With batch_eval_metrics Trainer gives tensors, and else arrays.
            labels = dense if isinstance(logits, Tensor) else dense.numpy()
            prediction = EvalPrediction(prediction.predictions, labels, prediction.inputs, prediction.losses)
        return function(prediction, **options)

    return compute


def model_logits(outputs: Any) -> Any:
    """From a model's output: a mapping with ``logits``, a tuple that begins with them, or the logits."""
    if isinstance(outputs, Mapping):
        if "logits" not in outputs:
            raise TypeError(f"outputs: expected a model output with logits, got {list(outputs)}")
        return outputs["logits"]
    return outputs[0] if isinstance(outputs, (tuple, list)) else outputs


def _targets(labels: Any, num_labels: int) -> Any:
    if isinstance(labels, PaddedLabelIds):
        return labels.to_targets(num_labels)
    return torch.as_tensor(labels) if not isinstance(labels, (Tensor, SparseTargets)) else labels
