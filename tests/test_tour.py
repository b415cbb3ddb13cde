"""The notebook of the shipped weights runs from top to bottom."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from poet import media

NOTEBOOK = Path(__file__).resolve().parent.parent / "data/pretrained/tour.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"{NOTEBOOK.name}, cell {number}", "exec"), names)
    clip = names["clip"]
    assert media.read_clip(tmp_path / "tour.mp4", clip).video.shape == (clip.frames, clip.height, clip.width, 3)
    said = capsys.readouterr().out
    assert names["caption"] and names["caption"] in said
    assert "nearest are 1 and 5" in said and "it obeys text → image" in said


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
