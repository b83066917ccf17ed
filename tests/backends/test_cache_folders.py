"""Folders for compiled kernels: nothing is kept in, or loaded from, a place where another user could have put it."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fused_balanced_loss.backends import cache_folders as module
from fused_balanced_loss.backends.cache_folders import cache_folders, check_file

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a file's mode says nothing there")
CHOSEN = "FUSED_BALANCED_LOSS_CACHE"
STRANGER = 54321


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """A home and a temporary folder of the test's own, and a working folder in which nothing may appear."""
    for name in ("home", "temporary", "work"):
        (tmp_path / name).mkdir(mode=0o700)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv(CHOSEN, raising=False)
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "work")
    module._warn_once.cache_clear()
    yield
    assert list((tmp_path / "work").iterdir()) == []


@pytest.fixture
def give_away(monkeypatch):
    """Makes a file another user's. Without the right to do so, the process takes another user's part itself."""

    def give(path):
        if os.geteuid() == 0:
            os.chown(path, STRANGER, -1, follow_symlinks=False)
        else:
            uid, real = os.geteuid(), Path.lstat
            monkeypatch.setattr(Path, "lstat", lambda self: _owned(real(self), STRANGER if self == path else uid))

    return give


def _owned(status, uid):
    values = list(status)
    values[stat.ST_UID] = uid
    return os.stat_result(values)


def shared_temporary(tmp_path):
    return tmp_path / "temporary" / f"fused_balanced_loss-{os.geteuid()}"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_default_is_in_the_users_cache_and_private_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        assert cache_folders() == [tmp_path / "home" / ".cache" / "fused_balanced_loss"]
    finally:
        os.umask(before)
    assert mode(tmp_path / "home" / ".cache") == mode(cache_folders()[0]) == 0o700


def test_variables_choose_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folders() == [tmp_path / "xdg" / "fused_balanced_loss"]
    monkeypatch.setenv(CHOSEN, str(tmp_path / "chosen" / "deep"))
    assert cache_folders() == [tmp_path / "chosen" / "deep"]
    monkeypatch.setenv(CHOSEN, "~/mine")
    assert cache_folders() == [tmp_path / "home" / "mine"]


@pytest.mark.parametrize("value", ["cache", "./cache", "~nobody-of-this-name/cache"])
def test_relative_choice_is_refused(tmp_path, monkeypatch, value):
    monkeypatch.setenv(CHOSEN, value)
    with pytest.warns(UserWarning, match=f"{CHOSEN}: expected an absolute path, got '{value}'"):
        assert cache_folders() == [shared_temporary(tmp_path)]


def test_relative_xdg_folder_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert cache_folders() == [tmp_path / "home" / ".cache" / "fused_balanced_loss"]


@pytest.mark.parametrize("home", [None, "", "relative", "missing"])
def test_without_a_home_processes_share_a_temporary_folder(tmp_path, monkeypatch, home):
    """Without HOME and without an entry among the system's users, "~" stays as it is."""
    if home is None:
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(module.os.path, "expanduser", lambda path: path)
    else:
        monkeypatch.setenv("HOME", str(tmp_path / home) if home == "missing" else home)
    assert cache_folders() == [shared_temporary(tmp_path)]
    assert mode(shared_temporary(tmp_path)) == 0o700
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("bits", [0o770, 0o707, 0o1777])
def test_folder_that_others_can_write_is_refused(tmp_path, monkeypatch, bits):
    folder = tmp_path / "chosen"
    folder.mkdir()
    folder.chmod(bits)
    monkeypatch.setenv(CHOSEN, str(folder))
    with pytest.warns(UserWarning, match=f"{folder} can be written by other users"):
        assert cache_folders() == [shared_temporary(tmp_path)]


def test_folder_above_that_others_can_write_is_refused_unless_sticky(tmp_path, monkeypatch):
    above = tmp_path / "above"
    above.mkdir()
    above.chmod(0o777)
    monkeypatch.setenv(CHOSEN, str(above / "cache"))
    with pytest.warns(UserWarning, match=f"{above} can be written by other users"):
        assert cache_folders() == [shared_temporary(tmp_path)]
    assert not (above / "cache").exists()
    above.chmod(0o1777)
    assert cache_folders() == [above / "cache"]


@pytest.mark.parametrize("depth", [0, 1])
def test_folder_of_another_user_is_refused(tmp_path, monkeypatch, give_away, depth):
    folder = tmp_path / "above" / "cache"
    folder.mkdir(parents=True, mode=0o700)
    foreign = [folder, folder.parent][depth]
    give_away(foreign)
    monkeypatch.setenv(CHOSEN, str(folder))
    with pytest.warns(UserWarning, match=f"{foreign} belongs to user {STRANGER}"):
        assert cache_folders() == [shared_temporary(tmp_path)]


