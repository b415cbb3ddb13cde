"""An export against the generator it came from, in a process without this package's model code."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "sampling"))

import tiny  # noqa: E402

from poet.checkpoints import weights  # noqa: E402
from poet.cli import command
from poet.runs.run import Run
from poet.sampling.engine import Engine, Sampled  # noqa: E402
from poet.sampling.plans import Text  # noqa: E402
from poet.serving import check  # noqa: E402
from poet.serving import export as exporting  # noqa: E402
from poet.serving.runtime import Runtime  # noqa: E402
from poet.spec import ExportSpec, SampleSpec, UserError  # noqa: E402
from poet.tasks.resolved import Resolved  # noqa: E402

SAMPLE = SampleSpec(temperature=0.9, top_k=24, top_p=0.95, guidance=2.0, seed=5)
CLIENT = """
import json, sys
import numpy as np
from poet.serving.runtime import Runtime

folder, inputs, output = sys.argv[1:]
given = dict(np.load(inputs))
settings = json.loads(str(given.pop("settings")))
result = Runtime.load(folder).generate(**given, **settings)
loaded = [m for m in sys.modules if m.split(".")[0] in ("flax", "tensorflow", "orbax", "av")]
assert not loaded, loaded
own = sorted(m for m in sys.modules if m.split(".")[0] == "poet" and not m.startswith("poet.streams."))
assert own == [
    "poet", "poet.runs", "poet.runs.manifest", "poet.runs.networks",
    "poet.sampling", "poet.sampling.collapse", "poet.sampling.engine", "poet.sampling.fronts", "poet.sampling.plans",
    "poet.sampling.progress", "poet.sampling.samplers",
    "poet.serving", "poet.serving.format", "poet.serving.runtime",
    "poet.spec", "poet.spec.base", "poet.spec.ingest", "poet.spec.model", "poet.spec.run", "poet.spec.superres",
    "poet.spec.tokenizers", "poet.spec.vocabulary",
    "poet.streams", "poet.tasks", "poet.tasks.given", "poet.tasks.layout",
], own
np.savez(output, tokens=result.tokens, video=result.video)
"""


@pytest.fixture(scope="module")
def image_to_video(tmp_path_factory):
    """(generator, folder): text, one known frame, guidance, top-k and nucleus; batches of 2."""
    made = tiny.generator(SAMPLE)
    spec = ExportSpec(task="image_to_video", batch=2, conditioning_frames=1)
    return made, exporting.export(made, spec, tmp_path_factory.mktemp("export") / "i2v")


def in_another_process(folder, tmp_path, settings, **inputs):
    np.savez(tmp_path / "in.npz", settings=json.dumps(settings), **inputs)
    # One device, and the generator's compiler.
    flags = [f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f]
    environment = os.environ | {"XLA_FLAGS": " ".join(flags)}
    arguments = [str(folder), str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    subprocess.run([sys.executable, "-c", CLIENT, *arguments], check=True, env=environment)
    return np.load(tmp_path / "out.npz")


def test_tokens_and_pixels_equal_the_generators(image_to_video, tmp_path):
    """Three samples through programs of batch 2, with a seed and scale other than the export's."""
    made, folder = image_to_video
    clips = np.random.default_rng(0).integers(0, 256, (3, 1, 16, 16, 3)).astype(np.uint8)
    text, negative = Text(*tiny.texts(3)), Text(*tiny.texts(3, seed=1))
    sample = SAMPLE.replace(seed=2**32 - 17, guidance=3.5, temperature=1.1, top_p=0.9)
    tokens = made.tokens(
        "image_to_video",
        3,
        text=text,
        negative=negative,
        known=made.encode_conditioning("image_to_video", 1, {"video": clips}),
        latents=1,
        sample=sample,
        batch=2,
    )
    result = in_another_process(
        folder,
        tmp_path,
        {"seed": sample.seed, "guidance": 3.5, "temperature": 1.1, "top_p": 0.9},
        text_states=text.states,
        text_lengths=text.lengths,
        negative_states=negative.states,
        negative_lengths=negative.lengths,
        known_video=clips,
    )
    np.testing.assert_array_equal(result["tokens"], tokens)
    pixels = made.detokenize("image_to_video", tokens).video
    np.testing.assert_array_equal(result["video"], pixels)
    assert len({tuple(row) for row in tokens}) == 3


