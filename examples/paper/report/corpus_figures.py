"""What Table 1 and Figures 2 and 3 need of a corpus, kept beside its records.

``corpus.json`` has the sizes, ``label_counts.npz`` the counts of labels and of pairs of labels in training.
"""

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from corpora.corpus import Corpus
from files import Json, atomic_file
from numpy.typing import NDArray
from scipy.sparse import csr_array

Counts = NDArray[np.int64]
SIZES, COUNTS = "corpus.json", "label_counts.npz"
MATRIX = ("data", "indices", "indptr")
VERSION = 1


@dataclass(frozen=True)
class CorpusFigures:
    """A corpus in numbers.

    Attributes:
        sizes: the content of ``corpus.json``.
        label_names: C names.
        counts: int64 [C], training documents of each label.
        co_occurrence: int32 CSR [C, C], training documents that carry both; the counts on the diagonal.
    """

    sizes: Json
    label_names: list[str]
    counts: Counts
    co_occurrence: csr_array

    @property
    def label_counts(self) -> dict[str, int]:
        """Training documents by label."""
        return dict(zip(self.label_names, self.counts.tolist(), strict=True))


def corpus_sizes(corpus: Corpus) -> Json:
    """The figures of Table 1: over all documents, where no part is named."""
    parts = {name: split.targets for name, split in corpus.splits.items()}
    by_document = {name: targets.crow.diff().numpy() for name, targets in parts.items()}
    by_label = sum(np.bincount(targets.col.numpy(), minlength=corpus.num_labels) for targets in parts.values())
    groups: Json = {}
    for name, (low, high) in corpus.instance_groups.items():
        most = corpus.num_labels if high is None else high
        inside = {part: int(((count >= low) & (count <= most)).sum()) for part, count in by_document.items()}
        groups[name] = {"low": low, "high": high, **inside}
    return {
        "version": VERSION,
        "name": corpus.name,
        "fingerprint": corpus.fingerprint,
        "paper": corpus.paper,
        "notice": corpus.notice,
        "remarks": list(corpus.remarks),
        "documents": {name: len(targets) for name, targets in parts.items()},
        "labels": corpus.num_labels,
        "labels_a_document": _spread(np.concatenate(list(by_document.values()))),
        "documents_a_label": _spread(np.asarray(by_label)),
        "head": corpus.head,
        "tail": corpus.tail,
        "label_groups": {name: int(mask.sum()) for name, mask in corpus.label_groups.items()},
        "instance_groups": groups,
        "mu": corpus.statistics.mu,
    }


def _spread(counts: Counts) -> Json:
    mean, median = float(counts.mean()), float(np.median(counts))
    return {"mean": mean, "median": median, "least": int(counts.min()), "most": int(counts.max())}


def write_corpus_figures(corpus: Corpus, folder: Path) -> None:
    """Writes both files into ``folder``, unless those of the same corpus are there."""
    sizes = corpus_sizes(corpus)
    try:
        if read_corpus_figures(folder).sizes == json.loads(json.dumps(sizes)):
            return
    except (FileNotFoundError, ValueError):
        pass
    folder.mkdir(parents=True, exist_ok=True)
    matrix = csr_array(corpus.train.targets.to_scipy(), dtype=np.int32)
    together = csr_array(matrix.T @ matrix)
    together.sort_indices()
    arrays = {
        "fingerprint": np.array(corpus.fingerprint),
        "label_names": np.array(list(corpus.label_names)),
        "counts": corpus.statistics.counts.numpy(),
        **{name: getattr(together, name) for name in MATRIX},
    }
    with atomic_file(folder / COUNTS) as path:
        np.savez_compressed(path, **arrays)
    with atomic_file(folder / SIZES) as path:
        path.write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")


def read_corpus_figures(folder: Path) -> CorpusFigures:
    """What :func:`write_corpus_figures` wrote.

    Raises:
        FileNotFoundError: where one of the files is missing.
        ValueError: where one cannot be read, is of another version, or belongs to another corpus.
    """
    path = folder / SIZES
    try:
        sizes = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(sizes, dict) or sizes.get("version") != VERSION:
            raise ValueError(f"expected version {VERSION}")
        path = folder / COUNTS
        with np.load(path, allow_pickle=False) as archive:
            if str(archive["fingerprint"]) != sizes["fingerprint"]:
                raise ValueError(f"it belongs to another corpus than {SIZES}")
            counts = archive["counts"]
            together = csr_array(tuple(archive[name] for name in MATRIX), shape=2 * counts.shape)
            return CorpusFigures(sizes, archive["label_names"].tolist(), counts, together)
    except FileNotFoundError:
        raise
    except (OSError, KeyError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
