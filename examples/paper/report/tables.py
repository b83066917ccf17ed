"""The tables of the paper, its figures beside ours: corpus, scores, ablation, errors, and what the runs took."""

from collections.abc import Iterable, Sequence
from statistics import fmean

from files import Json
from records import GROUPS, KINDS, METHODS

from report.groups import Figures, Group, differences
from report.paper_scores import CONFUSED, CORPUS_NAMES, Scores, paper_corpus, paper_scores
from report.table import Table, bold

# What DB lacks in each of the losses that have all but one of its parts.
WITHOUT = {
    "R-FL": "no negative-tolerant regularization",
    "NTR-FL": "no rebalanced weight",
    "DB-0FL": "no focal factor",
}
MOST_PAIRS = 20
PAIRS_EACH = 5

Pair = tuple[str, str]


def corpus_table(sizes: Json) -> Table:
    """Table 1. sizes: what ``corpus_sizes`` gives, the content of ``corpus.json``."""
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
    for name, count in sizes["label_groups"].items():
        lines[f"{name} labels ({bounds[name]} training documents)"] = f"{count:,}"
    for group in sizes["instance_groups"].values():
        lines[f"test documents with {_range(group['low'], group['high'])}"] = f"{group['test']:,}"
    if sizes["mu"] is not None:
        lines["mu"] = f"{sizes['mu']:.3f}"
    published, notes, header = paper_corpus(sizes["paper"]), list(sizes["remarks"]), ["", "ours"]
    rows = [[name, value] for name, value in lines.items()]
    if published:
        header.append("published")
        rows = [[name, value, _grouped(published.get(name, ""))] for name, value in rows]
        corpus = CORPUS_NAMES[sizes["paper"]]
        notes.append(f"Published: what paper and repository say of {corpus}; empty where neither does.")
    notes.append("mu: average of mean and median of r over the label occurrences in training.")
    return Table("table1", sizes["name"], "the corpus in numbers (Table 1 of the paper)", header, rows, notes)


def _range(low: int, high: int | None) -> str:
    if high is None:
        return f"{low} labels and more"
    return f"{low} label{'s'[: low != 1]}" if low == high else f"{low} to {high} labels"


def _grouped(value: str) -> str:
    return f"{int(value):,}" if value.isdigit() else value


def frequency_table(group: Group, paper: str | None) -> Table:
    """Table 2: by label frequency."""
    caption = "micro/macro-F1 in percent by label frequency (Table 2 of the paper)"
    return _score_table("table2", caption, group, GROUPS, paper_scores(2, paper))


def instance_table(group: Group, paper: str | None) -> Table | None:
    """Table 3: by the number of labels of an instance; None where no record has it."""
    names = next((names for row in group.rows if (names := [name for name in row.scores if name not in GROUPS])), [])
    if not names:
        return None
    caption = "micro/macro-F1 in percent over all labels by the number of labels of an instance (Table 3 of the paper)"
    return _score_table("table3", caption, group, ("total", *names), paper_scores(3, paper))


def _score_table(name: str, caption: str, group: Group, columns: Sequence[str], published: dict[str, Scores]) -> Table:
    # A corpus of one's own has other instance groups than the paper.
    beside = [column for column in columns if any(column in scores for scores in published.values())]
    header = [""]
    for column in columns:
        shown = column.replace("<=", "≤").replace(">=", "≥")
        header += [f"{shown} ours", f"{shown} paper"] if column in beside else [shown]
    compared = [row.scores for row in group.by_method.values()]

    def best(of: Iterable[Figures | Scores], column: str, kind: str) -> float:
        return max((float(one[column][kind]) for one in of if column in one), default=0.0)

    cells = []
    for row in group.rows:
        line, theirs = [row.name], published.get(row.method or "", {})
        may_be_best = row.method is not None and len(compared) > 1
        for column in columns:
            f1s = [(f1, best(compared, column, kind)) for kind, f1 in row.scores.get(column, {}).items()]
            line.append("/".join(bold(str(f1), may_be_best and float(f1) == top > 0) for f1, top in f1s) or "-")
            if column in beside:
                printed = [(f1, best(published.values(), column, kind)) for kind, f1 in theirs.get(column, {}).items()]
                line.append("/".join(bold(f"{f1:.2f}", f1 == top) for f1, top in printed))
        cells.append(line)
    meaning = "the best micro- or macro-F1 of the column" if len(compared) > 1 or published else ""
    return Table(name, group.about, caption, header, cells, _gaps(group, published), meaning)


def ablation_table(group: Group, paper: str | None) -> Table | None:
    """What DB loses without each of its parts; None without DB or any of those."""
    rows, published = group.by_method, paper_scores(2, paper)
    parts = [method for method in WITHOUT if method in rows]
    if "DB" not in rows or not parts:
        return None
    cells = []
    for method in parts:
        line = [method, WITHOUT[method]]
        own, db = rows[method].scores, rows["DB"].scores
        for name in GROUPS:
            ours = [float(own[name][kind]) - float(db[name][kind]) for kind in KINDS]
            line.append("/".join(f"{change:+.2f}" for change in ours))
            if published:
                theirs = [published[method][name][kind] - published["DB"][name][kind] for kind in KINDS]
                same = "".join("✓" if (a < 0) == (b < 0) else "✗" for a, b in zip(ours, theirs, strict=True))
                line += ["/".join(f"{change:+.2f}" for change in theirs), same]
        cells.append(line)
    columns = ("ours", "paper", "same sign") if published else ("ours",)
    header = ["", "DB with", *(f"{name} {whose}" for name in GROUPS for whose in columns)]
    caption = "micro/macro-F1 against DB, in points of percent (the paper's ablation)"
    return Table("ablation", group.about, caption, header, cells, left=2)


