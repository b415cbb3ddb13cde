"""Batches are the stored codes, in an order that is drawn once, shared out and resumed exactly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_stores import BITS, GRID, RATES, SHARDS, TEXT, make_experiment

from poet.data.loader import batches, eval_batches
from poet.data.mixture import BLOCK, block_counts
from poet.distributed.processes import Share
from poet.spec import UserError
from poet.tasks.registry import TASKS
from poet.tasks.resolved import Resolved

FRAME = GRID[1] * GRID[2]


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def find(records, codes) -> int:
    """Index of the record whose video codes open with `codes`."""
    hits = [i for i, r in enumerate(records) if np.array_equal(r["video"][: len(codes)], codes)]
    assert len(hits) == 1, hits
    return hits[0]


def visual(layout, tokens_BxS):
    streams = layout.parse(tokens_BxS)
    return streams.get("video", streams.get("image"))


@pytest.fixture(scope="module")
def reference(experiment):
    """Per group, more than two epochs of (state before the batch, batch), read without a break."""
    length = 2 * sum(SHARDS["train"]) // experiment.data.batch + 6
    return {
        group: [(iterator.get_state(), next(iterator)) for _ in range(length)]
        for group, iterator in batches(Resolved(experiment)).items()
    }


@pytest.mark.parametrize("task", sorted(RATES))
def test_eval_batches_hold_the_stored_codes_and_texts_in_order(store, experiment, task):
    layout = Resolved(experiment).layouts[task]
    records = store.records["validation"]
    found = list(eval_batches(Resolved(experiment), task, "validation", 4, 99))
    assert len(found) == len(records) // 4
    for i, batch in enumerate(found):
        for j in range(4):
            record = records[4 * i + j]
            codes = visual(layout, batch["tokens"][j])
            np.testing.assert_array_equal(codes, record["video"][: len(codes)])
            if layout.text_span:
                length = record["text_length"]
                assert batch["text_length"][j] == length
                np.testing.assert_array_equal(batch["text_states"][j, :length], record["text_states"])


def test_eval_batches_are_the_same_every_time_and_fix_the_known_latents(experiment):
    for task, latents in {"frame_prediction": 2, "image_to_video": 1}.items():
        first, again = (list(eval_batches(Resolved(experiment), task, "train", 8, 2)) for _ in range(2))
        assert len(first) == 2 and all(map(equal, first, again))
        assert {int(k) for b in first for (k,) in b["known"]} == {latents * FRAME}


def test_every_group_gives_stored_codes_with_the_shapes_of_its_layout(store, experiment, reference):
    assert reference.keys() == Resolved(experiment).groups.keys()
    for group, steps in reference.items():
        layout, _ = Resolved(experiment).groups[group]
        for _, batch in steps:
            size = len(batch["tokens"])
            assert batch["tokens"].dtype == np.int32
            assert batch["tokens"].shape == (size, layout.length)
            assert batch["known"].dtype == np.int32
            assert batch["known"].shape == (size, len(layout.loss_spans))
            for codes in visual(layout, batch["tokens"]):
                find(store.records["train"], codes)
            assert ("text_states" in batch) == (layout.text_span is not None)
            if layout.text_span:
                assert batch["text_states"].dtype == np.float16
                assert batch["text_states"].shape == (size, TEXT.length, TEXT.width)
                assert batch["text_length"].dtype == np.int32


def test_text_states_are_those_of_the_clip_and_zero_beyond_the_text(store, experiment, reference):
    layout, _ = Resolved(experiment).groups["text-to-video"]
    shown = []
    for _, batch in reference["text-to-video"]:
        for codes, states, length in zip(visual(layout, batch["tokens"]), batch["text_states"], batch["text_length"]):
            record = store.records["train"][find(store.records["train"], codes)]
            assert length in (0, record["text_length"])
            np.testing.assert_array_equal(states[:length], record["text_states"][:length])
            assert not states[length:].any()
            shown.append(length > 0)
    assert any(shown) and not all(shown)


@pytest.mark.parametrize("task", sorted(RATES))
def test_known_codes_lie_in_the_range_of_their_task_and_reach_all_of_it(store, task):
    experiment = make_experiment(store.path, mixture_rates={task: 1.0}, batch=20)
    low, high = TASKS[task].conditioning_latents
    high = min(high, GRID[0] - 1)  # one latent frame is left to predict
    (iterator,) = batches(Resolved(experiment)).values()
    known = {int(k) for batch in take(iterator, 4) for (k,) in batch["known"]}
    assert known == {latents * FRAME for latents in range(low, high + 1)}


def test_known_and_dropped_texts_are_drawn_anew_in_every_epoch(store):
    experiment = make_experiment(store.path, mixture_rates={"frame_prediction": 1.0}, batch=sum(SHARDS["train"]))
    layout = Resolved(experiment).layouts["frame_prediction"]
    epochs = []
    for batch in take(batches(Resolved(experiment))["video"], 2):
        rows = [find(store.records["train"], v) for v in visual(layout, batch["tokens"])]
        epochs.append(dict(zip(rows, batch["known"][:, 0].tolist())))
    assert epochs[0].keys() == epochs[1].keys() and epochs[0] != epochs[1]


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_share_of_dropped_texts_is_the_configured_one(store, share):
    experiment = make_experiment(store.path, mixture_rates={"text_to_image": 1.0}, batch=32, text_dropout=share)
    lengths = np.concatenate([b["text_length"] for b in take(batches(Resolved(experiment))["text-to-image"], 100)])
    deviation = 4 * np.sqrt(share * (1 - share) / len(lengths))
    assert abs(np.mean(lengths == 0) - share) <= deviation


def test_the_fraction_of_hidden_conditions_is_the_configured_one(store):
    share = 0.3
    experiment = make_experiment(
        store.path, mixture_rates={"image_to_video_bidirectional": 1.0}, batch=32, condition_dropout=share
    )
    resolved = Resolved(experiment)
    layout = resolved.layouts["image_to_video_bidirectional"]
    (group,) = batches(resolved)
    hidden = np.concatenate(
        [(layout.parse(b["tokens"])["image_in"] == -1).mean(-1) for b in take(batches(resolved)[group], 40)]
    )
    gone = hidden == 1
    assert abs(gone.mean() - share) <= 4 * np.sqrt(share * (1 - share) / len(gone))


def test_an_epoch_visits_every_clip_once_and_the_next_one_in_another_order(store):
    size = sum(SHARDS["train"])
    experiment = make_experiment(store.path, mixture_rates={"unconditional": 1.0}, batch=size)
    layout = Resolved(experiment).layouts["unconditional"]
    orders = []
    for batch in take(batches(Resolved(experiment))["video"], 6):
        rows = [find(store.records["train"], v) for v in visual(layout, batch["tokens"])]
        assert sorted(rows) == list(range(size))
        orders.append(tuple(rows))
    assert len(set(orders)) == 6
    # Neighbours of one epoch are neighbours in the next one once on average, not nearly always.
    follow = [set(itertools.pairwise(order)) for order in orders]
    assert max(len(a & b) for a, b in itertools.pairwise(follow)) < size // 3


@pytest.mark.parametrize("group", ["video", "text-to-video", "text-to-image"])
@given(data=st.data())
@settings(max_examples=4, deadline=None)
def test_resuming_at_any_point_continues_bit_for_bit(experiment, reference, group, data):
    steps = reference[group]
    position = data.draw(st.integers(0, len(steps) - 4))
    iterator = batches(Resolved(experiment))[group]
    if data.draw(st.booleans()):
        next(iterator)  # a used iterator can be moved too
    iterator.set_state(steps[position][0])
    for state, batch in steps[position : position + 4]:
        assert isinstance(state, bytes) and len(state) < 1000
        assert iterator.get_state() == state
        assert equal(next(iterator), batch)


def test_the_seed_decides_the_order(store, reference):
    for group, iterator in batches(Resolved(make_experiment(store.path, seed=1))).items():
        for _, batch in reference[group][:4]:
            assert not equal(next(iterator), batch)


# Two processes; three of unequal size; two whose rows alternate, as on a torus.
SHARES = {
    "halves": (Share((0,), 2), Share((1,), 2)),
    "more than there are files": (Share((0, 1, 2), 6), Share((3,), 6), Share((4, 5), 6)),
    "interleaved": (Share((0, 2), 4), Share((1, 3), 4)),
}


@pytest.mark.parametrize(
    ("shares", "group"),
    [
        pytest.param(shares, group, id=f"{group}-{name}", marks=[pytest.mark.slow] * (group == "text-to-video"))
        for name, shares in SHARES.items()
        for group in ("video", "text-to-video")
    ],
)
def test_processes_hold_the_rows_of_one_without_overlap_or_gap(store, shares, group):
    """From the start over two epochs, and resumed where a block of the mixture ends."""
    experiment = make_experiment(store.path, batch=12, equal_tokens=False)
    assert sorted(np.concatenate([s.rows(12) for s in shares])) == list(range(12))
    whole = batches(Resolved(experiment))[group]
    parts = [batches(Resolved(experiment), share=share)[group] for share in shares]
    for start, length in ((0, 6), (BLOCK // 12 * 12 - 12, 3)):
        for iterator in (whole, *parts):
            iterator.set_state(b'{"examples": %d}' % start)
        for _ in range(length):
            batch = next(whole)
            for share, part in zip(shares, parts):
                own = {name: rows[share.rows(12)] for name, rows in batch.items()}
                assert equal(next(part), own) and part.get_state() == whole.get_state()


def test_eval_processes_hold_the_rows_of_one_and_leave_out_the_same_rest(experiment):
    """Of ten clips two are left over: all that one of the processes would have of a third batch."""
    whole = list(eval_batches(Resolved(experiment), "text_to_video", "validation", 4, 99))
    assert len(whole) == 2 and sum(SHARDS["validation"]) == 10
    for share in SHARES["halves"]:
        own = list(eval_batches(Resolved(experiment), "text_to_video", "validation", 4, 99, share=share))
        assert len(own) == 2
        for batch, part in zip(whole, own):
            assert equal(part, {name: rows[share.rows(4)] for name, rows in batch.items()})


def test_the_mixture_gives_every_block_its_exact_shares(store):
    """The known count tells the tasks apart: 0 unconditional, at least one latent otherwise."""
    rates = {"unconditional": 1.0, "frame_prediction": 3.0}
    experiment = make_experiment(store.path, mixture_rates=rates, batch=BLOCK // 8)
    known = np.concatenate([b["known"] for b in take(batches(Resolved(experiment))["video"], 16)])
    for block in known.reshape(2, BLOCK):
        assert np.sum(block == 0) == BLOCK // 4
    assert not np.array_equal(known[:BLOCK] == 0, known[BLOCK:] == 0)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20))
@settings(deadline=None)
def test_block_counts_are_whole_and_within_one_of_the_rates(rates):
    counts = block_counts(rates)
    shares = np.asarray(rates) / np.sum(rates) * BLOCK
    assert sum(counts) == BLOCK and min(counts) >= 1
    rare = np.sum(shares < 1)  # each is raised to one example, which others give up
    assert np.all(np.abs(counts - shares) <= 1 + rare)


def test_a_batch_that_processes_cannot_share_is_refused(store):
    with pytest.raises(UserError, match="3 equal parts"):
        batches(Resolved(make_experiment(store.path, batch=4)), share=Share((0,), 3))


def test_a_split_that_is_missing_or_smaller_than_a_batch_is_refused(experiment):
    with pytest.raises(UserError, match="no split 'test'.*train, validation"):
        eval_batches(Resolved(experiment), "unconditional", "test", 4, 1)
    with pytest.raises(UserError, match="less than one batch of 11"):
        eval_batches(Resolved(experiment), "unconditional", "validation", 11, 1)


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"{}",
        b"[1]",
        b"3",
        b'{"examples": -1}',
        b"\xff",
        b'{"examples": 8, "tasks": 1}',
        b'{"examples": 8, "tasks": {"unconditional": -1}}',
        b'{"examples": 8.5}',
    ],
)
def test_a_foreign_state_is_refused_and_leaves_the_position(experiment, state):
    iterator = batches(Resolved(experiment))["video"]
    next(iterator)
    before = iterator.get_state()
    with pytest.raises(UserError):
        iterator.set_state(state)
    assert iterator.get_state() == before


def test_codes_fit_the_visual_range(experiment):
    layout = Resolved(experiment).layouts["text_to_video"]
    batch = next(batches(Resolved(experiment))["text-to-video"])
    assert layout.parse(batch["tokens"])["video"].max() < 2**BITS
