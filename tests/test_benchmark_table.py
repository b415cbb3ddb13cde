"""The table of the benchmarks is what their results make, and its ratios mean what it says."""

from __future__ import annotations

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "benchmarks"))
import table  # noqa: E402


def test_the_read_me_holds_the_table_of_the_results():
    text = table.README.read_text()
    results = table.load(table.README.parent / "results")
    assert results and table.table(results) in text


def test_a_peer_that_takes_twice_as_long_has_the_ratio_two():
    ours = [{"wall": [1.0, 9.0, 2.0]}, {"wall": [4.0]}]
    theirs = [{"wall": [4.0]}, {"wall": [2.0, 8.0, 9.0]}]
    assert table.ratios(ours, theirs, "wall") == pytest.approx([2.0, 2.0])


def test_a_loader_shows_its_fill_and_its_state():
    read = {
        "wall": [9.0],
        "cpu": [0.5, 0.2, 0.4],
        "fill": 0.9912,
        "state_bytes": 12345,
        "save_s": 0.001,
        "restore_s": 2.0,
    }
    rows = table.readers([{"rounds": {"poet": [read], "others": [{"wall": [1.0], "cpu": [1.0]}]}}])
    assert rows[-1] == "| poet | 2.50 | 99.1 % | 12,345 | 0.001, 2 |"
    assert table.readers([{"rounds": {"others": [{"wall": [1.0], "cpu": [1.0]}]}}]) == []


def test_no_result_tells_of_paths_of_the_machine_it_was_made_on():
    for path in (table.README.parent / "results").glob("*.json"):
        text = path.read_text()
        assert "/tmp" not in text and "/work" not in text and "/home" not in text, path.name