@pytest.mark.slow
def test_an_export_takes_the_schedules_that_it_was_made_for(tmp_path):
    sample = SampleSpec(temperature=(2.0, 1.0, 0.5), min_p=0.05, top_k=(5, 0, 9), seed=3)
    made = tiny.generator(sample)
    runtime = Runtime.load(exporting.export(made, ExportSpec(task="unconditional", batch=2), tmp_path / "export"))
    changed = sample.replace(temperature=(0.7, 1.0, 1.5), min_p=0.1)
    found = runtime.generate(count=2, temperature=[0.7, 1.0, 1.5], min_p=0.1)
    np.testing.assert_array_equal(found.tokens, made.tokens("unconditional", 2, sample=changed, batch=2))
    with pytest.raises(UserError, match="temperature has 2 numbers, these programs take 3 numbers"):
        runtime.generate(temperature=[1.0, 0.5])


@pytest.mark.slow
def test_a_task_without_text_on_several_platforms(tmp_path):
    made = tiny.generator(SampleSpec(seed=3))
    spec = ExportSpec(task="unconditional", batch=2, platforms=("cpu", "tpu", "cuda"))
    runtime = Runtime.load(exporting.export(made, spec, tmp_path / "export"))
    result = runtime.generate(count=3)
    np.testing.assert_array_equal(result.tokens, made.tokens("unconditional", 3, batch=2))
    with pytest.raises(UserError, match="takes no text"):
        runtime.generate(text_states=np.zeros((1, 8, 384)), text_lengths=np.zeros(1))
    with pytest.raises(UserError, match="SAMPLE.top_p"):
        runtime.generate(top_p=0.5)
    with pytest.raises(UserError, match="without conditioning frames"):
        runtime.generate(known_video=np.zeros((1, 1, 16, 16, 3), np.uint8))


def test_weights_are_arguments_not_constants(image_to_video):
    """The programs' files together are far smaller than the weights that they use."""
    _, folder = image_to_video
    spec = json.loads((folder / "spec.json").read_text())
    weights = (folder / "weights.safetensors").stat().st_size
    assert weights > 300_000
    for name, program in spec["programs"].items():
        assert program["weights"]
        assert (folder / f"{name}.stablehlo").stat().st_size < weights / 2
    assert {"prefill", "decode", "detokenize", "tokenize"} == set(spec["programs"])
    assert spec["networks"] == {"video": tiny.video_tokenizer().fingerprint}


def test_every_file_is_as_readable_as_the_others(image_to_video):
    """A server that runs as another user reads the weights too."""
    assert len({file.stat().st_mode for file in image_to_video[1].iterdir()}) == 1


@pytest.mark.parametrize("name", ["decode.stablehlo", "weights.safetensors", "spec.json", "MANIFEST"])
def test_a_flipped_bit_is_refused(image_to_video, tmp_path, name):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in image_to_video[1].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    blob = bytearray((copy / name).read_bytes())
    blob[len(blob) // 2] ^= 4
    (copy / name).write_bytes(blob)
    with pytest.raises(UserError, match=r"altered or truncated|damaged|missing|not listed"):
        Runtime.load(copy)


def test_a_missing_or_foreign_file_is_refused(image_to_video, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in image_to_video[1].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "extra.stablehlo").write_bytes(b"")
    with pytest.raises(UserError, match="extra.stablehlo is not listed"):
        Runtime.load(copy)
    (copy / "extra.stablehlo").rename(copy / "elsewhere")
    (copy / "elsewhere").unlink()
    (copy / "prefill.stablehlo").unlink()
    with pytest.raises(UserError, match="prefill.stablehlo is missing"):
        Runtime.load(copy)
    with pytest.raises(UserError, match="is not an export"):
        Runtime.load(tmp_path)


def test_wrong_inputs_are_named(image_to_video):
    runtime = Runtime.load(image_to_video[1])
    states, lengths = tiny.texts(1)
    with pytest.raises(UserError, match="expected known codes of shape .1, 16., got .1, 0."):
        runtime.generate(text_states=states, text_lengths=lengths)
    known = np.zeros((1, 16), np.int32)
    with pytest.raises(UserError, match="states of text have shape .1, 4, 384., expected .1, 8, 384."):
        runtime.generate(
            text_states=states[:, :4],
            text_lengths=lengths,
            negative_states=states[:, :4],
            negative_lengths=lengths,
            known=known,
        )
    with pytest.raises(UserError, match="together"):
        runtime.generate(text_states=states, known=known)


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(known=np.full((1, 16), 5000)), "codes from 5000 to 5000: they must lie in 0..63"),
        (dict(known=np.full((1, 16), -3)), "codes from -3"),
        (dict(known=np.zeros((3, 16), np.int32), count=5), "known: 3, count: 5"),
        (dict(known_video=np.zeros((3, 1, 16, 16, 3), np.uint8), count=5), "known_video: 3, count: 5"),
        (dict(known=np.zeros((2, 16), np.int32), negative=True), "text_states: 3, text_lengths: 3, .*known: 2"),
        (dict(temperature=float("nan")), "SAMPLE.temperature = nan: must be finite"),
        (dict(guidance=float("inf")), "SAMPLE.guidance = inf"),
        (dict(top_p=0.0), "SAMPLE.top_p = 0.0"),
        (dict(seed=2**32), "SAMPLE.seed = 4294967296"),
        (dict(seed=1.5), "seed is an integer"),
        (dict(temperature=[1.0, 0.9, 0.8]), "temperature has 3 numbers, these programs take a number"),
        (dict(min_p=0.1), "min_p = 0.1 needs a program exported with SAMPLE.min_p"),
        (dict(text_states=np.full((1, 8, 384), np.nan, np.float32), text_lengths=np.ones(1, int)), "finite"),
        (dict(text_states=np.zeros((1, 8, 384), np.float32), text_lengths=np.full(1, 9)), "0..8"),
    ],
)
def test_requests_that_no_sample_could_answer_are_refused(image_to_video, monkeypatch, given, message):
    runtime = Runtime.load(image_to_video[1])
    monkeypatch.setattr(runtime.engine.programs, "_programs", {})  # Nothing is run.
    if given.pop("negative", None):
        given["text_states"], given["text_lengths"] = tiny.texts(3)
    with pytest.raises(UserError, match=message):
        runtime.generate(**given)


