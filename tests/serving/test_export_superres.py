"""Super-resolution in an export: the codes of the process, where its code is not; and what is refused."""

from __future__ import annotations

import functools
import json

import exports
import jax.export
import numpy as np
import pytest

from poet.runs.run import Run
from poet.sampling import larger
from poet.sampling.passes import BOTH, LOW, NOTHING, Passes, passes, sampling_params
from poet.sampling.superres import chained
from poet.serving import export as exporting
from poet.serving.runtime import Runtime
from poet.spec import ExportSpec, SampleSpec, UserError
from poet.streams.base import HIDDEN

RUN, upscaler = exports.LARGER, exports.upscaler
RNG = np.random.default_rng(0)
CLIPS = RNG.integers(0, 256, (2, 5, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A folder with super-resolution and no task."""
    models = exporting.Models(None, (upscaler(),))
    return exporting.write(models, ExportSpec(platforms=("cpu",)), (), tmp_path_factory.mktemp("export") / "alone")


@pytest.fixture(scope="module")
def loaded(alone):
    return Runtime.load(alone)


def test_it_gives_the_clips_of_the_process_where_only_a_few_packages_are(alone, tmp_path):
    """Longer and larger than the network's too, so in chunks and tiles, from codes as they are decoded."""
    large = RNG.integers(0, 256, (1, 9, 24, 16, 3), np.uint8)
    settings, asked = dict(steps=2, consistency=0.0), dict(prompts=["a red door"], seed=7)
    (found,) = exports.ask_apart(alone, tmp_path, dict(task="upscale", video=large, **settings, **asked))
    wanted = upscaler().changed(**settings).upscale(large, **asked)
    assert wanted.shape == (1, 9, 48, 32, 3)
    np.testing.assert_array_equal(found["video"], wanted)


def test_what_is_corrected_is_too(loaded):
    """The record has the settings of the checkpoint, and a request its own."""
    settings = dict(detail=0.5, steadiness=0.8)
    assert loaded.upscalers[0].experiment.super_resolution == RUN.super_resolution
    small = RNG.integers(0, 256, (1, 9, 12, 8, 3), np.uint8)
    made = RNG.integers(0, 256, (1, 9, 24, 16, 3), np.uint8)
    found, wanted = (one.changed(**settings).corrected(made, small) for one in (loaded.upscalers[0], upscaler()))
    np.testing.assert_array_equal(found, wanted)
    assert (found != loaded.upscalers[0].corrected(made, small)).any()


@pytest.mark.parametrize(
    "guidance, text",
    [
        ((1.0, 1.0), True),
        pytest.param((1.0, 4.0), True, marks=pytest.mark.slow),
        pytest.param((1.0, 4.0), False, marks=pytest.mark.slow),
        pytest.param((2.0, 0.5), False, marks=pytest.mark.slow),
        pytest.param((2.0, 0.5), True, marks=pytest.mark.slow),
    ],
)
def test_codes_are_those_of_the_process_by_any_guidance(loaded, guidance, text):
    """Where a program has more branches than the request, too."""
    spec = RUN.super_resolution.replace(guidance=guidance[0], text_guidance=guidance[1])
    known = np.full((2, 192), HIDDEN, np.int32)
    low = RNG.integers(0, 64, (2, 48)).astype(np.int32)
    states = RNG.normal(size=(2, 8, 384)).astype(np.float16), np.ones((2, 8), bool)
    inputs = known, low, states if text else None, np.int32([4, 5]), sampling_params(spec, text, 3)
    plan = passes(spec, upscaler().grid, text)
    found, wanted = (np.asarray(one.sampler(plan, *inputs)) for one in (loaded.upscalers[0], upscaler()))
    np.testing.assert_array_equal(found, wanted)
    assert wanted.min() >= 0


def test_a_program_serves_what_it_has_branches_for(loaded):
    sampler, plan = loaded.upscalers[0].sampler, functools.partial(Passes, upscaler().grid)
    assert {*sampler.programs} == {(LOW,), (NOTHING, LOW), (LOW, BOTH), (NOTHING, LOW, BOTH)}
    sampler = type(sampler)({(LOW,): None})
    with pytest.raises(UserError, match="no super-resolution with text"):
        sampler(plan((LOW, BOTH)), None, None, None, None, None)


@pytest.mark.slow
def test_a_task_and_super_resolution_share_a_folder_and_its_tokenizer(tmp_path):
    """What a task has made becomes larger from the codes that were sampled; each weight stands once."""
    made = exports.generator(SampleSpec(seed=3))
    spec = ExportSpec(tasks=("image_to_video",), platforms=("cpu",), films=False)
    folder = exporting.export(made, spec, tmp_path / "both", upscalers=[upscaler()])
    runtime, record = Runtime.load(folder), json.loads((folder / "spec.json").read_text())
    names = [name for group in record["weights"].values() for name in group]
    assert len({*names}) == len(names) and not [name for name in names if name.startswith("superres_0.video")]
    clips = runtime.image_to_video("a red door", video=CLIPS[:1, :1])
    codes = clips.codes["video"].reshape(1, 3, 4, 4)
    wanted = chained([upscaler()], clips.video, seed=5, codes_Nxtxhxw=codes)
    np.testing.assert_array_equal(runtime.upscale(clips, seed=5), wanted)
    assert "runtime.upscale(made" in (folder / "README.md").read_text()


@pytest.mark.slow
def test_programs_for_accelerators_are_written_where_there_is_none(alone, tmp_path):
    """Each for all platforms; what the folder gives here is what one for this machine alone gives."""
    made, platforms = exports.generator(SampleSpec(seed=3)), ("cpu", "cuda", "tpu")
    spec = ExportSpec(tasks=("text_to_video",), platforms=platforms, films=False)
    folder = exporting.export(made, spec, tmp_path / "every", upscalers=[upscaler()])
    files = sorted(folder.glob("programs/*"))
    names = {file.name.rpartition("_")[0] for file in files}
    assert names >= {"prefill", "decode", "text", "video_decode", "video_decode_any", "video_encode_any", "passes"}
    for file in files:
        assert jax.export.deserialize(bytearray(file.read_bytes())).platforms == platforms, file
    found = Runtime.load(folder)
    np.testing.assert_array_equal(found.text_to_video("a door").video, made.text_to_video("a door").video)
    np.testing.assert_array_equal(found.upscale(CLIPS, seed=1), Runtime.load(alone).upscale(CLIPS, seed=1))


def test_what_it_does_not_have_is_refused(alone, loaded, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no task 'text_to_video', but super-resolution alone"):
        loaded.ask("text_to_video", "a door")
    with pytest.raises(UserError, match="no 'vertical' from a request"):
        loaded.upscale(CLIPS, vertical=(1, 0, 4))
    with pytest.raises(UserError, match="8x8 is smaller"):
        loaded.upscale(CLIPS[:, :, :8, :8])
    record = json.loads((alone / "spec.json").read_text())
    with pytest.raises(UserError, match="export again with --upscale"):
        Runtime(alone, record | {"upscalers": []}).upscale(CLIPS)
    monkeypatch.setattr(larger, "open_folder", lambda folder: record | {"upscalers": []})
    with pytest.raises(UserError, match="export without super-resolution"):
        larger.find(str(alone))


def test_it_stands_for_a_checkpoint_where_clips_are_made_larger(alone):
    """With its sampling settings, and no others."""
    run = larger.find(str(alone))
    (found,) = larger.load(run, lambda spec: spec.replace(super_resolution=spec.super_resolution.replace(steps=2)))
    assert isinstance(run, Run) and found.experiment.super_resolution.steps == 2
    with pytest.raises(UserError, match="only SUPER_RESOLUTION can be set"):
        larger.load(run, lambda spec: spec.replace(clip=spec.clip.replace(rate_hz=4.0)))


def test_format_8_had_no_super_resolution_and_loads(alone):
    record = json.loads((alone / "spec.json").read_text())
    before = {name: value for name, value in record.items() if name != "upscalers"} | {"format": 8}
    assert Runtime(alone, before).upscalers == []
