"""Batches of the tasks with sound hold the stored codes, and say which of them are given."""

from __future__ import annotations

import itertools
import logging

import jax
import numpy as np
import pytest
from token_stores import AUDIO_FRAMES, GRID, LEVELS, SOUND_RATES, make_experiment, with_sound, write_store

from poet.data.checks import check
from poet.data.loader import batches, eval_batches
from poet.distributed.mesh import build
from poet.evaluation import hooks
from poet.spec import UserError
from poet.tasks.layout import HIDDEN
from poet.tasks.resolved import Resolved

FRAME = GRID[1] * GRID[2]
# Video frames 1 and 5 at 8 Hz last 6.25 and 31.25 audio frames of 20 ms; all 9 would leave nothing.
OPENING = {1: 6, 2: 31}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("sound") / "s", sound=True)


@pytest.fixture(scope="module")
def experiment(store):
    return with_sound(make_experiment(store.path))


@pytest.mark.parametrize("task", sorted(SOUND_RATES))
def test_batches_hold_the_stored_codes_on_both_sides(store, experiment, task):
    layout, seen = Resolved(experiment).layouts[task], 0
    for batch in eval_batches(Resolved(experiment), task, "validation", 4, 9):
        for tokens, known in zip(batch["tokens"], batch["known"]):
            streams = layout.parse(tokens)
            record = store.records["validation"][seen]
            for name, codes in streams.items():
                stored = record.get(name.removesuffix("_in"), np.zeros(1))
                if name == "opening_audio_in":
                    levels = record["audio"].reshape(LEVELS, -1)[:, : OPENING[2]].copy()
                    levels[:, known[-1] :] = HIDDEN
                    stored = levels.reshape(-1)
                np.testing.assert_array_equal(codes, stored)
            seen += 1
    assert seen == 8


def test_a_continuation_is_given_whole_latents_and_the_sound_in_their_time(experiment):
    """The same number of frames in every level, in training and, fixed, in evaluation."""
    task = "audio_video_continuation"
    alone = experiment.replace(data=experiment.data.replace(mixture_rates={task: 1.0}, batch=20))
    (iterator,) = batches(Resolved(alone)).values()
    taken = list(itertools.islice(iterator, 4))
    rows = np.concatenate([batch["known"] for batch in taken])
    assert rows.dtype == np.int32 and rows.shape == (80, 1 + LEVELS)
    expected = {(n * FRAME, *[frames] * LEVELS) for n, frames in OPENING.items()}
    assert set(map(tuple, rows.tolist())) == expected
    # The prefix holds the same sound as what opens the output, and hides what follows.
    streams = Resolved(experiment).layouts[task].parse(np.concatenate([batch["tokens"] for batch in taken]))
    for known, opening, sound in zip(rows, streams["opening_audio_in"], streams["audio"]):
        levels = sound.reshape(LEVELS, -1)[:, : OPENING[2]].copy()
        levels[:, known[-1] :] = HIDDEN
        np.testing.assert_array_equal(opening, levels.reshape(-1))
    (batch,) = eval_batches(Resolved(experiment), task, "train", 8, 1)
    assert np.all(batch["known"] == [2 * FRAME, *[31] * LEVELS]), "EVAL.conditioning_frames = 5"


def test_other_tasks_are_given_nothing(experiment):
    for group, iterator in batches(Resolved(experiment)).items():
        layout, rates = Resolved(experiment).groups[group]
        if "audio_video_continuation" not in rates:
            known = next(iterator)["known"]
            assert known.shape[1] == len(layout.loss_spans) and not known.any()


def test_a_store_with_sound_feeds_them_and_one_without_is_refused(store, experiment, tmp_path):
    manifest = check(Resolved(experiment), fingerprints={"video": "abc", "audio": "heard"})
    assert manifest.audio.grid == (LEVELS, AUDIO_FRAMES, 1)
    mute = with_sound(make_experiment(write_store(tmp_path / "mute").path))
    with pytest.raises(UserError, match="lacks the streams audio.*with AUDIO_TOKENIZER.path set"):
        check(Resolved(mute))
    # Tasks without sound read a store with it, whatever made the sound.
    check(Resolved(make_experiment(store.path)), fingerprints={"video": "abc"})


def test_a_run_without_an_audio_tokenizer_is_refused(experiment):
    spec = experiment.audio_tokenizer.replace(path="")
    with pytest.raises(UserError, match="needs sound and this run has none: set AUDIO_TOKENIZER"):
        check(Resolved(experiment.replace(audio_tokenizer=spec)))


