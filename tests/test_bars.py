"""data/pretrained/bars.py: what weights that ship should reach, each figure by a command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from poet import cli

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "data/pretrained"))
import bars  # noqa: E402

SHIPPED = [name for name, run in bars.RUNS.items() if run.shipped]
COMMANDS = [line for run in bars.RUNS.values() for line in run.command.splitlines()]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[:60])
def test_its_commands_are_those_of_the_program(command: str):
    words = bars.Places(clips="CLIPS", work=Path("work")).filled(command.replace("=N", "=1"))
    assert words[0] == "poet"
    cli._parse([word for word in words[1:] if not word.startswith(cli.GIN_PREFIX)])


def test_every_bar_is_of_a_run_and_bounds_one_side():
    assert bars.BARS.keys() == bars.RUNS.keys()
    for bar in (bar for group in bars.BARS.values() for bar in group):
        assert (bar.least > -float("inf")) != (bar.most < float("inf")), bar.asked


@pytest.mark.parametrize("name", SHIPPED)
def test_its_page_says_what_the_scores_of_the_repository_say(name: str):
    contents = json.loads((ROOT / "data/pretrained" / bars.RUNS[name].result).read_text())
    page = bars.PAGE.read_text()
    for bar in bars.BARS[name]:
        assert bars._line(name, bar, bar.read(contents)) in page


def test_the_page_has_every_bar_and_counts_those_that_are_met():
    page = bars.PAGE.read_text()
    lines = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    every = [bar for group in bars.BARS.values() for bar in group]
    assert [line[0].removeprefix("| ") for line in lines] == [bar.asked for bar in every]
    for bar, line in zip(every, lines):
        value = float(line[2])
        assert bar.met(bars.Found(value=value)) == (line[4] == "yes"), line
    assert f"reach {sum(line[4] == 'yes' for line in lines)} of {len(every)}" in page


@pytest.mark.parametrize(("value", "met"), [(0.1, True), (0.0, True), (-0.1, False)])
def test_a_bar_holds_its_own_value(value: float, met: bool):
    assert bars.Bar("over something", lambda _: bars.Found(value=value), least=0).met(bars.Found(value=value)) is met
    assert bars.Bar("under something", lambda _: bars.Found(value=value), most=0).met(bars.Found(value=-value)) is met
