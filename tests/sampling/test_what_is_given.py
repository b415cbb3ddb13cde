"""The caller says what a conditional task is given: frames, ends, a region, depth; chance is for training."""

from __future__ import annotations

import json
from contextlib import nullcontext

import numpy as np
import pytest
import tiny

from poet import conditioning, media, streams
from poet.conditioning import Choice, regions, structure
from poet.sampling import command, jobs, requests
from poet.sampling.engine import Sampled
from poet.sampling.frozen import FrozenNetworks
from poet.sampling.generate import Generator
from poet.sampling.requests import FLAT, Request
from poet.spec import SampleSpec, UserError
from poet.tasks.registry import get_task
from poet.tasks.resolved import Resolved

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 5, 16, 16, 3)).astype(np.uint8)
SPEC = tiny.EXPERIMENT.conditioning
FACTOR = tiny.EXPERIMENT.video_tokenizer.factor


@pytest.fixture(scope="module")
def generator() -> Generator:
    return tiny.generator(SampleSpec())


# --------------------------------------------------------------------------- what the model sees


@pytest.mark.parametrize("given", [1, 3])
def test_the_first_frames_are_those_that_are_given(generator, given):
    """Clips of which no more is at hand do as well as whole ones."""
    task = "frame_prediction_bidirectional"
    expected = np.stack([regions.hold(clip, given) for clip in PIXELS])
    for clips in (PIXELS, PIXELS[:, :given]):
        shown = generator.make_condition(task, clips, conditioning_frames=given).video
        np.testing.assert_array_equal(shown, expected)


@pytest.mark.parametrize("given", [1, 2])
def test_both_ends_are_those_that_are_given(generator, given):
    expected = np.stack([regions.interpolate(clip, given) for clip in PIXELS])
    # Two frames are a latent: a still of the one that is given.
    filled, by = {1: (3, 4), 2: (2, 1)}[given]
    expected[:, filled] = expected[:, by]
    task = "frame_interpolation"
    np.testing.assert_array_equal(generator.make_condition(task, PIXELS, conditioning_frames=given).video, expected)
    ends = PIXELS[:, -given:]
    shown = generator.make_condition(task, PIXELS[:, :given], conditioning_frames=given, ends=ends).video
    np.testing.assert_array_equal(shown, expected)
    one = generator.make_condition(task, PIXELS[:, :given], conditioning_frames=given, ends=ends[:1]).video
    np.testing.assert_array_equal(one[1, -given:], ends[0])


@pytest.mark.parametrize(
    "task, region",
    [
        *(("inpainting", region) for region in SPEC.inpainting),
        *(("outpainting", region) for region in SPEC.outpainting),
    ],
)
def test_the_region_is_the_one_that_is_named_for_every_clip(generator, task, region):
    hole = regions.area(region, PIXELS.shape[1:4])
    hole = hole if task == "inpainting" else ~hole
    shown, cells = generator.make_condition(task, PIXELS, region=region)
    np.testing.assert_array_equal(shown, np.stack([regions.fill(clip, hole, SPEC.fill) for clip in PIXELS]))
    codes = generator.encode_condition(task, {"video": PIXELS}, region=region)["video_in"].reshape(cells.shape)
    np.testing.assert_array_equal(codes < 0, ~cells)


def test_nothing_is_left_to_chance(generator):
    """The same clip in every row is shown in the same way."""
    same = np.repeat(PIXELS[:1], 6, axis=0)
    for task, region in (("frame_prediction_bidirectional", ""), ("inpainting", "central")):
        shown = generator.make_condition(task, same, region=region).video
        assert len(np.unique(shown, axis=0)) == 1


def test_one_depth_serves_every_clip(generator):
    depth = np.random.default_rng(1).random((1, 5, 8, 8)).astype(np.float32)
    shown = generator.make_condition("stylization", PIXELS, depth).video
    for row, clip in enumerate(PIXELS):
        made = conditioning.make("structure", clip, SPEC, depth=depth[0], factor=FACTOR)
        np.testing.assert_array_equal(shown[row], made.video)


