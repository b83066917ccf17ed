"""A trained model in a folder, and what predicts with it::

    classifier = Classifier.load("runs/reuters/best_model")
    for labels, probabilities in classifier.predict(["Gold rose by two dollars.", "Corn exports fell."]): ...

The folder holds JSON and safetensors alone: nothing in it is run when it is loaded.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from files import Json, atomic_folder
from numpy.typing import NDArray
from torch import Tensor

from fused_balanced_loss import LabelStatistics, LossSpec

DESCRIPTION = "classifier.json"
FORMAT, VERSION = "fused_balanced_loss text classifier", 1
# Texts whose logits are held at once, and the most of their elements.
TEXTS, ELEMENTS = 640, 2**24


class ClassifierError(Exception):
    """The folder cannot be used; the message says which file, what was expected and what came."""


class Prediction(NamedTuple):
    """Names of labels and their probabilities, the most probable first."""

    labels: list[str]
    probabilities: list[float]


class Body(Protocol):
    def logits(self, texts: Sequence[str]) -> Tensor:
        """float32 [n, C]."""


@dataclass(frozen=True)
class Classifier:
    """A model that predicts labels of texts.

    Attributes:
        label_names: C names.
        thresholds: float64 [C], or [1] for all labels: a label is predicted where its probability is greater.
        spec, statistics: the loss that the model was trained with, and the label counts of its training documents.
        made_from: settings of the run, and its scores on validation.
    """

    body: Body
    label_names: Sequence[str]
    thresholds: NDArray[np.float64]
    spec: LossSpec
    statistics: LabelStatistics
    made_from: Json

    @classmethod
    def load(cls, folder: str | Path) -> "Classifier":
        """What a run has left, on the GPU where there is one.

        Raises:
            ClassifierError: for a folder that is none, is not whole, or is of another version.
        """
        folder = Path(folder)
        description = read_description(folder)
        try:
            names, counts, body = description["label_names"], description["statistics"], description["body"]
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError("label_names: expected a list of strings")
            for key, value in (("statistics", counts), ("body", body)):
                if not isinstance(value, dict):
                    raise ValueError(f"{key}: expected an object, got {value!r}")
            thresholds = np.atleast_1d(np.array(description["threshold"], np.float64))
            if thresholds.shape not in ((1,), (len(names),)):
                raise ValueError(f"threshold: expected 1 or {len(names):,}, got {thresholds.size:,}")
            if not ((thresholds >= 0) & (thresholds <= 1)).all():
                raise ValueError(f"threshold: expected numbers in [0, 1], got {description['threshold']}")
            statistics = LabelStatistics(**counts, degenerate="ignore")
            if statistics.num_labels != len(names):
                raise ValueError(f"statistics: expected {len(names):,} labels, got {statistics.num_labels:,}")
            spec, made_from = LossSpec(**description["loss"]), description["made_from"]
            load = _loader(body["kind"])
        except (KeyError, TypeError, ValueError) as error:
            raise ClassifierError(f"{folder / DESCRIPTION}: {error}") from error
        try:
            return cls(load(folder, body, len(names)), names, thresholds, spec, statistics, made_from)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ClassifierError(str(error)) from error

    def predict(self, texts: Iterable[str], **options: Any) -> list[Prediction]:
        """As :meth:`stream`, all at once."""
        return list(self.stream(texts, **options))

    def stream(
        self, texts: Iterable[str], *, top: int | None = None, threshold: float | None = None
    ) -> Iterator[Prediction]:
        """A prediction for each text, in order; memory does not grow with their number.

        Args:
            top: so many labels of every text, the most probable, in the place of those above the threshold.
            threshold: in the place of the model's own.

        Raises:
            TypeError, ValueError: for one string in the place of several, and for a ``top`` below 1.
        """
        if isinstance(texts, str):
            raise TypeError("texts: expected several strings, got one; put it into a list")
        if top is not None and top < 1:
            raise ValueError(f"top: expected at least 1, got {top}")
        least = self.thresholds if threshold is None else np.array([threshold])
        rest, size = map(_checked, texts), max(1, min(TEXTS, ELEMENTS // len(self.label_names)))
        while block := list(islice(rest, size)):
            for row in torch.sigmoid(self.body.logits(block).float()).cpu().numpy():
                # The comparison that ThresholdedF1 makes: float32 probabilities with float64 thresholds.
                chosen = np.flatnonzero(row.astype(np.float64) > least) if top is None else _largest(row, top)
                chosen = chosen[np.argsort(-row[chosen], kind="stable")]
                yield Prediction([self.label_names[label] for label in chosen], row[chosen].tolist())


def _checked(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"texts: expected strings, got {type(text).__name__}")
    # Half a surrogate pair, which no tokenizer takes, was replaced in training, too.
    return text.encode("utf-8", "replace").decode("utf-8")


def _largest(row: NDArray[np.float32], top: int) -> NDArray[np.int64]:
    return np.argpartition(-row, top - 1)[:top] if top < len(row) else np.arange(len(row))


def _loader(kind: str) -> Callable[[Path, Json, int], Body]:
    # The packages of the other kind need not be installed.
    if kind == "head":
        from encoders.saved_head import load_head

        return load_head
    if kind == "bert":
        from encoders.saved_bert import load_bert

        return load_bert
    raise ValueError(f"body: expected 'head' or 'bert', got {kind!r}")


def save_classifier(
    folder: Path,
    write: Callable[[Path], Json],
    *,
    label_names: Sequence[str],
    threshold: float | Sequence[float],
    spec: LossSpec,
    statistics: LabelStatistics,
    made_from: Json,
) -> None:
    """Writes a classifier that is there as a whole or not at all.

    Args:
        write: fills the folder that it is given, and returns what its kind needs to be loaded.
        threshold: of all labels, or of each.
        made_from: any JSON.

    Raises:
        OSError: where the folder cannot be written.
    """
    with atomic_folder(folder) as partial:
        body = write(partial)
        files = {path.relative_to(partial).as_posix(): path.stat().st_size for path in _files(partial)}
        description = {
            "format": FORMAT,
            "version": VERSION,
            "body": body,
            "label_names": list(label_names),
            "threshold": threshold,
            "loss": asdict(spec),
            "statistics": {
                "counts": statistics.counts.tolist(),
                "num_samples": statistics.num_samples,
                "mu": statistics.mu,
            },
            "made_from": made_from,
            "files": files,
        }
        text = json.dumps(description, ensure_ascii=False, indent=1)
        path = partial / DESCRIPTION
        path.write_text(text, encoding="utf-8")
        for name in files:
            # Safetensors keeps its files from everyone else.
            (partial / name).chmod(path.stat().st_mode)


def read_description(folder: Path) -> Json:
    """The content of ``classifier.json``, of a folder that has all files as long as they were written.

    Raises:
        ClassifierError: as :meth:`Classifier.load`.
    """
    path = folder / DESCRIPTION
    try:
        description: Json = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(description, dict) or description.get("format") != FORMAT:
            raise ValueError(f"expected the format {FORMAT!r}")
        if description.get("version") != VERSION:
            raise ValueError(f"it is of version {description.get('version')!r}, this program reads {VERSION}")
        files = description["files"]
        if not isinstance(files, dict) or not all(isinstance(size, int) for size in files.values()):
            raise ValueError(f"files: expected the size of each, got {files!r}")
    except FileNotFoundError as error:
        raise ClassifierError(
            f"{path}: missing; expected the folder that a run with --save-models has left, whole"
        ) from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ClassifierError(f"{path}: {error}") from error
    for name, size in files.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found != size:
            state = "missing" if found is None else f"has {found:,} bytes"
            raise ClassifierError(f"{folder / name}: {state}, expected {size:,} bytes; the folder is not whole")
    return description


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
