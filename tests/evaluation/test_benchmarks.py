"""Published protocols: their table, the data that they ask for, how files are cut, and dry runs from end to end."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from poet import cli, media
from poet.evaluation.benchmarks import clips, data, run, sampling, standins
from poet.evaluation.benchmarks.data import Case, Data
from poet.evaluation.benchmarks.presets import CENTRE, COSINE, FIRST, PRESETS, Form
from poet.media import MediaError
from poet.runs.run import Run
from poet.sampling import batch_file
from poet.spec import ClipSpec, UserError
from poet.tasks.registry import TASKS
from poet.tasks.resolved import Resolved

IN_SUITE = ("msrvtt_fvd", "davis_stylization", "audio_fad", "physics_iq")
EVERY = [pytest.param(name, marks=[] if name in IN_SUITE else pytest.mark.slow) for name in PRESETS]


@pytest.fixture
def vbench(tmp_path, monkeypatch):
    """A stand-in for the package: its file alone."""
    folder = tmp_path / "packages" / "vbench"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('it is read, not imported')")
    entries = [{"prompt_en": text, "dimension": ["scene"]} for text in ("a bus", "a cow, still", "a bus")]
    (folder / "VBench_full_info.json").write_text(json.dumps(entries))
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.delitem(sys.modules, "vbench", raising=False)


def test_the_table_is_consistent():
    for name, preset in PRESETS.items():
        assert preset.name == name and preset.task in TASKS and bool(preset.measures) != bool(preset.tool)
        assert preset.count >= preset.cases and preset.count % preset.sets == 0
        names = {one.published for one in preset.measures} or {"Physics-IQ"}
        assert {one.measure for one in preset.published} <= names
        assert TASKS[preset.task].text or not preset.prompts
        assert bool(preset.real) == bool(preset.reals)
        compared = any(one.kind != COSINE for one in preset.measures)
        assert not compared or preset.real
        assert preset.scored.frames <= preset.sampled.frames


@pytest.mark.parametrize("name", EVERY)
def test_a_dry_run_goes_from_end_to_end(name: str, tmp_path: Path, vbench, capsys):
    out = tmp_path / "out"
    assert cli.main(["benchmark", name, "--dry_run", f"--out={out}"]) == 0, capsys.readouterr().err
    found, preset = json.loads((out / "benchmark.json").read_text()), PRESETS[name]
    assert "dry run" in found["deviations"][0] and "not comparable" in capsys.readouterr().out
    assert [one["published as"] for one in found["scores"]] == [one.published for one in preset.measures]
    for one in found["scores"]:
        assert one["value"] is not None and one["low"] <= one["value"] <= one["high"], one
        assert one["measure"].startswith("standin"), "the published name is not that of a number of another network"
    for one in found["sets"]:
        assert all(not side["unreadable"] for side in one["sides"].values()) and one["networks"][0]["fingerprint"]
    if preset.tool:
        assert len(list((out / "clips").glob("*.mp4"))) >= standins.CASES
    assert cli.main(["benchmark", name, f"--out={out}", "--num=1", "--checkpoint=x"]) == cli.EXIT_USER


def test_the_same_clips_on_both_sides_are_at_no_distance(tmp_path: Path):
    preset = standins.small(dataclasses.replace(PRESETS["k600_frame_prediction"], samples=0))
    standins.write_data(preset, tmp_path / "data")
    found = data.read(preset, str(tmp_path / "data"))
    samples = {}
    for place, file in enumerate(found.real):
        samples[f"{place:04d}"] = tmp_path / f"{place}.apng"
        media.write_apng(samples[f"{place:04d}"], clips.frames(file, preset.scored, preset.cut), 8.0)
    networks = run.check_networks(preset, standins.networks(preset))
    measured = run.measure(preset, found, samples, networks, tmp_path / "out")
    assert measured["scores"][0]["value"] == pytest.approx(0, abs=1e-4)
    text = run.text(run.record(preset, measured, []))
    assert "not comparable" not in text and networks[0].fingerprint in text


def counted(path: Path, frames: int = 24) -> np.ndarray:
    """A film whose frame t has the level 9 + 10 t, without loss."""
    video = np.broadcast_to(
        (9 + 10 * np.arange(frames, dtype=np.uint8))[:, None, None, None], (frames, 20, 30, 3)
    ).copy()
    video[:, :10, :15] //= 2
    media.write_apng(path, video, 25.0)
    return video


def test_central_and_first_frames_are_taken_and_resized_bicubically(tmp_path: Path):
    video = counted(tmp_path / "a.apng")
    form = Form(frames=16, height=40, width=40)
    for cut, first in ((CENTRE, 4), (FIRST, 0)):
        found = clips.frames(tmp_path / "a.apng", form, cut)
        assert found.shape == (16, 40, 40, 3)
        for place in (0, 15):
            image = Image.fromarray(video[first + place]).resize((40, 40), Image.Resampling.BICUBIC, box=(5, 0, 25, 20))
            np.testing.assert_array_equal(found[place], np.asarray(image))
    with pytest.raises(MediaError, match="24 frames, 25 are needed"):
        clips.frames(tmp_path / "a.apng", dataclasses.replace(form, frames=25), FIRST)


def test_a_case_is_conditioned_on_the_frames_that_its_real_clip_begins_with(tmp_path: Path):
    counted(tmp_path / "a.apng")
    preset = PRESETS["k600_frame_prediction"]
    clip = ClipSpec(frames=17, height=128, width=128, rate_hz=8.0)
    paths = sampling._conditions(preset, [Case(name="a", clip=str(tmp_path / "a.apng"))], clip, tmp_path / "conditions")
    given = media.read_clip(paths["a"], dataclasses.replace(clip, frames=5)).video
    np.testing.assert_array_equal(given, clips.frames(tmp_path / "a.apng", preset.scored, CENTRE)[:5])


def test_a_depth_is_cut_as_its_clip_is(tmp_path: Path):
    """Consecutive frames of both, whatever the rates of the files."""
    preset, clip = PRESETS["davis_stylization"], ClipSpec(frames=17, height=16, width=16, rate_hz=8.0)
    counted(tmp_path / "a.apng")
    case = Case(name="a", prompt="a cow", clip=str(tmp_path / "a.apng"), depth=str(tmp_path / "a.apng"))
    paths = [make(preset, [case], clip, tmp_path / "cut") for make in (sampling._conditions, sampling._depths)]
    shown, depth = (media.read_clip(found["a"], clip).video for found in paths)
    np.testing.assert_array_equal(shown, depth)
    levels = shown[:, -2, -2, 0].astype(int)
    np.testing.assert_array_equal(np.diff(levels), 10)
    assert sampling._depths(preset, [dataclasses.replace(case, depth="")], clip, tmp_path / "cut") == {}


def test_real_clips_of_several_sets_are_decoded_once(tmp_path: Path, monkeypatch):
    preset = standins.small(PRESETS["msrvtt_fvd"])
    standins.write_data(preset, tmp_path / "data")
    found, read = data.read(preset, str(tmp_path / "data")), []
    samples = standins.write_samples(preset, found.cases, tmp_path / "samples")
    networks = run.check_networks(preset, standins.networks(preset))
    real = clips.frames
    monkeypatch.setattr(clips, "frames", lambda path, *more: (read.append(path), real(path, *more))[1])
    measured = run.measure(preset, found, samples, networks, tmp_path / "out")
    assert len(measured["sets"]) == preset.sets == 2 and len(read) == len(set(read)) == len(found.real) + len(samples)
    monkeypatch.setattr(
        run,
        "Once",
        lambda vectors: type(
            "All", (), {"knows": lambda self, name: False, "__call__": lambda self, *x: vectors(*x)}
        )(),
    )
    again = run.measure(preset, found, samples, networks, tmp_path / "out")
    assert again["scores"] == measured["scores"] and again["sets"][1]["scores"] == measured["sets"][1]["scores"]
    assert len(read) == 3 * len(found.real) + 2 * len(samples), "without it, the real clips are decoded for each set"


def test_cases_are_taken_in_turn():
    cases = [Case(name=name) for name in "abc"]
    assert [name for name, _ in sampling.turns(cases, 3)] == ["a", "b", "c"]
    named = list(sampling.turns(cases, 7))
    assert len({name for name, _ in named}) == 7 and [case.name for _, case in named] == list("abcabca")
    ucf = PRESETS["ucf101_fvd_is"]
    assert sampling.planned(ucf, 101) == (ucf, 10_000) and sampling.planned(ucf, 2)[1] == 198
    assert sampling.planned(PRESETS["msrvtt_fvd"], 100)[0].sets == 1


def test_deviations_are_named():
    preset = PRESETS["msrvtt_fvd"]
    clip = ClipSpec(frames=17, height=128, width=128, rate_hz=8.0)
    assert run.deviations(preset, clip, 40_960, 2_048) == []
    small = dataclasses.replace(clip, height=64, width=64)
    found = run.deviations(preset, small, 40, 2)
    assert len(found) == 3 and "64x64" in found[0] and "40,960" in found[1] and "2,048" in found[2]


def test_a_cosine_is_that_of_each_frame_and_its_text(tmp_path: Path):
    preset = standins.small(PRESETS["msrvtt_clipsim"])
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(2, standins.WIDTH)).astype(np.float32)
    cases = [Case(name=name, prompt=name) for name in ("a", "b")]
    samples = {}
    for name in ("a", "b"):
        counted(tmp_path / f"{name}.apng")
        samples[name] = tmp_path / f"{name}.apng"
    (network,) = standins.networks(preset)
    measured = run.measure(preset, Data(cases=cases, real=(), text_vectors=texts), samples, [network], tmp_path)
    rows = network(clips.frames(samples["a"], preset.scored, FIRST)).astype(np.float64)
    cosines = rows @ texts.T / np.linalg.norm(rows, axis=1)[:, None] / np.linalg.norm(texts, axis=1)
    assert measured["scores"][0]["value"] == pytest.approx(cosines.mean(), abs=1e-6)
    with pytest.raises(UserError, match="both towers"):
        run.measure(preset, Data(cases=cases, real=(), text_vectors=texts[:, :3]), samples, [network], tmp_path)


def test_mistakes_say_what_to_prepare(tmp_path: Path, capsys):
    preset = PRESETS["msrvtt_clipsim"]
    with pytest.raises(UserError, match=r"59,794 captions(.|\n)*text_vectors.npy"):
        data.read(preset, str(tmp_path))
    file = tmp_path / data.CASES
    for text, words in (
        ("", "holds no case"),
        ('{"name": "a"}', "has no prompt"),
        ('{"name": "a", "caption": "b"}', "line 1: a JSON object with clip, depth, name, prompt"),
        ("[1]", "line 1"),
        ('{"name": "a", "prompt": "b"}\n{"name": "a", "prompt": "c"}', "line 2: the name 'a'"),
        ('{"name": "a", "prompt": "b", "clip": "x.mp4"}', "no file"),
        ('{"name": "a", "prompt": "b"}', "text_vectors.npy cannot be read"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=words):
            data.read(preset, str(tmp_path))
    np.save(tmp_path / data.VECTORS, np.zeros((3, 4), np.float32))
    with pytest.raises(UserError, match="a row a case"):
        data.read(preset, str(tmp_path))
    with pytest.raises(UserError, match="holds no films"):
        data.read(PRESETS["msrvtt_fvd"], str(tmp_path))
    with pytest.raises(UserError, match="needs 2 networks, got 1: FVD: I3D.*IS: C3D"):
        run.check_networks(PRESETS["ucf101_fvd_is"], standins.networks(preset))
    with pytest.raises(UserError, match="needs a network of video, standin0 reads frames"):
        run.check_networks(PRESETS["msrvtt_fvd"], standins.networks(preset))
    assert cli.main(["benchmark", "msrvtt"]) == cli.EXIT_USER and "msrvtt_fvd" in capsys.readouterr().err
    assert cli.main(["benchmark", "msrvtt_fvd", f"--out={tmp_path}", "--dry_run"]) == cli.EXIT_USER
    assert "not empty" in capsys.readouterr().err
    (tmp_path / "about.json").write_text("{")
    assert cli.main(["benchmark", "msrvtt_fvd", f"--out={tmp_path}", "--dry_run"]) == cli.EXIT_USER
    assert "about.json is damaged" in capsys.readouterr().err
    assert cli.main(["benchmark", "physics_iq", "--describe"]) == 0 and "198 lines" in capsys.readouterr().out


def test_vbench_prompts_are_those_of_the_package(vbench):
    found = data.read(PRESETS["vbench_prompts"], "")
    assert [case.name for case in found.cases[:6]] == [f"a bus-{i}" for i in range(5)] + ["a cow, still-0"]
    assert len(found.cases) == 10


@pytest.mark.parametrize("name", ["ssv2_inpainting", "ssv2_outpainting", "davis_stylization", "k600_frame_prediction"])
def test_the_samples_of_a_preset_are_asked_for_as_a_checkpoint_takes_them(name: str, tmp_path: Path, monkeypatch):
    """Admitted by the shipped weights' settings; what is sampled is not."""
    preset, checkpoint = PRESETS[name], Run.open("data/pretrained/lm_arenas")
    counted(tmp_path / "a.apng")
    depth = str(tmp_path / "a.apng") if preset.takes_depth else ""
    case = Case(name="a", prompt="a cow" if preset.prompts else "", clip=str(tmp_path / "a.apng"), depth=depth)
    asked = []
    monkeypatch.setattr(batch_file.Batch, "run", lambda self, **_: asked.append(self) or 0)
    resolved = Resolved(checkpoint.checkpoint.spec)
    files = sampling.sample(preset, [case], 2, tmp_path / "out", checkpoint, resolved, [], 2)
    [line] = asked[0].lines
    assert line.error == "" and line.job.request.task == preset.task and line.job.request.region == preset.region
    assert len(line.job.request.clip) == 2 and list(files) == ["a_0", "a_1"]
    assert bool(line.job.request.depth) == preset.takes_depth


