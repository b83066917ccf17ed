"""Options of ``pytest benchmarks``, its records, and what it says at the end."""

from __future__ import annotations

from pathlib import Path

import peers
import pytest
from environment import device, device_text, versions
from records import default_folder, write_record
from tables import comparison_table, title


def pytest_addoption(parser):
    group = parser.getgroup("benchmarks")
    group.addoption("--full", action="store_true", help="every shape, dtype and loss; the default is a quick selection")
    group.addoption("--results", type=Path, help="folder for the records; default benchmarks/results/DEVICE")


def pytest_configure(config):
    config.addinivalue_line("markers", "full: measured with --full alone")
    config.measured = []


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--full"):
        skip = pytest.mark.skip(reason="measured with --full alone")
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(skip)


@pytest.fixture
def full(request):
    return request.config.getoption("--full")


@pytest.fixture
def keep(request):
    """Writes a record at once and shows it at the end."""
    folder = request.config.getoption("--results") or default_folder()

    def write(record):
        # Shown at the end even where it cannot be written.
        request.config.measured.append(record)
        write_record(folder, record)
        return record

    return write


def pytest_terminal_summary(terminalreporter, config):
    if not config.measured:
        return
    write = terminalreporter.write_line
    one = versions()
    write("")
    write(f"{device_text(device())}; " + ", ".join(f"{name} {one[name] or 'absent'}" for name in one))
    for name, reason in peers.absent().items():
        write(f"absent: {name} ({reason})")
    for record in config.measured:
        if "contestants" in record:
            write("")
            write(title(record["settings"]))
            write(comparison_table(record))
