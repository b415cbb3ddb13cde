"""What every registered task must hold: its codes come back, and what is given carries no loss."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from poet.spec import AudioTokenizerSpec, ClipSpec, DataSpec, EvalSpec, Experiment, TextSpec, UserError, VocabularySpec
from poet.spec.vocabulary import Special, Vocabulary
from poet.tasks.registry import TASKS
from poet.tasks.resolved import Resolved
from poet.training.losses import span_weights

PAPER = Experiment(
    audio_tokenizer=AudioTokenizerSpec(path="trained"),
    text=TextSpec(pieces="spiece.model"),
    data=DataSpec(mixture_rates={name: 1.0 for name in TASKS}),
)
VOCABULARY = Vocabulary(PAPER.vocabulary)
# Output streams -> the `<task>` id: one per distinct output type (VideoPoet §3.2).
TASK_IDS = {
    ("image",): Special.TASK_VIDEO,
    ("video",): Special.TASK_VIDEO,
    ("audio",): Special.TASK_AUDIO,
    ("video", "audio"): Special.TASK_VIDEO_AUDIO,
    ("pieces",): Special.TASK_TEXT,
}
# Codes (5 x 16 x 16, and 106 frames of 4 levels) with the range that each must stand in.
RANGES = {
    "video": [(1280, VOCABULARY.visual)],
    "low_resolution": [(320, VOCABULARY.visual)],
    "image": [(256, VOCABULARY.visual)],
    "audio": [(106, VOCABULARY.audio(level)) for level in range(4)],
    "opening_audio": [(56, VOCABULARY.audio(level)) for level in range(4)],
    "source": [(1, VOCABULARY.source)],
    "pieces": [(64, VOCABULARY.text)],
}


def random_codes(stream: str, rng: np.random.Generator) -> np.ndarray:
    parts = RANGES[stream.removesuffix("_in")]
    codes = [rng.integers(0, ids.size, (2, n)) for n, ids in parts]
    return np.concatenate(codes, axis=1).astype(np.int32)


def expected_ids(codes: np.ndarray, stream: str) -> np.ndarray:
    """The ids of a stream's codes, each part shifted into its own range."""
    parts = RANGES[stream.removesuffix("_in")]
    cuts = np.cumsum([n for n, _ in parts])[:-1]
    pieces = np.split(codes, cuts, axis=1)
    return np.concatenate([p + ids.low for p, (_, ids) in zip(pieces, parts)], axis=1)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_codes_stand_in_the_order_of_the_declaration_and_come_back(name):
    task, layout = TASKS[name], Resolved(PAPER).layouts[name]
    rng = np.random.default_rng(0)
    opening = ["opening_audio_in"] if task.openings else []
    names = [f"{s}_in" for s in task.condition] + [*opening, "source", *task.output]
    codes = {stream: random_codes(stream, rng) for stream in names}
    tokens = layout.assemble(codes)
    parsed = layout.parse(tokens)
    assert parsed.keys() == codes.keys()
    for stream, values in codes.items():
        np.testing.assert_array_equal(parsed[stream], values)
    # What is no special token are the streams in their order, level by level, and nothing else.
    body = tokens[:, (tokens[0] >= VOCABULARY.visual.low)]
    streams = [s for s in names if s != "source"]
    np.testing.assert_array_equal(body, np.concatenate([expected_ids(codes[s], s) for s in streams], axis=1))
    assert tokens[0, :2].tolist() == [Special.BOS, TASK_IDS[task.output]]
    assert (layout.text_span is not None) == task.text
    assert layout.condition_streams == tuple(s for s in names if s not in task.output)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_loss_lies_on_outputs_and_not_on_what_opens_them(name):
    """n known latents show 1 + 4 (n - 1) frames; floor(frames / 8 * 50) audio frames go along."""
    task, layout = TASKS[name], Resolved(PAPER).layouts[name]
    assert {s.segment.stream for s in layout.loss_spans} == set(task.output)
    assert all(s.start > layout.prefix_length for s in layout.loss_spans)
    low, high = task.conditioning_latents
    for latents in range(low, high + 1):
        audio_frames = {0: 0, 1: 6, 2: 31, 3: 56}[latents]
        frames = 256 * latents
        given = {"image": frames, "video": frames, "audio": audio_frames, "pieces": 0}
        counts = Resolved(PAPER).conditioning_codes(task, latents)
        for span, count in zip(layout.loss_spans, counts, strict=True):
            assert count == given[span.segment.stream]
            labels = jnp.full((1, span.segment.length), span.segment.ids.high - 1)
            weights = np.asarray(span_weights(span, jnp.array([count]), labels))[0]
            assert not weights[:count].any() and weights[count:].all()
            assert len(weights) == span.stop - span.start


