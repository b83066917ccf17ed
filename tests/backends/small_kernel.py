"""A kernel that is built in a moment, and processes that build it."""

import os
import signal
import time

from fused_balanced_loss.backends.cpp_build import forget, library

SOURCE = """
#ifdef BROKEN
#error this variant is broken
#endif
static int table[1 << 16] = {1};
extern "C" int answer() { return ANSWER + table[1]; }
"""
FORTY_TWO = (("ANSWER", 42),)
# A limit for what would hang if it went wrong.
SECONDS = 300


def in_a_child(work):
    """Starts a child process; its status at the end is 0 if ``work()`` returns true."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            status = 0 if work() else 1
        finally:
            os._exit(status)
    return process


def is_42():
    forget()
    return library("small", FORTY_TWO).answer() == 42


def status_of(process):
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.02)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise AssertionError("the child hangs")


def wait_for(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def files(folder):
    """Names of all files and folders but the empty files of the locks, which stay."""
    return sorted(path.name for path in folder.rglob("*") if path.suffix != ".lock")
