"""A cache of the test's own for a small kernel, and a stand-in for the compiler that builds it."""

import pytest
from small_kernel import SOURCE

from fused_balanced_loss.backends import cpp_build
from fused_balanced_loss.backends.cpp_build import forget


@pytest.fixture
def kernel_cache(tmp_path, monkeypatch):
    """The cache, empty; :func:`library` has the one kernel of ``SOURCE``."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "small.cpp").write_text(SOURCE)
    monkeypatch.setattr(cpp_build, "_SOURCES", tmp_path / "kernels")
    monkeypatch.setenv("FUSED_BALANCED_LOSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FUSED_BALANCED_LOSS_MARCH", raising=False)
    forget()
    yield tmp_path / "cache"
    forget()


@pytest.fixture
def compiler_script(tmp_path, monkeypatch):
    """Stands before the real compiler: writes its arguments down and runs the lines of shell that it is given."""
    real = cpp_build._compiler()[0]
    script, log = tmp_path / "stand-in", tmp_path / "log"

    def install(lines=""):
        script.write_text(f'#!/bin/sh\necho "$@" >> "{log}"\n{lines}\nexec "{real}" "$@"\n')
        script.chmod(0o755)
        log.write_text("")
        monkeypatch.setenv("CXX", str(script))
        return lambda: log.read_text().splitlines()

    return install
