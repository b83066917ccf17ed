"""The learning rate with the best validation micro-F1, by Trainer's hyperparameter search over Optuna."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from transformers import Trainer

from encoders.encoder import EncoderError, Json
from encoders.fine_tuning import explained_failures
from encoders.pretrained import quiet
from encoders.processes import from_main, is_main

NAME = "learning_rate"
BROKEN = "{file}: the search's record cannot be read ({error}); remove it, and the search begins anew"


def search_learning_rate(trainer: Trainer, rates: Sequence[float], file: Path) -> list[Json]:
    """Trains with each rate that ``file`` has no result of; all ``learning_rate`` and ``micro_f1``, the best first.

    A trial counts with the best of its epochs; of equal ones the lower rate comes first.

    Args:
        trainer: made with ``model_init``; its arguments are those of a trial but for the rate.
        file: SQLite, of this search alone; it outlives a kill, so that the next call goes on with the rates left.

    Raises:
        EncoderError: where ``file`` is broken.
    """
    # One line a trial, of which the experiment's own line says more.
    optuna.logging.set_verbosity(logging.WARNING)
    storage = f"sqlite:///{file}"
    options: dict[str, Any] = {"study_name": NAME, "storage": storage}
    missing = from_main(_ask_for_missing(rates, file, options) if is_main() else 0)
    if missing:
        with quiet(), explained_failures(trainer):
            trainer.hyperparameter_search(
                hp_space=lambda trial: {NAME: trial.suggest_categorical(NAME, list(rates))},
                compute_objective=_best_so_far(trainer),
                n_trials=missing,
                direction="maximize",
                backend="optuna",
                load_if_exists=True,
                pruner=optuna.pruners.NopPruner(),
                **options,
            )
    return from_main(_results(optuna.load_study(**options)) if is_main() else [])


def _ask_for_missing(rates: Sequence[float], file: Path, options: Json) -> int:
    """Puts the rates without a result in the queue; how many are in it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(direction="maximize", load_if_exists=True, **options)
        # A trial that was killed stays "running" for ever, and an interrupted one has "failed": both are done again.
        done = {trial.params[NAME] for trial in study.get_trials(states=[TrialState.COMPLETE])}
        waiting = {trial.system_attrs["fixed_params"][NAME] for trial in study.get_trials(states=[TrialState.WAITING])}
        for rate in rates:
            if rate not in done | waiting:
                study.enqueue_trial({NAME: rate})
        return len(set(rates) - done)
    # Whatever the database's driver raises for a file that is none.
    except Exception as error:
        raise EncoderError(BROKEN.format(file=file, error=" ".join(str(error).split())[:200])) from error


def _best_so_far(trainer: Trainer) -> Callable[[dict[str, float]], float]:
    def objective(metrics: dict[str, float]) -> float:
        before = trainer.state.best_metric
        return max(metrics["eval_micro_f1"], 0.0 if before is None else before)

    return objective


def _results(study: optuna.Study) -> list[Json]:
    trials = study.get_trials(states=[TrialState.COMPLETE])
    found = [
        {NAME: trial.params[NAME], "micro_f1": trial.value, "seconds": trial.duration.total_seconds()}
        for trial in trials
        if trial.duration is not None
    ]
    return sorted(found, key=lambda trial: (-trial["micro_f1"], trial[NAME]))
