"""An export against the generator that it came from: the same tokens and media, in a process with few packages."""

from __future__ import annotations

import json
import shutil

import exports
import numpy as np
import pytest
import yaml

from poet.runs import manifest
from poet.sampling.together import Together
from poet.serving import check, format, runtime
from poet.serving import export as exporting
from poet.serving import loaded as loaded_parts
from poet.serving.loaded import Program, Weights
from poet.serving.runtime import Runtime
from poet.spec import ExportSpec, SampleSpec, UserError
from poet.tasks.registry import LANGUAGE_MODEL, TASKS
from poet.tasks.resolved import Resolved

SAMPLE = SampleSpec(temperature=0.9, guidance=2.0, seed=5)
RNG = np.random.default_rng(0)
CLIPS = RNG.integers(0, 256, (3, 5, 16, 16, 3)).astype(np.uint8)
SOUNDS = RNG.integers(-8000, 8000, (3, 5000)).astype(np.int16)
# What one program and another make of the same codes may round to neighbouring int16 values.
ROUNDING = 1


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(generator, folder): two tasks of one layout, guided or not, and a task with a derived condition."""
    made = exports.generator(SAMPLE)
    folder = tmp_path_factory.mktemp("export") / "tasks"
    return made, exports.export(made, folder, "text_to_video", "image_to_video")


@pytest.fixture(scope="module")
def loaded(exported):
    return Runtime.load(exported[1])


def assert_equal(found, wanted):
    """Tokens and media of one sampling and of another."""
    np.testing.assert_array_equal(found["tokens"], wanted.tokens)
    for name, media in wanted.items():
        if name == "audio":
            np.testing.assert_allclose(np.asarray(found[name], int), media, atol=ROUNDING)
        else:
            np.testing.assert_array_equal(found[name], media)


def assert_same(found, wanted):
    assert_equal(found | {"tokens": found.tokens}, wanted)


def test_two_tasks_give_the_same_where_only_a_few_packages_are(exported, tmp_path):
    """Truncation, another guidance and a schedule are inputs of the programs; clips open the output."""
    made, folder = exported
    requests = [
        dict(task="text_to_video", prompts=["a red door", "a player"], count=2, temperature=[1.2, 1.0, 0.8], top_p=0.9),
        dict(task="image_to_video", prompts="a door", negative_prompt="dull", guidance=3.5, video=CLIPS[:, :1]),
    ]
    found = exports.ask_apart(folder, tmp_path, *requests)
    for request, result in zip(requests, found):
        wanted = made.ask(**request)
        assert_equal(result, wanted)
        assert len({tuple(row) for row in wanted.tokens}) == len(wanted.tokens)


def test_in_bfloat16_too(tmp_path):
    made = exports.generator(SampleSpec(seed=3), dtype="bfloat16")
    folder = exports.export(made, tmp_path / "export", "unconditional", platforms=("cpu", "tpu"))
    found = Runtime.load(folder)
    assert {file.suffixes[0] for file in folder.glob("programs/*")} == {".cpu", ".tpu"}
    assert found.resolved.spec.model.dtype == "bfloat16"
    wanted = made.ask("unconditional", count=3)
    assert_same(found.unconditional(count=3), wanted)


@pytest.mark.slow
def test_guided_in_one_pass_or_in_two(tmp_path):
    """One pass needs no programs but a prefill of its own: its loops are those without guidance."""
    made = exports.generator(SAMPLE.replace(one_pass=True))
    found = Runtime.load(exports.export(made, tmp_path / "export", "text_to_image"))
    asked = dict(prompts="a red door", count=3)
    for settings in (dict(guidance=3.0), dict(guidance=3.0, one_pass=False), dict(guidance=1.0)):
        assert_same(found.text_to_image(**asked, **settings), made.ask("text_to_image", **asked, **settings))
    none, two, one = (
        {tuple(v["decode"]) for v in found._entries["text_to_image"][0].variants if how == (v["guided"], v["scaled"])}
        for how in ((False, False), (True, False), (False, True))
    )
    assert one == none and not one & two


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_task_gives_the_same(tmp_path, dtype):
    made = exports.generator(SAMPLE.replace(top_k=24, top_p=0.95), dtype)
    tasks = [name for name, task in TASKS.items() if task.network == LANGUAGE_MODEL]
    folder = exports.export(made, tmp_path / "export", *tasks)
    asked = [check.request(made.resolved, task) for task in tasks]
    for request, found in zip(asked, exports.ask_apart(folder, tmp_path, *asked, more=("cv2",))):
        assert_equal(found, made.ask(**request))


@pytest.mark.slow
def test_conditions_are_encoded_alike(tmp_path):
    made = exports.generator(SAMPLE)
    folder = exports.export(made, tmp_path / "export", "inpainting", "video_to_audio")
    asked = [check.request(made.resolved, task) for task in ("inpainting", "video_to_audio")]
    for request, found in zip(asked, exports.ask_apart(folder, tmp_path, *asked, more=("cv2",))):
        assert_equal(found, made.ask(**request))


@pytest.mark.slow
def test_stored_in_int8_it_gives_what_the_process_does(tmp_path):
    made = exports.generator(SAMPLE.replace(weights="int8"))
    folder = exports.export(made, tmp_path / "export", "text_to_video")
    found = Runtime.load(folder)
    kinds = {str(found._programs["decode_0"]._weights()[n].dtype) for n in range(len(found._record["weights"]["lm"]))}
    assert "int8" in kinds
    asked = dict(prompts="a red door", count=2)
    assert_same(found.text_to_video(**asked), made.text_to_video(**asked))
    with pytest.raises(UserError, match="SAMPLE.weights = '': this export holds weights as 'int8'"):
        found.text_to_video("a", weights="")


def test_frames_come_one_after_the_other_and_sampling_can_end_at_any(exported, loaded):
    made, _ = exported
    whole = made.ask("text_to_video", "a red door", count=2)
    sampling, frames = loaded.start("text_to_video", ["a red door"], count=2), []
    for progress in sampling:
        frames.append(sampling.frames(progress))
    latents = sampling.tokens.shape and len(frames)
    assert latents == made.resolved.format.video[0]
    np.testing.assert_array_equal(np.concatenate(frames, axis=1), whole.video)
    np.testing.assert_array_equal(sampling.tokens, whole.tokens)
    cancelled = loaded.start("text_to_video", ["a red door"], count=2)
    first = next(cancelled)
    cancelled.close()
    assert first.done < 1 and next(cancelled, None) is None
    part = first.start + first.tokens.shape[1]
    np.testing.assert_array_equal(cancelled.tokens[:, :part], whole.tokens[:, :part])


def test_states_of_texts_are_those_of_the_encoder(exported, loaded):
    texts = ["the player walks forward", "", "a red door, unseen"]
    ours, theirs = exported[0].encode_text(texts), loaded.encode_text(texts)
    np.testing.assert_array_equal(ours.states, theirs.states)
    np.testing.assert_array_equal(ours.lengths, theirs.lengths)


def test_programs_are_shared_and_hold_no_weights(exported):
    """Both tasks decode by the same programs; the file of weights is larger than all programs' constants."""
    _, folder = exported
    record = json.loads((folder / "spec.json").read_text())
    text, image = (record["tasks"][name] for name in ("text_to_video", "image_to_video"))
    shared = {p for entry in text for v in entry["variants"] for p in v["decode"]}
    assert shared == {p for entry in image for v in entry["variants"] for p in v["decode"]} and len(shared) == 4
    assert {file.stem for file in folder.glob("programs/*")} == set(record["programs"])
    weights = (folder / "model.safetensors").stat().st_size
    assert weights > 300_000
    assert all(file.stat().st_size < weights / 2 for file in folder.glob("programs/*"))
    tokenizers = {name: exported[0].networks[name].fingerprint for name in ("video", "audio")}
    assert record["networks"] == {**tokenizers, "text": "tiny-text"}


