"""Excerpts of raw sound come in a drawn order that is resumed exactly, with noise beside them."""

from __future__ import annotations

import itertools
import pathlib

import numpy as np
import pytest
import scipy.io.wavfile
from hypothesis import given, settings
from hypothesis import strategies as st

from poet.data import sounds
from poet.data.pool import _joined
from poet.data.sounds import excerpt, sound_batches
from poet.distributed.processes import Share
from poet.spec import AudioTokenizerSpec, AudioTrainSpec, UserError
from poet.store.raw import Skipped
from poet.store.sounds import RawSound

SPEC = AudioTokenizerSpec()
SAMPLES = 40
# Sound i of source s holds LEAST + 1000 * s + 100 * i + (sample number mod 50): an excerpt tells
# where it comes from, and none is silent.
LEAST = 50


class Numbered:
    """Sound i is SAMPLES + 10 * i long, but for those that are broken."""

    def __init__(self, number: int, size: int, broken: frozenset[int] = frozenset()):
        self.path = self.fingerprint = str(number)
        self.number, self.size, self.broken = number, size, broken
        self.reads: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self.size

    def read(self, start, stop):
        self.reads.append((start, stop))
        for i in range(start, stop):
            if i in self.broken:
                yield Skipped(key=str(i), reason="undecodable: for the test")
            else:
                tail = np.arange(SAMPLES + 10 * i) % 50
                samples = (LEAST + 1000 * self.number + 100 * i + tail).astype(np.int16)
                yield RawSound(key=str(i), text="", kind="", samples=samples)


class Several:
    """Sources with sizes and weights; what stands at 'noise' is source 20."""

    def __init__(self, sizes: list[int], weights: list[int], broken: frozenset[int] = frozenset()):
        self.sources = [Numbered(number, size, broken) for number, size in enumerate(sizes)]
        self.weights = weights
        self.noise = Numbered(20, 9)

    def batches(self, monkeypatch, batch: int = 5, window_items: int = 10**6, noise=False, **kw):
        """Windows of about `window_items` sounds, in blocks of 4."""
        monkeypatch.setattr(sounds, "BLOCK_SOUNDS", 4)
        monkeypatch.setattr(sounds, "_item_bytes", lambda source: 100)
        known = {s.path: s for s in self.sources} | {"noise": self.noise}
        monkeypatch.setattr(sounds, "open_sounds", lambda path, split, rate: known[path])
        gain = {"noise_source": "noise", "noise_gain_db": (-12.0, -6.0)} if noise else {}
        weights = {source.path: w for source, w in zip(self.sources, self.weights)}
        train = AudioTrainSpec(samples=SAMPLES, **gain)
        arguments = {"seed": 3, "window_bytes": 100 * window_items} | kw
        return sound_batches(weights, "train", SPEC, train, batch, **arguments)


