"""Runs an export in a process of its own and compares it with the checkpoint, token for token.

Both sample a whole batch of the export's by the same programs: in bfloat16 those of another size round otherwise.
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
from poet.sampling.decode import BatchPrograms, Decoder
from poet.sampling.engine import Engine, Inputs
from poet.sampling.generate import Generator
from poet.sampling.plans import Text
from poet.sampling.requests import opening_latents
from poet.serving.format import SPEC
from poet.serving.runtime import KNOWN
from poet.spec import ExportSpec
from poet.tasks.registry import get_task

PROMPT = "the player walks forward"
FOREIGN = ("flax", "optax", "orbax", "tensorflow", "seqio", "gin")


def compare(generator: Generator, folder: Path, out: Path) -> dict[str, Any]:
    """Samples the export's task by the export and by the model, writes the comparison to `out` as JSON, and returns it.

    The clip of the export, if any, is written beside it as a GIF.

    Findings: whether tokens, pixels and samples of sound are equal (as far as the task generates them),
    how many tokens there are, seconds and bytes, and which packages of training were
    loaded by the process that ran the export.
    """
    resolved, spec = generator.resolved, generator.resolved.spec.export
    inputs = _inputs(generator, spec, json.loads((folder / SPEC).read_text()))
    begin = time.perf_counter()
    theirs = _run_apart(folder, inputs)
    modules = theirs.pop("modules").tolist()
    seconds = time.perf_counter() - begin
    tokens = _sample(generator, spec, inputs)
    ours = {**generator.detokenize(spec.task, tokens), "tokens": tokens}
    equal = {f"{name}_equal": bool(np.array_equal(theirs[name], array)) for name, array in ours.items()}
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
        media.write_gif(out.with_suffix(".gif"), theirs["video"][0], resolved.spec.clip.rate_hz)
    return findings


def _inputs(generator: Generator, spec: ExportSpec, record: dict[str, Any]) -> dict[str, np.ndarray]:
    """A request that the task accepts, for as many samples as the export's programs take at once: media are noise."""
    inputs: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(0)
    if get_task(spec.task).text:
        text = generator.encode_text([PROMPT] * spec.batch)
        inputs |= {"text_states": text.states, "text_lengths": text.lengths}
    for name, signature in record["programs"].items():
        if name.startswith("tokenize"):
            (array,) = signature["inputs"]
            whole = np.iinfo(array["dtype"])
            medium = f"{KNOWN if spec.conditioning_frames else ''}{array['name']}"
            inputs[medium] = rng.integers(whole.min, whole.max, array["shape"], whole.dtype, endpoint=True)
    return inputs or {"count": np.array(spec.batch)}


def _sample(generator: Generator, spec: ExportSpec, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Tokens of the same request in this process; a clip is taken for made, as an export takes it."""
    latents = opening_latents(generator.resolved, get_task(spec.task), spec.conditioning_frames)
    engine, text, known = generator.engine(spec.task, latents=latents), None, None
    decoder, width = Decoder(generator.model, engine.plan), engine.programs.text_width
    engine = Engine(BatchPrograms(decoder, generator.params, width, spec.batch), engine.codecs, spec.task)
    if "text_states" in inputs:
        text = Text(inputs["text_states"], inputs["text_lengths"])
    if latents:
        known = engine.conditioning_codes({name.removeprefix(KNOWN): array for name, array in inputs.items()})
    condition = engine.condition_codes(inputs)
    given = Inputs(text=text, condition=condition, known=known)
    return engine.sample(given, spec.batch, generator.resolved.spec.sample, batch=spec.batch)


def _run_apart(folder: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as scratch:
        given, result = Path(scratch, "in.npz"), Path(scratch, "out.npz")
        np.savez(given, **inputs)
        command = [sys.executable, "-m", "poet.serving.runtime", folder, given, result]
        subprocess.run([str(part) for part in command], check=True)
        with np.load(result) as arrays:
            return dict(arrays)
