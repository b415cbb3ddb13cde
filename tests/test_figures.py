"""launch/figures.sh names every picture of the documentation, with a command that parses."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from poet import cli

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "launch/figures.sh"
TEXT = SCRIPT.read_text()
COMMANDS = re.findall(r"\b(?:poet|python) [^;{}\n]*", TEXT.split("set -euo pipefail\n")[1].replace("\\\n", " "))
# Drawn by hand.
OWN = {"poet/server/studio/icon.svg"}


def test_every_picture_can_be_made_anew():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    pictures = {name for name in tracked if re.search(r"\.(png|svg|webp|gif|jpg)$", name)}
    if not pictures:
        pytest.skip("not a checkout")
    made = {name for line in re.findall(r"^# -> (.*)$", TEXT, re.M) for name in line.split()}
    assert pictures - OWN <= made
    assert all((ROOT / name).exists() for name in made)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[:60])
def test_its_commands_are_those_of_the_program(command: str):
    words = [re.sub(r"\$\w+", "1", word) for word in shlex.split(command)]
    if words[0] == "python":
        assert (ROOT / words[1]).exists()
    else:
        cli._parse([word for word in words[1:] if not word.startswith(cli.GIN_PREFIX)])


def test_an_unknown_figure_is_refused_with_those_that_there_are():
    done = subprocess.run(["bash", SCRIPT, "portrait"], capture_output=True, text=True)
    assert done.returncode == 2 and "choose from layouts" in done.stderr
    listed = subprocess.run(["bash", SCRIPT], capture_output=True, text=True).stdout
    assert "layouts: poet/tasks/layouts.svg\n" in listed
