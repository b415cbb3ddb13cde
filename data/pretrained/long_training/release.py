"""Lays out what is released, WORK/release/data/pretrained, as it lies in a checkout; stops where it is too big.

place    the tokenizers and the pieces that the language model names, before it is exported
finish   logs and scores beside the weights, and the size of it all
"""

from __future__ import annotations

import argparse
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp

from poet.tokenizers import frozen
from poet.tokenizers.video.base import VideoTokenizer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from long_training.stages import LM, PIECES, SOUND, SOUND_PARTS, TOKENIZER  # noqa: E402

MOST_BYTES = 64 << 20


def place(work: pathlib.Path, shipped: pathlib.Path, released: pathlib.Path) -> None:
    """Copies the networks; the shipped audio tokenizer unless one was trained here, and half the bytes of a decoder."""
    last = work / f"sound_{len(SOUND_PARTS) - 1}" / "tokenizer"
    sound = last if (work / "stages" / "sound.json").exists() else shipped / SOUND
    for name, source in ((TOKENIZER, work / "decoder" / "tokenizer"), (SOUND, sound), (PIECES, shipped / PIECES)):
        shutil.rmtree(released / name, ignore_errors=True)
        shutil.copytree(source, released / name)
    halve_decoder(released / TOKENIZER)


def halve_decoder(folder: pathlib.Path) -> None:
    """Stores a decoder that was trained after its encoder in bfloat16: no code depends on it."""
    tokenizer = VideoTokenizer.load(folder)
    if tokenizer.spec.codes_of:
        decoder = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tokenizer.params["decoder"])
        frozen.save(folder, tokenizer.spec, {**tokenizer.params, "decoder": decoder}, dtype=None)


def finish(work: pathlib.Path, released: pathlib.Path) -> None:
    """Copies logs and scores.

    Raises ValueError: the folders hold more than `MOST_BYTES`.
    """
    copies = {
        work / "tokenizer" / "metrics.jsonl": released / TOKENIZER / "log_scratch.jsonl",
        work / "round" / "metrics.jsonl": released / TOKENIZER / "log_round.jsonl",
        work / "decoder" / "metrics.jsonl": released / TOKENIZER / "log_decoder.jsonl",
        work / "scores" / TOKENIZER / "tokenizer_scores.json": released / TOKENIZER / "scores.json",
        work / "lm" / "metrics.jsonl": released / LM / "log.jsonl",
        work / "adapt" / "metrics.jsonl": released / LM / "log_adapt.jsonl",
        work / "scores.json": released / LM / "scores.json",
    }
    for source, target in copies.items():
        shutil.copyfile(source, target)
    size_bytes = check_size(released)
    print(f"{released}: {size_bytes / 2**20:.1f} MiB; its folders belong into data/pretrained")


def check_size(released: pathlib.Path) -> int:
    """Bytes of all files; raises ValueError, which names the folders, where there are too many."""
    sizes = {
        folder.name: sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        for folder in sorted(released.iterdir())
        if folder.is_dir()
    }
    total = sum(sizes.values())
    if total > MOST_BYTES:
        named = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in sizes.items())
        raise ValueError(f"released weights take {total / 2**20:.1f} MiB, more than {MOST_BYTES >> 20}: {named}")
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("place", "finish"))
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--shipped", type=pathlib.Path, required=True)
    options = parser.parse_args()
    released = options.work / "release" / "data" / "pretrained"
    try:
        if options.step == "place":
            place(options.work, options.shipped, released)
        else:
            finish(options.work, released)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
