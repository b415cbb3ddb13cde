"""The Python API and the body of `poet generate`: requests, refusals, files."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import tiny

from poet import media
from poet.sampling import command, jobs
from poet.sampling import generate as generation
from poet.sampling.engine import Engine, Sampled
from poet.sampling.outputs import write_outputs
from poet.sampling.plans import Text
from poet.sampling.requests import Request, check_request
from poet.spec import SampleSpec, UserError
from poet.tasks.registry import get_task
from poet.tasks.resolved import Resolved
from poet.tokenizers.text import EncodedText

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 3, 16, 16, 3)).astype(np.uint8)
HOT = SampleSpec(temperature=2.0, seed=1)


@dataclasses.dataclass(frozen=True)
class HashedStates:
    """A text encoder whose states depend on the characters alone."""

    fingerprint: str = "hashed"

    def __call__(self, texts):
        length, width = tiny.EXPERIMENT.text.length, tiny.TEXT_WIDTH
        states = np.zeros((len(texts), length, width), np.float32)
        for row, text in enumerate(texts):
            for position, character in enumerate(text[:length]):
                states[row, position] = np.random.default_rng(ord(character)).normal(size=width)
        lengths = np.array([min(len(text), length) for text in texts], np.int32)
        return EncodedText(states_BxLxD=states, lengths_B=lengths, truncated=0)


@pytest.fixture(scope="module")
def generator():
    return tiny.generator(HOT, text=HashedStates())


def test_tokens_do_not_depend_on_the_batch(generator):
    whole = generator.tokens("unconditional", 5, batch=5)
    np.testing.assert_array_equal(generator.tokens("unconditional", 5, batch=2), whole)
    np.testing.assert_array_equal(generator.tokens("unconditional", 2, batch=2), whole[:2])
    assert len({tuple(row) for row in whole}) == 5


def test_known_frames_open_the_clip(generator):
    """Each sample continues its own clip: its first codes are those of the given frames."""
    codes = generator.encode_conditioning("frame_prediction", 2, {"video": PIXELS})
    assert codes.shape == (3, 32)
    tokens = generator.tokens("frame_prediction", 3, known=codes, latents=2)
    layout = tiny.layout_of("frame_prediction")
    drawn = layout.parse(tokens)["video"]
    np.testing.assert_array_equal(drawn[:, :32], codes)
    drawn = generator.generate("frame_prediction", media={"video": PIXELS}, conditioning_frames=3, batch=3)
    clips = drawn.video
    assert drawn.audio is None
    np.testing.assert_array_equal(clips, generator.detokenize("frame_prediction", tokens).video)
    assert clips.shape == (3, 5, 16, 16, 3) and clips.dtype == np.uint8


def test_prompts_clips_and_counts_pair_up(generator, monkeypatch):
    """Two prompts x two samples: each row gets its prompt's states and the one clip's codes."""
    seen = {}

    def parts(self, inputs, given, *_):
        seen.update(vars(inputs), count=len(given))
        yield np.arange(len(given)), 0, given[:, : self.plan.prefilled]

    monkeypatch.setattr(Engine, "_parts", parts)
    monkeypatch.setattr(Engine, "detokenize", lambda self, tokens: tokens)
    generator.generate("image_to_video", ["ab", "cde"], media={"video": PIXELS[:1]}, conditioning_frames=1, count=2)
    assert seen["count"] == 4 and seen["text"].lengths.tolist() == [2, 2, 3, 3]
    assert seen["negative"].lengths.tolist() == [0, 0, 0, 0]
    assert seen["known"].shape == (4, 16) and len(np.unique(seen["known"], axis=0)) == 1


def test_negative_prompt_and_guidance_reach_the_model(generator):
    text, negative = Text(*tiny.texts(2)), Text(*tiny.texts(2, seed=3))
    sample = HOT.replace(guidance=4.0)
    plain = generator.tokens("text_to_image", 2, text=text)
    empty = generator.tokens("text_to_image", 2, text=text, sample=sample)
    guided = generator.tokens("text_to_image", 2, text=text, negative=negative, sample=sample)
    assert np.any(plain != empty) and np.any(empty != guided)


@pytest.mark.parametrize(
    "task, prompts, conditioning_frames, clips, message",
    [
        ("text_to_video", [], 0, 0, "needs a text"),
        ("frame_prediction", ["a cat"], 1, 1, "takes no text"),
        ("text_to_video", ["a cat"], 1, 1, "takes no conditioning frames.*image_to_video"),
        ("frame_prediction", [], 2, 1, "nearest are 1 and 3"),
        ("frame_prediction", [], 5, 1, "takes 1 or 3 conditioning frames"),
        ("frame_prediction", [], 0, 0, "takes 1 or 3 conditioning frames"),
        ("frame_prediction", [], 3, 0, "give --clip"),
        ("unconditional", [], 0, 1, "conditioning_frames is 0"),
        ("image_to_video", ["a", "b"], 1, 3, "2 prompts for 3 clips"),
        ("text_to_vidio", ["a"], 0, 0, "did you mean text_to_video"),
        ("text_to_video", "a cat", 0, 0, "must be a list"),
    ],
)
def test_requests_that_do_not_fit_are_refused(task, prompts, conditioning_frames, clips, message):
    with pytest.raises(UserError, match=message):
        check_request(Resolved(tiny.EXPERIMENT), get_task(task), prompts, conditioning_frames, clips)


def test_shapes_of_known_clips_are_checked(generator):
    with pytest.raises(UserError, match="resize or resample it"):
        generator.encode_conditioning("frame_prediction", 2, {"video": PIXELS[:, :, :8]})
    with pytest.raises(UserError, match="at least 5"):
        generator.encode_condition("outpainting", {"video": PIXELS}, region="central")


@pytest.fixture
def no_device_work(monkeypatch):
    def refuse(*_):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(generation.Generator, "from_checkpoint", refuse)


def ask(tmp_path, resolved, **changes):
    return command.run(Request(**changes), resolved, tiny.RUN, tmp_path / "out")


def test_bad_files_are_refused_before_the_model_is_loaded(tmp_path, no_device_work):
    empty, binary, clip = (tmp_path / name for name in ("empty.txt", "binary.txt", "clip.mp4"))
    empty.write_text("\n  \n")
    binary.write_bytes(b"\xff\xfe\x00")
    clip.write_bytes(b"not a clip")
    cases = {
        "holds no prompt": dict(prompt_file=str(empty)),
        "cannot be read as UTF-8": dict(prompt_file=str(binary)),
        "cannot be read": dict(prompt_file=str(tmp_path / "missing.txt")),
        "clip.mp4": dict(task="frame_prediction", clip=[str(clip)], conditioning_frames=3),
        "gone.mp4: no such file": dict(task="frame_prediction", clip=[str(tmp_path / "gone.mp4")]),
        "num = 0: must lie in 1..": dict(prompt=["a"], num=0),
    }
    for message, changes in cases.items():
        with pytest.raises(UserError, match=message):
            ask(tmp_path, Resolved(tiny.EXPERIMENT), **changes)


def test_run_reads_prompts_and_clips_and_writes_files(tmp_path, generator, monkeypatch):
    """From a still image and a prompt file to mp4, gif, strip and a record that reproduces it."""
    monkeypatch.setattr(generation.Generator, "from_checkpoint", lambda *_: generator)
    still, prompts = tmp_path / "still.png", tmp_path / "prompts.txt"
    media.write_png_strip(still, PIXELS[0, :1])
    prompts.write_text("a corridor\n\nan open yard\n")
    wanted = dict(task="image_to_video", prompt_file=str(prompts), clip=[str(still)], batch=2)
    files = ask(tmp_path, generator.resolved, **wanted)
    names = [f"{row:03d}{suffix}" for row in range(2) for suffix in (".mp4", ".gif", ".png")]
    assert [path.name for path in files] == [*names, "generation.json"]
    assert all(path.stat().st_size > 0 for path in files)
    record = json.loads((tmp_path / "out" / "generation.json").read_text())
    assert [s["prompt"] for s in record["samples"]] == ["a corridor", "an open yard"]
    assert record["sample"]["seed"] == HOT.seed and record["request"]["conditioning_frames"] == 1
    assert record["networks"] == {"video": tiny.video_tokenizer().fingerprint, "text": "hashed"}
    shown = media.read_clip(files[0], tiny.EXPERIMENT.clip).video
    assert shown.shape == (5, 16, 16, 3)


def test_clips_are_upscaled_before_they_are_written(tmp_path, generator, monkeypatch):
    """By each network in turn, with the prompt of each clip."""

    class Twice:
        video_tokenizer = tiny.video_tokenizer()

        def upscale(self, video, prompts, **options):
            """The first one is given the codes that were sampled."""
            assert list(prompts) == ["a corridor"] * 2 and options["seed"] == HOT.seed
            codes = options["codes_Nxtxhxw"]
            assert (codes is not None) == (video.shape[2] == 16)
            assert codes is None or (self.video_tokenizer.decode(codes) == video).all()
            return video.repeat(2, axis=2).repeat(2, axis=3)

    monkeypatch.setattr(generation.Generator, "from_checkpoint", lambda *_: generator)
    monkeypatch.setattr(jobs.upscaling, "load", lambda runs, task, clip: [Twice() for _ in runs])
    monkeypatch.setattr(jobs.larger, "find", lambda path: tiny.RUN)
    files = ask(tmp_path, generator.resolved, prompt=["a corridor"], num=2, batch=2, upscale=["nowhere"] * 2)
    assert (media.probe(files[0]).height, media.probe(files[0]).width) == (64, 64)
    assert len(json.loads(files[-1].read_text())["upscale"]) == 2


def test_an_image_is_written_as_png_alone(tmp_path):
    job = jobs.admit(Request(task="text_to_image", prompt=["a", "b", "c"]), Resolved(tiny.EXPERIMENT))
    details = {"checkpoint": {"fingerprint": ""}, "versions": {"poet": ""}}
    files = write_outputs(Sampled(video=PIXELS[[0, 1, 0], :1]), job, tmp_path, details)
    assert [path.name for path in files] == ["000.png", "001.png", "002.png", "generation.json"]
