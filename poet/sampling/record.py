"""`generation.json`: what a generation was asked for and made with, enough to make the same bytes again."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from poet import spec as specs
from poet.media import watermark
from poet.runs import networks
from poet.runs.run import Run
from poet.runs.versions import installed
from poet.sampling import larger
from poet.sampling.jobs import Job
from poet.sampling.requests import Request
from poet.spec import SampleSpec, UserError, limited

_LOG = logging.getLogger(__name__)

NAME = "generation.json"
FORMAT = 1
_PACKAGES = ("jax", "jaxlib", "numpy", "av", "pillow")


def versions() -> dict[str, str]:
    """The environment that determines the bytes of a sample and of its files."""
    import jax

    return {**installed(_PACKAGES), "device": jax.devices()[0].device_kind}


def hashes(paths: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files; folders are not looked into."""
    files = [path for path in dict.fromkeys(paths) if Path(path).expanduser().is_file()]
    return {str(Path(path).expanduser().absolute()): digest(path) for path in files}


def digest(path: str | Path) -> str:
    with open(Path(path).expanduser(), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def made_with(
    sample: SampleSpec, checkpoint: Run, used: networks.Networks, inputs: Mapping[str, str], settings: Sequence[str]
) -> dict[str, Any]:
    """What every record says of how something was sampled.

    Args:
      used: fingerprints of the frozen networks.
      inputs: of `hashes`.
      settings: bindings that the experiment in the checkpoint was overridden with.
    """
    return {
        "settings": list(settings),
        "sample": specs.to_dict(sample),
        "checkpoint": {
            "path": str(checkpoint.checkpoint.path.absolute()),
            "fingerprint": checkpoint.checkpoint.fingerprint,
        },
        "networks": dict(used),
        "inputs": dict(inputs),
        "versions": versions(),
    }


def describe(
    job: Job, checkpoint: Run, used: networks.Networks, inputs: Mapping[str, str], settings: Sequence[str]
) -> dict[str, Any]:
    """What `NAME` says beside the samples; the arguments are those of `made_with`."""
    clip = job.resolved.spec.clip
    asked = job.request.replace(conditioning_frames=job.conditioning_frames).below(Path.cwd())
    return {
        "format": FORMAT,
        "task": job.request.task,
        "request": specs.to_dict(asked),
        "prompts": [{"given": given, "used": used} for given, used in zip(job.prompts, job.texts)],
        "negative_prompt": job.negative,
        "region": job.admitted.chosen.region,
        **made_with(job.sample, checkpoint, used, inputs, settings),
        "upscale": [larger.find(path).checkpoint.fingerprint for path in job.request.upscale],
        "rate_hz": clip.rate_hz,
        "sample_rate_hz": clip.sample_rate_hz,
    }


def prompts(folder: str | Path) -> dict[str, str]:
    """File -> its prompt ('' for none) of samples in a folder; {} of a film, and of a folder without a record.

    Raises:
      UserError: a file `NAME` that is no such record.
    """
    file = Path(folder).expanduser() / NAME
    if not file.is_file():
        return {}
    try:
        samples = json.loads(limited(file).read_text()).get("samples", [])
        return {name: sample["prompt"] or "" for sample in samples for name in sample["files"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is not a record of poet generate: {error!r}; remove it, or give another folder"
        ) from None


class Replay(NamedTuple):
    """The request of a record.

    film: its kind (`poet.sampling.films.studio.KINDS`); '' for samples of a task.
    request: of a film as JSON has it.
    files: name -> SHA-256 of what was written.
    """

    path: Path
    film: str
    request: Request | Any
    settings: tuple[str, ...]
    sample: Mapping[str, Any]
    checkpoint: str
    made_with: Mapping[str, Any]
    files: Mapping[str, str]


def read(path: str) -> Replay:
    """A record; UserError for a file that is none, or of another version."""
    file = Path(path).expanduser()
    found = specs.read_object(file / NAME if file.is_dir() else file)
    if found.get("format") != FORMAT:
        raise UserError(
            f"--replay={path} has format {found.get('format')}: this version replays {NAME} of format {FORMAT}"
        )
    try:
        return Replay(
            file,
            found.get("film", ""),
            found["request"] if "film" in found else specs.from_dict(Request, found["request"]),
            tuple(found["settings"]),
            {"watermark": False, **found["sample"]},  # There was none before there was a setting.
            found["checkpoint"]["path"],
            found,
            {name: value for part in found.get("samples", [found]) for name, value in part["files"].items()},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--replay={path} is damaged: {error!r}") from None


def check(replay: Replay, checkpoint: Run) -> None:
    """Raises UserError for other weights or inputs than the record's; other versions are logged."""
    made_with = replay.made_with
    theirs, ours = made_with["checkpoint"]["fingerprint"], checkpoint.checkpoint.fingerprint
    if theirs != ours:
        raise UserError(
            f"{replay.path} was made with weights {theirs}, those at {checkpoint.checkpoint.path} are {ours}: give "
            "the former as --checkpoint"
        )
    paths = made_with["request"].get("upscale", [])
    now = [larger.find(path).checkpoint.fingerprint for path in paths]
    if now != made_with.get("upscale", []):
        raise UserError(f"{replay.path} was upscaled by {made_with['upscale']}, {paths} are now {now}")
    for path, value in made_with["inputs"].items():
        if not Path(path).is_file() or digest(path) != value:
            now = "another file now" if Path(path).exists() else "gone"
            raise UserError(f"{replay.path} was made from {path}, which is {now}")
    other = {k: (v, versions().get(k)) for k, v in made_with["versions"].items() if versions().get(k) != v}
    if other:
        _LOG.warning("made with other versions, so the bytes may differ: %s", other)


def differing(replay: Replay, files: Iterable[Path], folder: Path) -> list[str]:
    """Names, in their folder, of the files that are not what the record says, or missing on either side."""
    found = {file.relative_to(folder).as_posix(): digest(file) for file in files if file.name != NAME}
    return sorted(name for name in found.keys() | replay.files.keys() if found.get(name) != replay.files.get(name))


def comment(job: Job, details: Mapping[str, Any], row: int) -> str:
    """The comment in every file of a sample, one line."""
    weights = details["checkpoint"]["fingerprint"]
    return (
        f"{watermark.GENERATED}: poet {details['versions']['poet']}, "
        f"task {job.request.task}, weights {weights}, seed {job.sample.seed}, row {row}"
    )