def test_sound_of_another_tokenizer_or_format_is_refused(experiment):
    with pytest.raises(UserError, match="audio.fingerprint is 'heard', not 'other'"):
        check(Resolved(experiment), fingerprints={"audio": "other"})
    longer = experiment.audio_tokenizer.replace(strides=(2, 4, 5, 4))
    with pytest.raises(UserError, match=r"audio.grid is \[2, 56, 1\], not \[2, 112, 1\]"):
        check(Resolved(experiment.replace(audio_tokenizer=longer)))
    more = experiment.vocabulary.replace(audio_levels=3)
    with pytest.raises(UserError, match=r"audio.grid is \[2, 56, 1\], not \[3, 56, 1\]"):
        check(Resolved(experiment.replace(vocabulary=more)))
    faster = experiment.replace(
        clip=experiment.clip.replace(sample_rate_hz=24_000),
        audio_tokenizer=experiment.audio_tokenizer.replace(sample_rate_hz=24_000),
    )
    with pytest.raises(UserError, match="CLIP.sample_rate_hz = 16000, this run has 24000"):
        check(Resolved(faster))


def test_a_clip_without_a_sound_track_teaches_a_task_with_sound_nothing(tmp_path):
    """It is given whole, in training and in evaluation; tasks without sound learn from it as ever."""
    silent = (1, 6)
    store = write_store(tmp_path / "s", sound=True, silent=silent)
    run = with_sound(make_experiment(store.path))
    run = run.replace(data=run.data.replace(mixture_rates=SOUND_RATES | {"unconditional": 1.0}))
    for task in (*SOUND_RATES, "unconditional"):
        layout, seen = Resolved(run).layouts[task], 0
        whole = [span.segment.length for span in layout.loss_spans]
        for batch in eval_batches(Resolved(run), task, "validation", 5, 9):
            for known in batch["known"]:
                given = (known == whole).all()
                assert given == (seen in silent and task != "unconditional")
                seen += 1
        assert seen == 10


def test_silent_clips_are_learnt_from_where_the_run_says_so(tmp_path):
    store = write_store(tmp_path / "s", sound=True, silent=(1, 6))
    run = with_sound(make_experiment(store.path))
    run = run.replace(data=run.data.replace(silent_clips="train"))
    whole = [span.segment.length for span in Resolved(run).layouts["video_to_audio"].loss_spans]
    batches = eval_batches(Resolved(run), "video_to_audio", "validation", 5, 9)
    assert all((known < whole).all() for batch in batches for known in batch["known"])


def test_a_run_with_sound_on_a_store_of_silent_clips_is_refused(tmp_path, caplog):
    """Before, video_to_audio alone "finished" with a loss of 0."""
    caplog.set_level(logging.INFO)
    some = with_sound(make_experiment(write_store(tmp_path / "s", sound=True, silent=(1, 6)).path))
    check(Resolved(some))
    assert "2 of 29 clips of split 'train'" in caplog.text and "skip them" in caplog.text
    mute = with_sound(make_experiment(write_store(tmp_path / "m", sound=True, silent=range(99)).path))
    alone = mute.replace(data=mute.data.replace(mixture_rates={"video_to_audio": 1.0}))
    with pytest.raises(UserError, match=r"none of the 29 clips.* so video_to_audio would.*silent_clips"):
        check(Resolved(alone))
    with pytest.raises(UserError, match="none of the 29 clips"):
        check(Resolved(mute.replace(data=mute.data.replace(mixture_rates=SOUND_RATES | {"unconditional": 1.0}))))
    caplog.clear()
    check(Resolved(alone.replace(data=alone.data.replace(silent_clips="train"))))
    assert "29 of 29" in caplog.text and "take their sound as silence" in caplog.text
    check(Resolved(mute.replace(data=mute.data.replace(mixture_rates={"unconditional": 1.0}))))


def test_pictures_of_samples_are_of_clips_that_leave_something_to_draw(tmp_path):
    """Silent clips open the split: the hook takes the next ones, and is refused where none is left."""
    store = write_store(tmp_path / "s", sound=True, silent=(0, 1, 3))
    run = with_sound(make_experiment(store.path))
    heard = [2, *range(4, 10)]  # of the ten clips; repeated where the mesh asks for more
    for task in ("audio_to_video", "text_to_video_with_audio", "audio_video_continuation"):
        layout = Resolved(run).layouts[task]
        with jax.set_mesh(build(run.mesh)):
            batch = hooks.sample_batch(Resolved(run), task)
        assert len(batch["tokens"]) >= hooks.CLIPS_SHOWN
        for row, known in enumerate(batch["known"]):
            record = store.records["validation"][heard[row % len(heard)]]
            np.testing.assert_array_equal(layout.parse(batch["tokens"][row])["video"], record["video"])
            assert all(k < span.segment.length for k, span in zip(known, layout.loss_spans))
    mute = with_sound(make_experiment(write_store(tmp_path / "m", sound=True, silent=range(99)).path))
    with jax.set_mesh(build(mute.mesh)), pytest.raises(UserError, match="sound that audio_to_video takes"):
        hooks.sample_batch(Resolved(mute), "audio_to_video")
    elsewhere = run.replace(eval=run.eval.replace(split="test"))
    with jax.set_mesh(build(run.mesh)), pytest.raises(UserError, match="no split 'test'; it has train"):
        hooks.sample_batch(Resolved(elsewhere), "audio_to_video")
