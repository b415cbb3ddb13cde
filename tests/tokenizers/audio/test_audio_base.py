"""The frozen facade: lengths, levels, bad input, folders, a mesh; and streams that equal the whole."""

from __future__ import annotations

import functools
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from poet.distributed import mesh as meshes
from poet.spec import AudioTokenizerSpec, MeshSpec, UserError
from poet.tokenizers.audio.base import AudioTokenizer, random_params
from poet.tokenizers.audio.streaming import StreamDecoder, StreamEncoder

TINY = AudioTokenizerSpec(strides=(2, 4), encoder_channels=4, decoder_channels=4, dim=6, levels=3, codes=16)


@functools.cache
def tiny() -> AudioTokenizer:
    return AudioTokenizer.from_params(TINY, random_params(TINY), batch=4)


def sound(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-8000, 8000, shape).astype(np.int16)


@hypothesis.settings(max_examples=12, deadline=None)
@hypothesis.given(samples=st.integers(1, 26), batch=st.integers(1, 5), levels=st.integers(1, 3))
def test_every_length_comes_back(samples: int, batch: int, levels: int) -> None:
    ids = tiny().encode(sound(batch, samples), levels)
    assert ids.shape == (batch, levels, max(1, samples // TINY.hop)) and ids.dtype == np.int32
    rebuilt = tiny().decode(ids, samples)
    assert rebuilt.shape == (batch, samples) and rebuilt.dtype == np.int16


def test_levels_are_the_first_of_all_and_sounds_do_not_depend_on_their_neighbours() -> None:
    x = sound(5, 40)
    ids = tiny().encode(x)
    np.testing.assert_array_equal(tiny().encode(x, 2), ids[:, :2])
    np.testing.assert_array_equal(tiny().encode(x[3:4]), ids[3:4])
    np.testing.assert_array_equal(tiny().decode(ids[3:4]), tiny().decode(ids)[3:4])


def test_int16_and_floats_mean_the_same() -> None:
    x = sound(2, 40)
    np.testing.assert_array_equal(tiny().encode(x), tiny().encode(x / np.float32(32768)))


def test_the_tail_is_the_last_frame_once_more() -> None:
    ids = tiny().encode(sound(1, 40))
    longer = tiny().decode(np.concatenate([ids, ids[:, :, -1:]], 2))
    np.testing.assert_array_equal(tiny().decode(ids, 45), longer[:, :45])
    with pytest.raises(UserError, match="5 frames of codes cannot become 48 samples.*40..47"):
        tiny().decode(ids, 48)


@pytest.mark.parametrize(
    "bad, message",
    [
        (np.zeros((2, 3, 4), np.int16), "expected mono"),
        (np.zeros((2, 30), np.int32), "expected mono"),
        (np.zeros((2, 0), np.int16), "no samples"),
        (np.full((1, 30), np.nan, np.float32), "left.wav has samples that are NaN"),
        (np.full((1, 30), 1.5, np.float32), "left.wav has samples in 1.5..1.5"),
    ],
)
def test_bad_sounds_are_named(bad: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny().encode(bad, names=["left.wav"])


@pytest.mark.parametrize(
    "bad, message",
    [
        (np.zeros((1, 4, 5), int), "levels = 4: this tokenizer has 1..3"),
        (np.zeros((1, 5), int), "expected integers"),
        (np.zeros((1, 2, 5)), "expected integers"),
        (np.full((1, 2, 5), 16), "this tokenizer has 0..15"),
    ],
)
def test_bad_codes_are_refused(bad: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny().decode(bad)


def test_options_are_checked() -> None:
    with pytest.raises(UserError, match="levels = 9"):
        tiny().encode(sound(1, 40), levels=9)
    with pytest.raises(UserError, match="no denoise switch"):
        AudioTokenizer.from_params(TINY, random_params(TINY), denoise=True)
    with pytest.raises(UserError, match="batch = 0"):
        AudioTokenizer.from_params(TINY, random_params(TINY), batch=0)


def test_the_denoise_switch_is_passed_on() -> None:
    spec = TINY.replace(denoise="decoder")
    params = random_params(spec)
    film = {"scale": np.array(params["film"]["scale"]), "bias": params["film"]["bias"]}
    film["scale"][1] = 3.0
    off, on = (AudioTokenizer.from_params(spec, {**params, "film": film}, denoise=d) for d in (False, True))
    ids = off.encode(sound(2, 40))
    np.testing.assert_array_equal(ids, on.encode(sound(2, 40)))
    assert (off.decode(ids) != on.decode(ids)).mean() > 0.5


def test_a_mesh_gives_the_same_codes_and_sounds() -> None:
    spread = AudioTokenizer.from_params(TINY, tiny().params, batch=4, mesh=meshes.build(MeshSpec(data=2, fsdp=4)))
    x = sound(5, 40)
    ids = tiny().encode(x)
    np.testing.assert_array_equal(spread.encode(x), ids)
    assert np.abs(np.int32(spread.decode(ids)) - tiny().decode(ids)).max() <= 1


def test_folders_keep_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny().save("net")
    loaded = AudioTokenizer.of(TINY.replace(path="net"))
    assert loaded.fingerprint == tiny().fingerprint and loaded.spec == TINY
    with pytest.raises(UserError, match="AUDIO_TOKENIZER.codes = 17"):
        AudioTokenizer.of(TINY.replace(path="net", codes=17))
    tiny().save("half", "bfloat16")
    rounded = AudioTokenizer.load("half")
    assert rounded.fingerprint != tiny().fingerprint
    np.testing.assert_allclose(rounded.params["codebooks"], tiny().params["codebooks"], rtol=2**-7)


# ------------------------------------------------------------------------------------------ streams


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(
    samples=st.sampled_from([8, 15, 40, 99]),  # each is a program of its own for the whole
    pieces=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    chunk=st.sampled_from([1, 3]),
)
def test_a_stream_equals_the_whole(samples: int, pieces: list[int], chunk: int) -> None:
    x = sound(1, samples)
    whole = tiny().encode(x)[0]
    encoder, decoder = StreamEncoder(tiny(), 0, chunk), StreamDecoder(tiny(), 0, chunk)
    cuts = np.cumsum(pieces)
    ids = [encoder.push(piece) for piece in np.split(x[0], cuts[cuts < samples])]
    ids = np.concatenate([*ids, encoder.flush()], axis=1)
    np.testing.assert_array_equal(ids, whole)
    frames = np.cumsum(pieces)
    heard = [decoder.push(part) for part in np.split(ids, frames[frames < ids.shape[1]], axis=1)]
    heard = np.concatenate([*heard, decoder.flush()])
    # Float sums in another order: half a step of 16 bits either way.
    assert np.abs(np.int32(heard) - tiny().decode(whole[None])[0]).max() <= 1


def test_streams_refuse_what_they_cannot_take() -> None:
    with pytest.raises(UserError, match="mono int16"):
        StreamEncoder(tiny()).push(np.zeros(10, np.float32))
    with pytest.raises(UserError, match=r"takes codes \(2, frames\)"):
        StreamDecoder(tiny(), levels=2).push(np.zeros((3, 4), np.int32))
    with pytest.raises(UserError, match="chunk_frames = 0"):
        StreamEncoder(tiny(), chunk_frames=0)
