"""Where the figures agree with the paper: the order of the losses by column, and the paper's claims."""

from collections.abc import Sequence
from itertools import combinations
from math import hypot
from typing import NamedTuple

from records import GROUPS, KINDS
from scipy.stats import spearmanr

from fused_balanced_loss.spec import PAPER_LOSSES
from report.groups import Figures, Group
from report.paper_scores import paper_scores
from report.table import Table

Column = tuple[str, str]
ALL = [(group, kind) for group in GROUPS for kind in KINDS]
RARE = [(group, kind) for group in ("medium", "tail") for kind in KINDS]
TOTAL_MACRO = ("total", "macro")


class Comparison(NamedTuple):
    """The best of ``higher`` is above ``lower`` in a column."""

    higher: Sequence[str]
    lower: str
    column: Column


class Claim(NamedTuple):
    """A sentence of the paper, or one that its figures bear out, as comparisons."""

    text: str
    comparisons: Sequence[Comparison]


def _others(*methods: str) -> list[str]:
    return [method for method in PAPER_LOSSES if method not in methods]


def _above(higher: Sequence[str], lower: Sequence[str], columns: Sequence[Column]) -> list[Comparison]:
    return [Comparison(higher, method, column) for method in lower for column in columns]


BEST = ("DB", "CB-NTR")
CLAIMS = (
    Claim("DB or CB-NTR is the best on medium and tail labels", _above(BEST, _others(*BEST), RARE)),
    Claim("DB or CB-NTR has the best macro-F1 over all labels", _above(BEST, _others(*BEST), [TOTAL_MACRO])),
    Claim(
        "BCE is the worst loss on medium and tail labels, and in macro-F1 over all",
        [one for method in _others("BCE") for one in _above((method,), ["BCE"], [TOTAL_MACRO, *RARE])],
    ),
    Claim(
        "negative-tolerant regularization raises every loss in every column",
        [*_above(("NTR-FL",), ["FL"], ALL), *_above(("CB-NTR",), ["CB"], ALL), *_above(("DB",), ["R-FL"], ALL)],
    ),
    Claim("the focal factor raises DB in every column (DB above DB-0FL)", _above(("DB",), ["DB-0FL"], ALL)),
    Claim("the rebalanced weight raises medium and tail labels (DB above NTR-FL)", _above(("DB",), ["NTR-FL"], RARE)),
    Claim(
        "every loss but BCE is above the SVM in micro-F1 on tail labels",
        [Comparison((method,), "SVM", ("tail", "micro")) for method in _others("BCE")],
    ),
)


def overview_table(groups: Sequence[tuple[Group, str | None]]) -> Table | None:
    """Agreement with the paper at a glance: a row for each group of runs on a corpus of the paper."""
    rows = []
    for group, paper in groups:
        claims, order = (claims_table(group), order_table(group, paper)) if paper else (None, None)
        if claims is not None and order is not None:
            own = claims_table(group, own=True)
            held = [_held(claims), _held(own) if own else "-"]
            correlations = {row[0]: row[1] for row in order.rows}
            shown = (correlations[name] for name in ("total macro", "medium macro", "tail macro"))
            rows.append([group.about, *held, *shown])
    if not rows:
        return None
    header = [
        "",
        "claims that hold",
        "at own thresholds",
        "order by total macro-F1",
        "by medium macro-F1",
        "by tail macro-F1",
    ]
    notes = ["Order: rank correlation of the losses with the paper's figures, 1 for the same order."]
    return Table("overview", "All runs", "agreement with the paper", header, rows, notes)


def _held(claims: Table) -> str:
    return f"{sum(row[1] == '✓' for row in claims.rows)} of {len(claims.rows)}"


