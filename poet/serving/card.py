"""The card of an export: README.md with the metadata that the Hugging Face Hub reads, and its licence."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poet.runs import assets
from poet.runs.run import Run
from poet.serving.format import LICENSE, PROGRAMS
from poet.spec import UserError, limited
from poet.streams.low_resolution import SCALE
from poet.tasks.registry import Task, get_task

# The checkpoint's own card, beside that of the export.
CHECKPOINT_CARD = "CHECKPOINT.md"
# First words of licences -> their names on the Hub.
_KNOWN = {"Apache License": "apache-2.0", "MIT License": "mit"}


@dataclasses.dataclass(frozen=True)
class Release:
    """What goes with a model besides itself: files with its licence and its checkpoint's card; None is none."""

    name: str = "a checkpoint"
    license: Path | None = None
    card: Path | None = None

    @classmethod
    def of(cls, run: Run, license_file: str = "") -> Release:
        """Of a checkpoint: the files in its folder; shipped weights have the licence of this package.

        Raises UserError for a licence that is no file.
        """
        folder = Path(run.folder)
        if license_file and not Path(license_file).expanduser().is_file():
            raise UserError(f"--license={license_file} is no file")
        shipped = folder.resolve().is_relative_to(assets.root().resolve())
        licenses = [folder / LICENSE, *([assets.root() / LICENSE] if shipped else [])]
        found = Path(license_file).expanduser() if license_file else next((f for f in licenses if f.is_file()), None)
        own = folder / "README.md"
        return cls(folder.name, found, own if own.is_file() else None)

    @classmethod
    def of_export(cls, folder: Path) -> Release:
        """Of a folder that was exported before."""
        files = (folder / LICENSE, folder / CHECKPOINT_CARD)
        return cls(folder.name, *(file if file.is_file() else None for file in files))

    def write(self, folder: Path) -> None:
        """Copies its files into a folder, unless they are there."""
        for source, name in ((self.license, LICENSE), (self.card, CHECKPOINT_CARD)):
            if source is not None and not (folder / name).exists():
                shutil.copyfile(source, folder / name)

    @property
    def license_id(self) -> str:
        """Its name on the Hub."""
        if self.license is None:
            return "unknown"
        words = limited(self.license).read_text(encoding="utf-8", errors="replace")
        return next((name for first, name in _KNOWN.items() if first in words[:400]), "other")


def text(record: Mapping[str, Any], release: Release, folder: Path) -> str:
    """The card of a folder that holds everything else."""
    return "\n".join([*_metadata(release), *_use(record), *_tasks(record), *_files(record, release, folder)]) + "\n"


def _metadata(release: Release) -> list[str]:
    return [
        "---",
        f"license: {release.license_id}",
        "library_name: videopoet-jax",
        "pipeline_tag: text-to-video",
        "tags: [jax, stablehlo, video-generation, audio-generation]",
        "---",
    ]


def _use(record: Mapping[str, Any]) -> list[str]:
    clip = record["experiment"]["clip"]
    larger = [f"Super-resolution makes clips {SCALE ** len(record['upscalers'])} times as high and wide."]
    return [
        "",
        f"# {_title(record)}, as programs",
        "",
        f"Clips have {clip['frames']} frames of {clip['height']} x {clip['width']} pixels at {clip['rate_hz']:g} Hz. "
        f"It runs on {', '.join(record['platforms'])}, and needs the packages jax, numpy, safetensors and tokenizers.",
        *(larger if record["upscalers"] else []),
        "",
        "```python",
        "from poet.serving.runtime import Runtime",
        "",
        'runtime = Runtime.load("PATH OF THIS FOLDER")',
        *_calls(record),
        "```",
        "",
        "Media are generated: do not pass them off as recordings.",
    ]  # fmt: skip


def _title(record: Mapping[str, Any]) -> str:
    return f"{len(record['tasks'])} tasks over video, images, sound and text" if record["tasks"] else "Super-resolution"


def _calls(record: Mapping[str, Any]) -> list[str]:
    """Lines of Python that use the folder."""
    calls, tasks = [], record["tasks"]
    if first := next((name for name in ("text_to_video", *tasks) if name in tasks), ""):
        prompt = '"the player walks forward", ' if get_task(first).text else ""
        calls.append(f"made = runtime.{first}({prompt}count=4, seed=7)  # made.video, made.audio, made.texts")
    if record["upscalers"]:
        given = "made" if tasks else "clips"
        calls.append(f"larger = runtime.upscale({given}, seed=7)  # uint8 [clips, frames, height, width, 3]")
    return calls


def _tasks(record: Mapping[str, Any]) -> list[str]:
    rows = [_row(get_task(name), entries) for name, entries in record["tasks"].items()]
    if not rows:
        return []
    return ["", "| task | takes | makes | latent frames that may open the output |", "|---|---|---|---|", *rows]


def _row(task: Task, entries: Any) -> str:
    takes = [*(["text"] if task.text else []), *(stream.title for stream in task.conditions)]
    makes = [stream.title for stream in task.predicted]
    # Films give more.
    latents = ", ".join(str(n) for n in (entry["latents"] for entry in entries) if n <= task.conditioning_latents[1])
    return f"| `{task.name}` | {', '.join(takes) or '–'} | {', '.join(makes)} | {latents} |"


def _files(record: Mapping[str, Any], release: Release, folder: Path) -> list[str]:
    weights, programs = (_mib(folder.glob(pattern)) for pattern in ("*.safetensors", f"{PROGRAMS}/*"))
    model, kept = record["experiment"]["model"], record["experiment"]["sample"]["weights"]
    own = [f"How it was trained: [{CHECKPOINT_CARD}]({CHECKPOINT_CARD})."] if release.card else []
    terms = [f"Licence: [{LICENSE}]({LICENSE})."] if release.license else ["No licence was given with the checkpoint."]
    return [
        "",
        f"Weights: {weights:.1f} MiB, arithmetic in {model['dtype']}{f', blocks stored as {kept}' if kept else ''}. "
        f"{len(record['programs'])} StableHLO programs: {programs:.1f} MiB, written by JAX {record['jax']}. "
        "`spec.json` describes them, `MANIFEST` has the SHA-256 of every file.",
        "",
        " ".join([*own, *terms]),
    ]


def _mib(files: Any) -> float:
    return sum(file.stat().st_size for file in files) / 2**20