@pytest.mark.slow
def test_a_checkpoint_is_sampled_and_scored(tmp_path: Path, capsys):
    """Two texts on the shipped weights; the second time nothing is sampled."""
    from onnx import TensorProto, helper, save

    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)]
    graph = helper.make_graph(
        nodes,
        "mean",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 224, 224])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "net.onnx")
    (tmp_path / "net.json").write_text(
        json.dumps({"name": "mean", "medium": "frames", "onnx": "net.onnx", "size": [224, 224]})
    )
    folder = tmp_path / "data"
    folder.mkdir()
    lines = [json.dumps({"name": f"{i}", "prompt": f"the player walks, {i}"}) for i in range(2)]
    (folder / data.CASES).write_text("\n".join(lines))
    np.save(folder / data.VECTORS, np.ones((2, 3), np.float32))
    weights = Path(__file__).parents[2] / "data/pretrained/lm_arenas"
    flags = [f"--checkpoint={weights}", f"--data={folder}", f"--features={tmp_path / 'net.json'}"]
    command = ["benchmark", "msrvtt_clipsim", *flags, f"--out={tmp_path / 'out'}", "--batch=2"]
    assert cli.main(command) == 0, capsys.readouterr().err
    file = tmp_path / "out/samples/job_00000/000.apng"
    before, found = file.stat().st_mtime_ns, json.loads((tmp_path / "out/benchmark.json").read_text())
    assert 0.9 < found["scores"][0]["value"] <= 1 and found["scores"][0]["measure"] == "mean_cosine"
    assert any("64x64" in line for line in found["deviations"]) and found["scores"][0]["n"] == 2
    assert cli.main(command) == 0 and file.stat().st_mtime_ns == before
    assert cli.main([*command, "--seed=5"]) == cli.EXIT_USER and "another run" in capsys.readouterr().err
