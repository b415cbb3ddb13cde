"""Times turning clips of 17 x 64 x 64 into 1,280 codes beside magvit2-pytorch, on one core.

    PEER_PYTHONPATH=SHIM python tests/benchmarks/bench_magvit.py --peer_python=PEER/bin/python

PEER is made as for bench_train_step.py, and then (without dependencies, since torchvision does not
load beside torch's CPU build):

    PEER/bin/pip install vector-quantize-pytorch==1.32.0 beartype kornia kornia_rs einops jaxtyping \\
        wadler-lindig
    PEER/bin/pip install --no-deps magvit2-pytorch==0.5.1 gateloop-transformer \\
        taylor-series-linear-attention rotary-embedding-torch

SHIM is needed only where these stand in a folder of their own instead.  All networks have random
weights and about the same number of parameters: `poet` is the paper's network at three levels, two of
which halve time; `poet shipped` that of gin/models/magvit_v2_64.gin, whose stem takes patches;
`magvit2-pytorch` one residual unit, then four times (halve space or time, two units), as its
read-me composes them, without attention and with its default first convolution of 7 x 7 x 7.
"""

from __future__ import annotations

import functools
import importlib.machinery
import json
import sys
import time
import types
from typing import Any

import harness
import numpy as np

SHAPE, BITS, RUNS = (1, 17, 64, 64, 3), 10, 4
SPECS: dict[str, dict[str, Any]] = {
    "poet": {
        "base_channels": 32,
        "multipliers": (1, 2, 2),
        "blocks": 1,
        "temporal_downsample": (True, True),
        "norm_groups": 8,
    },
    "poet shipped": {
        "base_channels": 128,
        "multipliers": (1,),
        "blocks": 1,
        "temporal_downsample": (),
        "stem": (4, 4, 4),
        "stem_kernel": 1,
        "norm_groups": 16,
    },
}
PEER, PEER_DIM = "magvit2-pytorch", 40


def clip() -> np.ndarray:
    """float32 in [0, 1]."""
    return np.random.default_rng(0).random(SHAPE, np.float32)


def poet_case(who: str) -> dict[str, Any]:
    import jax

    from poet.spec import VideoTokenizerSpec
    from poet.tokenizers.video import lfq, magvit

    spec = VideoTokenizerSpec(**SPECS[who], bits=BITS)
    params = jax.jit(functools.partial(magvit.init, spec))(jax.random.key(0))
    pixels = jax.numpy.asarray(clip())
    begin = time.perf_counter()
    encode = jax.jit(lambda p, x: lfq.quantize(magvit.encode(spec, p, x))[1]).lower(params, pixels).compile()
    compile_s = time.perf_counter() - begin
    check(encode(params, pixels).shape)
    times = harness.timed(lambda: jax.block_until_ready(encode(params, pixels)), RUNS)
    weights = sum(x.size for x in jax.tree.leaves(params)) / 1e6
    return {**times, "compile_s": compile_s, "weights_m": weights, "versions": harness.installed()}


def peer_case() -> dict[str, Any]:
    import torch

    stub_torchvision()
    from magvit2_pytorch import VideoTokenizer

    torch.set_num_threads(1)
    wide = 2 * PEER_DIM
    layers: list[Any] = ["residual"]
    for kind in ("compress_space", "compress_space", "compress_time", "compress_time"):
        layers += [(kind, wide), ("consecutive_residual", 2)]
    network = VideoTokenizer(
        image_size=SHAPE[2],
        init_dim=PEER_DIM,
        codebook_size=2**BITS,
        use_gan=False,
        perceptual_loss_weight=0.0,
        layers=tuple(layers),
    ).eval()
    pixels = torch.from_numpy(clip()).permute(0, 4, 1, 2, 3).contiguous()

    def encode() -> Any:
        with torch.inference_mode():
            return network.tokenize(pixels)

    check(encode().shape)
    weights = sum(p.numel() for p in network.parameters()) / 1e6
    return {**harness.timed(encode, RUNS), "compile_s": 0.0, "weights_m": weights, "versions": harness.installed()}


def check(shape: tuple[int, ...]) -> None:
    if tuple(shape) != (1, 5, 16, 16):
        raise RuntimeError(f"codes of shape {tuple(shape)}")


def stub_torchvision() -> None:
    """Names that magvit2-pytorch imports and, without losses and its trainer, does not use."""

    def put(name: str, **names: Any) -> None:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(names)
        sys.modules[name] = module

    put("torchvision")
    put("torchvision.models", VGG16_Weights=type("VGG16_Weights", (), {"DEFAULT": None}))
    put("magvit2_pytorch.trainer", VideoTokenizerTrainer=None)


def compare(flags: Any) -> None:
    def case(python: str, who: str) -> Any:
        return functools.partial(harness.child, python, __file__, (who,), flags.core)

    cases = {who: case(sys.executable, who) for who in SPECS}
    if flags.peer_python:
        cases[PEER] = case(flags.peer_python, PEER)
    found = harness.interleave(cases, flags.rounds)
    weights = ", ".join(f"{who} {results[0]['weights_m']:.2f} M" for who, results in found.items())
    harness.save(
        "magvit_encode",
        "17x64x64",
        found,
        unit="clip of 17 x 64 x 64 to 5 x 16 x 16 codes",
        agreement=f"parameters: {weights}",
    )


if __name__ == "__main__":
    flags = harness.arguments(__doc__, ()).parse_args()
    if not flags.case:
        compare(flags)
    else:
        print(json.dumps(peer_case() if flags.case == PEER else poet_case(flags.case)))