def test_training_still_draws():
    def made(key: str, chosen: Choice = Choice()) -> np.ndarray:
        return conditioning.make("prediction", PIXELS[0], SPEC, key=key, factor=FACTOR, chosen=chosen).video

    assert len({made(str(key)).tobytes() for key in range(20)}) == 2
    np.testing.assert_array_equal(made("0", Choice(frames=3)), regions.hold(PIXELS[0], 3))


@pytest.mark.parametrize(
    "depth, network, has_depth, accepted",
    [
        ("dataset", "dataset", True, True),
        ("dataset", "net.onnx", False, True),
        ("dataset", "flat", False, False),
        ("flat", "flat", False, True),
        ("flat", "dataset", True, False),
        ("other", "net.onnx", False, False),
    ],
)
def test_a_depth_may_come_from_elsewhere_and_may_not_be_left_out(monkeypatch, depth, network, has_depth, accepted):
    """Distances stand for distances; a flat picture stands for none."""
    monkeypatch.setattr(conditioning.networks, "file_hash", str)
    tokenizer = tiny.video_tokenizer()
    trained = conditioning.fingerprint("structure", SPEC.replace(depth=depth), tokenizer.fingerprint)
    run = Resolved(tiny.EXPERIMENT.replace(conditioning=SPEC.replace(depth=network)))
    found = FrozenNetworks(run, {"video": tokenizer}, {"video": tokenizer.fingerprint, "structure": trained})
    expected = nullcontext() if accepted else pytest.raises(UserError, match="condition 'structure'")
    with expected:
        found.expect_rendering(streams.get("structure"), has_depth)


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "task, changes, message",
    [
        ("frame_prediction_bidirectional", dict(conditioning_frames=2), "takes 1 or 3 conditioning frames of 5"),
        ("frame_prediction_bidirectional", dict(conditioning_frames=5), "takes 1 or 3 conditioning frames of 5"),
        ("frame_interpolation", dict(conditioning_frames=3), "takes 1 or 2 conditioning frames at both ends of 5"),
        (
            "inpainting",
            dict(),
            "needs the region that it fills: give --region, one of central, top_left, dynamic_central",
        ),
        ("outpainting", dict(prompt=["a"]), "needs the region that it keeps.*horizontal"),
        ("inpainting", dict(region="centre"), "unknown region 'centre'.*did you mean central"),
        ("inpainting", dict(region="horizontal"), "unknown region 'horizontal'"),
        ("video_to_audio", dict(region="central"), "has no regions"),
        ("frame_prediction_bidirectional", dict(end=["e"]), "takes no end; frame_interpolation is"),
        ("frame_interpolation", dict(end=["e", "e"]), "2 ends for 1 clips"),
        ("stylization", dict(prompt=["a"]), "comes without depth.*--depth=FILE.*ONNX"),
        ("stylization", dict(prompt=["a"], depth=["d", "d"]), "2 depths for 1 clips"),
        ("inpainting", dict(region="central", depth=["d"]), "takes no depth; tasks that do: stylization"),
    ],
)
def test_what_a_task_cannot_be_given_is_refused_before_any_file_is_read(task, changes, message):
    with pytest.raises(UserError, match=message):
        jobs.admit(Request(task=task, clip=["c"], **changes), Resolved(tiny.WITH_SOUND))


def test_depth_means_nothing_to_a_model_that_never_saw_it():
    flat = tiny.EXPERIMENT.replace(conditioning=SPEC.replace(depth="flat"))
    with pytest.raises(UserError, match="uses no depth"):
        requests.check_depth(Resolved(flat), get_task("stylization"), 1, 1)


# ---------------------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A clip, its beginning and end as pictures, and depth as a picture and as a clip."""
    folder = tmp_path_factory.mktemp("given")
    flat = np.arange(5, dtype=np.uint8)[:, None, None, None] * 40 + 20
    media.write_mp4(folder / "clip.mp4", np.broadcast_to(flat, (5, 16, 16, 3)), 8.0)
    media.write_png_strip(folder / "start.png", PIXELS[0, :1])
    media.write_png_strip(folder / "end.png", PIXELS[1, :1])
    ramp = np.broadcast_to(np.arange(16, dtype=np.uint8)[None, :, None] * 15, (16, 16, 3))
    media.write_png_strip(folder / "depth.png", ramp[None])
    media.write_mp4(folder / "depth.mp4", np.broadcast_to(ramp, (5, 16, 16, 3)), 8.0)
    media.write_mp4(folder / "short.mp4", np.broadcast_to(ramp, (2, 16, 16, 3)), 8.0)
    return folder


