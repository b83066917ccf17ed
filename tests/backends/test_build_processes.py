"""Builds of C++ kernels that run at once, that hang, and whose process is killed."""

import errno
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from small_kernel import FORTY_TWO, SECONDS, files, in_a_child, is_42, status_of, wait_for

from fused_balanced_loss.backends import cpp_build
from fused_balanced_loss.backends.build_lock import build_lock
from fused_balanced_loss.backends.cpp_build import KernelBuildError, library

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins for compilers are shell scripts"),
    pytest.mark.usefixtures("kernel_cache"),
]


def test_compiler_that_hangs_is_killed_with_its_children(kernel_cache, compiler_script, monkeypatch, tmp_path):
    compiler_script(f'sleep 600 & echo $! > "{tmp_path}/child"; wait')
    monkeypatch.setattr(cpp_build, "_TIME_LIMIT", 1.0)
    with pytest.raises(KernelBuildError, match="stand-in did not end within 1 s"):
        library("small", FORTY_TWO)
    assert files(kernel_cache) == []
    child = int((tmp_path / "child").read_text())
    wait_for(lambda: not _runs(child))


def _runs(process):
    """Whether the process lives; one that has ended may still wait for its parent to notice."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not Path("/proc").exists()


@pytest.mark.parametrize("next_one", ["the same", "another"])
def test_killed_build_leaves_nothing_behind(kernel_cache, compiler_script, tmp_path, next_one):
    compiler_script(
        f'touch "$TMPDIR/half"; echo $$ > "{tmp_path}/new"; mv "{tmp_path}/new" "{tmp_path}/pid"; exec sleep 600'
    )
    process = in_a_child(is_42)
    try:
        wait_for((tmp_path / "pid").exists)
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    left = files(kernel_cache)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert "half" in left
    compiler_script()
    assert library("small", FORTY_TWO if next_one == "the same" else (("ANSWER", 43),)).answer() in (42, 43)
    assert len(files(kernel_cache)) == 1


def test_build_of_a_living_process_is_left_alone(kernel_cache, compiler_script, tmp_path):
    wait = f'touch "{tmp_path}/begun"; while ! [ -e "{tmp_path}/go" ]; do sleep 0.02; done'
    compiler_script(f"case \" $* \" in *' -DANSWER=42 '*) {wait};; esac")
    answers = []
    thread = threading.Thread(target=lambda: answers.append(library("small", FORTY_TWO).answer()))
    thread.start()
    try:
        wait_for((tmp_path / "begun").exists)
        building = files(kernel_cache)
        assert library("small", (("ANSWER", 43),)).answer() == 43
        assert set(building) < set(files(kernel_cache)) and any(name.endswith(".build") for name in building)
    finally:
        (tmp_path / "go").touch()
        thread.join(SECONDS)
    assert answers == [42] and len(files(kernel_cache)) == 2


def test_many_build_the_same_at_once(kernel_cache, compiler_script):
    runs = compiler_script("sleep 0.3")
    answers, barrier = [], threading.Barrier(6)

    def build():
        barrier.wait(SECONDS)
        answers.append(library("small", FORTY_TWO).answer())

    children = [in_a_child(is_42) for _ in range(2)]
    threads = [threading.Thread(target=build) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert answers == [42] * 6 and [status_of(child) for child in children] == [0, 0]
    assert len(runs()) == 1 and len(files(kernel_cache)) == 1


def test_without_locks_builds_run_beside_each_other(kernel_cache, compiler_script, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    compiler_script("sleep 0.3")
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(library("small", FORTY_TWO).answer())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert answers == [42] * 4
    assert {Path(name).suffix for name in files(kernel_cache)} == {".so"}


def test_lock_has_one_holder_and_its_folder_is_removed(tmp_path):
    end, order = time.monotonic() + SECONDS, []

    def hold(number):
        with build_lock(tmp_path, "one", end) as place:
            order.append(number)
            time.sleep(0.05)
            assert list(place.iterdir()) == [] and len(list(tmp_path.glob("*.build"))) == 1
            order.append(number)

    threads = [threading.Thread(target=hold, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert len(order) == 10 and all(order[k] == order[k + 1] for k in range(0, 10, 2))
    assert [path.name for path in tmp_path.glob("one*")] == ["one.lock"]


def test_lock_that_another_holds_ends_at_the_deadline(tmp_path):
    held, done = threading.Event(), threading.Event()

    def hold():
        with build_lock(tmp_path, "one", time.monotonic() + SECONDS):
            held.set()
            done.wait(SECONDS)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(SECONDS)
        with (
            pytest.raises(TimeoutError, match="another process"),
            build_lock(tmp_path, "one", time.monotonic() + 0.1),
        ):
            pass
    finally:
        done.set()
        thread.join(SECONDS)
