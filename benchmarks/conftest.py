"""The options of ``pytest benchmarks``, the fixture that writes records, and the tables at the end of a run."""

from __future__ import annotations

from pathlib import Path

import peers
import pytest
from environment import device, device_text, versions
from records import default_folder, title, write_record
from tables import comparison, markdown


def pytest_addoption(parser):
    group = parser.getgroup("benchmarks")
    group.addoption("--full", action="store_true", help="every shape, dtype and loss; the default is a quick selection")
    group.addoption("--results", type=Path, help="folder for the records; default benchmarks/results/DEVICE")


def pytest_configure(config):
    config.addinivalue_line("markers", "full: measured with --full only")
    config.measured = []


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--full"):
        skip = pytest.mark.skip(reason="measured with --full only")
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(skip)


@pytest.fixture
def full(request):
    return request.config.getoption("--full")


@pytest.fixture
def keep(request):
    """Writes a record at once, so that an interrupted run keeps it, and shows it at the end."""
    folder = request.config.getoption("--results") or default_folder()

    def write(record):
        # The record goes into the list first, so that the run shows it even where the disk is full.
        request.config.measured.append(record)
        write_record(folder, record)
        return record

    return write


def pytest_terminal_summary(terminalreporter, config):
    if not config.measured:
        return
    write = terminalreporter.write_line
    write("")
    found = ", ".join(f"{name} {version or 'absent'}" for name, version in versions().items())
    write(f"{device_text(device())}; {found}")
    for name, reason in peers.absent().items():
        write(f"absent: {name} ({reason})")
    for record in config.measured:
        if "contestants" in record:
            write("")
            write(title(record["settings"]))
            write(markdown(comparison(record)))
