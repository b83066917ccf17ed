"""Tables 2 and 3 of some records as text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from report.agreement import claims_table
from report.groups import group_runs
from report.record_files import Json, make_run
from report.score_tables import frequency_table, instance_table


def tables_text(records: Iterable[Json], paper: str | None) -> str:
    """Tables 2 and 3 and the paper's claims, for each group of records that may be compared; empty without any.

    paper: the corpus of the paper whose figures stand beside ours, if any.

    Raises:
        ValueError: for a record that is none.
    """
    texts = []
    for group in group_runs(make_run(Path(), record) for record in records):
        if group.rows:
            tables = (
                frequency_table(group, paper),
                instance_table(group, paper),
                claims_table(group) if paper else None,
            )
            texts += [table.text() for table in tables if table is not None]
    return "\n\n".join(texts)
