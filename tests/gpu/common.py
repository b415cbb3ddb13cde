"""What the scripts of this folder share: runs made without gin, what the device can do, results.

They import jax, flax, optax, orbax and this project alone: a machine with an accelerator needs no
TensorFlow.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TESTS = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "benchmarks"), str(TESTS / "models")]
import harness

from poet.planning import sizes
from poet.runs import assets
from poet.spec import Experiment, from_dict
from poet.tasks.layout import Layout

SHIPPED = ("300m", "1b", "8b")
# With whole tables, moments and a batch of 4, four of its 32 layers need 60 GiB (compiled for an H100).
SLICE, SLICE_LAYERS = "8b_slice", 4
# Shares of the device's memory that XLA may take; jax's own default is three quarters.
MEMORY_FRACTION = "0.92"
MATMUL_SIZE = {"cpu": 256, "gpu": 8192, "tpu": 8192}
COPIED_MIB = {"cpu": 64, "gpu": 4096, "tpu": 2048}

# Fields of specs by gin name: {"MODEL": {"layers": 24}}.
Bindings = dict[str, dict[str, Any]]

# What 'tiny' has instead of the paper's formats and networks: the same code in seconds on a CPU.
TOY: Bindings = {
    "CLIP": {"frames": 5, "height": 32, "width": 32},
    "VOCABULARY": {"visual_bits": 6, "audio_codes": 16, "text_pieces": 64},
    "TEXT": {"length": 8, "width": 16},
    "VIDEO_TOKENIZER": {
        "bits": 6,
        "base_channels": 8,
        "norm_groups": 4,
        "blocks": 1,
        "stem": (4, 4, 4),
        "multipliers": (1, 1),
        "temporal_downsample": (False,),
    },
    "MODEL": {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "mlp_width": 64},
    "AUDIO_TOKENIZER": {"codes": 16, "levels": 4, "dim": 16, "encoder_channels": 4, "decoder_channels": 4},
}


# --------------------------------------------------------------------------------------- the run


def arguments(doc: str) -> argparse.ArgumentParser:
    """The flags that all scripts take."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    named = ", ".join((*SHIPPED, SLICE, "tiny"))
    parser.add_argument("--size", default="300m", help=f"{named}, or a number such as 600m")
    parser.add_argument("--batch", type=int, default=8, help="sequences (of the longest group)")
    parser.add_argument("--steps", type=int, default=20, help="runs on the clock")
    parser.add_argument("--out", default="", help="folder of the JSON result; empty prints alone")
    parser.add_argument("--name", default="", help="of the JSON file, where it is not the script's")
    parser.add_argument("--xla_flags", default="", help="what XLA_FLAGS gets beside what it holds")
    return parser


def start(flags: argparse.Namespace) -> jax.Device:
    """Sets up XLA, which reads these when it starts, and gives the device that is measured."""
    os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), flags.xla_flags)).strip()
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", MEMORY_FRACTION)
    return jax.devices()[0]


def bindings(path: str) -> Bindings:
    """The assignments of a shipped gin file and of those that it includes; later ones win."""
    found: Bindings = {}
    lines = assets.find(path, "gin file").read_text().splitlines()
    for line in lines:
        if line.startswith("include "):
            _merge(found, bindings(ast.literal_eval(line.removeprefix("include "))))
    return _merge(found, _assigned("\n".join(s for s in lines if not s.startswith("include "))))


def _assigned(text: str) -> Bindings:
    """`NAME.field = literal`, as gin files and `sizes.bindings` write it."""
    found: Bindings = {}
    for node in ast.parse(text).body:
        target = node.targets[0]
        found.setdefault(target.value.id, {})[target.attr] = ast.literal_eval(node.value)
    return found


def _merge(into: Bindings, other: Bindings) -> Bindings:
    for name, fields in other.items():
        into.setdefault(name, {}).update(fields)
    return into


