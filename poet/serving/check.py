"""Runs an export in a process of its own and compares it with the checkpoint, token for token.

Both sample a whole batch of the export's: in bfloat16 a sample depends on the size of its batch.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from poet import media
from poet.sampling.engine import Inputs
from poet.sampling.generate import Generator, Text
from poet.sampling.requests import latents_of_frames
from poet.spec import ExportSpec
from poet.tasks.registry import get_task

PROMPT = "the player walks forward"
FOREIGN = ("flax", "optax", "orbax", "tensorflow", "seqio", "gin")


def compare(generator: Generator, folder: Path, out: Path) -> dict[str, Any]:
    """Draws the export's task once by each, writes the findings to `out` as JSON, returns them.

    The clip that the export drew, if any, lies beside it as a GIF.

    Findings: whether tokens, pixels and samples of sound are equal (as far as the task generates them),
    how many tokens there are, seconds and bytes, and which of the packages that training needs were
    loaded by the process that ran the export.
    """
    spec = generator.experiment.export
    inputs = _inputs(generator, spec)
    begin = time.perf_counter()
    theirs = _run_apart(folder, inputs)
    modules, tokens = theirs["modules"].tolist(), theirs["tokens"]
    seconds = time.perf_counter() - begin
    ours = _sample(generator, spec, inputs)
    sampled = generator.detokenize(spec.task, ours)
    equal = {
        name: bool(np.array_equal(theirs[key], array))
        for name, key, array in (
            ("tokens_equal", "tokens", ours),
            ("pixels_equal", "video", sampled.video),
            ("samples_equal", "audio", sampled.audio),
        )
        if array is not None
    }
    findings = {
        "task": spec.task,
        "tokens_compared": int(tokens.size),
        **equal,
        "training_packages_loaded": [name for name in FOREIGN if name in modules],
        "seconds_with_start_and_compilation": round(seconds, 1),
        "size_mib": round(sum(f.stat().st_size for f in folder.iterdir()) / 2**20, 1),
    }
    out.write_text(json.dumps(findings, indent=2) + "\n")
    if len(theirs.get("video", ())):
        media.write_gif(out.with_suffix(".gif"), theirs["video"][0], generator.experiment.clip.rate_hz)
    return findings


def _inputs(generator: Generator, spec: ExportSpec) -> dict[str, np.ndarray]:
    """A request that the task accepts, for as many samples as the export's programs take at once."""
    inputs: dict[str, np.ndarray] = {}
    rows = spec.batch
    task, clip = get_task(spec.task), generator.experiment.clip
    rng = np.random.default_rng(0)
    if task.text:
        text = generator.encode_text([PROMPT] * rows)
        inputs |= {"text_states": text.states, "text_lengths": text.lengths}
    if spec.conditioning_frames or {"video", "image"} & set(task.condition):
        name, frames = "video", 1 if "image" in task.condition else clip.frames
        if spec.conditioning_frames:
            name, frames = "known_video", spec.conditioning_frames
        inputs[name] = rng.integers(0, 256, (rows, frames, clip.height, clip.width, 3), np.uint8)
    if "audio" in task.condition or (spec.conditioning_frames and task.has_audio):
        name = "known_audio" if spec.conditioning_frames else "audio"
        inputs[name] = rng.integers(-8000, 8000, (rows, clip.samples), np.int16)
    return inputs or {"count": np.array(rows)}


def _sample(generator: Generator, spec: ExportSpec, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Tokens of the same request in this process; a clip is taken for made, as an export takes it."""
    latents = latents_of_frames(generator.experiment, spec.conditioning_frames)
    engine, text, known = generator.engine(spec.task, latents=latents), None, None
    if "text_states" in inputs:
        text = Text(inputs["text_states"], inputs["text_lengths"])
    if latents:
        opening = {"video": inputs["known_video"], "audio": inputs.get("known_audio")}
        known = engine.conditioning_codes(opening)
    condition = engine.condition_codes(inputs)
    given = Inputs(text=text, condition=condition, known=known)
    return engine.sample(given, spec.batch, generator.experiment.sample, batch=spec.batch)


def _run_apart(folder: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as scratch:
        given, result = Path(scratch, "in.npz"), Path(scratch, "out.npz")
        np.savez(given, **inputs)
        command = [sys.executable, "-m", "poet.serving.runtime", folder, given, result]
        subprocess.run([str(part) for part in command], check=True)
        with np.load(result) as arrays:
            return dict(arrays)
