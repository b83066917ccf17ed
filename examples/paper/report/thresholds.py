"""What the choice of thresholds does: the paper's protocol beside each method at its own best, and what follows for
the distance between the losses; and the figures that no threshold enters."""

from collections.abc import Iterable

from encoders.scoring import LEAST_SUPPORT
from records import GROUPS, KINDS

from report.groups import Figure, Figures, Group, Row, figure
from report.table import Table, bold

SHOWN = (("own", GROUPS), ("by_group", ("total", "tail")), ("by_label", ("total", "tail")))
LOWER, HIGHER = "BCE", "DB"
LOWER_IS_BETTER = ("ECE",)
GAPS = (("total", "micro"), ("total", "macro"), ("medium", "micro"), ("tail", "micro"))


def threshold_table(group: Group) -> Table | None:
    """Micro- and macro-F1 at the protocol's threshold, at each method's own, and at those of groups and of labels."""
    rows = [row for row in group.rows if row.method not in (None, "SVM")]
    figures = {row.name: {name: row.scores_at(name) for name, _ in SHOWN} for row in rows}
    if not any(found["own"] for found in figures.values()):
        return None
    columns = [("protocol", part) for part in ("total", "tail")]
    columns += [(name, part) for name, parts in SHOWN for part in parts]
    every = {row.name: figures[row.name] | {"protocol": row.scores} for row in rows}
    best = {column: [_best(every.values(), column, kind) for kind in KINDS] for column in columns}
    cells = []
    for row in rows:
        line = [row.name]
        for name, part in columns:
            if part == "total" and name in ("protocol", "own"):
                line.append(_thresholds(row, name))
            found = every[row.name][name]
            pairs = zip(KINDS, best[name, part], strict=True)
            f1s = [(found[part][kind], top) for kind, top in pairs] if found else []
            line.append("/".join(bold(str(f1), f1.mean == top > 0) for f1, top in f1s) or "-")
        cells.append(line)
    header = ["", "threshold", "total", "tail", "own threshold", *(f"{part}, own" for part in GROUPS)]
    header += [f"{part}, {name.replace('_', ' ')}" for name, parts in SHOWN[1:] for part in parts]
    notes = [
        "The first two scores are at the protocol's threshold; own: at the one of the full grid that is best on "
        "validation, in the epoch that is best with it; by group, by label: with one for each of head, medium and "
        f"tail, or for each label of {LEAST_SUPPORT} validation documents and more, chosen on validation.",
        "†: the threshold is at the edge of its grid in some run; beyond there may be a better one.",
        *([text] if (text := gap_in_words(group)) else []),
    ]
    caption = "micro/macro-F1 in percent at the thresholds of the protocol, and at each method's own"
    return Table("thresholds", group.about, caption, header, cells, notes, "the best of the column")


def gap_in_words(group: Group) -> str:
    """How much of the distance between BCE and DB is that of the grid of thresholds."""
    rows = group.by_method
    if LOWER not in rows or HIGHER not in rows:
        return ""
    own = {name: rows[name].scores_at("own") for name in (LOWER, HIGHER)}
    low, high = own[LOWER], own[HIGHER]
    if low is None or high is None:
        return ""
    said = []
    for part, kind in GAPS:
        before = rows[HIGHER].scores[part][kind].mean - rows[LOWER].scores[part][kind].mean
        after = high[part][kind].mean - low[part][kind].mean
        if before <= 0:
            share = f"{LOWER} is not below at either" if after <= 0 else f"{LOWER} is below at its own alone"
        elif after <= 0:
            share = "all of it is the grid's"
        elif after >= before:
            share = "none of it is the grid's"
        else:
            share = f"{100 * (before - after) / before:.0f} % of it are the grid's"
        said.append(f"{part} {kind}-F1 {before:.2f} and {after:.2f} ({share})")
    return (
        f"{HIGHER} is above {LOWER}, at the protocol's threshold and with each at its own, by these points of percent: "
        f"{'; '.join(said)}."
    )


def ranking_table(group: Group) -> Table | None:
    """Figures that no threshold enters, such as precision at k and the calibration error; None without any."""
    rows = [row for row in group.rows if row.method is not None]
    found = {row.name: [(run.result or {}).get("ranking") or {} for run in row.runs] for row in rows}
    # At 1, nDCG is precision.
    names = list(dict.fromkeys(name for runs in found.values() for one in runs for name in one if name != "nDCG@1"))
    if not names:
        return None
    every = {
        row: {name: figure([100 * one[name] for one in runs]) for name in names if all(name in one for one in runs)}
        for row, runs in found.items()
    }
    best: dict[str, float] = {}
    for name in names:
        means = [figures[name].mean for figures in every.values() if name in figures]
        best[name] = min(means) if name in LOWER_IS_BETTER else max(means)
    cells = [[row, *(_cell(figures.get(name), best[name]) for name in names)] for row, figures in every.items()]
    notes = [
        "P@k: share of the k most probable labels that are right; nDCG@k: the same, weighted by rank; PSP@k: by "
        "inverse propensity, which is large for rare labels (Jain et al., KDD 2016; A 0.55, B 1.5); mAP: mean average "
        "precision of the documents, label mAP: of the labels, in bins of the logit; ECE: expected calibration error "
        "over all pairs of document and label, the lower the better, near 0 with many labels. In the epoch that is "
        "best at the own threshold.",
    ]
    caption = "figures without a threshold, in percent"
    return Table("ranking", group.about, caption, ["", *names], cells, notes, "the best of the column")


def _cell(value: Figure | None, best: float) -> str:
    return "-" if value is None else bold(str(value), value.mean == best)


def _best(every: Iterable[dict[str, Figures | None]], column: tuple[str, str], kind: str) -> float:
    name, part = column
    return max((found[part][kind].mean for one in every if (found := one.get(name))), default=0.0)


def _thresholds(row: Row, name: str) -> str:
    """Mean over the seeds, marked where one is at the edge of its grid."""
    results = [run.result or {} for run in row.runs]
    chosen = [result.get("own") or {} if name == "own" else result for result in results]
    values = [one["threshold"] for one in chosen if "threshold" in one]
    if len(values) < len(chosen):
        return "-"
    return f"{sum(values) / len(values):.3f}" + ("†" if any(one.get("at_edge") for one in chosen) else "")
