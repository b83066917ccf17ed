"""Table 1: a corpus in numbers, and what is published of the paper's."""

from __future__ import annotations

from report.paper_scores import CORPUS_NAMES, paper_corpus
from report.record_files import Json
from report.table import Cell, Table


def corpus_table(sizes: Json) -> Table:
    """sizes: what ``corpus_sizes`` gives, the content of ``corpus.json``."""
    documents, by_document, by_label = sizes["documents"], sizes["labels_a_document"], sizes["documents_a_label"]
    head, tail = sizes["head"], sizes["tail"]
    bounds = {"head": f"{head} and more", "medium": f"{tail + 1} to {head - 1}", "tail": f"{tail} and fewer"}
    lines = {
        "documents": f"{sum(documents.values()):,}",
        "training and validation documents": f"{documents['train'] + documents['validation']:,}",
        "validation documents": f"{documents['validation']:,}",
        "test documents": f"{documents['test']:,}",
        "labels": f"{sizes['labels']:,}",
        "labels a document": f"{by_document['mean']:.2f}",
        "most labels of a document": f"{by_document['most']:,}",
        "most documents of a label": f"{by_label['most']:,}",
        "median documents of a label": f"{by_label['median']:,.0f}",
        "fewest documents of a label": f"{by_label['least']:,}",
    }
    lines |= {
        f"{name} labels ({bounds[name]} training documents)": f"{count:,}"
        for name, count in sizes["label_groups"].items()
    }
    lines |= {f"test documents with {_range(one)}": f"{one['test']:,}" for one in sizes["instance_groups"].values()}
    if sizes["mu"] is not None:
        lines["mu"] = f"{sizes['mu']:.3f}"
    published = paper_corpus(sizes["paper"])
    rows: list[list[Cell | str]] = [
        [name, value, *([_grouped(published[name]) if name in published else ""] if published else [])]
        for name, value in lines.items()
    ]
    notes = list(sizes["remarks"])
    if published:
        notes.append(
            f"Published: what paper and repository say of {CORPUS_NAMES[sizes['paper']]}; empty where neither does."
        )
    notes.append("mu: average of mean and median of r over the label occurrences in training.")
    return Table(
        "table1",
        sizes["name"],
        "the corpus in numbers (Table 1 of the paper)",
        ["", "ours", *(["published"] if published else [])],
        rows,
        notes,
    )


def _range(group: Json) -> str:
    low, high = group["low"], group["high"]
    if high is None:
        return f"{low} labels and more"
    if low == high:
        return f"{low} label{'s'[: low != 1]}"
    return f"{low} to {high} labels"


def _grouped(value: str) -> str:
    return f"{int(value):,}" if value.isdigit() else value
