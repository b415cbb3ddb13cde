"""The audio tokenizer that ships: its size and papers, more levels for less error, and its streams."""

from __future__ import annotations

import functools
import json

import jax
import numpy as np
import pytest

from poet.spec import config
from poet.tokenizers import frozen
from poet.tokenizers.audio import soundstream, spectra
from poet.tokenizers.audio.base import AudioTokenizer
from poet.tokenizers.audio.streaming import StreamDecoder, StreamEncoder

NAME = "soundstream_16k"


@functools.cache
def shipped() -> AudioTokenizer:
    return AudioTokenizer.load(NAME)


def voice(seconds: float = 2.125) -> np.ndarray:
    """int16 (1, S): a gliding tone with formants, broken by noise, as a voice is by consonants."""
    rng, t = np.random.default_rng(0), np.arange(int(16_000 * seconds)) / 16_000
    pitch = 120 + 30 * np.sin(2 * np.pi * 1.5 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / 16_000
    gains = [
        np.exp(-(((k * 120 - 600) / 300) ** 2)) + 0.4 * np.exp(-(((k * 120 - 1800) / 400) ** 2)) for k in range(1, 25)
    ]
    tone = sum(g * np.sin(k * phase) for k, g in enumerate(gains, start=1))
    voiced = np.sin(2 * np.pi * 2 * t) > -0.3
    sound = np.where(voiced, 0.1 * tone, 0.05 * rng.normal(size=t.size))
    return np.int16(32767 * np.clip(sound, -1, 1))[None]


def test_it_is_what_its_gin_file_and_its_card_say() -> None:
    folder = frozen.find_pretrained(NAME)
    spec = config.load(["gin/models/soundstream_small.gin"], []).audio_tokenizer
    loaded = AudioTokenizer.of(spec.replace(path=NAME))
    card = json.loads((folder / "card.json").read_text())
    assert card["fingerprint"] == loaded.fingerprint
    assert (folder / frozen.WEIGHTS).stat().st_size <= 12_000_000
    assert shipped().encode(voice()).shape == (1, 12, 106)


def test_error_falls_as_levels_are_added() -> None:
    """Of the latents at every level (A14); of the sound from the first to the fourth to the last."""
    x, tokenizer = voice(), shipped()
    wave = x[:, : 106 * 320] / np.float32(32768)
    z, _ = jax.jit(functools.partial(soundstream.encode, tokenizer.spec))(tokenizer.params, wave)
    ids, books = tokenizer.encode(x), tokenizer.params["codebooks"]
    total, errors = np.zeros(z.shape), [float(np.mean(np.square(z)))]
    for level in range(12):
        total += books[level][ids[:, level]]
        errors.append(float(np.mean((z - total) ** 2)))
    assert errors == sorted(errors, reverse=True), errors
    assert errors[4] < 0.5 * errors[0]
    rebuilt = [tokenizer.decode(ids[:, :n], x.shape[1]) for n in (1, 4, 12)]
    losses = [float(spectra.reconstruction_loss(np.float32(y) / 32768, np.float32(x) / 32768, 16_000)) for y in rebuilt]
    assert losses == sorted(losses, reverse=True), losses


@pytest.mark.parametrize("chunk", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_a_stream_of_it_equals_the_whole(chunk: int) -> None:
    x, tokenizer = voice(0.6), shipped()
    whole = tokenizer.encode(x)
    encoder, decoder = StreamEncoder(tokenizer, 0, chunk), StreamDecoder(tokenizer, 0, chunk)
    ids = np.concatenate([*(encoder.push(p) for p in np.array_split(x[0], 7)), encoder.flush()], axis=1)
    assert (ids == whole[0]).mean() > 0.99  # sums in another order may tip a vector between codes
    heard = np.concatenate([decoder.push(whole[0]), decoder.flush()])
    assert np.abs(np.int32(heard) - tokenizer.decode(whole)[0]).max() <= 1
