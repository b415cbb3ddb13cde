"""The samples of a preset: jobs of `poet generate --requests`, so that a run that was stopped goes on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from poet import media
from poet.evaluation.benchmarks import clips
from poet.evaluation.benchmarks.data import Case
from poet.evaluation.benchmarks.presets import Form, Preset
from poet.runs.run import Run
from poet.sampling import batch_file
from poet.sampling.requests import Request
from poet.spec import ClipSpec, UserError
from poet.tasks.registry import TASKS
from poet.tasks.resolved import Resolved

# Samples of a job: one that was begun is sampled again from its start.
JOB = 64
JOBS, CONDITIONS, CLIPS = "jobs.jsonl", "conditions", "samples"


def turns(cases: Sequence[Case], count: int) -> Iterator[tuple[str, Case]]:
    """Names and cases of so many samples, the cases in turn."""
    for number in range(count):
        turn, place = divmod(number, len(cases))
        case = cases[place]
        yield (case.name if count <= len(cases) else f"{case.name}_{turn}"), case


def planned(preset: Preset, cases: int) -> tuple[Preset, int]:
    """The preset for so many cases, and the number of samples: with other cases than its own, all are one set."""
    if not preset.cases:
        return preset, cases
    if cases == preset.cases:
        return preset, preset.count
    return dataclasses.replace(preset, sets=1), cases * max(preset.samples // preset.cases, 1)


def is_sound(preset: Preset) -> bool:
    """Whether the preset scores sound alone."""
    return all(measure.medium == "sound" for measure in preset.measures) and bool(preset.measures)


def sample(
    preset: Preset,
    cases: Sequence[Case],
    count: int,
    out: Path,
    checkpoint: Run,
    resolved: Resolved,
    settings: Sequence[str],
    batch: int,
) -> dict[str, Path]:
    """Samples what is not sampled yet; name -> file of every sample.

    Raises:
      UserError: the checkpoint does not do the task, a condition cannot be read, or a job failed.
    """
    named = list(turns(cases, count))
    paths = _conditions(preset, cases, resolved.spec.clip, out / CONDITIONS)
    depths = _depths(preset, cases, resolved.spec.clip, out / CONDITIONS)
    jobs = [named[start : start + JOB] for start in range(0, count, JOB)]
    seed = resolved.spec.sample.seed
    lines = [_job(preset, place, job, paths, depths, seed) for place, job in enumerate(jobs)]
    media.write_text(out / JOBS, "\n".join(map(json.dumps, lines)) + "\n")
    base = Request(task=preset.task, batch=batch)
    requests = batch_file.read(str(out / JOBS), str(out / CLIPS), base, resolved, checkpoint, settings)
    if refused := [line.error for line in requests.lines if line.job is None]:
        raise UserError(f"{preset.name} cannot be sampled from this checkpoint: {refused[0]}")
    if failed := requests.run(overwrite=True):
        raise UserError(f"{failed} of {len(lines)} jobs failed, see {requests.results}; run again to try them again")
    suffix = ".wav" if is_sound(preset) else ".mp4" if preset.tool else ".apng"
    return {
        name: _file(out, place, row, len(job), suffix)
        for place, job in enumerate(jobs)
        for row, (name, _) in enumerate(job)
    }


def _file(out: Path, job: int, row: int, rows: int, suffix: str) -> Path:
    return out / CLIPS / f"job_{job:05d}" / f"{row:0{max(len(str(rows - 1)), 3)}d}{suffix}"


def _job(
    preset: Preset,
    place: int,
    job: Sequence[tuple[str, Case]],
    paths: dict[str, str],
    depths: dict[str, str],
    seed: int,
) -> dict:
    """A line of requests; the seed differs from job to job, as rows of one seed share their noise."""
    found: dict = {"name": f"job_{place:05d}", "seed": seed + place}
    found["format"] = ["wav"] if is_sound(preset) else ["mp4"] if preset.tool else ["apng"]
    found |= {"prompt": [case.prompt for _, case in job]} if TASKS[preset.task].text else {}
    found |= {"clip": [paths[case.name] for _, case in job]} if preset.clips else {}
    found |= {"depth": [depths[case.name] for _, case in job]} if all(case.name in depths for _, case in job) else {}
    found |= {"region": preset.region} if preset.region else {}
    return found | ({"conditioning_frames": preset.conditioning_frames} if preset.conditioning_frames else {})


def _conditions(preset: Preset, cases: Sequence[Case], clip: ClipSpec, folder: Path) -> dict[str, str]:
    """Name of a case -> the file that conditions it: cut as the protocol asks, every frame of it at the run's rate.

    Sound is made for the file as it is.
    """
    if not preset.clips or is_sound(preset):
        return {case.name: case.clip for case in cases}
    return {case.name: _cut(preset, case.clip, clip, folder / f"{case.name}.apng") for case in cases}


def _depths(preset: Preset, cases: Sequence[Case], clip: ClipSpec, folder: Path) -> dict[str, str]:
    """Name of a case -> its depth, cut as its clip is, so that both show the same moments."""
    with_depth = (case for case in cases if case.depth)
    return {case.name: _cut(preset, case.depth, clip, folder / f"{case.name}_depth.apng") for case in with_depth}


def _cut(preset: Preset, source: str, clip: ClipSpec, file: Path) -> str:
    """The path of the cut file, which is written where it is not there yet."""
    count = preset.conditioning_frames or clip.frames
    form = Form(frames=max(count, preset.scored.frames), height=clip.height, width=clip.width)
    if not file.is_file():
        media.write_apng(file, clips.frames(Path(source), form, preset.cut)[:count], clip.rate_hz)
    return str(file.absolute())


# ------------------------------------------------------------------ films, for what is longer than a clip

FILMS = "films"


def sample_films(
    preset: Preset, cases: Sequence[Case], out: Path, checkpoint: Run, resolved: Resolved, settings: Sequence[str]
) -> dict[str, Path]:
    """Goes on from the clip of each case, clip after clip; name -> file of what follows it, `scored.frames` long.

    A film that was begun goes on where it was; each has a seed of its own.
    """
    from poet.sampling.films.long import LongFilm
    from poet.sampling.films.studio import Studio

    studio = Studio(checkpoint, resolved, settings, {"has_audio": False})
    rate_hz, found = resolved.spec.clip.rate_hz, {}
    seconds = preset.sampled.frames / preset.sampled.rate_hz
    for place, case in enumerate(cases):
        wanted = LongFilm(seconds=seconds, opening=case.clip, seed=resolved.spec.sample.seed + place)
        files = studio.make("long", dataclasses.asdict(wanted), out / FILMS / case.name)
        film = next(file for file in files if file.suffix == ".mp4")
        opening = round(preset.conditioning_frames / preset.sampled.rate_hz * rate_hz)
        count = round(preset.scored.frames / preset.scored.rate_hz * rate_hz)
        spec = dataclasses.replace(resolved.spec.clip, frames=opening + count)
        found[case.name] = out / CLIPS / f"{case.name}.mp4"
        found[case.name].parent.mkdir(parents=True, exist_ok=True)
        media.write_mp4(found[case.name], media.read_clip(film, spec).video[opening:], rate_hz)
    return found