def test_the_check_compares_whole_batches(image_to_video, monkeypatch, tmp_path):
    """In bfloat16 the same sample of another batch is another one."""
    made, folder = image_to_video
    spec, drawn = ExportSpec(task="image_to_video", batch=2, conditioning_frames=1), []
    states, lengths = tiny.texts(2)

    def sample(self, inputs, count, _, *, batch):
        drawn.append((count, batch, len(inputs.text.states), len(inputs.known)))
        return np.zeros((count, 1), np.int32)

    monkeypatch.setattr(made, "resolved", Resolved(made.resolved.spec.replace(export=spec)))
    monkeypatch.setattr(made, "encode_text", lambda texts: Text(states[: len(texts)], lengths[: len(texts)]))
    monkeypatch.setattr(Engine, "sample", sample)
    monkeypatch.setattr(made, "detokenize", lambda *_: Sampled())
    given = {}
    monkeypatch.setattr(
        check,
        "_run_apart",
        lambda _, inputs: given.update(inputs) or {"modules": np.array([]), "tokens": np.zeros((2, 1), np.int32)},
    )
    assert check.compare(made, folder, tmp_path / "check.json")["tokens_equal"]
    assert drawn == [(2, 2, 2, 2)] and {len(array) for array in given.values()} == {2}


def test_settings_of_an_export_are_no_defaults_of_the_next(tmp_path, monkeypatch):
    """Neither those that lie in released weights nor those of the command that releases them."""
    trained = tiny.EXPERIMENT.replace(
        export=ExportSpec(dtype="bfloat16", task="unconditional"), sample=SampleSpec(temperature=0.9)
    )
    weights.save(tmp_path / "lm", trained, tiny.params(), "float32", 1, {})
    arguments = argparse.Namespace(checkpoint=str(tmp_path / "lm"))
    run, resolved = command.open_checkpoint(arguments, ["SAMPLE.seed=7", "EVAL.clips=3"])
    found = resolved.spec
    assert found.export == ExportSpec() and found.sample == trained.sample.replace(seed=7)
    assert exporting.in_dtype(resolved).spec.model == trained.model
    exporting.run(run, resolved, str(tmp_path / "again"), weights_only=True)
    again = Run.open(tmp_path / "again").checkpoint.spec
    assert (again.sample, again.eval, again.export) == (trained.sample, trained.eval, ExportSpec())


def test_bad_specs_are_refused_before_anything_is_written(tmp_path):
    made = tiny.generator(SampleSpec())
    cases = {
        "unknown export platform": ExportSpec(task="unconditional", platforms=("gpu",)),
        "takes 1 conditioning frames": ExportSpec(task="image_to_video"),
        "takes no conditioning frames": ExportSpec(task="unconditional", conditioning_frames=1),
    }
    for message, spec in cases.items():
        with pytest.raises(UserError, match=message):
            exporting.export(made, spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(UserError, match="no record of writing it"):
        exporting.export(made, ExportSpec(task="unconditional"), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "dear"
