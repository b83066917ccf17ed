"""Documents parted into training, validation and test, with the labels that training has enough of."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass

import numpy as np
import torch
from files import digest
from numpy.typing import NDArray
from scipy.sparse import csr_array
from settings import integer, setting, size

from corpora.corpus import Corpus, CorpusError, InstanceGroups, PaperCorpus, Split
from corpora.document_cache import Documents
from fused_balanced_loss import SparseTargets

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Partition:
    """How documents become a corpus. The parts that the source does not give are drawn at random."""

    validation: float = setting(MISSING, size, "documents, or below 1 a share of all", flag="validation-size")
    test: float = setting(MISSING, size, "documents, or below 1 a share of all", flag="test-size")
    seed: int = setting(MISSING, integer(0), "of drawing validation and test", flag="split-seed")
    min_label_count: int = setting(MISSING, integer(0), "labels of fewer training documents are dropped")


def make_corpus(
    name: str,
    documents: Documents,
    partition: Partition,
    *,
    head: int,
    tail: int,
    instance_groups: InstanceGroups | None = None,
    paper: PaperCorpus | None = None,
    notice: str | None = None,
) -> Corpus:
    """Label ids follow the names' order. Documents that lose all their labels stay, as documents without labels.

    instance_groups: None has them chosen so that a third of the training documents falls in each.

    Raises:
        CorpusError: where a part would be empty, or no label is left.
    """
    parts = _parts(documents, partition)
    label_names, targets, remarks = _targets(documents, parts["train"], partition.min_label_count)
    splits = {part: Split(documents.dataset.select(rows)["text"], _rows(targets, rows)) for part, rows in parts.items()}
    return Corpus(
        name=name,
        label_names=label_names,
        **splits,
        fingerprint=digest([documents.fingerprint, asdict(partition)]),
        head=head,
        tail=tail,
        instance_groups=instance_groups or _thirds(splits["train"].targets),
        paper=paper,
        notice=notice,
        remarks=[*(f"{count:,} {what}" for what, count in documents.remarks.items()), *remarks],
    )


def _parts(documents: Documents, partition: Partition) -> dict[str, Rows]:
    """Row numbers of each part, ascending, so that reading goes forward on disk."""
    total = len(documents.splits)
    parts = {part: np.flatnonzero(documents.splits == part) for part in ("validation", "test")}
    drawn = np.random.default_rng(partition.seed).permutation(np.flatnonzero(~np.isin(documents.splits, list(parts))))
    for part, asked in (("test", partition.test), ("validation", partition.validation)):
        if not len(parts[part]):
            whole = round(asked * total) if asked < 1 else round(asked)
            if not 0 < whole < len(drawn):
                raise CorpusError(
                    f"--{part}-size: expected one that leaves training documents, got {whole:,} of {len(drawn):,} "
                    f"({total:,} documents in all)"
                )
            parts[part], drawn = drawn[:whole], drawn[whole:]
    if len(drawn) < 2:
        raise CorpusError(f"train: expected at least 2 documents, got {len(drawn)} of {total:,}")
    return {part: np.sort(rows) for part, rows in {"train": drawn, **parts}.items()}


def _targets(documents: Documents, train: Rows, least: int) -> tuple[list[str], csr_array, list[str]]:
    """Names and [N, C] matrix of the labels that are left, and what was dropped."""
    ones = np.ones(len(documents.col), np.int8)
    shape = (len(documents.splits), len(documents.label_names))
    targets = csr_array((ones, documents.col, documents.crow), shape=shape)
    count = np.bincount(targets[train].indices, minlength=shape[1])
    names = np.array(documents.label_names)
    kept = np.flatnonzero(count >= least)
    if not len(names):
        raise CorpusError("no document has a label")
    if not len(kept):
        raise CorpusError(f"no label has {least} training documents or more, of {shape[1]:,} labels")
    kept = kept[np.argsort(names[kept])]
    left = targets.tocsc()[:, kept].tocsr()
    left.sort_indices()
    remarks = []
    if dropped := shape[1] - len(kept):
        unseen = int((count == 0).sum())
        remarks.append(
            f"{dropped:,} labels with fewer than {least} training documents dropped"
            + (f", {unseen:,} of them in validation or test only" if unseen and least else "")
        )
    if bare := int((np.diff(left.indptr) == 0).sum()):
        remarks.append(f"{bare:,} documents are left without any label; they count as negatives of all")
    return names[kept].tolist(), left, remarks


def _rows(targets: csr_array, rows: Rows) -> SparseTargets:
    part = targets[rows]
    crow, col = (torch.from_numpy(array.astype(np.int64)) for array in (part.indptr, part.indices))
    return SparseTargets(crow, col, targets.shape[1])


def _thirds(targets: SparseTargets) -> InstanceGroups:
    """The bounds on a document's number of labels that come closest to thirds, as the paper does on PubMed."""
    count = targets.crow.diff().numpy()
    low, high = (int(bound) for bound in np.quantile(count, (1 / 3, 2 / 3), method="lower"))
    if low >= high:
        return {f"<={low}": (0, low), f">={low + 1}": (low + 1, None)}
    middle = f"{low + 1}-{high}" if low + 1 < high else f"{high}"
    return {f"<={low}": (0, low), middle: (low + 1, high), f">={high + 1}": (high + 1, None)}
