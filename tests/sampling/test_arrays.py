"""What a caller hands over is checked: rows, codes, states, prompts, seeds; before anything is drawn."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import tiny

from poet import streams
from poet.sampling import command, engine, files
from poet.sampling.generate import Generator
from poet.sampling.plans import Text
from poet.sampling.requests import Request
from poet.spec import SampleSpec, UserError
from poet.tasks import arrays
from poet.tasks.resolved import Resolved
from poet.tokenizers.text import encode_pieces

CODES = np.zeros((3, 16), np.int32)


@pytest.fixture
def generator(monkeypatch):
    """Refuses to decode: nothing below may come so far."""
    made = tiny.generator(SampleSpec())
    monkeypatch.setattr(engine, "decode_batch", lambda *_: pytest.fail("it was decoded"))
    return made


@pytest.mark.parametrize(
    "known, count, message",
    [
        (CODES, 5, "differ .known: 3, count: 5"),
        (CODES + 64, 3, "codes from 64 to 64: they must lie in 0..63"),
        (CODES - 3, 3, "codes from -3 to -3"),
        (CODES.astype(np.float32), 3, "expected integers"),
    ],
)
def test_known_codes_are_codes_and_one_row_each(generator, known, count, message):
    with pytest.raises(UserError, match=message):
        generator.tokens("frame_prediction", count, known=known, latents=1)


def test_conditions_and_texts_are_checked_too(generator):
    states, lengths = tiny.texts(2)
    wanted = tiny.layout_of("inpainting").streams["video_in"]
    with pytest.raises(UserError, match="video_in holds codes from 5000 to 5000"):
        generator.tokens("inpainting", 2, condition={"video_in": np.full((2, wanted), 5000)})
    with pytest.raises(UserError, match="video_in: 3, count: 2"):
        generator.tokens("inpainting", 2, condition={"video_in": np.zeros((3, wanted), np.int32)})
    with pytest.raises(UserError, match="text: 2, count: 5"):
        generator.tokens("text_to_image", 5, text=Text(states, lengths))
    with pytest.raises(UserError, match="states of text must be finite"):
        generator.tokens("text_to_image", 2, text=Text(states * np.nan, lengths))
    with pytest.raises(UserError, match="lengths of negative are .*0..8"):
        generator.tokens("text_to_image", 2, text=Text(states, lengths), negative=Text(states, lengths + 8))


def test_rows_that_go_together_are_counted():
    a, b = np.zeros((3, 2)), np.zeros((5, 2))
    assert arrays.rows({"a": a, "b": None}) == 3 and arrays.rows({}) == 1 and arrays.rows({}, 4) == 4
    for given, count in (({"a": a, "b": b}, None), ({"a": a}, 4), ({"a": a[:0]}, None), ({"a": 3}, None)):
        with pytest.raises(UserError, match="a row for each|needs a row for each sample"):
            arrays.rows(given, count)


# ------------------------------------------------------------------------------------- requests


def ask(monkeypatch, experiment=tiny.EXPERIMENT, **changes):
    monkeypatch.setattr(Generator, "from_checkpoint", lambda *_: pytest.fail("the model was loaded"))
    command.run(Request(**changes), Resolved(experiment), tiny.RUN, "nowhere")


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(prompt=["a hall", "  "]), "prompt 2 of 2 is empty"),
        (dict(prompt=[""]), "prompt 1 of 1 is empty.*unconditional"),
        (dict(prompt=["\udcff"]), "not valid Unicode"),
        (dict(prompt=["a"], negative_prompt="fog"), "SAMPLE.guidance = 1.0 means none"),
        (dict(task="unconditional", negative_prompt="fog"), "takes no text: drop the negative prompt"),
    ],
)
def test_texts_that_say_nothing_are_refused(monkeypatch, changes, message):
    with pytest.raises(UserError, match=message):
        ask(monkeypatch, **changes)


@pytest.mark.parametrize(
    "sample, changes, message",
    [
        (dict(temperature=(1.0, 0.9)), {}, "SAMPLE.temperature = .*2 values for the 3 latent frames of"),
        (dict(guidance=(1.0, 2.0)), dict(task="text_to_image"), "2 values for the 1 latent frames"),
        (dict(guidance=2.0, guided_by=("video",)), {}, "'video': the conditions of task text_to_video are text"),
        (
            dict(guidance=2.0, guided_by=("video",)),
            dict(task="inpainting", clip=["a.mp4"]),
            "guidance by video .*DATA.condition_dropout = 0",
        ),
        (
            dict(guidance=2.0, guided_by=("video",)),
            dict(task="outpainting", clip=["a.mp4"], negative_prompt="fog"),
            "does not name it: add 'text'",
        ),
    ],
)
def test_what_this_model_cannot_be_sampled_with_is_refused(monkeypatch, sample, changes, message):
    experiment = tiny.EXPERIMENT.replace(sample=SampleSpec(**sample))
    texts = {} if changes.get("task") == "inpainting" else {"prompt": ["a"]}
    with pytest.raises(UserError, match=message):
        ask(monkeypatch, experiment, **texts, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        dict(top_k=-1),
        dict(top_k=(3, -1)),
        dict(min_p=1.1),
        dict(min_p=-0.1),
        dict(top_p=(0.9, 0.0)),
        dict(temperature=()),
        dict(guidance=(1.0, float("nan"))),
        dict(guidance_cap=-1.0),
    ],
)
def test_settings_outside_their_range_are_refused(changes):
    with pytest.raises(UserError, match=f"SAMPLE.{next(iter(changes))} = "):
        SampleSpec(**changes)


@pytest.mark.parametrize("seed", [-1, 2**32, 10**23])
def test_a_seed_is_never_another_one(seed):
    with pytest.raises(UserError, match="SAMPLE.seed = .*0..4294967295"):
        SampleSpec(seed=seed)


def test_prompt_files_are_read_as_they_are_written(tmp_path, caplog):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa hall\r\n\r\n two\u2028lines \r\n".encode())
    with caplog.at_level(logging.INFO, logger="poet"):
        assert files.read_prompts(str(file)) == ["a hall", "two\u2028lines"]
    assert "2 prompts, 1 blank lines skipped" in caplog.text
    caplog.clear()
    file.write_text("a hall\n")
    with caplog.at_level(logging.INFO, logger="poet"):
        assert files.read_prompts(str(file)) == ["a hall"] and not caplog.text
    with pytest.raises(UserError, match="is no file"):
        files.read_prompts(str(tmp_path))


def test_what_is_cut_from_a_prompt_is_said(caplog):
    """A piece for each word, and room for eight of them."""

    def encode(texts):
        pieces = [list(range(len(text.split()))) for text in texts]
        states = lambda ids, lengths: np.zeros((*ids.shape, 4), np.float32)  # noqa: E731
        return encode_pieces(pieces, states, length=8, width=4)

    encode.fingerprint = "words"
    generator = tiny.generator(SampleSpec(), text=encode)
    with caplog.at_level(logging.WARNING, logger="poet"):
        generator.encode_text(["word " * 8, "word " * 210])
    assert len(caplog.records) == 1
    assert "210 words is cut: its last 202 of 210 tokens, about 202 words" in caplog.text


# ------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize(
    "task, wanted",
    [
        ("text_to_audio", {"text", "audio"}),
        ("video_to_audio", {"video", "audio"}),
        ("unconditional", {"video"}),
        ("captioning", {"video", "pieces"}),
    ],
)
def test_a_task_loads_what_it_needs_and_before_it_draws(monkeypatch, task, wanted):
    for stream in streams.STREAMS.values():
        monkeypatch.setattr(type(stream), "load", lambda *_: Network())
    generator = Generator(Resolved(tiny.WITH_SOUND), tiny.params())
    generator.load_networks(task)
    assert generator.networks.used == dict.fromkeys(wanted, "any")


class Network:
    fingerprint = "any"