def ask(files, tmp_path, task, clip, **changes) -> dict:
    """What the generator is asked for by the command."""
    for name in ("end", "depth"):
        changes[name] = [file if file == FLAT else str(files / file) for file in changes.get(name, ())]
    request = Request(task=task, clip=[str(files / clip)], **changes)
    asked = {}

    class Asked:
        networks = FrozenNetworks(Resolved(tiny.EXPERIMENT))

        def generate(self, task, prompts, **given):
            asked.update(given)
            return Sampled(video=np.zeros((1, 5, 16, 16, 3), np.uint8))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Generator, "from_checkpoint", lambda *_: Asked())
        command.run(request, Resolved(tiny.EXPERIMENT), tiny.RUN, tmp_path)
    asked["record"] = json.loads((tmp_path / "generation.json").read_text())["request"]
    return asked


def test_two_pictures_are_the_ends_of_a_clip(files, tmp_path, generator):
    asked = ask(files, tmp_path, "frame_interpolation", "start.png", end=["end.png"])
    shown = generator.make_condition(
        "frame_interpolation",
        asked["media"]["video"],
        ends=asked["ends"],
        conditioning_frames=asked["conditioning_frames"],
    ).video
    np.testing.assert_array_equal(shown[0, [0, -1]], PIXELS[:, 0])
    assert asked["record"]["end"] == [str(files / "end.png")] and asked["record"]["conditioning_frames"] == 1


def test_a_picture_is_enough_to_be_continued(files, tmp_path, generator):
    asked = ask(files, tmp_path, "frame_prediction_bidirectional", "start.png")
    shown = generator.make_condition(
        "frame_prediction_bidirectional", asked["media"]["video"], conditioning_frames=asked["conditioning_frames"]
    ).video
    np.testing.assert_array_equal(shown[0], np.broadcast_to(PIXELS[0, 0], (5, 16, 16, 3)))


@pytest.mark.parametrize("name", ["depth.png", "depth.mp4"])
def test_near_is_bright_in_a_depth_file_and_in_what_the_model_sees(files, tmp_path, generator, name):
    asked = ask(files, tmp_path, "stylization", "clip.mp4", depth=[name], prompt=["a hall"])
    assert asked["depths"].shape == (1, 5, 16, 16)
    shown = generator.make_condition("stylization", asked["media"]["video"], asked["depths"]).video[0]
    near = structure.read(shown, SPEC.flow_scale)[1].mean((0, 1))
    # No more detail than twice the latent grid has.
    assert np.abs(near - np.linspace(0, 1, 16)).max() < 0.1 and (np.diff(near) > -0.02).all()
    assert asked["record"]["depth"] == [str(files / name)]


def test_a_clip_without_depth_has_motion_alone(files, tmp_path, generator):
    asked = ask(files, tmp_path, "stylization", "clip.mp4", depth=[FLAT], prompt=["a hall"])
    assert asked["depths"].shape == (1, 5, 16, 16) and not asked["depths"].any()
    shown = generator.make_condition("stylization", asked["media"]["video"], asked["depths"]).video[0]
    assert np.ptp(structure.read(shown, SPEC.flow_scale)[1]) < 0.02
    assert asked["record"]["depth"] == [FLAT]


def test_a_depth_of_fewer_frames_is_refused(files, tmp_path):
    with pytest.raises(UserError, match="short.mp4: shows depth for 2 frames, expected 5, or a picture"):
        ask(files, tmp_path, "stylization", "clip.mp4", depth=["short.mp4"], prompt=["a hall"])


def test_a_region_reaches_the_model_and_the_record(files, tmp_path):
    asked = ask(files, tmp_path, "inpainting", "clip.mp4", region="top_left")
    assert asked["region"] == asked["record"]["region"] == "top_left"