def confusion_table(group: Group, paper: str | None) -> Table | None:
    """Counts of the pairs that are among the first few of some method, and of the paper's; None without records."""
    counts: dict[str, dict[Pair, float]] = {}
    least: dict[str, str] = {}
    for row in group.rows:
        runs = [(run.result or {}).get("confused", []) for run in row.runs] if row.method else []
        if any(runs):
            by_run = [{(one["missed"], one["predicted"]): one["count"] for one in pairs} for pairs in runs]
            every = {pair for one in by_run for pair in one}
            # A pair that a run's record does not keep counts 0 there.
            counts[row.name] = {pair: fmean(one.get(pair, 0) for one in by_run) for pair in every}
            least[row.name] = f"≤{max(pairs[-1]['count'] for pairs in runs if pairs)}"
    if not counts:
        return None
    named = {frozenset(pair): pair for pair in CONFUSED.get(paper or "", ())}
    shown = {pair for one in counts.values() for pair in sorted(one, key=lambda pair: (-one[pair], pair))[:PAIRS_EACH]}
    order = sorted(shown, key=lambda pair: (-sum(one.get(pair, 0) for one in counts.values()), pair))[:MOST_PAIRS]
    for key, pair in named.items():
        known = {pair for one in counts.values() for pair in one if frozenset(pair) == key} or {pair}
        order += sorted(known - set(order))
    cells = []
    for pair in order:
        numbers = (
            f"{one[pair]:.1f}".removesuffix(".0") if pair in one else least[name] for name, one in counts.items()
        )
        cells.append([("★ " if frozenset(pair) in named else "") + f"{pair[0]} → {pair[1]}", *numbers])
    notes = [
        f"The {PAIRS_EACH} most frequent pairs of each method, {MOST_PAIRS} pairs at most.",
        *(["★: a pair that the paper's error analysis names."] if named else []),
        "≤: not among the pairs that the records keep, the last of which has this count; one that only some seeds' "
        "records keep counts 0 in the others.",
    ]
    caption = "test documents with a label missed and another wrongly predicted (missed → predicted); means over seeds"
    return Table("confused", group.about, caption, ["", *counts], cells, notes)


def runs_table(group: Group) -> Table:
    """Seeds, chosen epoch and threshold, time and memory of each row; means over the seeds."""
    cells = []
    for row in group.rows:
        if row.method is not None:
            results = [run.result or {} for run in row.runs]
            rates = {rate for result in results if isinstance(rate := result.get("learning_rate"), float)}
            seeds = ", ".join(str(run.seed) for run in row.runs)
            chosen = _mean_of(results, "best_epoch", ".1f"), _mean_of(results, "threshold", ".3f")
            took = _mean_of(results, "seconds", ".0f"), _mean_of(results, "peak_memory_bytes", ".2f", unit=2**30)
            cells.append([row.name, seeds, *chosen, ", ".join(f"{rate:.2g}" for rate in sorted(rates)) or "-", *took])
    header = ["", "seeds", "best epoch", "threshold", "learning rate", "seconds", "peak memory, GiB"]
    runs = [run for row in group.rows for run in row.runs]
    versions = {", ".join(f"{key} {value}" for key, value in run.versions.items()) for run in runs}
    compared = {method: row for method, row in group.by_method.items() if method != "SVM"}
    settings = [
        {key: value for key, value in row.runs[0].settings.items() if key != "loss"} for row in compared.values()
    ]
    notes = []
    for name, values in differences(settings).items():
        parts = "; ".join(f"{value} for {', '.join(methods)}" for value, methods in _by_value(compared, values).items())
        notes.append(f"Not the same for all: {name} is {parts}.")
    notes += [f"Made with {text}." for text in sorted(versions) if text]
    return Table("runs", group.about, "the runs; means over the seeds", header, cells, notes)


def _mean_of(results: Sequence[Json], key: str, form: str, unit: int = 1) -> str:
    values = [value for result in results if isinstance(value := result.get(key), (int, float))]
    return format(fmean(values) / unit, form) if values and len(values) == len(results) else "-"


def _by_value(methods: Iterable[str], values: Iterable[object]) -> dict[str, list[str]]:
    """Which methods have each of the values."""
    found: dict[str, list[str]] = {}
    for method, value in zip(methods, values, strict=True):
        found.setdefault(str(value), []).append(method)
    return found


def _gaps(group: Group, published: dict[str, Scores]) -> list[str]:
    """Notes on what the table lacks."""
    notes = []
    expected = [method for method in METHODS if not published or method in published]
    if missing := [method for method in expected if method not in group.by_method]:
        notes.append(f"No finished run of {', '.join(missing)}.")
    rows = {method: row for method, row in group.by_method.items() if method != "SVM"}
    seeds = _by_value(rows, (", ".join(str(run.seed) for run in row.runs) for row in rows.values()))
    if len(seeds) > 1:
        parts = (f"{', '.join(methods)}: {numbers}" for numbers, methods in seeds.items())
        notes.append(f"The seeds are not the same for all: {'; '.join(parts)}.")
    elif seeds:
        number = next(iter(seeds)).count(",") + 1
        notes.append(f"Mean{' ± standard deviation' if number > 1 else ''} over {number} seed{'s'[: number > 1]}.")
    return notes