@pytest.mark.parametrize("frames", [5, 9, 17, 41])
def test_what_is_given_always_leaves_a_latent_frame_to_predict(frames):
    """The one clamp, for every task; the declaration holds where a clip is long enough."""
    run = PAPER.replace(clip=ClipSpec(frames=frames))
    whole = 256 * (1 + (frames - 1) // 4)
    for task in TASKS.values():
        low, high = Resolved(run).conditioning_range(task)
        assert low == task.conditioning_latents[0] and low <= high <= task.conditioning_latents[1]
        for latents in range(low, high + 1):
            if "video" in task.output:
                assert Resolved(run).conditioning_codes(task, latents)[0] <= whole - 256
        if frames >= 17:
            assert (low, high) == task.conditioning_latents


def test_clips_that_a_task_is_given_whole_are_refused():
    still = PAPER.replace(clip=ClipSpec(frames=1))
    names = {
        "image_to_video",
        "frame_prediction",
        "image_to_video_bidirectional",
        "frame_prediction_bidirectional",
        "audio_video_continuation",
    }
    for name, task in TASKS.items():
        if name in names:
            with pytest.raises(UserError, match=f"{name} is given 1 of the 1 frames.*CLIP.frames to 5"):
                Resolved(still).conditioning_range(task)
        else:
            assert Resolved(still).conditioning_range(task) == (0, 0)
    with pytest.raises(UserError, match="leaves nothing to predict"):
        _ = Resolved(still).layouts


@pytest.mark.parametrize(
    "frames, known, latents",
    [(17, 1, 1), (17, 5, 2), (17, 9, 3), (17, 4, 5), (17, 8, 9), (17, 13, 9), (9, 9, 5), (9, 5, 2), (5, 5, 1)],
)
def test_evaluation_gives_the_frames_that_were_asked_for_or_refuses(frames, known, latents):
    """`latents` below `known` is what is given; else the run is refused and `latents` is the hint.

    Where a task takes one number alone, as a clip of five frames leaves, that is given.
    """
    run = PAPER.replace(clip=ClipSpec(frames=frames), eval=EvalSpec(conditioning_frames=known))
    assert Resolved(run).eval_latents(TASKS["image_to_video"]) == Resolved(run).eval_latents(TASKS["stylization"]) == 1
    assert Resolved(run).eval_latents(TASKS["text_to_video"]) == 0
    task = TASKS["frame_prediction"]
    if (known - 1) % 4 == 0 and (known < 13 and known < frames or frames == 5):
        assert Resolved(run).eval_latents(task) == latents
    else:
        message = f"conditioning_frames = {known}: .*set EVAL.conditioning_frames = {latents}"
        with pytest.raises(UserError, match=message):
            Resolved(run).eval_latents(task)


def test_what_fills_a_written_text_up_carries_no_loss():
    (span,) = Resolved(PAPER).layouts["captioning"].loss_spans
    pieces = np.zeros((2, 64), np.int64)
    pieces[0, :5], pieces[1, :64] = [9, 8, 7, 6, 1], 11
    weights = span_weights(span, jnp.zeros(2, jnp.int32), jnp.array(pieces + span.segment.ids.low))
    np.testing.assert_array_equal(weights, pieces > 0)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_long_clips_say_how_long_they_are_and_short_ones_do_not(name):
    """41 frames are 11 latent ones; what shows nothing has no such token."""
    task, long = TASKS[name], PAPER.replace(clip=ClipSpec(frames=41))
    tokens = {
        run.clip.frames: [s.ids.low for s in Resolved(run).layout(task).segments if s.stream == "duration"]
        for run in (PAPER, long)
    }
    shows = {"video", "image"} & set(task.output)
    assert tokens == {17: [], 41: [Special.DURATION_0 + 11] if shows else []}


def test_clips_that_no_token_stands_for_are_refused():
    with pytest.raises(UserError, match="125 are 32 latent frames.*31 at most"):
        _ = Resolved(PAPER.replace(clip=ClipSpec(frames=125))).format


def test_a_text_that_is_not_there_leaves_the_sequence_as_it_is():
    """Its positions are masked: a task with text has one layout, whatever its texts."""
    for name, layout in Resolved(PAPER).layouts.items():
        assert (layout.text_span is not None) == TASKS[name].text
        if layout.text_span is not None:
            assert layout.text_span.segment.length == 64
            assert "text" not in layout.condition_streams


def test_conditions_that_a_store_needs_follow_from_the_mixture():
    derived = {"inpainting", "interpolation", "outpainting", "prediction", "structure"}
    named = {stream.name for stream in Resolved(PAPER).stored_streams}
    assert named == derived | {"video", "audio", "pieces", "low_resolution"}
    rates = {"stylization": 1.0, "inpainting": 0.0, "text_to_video": 1.0}
    *_, last = Resolved(PAPER.replace(data=DataSpec(mixture_rates=rates))).stored_streams
    assert last.name == "structure"
    assert TASKS["stylization"].stored("video_in") == "structure"
    assert TASKS["stylization"].stored("video") == TASKS["captioning"].stored("video_in") == "video"


def test_groups_are_few_and_every_step_of_about_as_many_tokens():
    table, batches = Resolved(PAPER).groups, Resolved(PAPER).batches
    assert sorted(name for _, rates in table.values() for name in rates) == sorted(TASKS)
    assert len(table) <= 13
    longest = max(layout.length for layout, _ in table.values())
    for group, (layout, _) in table.items():
        tokens = batches[group] * layout.length
        assert longest * PAPER.data.batch / 2 < tokens <= longest * PAPER.data.batch


def test_a_task_that_writes_is_refused_in_a_run_without_pieces():
    mute = PAPER.replace(text=TextSpec())
    with pytest.raises(UserError, match="captioning writes text.*TEXT.pieces"):
        Resolved(mute).layout(TASKS["captioning"])


def test_every_known_audio_frame_is_heard_within_the_known_frames():
    """The last known frame of codes ends before the known video does, the next one after it."""
    task = TASKS["audio_video_continuation"]
    rates = ((8.0, 16_000, (2, 4, 5, 8)), (7.5, 24_000, (3, 4, 5, 8)))
    for rate_hz, sample_rate_hz, strides in rates:
        experiment = PAPER.replace(
            clip=ClipSpec(rate_hz=rate_hz, sample_rate_hz=sample_rate_hz),
            audio_tokenizer=AudioTokenizerSpec(sample_rate_hz=sample_rate_hz, strides=strides, path="trained"),
        )
        hop_s = np.prod(strides) / sample_rate_hz
        for latents in range(1, 5):
            frames = Resolved(experiment).conditioning_codes(task, latents)[-1]
            seconds = (1 + 4 * (latents - 1)) / rate_hz
            assert frames * hop_s <= seconds < (frames + 1) * hop_s
    whole = Resolved(PAPER).format.audio_frames
    assert Resolved(PAPER).conditioning_codes(task, 5)[-1] == whole == 106


def test_a_task_with_sound_in_a_run_without_it_is_refused():
    silent = PAPER.replace(audio_tokenizer=AudioTokenizerSpec())
    for task in TASKS.values():
        if task.writes:
            continue
        if task.has_audio:
            with pytest.raises(UserError, match=f"{task.name} needs sound.*AUDIO_TOKENIZER.path"):
                Resolved(silent).layout(task)
        else:
            assert Resolved(silent).layout(task) == Resolved(PAPER).layout(task)
    with pytest.raises(UserError, match="needs sound"):
        _ = Resolved(silent).layouts
    video = PAPER.replace(data=DataSpec(mixture_rates={"unconditional": 1.0}))
    assert Resolved(PAPER).has_audio and not Resolved(video).has_audio


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vocabulary": VocabularySpec(audio_levels=13)}, "audio_levels = 13 .*levels = 12"),
        ({"vocabulary": VocabularySpec(audio_codes=512)}, "audio_codes = 512 .*codes = 1024"),
        ({"clip": ClipSpec(sample_rate_hz=24_000)}, "sample_rate_hz = 24000 .* = 16000"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused_only_where_it_is_used(changes, message):
    with pytest.raises(UserError, match=message):
        PAPER.replace(**changes)
    PAPER.replace(audio_tokenizer=AudioTokenizerSpec()).replace(**changes)
