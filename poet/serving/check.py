"""Runs an export in a process of its own and compares it with the checkpoint, token for token."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from poet.sampling.generate import Generator
from poet.specs import ExportSpec
from poet.tasks.registry import get_task

PROMPT = "the player walks forward"
FOREIGN = ("flax", "optax", "orbax", "tensorflow", "seqio", "gin")


def compare(generator: Generator, folder: Path, out: Path) -> dict[str, Any]:
    """Draws the export's task once by each, writes the findings to `out` as JSON, returns them.

    Findings: whether tokens and pixels are equal, how many there are, seconds and bytes, and which of
    the packages that training needs were loaded by the process that ran the export.
    """
    spec = generator.experiment.export
    inputs = _inputs(generator, spec)
    begin = time.perf_counter()
    tokens, video, modules = _run_apart(folder, inputs)
    seconds = time.perf_counter() - begin
    ours = _draw(generator, spec, inputs)
    findings = {
        "task": spec.task,
        "tokens_compared": int(tokens.size),
        "tokens_equal": bool(np.array_equal(tokens, ours)),
        "pixels_equal": bool(np.array_equal(video, generator.detokenize(spec.task, ours))),
        "training_packages_loaded": [name for name in FOREIGN if name in modules],
        "seconds_with_start_and_compilation": round(seconds, 1),
        "size_mib": round(sum(f.stat().st_size for f in folder.iterdir()) / 2**20, 1),
    }
    out.write_text(json.dumps(findings, indent=2) + "\n")
    return findings


def _inputs(generator: Generator, spec: ExportSpec) -> dict[str, np.ndarray]:
    """One request that the task accepts."""
    inputs: dict[str, np.ndarray] = {}
    if get_task(spec.task).text:
        text = generator.encode_text([PROMPT])
        inputs |= {"text_states": text.states, "text_lengths": text.lengths}
    if spec.known_frames:
        clip = generator.experiment.clip
        shape = (1, spec.known_frames, clip.height, clip.width, 3)
        inputs["known_video"] = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return inputs


def _draw(generator: Generator, spec: ExportSpec, inputs: dict[str, np.ndarray]) -> np.ndarray:
    text = known = None
    if "text_states" in inputs:
        text = generator.encode_text([PROMPT])
    if "known_video" in inputs:
        known = generator.encode_frames(inputs["known_video"], spec.known_frames)
    return generator.tokens(spec.task, 1, text=text, known=known, batch=spec.batch)


def _run_apart(folder: Path, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, list]:
    with tempfile.TemporaryDirectory() as scratch:
        given, result = Path(scratch, "in.npz"), Path(scratch, "out.npz")
        np.savez(given, **inputs)
        command = [sys.executable, "-m", "poet.serving.runtime", folder, given, result]
        subprocess.run([str(part) for part in command], check=True)
        with np.load(result) as arrays:
            return arrays["tokens"], arrays["video"], arrays["modules"].tolist()
