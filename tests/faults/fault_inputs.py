"""Hostile files: mutated copies of whole ones, and what each reader may answer: a value or a `UserError`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from poet.spec import Experiment, UserError, read_json, to_dict

# What stands where a number, a name or a length was: extremes of types, paths that climb, wrong kinds.
SPICES = (
    b"\x00",
    b"\xff" * 8,
    b"-1",
    b"0",
    b"1e999",
    b"NaN",
    b"9" * 40,
    b"null",
    b"[]",
    b"{}",
    b'"',
    b"\n",
    b"../../../etc/passwd",
    b"/dev/zero",
    b"\xed\xa0\x80",
    b"[" * 4000,
    b"%macro",
    b"@call()",
    b"import os",
)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A copy with a few changes: bits, cuts, doubled parts, and `SPICES`."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        to = min(at + rng.choice((1, 4, 8, 64)), len(out))
        kind = rng.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at:to]
        elif kind == 2:
            out[at:to] = rng.choice(SPICES)
        elif kind == 3:
            out[at:at] = out[at:to]
        elif kind == 4:
            out[at:to] = rng.randbytes(to - at)
        elif rng.random() < 0.2:
            del out[at:]
    return bytes(out)


@dataclasses.dataclass(frozen=True)
class Reader:
    """Something that reads files of others.

    Attributes:
      seeds: makes whole inputs in an empty folder.
      read: reads one input; gets it, and a folder to write it into.
    """

    seeds: Callable[[Path], list[bytes]]
    read: Callable[[bytes, Path], Any]


READERS: dict[str, Reader] = {}


def reader(name: str, seeds: Callable[[Path], list[bytes]]) -> Callable[[Callable[[bytes, Path], Any]], Any]:
    def add(read: Callable[[bytes, Path], Any]) -> Any:
        READERS[name] = Reader(seeds, read)
        return read

    return add


def written(data: bytes, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def _shipped_gin(_: Path) -> list[bytes]:
    from poet.runs import assets

    return [path.read_bytes() for path in sorted((assets.root() / "gin/experiments").glob("*.gin"))[:6]]


@reader("gin files", _shipped_gin)
def gin_file(data: bytes, folder: Path) -> None:
    from poet.spec import config

    config.load([str(written(data, folder / "x.gin"))])


@reader("specs in JSON", lambda _: [json.dumps(to_dict(Experiment()), indent=1).encode()])
def spec_json(data: bytes, folder: Path) -> None:
    read_json(Experiment, written(data, folder / "spec.json"))


def _manifest(folder: Path) -> list[bytes]:
    from poet.runs import manifest

    written(b"weights", folder / "model.safetensors")
    written(b"{}", folder / "sub/spec.json")
    manifest.write(folder, {"format": 1, "kind": "weights", "step": 3, "networks": {"video": "ab"}})
    return [(folder / manifest.NAME).read_bytes().split(b"\n")[0]]


@reader("manifests with a hash that fits", _manifest)
def manifest_body(data: bytes, folder: Path) -> None:
    """As whoever writes one on purpose makes it: the second line is the hash of the first."""
    from poet.runs import manifest
    from poet.runs.run import Checkpoint

    body = data.replace(b"\n", b" ")
    written(body + b"\n" + hashlib.sha256(body).hexdigest().encode() + b"\n", folder / manifest.NAME)
    written(b"weights", folder / "model.safetensors")
    written(b"{}", folder / "sub/spec.json")
    checkpoint = Checkpoint(folder)
    for ask in (
        lambda: checkpoint.released,
        lambda: checkpoint.exported,
        checkpoint.verify,
        lambda: checkpoint.networks,
    ):
        _answered(ask)


def _answered(ask: Callable[[], Any]) -> None:
    try:
        ask()
    except UserError:
        pass


SHARD = "store-train.tfrecord-00000-of-00001"


def _store(_: Path) -> list[bytes]:
    import token_stores

    from poet.store.manifest import Manifest, ShardInfo, SplitInfo, to_json

    shard = ShardInfo(file=SHARD, clips=2, size_bytes=4, sha256="ab" * 32)
    split = SplitInfo(clips=2, shards=(shard,), skipped=(), truncated_captions=0, statistics={}, silent=0)
    plan = token_stores.make_plan({"train": 2}, False, (), "ab")
    return [to_json(Manifest(source="clips", plan=plan, splits={"train": split})).encode()]


@reader("manifests of token stores", _store)
def store_manifest(data: bytes, folder: Path) -> None:
    from poet.store import reader as stores

    written(data, folder / "manifest.json")
    written(bytes(4), folder / SHARD)
    stores.load_manifest(str(folder))


def _safetensors(folder: Path) -> list[bytes]:
    from poet.checkpoints import weights

    weights.write_arrays(folder / "w.safetensors", {"a": np.ones((2, 3), np.float32), "b.c": np.zeros(4, np.int32)})
    return [(folder / "w.safetensors").read_bytes()]


@reader("safetensors", _safetensors)
def safetensors(data: bytes, folder: Path) -> None:
    from poet.checkpoints import weights

    weights.read_arrays(written(data, folder / "w.safetensors"))


CAPTIONS = b"".join(
    json.dumps({"file": f"{n}.mp4", "caption": f"a {n} \u00e9", "split": "train", "kind": "speech"}).encode() + b"\n"
    for n in range(4)
)


@reader("captions", lambda _: [CAPTIONS])
def captions(data: bytes, folder: Path) -> None:
    from poet.store import captions as lines

    for line in lines.parse("captions.jsonl", data, lambda name: 10):
        inside = ".." not in line.file.split("/") and not line.file.startswith("/")
        assert inside or line.broken, line.file  # A broken one gives no file: it is named in reports.


def _tar(_: Path) -> list[bytes]:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in (("a/1.mp4", b"film" * 40), ("a/1.txt", b"a caption"), ("a/1.json", b'{"caption": "x"}')):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return [stream.getvalue()]


@reader("tars", _tar)
def tar(data: bytes, folder: Path) -> None:
    from poet.store import webdataset

    written(data, folder / "train-0.tar")
    found = webdataset.open_tars(str(folder), "train", (".mp4",))
    for index in range(min(len(found), 3)):
        found.stated(index)


@reader("records", lambda _: [_framed()])
def record_file(data: bytes, folder: Path) -> None:
    from poet.data import records

    file = written(data, folder / "x.tfrecord")
    found = records.Records(records.Files((str(file),), (3,), ((len(data), 0),)))
    for index in range(3):
        _answered(functools.partial(found.__getitem__, index))


def _framed() -> bytes:
    from poet.store import framing

    return b"".join(framing.frame(bytes([number]) * 20) for number in range(3))


def _film(folder: Path) -> list[bytes]:
    from poet import media

    film = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    media.write_mp4(folder / "x.mp4", film, 8.0)
    media.write_wav(folder / "x.wav", np.zeros(800, np.float32), 16_000)
    return [(folder / name).read_bytes() for name in ("x.mp4", "x.wav")]


@reader("media", _film)
def film(data: bytes, folder: Path) -> None:
    from poet import media
    from poet.spec import ClipSpec

    file = written(data, folder / "x.mp4")
    _answered(functools.partial(media.read_clip, file, ClipSpec(frames=5, height=16, width=16)))
    _answered(functools.partial(media.probe, file))


BOARD = b"""seed: 7
sound: true
scenes:
  - prompt: a red ball
    camera: dolly in
    seconds: 3
  - prompt: a blue ball
    transition: continue
