"""A multi-label text corpus in three parts, and how documents are parted into them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from files import Json, cached, digest
from numpy.typing import NDArray
from scipy.sparse import csr_array
from settings import integer, setting, size
from torch import Tensor

from fused_balanced_loss import LabelStatistics, SparseTargets

if TYPE_CHECKING:
    from corpora.document_cache import Documents

PaperCorpus = Literal["reuters", "pubmed"]
InstanceGroups = Mapping[str, tuple[int, int | None]]
Rows = NDArray[np.int64]
# To be raised with every change in what is kept of a corpus's parts.
VERSION = 2


class CorpusError(Exception):
    """A corpus cannot be loaded; the message says which file, what was expected and what came."""


@dataclass(frozen=True, eq=False)
class Split:
    """Documents and their labels; ``texts`` may lie on disk, so that indexing it reads."""

    texts: Sequence[str]
    targets: SparseTargets

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, eq=False)
class Corpus:
    """A corpus and what the experiments need to know about it.

    Attributes:
        fingerprint: hash of all documents and labels, in order.
        head, tail: labels with ``n >= head`` training documents are head, with ``n <= tail`` tail, the others medium.
        instance_groups: name -> (fewest, most) labels of a document, both inclusive; None is no limit.
        paper: the corpus of the paper whose loss settings and published figures apply; None for a corpus of one's own.
        notice: says why the figures are none of the real corpus, and is None where they are.
        remarks: what loading left out or changed, a sentence each.
    """

    name: str
    label_names: Sequence[str]
    train: Split
    validation: Split
    test: Split
    fingerprint: str
    head: int
    tail: int
    instance_groups: InstanceGroups
    paper: PaperCorpus | None = None
    notice: str | None = None
    remarks: Sequence[str] = ()

    @property
    def num_labels(self) -> int:
        return len(self.label_names)

    @property
    def splits(self) -> dict[str, Split]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @cached_property
    def statistics(self) -> LabelStatistics:
        """Label counts of the training part, without validation."""
        # Reuters' training part lacks one of the 90 labels, whose bias and weight are then those of a single document.
        return LabelStatistics.from_targets(self.train.targets, degenerate="ignore")

    @cached_property
    def label_groups(self) -> dict[str, Tensor]:
        """bool [C] masks ``head``, ``medium`` and ``tail``."""
        return self.statistics.frequency_groups(head=self.head, tail=self.tail)._asdict()

    def describe(self) -> str:
        documents = sum(map(len, self.splits.values()))
        labels = sum(len(split.targets.col) for split in self.splits.values())
        parts = ", ".join(f"{len(split):,} {part}" for part, split in self.splits.items())
        each = f"{labels / documents:.2f} labels a document"
        return f"{self.name}: {documents:,} documents ({parts}), {self.num_labels:,} labels, {each}"


Write = Callable[[Path, Split], None]


def cached_parts(
    corpus: Corpus,
    cache: Path,
    kind: str,
    made_of: Json,
    writer: Callable[[], Write],
    read: Callable[[Path], Any],
    *,
    resumable: bool = False,
) -> dict[str, Any]:
    """What was made of each part of a corpus: found in the folder ``cache``, or made.

    Args:
        made_of: all that it depends on besides the corpus.
        writer: called where something is missing; gives what writes a part's file.
        read: gives the content of such a file, of which the first dimension is the part's documents.
        resumable: whether writing goes on with the files that an interrupted one has left.
    """
    parts = {part: len(split) for part, split in corpus.splits.items()}
    made_of = {"version": VERSION, "corpus": corpus.fingerprint, "parts": parts, **made_of}

    def build(folder: Path) -> None:
        write = writer()
        for part, split in corpus.splits.items():
            write(folder / part, split)

    def load(folder: Path) -> dict[str, Any]:
        found = {part: read(folder / part) for part in parts}
        if (lengths := {part: content.shape[0] for part, content in found.items()}) != parts:
            raise ValueError(f"{lengths} of {parts} documents")
        return found

    return cached(cache / f"{kind}-{digest(made_of)}", made_of, build, load, resumable=resumable)


@dataclass(frozen=True)
class Partition:
    """How documents become a corpus. The parts that the source does not give are drawn at random."""

    validation: float = setting(MISSING, size, "documents, or below 1 a share of all", flag="validation-size")
    test: float = setting(MISSING, size, "documents, or below 1 a share of all", flag="test-size")
    seed: int = setting(MISSING, integer(0), "of drawing validation and test", flag="split-seed")
    min_label_count: int = setting(MISSING, integer(0), "labels of fewer training documents are dropped")


def make_corpus(
    name: str,
    documents: "Documents",
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
    parts = _parts(documents.splits, partition)
    label_names, targets, remarks = _targets(documents, parts["train"], partition.min_label_count)
    splits = {}
    for part, rows in parts.items():
        own = targets[rows]
        crow, col = (torch.from_numpy(array.astype(np.int64)) for array in (own.indptr, own.indices))
        texts = documents.dataset.select(rows)["text"]
        splits[part] = Split(texts, SparseTargets(crow, col, targets.shape[1]))
    return Corpus(
        name,
        label_names,
        **splits,
        fingerprint=digest([documents.fingerprint, asdict(partition)]),
        head=head,
        tail=tail,
        instance_groups=instance_groups or _thirds(splits["train"].targets),
        paper=paper,
        notice=notice,
        remarks=[*(f"{count:,} {what}" for what, count in documents.remarks.items()), *remarks],
    )


def _parts(given: NDArray[np.str_], partition: Partition) -> dict[str, Rows]:
    """Row numbers of each part, ascending, so that reading goes forward on disk."""
    total = len(given)
    parts = {part: np.flatnonzero(given == part) for part in ("validation", "test")}
    drawn = np.random.default_rng(partition.seed).permutation(np.flatnonzero(~np.isin(given, list(parts))))
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


def _targets(documents: "Documents", train: Rows, least: int) -> tuple[list[str], csr_array, list[str]]:
    """Names and [N, C] matrix of the labels that are left, and what was dropped."""
    shape = (len(documents.splits), len(documents.label_names))
    targets = csr_array((np.ones(len(documents.col), np.int8), documents.col, documents.crow), shape=shape)
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
        unseen = int((count == 0).sum()) if least else 0
        rest = f", {unseen:,} of them in validation or test only" if unseen else ""
        remarks.append(f"{dropped:,} labels with fewer than {least} training documents dropped{rest}")
    # A few documents may all have one label by chance.
    if shape[0] >= 100 and np.diff(left.indptr).max() < 2:
        remarks.append("no document has more than one label: see that labels are separated as the options say")
    if bare := int((np.diff(left.indptr) == 0).sum()):
        remarks.append(f"{bare:,} documents are left without any label; they count as negatives of all")
    return names[kept].tolist(), left, remarks


def _thirds(targets: SparseTargets) -> InstanceGroups:
    """The bounds on a document's number of labels that come closest to thirds, as the paper does on PubMed."""
    low, high = (int(bound) for bound in np.quantile(targets.crow.diff().numpy(), (1 / 3, 2 / 3), method="lower"))
    if low >= high:
        return {f"<={low}": (0, low), f">={low + 1}": (low + 1, None)}
    middle = f"{low + 1}-{high}" if low + 1 < high else f"{high}"
    return {f"<={low}": (0, low), middle: (low + 1, high), f">={high + 1}": (high + 1, None)}
