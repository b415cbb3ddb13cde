"""The lock files that launch/setup.sh installs from: whole, in step with setup.cfg, and without names of servers."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCKS = sorted((ROOT / "launch/locks").glob("linux-*.txt"))
PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+?)(?: ; .*)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.M)


def pins(lock: Path) -> dict[str, str]:
    return {canonicalize_name(name): version for name, version, _ in PIN.findall(lock.read_text())}


def extras() -> list[str]:
    return re.search(r"^POET_EXTRAS=(\S+)$", (ROOT / "launch/setup.sh").read_text(), re.M)[1].split(",")


def required(names: list[str]) -> list[Requirement]:
    """What poet itself and these extras ask for, those that extras name in turn included."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    texts = config["options"]["install_requires"].splitlines()
    for name in names:
        texts += config["options.extras_require"][name].splitlines()
    found = [Requirement(text) for text in texts if text and not text.startswith("#")]
    own = [r for r in found if r.name == "videopoet-jax"]
    inner = required([extra for r in own for extra in r.extras]) if own else []
    return [r for r in found if r.name != "videopoet-jax"] + inner


def test_there_is_a_lock_for_each_interpreter():
    assert [path.stem for path in LOCKS] == ["linux-x86_64-cp311", "linux-x86_64-cp312"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_a_lock_has_what_setup_cfg_asks_for(lock: Path):
    """bash launch/lock.sh --keep brings it back into step."""
    pinned, wanted = pins(lock), required(extras())
    assert len(wanted) > 40
    wrong = [str(r) for r in wanted if not r.specifier.contains(pinned.get(canonicalize_name(r.name), "0"), True)]
    assert not wrong, "bash launch/lock.sh --keep"


@pytest.mark.parametrize("lock", [*LOCKS, ROOT / "launch/locks/alone.txt"], ids=lambda path: path.stem)
def test_every_line_is_a_version_or_a_hash_of_it(lock: Path):
    head, _, body = lock.read_text().partition("\n")
    assert head.startswith("#") and PIN.sub("", body) == ""
    assert "://" not in body and len(pins(lock)) >= 2


def test_packages_without_dependencies_are_locked_as_they_are_named():
    named = (ROOT / "launch/locks/alone.in").read_text().splitlines()[1:]
    assert pins(ROOT / "launch/locks/alone.txt") == dict(line.split("==") for line in named)


# Stands for the interpreter of .venv: it writes down what pip is asked for, and fails where the lock is installed.
STUB = """#!/bin/bash
case "$*" in
  -c*) exec {python} "$@" ;;
  *--require-hashes*) echo "$SAID"; echo "$*" >> asked; [ -z "$SAID" ] ;;
  *) echo "$*" >> asked ;;
esac
"""


@pytest.mark.parametrize(
    "said, code, unlocked",
    [
        ("", 0, False),
        ("ERROR: No matching distribution found for numpy==2.0", 0, True),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", 1, False),
    ],
)
def test_what_an_index_lacks_is_taken_unlocked_and_other_files_are_not(tmp_path, said, code, unlocked):
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    version = "".join(map(str, sys.version_info[:2]))
    (tmp_path / f"launch/locks/{sysconfig.get_platform()}-cp{version}.txt").touch()
    stub = tmp_path / ".venv/bin/python"
    stub.parent.mkdir(parents=True)
    stub.write_text(STUB.format(python=sys.executable))
    stub.chmod(0o755)
    (stub.parent / "activate").touch()
    environment = os.environ | {"SAID": said, "POET_PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", "launch/setup.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    asked = (tmp_path / "asked").read_text()
    assert done.returncode == code, done.stderr
    assert ("-e .[test" in asked) == unlocked
    assert (tmp_path / ".venv/poet-stamp").exists() == (code == 0)
    assert said in done.stderr
