"""Files that are small, or short on a disk, and ask for more memory than there is: each is refused, in a process that
may not have it.

    python tests/faults/fault_bombs.py FOLDER     # name -> how it was refused, as JSON
"""

from __future__ import annotations

import http.server
import io
import json
import os
import pickle
import resource
import struct
import sys
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HUGE = 2**40
# What a reader may take beyond what the process has when the first bomb is read.
MEMORY_BYTES = 3 * 2**28

BOMBS: dict[str, Callable[[Path], Any]] = {}


def bomb(name: str) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    """Adds what makes a bomb in an empty folder and gives it to its reader; it must raise, or answer with a string that
    says what was left out."""

    def add(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
        BOMBS[name] = read
        return read

    return add


def sparse(file: Path, size: int = HUGE) -> Path:
    """A file of so many zeros, which take no space."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    os.truncate(file, size)
    return file


# ---------------------------------------------------------------------------------------- what people write


@bomb("a gin file")
def _gin(folder: Path) -> None:
    from poet.spec import config

    config.load([str(sparse(folder / "x.gin"))])


def _laughs() -> str:
    """Lines of YAML of which each says the one before it nine times."""
    lines = ["a0: &a0 [ha]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)]
    return "\n".join([*lines, "name: *a19", "scenes: *a19\n"])


@bomb("YAML: a job")
def _job(folder: Path) -> None:
    from poet.launching import job

    (folder / "x.yaml").write_text(_laughs())
    job.read(folder / "x.yaml", {})


@bomb("YAML: a storyboard")
def _storyboard(folder: Path) -> None:
    from poet.sampling.films import storyboard

    (folder / "x.yaml").write_text(_laughs())
    storyboard.read(folder / "x.yaml")


@bomb("YAML: a chain")
def _chain(folder: Path) -> None:
    from poet.sampling.films import chain

    chain.read(sparse(folder / "x.yaml"))


@bomb("prompts")
def _prompts(folder: Path) -> None:
    from poet.sampling import files

    files.read_prompts(str(sparse(folder / "x.txt")))


@bomb("jobs of a request file")
def _requests(folder: Path) -> None:
    from poet.sampling import batch_file, requests

    batch_file.read(str(sparse(folder / "x.jsonl")), folder / "out", requests.Request(), None, None)  # type: ignore


@bomb("API keys")
def _keys(folder: Path) -> None:
    from poet.server.access import Keys

    Keys.read(str(sparse(folder / "keys")), {})


# --------------------------------------------------------------------------------------- records in JSON


@bomb("a spec, a record or a session in JSON")
def _spec(folder: Path) -> None:
    from poet.spec import Experiment, read_json

    read_json(Experiment, sparse(folder / "spec.json"))


@bomb("a MANIFEST")
def _manifest(folder: Path) -> None:
    from poet.runs import manifest

    sparse(folder / manifest.NAME)
    manifest.verify(folder)


@bomb("the manifest of a token store")
def _store(folder: Path) -> None:
    from poet.store import reader

    sparse(folder / "manifest.json")
    reader.load_manifest(str(folder))


@bomb("the configuration of a T5")
def _t5(folder: Path) -> None:
    from types import SimpleNamespace

    from poet.tokenizers import t5_shape

    sparse(folder / t5_shape.CONFIG)
    t5_shape._configured(SimpleNamespace(folder=folder))  # type: ignore


@bomb("answers of a study")
def _answers(folder: Path) -> None:
    from poet.evaluation.preference import answers

    answers.read(None, [sparse(folder / "answers.jsonl")])  # type: ignore


@bomb("a line of a log")
def _log(folder: Path) -> str:
    from poet.runs import lines

    sparse(folder / "metrics.jsonl", 2 * MEMORY_BYTES)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('\n{"step": 3}\n')
    return f"left out but {[line['step'] for line in lines.read(folder / 'metrics.jsonl')]}"


# ------------------------------------------------------------------------------------- arrays and weights


def _npy(shape: tuple[int, ...]) -> bytes:
    """A header for so many float32, and none of them."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _npz(file: Path, data: bytes, stated: int) -> Path:
    """An archive of one array, in whose list it has `stated` bytes."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("video.npy", data)
        archive.filelist[0].file_size = stated
    return file


@bomb(".npy: vectors of texts")
def _vectors(folder: Path) -> None:
    from poet.evaluation.benchmarks import data

    (folder / data.VECTORS).write_bytes(_npy((1, HUGE)))
    data._vectors(folder, 1)


@bomb(".npz that says how much it holds")
def _stated(folder: Path) -> None:
    from poet.sampling.films import pieces

    with pieces._reading(_npz(folder / "x.npz", b"0", HUGE)):
        pass


@bomb(".npz that holds more than it says")
def _understated(folder: Path) -> None:
    from poet.sampling.films import pieces

    with pieces._reading(_npz(folder / "x.npz", bytes(2**28), 100)):
        pass


@bomb(".npz with a larger array than its bytes")
def _header(folder: Path) -> None:
    from poet.sampling.films import pieces

    data = _npy((HUGE,))
    with pieces._reading(_npz(folder / "x.npz", data, len(data))):
        pass


@bomb("safetensors: its header")
def _safetensors(folder: Path) -> None:
    from poet.checkpoints import weights

    (folder / "x.safetensors").write_bytes(struct.pack("<Q", HUGE) + b"{}")
    weights.read_arrays(folder / "x.safetensors")


@bomb("safetensors: an array")
def _tensor(folder: Path) -> None:
    from poet.checkpoints import weights

    header = json.dumps({"a": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}}).encode()
    (folder / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    weights.read_arrays(folder / "x.safetensors")


@bomb("safetensors: sizes of an export")
def _sizes(folder: Path) -> None:
    from poet.serving import format

    (folder / "x.safetensors").write_bytes(struct.pack("<Q", HUGE) + b"{}")
    format.array_bytes(folder)


class _Global:
    """Stands for a name of torch in a pickle."""


def _torch(folder: Path, pickled: bytes, *, compressed: int = zipfile.ZIP_STORED, values: bytes = bytes(64)) -> None:
    """Reads an archive as torch writes it, as the loss of a tokenizer does."""
    from poet.tokenizers.video import vgg

    with zipfile.ZipFile(folder / "x.pth", "w", compressed) as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/data/0", values)
    vgg.read_heads(folder / "x.pth", 1)


def _tensors(shape: tuple[int, ...]) -> bytes:
    """A pickle of one tensor of this shape, whose strides are 0."""
    at = lambda number: b"J" + struct.pack("<i", number)
    dims = lambda numbers: b"(" + b"".join(map(at, numbers)) + b"t"
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + at(16) + b"tQ"
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + at(0) + dims(shape) + dims([0] * len(shape)) + b"\x89}tR"
    )
    return b"\x80\x02}X\x13\x00\x00\x00lin0.model.1.weight" + tensor + b"s."


@bomb("torch: a tensor that says its storage again and again")
def _strides(folder: Path) -> None:
    _torch(folder, _tensors((2**20, 2**20)))


@bomb("torch: an archive that is compressed")
def _compressed(folder: Path) -> None:
    _torch(folder, pickle.dumps({}), compressed=zipfile.ZIP_DEFLATED, values=bytes(2**26))


@bomb("torch: a pickle that counts its objects")
def _memo(folder: Path) -> None:
    _torch(folder, b"\x80\x02Nr" + struct.pack("<I", 2**31 - 1) + b".")


@bomb("an archive with an ONNX network")
def _onnx_archive(folder: Path) -> None:
    from poet.evaluation.features import yamnet

    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        archive.writestr("x.onnx", b"x")
        archive.filelist[0].file_size = HUGE
    yamnet._opened(folder / "x.zip")


@bomb("an ONNX network")
def _onnx(folder: Path) -> None:
    from poet.conditioning import networks

    networks.check(str(sparse(folder / "x.onnx")), 1)


@bomb("a vocabulary")
def _vocabulary(folder: Path) -> None:
    from poet.tokenizers import pieces

    pieces.load_pieces(str(sparse(folder / "x.model")))


# --------------------------------------------------------------------------------------- clips and stores


@bomb("captions")
def _captions(folder: Path) -> None:
    _open(sparse(folder / "captions.jsonl").parent)


def _open(source: Path) -> Any:
    from poet.spec import ClipSpec
    from poet.store import sources

    return sources.open_source(str(source), "train", ClipSpec(frames=5, height=16, width=16))


def _tar(file: Path, name: str, size: int, header: bytes = b"0") -> Path:
    member = tarfile.TarInfo(name)
    member.size = size
    buffer = member.tobuf(tarfile.PAX_FORMAT)
    file.write_bytes(buffer[:156] + header + buffer[157:])
    return sparse(file, max(size, 2**20))


@bomb("tar: a header that is as long as it likes")
def _tar_header(folder: Path) -> None:
    _tar(folder / "train-0.tar", "a.mp4", 2**32, b"x")  # An extended header; its checksum is not that of the block.
    block = bytearray((folder / "train-0.tar").open("rb").read(512))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    with open(folder / "train-0.tar", "r+b") as file:
        file.write(block)
    _open(folder)


@bomb("tar: a caption")
def _tar_caption(folder: Path) -> str:
    from poet.store import remote, webdataset

    with open(folder / "train-0.tar", "wb") as file:
        for name, size in (("a.txt", 2**32), ("a.mp4", 16)):
            member = tarfile.TarInfo(name)
            member.size = size
            file.write(member.tobuf())
            file.seek(-(-size // 512) * 512, os.SEEK_CUR)
        file.write(bytes(1024))
    found = webdataset.open_tars(str(folder), "train", (".mp4",))
    try:
        with found.fetch(0):
            return "! it was read"
    except remote.Unusable as error:  # The item is skipped, and the report says why.
        return error.reason


@bomb("tar: compressed")
def _tar_compressed(folder: Path) -> None:
    (folder / "train-0.tar.gz").write_bytes(zlib.compress(bytes(2**20), wbits=31))
    _open(folder)


def _record(length: int) -> bytes:
    from poet.store import framing

    header = struct.pack("<Q", length)
    return header + struct.pack("<I", framing.masked_checksum(header)) + b"x" * 8


@bomb("TFRecord: a record of a token store")
def _tfrecord(folder: Path) -> None:
    from poet.data import records

    (folder / "x.tfrecord").write_bytes(_record(HUGE))
    records.Records(records.Files((str(folder / "x.tfrecord"),), (1,), ((24, 0),)))[0]


@bomb("TFRecord: a record of a TFDS folder")
def _tfds(folder: Path) -> None:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    from poet.store import tfds_source

    features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="x", version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=""
    )
    template = tfds.core.ShardedFileTemplate(
        dataset_name="x", data_dir=folder, filetype_suffix="tfrecord", split="train"
    )
    split = tfds.core.SplitInfo(name="train", shard_lengths=[1], num_bytes=24, filename_template=template)
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    info.set_splits(tfds.core.splits.SplitDict([split]))
    info.write_to_directory(folder)
    (folder / "x-train.tfrecord-00000-of-00001").write_bytes(_record(HUGE))
    del tf
    list(tfds_source.tfds_examples(str(folder), "train", ["text"], 0, 1))


# ------------------------------------------------------------------------------------------------ media


def _zeros(size: int) -> bytes:
    """So many of them, compressed."""
    packer, block = zlib.compressobj(1), bytes(2**24)
    return b"".join(packer.compress(block) for _ in range(size // len(block))) + packer.flush()


def _png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    parts = (head, *chunks, (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    framed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def _read(folder: Path, name: str, data: bytes) -> Any:
    from poet import media
    from poet.spec import ClipSpec

    (folder / name).write_bytes(data)
    return media.read_clip(folder / name, ClipSpec(frames=1, height=16, width=16))


@bomb("a picture: its size")
def _picture(folder: Path) -> None:
    _read(folder, "x.png", _png(2**17, 2**17))


@bomb("a picture: a text in it")
def _picture_text(folder: Path) -> None:
    _read(folder, "x.png", _png(16, 16, (b"zTXt", b"a\0\0" + _zeros(2 * MEMORY_BYTES))))


@bomb("a picture: its colour profile")
def _picture_profile(folder: Path) -> None:
    _read(folder, "x.png", _png(16, 16, (b"iCCP", b"a\0\0" + _zeros(2 * MEMORY_BYTES))))


@bomb("a film: its size")
def _film_size(folder: Path) -> None:
    frame = struct.pack("<II", 4, 0) + bytes(4)
    header = b"DKIF" + struct.pack("<HH4sHHIIII", 0, 32, b"VP90", 65_535, 65_535, 30, 1, 1, 0)
    _read(folder, "x.ivf", header + frame + frame)


@bomb("a film: the time between two frames")
def _film_gap(folder: Path) -> None:
    """One picture, and another a year later."""
    import av

    from poet import media
    from poet.spec import ClipSpec

    with av.open(str(folder / "x.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=1)
        stream.width = stream.height = 16
        for number in (0, 365 * 24 * 3600):
            frame = av.VideoFrame(16, 16, "yuv420p")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    media.read_clip(folder / "x.mkv", ClipSpec(frames=65_536, height=16, width=16, rate_hz=1.0))


@bomb("a sound: its length")
def _sound(folder: Path) -> str:
    from poet import media

    wave = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16_000, 2, 16)
    data = b"data" + struct.pack("<I", 2**32 - 1) + bytes(1600)
    (folder / "x.wav").write_bytes(b"RIFF" + struct.pack("<I", 2**32 - 1) + wave + data)
    return f"{len(media.read_sound(folder / 'x.wav', 8000).samples)} samples of those that it claims"


# ------------------------------------------------------------------------------------------------- HTTP


@bomb("HTTP: an answer of a service")
def _answer(folder: Path) -> None:
    from poet.client import Client

    class Endless(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b" " * 2**20)
            except OSError:
                pass

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            Client(f"http://127.0.0.1:{server.server_port}", retries=0).models()
        finally:
            server.shutdown()


# ------------------------------------------------------------------------------------------- in the child


def _refused(read: Callable[[Path], Any], folder: Path) -> str:
    """How a bomb was refused; what is none of a reader's own answers begins with '!'."""
    from poet.client import ApiError
    from poet.spec import UserError

    folder.mkdir()
    try:
        answer = read(folder)
    except (UserError, ApiError) as error:
        return str(error)
    except BaseException as error:
        return f"! {type(error).__name__}: {error}"
    return answer if isinstance(answer, str) else f"! it was read: {answer!r}"


def _used() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def main(folder: str, *names: str) -> None:
    import tensorflow  # noqa: F401  before the limit, with all that readers load
    import tensorflow_datasets  # noqa: F401

    from poet import cli  # noqa: F401

    found = {}
    chosen = names or tuple(BOMBS)
    for number, name in enumerate(chosen):
        if number == 0:
            most = _used() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (max(most, _used() + MEMORY_BYTES), resource.RLIM_INFINITY))
        found[name] = _refused(BOMBS[name], Path(folder) / str(number))
        print(json.dumps([name, found[name]]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
