"""Folders of frozen networks: every damage is found where there is a manifest, and is never a traceback."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from poet.checkpoints import weights
from poet.runs import assets, manifest
from poet.runs.run import Checkpoint
from poet.spec import AudioTokenizerSpec, Experiment, UserError, VideoTokenizerSpec
from poet.tokenizers.audio import base as audio_base
from poet.tokenizers.audio.base import AudioTokenizer
from poet.tokenizers.pieces import load_pieces
from poet.tokenizers.video import magvit
from poet.tokenizers.video.base import VideoTokenizer

VIDEO = VideoTokenizerSpec(
    base_channels=4, multipliers=(1,), blocks=1, temporal_downsample=(), stem=(4, 4, 4), norm_groups=2, bits=6
)
AUDIO = AudioTokenizerSpec(
    sample_rate_hz=8000,
    strides=(4, 8),
    encoder_channels=2,
    decoder_channels=2,
    dim=4,
    dilations=(1,),
    levels=2,
    codes=4,
)
PARAMS = {"a": np.float32([1.5, -2.25]), "b": np.ones((3, 4), np.float32)}


def zeros(shapes):
    return jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)


def make_video(folder: Path) -> Callable[[], object]:
    shapes = jax.eval_shape(lambda: magvit.init(VIDEO, jax.random.key(0)))
    VideoTokenizer.from_params(VIDEO, zeros(shapes)).save(folder)
    return lambda: VideoTokenizer.load(folder)


def make_audio(folder: Path) -> Callable[[], object]:
    shapes = jax.eval_shape(lambda: audio_base.init(AUDIO, jax.random.key(0)))
    AudioTokenizer.from_params(AUDIO, zeros(shapes)).save(folder)
    return lambda: AudioTokenizer.load(folder)


def make_released(folder: Path) -> Callable[[], object]:
    weights.save(folder, Experiment(), PARAMS, "float32", 7, {"video": "0123"})
    shapes = {n: jax.ShapeDtypeStruct(a.shape, jnp.float32) for n, a in PARAMS.items()}
    return lambda: (Checkpoint(folder).spec, weights.load_params(folder, shapes))


MAKERS = {"video": make_video, "audio": make_audio, "released": make_released}


def rewrite(file: Path, change: Callable[[dict], object]) -> None:
    """Another set of arrays in the same file."""
    arrays = load_file(file)
    change(arrays)
    save_file(arrays, file)


def first(arrays: dict) -> str:
    return min(arrays)


def whole(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict], object]:
    return lambda arrays: arrays.update({first(arrays): change(arrays[first(arrays)])})


def poisoned(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array.flat[-1] = value
    return array


def spec_with(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        file = folder / "spec.json"
        values = json.loads(file.read_text())
        change(values)
        file.write_text(json.dumps(values))

    return damage


def as_folder(name: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def text(content: str | bytes) -> Callable[[Path], object]:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / "spec.json").write_bytes(data)


def arrays(change: Callable[[dict], object]) -> Callable[[Path], object]:
    return lambda folder: rewrite(folder / "model.safetensors", change)


def relabelled(folder: Path) -> None:
    """The header alone says that the bytes are integers."""
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data.replace(b'"F32"', b'"I32"'))


# Each is found even where no manifest tells of it.
VISIBLE: dict[str, Callable[[Path], object]] = {
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "no spec": lambda f: (f / "spec.json").unlink(),
    "weights are a folder": as_folder("model.safetensors"),
    "spec is a folder": as_folder("spec.json"),
    "no bytes of weights": lambda f: (f / "model.safetensors").write_bytes(b""),
    "half the weights": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-64]),
    "a header of nonsense": lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 200),
    "no bytes of spec": text(""),
    "half a spec": text('{"bits": 6, '),
    "a spec that is not UTF-8": text(b"\xff\xfe{}"),
    "a spec that is a list": text("[1, 2]"),
    "a spec that is null": text("null"),
    "a spec of brackets": text("[" * 5000),
    "an unknown field": spec_with(lambda v: v.update(colour="red")),
    "a section of another type": spec_with(lambda v: v.update({min(v): {"x": 1}})),
    "a value beyond its range": spec_with(lambda v: v.update(bits=99, levels=0, clip=7)),
    "an infinite value": text('{"base_channels": Infinity, "dim": NaN, "train": {"z_loss": Infinity}}'),
    "an array missing": arrays(lambda a: a.pop(first(a))),
    "an array more": arrays(lambda a: a.update(zz=np.zeros(2, np.float32))),
    "an array renamed": arrays(lambda a: a.update(zz=a.pop(first(a)))),
    "an array of another shape": arrays(whole(lambda x: np.concatenate([x, x]))),
    "integers": arrays(whole(lambda x: x.astype(np.int32))),
    "weights relabelled as integers": relabelled,
    "a NaN": arrays(whole(lambda x: poisoned(x, np.nan))),
    "an infinity": arrays(whole(lambda x: poisoned(x, np.inf))),
    "all NaN": arrays(lambda a: a.update({n: np.full_like(x, np.nan) for n, x in a.items()})),
}


def flip(name: str, place: float) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[int(place * (len(data) - 1))] ^= 1
        (folder / name).write_bytes(data)

    return damage


FLIPS = {
    f"{name} at {place}": flip(name, place)
    for name in ("model.safetensors", "spec.json", manifest.NAME)
    for place in (0.0, 0.3, 0.6, 0.99)
}


@pytest.mark.parametrize("damage", [*VISIBLE, *FLIPS])
@pytest.mark.parametrize("kind", MAKERS)
def test_every_damage_is_named(tmp_path: Path, kind: str, damage: str) -> None:
    load = MAKERS[kind](tmp_path / "w")
    (VISIBLE | FLIPS)[damage](tmp_path / "w")
    with pytest.raises(UserError) as error:
        load()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", VISIBLE)
@pytest.mark.parametrize("kind", MAKERS)
def test_damage_that_the_hashes_vouch_for_is_no_traceback(tmp_path: Path, kind: str, damage: str) -> None:
    """The manifest is written anew, as by somebody who meant it; for tokenizers also left out."""
    folder, load = tmp_path / "w", MAKERS[kind](tmp_path / "w")
    VISIBLE[damage](folder)
    fields = manifest.read(folder)
    fields.pop("files")
    (folder / manifest.NAME).unlink()
    if kind != "released":
        with pytest.raises(UserError):
            load()
    manifest.write(folder, fields)
    with pytest.raises(UserError) as error:
        load()
    assert "\n" not in str(error.value)


def test_a_folder_from_before_manifests_loads_with_a_warning(tmp_path: Path, caplog) -> None:
    load = make_video(tmp_path / "w")
    kept = load().fingerprint
    (tmp_path / "w" / manifest.NAME).unlink()
    with caplog.at_level(logging.WARNING):
        assert load().fingerprint == kept
    assert len(caplog.records) == 1 and manifest.NAME in caplog.text


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    bad = {"a": np.float32([1.0, np.nan])}
    with pytest.raises(UserError, match="NaN"):
        weights.save(tmp_path / "w", Experiment(), bad, "float32", 7)
    shapes = jax.eval_shape(lambda: magvit.init(VIDEO, jax.random.key(0)))
    params = jax.tree.map(lambda x: np.full(x.shape, np.inf, np.float32), shapes)
    with pytest.raises(UserError, match="infinite"):
        VideoTokenizer.from_params(VIDEO, params).save(tmp_path / "t")
    assert not (tmp_path / "w").exists() and not (tmp_path / "t").exists()


def test_a_tokenizer_is_no_checkpoint_and_is_never_replaced_by_one(tmp_path: Path) -> None:
    make_video(tmp_path / "t")
    assert not Checkpoint(tmp_path / "t").released
    with pytest.raises(UserError):
        weights.save(tmp_path / "t", Experiment(), PARAMS, "float32", 7)


SHIPPED = ("magvit_v2_64x8", "soundstream_16k", "pieces_512", "lm_arenas", "superres_arenas")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_hashed(name: str) -> None:
    listed = manifest.check_listed(assets.root() / "data" / "pretrained" / name)
    assert "model.safetensors" in listed["files"] or "spiece.model" in listed["files"]


def test_shipped_weights_name_the_networks_they_were_trained_with() -> None:
    """Fingerprints of the cards, which are those of the shipped folders."""
    root = assets.root() / "data" / "pretrained"
    named = manifest.read(root / "lm_arenas")["networks"]
    for name, folder in (("video", "magvit_v2_64x8"), ("audio", "soundstream_16k"), ("pieces", "pieces_512")):
        assert f"| fingerprint | `{named[name]}` |" in (root / folder / "README.md").read_text()


def test_a_flipped_bit_of_the_vocabulary_is_found(tmp_path: Path) -> None:
    folder = shutil.copytree(assets.root() / "data/pretrained/pieces_512", tmp_path / "p")
    assert load_pieces(folder).size == load_pieces(folder / "spiece.model").size == 512
    flip("spiece.model", 0.5)(folder)
    for path in (folder, folder / "spiece.model"):
        with pytest.raises(UserError, match="spiece.model"):
            load_pieces(path)