def names(batches, count: int) -> list[tuple[int, int]]:
    """(source, sound) of the next excerpts."""
    excerpts = (row for batch in batches for row in batch["audio"])
    values = [int(row[0]) - LEAST for row in itertools.islice(excerpts, count)]
    return [(value // 1000, value % 1000 // 100) for value in values]


@st.composite
def several(draw):
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    weights = draw(st.lists(st.integers(1, 5), min_size=len(sizes), max_size=len(sizes)))
    return Several(sizes, weights)


@given(mixture=several(), batch=st.integers(1, 7), window=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_shares_are_exact_and_every_sound_is_heard_once_an_epoch(mixture, batch, window):
    """An oracle in counts alone: of each repetition, and of each source's own sequence."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        repetition = sum(mixture.weights)
        heard = names(mixture.batches(monkeypatch, batch, window), repetition * 12)
    for start in range(0, len(heard), repetition):
        drawn = [source for source, _ in heard[start : start + repetition]]
        assert [drawn.count(s) for s in range(len(mixture.weights))] == mixture.weights
    for number, source in enumerate(mixture.sources):
        own = [sound for of, sound in heard if of == number]
        for start in range(0, len(own) - len(source) + 1, len(source)):
            assert sorted(own[start : start + len(source)]) == list(range(len(source)))


@given(
    mixture=several(), batch=st.integers(1, 7), taken=st.integers(0, 15), window=st.integers(1, 12), noise=st.booleans()
)
@settings(max_examples=25, deadline=None)
def test_resuming_at_any_point_continues_bit_for_bit(mixture, batch, taken, window, noise):
    with pytest.MonkeyPatch.context() as monkeypatch:
        original, resumed = (mixture.batches(monkeypatch, batch, window, noise) for _ in range(2))
        list(itertools.islice(original, taken))
        resumed.set_state(original.get_state())
        for _ in range(4):
            wanted, got = next(original), next(resumed)
            assert wanted.keys() == got.keys()
            for name in wanted:
                np.testing.assert_array_equal(wanted[name], got[name])


def test_processes_take_their_parts_of_the_same_batches(monkeypatch):
    mixture = Several([9, 5], [2, 1])
    whole = mixture.batches(monkeypatch, 6, noise=True)
    parts = [mixture.batches(monkeypatch, 6, noise=True, share=Share((i,), 3)) for i in range(3)]
    for _ in range(5):
        batch, shares = next(whole), [next(part) for part in parts]
        assert [len(share["audio"]) for share in shares] == [2, 2, 2]
        for name, rows in batch.items():
            np.testing.assert_array_equal(rows, np.concatenate([s[name] for s in shares]))


def test_shapes_dtypes_and_the_seed(monkeypatch):
    mixture = Several([9, 5], [2, 1])
    plain = next(mixture.batches(monkeypatch))
    assert {k: (v.shape, v.dtype.name) for k, v in plain.items()} == {"audio": ((5, 40), "int16")}
    first, same, other = (next(mixture.batches(monkeypatch, noise=True, seed=seed)) for seed in (1, 1, 2))
    assert {k: (v.shape, v.dtype.name) for k, v in first.items()} == {
        "audio": ((5, 40), "int16"),
        "noise": ((5, 40), "int16"),
        "denoise": ((5,), "int8"),
    }
    np.testing.assert_array_equal(first["audio"], same["audio"])
    assert not np.array_equal(first["audio"], other["audio"])


def test_noise_is_an_excerpt_of_its_source_at_a_gain_within_bounds(monkeypatch):
    """Every excerpt is matched with all that the source has; the best match tells the gain."""
    starts, own = np.mgrid[:50, :9].reshape(2, -1, 1)
    candidates = LEAST + 20_000 + 100.0 * own + (starts + np.arange(SAMPLES)) % 50
    batches = Several([9], [1]).batches(monkeypatch, batch=50, noise=True)
    gains_db, switches = [], []
    for batch in itertools.islice(batches, 8):
        for noise in batch["noise"].astype(np.float64):
            gains = candidates @ noise / np.sum(candidates**2, axis=1)
            errors = np.abs(noise - gains[:, None] * candidates).max(1)
            assert errors.min() <= 1.0
            gains_db.append(20 * np.log10(gains[errors.argmin()]))
        switches += batch["denoise"].tolist()
    # Neighbouring candidates differ by 0.5 %, which is 0.04 dB.
    assert -12.05 < min(gains_db) < -11 and -7 < max(gains_db) < -5.95
    # Even in dB: the mean of 400 draws from a width of 6 has a deviation of 0.087.
    assert abs(np.mean(gains_db) + 9) < 0.4
    assert set(switches) == {0, 1} and abs(np.mean(switches) - 0.5) < 0.1


def test_a_gain_above_zero_is_clipped_not_wrapped(monkeypatch):
    Several([3], [1]).batches(monkeypatch)  # puts the sources in place
    loud = AudioTrainSpec(samples=SAMPLES, noise_source="noise", noise_gain_db=(20.0, 20.0))
    batch = next(sound_batches({"0": 1}, "train", SPEC, loud, 4))
    assert (batch["noise"] == 32767).all()


def test_broken_items_are_replaced_and_a_whole_broken_source_is_refused(monkeypatch):
    broken = frozenset({1, 2, 5})
    heard = names(Several([9], [1], broken).batches(monkeypatch, window_items=4), 60)
    assert {sound for _, sound in heard} == set(range(9)) - broken
    iterator = Several([6], [1], frozenset(range(6))).batches(monkeypatch)
    with pytest.raises(UserError, match="0 has no sound that can be used: 6 of 6 skipped"):
        next(iterator)


def test_a_source_that_fits_memory_is_read_once_in_one_piece(monkeypatch):
    mixture = Several([9], [1])
    for _ in range(2):
        list(itertools.islice(mixture.batches(monkeypatch), 20))
    assert mixture.sources[0].reads == [(0, 9)]


@given(st.sets(st.integers(0, 30)), st.integers(1, 5))
def test_joined_ranges_cover_the_same_items(blocks, size):
    ranges = [(size * block, size * (block + 1)) for block in sorted(blocks)]
    joined = _joined(ranges)
    assert [i for r in joined for i in range(*r)] == [i for r in ranges for i in range(*r)]
    assert all(left[1] < right[0] for left, right in itertools.pairwise(joined))


@pytest.mark.parametrize(
    ("sources", "arguments", "message"),
    [
        ({}, {}, "at least one folder"),
        ({"a": 0}, {}, "at least one folder"),
        ({"a": 1}, {"share": Share((0,), 2)}, "2 equal parts"),
        ({"absent": 1}, {}, "TOKENIZER_TRAIN.sources = 'absent' is not a folder"),
    ],
)
def test_impossible_requests_are_refused(sources, arguments, message):
    with pytest.raises(UserError, match=message):
        sound_batches(sources, "train", SPEC, AudioTrainSpec(), 5, **arguments)


# --------------------------------------------------------------------------------------- excerpts


@given(length=st.integers(1, 60), taken=st.integers(1, 60), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_excerpts_are_consecutive_samples_or_the_whole_sound_in_silence(length, taken, seed):
    samples = np.arange(100, 100 + length, dtype=np.int16)
    got = excerpt(samples, taken, np.random.default_rng(seed))
    assert got.shape == (taken,) and got.dtype == np.int16
    if length >= taken:
        np.testing.assert_array_equal(got, np.arange(got[0], got[0] + taken))
    else:
        np.testing.assert_array_equal(got[got != 0], samples)
        (places,) = np.nonzero(got)
        assert places[-1] - places[0] == length - 1


def test_excerpts_begin_everywhere():
    long, short = np.arange(100, 105, dtype=np.int16), np.full(2, 9, np.int16)
    draws = [np.random.default_rng(seed) for seed in range(60)]
    assert {int(excerpt(long, 3, draw)[0]) for draw in draws} == {100, 101, 102}
    assert {int(np.flatnonzero(excerpt(short, 4, draw))[0]) for draw in draws} == {0, 1, 2}


def test_silent_excerpts_are_drawn_again():
    """One tenth of the recording sounds: 8 tries find it in about 0.57 of all cases, not 0.1."""
    samples = np.full(10_000, 7, np.int16)
    samples[5000:6000] = 8
    heard = [int(excerpt(samples, 10, np.random.default_rng(seed)).max()) == 8 for seed in range(400)]
    assert abs(np.mean(heard) - (1 - 0.899**8)) < 0.1
    assert not excerpt(np.zeros(50, np.int16), 10, np.random.default_rng(0)).any()


# ------------------------------------------------------------------------------------- from files


def test_batches_of_a_folder_with_bad_files_in_it(tmp_path: pathlib.Path) -> None:
    """Two tones at other rates among files that are no sound; noise of another folder."""
    for name, rate_hz, frequency_hz in (("a", 44_100, 440), ("b", 16_000, 1000)):
        wave = np.sin(2 * np.pi * frequency_hz * np.arange(2 * rate_hz) / rate_hz)
        scipy.io.wavfile.write(tmp_path / f"{name}.wav", rate_hz, (wave * 20_000).astype(np.int16))
    (tmp_path / "c.wav").write_text("no sound")
    (tmp_path / "d.wav").write_bytes(b"")
    noise = np.random.default_rng(0).integers(-9000, 9000, 30_000).astype(np.int16)
    (tmp_path / "noise").mkdir()
    scipy.io.wavfile.write(tmp_path / "noise/n.wav", 16_000, noise)
    train = AudioTrainSpec(samples=8000, noise_source=str(tmp_path / "noise"))
    (tmp_path / "captions.jsonl").write_text("".join(f'{{"file": "{name}.wav"}}\n' for name in "abcd"))
    batch = next(sound_batches({str(tmp_path): 1}, "train", SPEC, train, 8, seed=0))
    spectra = np.abs(np.fft.rfft(batch["audio"] * np.hanning(8000)))
    assert set((spectra.argmax(-1) * 2).tolist()) == {440, 1000}
    assert batch["noise"].any(-1).all() and np.abs(batch["noise"].astype(int)).max() <= 9000


def test_the_size_of_a_sources_sounds_is_measured_all_over_it() -> None:
    source = Numbered(0, 9)
    sizes = [2 * (SAMPLES + 10 * i) for i in range(9)]
    assert sounds._item_bytes(source) == pytest.approx(np.mean(sizes), rel=0.1)
    assert sounds._item_bytes(Numbered(0, 3, frozenset({0, 1, 2}))) > 2**20
