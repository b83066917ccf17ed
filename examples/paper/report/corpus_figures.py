"""What Table 1 and Figures 2 and 3 need of a corpus, kept beside its records.

``corpus.json`` has the sizes, ``label_counts.npz`` the counts of labels and of pairs of labels in training.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from corpora.corpus import Corpus
from files import atomic_file
from numpy.typing import NDArray
from scipy.sparse import csr_array

from fused_balanced_loss import SparseTargets

Json = dict[str, Any]
Counts = NDArray[np.int64]
SIZES, COUNTS = "corpus.json", "label_counts.npz"
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


def corpus_sizes(corpus: Corpus) -> Json:
    """The figures of Table 1: over all documents, where no part is named."""
    parts = {name: split.targets for name, split in corpus.splits.items()}
    by_document = {name: targets.crow.diff().numpy() for name, targets in parts.items()}
    every_document = np.concatenate(list(by_document.values()))
    every_label = sum(np.bincount(targets.col.numpy(), minlength=corpus.num_labels) for targets in parts.values())
    return {
        "version": VERSION,
        "name": corpus.name,
        "fingerprint": corpus.fingerprint,
        "paper": corpus.paper,
        "notice": corpus.notice,
        "remarks": list(corpus.remarks),
        "documents": {name: len(targets) for name, targets in parts.items()},
        "labels": corpus.num_labels,
        "labels_a_document": _spread(every_document),
        "documents_a_label": _spread(np.asarray(every_label)),
        "head": corpus.head,
        "tail": corpus.tail,
        "label_groups": {name: int(mask.sum()) for name, mask in corpus.label_groups.items()},
        "instance_groups": {
            name: {"low": low, "high": high}
            | {
                part: int(((count >= low) & (count <= (corpus.num_labels if high is None else high))).sum())
                for part, count in by_document.items()
            }
            for name, (low, high) in corpus.instance_groups.items()
        },
        "mu": corpus.statistics.suggest_mu(parts["train"]) if len(parts["train"].col) else None,
    }


def write_corpus_figures(corpus: Corpus, folder: Path) -> None:
    """Writes both files into ``folder``, unless those of the same corpus are there."""
    sizes = corpus_sizes(corpus)
    if _is_written(sizes, folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    together = co_occurrence(corpus.train.targets)
    with atomic_file(folder / COUNTS) as path:
        np.savez_compressed(
            path,
            fingerprint=np.array(corpus.fingerprint),
            label_names=np.array(list(corpus.label_names)),
            counts=corpus.statistics.counts.numpy(),
            indptr=together.indptr,
            indices=together.indices,
            data=together.data,
        )
    with atomic_file(folder / SIZES) as path:
        path.write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")


def co_occurrence(targets: SparseTargets) -> csr_array:
    """int32 CSR [C, C]: documents that carry both labels."""
    matrix = csr_array(targets.to_scipy(), dtype=np.int32)
    together = csr_array(matrix.T @ matrix)
    together.sort_indices()
    return together


def read_corpus_figures(folder: Path) -> CorpusFigures:
    """What :func:`write_corpus_figures` wrote.

    Raises:
        FileNotFoundError: where one of the files is missing.
        ValueError: where one cannot be read, is of another version, or belongs to another corpus.
    """
    try:
        sizes = json.loads((folder / SIZES).read_text(encoding="utf-8"))
        if not isinstance(sizes, dict) or sizes.get("version") != VERSION:
            raise ValueError(f"expected version {VERSION}")
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{folder / SIZES} cannot be read: {error}") from error
    path = folder / COUNTS
    try:
        with np.load(path, allow_pickle=False) as archive:
            if str(archive["fingerprint"]) != sizes["fingerprint"]:
                raise ValueError(f"it belongs to another corpus than {SIZES}")
            counts = archive["counts"]
            parts = archive["data"], archive["indices"], archive["indptr"]
            together = csr_array(parts, shape=(len(counts), len(counts)))
            return CorpusFigures(sizes, archive["label_names"].tolist(), counts, together)
    except FileNotFoundError:
        raise
    except (OSError, KeyError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _is_written(sizes: Json, folder: Path) -> bool:
    try:
        return bool(read_corpus_figures(folder).sizes == json.loads(json.dumps(sizes)))
    except (FileNotFoundError, ValueError):
        return False


def _spread(counts: Counts) -> Json:
    return {
        "mean": float(counts.mean()),
        "median": float(np.median(counts)),
        "least": int(counts.min()),
        "most": int(counts.max()),
    }