def order_table(group: Group, paper: str | None) -> Table | None:
    """The order of the losses in each column of Table 2; None where fewer than three can be compared."""
    published = paper_scores(2, paper)
    ours = {method: row.scores for method, row in group.by_method.items() if method in PAPER_LOSSES}
    methods = [method for method in ours if method in published]
    if len(methods) < 3:
        return None
    rows = []
    for name, kind in ALL:
        mine = [ours[method][name][kind].mean for method in methods]
        theirs = [published[method][name][kind] for method in methods]
        pairs = [pair for pair in combinations(range(len(methods)), 2) if theirs[pair[0]] != theirs[pair[1]]]
        alike = sum((mine[a] - mine[b]) * (theirs[a] - theirs[b]) > 0 for a, b in pairs)
        # Without any difference there is no order.
        no_order = 1 in (len(set(mine)), len(set(theirs)))
        correlation = "-" if no_order else f"{spearmanr(mine, theirs).statistic:.2f}"
        best, best_published = (_best(methods, values) for values in (mine, theirs))
        same = "✓" if best == best_published else "✗"
        rows.append([f"{name} {kind}", correlation, f"{alike} of {len(pairs)}", best, best_published, same])
    header = ["", "rank correlation", "pairs in the same order", "best, ours", "best, paper", "same"]
    caption = f"the order of the {len(methods)} losses, ours and the paper's"
    notes = ["Spearman's rank correlation: 1 is the paper's order, 0 none, -1 the reverse. The SVM is not counted."]
    return Table("order", group.about, caption, header, rows, notes)


def claims_table(group: Group, *, own: bool = False) -> Table | None:
    """Which claims hold by our means; None where no claim can be judged.

    own: with each loss at its own threshold, where its records have that.
    """
    figures = {method: row.scores for method, row in group.by_method.items()}
    if own:
        at_own = {method: row.scores_at("own") for method, row in group.by_method.items() if method != "SVM"}
        if not all(at_own.values()):
            return None
        figures |= {method: scores for method, scores in at_own.items() if scores}
    rows = [row for claim in CLAIMS if (row := judge(claim, figures)) is not None]
    if not rows:
        return None
    caption = f"{sum(row[1] == '✓' for row in rows)} of {len(rows)} of the paper's claims hold"
    near = any("≈" in row[3] for row in rows)
    notes = ["≈: the difference is below the seeds' standard deviation."] if near else []
    if own:
        caption += " with each loss at its own threshold"
    name = "claims_own" if own else "claims"
    return Table(name, group.about, caption, ["claim", "holds", "comparisons", "where not"], rows, notes, left=4)


def judge(claim: Claim, figures: dict[str, Figures]) -> list[str] | None:
    """Row of the claim, from figures by method; None where none of its comparisons can be made."""
    judged = [one for one in claim.comparisons if one.lower in figures and any(name in figures for name in one.higher)]
    if not judged:
        return None
    failed = [text for one in judged if (text := _failure(one, figures))]
    left_out = len(claim.comparisons) - len(judged)
    count = f"{len(judged) - len(failed)} of {len(judged)}" + (f", {left_out} without runs" if left_out else "")
    shown = "; ".join(failed[:4]) + (f"; and {len(failed) - 4} more" if len(failed) > 4 else "")
    return [claim.text, "✗" if failed else "✓", count, shown]


def _failure(one: Comparison, figures: dict[str, Figures]) -> str:
    """Empty where the comparison holds."""
    group, kind = one.column
    higher = max((figures[name][group][kind] for name in one.higher if name in figures), key=lambda figure: figure.mean)
    lower = figures[one.lower][group][kind]
    if higher.mean > lower.mean:
        return ""
    difference = lower.mean - higher.mean
    sign = "=" if not difference else "≈" if difference < hypot(higher.std, lower.std) else ">"
    return f"{group} {kind}: {one.lower} {lower.mean:.2f} {sign} {' or '.join(one.higher)} {higher.mean:.2f}"


def _best(methods: Sequence[str], values: Sequence[float]) -> str:
    return ", ".join(method for method, value in zip(methods, values, strict=True) if value == max(values))
