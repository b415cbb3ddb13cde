"""Epochs are fresh permutations, computed at any place; records are read at any place and checked."""

from __future__ import annotations

import gc
import itertools
import json
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from token_stores import make_experiment, write_store

from poet.data import records
from poet.data.loader import batches, eval_batches
from poet.data.mixture import BLOCK
from poet.data.permutation import permuted
from poet.distributed.processes import Share
from poet.spec import UserError
from poet.tasks.resolved import Resolved


def order(size: int, key: tuple[int, ...]) -> np.ndarray:
    return permuted(np.arange(size), size, key)


@given(size=st.integers(1, 3000), key=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**40)))
@settings(deadline=None, max_examples=60)
def test_every_place_of_a_permutation_is_computed_by_itself(size, key):
    whole = order(size, key)
    assert whole.dtype == np.int64 and sorted(whole.tolist()) == list(range(size))
    some = np.random.default_rng(size).integers(0, size, 5)
    np.testing.assert_array_equal(permuted(some, size, key), whole[some])


def test_a_large_permutation_costs_no_memory():
    size = 10**15
    places = np.arange(10**15 - 1000, 10**15)
    found = permuted(places, size, (1, 2))
    assert len(set(found.tolist())) == 1000 and 0 <= found.min() and found.max() < size


def test_permutations_are_as_even_as_shuffles():
    """Of four items all 24 orders, and in a larger one every item at every place, within 5 deviations."""
    count = 24 * 60
    orders, found = np.unique([order(4, (7, epoch)) for epoch in range(count)], axis=0, return_counts=True)
    assert len(orders) == 24 and np.sum((found - 60) ** 2 / 60) < 23 + 5 * np.sqrt(2 * 23)
    size, epochs = 23, 1150
    places = np.zeros((size, size))
    for epoch in range(epochs):
        places[order(size, (3, epoch)), np.arange(size)] += 1
    expected, freedom = epochs / size, (size - 1) ** 2
    assert np.sum((places - expected) ** 2 / expected) < freedom + 5 * np.sqrt(2 * freedom)


def test_neighbours_of_an_epoch_are_strangers_in_the_next_one():
    """Two clips that share a batch of four share one again as rarely as after a fresh shuffle."""
    size, batch, epochs = 2000, 4, 12
    pairs = []
    for epoch in range(epochs):
        rows = order(size, (0, epoch)).reshape(-1, batch)
        pairs.append({pair for row in np.sort(rows) for pair in itertools.combinations(row.tolist(), 2)})
    again = [len(a & b) / len(a) for a, b in itertools.pairwise(pairs)]
    expected = (batch - 1) / (size - 1)
    deviation = np.sqrt(expected / (len(pairs[0]) * len(again)))
    assert abs(np.mean(again) - expected) < 5 * deviation


# ------------------------------------------------------------------------------------- records


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "s", {"train": (7, 1, 9)})


def opened(store) -> records.Records:
    return records.open_records(records.list_files(tfds.builder_from_directory(store.path), "train"))


def shards(store) -> list[Path]:
    return sorted(Path(store.path).glob("*train*.tfrecord*"))


def test_records_at_any_place_are_those_that_tensorflow_reads(store):
    whole = [r for file in shards(store) for r in tf.data.TFRecordDataset(str(file)).as_numpy_iterator()]
    found = opened(store)
    assert len(found) == len(whole) == 17
    for index in (16, 0, 7, 8, 3, 6, 15):
        assert found[index] == whole[index]


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_a_damaged_store_is_refused_by_the_name_of_shard_and_record(store):
    run = make_experiment(store.path, mixture_rates={"unconditional": 1.0}, batch=17)
    shard = shards(store)[2]
    start = int(records._offsets(records._File(str(shard)), 9)[4])
    damages = {
        f"{shard} is damaged: record 4, at byte {start}, does not match its checksum": start + 60,
        f"{shard} is damaged: record 4, at byte {start}, has no header": start + 3,
    }
    for message, place in damages.items():
        flip(shard, place)
        with pytest.raises(UserError, match=message):
            next(batches(Resolved(run))["video"])
        with pytest.raises(UserError, match=message):
            list(eval_batches(Resolved(run), "unconditional", "train", 4, 9))
        flip(shard, place)
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(UserError, match=f"{shard} is damaged: it ends at byte .*within a record"):
        next(batches(Resolved(run))["video"])
    shard.unlink()
    with pytest.raises(UserError, match=f"the shard {shard} cannot be read: No such file"):
        next(batches(Resolved(run))["video"])


