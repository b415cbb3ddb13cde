"""What tools say of the code: ruff of all of it, mypy of the core; and what its docstrings tell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ("spec", "tasks", "models", "training")


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_a_tool_finds_nothing(command: str, tmp_path: Path) -> None:
    cache = {"mypy": [f"--cache-dir={tmp_path}"], "ruff": ["--no-cache"]}[command.split()[0]]
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), *cache], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
