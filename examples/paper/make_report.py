"""Turns folders of records into the paper's tables and figures, with the paper's numbers beside ours."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import required_packages  # noqa: F401  it says what is not installed
from report.document import NothingToReportError, make_report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Makes the report of the runs in some folders: Tables 1 to 3, the ablation and the error analysis "
        "of Huang et al. (EMNLP 2021) as Markdown and LaTeX, Figures 2 and 3 as PNG and PDF, and where the figures "
        "agree with the paper. Runs are compared within a corpus, an encoder and a convention."
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="folder of an experiment, or one that holds several"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the report")
    options = parser.parse_args(arguments)
    for folder in options.folders:
        if not folder.is_dir():
            parser.error(f"argument FOLDER: expected a folder, got {folder}")
    try:
        written = make_report(options.folders, options.output)
    except NothingToReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted: what is written of the report is whole, the rest is as it was.", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: {options.output}: cannot be written: {error.strerror or error}", file=sys.stderr)
        return 1
    for path in written[-3:]:
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
