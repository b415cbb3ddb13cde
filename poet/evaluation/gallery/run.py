"""A gallery: one page with samples of every task of a checkpoint, made section by section.

FOLDER/
  gallery.json      marks it as one
  conditions/       the clips of the conditions
  sections/NAME/    the files of a section, and section.json, by which it is reused
  index.html        the page, with every file inside
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from poet import media
from poet import spec as specs
from poet.evaluation.gallery import obeyed
from poet.evaluation.gallery.films import LongSection, StoryboardSection
from poet.evaluation.gallery.studio import Item, Made, Row, Studio
from poet.evaluation.gallery.tasks import TaskSection
from poet.evaluation.gallery.upscale import UpscaleSection
from poet.evaluation.report import page
from poet.media.watermark import LEAST_SIDE
from poet.runs import outputs
from poet.spec import UserError, choose

_LOG = logging.getLogger(__name__)
Section = TaskSection | LongSection | StoryboardSection | UpscaleSection
RECORD, PAGE, CONDITIONS = "gallery.json", "index.html", "conditions"
_SECTION = "section.json"
_KIND = {"kind": "gallery"}
# Of sections; another one makes them again.  2: what was made carries a watermark.
_FORMAT = 2

SECTIONS: dict[str, Section] = {
    section.task: section
    for section in (
        TaskSection(task="text_to_image", says="A picture from a text."),
        TaskSection(task="text_to_video", says="A clip from a text."),
        TaskSection(task="image_to_video", says="A clip from a first frame and a text."),
        TaskSection(task="frame_prediction", says="The continuation of the first frames of a clip."),
        TaskSection(
            task="audio_video_continuation", says="The continuation of the first frames of a clip and their sound."
        ),
        TaskSection(task="frame_interpolation", says="The frames between the first and the last frame of a clip."),
        TaskSection(
            task="inpainting",
            says="A box is filled; the pixels around it are those of the clip.",
            marked=(0.25, 0.25, 0.75, 0.75),
        ),
        TaskSection(
            task="outpainting",
            says="All around a box is filled; the pixels in it are those of the clip.",
            marked=(0.25, 0.25, 0.75, 0.75),
        ),
        TaskSection(
            task="stylization",
            says="A clip from the motion and depth of one clip and the text of another.",
            exchanged=True,
        ),
        TaskSection(task="video_to_audio", says="A sound for a silent clip."),
        TaskSection(task="audio_to_video", says="A clip for a sound."),
        TaskSection(task="text_to_audio", says="A sound from a text."),
        TaskSection(task="text_to_video_with_audio", says="A clip with its sound from a text."),
        TaskSection(task="captioning", says="A text for a clip."),
    )
} | {"long": LongSection(), "storyboard": StoryboardSection(), "upscale": UpscaleSection()}
QUICK = ("text_to_image", "image_to_video", "inpainting", "video_to_audio")


def check_place(path: str | Path, inputs: Sequence[str | Path]) -> Path:
    """The folder, if it is new, empty, or that of a gallery; UserError otherwise."""
    folder = Path(path).expanduser()
    record = folder / RECORD
    if record.is_file() and specs.read_object(record).get("kind") == _KIND["kind"]:
        return folder
    return outputs.claim(folder, _KIND["kind"], inputs=inputs).final


def check_names(names: Sequence[str]) -> None:
    """Raises UserError for an unknown section."""
    for name in names:
        choose(name, SECTIONS, "section")


def begin(folder: Path) -> None:
    """Marks a folder as that of a gallery."""
    media.write_text(folder / RECORD, json.dumps(_KIND) + "\n")


def make(studio: Studio, gains: Mapping[str, Any], folder: Path, names: Sequence[str] = ()) -> Path:
    """Makes the missing sections of a gallery, and its page, whose path it returns.

    Args:
      gains: condition gains, as of `obeyed.read_scores`.
      folder: as of `check_place`, begun.
      names: of `SECTIONS`; none for all.

    The page names missing sections, with the reason.
    """
    wanted = {name: SECTIONS[name] for name in names or SECTIONS}
    parts = []
    for name, section in wanted.items():
        place = folder / "sections" / name
        content = page.paragraph(section.says)
        try:
            made = _section(name, section, studio, place)
            verdict = obeyed.sentence(gains, section.scored_by)
            content += page.soft(verdict) + _shown(made, place)
        except UserError as error:
            _LOG.warning("%s is missing: %s", name, error)
            content += page.missing(f"Missing: {error}.")
        parts.append((section.title, content))
    title = f"poet: samples of {Path(studio.checkpoint).name}"
    media.write_text(folder / PAGE, page.document(title, _lead(studio, gains, wanted), parts))
    return folder / PAGE


def _section(name: str, section: Section, studio: Studio, place: Path) -> Made:
    """The content of a section, from its folder if nothing has changed."""
    key, record = _key(name, section, studio), place / _SECTION
    if record.is_file() and (found := specs.read_object(record)).get("key") == key:
        return _read(found["made"])
    _LOG.info("%s", section.title)
    began = time.monotonic()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    made = section.make(studio, place)
    media.write_text(record, json.dumps({"key": key, "made": specs.to_dict(made)}, indent=2, ensure_ascii=False) + "\n")
    _LOG.info("%s: %.0f s", section.title, time.monotonic() - began)
    return made


def _key(name: str, section: Section, studio: Studio) -> str:
    decides = {
        "format": _FORMAT,
        "section": [name, repr(section)],
        "made_by": studio.made_by,
        "sample": specs.to_dict(studio.sample.replace(seed=0)),
        "clips": [clip.digest for clip in studio.clips],
        "prompts": list(studio.prompts),
        "seeds": studio.seeds,
        "upscale": [run.checkpoint.fingerprint for run in studio.upscale] if name == "upscale" else [],
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _read(found: Mapping[str, Any]) -> Made:
    rows = tuple(
        Row(heading=row["heading"], items=tuple(Item(**item) for item in row["items"])) for row in found["rows"]
    )
    return Made(rows=rows, commands=tuple(found["commands"]), watermark=found["watermark"])


def _shown(made: Made, place: Path) -> str:
    rows = "".join(
        page.row(row.heading, page.group(_item(item, row.heading, place) for item in row.items)) for row in made.rows
    )
    rows += page.soft(f"Watermark: {made.watermark}.")
    return rows + "".join(page.details("The command, run in this folder", line) for line in made.commands)


def _item(item: Item, heading: str, place: Path) -> str:
    if not item.file:
        return page.paragraph(item.label)
    return page.card(place / item.file, item.label, f"{heading}: {item.label}")


def _marking(studio: Studio) -> str:
    """What of the page carries a watermark, in one sentence."""
    if studio.sample.unmarked:
        return f"Nothing carries a watermark: {studio.sample.unmarked}."
    return (
        f"Pictures that were made carry an invisible watermark if their shorter side has {LEAST_SIDE} pixels or more; "
        "`poet watermark` finds it. Conditions carry none."
    )


def _lead(studio: Studio, gains: Mapping[str, Any], wanted: Mapping[str, Section]) -> str:
    clip, last = studio.resolved.spec.clip, studio.seeds - 1
    seeds = f"seeds 0 to {last}" if last else "seed 0"
    lead = page.soft(
        f"{studio.checkpoint}, clips of {clip.frames} frames of {clip.width}x{clip.height} pixels at "
        f"{clip.rate_hz:g} Hz. "
        f"Nothing is selected: the conditions are those of {len(studio.clips)} clips evenly spaced in their "
        f"split, beside the samples of {seeds}. Sound is off until a clip is unmuted. "
        f"{_marking(studio)}"
    )
    tasks = {section.scored_by for section in wanted.values()}
    found = [verdict for task in sorted(tasks) for verdict, _, _ in obeyed.verdicts(gains, task)]
    meanings = {
        obeyed.OBEYED: "conditions are obeyed: another clip's condition raises the loss",
        obeyed.WEAK: f"are hardly obeyed: another clip's raises the loss by less than {obeyed.HARDLY} nats a token",
        obeyed.IGNORED: "are not obeyed: the interval of the difference contains 0",
    }
    return lead + page.tiles(
        [(f"{found.count(v)} of {len(found)}", words) for v, words in meanings.items()] if found else []
    )