"""


@reader("storyboards", lambda _: [BOARD])
def storyboard(data: bytes, folder: Path) -> None:
    from poet.sampling.films import storyboard as boards

    boards.read(written(data, folder / "x.yaml"))


@reader("logs of runs", lambda _: [b'{"step": 1, "kind": "train", "loss": 2.5}\n{"step": 2, "kind": "probe"}\n'])
def metrics(data: bytes, folder: Path) -> None:
    from poet.runs import lines

    for line in lines.read(written(data, folder / "metrics.jsonl")):
        assert type(line["step"]) is int


@functools.cache
def _layouts() -> list[Any]:
    import token_stores

    from poet.tasks.resolved import Resolved

    experiment = token_stores.make_experiment("", mixture_rates=token_stores.RATES)
    return list(Resolved(experiment).layouts.values())


@reader("rows of ids", lambda _: [bytes(4 * 64)])
def layout_ids(data: bytes, folder: Path) -> None:
    """Any ids are parsed into codes that assemble to them again, or refused."""
    rng = np.random.default_rng(list(hashlib.sha256(data).digest()[:8]))
    layout = _layouts()[int(rng.integers(len(_layouts())))]
    low, high = [np.concatenate(x) for x in zip(*[_bounds(span) for span in layout.spans])]
    ids = rng.integers(low, high).astype(np.int32)
    if rng.random() < 0.5:
        ids[rng.integers(len(ids))] = rng.integers(-(2**31), 2**31)
    assert np.array_equal(layout.assemble(layout.parse(ids)), ids)


def _bounds(span: Any) -> tuple[np.ndarray, np.ndarray]:
    segment = span.segment
    return np.full(segment.length, segment.ids.low), np.full(segment.length, segment.ids.high)


def fuzz(name: str, folder: Path, rng: random.Random, times: int) -> list[str]:
    """What a reader did wrong with so many mutated inputs, each with the seed's hash that repeats it."""
    declared, wrong = READERS[name], []
    (folder / "seeds").mkdir(parents=True, exist_ok=True)
    seeds = declared.seeds(folder / "seeds")
    for number in range(times):
        data = mutated(rng.choice(seeds), rng)
        try:
            declared.read(data, folder / "input")
        except UserError:
            pass
        except Exception as error:
            wrong.append(f"input {number}: {type(error).__name__}: {str(error)[:160]} ({data[:60]!r})")
            if len(wrong) >= 5:
                break
    return wrong