def test_root_outside_a_container_is_trusted_above_the_folder_alone(tmp_path, monkeypatch, give_away):
    folder = tmp_path / "above" / "cache"
    folder.mkdir(parents=True, mode=0o700)
    monkeypatch.setenv(CHOSEN, str(folder))
    monkeypatch.setattr(module, "_owners_outside", lambda: {STRANGER})
    give_away(folder.parent)
    assert cache_folders() == [folder]
    give_away(folder)
    with pytest.warns(UserWarning, match=f"{folder} belongs to user {STRANGER}"):
        assert cache_folders() == [shared_temporary(tmp_path)]


def test_link_is_followed_to_a_folder_that_is_checked(tmp_path, monkeypatch):
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir(mode=0o700)
    bad.mkdir()
    bad.chmod(0o777)
    (tmp_path / "link").symlink_to(good)
    monkeypatch.setenv(CHOSEN, str(tmp_path / "link"))
    assert cache_folders() == [good]
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(bad)
    with pytest.warns(UserWarning, match=f"{bad} can be written"):
        assert cache_folders() == [shared_temporary(tmp_path)]


@pytest.mark.parametrize("planted", ["link", "file", "open", "foreign"])
def test_planted_temporary_folder_is_not_used(tmp_path, monkeypatch, give_away, planted):
    monkeypatch.setenv("HOME", "")
    place = shared_temporary(tmp_path)
    if planted == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "elsewhere")
    elif planted == "file":
        place.write_text("")
    else:
        place.mkdir(mode=0o700)
        if planted == "open":
            place.chmod(0o777)
        else:
            give_away(place)
    (own,) = cache_folders()
    assert own != place and own.parent == tmp_path / "temporary" and mode(own) == 0o700
    assert cache_folders() == [own]
    own.rmdir()
    assert cache_folders() == [own] and own.is_dir()


@pytest.mark.skipif(not os.access(sys.executable, os.X_OK), reason="this user may not start another Python")
def test_folder_of_one_process_is_removed_at_its_end(tmp_path):
    shared_temporary(tmp_path).write_text("")
    code = (
        "import os\n"
        "from fused_balanced_loss.backends.cache_folders import cache_folders\n"
        "own = cache_folders()[0]\n"
        "(own / 'file').write_text('')\n"
        "if os.fork() == 0: raise SystemExit\n"
        "os.wait()\n"
        "assert own.is_dir(), 'a child of the process removed it'\n"
        "print(own)\n"
    )
    environment = os.environ | {
        "HOME": "",
        "TMPDIR": str(tmp_path / "temporary"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    own = Path(done.stdout.strip())
    assert own.parent == tmp_path / "temporary" and not own.exists()


def test_no_folder_at_all_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "")
    (tmp_path / "temporary").chmod(0o777)
    with pytest.raises(PermissionError, match="temporary can be written by other users"):
        cache_folders()
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("why", ["read-only", "noexec"])
def test_folder_that_can_only_be_read_is_looked_at_first(tmp_path, monkeypatch, why):
    chosen = tmp_path / "chosen"
    chosen.mkdir(mode=0o700)
    monkeypatch.setenv(CHOSEN, str(chosen))
    if why == "read-only":
        access = os.access
        monkeypatch.setattr(module.os, "access", lambda path, how: path != chosen and access(path, how))
    elif not hasattr(os, "ST_NOEXEC"):
        pytest.skip("the system does not say how a folder is mounted")
    else:
        real = os.statvfs
        flags = {chosen: os.ST_NOEXEC}

        def statvfs(path):
            values = list(real(path))
            values[8] |= flags.get(path, 0)
            return os.statvfs_result(values)

        monkeypatch.setattr(module.os, "statvfs", statvfs)
    assert cache_folders() == [chosen, shared_temporary(tmp_path)]


def test_only_a_private_file_is_trusted(tmp_path, give_away):
    file = tmp_path / "file"
    file.write_text("")
    file.chmod(0o600)
    check_file(file)
    (tmp_path / "link").symlink_to(file)
    with pytest.raises(PermissionError, match="link is not a file"):
        check_file(tmp_path / "link")
    file.chmod(0o620)
    with pytest.raises(PermissionError, match="file can be written by other users"):
        check_file(file)
    file.chmod(0o600)
    give_away(file)
    with pytest.raises(PermissionError, match=f"file belongs to user {STRANGER}"):
        check_file(file)
