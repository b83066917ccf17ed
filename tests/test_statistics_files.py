"""Files of label statistics: the old one or the new one, whatever happens in between."""

import builtins
import errno
import os
import stat

import numpy as np
import pytest

from fused_balanced_loss import LabelStatistics, label_statistics

OLD = LabelStatistics.from_counts([1, 2, 3], 8)
NEW = LabelStatistics.from_counts(range(1, 2001), 5000)


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullFile:
    """A file that takes so many bytes and no more, and fails at its end if nothing else failed."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= memoryview(data).nbytes
        if self.room < 0:
            no_space()
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        no_space()


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("room", [0, 100, 10_000, 10**9])
def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch, room, old):
    path = tmp_path / "counts.npz"
    if old:
        OLD.save(path)

    def open_full(name, mode="r", *rest):
        file = builtins.open(name, mode, *rest)  # noqa: SIM115
        return file if mode == "rb" else FullFile(file, room)

    with monkeypatch.context() as patch:
        patch.setattr(label_statistics, "open", open_full, raising=False)
        with pytest.raises(OSError, match=r"No space left.*counts\.npz") as caught:
            NEW.save(path)
    assert caught.value.errno == errno.ENOSPC
    assert [one.name for one in tmp_path.iterdir()] == ["counts.npz"] * old
    if old:
        assert LabelStatistics.load(path) == OLD


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_error_at_the_end_keeps_the_old_file(tmp_path, monkeypatch, function):
    path = tmp_path / "counts.npz"
    OLD.save(path)
    with monkeypatch.context() as patch:
        patch.setattr(label_statistics.os, function, no_space)
        with pytest.raises(OSError, match=r"No space left.*counts\.npz"):
            NEW.save(path)
    assert [one.name for one in tmp_path.iterdir()] == ["counts.npz"] and LabelStatistics.load(path) == OLD


def test_interruption_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "counts.npz"
    OLD.save(path)

    def interrupt(file, **_):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(label_statistics.np, "savez", interrupt)
        with pytest.raises(KeyboardInterrupt):
            NEW.save(path)
    assert [one.name for one in tmp_path.iterdir()] == ["counts.npz"] and LabelStatistics.load(path) == OLD


@pytest.mark.skipif(os.name == "nt", reason="files have no mode there")
def test_mode_is_that_of_the_file_before_or_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        OLD.save(tmp_path / "new")
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
        (tmp_path / "new").chmod(0o604)
        NEW.save(tmp_path / "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o604
    assert LabelStatistics.load(tmp_path / "new") == NEW


def test_link_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for statistics in (OLD, NEW):
        statistics.save(tmp_path / "link")
        assert (tmp_path / "link").is_symlink() and LabelStatistics.load(tmp_path / "file") == statistics
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with a name")
def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(FileExistsError, match="a folder or device") as caught:
            OLD.save(path)
        assert caught.value.filename == str(path)
    assert [one.name for one in tmp_path.iterdir()] == ["pipe"]


def test_long_name_and_name_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("n" * 255, "counts"):
        OLD.save(name)
        assert LabelStatistics.load(name) == OLD


def test_missing_folder_is_named_with_the_path(tmp_path):
    path = tmp_path / "missing" / "counts.npz"
    with pytest.raises(FileNotFoundError) as caught:
        OLD.save(path)
    assert caught.value.filename == str(path)


@pytest.mark.parametrize("at", [10, 24, 25, 26, 28])
def test_damage_of_any_kind_is_said_to_be_one(tmp_path, at):
    """Zip's fields of version, flags, method and size, whose damage gives errors of other classes."""
    path = tmp_path / "counts.npz"
    OLD.save(path)
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    for value in range(256):
        content[directory + at] = value
        path.write_bytes(content)
        try:
            assert LabelStatistics.load(path) == OLD
        except ValueError as error:
            assert "path: expected an archive that LabelStatistics.save wrote" in str(error)  # noqa: PT017


@pytest.mark.parametrize("num_samples", [np.float64(7.9), np.array([7]), np.bool_(True)])
def test_number_of_samples_is_an_integer(tmp_path, num_samples):
    path = tmp_path / "counts.npz"
    np.savez(path, counts=np.arange(3), num_samples=num_samples)
    with pytest.raises(ValueError, match="path: expected an archive"):
        LabelStatistics.load(path)
