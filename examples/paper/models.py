"""The models that the runs of a command leave: all of them, or the one that is best on validation."""

from dataclasses import dataclass
from pathlib import Path

from classifier import ClassifierError, read_description, save_classifier
from corpora.corpus import Corpus
from encoders.encoder import TrainedModel
from files import Json
from progress import progress

from fused_balanced_loss import LossSpec

CHOICES = ("best", "all", "none")
THRESHOLDS = ("run", "group", "label")


@dataclass(frozen=True)
class ModelStore:
    """Models in ``output``: ``best_model``, or ``models`` with a folder for each run.

    Args:
        kept: one of ``CHOICES``.
        thresholds: whether a model has one threshold, one for head, medium and tail, or one for each label.
    """

    output: Path
    kept: str
    thresholds: str

    def folder(self, stem: str) -> Path:
        return self.output / "best_model" if self.kept == "best" else self.output / "models" / stem

    def score(self, stem: str, corpus: Corpus) -> float:
        """Validation micro-F1 of the model of this corpus that is there; -1 where there is none that is whole."""
        try:
            made_from = read_description(self.folder(stem))["made_from"]
            same = made_from["settings"]["corpus_fingerprint"] == corpus.fingerprint
            return float(made_from["validation"]["total"]["micro"]) if same else -1.0
        except (ClassifierError, KeyError, TypeError):
            return -1.0

    def keep(self, stem: str, corpus: Corpus, settings: Json, spec: LossSpec, result: Json) -> Path | None:
        """Takes the model out of the result, and writes it where it is asked for; where it is, then.

        One that cannot be written costs the model, not the result.
        """
        model: TrainedModel | None = result.pop("model", None)
        folder = self.folder(stem)
        if model is None or self.kept == "none":
            return None
        own = model.own
        if self.kept == "best" and self.score(stem, corpus) >= own["micro_f1"]:
            return None
        threshold = own["threshold"] if self.thresholds == "run" else own[f"by_{self.thresholds}"].tolist()
        try:
            save_classifier(
                folder,
                model.write,
                label_names=corpus.label_names,
                threshold=threshold,
                spec=spec,
                statistics=corpus.statistics,
                made_from={"settings": settings, "validation": own["validation"], "epoch": result["own_epoch"]},
            )
        # A full disk shows in as many ways as there are writers of files, and hours of training may be behind us.
        except Exception as error:
            reason = getattr(error, "strerror", None) or error
            progress.warn(f"the model could not be saved in {folder}: {reason}; the run's results are kept")
            return None
        return folder
