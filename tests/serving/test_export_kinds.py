"""Exports of further kinds: tasks with sound and written texts, conditions made inside, programs written anew."""

from __future__ import annotations

import json
import pathlib
import re

import exports
import jax
import numpy as np
import pytest
import tiny

from poet.checkpoints import weights
from poet.cli import main as cli
from poet.runs import manifest
from poet.runs.run import Run
from poet.sampling.generate import Generator
from poet.serving import check
from poet.serving import export as exporting
from poet.serving.format import FORMAT
from poet.serving.runtime import Runtime
from poet.spec import ExportSpec, SampleSpec, UserError
from poet.tasks.resolved import Resolved

RNG = np.random.default_rng(0)
CLIPS = RNG.integers(0, 256, (3, 5, 16, 16, 3)).astype(np.uint8)
SOUNDS = RNG.integers(-8000, 8000, (3, 5000)).astype(np.int16)
# What one program and another make of the same codes may round to neighbouring int16 values.
ROUNDING = 1


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(generator, runtime) of tasks that are given a clip: whole, or with a hole."""
    made = exports.generator(SampleSpec(seed=3))
    folder = tmp_path_factory.mktemp("export") / "tasks"
    return made, Runtime.load(exports.export(made, folder, "captioning", "inpainting"))


# tests/golden compares tokens of this task too.
@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 3])
def test_a_continuation_opens_with_frames_and_their_sound(tmp_path, frames):
    """The sound's opening is forced inside the loops; a longer clip is cut to what opens."""
    made = exports.generator(SampleSpec(seed=3))
    runtime = Runtime.load(exports.export(made, tmp_path / "export", "audio_video_continuation"))
    asked = dict(video=CLIPS, audio=SOUNDS, conditioning_frames=frames)
    found, wanted = (sampler.audio_video_continuation(**asked) for sampler in (runtime, made))
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_array_equal(found.video, wanted.video)
    assert found.audio.dtype == np.int16 and found.audio.shape == (3, 5000)
    np.testing.assert_allclose(found.audio.astype(int), wanted.audio, atol=ROUNDING)
    with pytest.raises(UserError, match="takes audio as its condition: pass audio"):
        runtime.audio_video_continuation(video=CLIPS, conditioning_frames=frames)


def test_it_writes_texts(exported):
    made, runtime = exported
    found, wanted = (sampler.captioning(video=CLIPS) for sampler in (runtime, made))
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    assert found.texts == wanted.texts and all(isinstance(text, str) for text in found.texts)


def test_a_hole_is_made_and_hidden_inside(exported):
    made, runtime = exported
    mask = np.zeros((1, 5, 16, 16), bool)
    mask[:, :, 4:12, 2:9] = True
    for region in (dict(region="central"), dict(masks=mask)):
        found, wanted = (sampler.inpainting(video=CLIPS, **region) for sampler in (runtime, made))
        np.testing.assert_array_equal(found.tokens, wanted.tokens)
    with pytest.raises(UserError, match="needs the region that it fills"):
        runtime.inpainting(video=CLIPS)


def test_requests_for_a_check_are_accepted(exported):
    made, _ = exported
    assert check.request(made.resolved, "inpainting").keys() == {"task", "count", "seed", "video", "region"}
    assert check.request(made.resolved, "audio_video_continuation").keys() == {
        "task",
        "count",
        "seed",
        "video",
        "audio",
    }


def experiment(folder: pathlib.Path):
    base = tiny.EXPERIMENT
    return base.replace(video_tokenizer=base.video_tokenizer.replace(path=str(folder / "video")))


@pytest.fixture
def trained(tmp_path):
    tiny.video_tokenizer().save(tmp_path / "video")
    fingerprint = {"video": tiny.video_tokenizer().fingerprint}
    weights.save(tmp_path / "lm", experiment(tmp_path), tiny.params(), "float32", 3, fingerprint)
    (tmp_path / "lm" / "LICENSE").write_text("MIT License\n\nCopyright somebody")
    return tmp_path


def test_programs_are_written_anew_beside_the_same_weights(trained):
    run, out = Run.open(trained / "lm"), trained / "out"
    spec = ExportSpec(tasks=("unconditional",), platforms=("cpu",))
    resolved = Resolved(run.checkpoint.spec.replace(export=spec, sample=SampleSpec(temperature=0.7)))
    exporting.run(run, resolved, str(out))
    before = {file.name: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    assert "license: mit" in (out / "README.md").read_text()
    for file in out.glob("programs/*"):
        file.write_bytes(b"of another age")
    manifest.write(out, {"kind": "export", "format": FORMAT, "jax": "0.1"})
    exporting.refresh(run, out)
    after = {file.name: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    assert after.keys() == before.keys() and after["model.safetensors"] == before["model.safetensors"]
    assert after["spec.json"] == before["spec.json"] and after["README.md"] == before["README.md"]
    assert json.loads(after["MANIFEST"].splitlines()[0])["jax"] == jax.__version__
    wanted = Generator.from_checkpoint(run, resolved).unconditional(count=1).tokens
    np.testing.assert_array_equal(Runtime.load(out).unconditional(count=1).tokens, wanted)
    other = jax.tree.map(lambda x: x + 1, tiny.params())
    weights.save(trained / "other", experiment(trained), other, "float32", 3)
    with pytest.raises(UserError, match="holds other weights than .*other: lm.* differs; export it again"):
        exporting.refresh(Run.open(trained / "other"), out)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--out=x", "--refresh=y"], "--refresh changes nothing but the programs"),
        ([], "give the folder to write to as --out=FOLDER"),
        (["--out=x", "--weights_only", "--tasks=all"], "which --weights_only does not write"),
        (["--out=x", "--tasks=text_to_vdeo"], "unknown task 'text_to_vdeo' .did you mean"),
        (["--out=x", "--tasks=unconditional", "--license=nowhere"], "--license=nowhere is no file"),
        (["--refresh=video"], "video is not an export|has export format None"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(trained, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(trained)
    assert cli(["export", "--checkpoint=lm", *flags]) != 0
    assert re.search(message, capsys.readouterr().err)
    assert not (trained / "x").exists()
