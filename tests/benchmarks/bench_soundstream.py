"""Times encoding and decoding of sound on one core, beside the architectures of EnCodec and DAC.

    python tests/benchmarks/bench_soundstream.py --peer_python=PEER/bin/python
    pytest -m benchmark -s tests/benchmarks/bench_soundstream.py     # this project alone

PEER is an environment of its own, so that this project needs no torch:

    python -m venv PEER && PEER/bin/pip install torch transformers

All have random weights, which cost the same time as trained ones, and code the same sound of mono
16 kHz with 12 codebooks of 1,024 at 50 frames a second: 6 kbit/s.  EnCodec is SoundStream's network
with an LSTM between its halves: `EnCodec without LSTM` leaves it out and has 37 channels instead of 32,
which makes its parameters those of poet's network of the paper.  It is the network for 24 kHz, fed with
16 kHz, its weight normalisation folded away; its 3.2 M numbers of codebooks are not counted, as the
others' are.  DAC is its network for 16 kHz.  A case encodes the sound
in turns, then decodes it, after a first call of each.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # pytest does not.
import harness  # noqa: E402

RATE_HZ = 16_000
LEVELS = 12
SECONDS, RUNS = 5.0, 4
# SoundStream's widths: the paper's, and those of gin/models/soundstream_small.gin.
POET_SPECS = {"poet": {}, "poet small": {"encoder_channels": 16, "decoder_channels": 16, "dim": 128}}

# What a case gives: (weights in millions, encode, decode); both block until they are done.
Codec = tuple[float, Callable[[], Any], Callable[[], Any]]


def sound(seconds: float) -> np.ndarray:
    """float32 (S,) in [-1, 1]."""
    samples = round(seconds * RATE_HZ)
    return (0.1 * np.random.default_rng(0).normal(size=samples)).clip(-1, 1).astype(np.float32)


def poet_codec(name: str, wave_S: np.ndarray) -> Codec:
    import jax

    from poet.spec import AudioTokenizerSpec
    from poet.tokenizers.audio.base import AudioTokenizer, random_params

    spec = AudioTokenizerSpec(levels=LEVELS, **POET_SPECS[name])
    params = random_params(spec)
    weights = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6
    tokenizer = AudioTokenizer.from_params(spec, params, batch=1)
    ids = tokenizer.encode(wave_S[None])
    return weights, lambda: tokenizer.encode(wave_S[None]), lambda: tokenizer.decode(ids)


def peer_codec(name: str, wave_S: np.ndarray) -> Codec:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    if name == "DAC":
        config = transformers.DacConfig(downsampling_ratios=[2, 4, 5, 8], n_codebooks=LEVELS, sampling_rate=RATE_HZ)
        model = transformers.DacModel(config).eval()
        keywords: Callable[[Any], dict] = lambda codes: {"audio_codes": codes}
    else:
        model = encodec(lstm=name == "EnCodec")
        keywords = lambda codes: {"audio_codes": codes, "audio_scales": [None]}  # noqa: E731
    values = torch.from_numpy(wave_S)[None, None]

    def encode() -> Any:
        with torch.inference_mode():
            return model.encode(values).audio_codes

    codes = encode()
    if codes.shape[-2:] != (LEVELS, len(wave_S) // 320):
        raise RuntimeError(f"{name} gave codes of shape {tuple(codes.shape)}")

    def decode() -> Any:
        with torch.inference_mode():
            return model.decode(**keywords(codes)).audio_values

    return sum(p.numel() for p in model.parameters()) / 1e6, encode, decode


def encodec(lstm: bool) -> Any:
    import torch
    import transformers

    channels = {} if lstm else {"num_filters": 37}
    config = transformers.EncodecConfig(sampling_rate=RATE_HZ, target_bandwidths=[6.0], **channels)
    model = transformers.EncodecModel(config).eval()
    for module in list(model.modules()):
        if torch.nn.utils.parametrize.is_parametrized(module, "weight"):
            torch.nn.utils.parametrize.remove_parametrizations(module, "weight")
    for part in () if lstm else (model.encoder, model.decoder):
        kept = [layer for layer in part.layers if "LSTM" not in type(layer).__name__]
        part.layers = torch.nn.ModuleList(kept)
    return model


PEERS = ("EnCodec without LSTM", "EnCodec", "DAC")
CASES = dict.fromkeys(POET_SPECS, poet_codec) | dict.fromkeys(PEERS, peer_codec)
STEPS = ("encode", "decode")


def measure(name: str, seconds: float, runs: int) -> dict[str, Any]:
    """{'weights_m': millions, 'encode': times, 'decode': times, 'wall': those of encoding}."""
    weights_m, *steps = CASES[name](name, sound(seconds))
    found = {step: harness.timed(call, runs) for step, call in zip(STEPS, steps)}
    return {"weights_m": weights_m, "wall": found["encode"]["wall"], **found, "versions": harness.installed()}


def compare(peer_python: str, core: int, rounds: int, seconds: float = SECONDS, runs: int = RUNS) -> None:
    """Prints every case; without `peer_python` those of this project alone, and writes nothing."""
    cases = {}
    for name in CASES:
        python = peer_python if name in PEERS else sys.executable
        if python:
            case = (name, str(seconds), str(runs))
            cases[name] = lambda p=python, c=case: harness.child(p, __file__, c, core)
    found = harness.interleave(cases, rounds)
    for step in STEPS:
        for name, results in found.items():
            print_row(step, name, results, seconds)
        if peer_python:
            save(step, found, seconds)
    if not peer_python:
        print("No --peer_python was given, so the peers are left out. Make one with:")
        print(__doc__.split("\n\n")[3])


def save(step: str, found: dict[str, list[dict[str, Any]]], seconds: float) -> None:
    """For the table of README.md."""
    rounds = {name: [{**case[step], "versions": case["versions"]} for case in cases] for name, cases in found.items()}
    weights = ", ".join(f"{name} {cases[0]['weights_m']:.1f} M" for name, cases in found.items())
    times = ", ".join(f"{name} {seconds / median(step, cases, 'cpu'):.0f} x" for name, cases in found.items())
    harness.save(
        "soundstream",
        step,
        rounds,
        unit=f"sound: {step} {seconds:g} s of 16 kHz, 6 kbit/s",
        agreement=f"parameters: {weights}; real time by CPU: {times}",
    )


def median(step: str, cases: list[dict[str, Any]], clock: str) -> float:
    """Seconds over all rounds; `clock` is 'wall' or 'cpu'."""
    return statistics.median(value for case in cases for value in case[step][clock])


def print_row(step: str, name: str, cases: list[dict[str, Any]], seconds: float) -> None:
    wall, cpu = median(step, cases, "wall"), median(step, cases, "cpu")
    print(
        f"{step} {name:20} {cases[0]['weights_m']:5.1f} M weights  {wall:8.4f} s "
        f"{seconds / wall:6.1f} x real time  CPU {cpu:7.4f} s {seconds / cpu:6.1f} x",
        flush=True,
    )


@pytest.mark.benchmark
def test_soundstream_speed() -> None:
    compare("", 0, 1)


if __name__ == "__main__":
    parser = harness.arguments(__doc__, ())
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of sound")
    parser.add_argument("--runs", type=int, default=RUNS, help="of each round, after a first one")
    flags = parser.parse_args()
    if flags.case:
        name, seconds, runs = flags.case.split(",")
        print(json.dumps(measure(name, float(seconds), int(runs))))
    else:
        compare(flags.peer_python, flags.core, flags.rounds, flags.seconds, flags.runs)
