"""Times the residual vector quantizer beside ResidualVQ of vector-quantize-pytorch, on one core.

    python tests/benchmarks/bench_rvq.py --peer_python=PEER/bin/python

PEER is an environment of its own, so that this project needs no torch:

    python -m venv PEER && PEER/bin/pip install torch vector-quantize-pytorch

The paper's sizes: 12 codebooks of 1,024 vectors of 256 numbers, both sides with the same ones and with
the same latents, 500 frames (10 s of sound) to encode and 8 x 100 frames to learn from.  `encode` gives
codes; `learn` is a training step of the quantizer: quantize, the gradient of the commitment to the
latents, moving averages of the codebooks, no code replaced.  Printed: how many codes are equal (nearly
equal distances may fall either way), and how far apart the new codebooks are.
"""

from __future__ import annotations

import functools
import json
import pathlib
import sys
import tempfile
from typing import Any

import harness
import numpy as np

LEVELS, CODES, DIM, DECAY = 12, 1024, 256, 0.99
SHAPES = {"encode": (1, 500), "learn": (8, 100)}
RUNS = {"encode": 20, "learn": 10}
UNITS = {
    "encode": "RVQ: 500 frames to 12 levels of 1,024 codes",
    "learn": "RVQ: training step of 8 x 100 frames, 12 levels of 1,024 codes",
}
PEER = "vector-quantize-pytorch"


def inputs(case: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(latents (B, F, D), vectors (L, N, D) that shrink as residuals do, usage (L, N)), float32."""
    rng = np.random.default_rng(0)
    scale = 0.8 ** np.arange(LEVELS)[:, None, None]
    vectors = rng.normal(size=(LEVELS, CODES, DIM)) * scale
    usage = rng.uniform(1, 6, (LEVELS, CODES))
    z = rng.normal(size=(*SHAPES[case], DIM)) * 2
    return z.astype(np.float32), vectors.astype(np.float32), usage.astype(np.float32)


def poet_case(case: str, folder: str) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    from poet.spec import AudioTrainSpec
    from poet.tokenizers.audio import rvq

    z, vectors, usage = map(jnp.asarray, inputs(case))
    train = AudioTrainSpec(codebook_decay=DECAY, dead_fraction=0.0)

    def learn(z: jax.Array, books: dict, key: jax.Array) -> tuple:
        def commitment(z: jax.Array) -> tuple:
            quantized = rvq.quantize(z, books["vectors"])
            return quantized.commitment, quantized

        (_, quantized), gradient = jax.value_and_grad(commitment, has_aux=True)(z)
        return quantized.ids, gradient, rvq.update(books, quantized, key, train)

    books = {"vectors": vectors, "usage": usage, "sums": vectors * usage[..., None]}
    if case == "encode":
        step = functools.partial(jax.jit(rvq.encode), z, vectors)
    else:
        step = functools.partial(jax.jit(learn), z, books, jax.random.key(0))
    first = step()
    ids, after = (first, vectors) if case == "encode" else (first[0], first[2]["vectors"])
    save_results(folder, "poet", np.asarray(ids), np.asarray(after))
    return {**harness.timed(lambda: jax.block_until_ready(step()), RUNS[case]), "versions": harness.installed()}


def peer_case(case: str, folder: str) -> dict[str, Any]:
    import torch
    from vector_quantize_pytorch import ResidualVQ

    torch.set_num_threads(1)
    z, vectors, usage = map(torch.from_numpy, inputs(case))
    layer = ResidualVQ(dim=DIM, num_quantizers=LEVELS, codebook_size=CODES, decay=DECAY, threshold_ema_dead_code=0)

    def put() -> None:
        for level, part in enumerate(layer.layers):
            book = part._codebook
            book.embed.data.copy_(vectors[level][None])
            book.cluster_size.data.copy_(usage[level][None])
            book.embed_avg.data.copy_((vectors[level] * usage[level][:, None])[None])

    def encode() -> Any:
        with torch.inference_mode():
            return layer(z)[1]

    def learn() -> Any:
        leaf = z.clone().requires_grad_()
        _, ids, commitment = layer(leaf)
        commitment.mean().backward()
        return ids

    put()
    layer.train(case == "learn")
    step = learn if case == "learn" else encode
    ids = step()
    after = torch.stack([part._codebook.embed[0] for part in layer.layers])
    save_results(folder, PEER, ids.movedim(-1, 1).numpy(), after.numpy())
    put()
    return {**harness.timed(step, RUNS[case]), "versions": harness.installed()}


def save_results(folder: str, who: str, ids_BxLxF: np.ndarray, vectors: np.ndarray) -> None:
    np.savez(pathlib.Path(folder) / f"{who}.npz", ids=ids_BxLxF, vectors=vectors)


def agreement(case: str, folder: str) -> str:
    """Share of codes that are equal, and how far apart the codebooks are that a step made."""
    ours, theirs = (np.load(pathlib.Path(folder) / f"{who}.npz") for who in ("poet", PEER))
    equal = np.mean(ours["ids"] == theirs["ids"])
    text = f"equal codes: {100 * equal:.2f} %"
    apart = np.abs(ours["vectors"] - theirs["vectors"]).max()
    return text if case == "encode" else f"{text}; codebooks afterwards differ by {apart:.1e} at most"


def compare(flags: Any) -> None:
    pythons = {"poet": sys.executable} | ({PEER: flags.peer_python} if flags.peer_python else {})
    for case in flags.cases:
        with tempfile.TemporaryDirectory() as folder:
            cases = {
                who: functools.partial(harness.child, python, __file__, (who, case, folder), flags.core)
                for who, python in pythons.items()
            }
            found = harness.interleave(cases, flags.rounds)
            checked = agreement(case, folder) if flags.peer_python else ""
        print(checked)
        harness.save("rvq", case, found, unit=UNITS[case], agreement=checked)


if __name__ == "__main__":
    flags = harness.arguments(__doc__, UNITS).parse_args()
    if not flags.case:
        compare(flags)
    else:
        who, case, folder = flags.case.split(",")
        print(json.dumps((poet_case if who == "poet" else peer_case)(case, folder)))