def pretraining(size: str, batch: int, **model: Any) -> Experiment:
    """VideoPoet's pretraining at a size, or at toy sizes for 'tiny'; `model`: fields of MODEL.

    `batch` counts sequences of the longest group; shorter ones take as many more as have no more tokens.
    """
    shipped = size.removesuffix("_slice")
    found = bindings(f"gin/experiments/pretrain{f'_{shipped}' if shipped in SHIPPED else ''}.gin")
    if size == "tiny":
        _merge(_merge(found, bindings("gin/models/tiny.gin")), TOY)
    elif size == SLICE:
        _merge(found, {"MODEL": {"layers": SLICE_LAYERS}})
    elif shipped not in SHIPPED:
        _merge(found, _assigned("\n".join(sizes.bindings(sizes.parse(size)))))
    own = {"MODEL": model, "DATA": {"batch": batch, "batch_multiple": 1}, "MESH": {"tensor": 1}}
    return from_dict(Experiment, {name.lower(): fields for name, fields in _merge(found, own).items()})


def draw_batch(shapes: Mapping[str, jax.ShapeDtypeStruct], layout: Layout, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of uniform legal ids and, where the layout has text, of drawn states of drawn length."""
    rng = np.random.default_rng(seed)
    batch = {name: np.zeros(x.shape, x.dtype) for name, x in shapes.items()}
    rows = len(batch["tokens"])
    batch["tokens"] = np.concatenate(
        [rng.integers(s.ids.low, s.ids.high, (rows, s.length)) for s in layout.segments], axis=1
    ).astype(np.int32)
    if layout.text_span:
        states = shapes["text_states"]
        batch["text_states"] = rng.standard_normal(states.shape, np.float32).astype(states.dtype)
        batch["text_length"] = rng.integers(1, states.shape[1] + 1, rows).astype(np.int32)
    return batch


# ------------------------------------------------------------------------------------ the device


def matmul_rate(device: jax.Device) -> float:
    """bfloat16 FLOP/s of square matrix products, the best of five: what no step can beat."""
    size, products = MATMUL_SIZE[device.platform], 16
    rng = np.random.default_rng(0)
    # The scale keeps the values where they are, product after product.
    matrix = jnp.asarray(rng.standard_normal((size, size), np.float32) / size**0.5, jnp.bfloat16)
    run = jax.jit(lambda x, w: jax.lax.fori_loop(0, products, lambda _, x: x @ w, x))
    times = harness.timed(lambda: jax.block_until_ready(run(matrix, matrix)), runs=5)
    return 2 * size**3 * products / min(times["wall"])


def memory_rate(device: jax.Device) -> float:
    """Bytes a second that a sum over a large array reads, the best of five."""
    array = jnp.ones(COPIED_MIB[device.platform] * 2**20 // 4, jnp.float32)
    # What is added cannot be known before, so that no sum is reused.
    run = jax.jit(lambda x, y: jnp.sum(x + y))
    times = harness.timed(lambda: jax.block_until_ready(run(array, np.float32(1))), runs=5)
    return array.nbytes / min(times["wall"])


def peak_bytes(device: jax.Device) -> int | None:
    """Bytes of the device's memory that were in use at most; None where it does not tell."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


# --------------------------------------------------------------------------------------- results


def spread(seconds: Sequence[float]) -> dict[str, float]:
    return {"median_s": statistics.median(seconds), "least_s": min(seconds), "greatest_s": max(seconds)}


def report(flags: argparse.Namespace, device: jax.Device, result: dict[str, Any]) -> dict[str, Any]:
    """Adds what was run where, prints it, and writes OUT/NAME.json."""
    name = flags.name or pathlib.Path(sys.argv[0]).stem
    result = {
        "name": name,
        "device": {"kind": device.device_kind, "platform": device.platform, "count": jax.device_count()},
        "flags": {k: v for k, v in vars(flags).items() if k not in ("out", "name")},
        "versions": harness.installed(),
        **result,
    }
    print(json.dumps(result, indent=1))
    if flags.out:
        folder = pathlib.Path(flags.out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return result
