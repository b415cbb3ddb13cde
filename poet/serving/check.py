"""`poet export --check`: an export in a process of its own against the checkpoint, task by task and token for token."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poet import media
from poet.runs.arrays import read_npz
from poet.sampling.base import TaskSampler
from poet.sampling.engine import Sampled
from poet.sampling.superres import Upscaler, chained
from poet.serving.runtime import UPSCALE
from poet.streams.low_resolution import SCALE
from poet.tasks.registry import get_task
from poet.tasks.resolved import Resolved

PROMPT = "the player walks forward"
FOREIGN = ("flax", "optax", "orbax", "tensorflow", "seqio", "gin")
# Samples of each task, so that rows differ.
COUNT = 2


def compare(
    sampler: TaskSampler | None,
    folder: Path,
    tasks: Sequence[str],
    out: Path | None = None,
    upscalers: Sequence[Upscaler] = (),
) -> list[dict[str, Any]]:
    """Asks an export and a model in this process for the same, task by task; writes the rows to `out` as JSON.

    The first clip that the export makes is written beside it as a GIF.

    Args:
      sampler: of `tasks`; None where there are none.
      upscalers: super-resolution networks in this process, those of the export.

    Rows: the task; how many tokens there are, and how many are equal; whether its media are; seconds in this process,
    compilation included; packages of training that the other process loaded.
    """
    requests = {task: request(sampler.resolved, task) for task in tasks}
    if upscalers:
        requests[UPSCALE] = larger_request(upscalers)
    found = list(_apart(folder, requests))
    ask = functools.partial(_asked, sampler, upscalers)
    rows = [_row(ask, *one) for one in found]
    if out is not None:
        out.write_text(json.dumps({"tasks": rows}, indent=2) + "\n")
        clips = [theirs["video"] for _, theirs in found if len(theirs.get("video", ()))]
        if clips:
            rate_hz = (sampler or upscalers[0]).resolved.spec.clip.rate_hz
            media.write_gif(out.with_suffix(".gif"), clips[0][0], rate_hz)
    return rows


def request(resolved: Resolved, task: str) -> dict[str, Any]:
    """Arguments of `TaskSampler.ask` that a task accepts; media are noise."""
    declared, clip, rng = get_task(task), resolved.spec.clip, np.random.default_rng(0)
    arguments: dict[str, Any] = {"task": task, "count": COUNT, "seed": 1}
    if declared.text:
        arguments["prompts"] = [PROMPT]
    opens = declared.predicted if declared.conditioning_latents[0] else ()
    taken = {stream.medium for stream in (*declared.conditions, *opens)}
    if "video" in taken:
        shape = (1, clip.frames, clip.height, clip.width, 3)
        arguments["video"] = rng.integers(0, 256, shape, np.uint8)
    if "audio" in taken:
        arguments["audio"] = rng.integers(-8000, 8000, (1, clip.samples), np.int16)
    derived, spec = declared.derived, resolved.spec.conditioning
    if derived and derived.regions(spec):
        arguments["region"] = derived.regions(spec)[0]
    if derived and derived.needs_depth(spec):
        arguments["depths"] = rng.random((1, clip.frames, 8, 8), np.float32)
    return arguments


def _apart(folder: Path, requests: dict[str, dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Each request, and what the export makes of it in a process that runs it alone."""
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch, f"{task}.{end}.npz") for task in requests for end in ("request", "result")]
        for file, arguments in zip(files[::2], requests.values()):
            arrays = {name: value for name, value in arguments.items() if isinstance(value, np.ndarray)}
            plain = {name: value for name, value in arguments.items() if name not in arrays}
            np.savez(file, arguments=json.dumps(plain), **arrays)
        command = [sys.executable, "-m", "poet.serving.runtime", folder, *files]
        subprocess.run([str(part) for part in command], check=True)
        for arguments, file in zip(requests.values(), files[1::2]):
            yield arguments, read_npz(file)


def larger_request(upscalers: Sequence[Upscaler]) -> dict[str, Any]:
    """Arguments of `Runtime.upscale` that networks accept; the clips are noise.

    Their codes are decoded and left as they are, so that media show whether the codes are equal.
    """
    clip = upscalers[0].experiment.clip
    shape = (COUNT, clip.frames, clip.height // SCALE, clip.width // SCALE, 3)
    video = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return {"task": UPSCALE, "video": video, "seed": 1, "consistency": 0.0, "steadiness": 0.0}


def _asked(sampler: TaskSampler | None, upscalers: Sequence[Upscaler], task: str, **arguments: Any) -> Sampled:
    """What this process makes of a request."""
    if task != UPSCALE:
        return sampler.ask(task, **arguments)
    settings = {name: arguments.pop(name) for name in ("consistency", "steadiness")}
    by = [one.changed(**settings) for one in upscalers]
    return Sampled(video=chained(by, arguments.pop("video"), **arguments))


def equal(row: Mapping[str, Any]) -> bool:
    """Whether all tokens of a row are; larger clips have none, so that their pixels count."""
    return row["media_equal"] if row["task"] == UPSCALE else row["tokens_equal"] == row["tokens"]


def _row(ask: Callable[..., Sampled], arguments: dict[str, Any], theirs: dict[str, np.ndarray]) -> dict[str, Any]:
    begin = time.perf_counter()
    ours = ask(**arguments)
    modules = theirs["modules"].tolist()
    return {
        "task": arguments["task"],
        "tokens": int(ours.tokens.size),
        "tokens_equal": int((ours.tokens == theirs["tokens"]).sum()),
        "media_equal": all(np.array_equal(theirs[name], made) for name, made in ours.items()),
        "seconds": round(time.perf_counter() - begin, 1),
        "training_packages_loaded": [name for name in FOREIGN if name in modules],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [f"{'task':32}{'tokens':>8}{'equal':>8}  media"]
    for row in rows:
        same = "equal" if row["media_equal"] else "differ"
        lines.append(f"{row['task']:32}{row['tokens']:8}{row['tokens_equal']:8}  {same}")
    return "\n".join(lines)
