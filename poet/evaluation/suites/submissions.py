"""Submissions: folders of clips, TASK/NAME.ANYTHING, and of texts, TASK/captions.jsonl, as a model makes them; and the
conditions to make them from.

Shape suffixes: N clips, T frames, H height, W width, 3 colour channels, S samples.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from poet import conditioning, media
from poet.conditioning import regions
from poet.evaluation.suites.cases import Real, Suite
from poet.evaluation.suites.tasks import FRAMES, REGION, SOUND, TASKS, TEXT, VIDEO, SuiteTask
from poet.media.suffixes import ANIMATION_SUFFIXES
from poet.sampling.base import TaskSampler
from poet.spec import ClipSpec, ConditioningSpec, SampleSpec, UserError, limited
from poet.store.captions import CAPTIONS_FILE

_LOG = logging.getLogger(__name__)

CASES, ABOUT = "cases.jsonl", "about.json"
_LINE = 'each line is {{"file": "{name}", "caption": "..."}}'
VIDEOS, SOUNDS = media.VIDEO_SUFFIXES + ANIMATION_SUFFIXES, media.SOUND_SUFFIXES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """What a submission has of one task; None for a clip that is not there or cannot be read.

    Attributes:
      videos: uint8 [T, H, W, 3], of a task that makes pictures.
      sounds: int16 [S], of one that makes sound.
      texts: of one that writes.
      unreadable: name -> why.
    """

    videos: Sequence[np.ndarray | None] = ()
    sounds: Sequence[np.ndarray | None] = ()
    texts: Sequence[str | None] = ()
    unreadable: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def of(self, task: SuiteTask) -> Sequence[np.ndarray | str | None]:
        """What the task makes."""
        return {VIDEO: self.videos, SOUND: self.sounds, TEXT: self.texts}[task.makes]


# ---------------------------------------------------------------------------------------- reading


def tasks_of(suite: Suite, folder: Path, wanted: Sequence[str] = ()) -> list[SuiteTask]:
    """The tasks that a submission has a folder for, or those that are asked for.

    Raises:
      UserError: it has none, or lacks one that is asked for.
    """
    there = [task for name, task in suite.tasks.items() if (folder / name).is_dir() and (not wanted or name in wanted)]
    if lacking := [name for name in wanted if not (folder / name).is_dir()]:
        raise UserError(f"{folder} has no folder {lacking[0]}")
    if not there:
        raise UserError(
            f"{folder} has none of the folders {', '.join(TASKS)}: clips are TASK/NAME.mp4, .apng or .wav, "
            f"texts TASK/{CAPTIONS_FILE}"
        )
    return there


def read(folder: Path, task: SuiteTask, reals: Sequence[Real], clip: ClipSpec) -> Made:
    """The clips or texts of a task, in the order of the list; clips of another size are cropped about the centre and
    scaled.

    Raises:
      UserError: the task has nothing of the list, or its texts are no such file.
    """
    if task.writes:
        return _texts(folder / task.name, reals)
    suffixes, unreadable = (SOUNDS + VIDEOS if task.sound else VIDEOS), {}
    files = {path.stem: path for path in sorted((folder / task.name).iterdir()) if path.suffix.lower() in suffixes}
    found: list[np.ndarray | None] = []
    for real in reals:
        name = real.case.name
        try:
            if name not in files:
                raise UserError("it is not there")
            found.append(_sound(files[name], clip) if task.sound else media.read_clip(files[name], clip).video)
        except (UserError, media.MediaError) as error:
            unreadable[name] = getattr(error, "reason", str(error))
            found.append(None)
    if all(one is None for one in found):
        raise UserError(f"{folder / task.name} has no clip of the list, such as {reals[0].case.name}{suffixes[0]}")
    return Made(unreadable=unreadable, **{"sounds" if task.sound else "videos": found})


def _texts(folder: Path, reals: Sequence[Real]) -> Made:
    written = read_texts(folder / CAPTIONS_FILE)
    found = [written.get(real.case.name) for real in reals]
    if all(text is None for text in found):
        raise UserError(f"{folder / CAPTIONS_FILE} has no text of the list: {_LINE.format(name=reals[0].case.name)}")
    absent = {real.case.name: "it is not there" for real, text in zip(reals, found) if text is None}
    return Made(texts=found, unreadable=absent)


def read_texts(file: Path) -> dict[str, str]:
    """Name of a clip -> its text, from lines of JSON; {} where there is no file.

    Raises:
      UserError: a line is not as it should be.
    """
    found = {}
    lines = limited(file).read_text(encoding="utf-8").splitlines() if file.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            fields = json.loads(line)
            name, text = fields["file"], fields["caption"]
        except (ValueError, KeyError, TypeError):
            name = text = None
        if not (isinstance(name, str) and isinstance(text, str)):
            raise UserError(f"{file}, line {number}: {_LINE.format(name='NAME')}")
        found[Path(name).stem] = text
    return found


def _sound(file: Path, clip: ClipSpec) -> np.ndarray:
    found = media.read_track(file, clip.sample_rate_hz, clip.samples, 0.0)
    if found is None:
        raise UserError("it has no sound")
    return found


# --------------------------------------------------------------------------------------- sampling


def sample(
    generator: TaskSampler,
    task: SuiteTask,
    reals: Sequence[Real],
    folder: Path,
    clip: ClipSpec,
    settings: SampleSpec,
    batch: int,
) -> None:
    """Samples a task for the clips that FOLDER/TASK lacks, and writes them without loss.

    Every batch has a seed of its own, as rows of one seed share their noise.
    """
    if task.writes:
        _sample_texts(generator, task, reals, folder / task.name / CAPTIONS_FILE, settings, batch)
        return
    suffix = ".wav" if task.sound else ".apng"
    for start in range(0, len(reals), batch):
        some = reals[start : start + batch]
        files = [folder / task.name / f"{real.case.name}{suffix}" for real in some]
        if all(file.is_file() for file in files):
            continue
        _LOG.info("%s: clips %d to %d of %d", task.name, start + 1, start + len(some), len(reals))
        made = _sampled(generator, task, some, settings.replace(seed=settings.seed + start), batch)
        for file, one in zip(files, made):
            if task.sound:
                media.write_wav(file, one, clip.sample_rate_hz)
            else:
                media.write_apng(file, one, clip.rate_hz)
    if task.text:
        # What `poet score` takes for the texts of the clips.
        texts = {f"{real.case.name}{suffix}": real.case.text for real in reals}
        _write_texts(folder / task.name / CAPTIONS_FILE, texts)


def _sample_texts(
    generator: TaskSampler, task: SuiteTask, reals: Sequence[Real], file: Path, settings: SampleSpec, batch: int
) -> None:
    written = read_texts(file)
    for start in range(0, len(reals), batch):
        some = reals[start : start + batch]
        if all(real.case.name in written for real in some):
            continue
        _LOG.info("%s: clips %d to %d of %d", task.name, start + 1, start + len(some), len(reals))
        made = _sampled(generator, task, some, settings.replace(seed=settings.seed + start), batch)
        written |= {real.case.name: text for real, text in zip(some, made)}
        _write_texts(file, written)


def _write_texts(file: Path, texts: Mapping[str, str]) -> None:
    lines = [json.dumps({"file": name, "caption": text}) for name, text in texts.items()]
    media.write_text(file, "\n".join(lines) + "\n")


def _sampled(
    generator: TaskSampler, task: SuiteTask, reals: Sequence[Real], settings: SampleSpec, batch: int
) -> Sequence[np.ndarray | str]:
    """What is made for some clips."""
    declared = generator.declared(task.name)
    needs_video = task.known or any(stream.medium == "video" for stream in declared.conditions)
    takes_depth = declared.derived is not None and declared.derived.takes_depth
    found = generator.generate(
        task.name,
        [real.case.text for real in reals] if task.text else (),
        media={"video": np.stack([real.video for real in reals])} if needs_video else {},
        depths=np.stack([real.depth for real in reals]) if takes_depth and reals[0].depth is not None else None,
        conditioning_frames=task.opening,
        region=REGION if task.hole else "",
        sample=settings,
        batch=batch,
    )
    return {VIDEO: found.video, SOUND: found.audio, TEXT: found.texts}[task.makes]


# -------------------------------------------------------------------- conditions for other models


def write_conditions(suite: Suite, reals: Sequence[Real], folder: Path) -> None:
    """Writes FOLDER/TASK/cases.jsonl and the media that condition each clip: nothing of what is to be made."""
    for task in TASKS.values():
        lines = [_condition(suite.clip, task, real, folder / task.name) for real in reals]
        media.write_text(folder / task.name / CASES, "\n".join(map(json.dumps, lines)) + "\n")


def _condition(clip: ClipSpec, task: SuiteTask, real: Real, folder: Path) -> dict[str, str]:
    """A line of the list, and its files: the known frames, the clip with a hole, flow and depth, or the silent clip."""
    line = {"name": real.case.name} | ({"prompt": real.case.text} if task.text else {})
    shown = _shown(task, real)
    if shown is None:
        return line
    file = folder / f"{real.case.name}.apng"
    media.write_apng(file, shown, clip.rate_hz)
    return line | {"clip": file.name}


def _shown(task: SuiteTask, real: Real) -> np.ndarray | None:
    if task.hole:
        return regions.fill(real.video, ~task.given(*real.video.shape[1:3]), "grey")
    if task.known:
        return real.video[list(task.known)]
    if task.name == "stylization":
        return conditioning.make("structure", real.video, ConditioningSpec(), factor=(1, 1, 1), depth=real.depth).video
    return real.video if task.makes != VIDEO else None


def complete(task: SuiteTask, real: Real, video: np.ndarray) -> np.ndarray:
    """The clip with the pixels of the condition in their places."""
    given = task.given(*real.video.shape[1:3])[..., None]
    return np.where(given, real.video, video[:FRAMES])


def claim(folder: Path, about: Mapping[str, object]) -> None:
    """A new folder of samples, or that of the same checkpoint and settings; UserError for another one's."""
    note, text = folder / ABOUT, json.dumps(about, sort_keys=True)
    if note.is_file() and note.read_text(encoding="utf-8") != text:
        raise UserError(f"{folder} holds samples of another checkpoint or of other settings: give another --out")
    media.write_text(note, text)
