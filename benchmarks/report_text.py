"""A record as plain text, with the prediction beside each measured figure; needs no pandas."""

from __future__ import annotations

from pathlib import Path

from predictions import Prediction, predicted
from quantities import bytes_text, seconds_text, share_text
from records import Record, contestants_of, title


def record_text(record: Record, path: Path) -> str:
    lines = [f"\n{title(record['settings'])} -> {path.name}"]
    expected = predicted(record["settings"], record["device"]["name"])
    for name in contestants_of([record]) if "contestants" in record else []:
        one = record["contestants"][name]
        share, peak = share_text(one.get("share_of_floor")), bytes_text(one.get("peak_bytes"))
        median = one["seconds"]["p50"]
        shown = [f"median {seconds_text(median)}"]
        if name in expected:
            shown.append(f"predicted {_beside(median, expected[name])}")
        if "eager_seconds" in one:
            eager = one["eager_seconds"]["p50"]
            shown.append(f"eager {seconds_text(eager)}")
            if name in expected and expected[name].host is not None:
                longer = max(expected[name].host, expected[name].seconds)
                shown.append(f"predicted {_beside(eager, expected[name]._replace(seconds=longer))}")
        shown += [f"of the floor {share}"] * bool(share) + [f"peak {peak}"] * bool(peak)
        lines.append(f"  {name}: {', '.join(shown)}")
    lines += [f"  {name}: absent, {reason}" for name, reason in (record.get("absent") or {}).items()]
    for name, figure in (record.get("figures") or {}).items():
        if isinstance(figure, float) and name.endswith(", seconds"):
            shown_figure = seconds_text(figure)
            if name in expected:
                shown_figure += f", predicted {_beside(figure, expected[name])}"
            lines.append(f"  {name.removesuffix(', seconds')}: {shown_figure}")
        else:
            lines.append(f"  {name}: {figure}")
    for name, prediction in expected.items():
        lines.append(f"  why {name} should take {seconds_text(prediction.seconds)}: {prediction.reason}")
    return "\n".join(lines)


def _beside(measured: float, prediction: Prediction) -> str:
    return f"{seconds_text(prediction.seconds)} (measured / predicted {measured / prediction.seconds:.2f})"
