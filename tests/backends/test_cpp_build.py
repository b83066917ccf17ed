"""C++ kernels on disk: built once, whole or not there, never loaded from a file that was changed, and failures that are
known for each variant."""

import errno
import os
import platform
import subprocess
import sys

import pytest
from small_kernel import FORTY_TWO, SECONDS, files, in_a_child, is_42, status_of

from fused_balanced_loss.backends import cpp_build
from fused_balanced_loss.backends.cpp_build import KernelBuildError, available, forget, library

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins for compilers are shell scripts"),
    pytest.mark.usefixtures("kernel_cache"),
]


def test_is_built_once_and_private(kernel_cache, compiler_script):
    runs = compiler_script()
    before = os.umask(0)
    try:
        assert library("small", FORTY_TWO).answer() == 42
    finally:
        os.umask(before)
    forget()
    assert library("small", FORTY_TWO).answer() == 42
    assert len(runs()) == 1
    (name,) = files(kernel_cache)
    assert (kernel_cache / name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["", "garbage", "half", "changed"])
def test_file_that_is_not_what_was_built_is_replaced(kernel_cache, content):
    """The loader maps the file: reading behind the end of half a file kills the process."""
    # By a child: a library that this process had loaded would be found under its name and not be read again.
    assert status_of(in_a_child(is_42)) == 0
    (file,) = kernel_cache.glob("*.so")
    whole = file.read_bytes()
    position = whole.index(b"answer")
    other = {
        "": b"",
        "garbage": b"garbage",
        "half": whole[: len(whole) // 2],
        "changed": whole[:position] + b"ANSWER" + whole[position + 6 :],
    }
    file.write_bytes(other[content])
    assert status_of(in_a_child(is_42)) == 0
    (file,) = kernel_cache.glob("*.so")
    assert file.read_bytes() != other[content]


def test_file_that_another_user_planted_is_not_loaded(kernel_cache, tmp_path):
    """It has the right name and the digest of its own content."""
    library("small", FORTY_TWO)
    (file,) = kernel_cache.glob("*.so")
    compiler = cpp_build._compiler()[0]
    planted = tmp_path / "planted.so"
    (tmp_path / "planted.cpp").write_text('extern "C" int answer() { return 666; }')
    subprocess.run(
        [compiler, "-shared", "-fPIC", str(tmp_path / "planted.cpp"), "-o", str(planted)], check=True, timeout=SECONDS
    )
    stem = file.stem.rpartition("-")[0]
    file.unlink()
    place = kernel_cache / f"{stem}-{cpp_build._digest(planted.read_bytes())}.so"
    planted.rename(place)
    if os.geteuid() == 0:
        place.chmod(0o600)
        os.chown(place, 54321, -1)
    else:
        # Only root can give a file away; one that others can write is as good as another user's.
        place.chmod(0o622)
    forget()
    assert library("small", FORTY_TWO).answer() == 42
    assert not place.exists()


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_full_disk_leaves_nothing_behind(kernel_cache, monkeypatch, function):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(cpp_build.os, function, full)
        with pytest.raises(KernelBuildError, match="No space left"):
            library("small", FORTY_TWO)
    assert files(kernel_cache) == []
    forget()
    assert library("small", FORTY_TWO).answer() == 42


def test_failure_is_known_per_variant_and_not_tried_again(kernel_cache, compiler_script):
    runs = compiler_script()
    broken = (*FORTY_TWO, ("BROKEN", 1))
    for _ in range(3):
        with pytest.raises(KernelBuildError) as caught:
            library("small", broken)
    assert len(runs()) == 1
    message = str(caught.value)
    assert "small (ANSWER=42, BROKEN=1)" in message and "stand-in failed with status 1" in message
    assert "-DBROKEN=1" in message and "this variant is broken" in message
    assert len(message.splitlines()) < 20
    assert library("small", FORTY_TWO).answer() == 42
    forget()
    with pytest.raises(KernelBuildError):
        library("small", broken)
    assert len(runs()) == 3
    assert isinstance(caught.value, RuntimeError) and len(files(kernel_cache)) == 1


def test_available_warns_once(recwarn):
    assert available("small", FORTY_TWO) and not recwarn
    for answer in (1, 2):
        assert not available("small", (("ANSWER", answer), ("BROKEN", 1)))
    (warning,) = recwarn
    assert "this variant is broken" in str(warning.message)
    assert available("small", FORTY_TWO)


def test_compiler_may_have_options_and_a_path_with_blanks(compiler_script, monkeypatch, tmp_path):
    runs = compiler_script()
    monkeypatch.setenv("CXX", f"{os.environ['CXX']} -O2 '-DEXTRA=a b'")
    assert library("small", FORTY_TWO).answer() == 42
    assert runs()[0].startswith("-O2 -DEXTRA=a b ")
    spaced = tmp_path / "my compilers" / "stand-in"
    spaced.parent.mkdir()
    (tmp_path / "stand-in").rename(spaced)
    monkeypatch.setenv("CXX", str(spaced))
    forget()
    assert library("small", FORTY_TWO).answer() == 42
    assert len(runs()) == 2


@pytest.mark.parametrize("value", ["no-such-compiler", "no-such-compiler -O2"])
def test_no_compiler(monkeypatch, value):
    monkeypatch.setenv("CXX", value)
    with pytest.raises(KernelBuildError, match=f"no C\\+\\+ compiler found.*{value}"):
        library("small", FORTY_TWO)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the names are those of x86 processors")
def test_processor_can_be_chosen(kernel_cache, compiler_script, monkeypatch):
    runs = compiler_script()
    for march in (None, "x86-64", "haswell", ""):
        if march is not None:
            monkeypatch.setenv("FUSED_BALANCED_LOSS_MARCH", march)
        forget()
        assert library("small", FORTY_TWO).answer() == 42
    given = [next(word for word in run.split() if word.startswith("-march")) for run in runs()]
    assert given == ["-march=native", "-march=x86-64", "-march=haswell"]
    monkeypatch.setenv("FUSED_BALANCED_LOSS_MARCH", "no-such-processor")
    forget()
    with pytest.raises(KernelBuildError, match="no-such-processor"):
        library("small", FORTY_TWO)


def test_new_version_of_the_compiler_builds_anew(compiler_script):
    compiler_script()
    library("small", FORTY_TWO)
    runs = compiler_script("# another version")
    forget()
    library("small", FORTY_TWO)
    assert len(runs()) == 1


def test_compiler_without_openmp_builds_for_one_thread(compiler_script):
    refuse = "case \" $* \" in *' -fopenmp '*) {} exit 1;; esac"
    runs = compiler_script(refuse.format("echo \"clang: error: unsupported option '-fopenmp'\" >&2;"))
    assert library("small", FORTY_TWO).answer() == 42
    assert ["-fopenmp" in run for run in runs()] == [True, False]
    # Whatever else goes wrong once must not end in a slow kernel that is kept.
    compiler_script(refuse.format("echo 'compilation terminated: out of memory' >&2;"))
    forget()
    with pytest.raises(KernelBuildError, match="out of memory"):
        library("small", FORTY_TWO)


def test_library_that_cannot_be_loaded_says_so(kernel_cache, tmp_path, monkeypatch):
    script = tmp_path / "makes-nothing-useful"
    script.write_text('#!/bin/sh\nfor last; do :; done\necho nothing > "$last"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    with pytest.raises(KernelBuildError, match=r"small.*(file too short|invalid|not a mach-o)"):
        library("small", FORTY_TWO)
    assert files(kernel_cache) == []


def test_missing_source_says_so():
    with pytest.raises(KernelBuildError, match=r"other\.cpp is missing: the package was installed without its kernels"):
        library("other", FORTY_TWO)


def test_no_trusted_folder_says_so(kernel_cache, monkeypatch, tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("FUSED_BALANCED_LOSS_CACHE", str(tmp_path / "open"))
    monkeypatch.setattr("fused_balanced_loss.backends.cache_folders.tempfile.tempdir", str(tmp_path / "open"))
    with (
        pytest.warns(UserWarning, match="temporary folder"),
        pytest.raises(KernelBuildError, match="open can be written by other users"),
    ):
        library("small", FORTY_TWO)


def test_kernel_of_a_folder_that_can_only_be_read_is_loaded(kernel_cache, compiler_script, monkeypatch, tmp_path):
    runs = compiler_script()
    library("small", FORTY_TWO)
    monkeypatch.setattr(cpp_build, "cache_folders", lambda: [kernel_cache, tmp_path / "second"])
    (tmp_path / "second").mkdir()
    forget()
    assert library("small", FORTY_TWO).answer() == 42 and len(runs()) == 1
    assert library("small", (("ANSWER", 1),)).answer() == 1
    assert len(files(kernel_cache)) == len(files(tmp_path / "second")) == 1


def test_broken_file_that_cannot_be_removed_is_built_elsewhere(kernel_cache, monkeypatch, tmp_path):
    library("small", FORTY_TWO)
    (file,) = kernel_cache.glob("*.so")
    file.unlink()
    file.write_bytes(b"")
    (tmp_path / "second").mkdir()
    monkeypatch.setattr(cpp_build, "cache_folders", lambda: [kernel_cache, tmp_path / "second"])

    def refuse(*_, **__):
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS))

    forget()
    with monkeypatch.context() as patch:
        patch.setattr(cpp_build.Path, "unlink", refuse)
        assert library("small", FORTY_TWO).answer() == 42
    assert files(tmp_path / "second") == [file.name]
