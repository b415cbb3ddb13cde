"""How fast the mixture of all tasks is read, beside what the 300M model consumes on one chip.

    python tests/benchmarks/bench_loader.py [--out=STORE] [--clips=512] [--batch=256] [--batches=20]

Writes a store of the paper's sizes with random codes and T5-XL states (once), then reads every group of
`gin/experiments/pretrain_300m.gin`: clips per second, size and time of an iterator's state and of its
restoration, and the growth of this process's memory.

The arithmetic: a chip of `--chip_tflops` at `--mfu` trains `tflops * mfu / (TFLOP per clip of the group)`
clips a second.  The mixture takes its groups by their shares of the steps, so its row compares the
mean seconds of a step: those of the chip over those of the loader, which should be five or more.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from poet import conditioning
from poet.data.loader import batches
from poet.models.transformer import build_model
from poet.spec import Experiment, config
from poet.store import reader
from poet.store.manifest import MANIFEST_FILE, Manifest, Plan, ShardInfo, SplitInfo, StreamInfo, TextInfo, to_json
from poet.tasks.resolved import Resolved
from poet.training import flops

SHARDS = 16


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="")
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--chip_tflops", type=float, default=989.0, help="of an H100, bf16")
    parser.add_argument("--mfu", type=float, default=0.5)
    args = parser.parse_args()
    experiment = config.load(["gin/experiments/pretrain_300m.gin"])
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(args.out or scratch) / "store"
        if not (store / MANIFEST_FILE).exists():
            write(store, experiment, args.clips)
        data = experiment.data.replace(store=str(store), batch=args.batch, equal_tokens=False)
        run = experiment.replace(data=data)
        rows = [measure(run, group, args) for group in Resolved(run).groups]
        rows += [mixture(phase, shares, rows) for phase, shares in Resolved(run).phases]
    print(json.dumps({"rows": rows, "state": rows[0]["state"]}, indent=1) if args.out else table(rows))


def write(store: Path, experiment: Experiment, clips: int) -> None:
    """A store as `poet tokenize` makes it, of random codes."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    plan, rng = make_plan(experiment, clips), np.random.default_rng(0)
    store.mkdir(parents=True)
    template = tfds.core.ShardedFileTemplate(
        data_dir=store, dataset_name=reader.DATASET_NAME, split="train", filetype_suffix="tfrecord"
    )
    lengths = [clips // SHARDS] * SHARDS
    files = []
    for index, length in enumerate(lengths):
        file = Path(template.sharded_filepath(shard_index=index, num_shards=SHARDS))
        with tf.io.TFRecordWriter(str(file)) as out:
            for clip in range(length):
                out.write(reader.serialize(example(plan, rng, f"{index}/{clip}")))
        files.append(ShardInfo(file=file.name, clips=length, size_bytes=file.stat().st_size, sha256=""))
    info = tfds.core.SplitInfo(name="train", shard_lengths=lengths, num_bytes=0, filename_template=template)
    tfds.folder_dataset.write_metadata(
        data_dir=store, features=reader.features(plan), split_infos=[info], check_data=False
    )
    split = SplitInfo(clips=sum(lengths), shards=tuple(files), skipped=(), truncated_captions=0, statistics={})
    manifest = Manifest(source="random", plan=plan, splits={"train": split})
    (store / MANIFEST_FILE).write_text(to_json(manifest))


def make_plan(experiment: Experiment, clips: int) -> Plan:
    fmt = Resolved(experiment).format
    video = StreamInfo(grid=fmt.video, bits=18, fingerprint="random")
    streams = {
        "video": video,
        "audio": StreamInfo(grid=(4, fmt.audio_frames, 1), bits=10, fingerprint="random"),
        "pieces": StreamInfo(grid=(fmt.pieces_length, 1, 1), bits=15, fingerprint="random"),
        **{name: video for name in conditioning.CONDITIONS},
    }
    text = experiment.text
    return Plan(
        items={"train": clips},
        sources={"train": ""},
        clip=experiment.clip,
        streams=streams,
        text=TextInfo(name=text.encoder, fingerprint="", length=text.length, width=text.width),
        clips_per_shard=clips // SHARDS,
        batch=32,
        seed=0,
    )


def example(plan: Plan, rng: np.random.Generator, key: str) -> dict:
    codes = {
        name: rng.integers(0, 2 ** min(stream.bits, 14), stream.length).astype(np.int32)
        for name, stream in plan.streams.items()
    }
    length = int(rng.integers(8, plan.text.length + 1))
    states = rng.standard_normal((length, plan.text.width), np.float32).astype(np.float16)
    return {"key": key, "caption": key, **codes, "sounding": 1, "text_states": states, "text_length": length}


def measure(experiment: Experiment, group: str, args: argparse.Namespace) -> dict:
    layout, rates = Resolved(experiment).groups[group]
    alone = experiment.replace(data=experiment.data.replace(mixture_rates=rates))
    (iterator,) = batches(Resolved(alone)).values()
    next(iterator)
    before, seconds = rss_mib(), []
    for _ in range(args.batches):
        begin = time.perf_counter()
        next(iterator)
        seconds.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    state = iterator.get_state()
    saved_s = time.perf_counter() - begin
    (fresh,) = batches(Resolved(alone)).values()
    begin = time.perf_counter()
    fresh.set_state(state)
    next(fresh)
    per_clip = flops.train_flops(build_model(Resolved(experiment)), layout) / 1e12
    return {
        "group": group,
        "clips_per_s": args.batch * args.batches / sum(seconds),
        "chip_clips_per_s": args.chip_tflops * args.mfu / per_clip,
        "state": {"bytes": len(state), "save_s": saved_s, "restore_s": time.perf_counter() - begin},
        "grown_mib": rss_mib() - before,
    }


def mixture(phase: int, shares: dict, rows: list[dict]) -> dict:
    """The steps of one phase of the mixture, up to step `phase`."""
    total = float(sum(shares.values()))

    def rate(key: str) -> float:
        return 1 / sum(float(shares.get(row["group"], 0)) / total / row[key] for row in rows)

    worst = max(rows, key=lambda row: row["state"]["restore_s"])
    return {
        "group": f"mixture, steps < {phase}",
        "clips_per_s": rate("clips_per_s"),
        "chip_clips_per_s": rate("chip_clips_per_s"),
        "state": {**worst["state"], "bytes": sum(row["state"]["bytes"] for row in rows)},
        "grown_mib": max(row["grown_mib"] for row in rows),
    }


def rss_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(rows: list[dict]) -> str:
    lines = ["group                    clips/s   chip clips/s   ratio   state bytes   restore s   grown MiB"]
    for row in rows:
        state, ratio = row["state"], row["clips_per_s"] / row["chip_clips_per_s"]
        lines.append(
            f"{row['group']:22s} {row['clips_per_s']:9.0f} {row['chip_clips_per_s']:14.0f} {ratio:7.1f} "
            f"{state['bytes']:13d} {state['restore_s']:11.2f} {row['grown_mib']:11.0f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
