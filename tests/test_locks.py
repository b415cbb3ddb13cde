"""The lock files that launch/setup.sh installs from: whole, in step with setup.cfg, and without names of servers."""

from __future__ import annotations

import configparser
import re
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
