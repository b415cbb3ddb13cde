"""The engine over programs that compile nothing: who draws which row, in which order, and who hears of it."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from poet.sampling.engine import Engine, Inputs
from poet.sampling.plans import Plan, Text
from poet.sampling.requests import make_plan
from poet.spec import SampleSpec, UserError
from poet.tasks.registry import get_task
from poet.tasks.resolved import Resolved

SAMPLE = SampleSpec(seed=7)
LEVELS = 2  # Of sound in the tiny run.


class Fake:
    """Programs in two loops, whose codes are a sample's row modulo 16; and codecs that count."""

    loops = 2

    def __init__(self, plan: Plan, batch: int = 0, text_width: int = tiny.TEXT_WIDTH):
        self.plan, self.batch, self.text_width = plan, batch, text_width
        self.calls, self.texts, self.tokenized = [], [], []

    def prefill(self, tokens, *text):
        self.texts.append(text)
        return 0

    def decode(self, loop, state, rows, sampling_params, forced):
        assert state == loop and forced.shape == (len(rows), self.plan.forced) and sampling_params.seed == SAMPLE.seed
        self.calls.append(rows.tolist())
        layout, start = self.plan.layout, self.plan.prefilled
        low, drawn = np.concatenate([np.full((s.length, 2), (s.ids.low, not s.forced)) for s in layout.segments]).T
        whole = low + drawn * (rows[:, None] % 16)
        middle = (start + layout.length) // 2
        part = slice(start, middle) if loop == 0 else slice(middle, None)
        return whole[:, part].astype(np.int32), loop + 1

    def tokenize(self, stream, media):
        codes = self.plan.opening[stream]
        self.tokenized.append((stream, codes))
        return np.full((len(media), codes), len(self.tokenized), np.int32)

    def detokenize(self, stream, codes):
        return codes


def engine(task: str = "unconditional", latents: int = 0, sample: SampleSpec = SAMPLE, **changes):
    programs = Fake(make_plan(Resolved(tiny.WITH_SOUND), get_task(task), sample, latents), **changes)
    return Engine(programs, programs, task), programs


@pytest.mark.parametrize(
    "fixed, expected", [(0, [[0, 1], [2, 3], [4, 5]]), (3, [[0, 1, 2], [3, 4, 5]]), (8, [list(range(8))])]
)
def test_every_sample_is_drawn_once_in_its_own_row(fixed, expected):
    """Programs of a fixed batch are filled up; nobody sees or hears of the rows that fill."""
    made, programs = engine(batch=fixed)
    heard = []
    tokens = made.sample(Inputs(), 5, SAMPLE, batch=2, on_progress=heard.append)
    assert programs.calls[::2] == programs.calls[1::2] == expected
    codes = made.plan.layout.parse(tokens)["video"]
    np.testing.assert_array_equal(codes, np.repeat(np.arange(5)[:, None], codes.shape[1], axis=1))
    whole = np.zeros((5, made.plan.layout.length), np.int32)
    for progress in heard:
        whole[progress.rows, progress.start : progress.start + progress.tokens.shape[1]] = progress.tokens
    np.testing.assert_array_equal(whole[:, made.plan.prefilled :], tokens[:, made.plan.prefilled :])
    assert sum(progress.tokens.size for progress in heard) == (whole[:, made.plan.prefilled :]).size
    done = [progress.done for progress in heard]
    assert done == sorted(done) and done[-1] == 1 and heard[0].left_s is None and heard[-1].left_s == 0


def test_what_was_sampled_stays_where_it_is_ended():
    made, programs = engine()
    sampling = made.start(Inputs(), 4, SAMPLE, batch=2)
    assert not programs.calls, "nothing runs before it is asked for"
    first = next(sampling)
    sampling.close()
    assert list(sampling) == [] and programs.calls == [[0, 1]]
    stop = first.start + first.tokens.shape[1]
    np.testing.assert_array_equal(sampling.tokens[:2, first.start : stop], first.tokens)
    made.plan.layout.parse(sampling.tokens)  # Legal throughout.


def test_a_listener_can_end_it():
    made, programs = engine()

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.sample(Inputs(), 4, SAMPLE, batch=1, on_progress=stop)
    assert programs.calls == [[0]]


def test_a_guided_sample_has_its_text_and_then_the_negative_one_or_none():
    guided = SAMPLE.replace(guidance=2.0)
    made, programs = engine("text_to_video", sample=guided)
    text, negative = Text(*tiny.texts(3)), Text(*tiny.texts(3, seed=1))
    made.sample(Inputs(text=text, negative=negative), 3, guided, batch=2)
    made.sample(Inputs(text=text), 3, guided, batch=3)
    (states, lengths), (_, filled), (none, zero) = programs.texts
    np.testing.assert_array_equal(states[0::2], text.states[:2])
    np.testing.assert_array_equal(states[1::2], negative.states[:2])
    assert lengths.tolist() == [n for pair in zip(text.lengths, negative.lengths) for n in pair][:4]
    assert filled.tolist() == [text.lengths[2], negative.lengths[2]] * 2
    assert not none[1::2].any() and not zero[1::2].any()


def test_what_opens_an_output_is_tokenized_span_by_span():
    """One latent frame lasts three frames of sound; the prefix repeats them."""
    made, programs = engine("audio_video_continuation", latents=1)
    media = {"video": np.zeros((2, 1, 16, 16, 3), np.uint8), "audio": np.zeros((2, 1000), np.int16)}
    known = made.conditioning_codes(media)
    assert programs.tokenized == [("video", 16), ("audio", LEVELS * 3)]
    assert known.tolist() == [[1] * 16 + [2] * 6] * 2
    streams = made.plan.layout.parse(made.sample(Inputs(known=known), 2, SAMPLE))
    opening = streams["opening_audio_in"].reshape(2, LEVELS, -1)
    assert (opening[:, :, :3] == 2).all() and (opening[:, :, 3:] == -1).all()
    with pytest.raises(UserError, match="video: 2, audio: 1"):
        made.conditioning_codes(media | {"audio": media["audio"][:1]})
    with pytest.raises(UserError, match="takes audio as its condition"):
        made.conditioning_codes({"video": media["video"]})
    with pytest.raises(UserError, match="without conditioning frames"):
        engine()[0].conditioning_codes(media)


@pytest.mark.parametrize(
    "task, inputs, message",
    [
        ("unconditional", Inputs(text=Text(*tiny.texts(2))), "takes no text"),
        ("unconditional", Inputs(source=128), "source must lie in 0..127"),
        ("unconditional", Inputs(known=np.zeros((2, 16), np.int32)), r"known codes of shape \(2, 0\), got \(2, 16\)"),
        ("video_to_audio", Inputs(), "stream 'video_in' of shape .*none were given"),
        ("text_to_image", Inputs(text=Text(np.zeros((2, 8, 3), np.float32), np.ones(2, int))), r"shape \(2, 8, 3\)"),
        ("text_to_image", Inputs(text=Text(*tiny.texts(3))), "text: 3, count: 2"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_anything_runs(task, inputs, message):
    made, programs = engine(task)
    with pytest.raises(UserError, match=message):
        made.sample(inputs, 2, SAMPLE)
    assert not programs.texts
