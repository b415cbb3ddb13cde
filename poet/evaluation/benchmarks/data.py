"""The folder that a user prepares for a preset, and the prompts of VBench.

DATA/cases.jsonl        a line for each case: {"name": "0001", "prompt": "...", "clip": "clips/0001.mp4"}
DATA/clips/...          the files that cases name
DATA/real/...           real clips, any files of video
DATA/text_vectors.npy   float32 [cases, D], in the order of the cases, for a cosine of texts and frames
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from poet import media
from poet.evaluation.benchmarks.presets import COSINE, Preset
from poet.evaluation.features import base
from poet.media.suffixes import ANIMATION_SUFFIXES
from poet.runs import arrays
from poet.spec import UserError, limited

CASES, REAL, VECTORS = "cases.jsonl", "real", "text_vectors.npy"
VBENCH = "vbench_prompts"
VBENCH_SAMPLES = 5
_VBENCH_INSTALL = "pip install --no-deps vbench==0.1.5"
SUFFIXES = media.VIDEO_SUFFIXES + ANIMATION_SUFFIXES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What a sample is made from; paths are those of files."""

    name: str
    prompt: str = ""
    clip: str = ""
    depth: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Cases, real clips, and vectors of the texts float32 [cases, D] (None where no measure needs them)."""

    cases: Sequence[Case]
    real: Sequence[Path]
    text_vectors: np.ndarray | None = None


def layout(preset: Preset) -> str:
    """What to fetch and where to put it, line by line."""
    fields = {"name": "0001"}
    fields |= {"prompt": "..."} if preset.prompts else {}
    fields |= {"clip": "clips/0001.mp4"} if preset.clips else {}
    fields |= {"depth": "depth/0001.mp4"} if preset.takes_depth else {}
    lines = [f"DATA/{CASES}: {preset.cases:,} lines {json.dumps(fields)}"]
    lines += [f"  prompts: {preset.prompts}"] if preset.prompts else []
    lines += [f"  clips: {preset.clips}"] if preset.clips else []
    lines += [f"DATA/{REAL}/: {preset.reals:,} files: {preset.real}"] if preset.real else []
    if any(measure.kind == COSINE for measure in preset.measures):
        lines += [
            f"DATA/{VECTORS}: float32 [{preset.cases:,}, D], the text tower's vector of each line, in their order"
        ]
    return "\n".join(lines)


def read(preset: Preset, path: str, limit: int = 0) -> Data:
    """The data of a preset.

    Args:
      limit: so many cases and real clips at most; 0 is all.

    Raises:
      UserError: something is missing or malformed; it says what to fetch and in which layout.
    """
    if preset.name == VBENCH:
        return Data(cases=vbench()[: limit or None], real=())
    folder = Path(path).expanduser()
    if not path or not (folder / CASES).is_file():
        raise UserError(f"--data={path} has no {CASES}; {preset.name} needs\n{layout(preset)}")
    cases = _cases(preset, folder)
    vectors = _vectors(folder, len(cases)) if any(m.kind == COSINE for m in preset.measures) else None
    return Data(
        cases=cases[: limit or None],
        real=_real(preset, folder)[: limit or None] if preset.real else (),
        text_vectors=vectors,
    )


def _cases(preset: Preset, folder: Path) -> list[Case]:
    known = {field.name for field in dataclasses.fields(Case)}
    needed = {"name"} | ({"prompt"} if preset.prompts else set()) | ({"clip"} if preset.clips else set())
    found: dict[str, Case] = {}
    for number, line in enumerate(limited(folder / CASES).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{folder / CASES}, line {number}"
        try:
            values = json.loads(line)
            case = Case(**values)
        except (ValueError, TypeError):
            raise UserError(
                f"{where}: a JSON object with {', '.join(sorted(known))} is needed, got {line[:80]}"
            ) from None
        if lacking := [name for name in sorted(needed) if not getattr(case, name)]:
            raise UserError(f"{where} has no {', '.join(lacking)}\n{layout(preset)}")
        if case.name in found or "/" in case.name:
            raise UserError(f"{where}: the name {case.name!r} was taken before, or holds a slash")
        found[case.name] = _located(where, case, folder)
    if not found:
        raise UserError(f"{folder / CASES} holds no case\n{layout(preset)}")
    return list(found.values())


def _located(where: str, case: Case, folder: Path) -> Case:
    for file in filter(None, (case.clip, case.depth)):
        if not (folder / file).is_file():
            raise UserError(f"{where}: there is no file {folder / file}")
    paths = {name: str((folder / value).absolute()) for name in ("clip", "depth") if (value := getattr(case, name))}
    return dataclasses.replace(case, **paths)


def _real(preset: Preset, folder: Path) -> list[Path]:
    found = sorted(path for path in (folder / REAL).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f"{folder / REAL} holds no films; {preset.name} needs\n{layout(preset)}")
    return found


def _vectors(folder: Path, cases: int) -> np.ndarray:
    try:
        found = arrays.read_npy(folder / VECTORS)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / VECTORS} cannot be read ({error}): float32 [{cases}, D], a row a case") from None
    if found.ndim != 2 or len(found) != cases or not np.isfinite(found).all():
        raise UserError(f"{folder / VECTORS} has shape {found.shape}: [{cases}, D] is needed, a row a case, finite")
    return found.astype(np.float32)


def vbench() -> list[Case]:
    """The prompts of the installed package, each five times, called as its files are; UserError without the package."""
    file = base.find_file("vbench", "VBench_full_info.json", _VBENCH_INSTALL)
    prompts = dict.fromkeys(entry["prompt_en"] for entry in json.loads(file.read_text(encoding="utf-8")))
    return [Case(name=f"{text}-{i}", prompt=text) for text in prompts for i in range(VBENCH_SAMPLES)]
