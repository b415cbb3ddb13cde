"""The short form of every fault but those at gs:// (`test_faults_at_gs.py`), and the table of the page."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import fault_registry  # noqa: E402
import fault_world  # noqa: E402

FAULTS = fault_registry.load()
SHORT = [name for name, fault in FAULTS.items() if fault.short and fault_registry.AT_GS not in name]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> fault_world.World:
    return fault_world.World(tmp_path_factory.mktemp("world"))


@pytest.mark.fault
@pytest.mark.parametrize("name", SHORT)
def test_nothing_is_lost(name: str, world: fault_world.World) -> None:
    fault_registry.nothing_is_lost(name, world)


def test_the_page_has_the_results_as_they_were_kept() -> None:
    page = fault_registry.PAGE.read_text()
    written = page.split(fault_registry.BEGIN + "\n")[1].split(fault_registry.END)[0]
    lines = fault_registry.read()
    assert written == fault_registry.table(lines)
    assert {line["fault"] for line in lines} <= set(FAULTS)


def test_a_table_adds_up_runs_and_hides_no_loss() -> None:
    line = {"fault": "x: y", "wanted": "w", "times": 2, "lost": [], "skipped": ""}
    rows = fault_registry.table([line, line | {"times": 3}, line | {"fault": "z", "times": 0, "skipped": "no disk"}])
    assert "| x: y | w | 5 | nothing |" in rows and "| z | w | 0 | not run: no disk |" in rows
    assert "| x: y | w | 4 | all of it |" in fault_registry.table([line, line | {"lost": ["all of it"]}])


def test_differences_are_named() -> None:
    assert fault_world.difference({"a": "1", "b": "2"}, {"a": "1", "b": "2"}) == ""
    assert fault_world.difference({"a": "1", "b": "2"}, {"a": "1", "c": "2"}) == "2 of 2 differ: b, c"
