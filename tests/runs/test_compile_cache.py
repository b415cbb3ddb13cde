"""The compile cache: on by default, in a folder that nobody else can write."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from poet.runs import compile_cache

COMPILE = """
from poet.runs import compile_cache
compile_cache.use()
import jax
shape = jax.ShapeDtypeStruct((8, 8), "float32")
with compile_cache.counted() as count:
    jax.jit(lambda x: jax.numpy.tanh(x @ x)).lower(shape).compile()
jax.jit(lambda x: x @ x + 1).lower(shape).compile()
print(jax.config.jax_compilation_cache_dir, count, sep="|")
"""
SETTINGS = ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE")


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache folder, and no settings but it."""
    for name in SETTINGS:
        monkeypatch.setenv(name, "")  # So that it is put back, whatever the test does to it.
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    return tmp_path / "cache"


def test_the_second_process_finds_what_the_first_one_compiled(fresh: Path) -> None:
    def run() -> list[str]:
        done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, check=True)
        return done.stdout.strip().split("|")

    folder, first = run()
    assert first == "cache: 0 hits, 1 misses"
    assert Path(folder).parent == fresh / "poet" / "xla" and list(Path(folder).iterdir())
    assert Path(folder).stat().st_mode & 0o077 == 0
    assert run() == [folder, "cache: 1 hits, 0 misses"]


@pytest.mark.parametrize("given", ["", "/somewhere/else"])
def test_a_folder_of_ones_own_choice_stays(given: str, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", given)
    compile_cache.use()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == given and not fresh.exists()


@pytest.mark.parametrize("harm", ["writable by others", "another user's", "no folder", "full disk"])
def test_a_folder_that_is_not_safe_is_left_alone_with_a_warning(
    harm: str, fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    if harm == "writable by others":
        (fresh / "poet").mkdir(parents=True)
        (fresh / "poet").chmod(0o775)
    elif harm == "another user's":
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    elif harm == "no folder":
        fresh.write_text("")
    else:
        monkeypatch.setattr(Path, "mkdir", full)
    with caplog.at_level(logging.WARNING):
        compile_cache.use()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("compiled programs are not kept")
