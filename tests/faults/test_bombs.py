"""Files that ask for more memory than there is: every reader refuses its own, in words, without taking it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import fault_bombs  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "poet/runs/limits.md"
# Limits that are tested beside what they belong to.
ELSEWHERE = re.compile(r"\[`tests/[^`]+`\]\((?P<file>[^)]+)\)")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name of a bomb -> how it was refused, by one process with little memory."""
    done = subprocess.run(
        [sys.executable, fault_bombs.__file__, str(tmp_path_factory.mktemp("bombs"))],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    found = dict(map(json.loads, done.stdout.splitlines()))
    assert done.returncode == 0, f"ended after {list(found)[-1:]}: {done.stderr[-2000:]}"
    return found


@pytest.mark.parametrize("name", fault_bombs.BOMBS)
def test_it_is_refused_in_bounded_memory(answers: dict[str, str], name: str) -> None:
    said = answers[name]
    assert said and not said.startswith("!") and "Cannot allocate" not in said, said


def test_the_page_has_every_reader() -> None:
    """Each bomb stands in a row of the table; a row without one names the test that it has elsewhere."""
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row.split(" | ")[2])]
    assert sorted(name for name in named if not name.startswith("tests/")) == sorted(fault_bombs.BOMBS)
    assert all("`" in row.split(" | ")[2] for row in rows)
    for link in ELSEWHERE.finditer(PAGE.read_text()):
        assert (PAGE.parent / link["file"]).is_file(), link["file"]
