"""Batches of raw sound for the training of audio tokenizers.

Their order is that of `poet.data.pool`: a function of the seed, so the state of an iterator is its
position alone.  Every recording gives one excerpt an epoch, however long it is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from poet.data.backend import tensorflow
from poet.data.iterator import Batches, PositionIterator
from poet.data.pool import Pool, check_weights, mixed, open_pool
from poet.distributed.processes import Share
from poet.media.sound import is_silent, place
from poet.spec import AudioTokenizerSpec, AudioTrainSpec
from poet.store.sounds import RawSound, SoundSource, TfdsSounds, open_sounds, usable

BLOCK_SOUNDS = 64
# Sounds of one source in memory; while one window is in use the next one is read.
WINDOW_BYTES = 1024**3
# Places of a recording that are tried for one that is not silent.
TRIES = 8
# Items that the mean size of a source's sounds is measured on.
_MEASURED = 8
# Uses of an example's random numbers, which are independent.
_PLACE, _NOISE_PLACE, _MIX = 1, 5, 6


def sound_batches(
    sources: Mapping[str, int],
    split: str,
    spec: AudioTokenizerSpec,
    train: AudioTrainSpec,
    batch: int,
    seed: int = 0,
    *,
    share: Share = Share(),
    window_bytes: int = WINDOW_BYTES,
) -> PositionIterator:
    """Endless batches of random excerpts of `train.samples` samples, of one or several sources.

    {"audio": int16 [B, samples]}, and where `train.noise_source` is given also
    {"noise": int16 [B, samples]}, excerpts of that source at a gain sampled uniformly in dB from
    `train.noise_gain_db`, to be added to the audio; and {"denoise": int8 [B]}, a fair sample of 0
    (keep the noise) or 1 (remove it).

    An excerpt that is silent throughout is sampled again from the same recording, a few times; a
    recording shorter than an excerpt is put at a random place in silence.

    Args:
      sources: TFDS folder or folder of sound and media files -> weight: of sum(weights) examples
        every folder gives exactly its weight.
      split: of all sources, the one of noise included.
      spec: has the sample rate to which sounds are converted.
      batch: excerpts per step, of all processes; may be more than the split holds.

    Raises:
      UserError: no source, a weight below 1, no such source or split, an empty split, or a batch
        not divisible by the parts of the share; and from the iterator, a source none of whose items can be
        used.
    """
    check_weights(sources, "sound")
    rows = share.rows(batch, "the batch of sounds").tolist()
    seed %= 2**32
    noise = _pool(train.noise_source, split, spec, window_bytes) if train.noise_source else None
    pools = [_pool(path, split, spec, window_bytes) for path in sources]
    weights = tuple(sources.values())

    def build(examples: int) -> Batches:
        while True:
            batch_items = [example(examples + row) for row in rows]
            yield {name: np.stack([one[name] for one in batch_items]) for name in batch_items[0]}
            examples += batch

    def example(index: int) -> dict[str, np.ndarray]:
        source, position = mixed(seed, index, weights)
        sound = pools[source].item(seed, position)
        clean = excerpt(sound, train.samples, np.random.default_rng((seed, index, _PLACE)))
        return {"audio": clean} | (_disturbance(noise, train, seed, index) if noise else {})

    return PositionIterator(build, batch)


def _pool(path: str, split: str, spec: AudioTokenizerSpec, window_bytes: int) -> Pool[np.ndarray]:
    source = open_sounds(path, split, spec.sample_rate_hz)
    if isinstance(source, TfdsSounds):
        tensorflow()  # before the source starts it with an accelerator in sight
    return open_pool(source, _load, BLOCK_SOUNDS, window_bytes, _item_bytes(source))


def _load(source: SoundSource, ranges: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """int16 (S,) of every item that can be used."""
    items = (item for start, stop in ranges for item in source.read(start, stop))
    return [sound.samples for sound in usable(items, source.path)]


@functools.lru_cache(maxsize=8)
def _item_bytes(source: SoundSource) -> int:
    """About what an item of the source takes in memory, measured on some of them."""
    count = min(len(source), _MEASURED)
    if isinstance(source, TfdsSounds):
        # Its examples were shuffled when it was made, and reaching one reads all those before it.
        items = list(source.read(0, count))
    else:
        places = np.linspace(0, len(source) - 1, count).astype(int).tolist()
        items = [item for place in places for item in source.read(place, place + 1)]
    sizes = [item.samples.nbytes for item in items if isinstance(item, RawSound)]
    return max(1, int(np.mean(sizes))) if sizes else WINDOW_BYTES // BLOCK_SOUNDS


def excerpt(samples: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """int16 (length,) of int16 (S,): a random place that is not silent, where one is soon found."""
    if len(samples) <= length:
        return place(samples, int(rng.integers(length - len(samples) + 1)), length)
    for _ in range(TRIES):
        start = int(rng.integers(len(samples) - length + 1))
        taken = samples[start : start + length]
        if not is_silent(taken):
            break
    return taken


def _disturbance(noise: Pool[np.ndarray], train: AudioTrainSpec, seed: int, index: int) -> dict[str, np.ndarray]:
    # Another seed, so that a folder that is also a source is heard in another order.
    sound = noise.item((seed + 1) % 2**32, index)
    taken = excerpt(sound, train.samples, np.random.default_rng((seed, index, _NOISE_PLACE)))
    rng = np.random.default_rng((seed, index, _MIX))
    gain = 10 ** (rng.uniform(*train.noise_gain_db) / 20)
    scaled = np.clip(np.rint(taken * gain), -32768, 32767).astype(np.int16)
    return {"noise": scaled, "denoise": rng.integers(2, dtype=np.int8)}
