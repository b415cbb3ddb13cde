"""Writes what commands leave behind, for `tests/fixtures/written_before`: `python tests/golden/write_files.py OUT`.

    video/, audio/   frozen tokenizers
    store/           a token store with sound and a condition
    lm/              a work dir with a checkpoint
    weights/         the same parameters, released
    export/          programs of image_to_video
    run.gin          the run
    expected.json    what they gave when they were written

Later versions must read all of it; `--read` says what this one makes of it, and trains the run a step further.
When a format changes, write another such folder beside it, and keep this one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import record

TASK = "image_to_video"
# Small files: they are kept with the source.
SMALL = {
    "TEXT.width": 8,
    "TEXT.pieces": "",
    "VOCABULARY.text_pieces": 8,
    "MODEL.width": 16,
    "MODEL.mlp_width": 32,
    "MODEL.heads": 2,
    "MODEL.kv_heads": 1,
    "TRAIN.steps": 3,
}
TRAIN = ("--gin_file=run.gin", "--workdir=lm", f"--gin.DATA.mixture_rates={dict.fromkeys([TASK], 1.0)}")
EXPORT = (f"--tasks={TASK}", "--gin.EXPORT.text_encoder=False", "--gin.EXPORT.platforms=('cpu',)")


def write() -> None:
    """Into the current folder."""
    import world

    world.make_run(Path("."), world.FEW, SMALL)
    world.run("tokenize", "--gin_file=run.gin")
    world.run("train", *TRAIN)
    world.run("export", "--checkpoint=lm", "--out=weights", "--weights_only")
    world.run("export", "--checkpoint=lm", "--out=export", *EXPORT)
    for folder in ("clips", "lm/tensorboard"):
        shutil.rmtree(folder)
    Path("lm/lease.json").unlink()


def read() -> dict[str, Any]:
    """What the files of the current folder give."""
    import world

    world.run("store", "verify", "store")
    loaded = {name: world.Generator.from_checkpoint(world.Run.open(name), task=TASK) for name in ("lm", "weights")}
    return {
        "key": record.key(),
        "store": world.store_hashes(Path("store")),
        "params": {name: world.sha_of_tree(g.params) for name, g in loaded.items()},
        "networks": loaded["weights"].networks.made_with,
        "tokens": world.exported_tokens(Path("export")).tolist(),
    }


def resume() -> list[int]:
    """Trains a step more than the run had; the steps in its log."""
    import world

    world.run("train", *TRAIN, f"--gin.TRAIN.steps={SMALL['TRAIN.steps'] + 1}")
    lines = map(json.loads, Path("lm/metrics.jsonl").open())
    return [line["step"] for line in lines if line["kind"] == "train"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a new one (its checkpoint keeps the path); with --read a copy, to change")
    parser.add_argument("--read", action="store_true", help="read it into found.json instead")
    args = parser.parse_args()
    record.prepare()
    Path(args.folder).mkdir(parents=True, exist_ok=args.read)
    os.chdir(args.folder)
    if not args.read:
        write()
    found = read() | ({"steps": resume()} if args.read else {})
    Path("found.json" if args.read else "expected.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
