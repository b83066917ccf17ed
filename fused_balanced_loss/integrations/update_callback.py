"""What a classifier with an update in place needs from transformers' Trainer: a place for its state in the checkpoints,
one step for each optimizer step, and the Trainer's schedule and loss scale::

    head = fuse_classifier(model, spec, statistics, update=AdamWUpdate(1e-3))
    trainer = Trainer(..., compute_loss_func=head.compute_loss, callbacks=[ClassifierUpdateCallback()])
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from ..optim.base import ClassifierUpdate
from .fused_head import FusedClassifier

# The entry of the optimizer's first parameter group that holds the update's state in a checkpoint.
_ENTRY = "fused_classifier_update"


class ClassifierUpdateCallback(TrainerCallback):
    """Lets Trainer train a model of ``fuse_classifier(update=...)``, which refuses to be trained by it without.

    *Checkpoints.* The update's state (moments, steps, skipped, seed) is saved with that of the Trainer's optimizer, in
    ``optimizer.pt``, and comes back from there; the model's own file keeps the plain model's names. A run that resumes
    from a checkpoint without that state raises instead of going on with other numbers.

    *Schedule.* With ``follow_schedule`` each step takes ``update.lr`` times the share of the learning rate that the
    Trainer's schedule has reached (in the optimizer's first parameter group): warm-up and decay are the encoder's, and
    the two learning rates may differ. Without, ``update.lr`` and ``update.lr_factor`` are the caller's.

    *Mixed precision.* Under fp16 the scale of the Trainer's GradScaler is taken out of the gradient.

    Trainer's ``max_grad_norm`` does not reach the classifier; ``max_row_norm`` of the update bounds its gradient.

    It looks at the beginning of a training whether all this can work.

    Raises:
        TypeError: for an optimizer that runs no hooks when it is saved.
        ValueError: for a model without such a classifier; for ``gradient_accumulation_steps`` other than 1, as each
            backward is a step; for several processes or GPUs, DeepSpeed and FSDP, where replicas would diverge; for a
            checkpoint without the update's state; for a schedule that begins at a learning rate of 0.
    """

    def __init__(self, *, follow_schedule: bool = True) -> None:
        self.follow_schedule = follow_schedule
        self._trained: tuple[FusedClassifier, ClassifierUpdate] | None = None
        self._hook: Any = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        _check_arguments(args)
        self._release()
        trained = _updated_head(model)
        update = trained[1]
        # Accelerate wraps the optimizer.
        inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        saved = inner.param_groups[0].pop(_ENTRY, None)
        if saved is not None:
            update.load_state_dict(saved)
        elif state.global_step > 0:
            raise ValueError(
                f"update: expected its state in the checkpoint that the run resumes from, at step {state.global_step}, "
                "got none: it was saved without ClassifierUpdateCallback, or with save_only_model=True; resume from "
                "another, or begin a new run from the weights of this one"
            )

        def add_state(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
            state_dict["param_groups"][0][_ENTRY] = dict(update.state_dict())

        self._hook = inner.register_state_dict_post_hook(add_state)
        if _ENTRY not in inner.state_dict()["param_groups"][0]:
            self._release()
            raise TypeError(
                f"optimizer: expected one whose state_dict runs hooks, as those of torch.optim, got "
                f"{type(inner).__name__}; the state of update could not be saved with it"
            )
        self._trained = trained

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        if self._trained is None:
            return
        head, update = self._trained
        scaler = getattr(optimizer, "scaler", None)
        if scaler is not None and scaler.is_enabled():
            update.loss_scale = scaler.get_scale()
        if self.follow_schedule:
            group = optimizer.param_groups[0]
            # The learning rate that its schedule began with.
            first = group.get("initial_lr", args.learning_rate)
            if not first:
                raise ValueError(
                    "learning_rate: expected one above 0 for update to follow its schedule, got 0; "
                    "see ClassifierUpdateCallback(follow_schedule=False)"
                )
            update.lr_factor = group["lr"] / first
        head.grant_step()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._release()

    def _release(self) -> None:
        """Undoes what a training has set, also one that ended by an exception."""
        if self._hook is not None:
            self._hook.remove()
        if self._trained is not None:
            _, update = self._trained
            update.loss_scale = 1.0
            if self.follow_schedule:
                update.lr_factor = 1.0
        self._trained = self._hook = None


def _updated_head(model: nn.Module | None) -> tuple[FusedClassifier, ClassifierUpdate]:
    for module in () if model is None else model.modules():
        if isinstance(module, FusedClassifier) and module.update is not None:
            return module, module.update
    raise ValueError(
        f"model: expected one whose classifier fuse_classifier(update=...) has exchanged, got {type(model).__name__}; "
        "leave ClassifierUpdateCallback away"
    )


def _check_arguments(args: TrainingArguments) -> None:
    if args.gradient_accumulation_steps != 1:
        raise ValueError(
            f"gradient_accumulation_steps: expected 1 with fuse_classifier(update=...), as each backward is a step of "
            f"the classifier, got {args.gradient_accumulation_steps}; raise per_device_train_batch_size instead, or "
            "leave update away and let the Trainer's optimizer step the classifier"
        )
    devices = args.world_size * max(1, args.n_gpu)
    deepspeed, fsdp = (bool(getattr(args, name, None)) for name in ("deepspeed", "fsdp"))
    if devices > 1 or deepspeed or fsdp:
        raise ValueError(
            "update: expected one process with one device, as replicas of the classifier would each step by their own "
            f"gradient and diverge, got {devices} and deepspeed={deepspeed}, fsdp={fsdp}; leave update away, or see "
            "LabelParallelLinearLoss"
        )
