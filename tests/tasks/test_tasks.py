"""What every registered task must hold: its codes come back, and what is given carries no loss."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from poet.specs import (
    AudioTokenizerSpec,
    ClipSpec,
    DataSpec,
    Experiment,
    UserError,
    VocabularySpec,
)
from poet.tasks.registry import TASKS, has_audio, known_codes, layouts, run_format, run_layout
from poet.training.losses import span_weights
from poet.vocabulary import Special, Vocabulary

PAPER = Experiment(
    audio_tokenizer=AudioTokenizerSpec(path="trained"),
    data=DataSpec(rates={name: 1.0 for name in TASKS}),
)
VOCABULARY = Vocabulary(PAPER.vocabulary)
# Output streams -> the `<task>` id: one per distinct output type (VideoPoet §3.2).
TASK_IDS = {
    ("image",): Special.TASK_VIDEO,
    ("video",): Special.TASK_VIDEO,
    ("audio",): Special.TASK_AUDIO,
    ("video", "audio"): Special.TASK_VIDEO_AUDIO,
}
# Codes (5 x 16 x 16, and 106 frames of 4 levels) with the range that each must stand in.
RANGES = {
    "video": [(1280, VOCABULARY.visual)],
    "image": [(256, VOCABULARY.visual)],
    "audio": [(106, VOCABULARY.audio(level)) for level in range(4)],
    "source": [(1, VOCABULARY.source)],
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
    task, layout = TASKS[name], layouts(PAPER)[name]
    rng = np.random.default_rng(0)
    names = [f"{s}_in" for s in task.condition] + ["source", *task.output]
    codes = {stream: random_codes(stream, rng) for stream in names}
    tokens = layout.assemble(codes)
    parsed = layout.parse(tokens)
    assert parsed.keys() == codes.keys()
    for stream, values in codes.items():
        np.testing.assert_array_equal(parsed[stream], values)
    # What is no special token are the streams in their order, level by level, and nothing else.
    body = tokens[:, (tokens[0] >= VOCABULARY.visual.low)]
    streams = [s for s in names if s != "source"]
    np.testing.assert_array_equal(
        body, np.concatenate([expected_ids(codes[s], s) for s in streams], axis=1)
    )
    assert tokens[0, :2].tolist() == [Special.BOS, TASK_IDS[task.output]]
    assert (layout.text_span is not None) == task.text
    assert layout.condition_streams == tuple(s for s in names if s not in task.output)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_loss_lies_on_outputs_and_not_on_what_opens_them(name):
    """n known latents show 1 + 4 (n - 1) frames; floor(frames / 8 * 50) audio frames go along."""
    task, layout = TASKS[name], layouts(PAPER)[name]
    assert {s.segment.stream for s in layout.loss_spans} == set(task.output)
    assert all(s.start > layout.prefix_length for s in layout.loss_spans)
    low, high = task.known_latents
    for latents in range(low, high + 1):
        audio_frames = {0: 0, 1: 6, 2: 31, 3: 56}[latents]
        given = {"image": 256 * latents, "video": 256 * latents, "audio": audio_frames}
        counts = known_codes(PAPER, task, latents)
        for span, count in zip(layout.loss_spans, counts, strict=True):
            assert count == given[span.segment.stream]
            weights = np.asarray(span_weights(span, jnp.array([count])))[0]
            assert not weights[:count].any() and weights[count:].all()
            assert len(weights) == span.stop - span.start


def test_every_known_audio_frame_is_heard_within_the_known_frames():
    """The last known frame of codes ends before the known video does, the next one after it."""
    task = TASKS["audio_video_continuation"]
    rates = ((8.0, 16_000, (2, 4, 5, 8)), (7.5, 24_000, (3, 4, 5, 8)))
    for rate_hz, sample_rate_hz, strides in rates:
        experiment = PAPER.replace(
            clip=ClipSpec(rate_hz=rate_hz, sample_rate_hz=sample_rate_hz),
            audio_tokenizer=AudioTokenizerSpec(
                sample_rate_hz=sample_rate_hz, strides=strides, path="trained"
            ),
        )
        hop_s = np.prod(strides) / sample_rate_hz
        for latents in range(1, 5):
            frames = known_codes(experiment, task, latents)[-1]
            seconds = (1 + 4 * (latents - 1)) / rate_hz
            assert frames * hop_s <= seconds < (frames + 1) * hop_s
    whole = run_format(PAPER).audio_frames
    assert known_codes(PAPER, task, 5)[-1] == whole == 106


def test_a_task_with_sound_in_a_run_without_it_is_refused():
    silent = PAPER.replace(audio_tokenizer=AudioTokenizerSpec())
    for task in TASKS.values():
        if task.has_audio:
            with pytest.raises(UserError, match=f"{task.name} needs sound.*AUDIO_TOKENIZER.path"):
                run_layout(silent, task)
        else:
            assert run_layout(silent, task) == run_layout(PAPER, task)
    with pytest.raises(UserError, match="needs sound"):
        layouts(silent)
    video = PAPER.replace(data=DataSpec(rates={"unconditional": 1.0}))
    assert has_audio(PAPER) and not has_audio(video)


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
