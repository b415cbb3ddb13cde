"""The files of `poet score`: JSON, CSV with the manifest of every number in its row, text, and a page of one file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poet.evaluation import record
from poet.evaluation.report import page
from poet.evaluation.samples import REFERENCE, SUBMISSION
from poet.evaluation.score import run
from poet.evaluation.score.sides import Clips
from poet.media import write_png_strip, write_text

SHOWN = 4
# Frames of a strip, about.
FRAMES_SHOWN = 8
TITLE = "poet score"
COLUMNS = ("table", "metric", "value", "from", "to", "reference value", "better", "clips", "of reference", "pairs")
HEADINGS = {
    run.SETS: "Both sets compared",
    run.CLIPS: "Each set alone",
    run.CODES: "Codes",
    run.PAIRS: "Pairs of clips",
    run.SOUNDS: "Pairs of sounds",
}


def write(folder: Path, result: Mapping[str, Any], sides: Mapping[str, Clips]) -> None:
    """Writes all files below a folder."""
    record.write(folder / run.RESULT_FILE, result)
    write_text(folder / run.CSV_FILE, table(result))
    write_text(folder / run.TEXT_FILE, run.summary(result) + "\n")
    strips = {name: list(_strips(folder, name, clips)) for name, clips in sides.items()}
    write_text(folder / run.PAGE_FILE, document(result, strips))


def table(result: Mapping[str, Any]) -> str:
    """CSV: a row for each number, with all that it depends on."""
    depends = _depends(result)
    rows = [
        {"table": name, **row, "networks": _used(found, row["metric"]), **depends}
        for name, found in result["metrics"].items()
        for row in found["rows"]
    ]
    return record.csv_text([*COLUMNS, "networks", *depends], rows)


def _used(table: Mapping[str, Any], name: str) -> str:
    """The networks of a number, and their weights."""
    networks = table["manifests"].get(name, {}).get("networks", {})
    return " ".join(f"{network}:{weights}" for network, weights in networks.items())


def _depends(result: Mapping[str, Any]) -> dict[str, Any]:
    """What all numbers depend on, flat."""
    found = {name: result["clip"][name] for name in ("frames", "rate_hz", "height", "width", "crop", "resize")}
    for side in (SUBMISSION, REFERENCE):
        found |= {f"{side} {part}": result[side][part] for part in ("path", "split", "fingerprint", "clips")}
        found[f"{side} unreadable"] = len(result[side]["unreadable"])
    return found | {"versions": " ".join(f"{name}:{version}" for name, version in result["versions"].items())}


# ------------------------------------------------------------------------------------------ the page


def _strips(folder: Path, name: str, clips: Clips) -> Iterator[tuple[str, Path]]:
    """Strips of some clips, evenly spread over a set: (key, file)."""
    places = np.unique(np.linspace(0, len(clips) - 1, SHOWN).astype(int))
    for place in places.tolist():
        for item in clips.some(place):
            path = folder / "media" / f"{name}_{place}.png"
            write_png_strip(path, item.video, max(1, len(item.video) // FRAMES_SHOWN))
            yield item.key, path


def document(result: Mapping[str, Any], strips: Mapping[str, Sequence[tuple[str, Path]]]) -> str:
    """The page."""
    sections = [
        (HEADINGS[name], page.table(found["rows"]) + "".join(map(page.soft, found["notes"])))
        for name, found in result["metrics"].items()
    ]
    sections += [
        ("Not measured", page.bullets(f"{name}: {why}" for name, why in result["skipped"].items())),
        ("Clips", _shown(result, strips)),
        ("Record", page.details("Everything that these numbers depend on", json.dumps(result, indent=2))),
    ]
    return page.document(TITLE, _lead(result), sections)


def _lead(result: Mapping[str, Any]) -> str:
    clip = result["clip"]
    sides = " against ".join(
        f"{result[side]['clips']} clips of {result[side]['path']}" for side in (SUBMISSION, REFERENCE)
    )
    words = (
        f"{sides}: {clip['frames']} frames of {clip['height']}x{clip['width']} at {clip['rate_hz']:g} Hz. "
        "'from' and 'to' hold 95 % of bootstrap resamples of the clips, or are the value ± 1.96 of their deviations."
    )
    return page.soft(words) + "".join(map(page.soft, result["fitted"]))


def _shown(result: Mapping[str, Any], strips: Mapping[str, Sequence[tuple[str, Path]]]) -> str:
    parts = []
    for side, shown in strips.items():
        parts.append(f"<h3>{page.text(side.capitalize())}</h3>")
        parts += [page.strip(path, key, f"frames of {key}") for key, path in shown]
        unreadable = result[side]["unreadable"]
        if unreadable:
            parts.append(page.paragraph(f"{len(unreadable)} clips cannot be read:"))
            parts.append(page.bullets(f"{key}: {why}" for key, why in unreadable.items()))
    return "".join(parts)