def test_many_weights_are_cut_into_files_as_the_hub_has_them(tmp_path):
    arrays = {f"lm.{n}": np.full((100,), n, np.float32) for n in range(7)}
    exporting.write_weights(tmp_path, {"lm": arrays, "again": {"lm.3": arrays["lm.3"]}}, shard_bytes=1000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 7 * 400 and len(set(index["weight_map"].values())) == 4
    found = Weights(tmp_path)
    assert all((found[name] == array).all() for name, array in arrays.items())


def test_the_card_has_the_metadata_of_the_hub(exported):
    card = (exported[1] / "README.md").read_text()
    head, body = card.removeprefix("---\n").split("\n---\n")
    assert yaml.safe_load(head) == {
        "license": "unknown",
        "library_name": "videopoet-jax",
        "pipeline_tag": "text-to-video",
        "tags": ["jax", "stablehlo", "video-generation", "audio-generation"],
    }
    assert "| `image_to_video` | text | video | 1 |" in body and "runtime.text_to_video(" in body


# ------------------------------------------------------------------------------------- damaged folders


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported[1], tmp_path / "copy")


@pytest.mark.parametrize("name", ["programs/decode_0.stablehlo", "model.safetensors", "spec.json", "MANIFEST"])
def test_a_flipped_bit_is_refused(copy, name):
    blob = bytearray((copy / name).read_bytes())
    blob[len(blob) // 2] ^= 4
    (copy / name).write_bytes(blob)
    with pytest.raises(UserError, match=r"altered or truncated|damaged|missing|not listed"):
        Runtime.load(copy)


def test_missing_and_foreign_files_are_refused_and_hidden_ones_are_not_looked_at(copy, tmp_path):
    (copy / ".cache" / "huggingface").mkdir(parents=True)
    (copy / ".cache" / "huggingface" / "lock").write_text("")
    (copy / ".gitattributes").write_text("*.safetensors filter=lfs")
    assert format.open_folder(copy)["format"] == format.FORMAT
    (copy / "extra.stablehlo").write_bytes(b"")
    with pytest.raises(UserError, match="extra.stablehlo is not listed"):
        Runtime.load(copy)
    (copy / "extra.stablehlo").unlink()
    (copy / "programs" / "prefill_0.stablehlo").unlink()
    with pytest.raises(UserError, match="prefill_0.stablehlo.*No such file"):
        Runtime.load(copy)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is not an export"):
        Runtime.load(tmp_path / "empty")


@pytest.mark.parametrize("number, remedy", [(4, "export it again"), (99, "use a newer version of poet")])
def test_unknown_formats_are_refused_with_what_to_do(copy, number, remedy):
    (copy / "MANIFEST").unlink()
    manifest.write(copy, {"kind": "export", "format": number})
    with pytest.raises(UserError, match=f"format {number}, this version reads 5, 6, 7, 8, 9: {remedy}"):
        Runtime.load(copy)


def test_programs_that_this_jax_cannot_read_name_the_remedy(copy):
    (copy / "programs" / "text_0.stablehlo").write_bytes(b"of another age")
    manifest.write(copy, {"kind": "export", "format": format.FORMAT})
    with pytest.raises(UserError, match="cannot read .*text_0.stablehlo .*: write its programs anew by .*--refresh"):
        Runtime.load(copy).text_to_video("a red door")


def test_other_platforms_are_refused_when_it_is_loaded(copy):
    record = json.loads((copy / "spec.json").read_text())
    (copy / "spec.json").write_text(json.dumps(record | {"platforms": ["tpu"]}))
    manifest.write(copy, {"kind": "export", "format": format.FORMAT})
    with pytest.raises(
        UserError, match=r"runs on tpu, this machine has cpu: export again with EXPORT.platforms = \('cpu'"
    ):
        Runtime.load(copy)


# ------------------------------------------------------------------------------------- bad requests


@pytest.mark.parametrize(
    "task, given, message",
    [
        ("captioning", dict(video=CLIPS), "no task 'captioning'.*: it has text_to_video, image_to_video"),
        ("text_to_video", dict(prompts="a", colour="red"), "takes no argument 'colour'"),
        ("text_to_video", dict(), "needs a text"),
        ("text_to_video", dict(prompts="a", video=CLIPS), "a clip was given but conditioning_frames is 0"),
        ("image_to_video", dict(prompts="a"), "conditioning_frames = 0: task image_to_video takes 1"),
        ("image_to_video", dict(prompts="a", video=CLIPS[:, :, :8]), "conditioning video has shape .3, 5, 8, 16, 3."),
        ("image_to_video", dict(prompts="a", video=CLIPS / 255), "video is float64, an export takes uint8"),
        ("image_to_video", dict(prompts=["a", "b"], video=CLIPS), "2 prompts for 3 clips"),
        ("text_to_video", dict(prompts="a", temperature=float("nan")), "SAMPLE.temperature = nan: must be finite"),
        ("text_to_video", dict(prompts="a", top_p=0.0), "SAMPLE.top_p = 0.0"),
        ("text_to_video", dict(prompts="a", seed=1.5), "SAMPLE.seed"),
        ("text_to_video", dict(prompts="a", temperature=[1.0, 0.5]), "2 values for the 3 latent frames"),
        ("text_to_video", dict(prompts="a", guidance_cap=1.0), "export again with the same SAMPLE.guidance_cap"),
        ("text_to_video", dict(prompts="a", one_pass=True), "trained with MODEL.guidance_input = False"),
        ("text_to_video", dict(prompts="a", row_lag=2), "export again with SAMPLE.row_lag = 2"),
        ("text_to_video", dict(prompts="a", devices=2), "an export samples on one device"),
        ("text_to_video", dict(prompts="a", weights="int8"), "this export holds weights as ''"),
        ("text_to_video", dict(prompts="a", negative_prompt="b", guidance=1.0), "guidance steers away"),
    ],
)
def test_requests_that_no_sample_could_answer_are_refused_before_anything_compiles(
    loaded, monkeypatch, task, given, message
):
    monkeypatch.setattr(Program, "_run", lambda *_: pytest.fail("a program ran"))
    with pytest.raises(UserError, match=message):
        loaded.ask(task, **given)


def test_tasks_are_methods_and_no_others_are(loaded):
    assert {"text_to_video", "image_to_video"} <= set(dir(loaded))
    with pytest.raises(AttributeError, match="no attribute and no task 'captioning'"):
        loaded.captioning  # noqa: B018


def test_without_its_text_encoder_it_says_what_to_do():
    """tests/golden samples such an export by states."""
    encoder = loaded_parts.text_encoder(None, {"fingerprint": "tiny-text"}, {})
    assert encoder.fingerprint == "tiny-text"
    with pytest.raises(UserError, match="no text encoder: sample by Runtime.tokens"):
        encoder(["a red door"])


def test_bad_specs_are_refused_before_anything_is_written(tmp_path):
    made = exports.generator(SampleSpec())
    cases = {
        "unknown export platform": dict(tasks=("unconditional",), platforms=("gpu",)),
        "unknown task 'text_to_vdeo'": dict(tasks=("text_to_vdeo",)),
        "was trained on no tasks": {},
        "'all' stands alone": dict(tasks=("all", "unconditional")),
        "of the network super_resolution": dict(tasks=("super_resolution",)),
    }
    for message, spec in cases.items():
        with pytest.raises(UserError, match=message):
            exporting.export(made, ExportSpec(**spec), tmp_path / "out")
    silent = made.resolved.spec.replace(audio_tokenizer=made.resolved.spec.audio_tokenizer.replace(path=""))
    with pytest.raises(UserError, match="text_to_audio needs sound"):
        exporting.check(Resolved(silent), ExportSpec(tasks=("text_to_audio",)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "have, want, served",
    [
        (dict(), dict(), True),
        (dict(), dict(top_k=3), False),
        (dict(top_k=3), dict(), False),
        (dict(top_k=3, nucleus=True), dict(top_k=3), True),
        (dict(nucleus=True, fewer=True, floor=True), dict(top_k=9, nucleus=True), True),
        (dict(nucleus=True, fewer=True, floor=True), dict(capped=True), False),
        (dict(top_k=9, fewer=True), dict(), False),
    ],
)
def test_a_program_serves_what_its_inputs_can_express(have, want, served):
    truncation = runtime.Truncation
    assert runtime.covers(truncation(**have), truncation(**want)) is served


@pytest.mark.parametrize(
    "settings",
    [
        dict(top_k=5, min_p=0.02),
        pytest.param(dict(top_k=[3, 0, 9]), marks=pytest.mark.slow),
        pytest.param(dict(temperature=0.0), marks=pytest.mark.slow),
    ],
)
def test_a_program_of_any_truncation_samples_what_one_of_that_truncation_does(exported, loaded, settings):
    """Of the process's programs, each is made for its settings."""
    asked = dict(prompts="a red door", guidance=1.0, **settings)
    np.testing.assert_array_equal(loaded.text_to_video(**asked).tokens, exported[0].text_to_video(**asked).tokens)


def test_requests_share_a_batch_of_an_export(exported, loaded):
    """As those of a server do: each keeps the tokens that it has alone."""
    sample = SAMPLE.replace(block=2)
    asked = {prompt: loaded.prepare("text_to_video", [prompt], sample=sample) for prompt in ("a red door", "a player")}
    batch, samplings = Together(next(iter(asked.values())).engine, sample), {}
    for seed, (prompt, prepared) in enumerate(asked.items()):
        samplings[prompt] = batch.add(prompt, prepared.engine.rows(prepared.inputs, 1), seed)
        batch.step()  # The second comes when the first has begun.
    while batch.names:
        batch.step()
    for seed, prompt in enumerate(asked):
        alone = exported[0].ask("text_to_video", prompt, sample=sample, seed=seed)
        np.testing.assert_array_equal(samplings[prompt].tokens, alone.tokens)
