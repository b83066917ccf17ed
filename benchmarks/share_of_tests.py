"""A plugin of pytest (``-p share_of_tests``): a process takes its share of the tests, every n-th.

The variable SHARE_OF_TESTS is "k/n", with k from 0. Several processes so compile the tests' kernels side by side, on a
machine that may lack pytest-xdist.
"""

from __future__ import annotations

import os


def pytest_collection_modifyitems(config, items):
    number, _, all_processes = os.environ.get("SHARE_OF_TESTS", "0/1").partition("/")
    others = [item for place, item in enumerate(items) if place % int(all_processes) != int(number)]
    items[:] = items[int(number) :: int(all_processes)]
    config.hook.pytest_deselected(items=others)
