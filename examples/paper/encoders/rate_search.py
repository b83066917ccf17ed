"""The learning rate with the best validation micro-F1, by Trainer's hyperparameter search over Optuna."""

import logging
from collections.abc import Sequence
from pathlib import Path

import optuna
from files import Json
from machine import from_main, is_main
from optuna.trial import TrialState
from transformers import Trainer

from encoders.encoder import EncoderError
from encoders.fine_tuning import explained_failures
from encoders.pretrained import quiet

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
    place: Json = {"study_name": NAME, "storage": f"sqlite:///{file}"}
    missing = from_main(_ask_for_missing(rates, file, place) if is_main() else 0)

    def best_so_far(metrics: dict[str, float]) -> float:
        return max(metrics["eval_micro_f1"], trainer.state.best_metric or 0.0)

    if missing:
        with quiet(), explained_failures(trainer):
            trainer.hyperparameter_search(
                hp_space=lambda trial: {NAME: trial.suggest_categorical(NAME, list(rates))},
                compute_objective=best_so_far,
                n_trials=missing,
                direction="maximize",
                backend="optuna",
                load_if_exists=True,
                pruner=optuna.pruners.NopPruner(),
                **place,
            )
    if not is_main():
        return from_main([])
    trials = optuna.load_study(**place).get_trials(states=[TrialState.COMPLETE])
    found = [
        {NAME: trial.params[NAME], "micro_f1": trial.value, "seconds": trial.duration.total_seconds()}
        for trial in trials
        if trial.duration is not None
    ]
    return from_main(sorted(found, key=lambda trial: (-trial["micro_f1"], trial[NAME])))


def _ask_for_missing(rates: Sequence[float], file: Path, place: Json) -> int:
    """Puts the rates without a result in the queue; how many are in it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(direction="maximize", load_if_exists=True, **place)
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