def test_a_process_reads_its_own_records_alone(store, monkeypatch):
    read = []
    item = records.Records.__getitem__
    monkeypatch.setattr(records.Records, "__getitem__", lambda self, i: read.append(i) or item(self, i))
    run = make_experiment(store.path, mixture_rates={"unconditional": 1.0}, batch=4)
    assert len(list(eval_batches(Resolved(run), "unconditional", "train", 4, 9, share=Share((1,), 4)))) == 4
    assert sorted(read) == [1, 5, 9, 13]


@pytest.mark.slow
def test_a_process_ends_while_records_are_being_read(store):
    """TensorFlow reads ahead by calling Python, which is not there any more when a process ends."""
    code = f"""
import sys, time
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
from token_stores import make_experiment
from poet.data import records
from poet.data.loader import batches
from poet.tasks.resolved import Resolved
item = records.Records.__getitem__
records.Records.__getitem__ = lambda self, i: time.sleep(0.05) or item(self, i)
iterator = batches(Resolved(make_experiment({store.path!r}, batch=4)))["video"]
next(iterator)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=90)


def test_an_iterator_is_freed_with_its_last_reference(store):
    """In a cycle the garbage collector would free it, and wait for threads that wait for it."""
    iterator = batches(Resolved(make_experiment(store.path, batch=4)))["video"]
    next(iterator)
    found = weakref.ref(iterator), weakref.ref(iterator._batches)
    gc.disable()
    try:
        del iterator
        assert [ref() for ref in found] == [None, None]
    finally:
        gc.enable()


# ------------------------------------------------------------------------------------ positions

RATES = {"unconditional": 1.0, "frame_prediction": 3.0}


def tasks(iterator) -> dict[str, int]:
    return json.loads(iterator.get_state())["tasks"]


def test_other_rates_leave_every_task_where_it_stands(store):
    """A task that is added begins, one that is left out is remembered."""

    def started(rates, state=None):
        iterator = batches(Resolved(make_experiment(store.path, mixture_rates=rates, batch=64)))["video"]
        if state:
            iterator.set_state(state)
        return iterator

    first = started(RATES)
    for _ in range(BLOCK // 64):
        next(first)
    assert tasks(first) == {"unconditional": BLOCK // 4, "frame_prediction": BLOCK * 3 // 4}
    swapped = started({"unconditional": 3.0, "frame_prediction": 1.0}, first.get_state())
    assert tasks(swapped) == tasks(first)
    alone = started({"unconditional": 1.0}, first.get_state())
    next(alone)
    assert tasks(alone) == {"unconditional": BLOCK // 4 + 64, "frame_prediction": BLOCK * 3 // 4}
    back = started(RATES, alone.get_state())
    assert tasks(back) == tasks(alone)
    again = started(RATES, back.get_state())
    for _ in range(3):
        np.testing.assert_array_equal(next(back)["tokens"], next(again)["tokens"])
    assert tasks(again) == tasks(back) and sum(tasks(back).values()) == BLOCK + 64 + 3 * 64


def test_a_task_goes_on_in_its_own_order_whatever_the_rates_become(store):
    """Its clips after a change are those that it would have read next without one."""
    prediction = make_experiment(store.path, mixture_rates={"frame_prediction": 1.0}, batch=8)
    mixed = make_experiment(store.path, mixture_rates=RATES, batch=8)
    alone, wanted = batches(Resolved(prediction))["video"], batches(Resolved(prediction))["video"]
    for _ in range(5):
        next(alone), next(wanted)
    moved = batches(Resolved(mixed))["video"]
    moved.set_state(alone.get_state())
    rows = np.concatenate([next(moved)["tokens"] for _ in range(4)])
    known = batches(Resolved(mixed))["video"]
    known.set_state(alone.get_state())
    opened = np.concatenate([next(known)["known"][:, 0] for _ in range(4)]) > 0
    expected = np.concatenate([next(wanted)["tokens"] for _ in range(4)])
    np.testing.assert_array_equal(rows[opened], expected[: opened.sum()])


def test_a_position_of_an_earlier_version_is_taken_and_said(store, caplog):
    iterator = batches(Resolved(make_experiment(store.path, mixture_rates=RATES, batch=8)))["video"]
    iterator.set_state(b'{"examples": 2048}')
    assert "earlier version" in caplog.text
    assert tasks(iterator) == {"unconditional": 512, "frame_prediction": 1536}
    next(iterator)
