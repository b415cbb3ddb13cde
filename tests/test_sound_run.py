"""A run with sound by the command line: store, training, evaluation, clips that sound."""

from __future__ import annotations

import json
import pathlib
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "sampling"))

import tiny  # noqa: E402

from poet import (
    cli,  # noqa: E402
    media,  # noqa: E402
)
from poet.distributed import mesh as mesh_lib  # noqa: E402
from poet.media.sound import read_sound  # noqa: E402
from poet.runs import assets
from poet.spec import (
    config,
    to_dict,  # noqa: E402
)
from poet.store.reader import load_manifest  # noqa: E402
from poet.tasks.registry import TASKS, group_name  # noqa: E402
from poet.tasks.resolved import Resolved  # noqa: E402
from poet.tokenizers import text  # noqa: E402
from poet.tokenizers.text import EncodedText  # noqa: E402

SOUND_TASKS = sorted(name for name, task in TASKS.items() if task.has_audio)
CLIPS = 4  # Of each split.
CLIP = tiny.WITH_SOUND.clip
SETTINGS = {
    "TEXT.encoder": "letters",
    "MODEL.layers": 1,
    "DATA.mixture_rates": dict.fromkeys(SOUND_TASKS, 1.0),
    "DATA.batch": 2,
    "DATA.equal_tokens": False,
    "TRAIN.steps": 5,  # Every group has its turn.
    "TRAIN.log_every": 1,
    "EVAL.batch": 4,
    "EVAL.batches": 1,
    "EVAL.conditioning_frames": 3,
}


def fingerprint_of(spec):
    return load(spec).fingerprint


def load(spec, mesh=None):
    """This module as a text encoder: the states of a text are its letters' code points."""

    def encode(texts):
        lengths = np.array([min(len(t), spec.length) for t in texts], np.int32)
        states = np.zeros((len(texts), spec.length, spec.width), np.float32)
        for row, letters in enumerate(texts):
            codes = [ord(c) / 100 for c in letters[: spec.length]]
            states[row, : len(codes)] = np.array(codes)[:, None]
        return EncodedText(states_BxLxD=states, lengths_B=lengths, truncated=0)

    for name, value in dict(name="letters", length=spec.length, width=spec.width, fingerprint="letters-1").items():
        setattr(encode, name, value)
    return encode


def write_clips(folder: pathlib.Path) -> None:
    """Clips of a grey that brightens, with a tone of their own; one of each split has no sound."""
    folder.mkdir()
    lines = []
    for index in range(2 * CLIPS):
        ramp = 10 * index + 5 * np.arange(CLIP.frames)
        video = np.tile(ramp[:, None, None, None], (1, 16, 16, 3)).astype(np.uint8)
        phase = np.arange(CLIP.samples) * (0.05 + 0.03 * index)
        tone = (9000 * np.sin(phase)).astype(np.int16)
        sound = () if index % CLIPS == CLIPS - 1 else (tone, CLIP.sample_rate_hz)
        media.write_mp4(folder / f"{index}.mp4", video, CLIP.rate_hz, *sound)
        split = "train" if index < CLIPS else "validation"
        lines.append({"file": f"{index}.mp4", "caption": f"tone {index}", "split": split})
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))


def write_gin(base: pathlib.Path) -> str:
    """The tiny run of tests/sampling with the tokenizers and folders of `base`."""
    lines = []
    for part in ("clip", "vocabulary", "video_tokenizer", "audio_tokenizer", "text", "model"):
        values = to_dict(getattr(tiny.WITH_SOUND, part))
        lines += [f"{part.upper()}.{name} = {value!r}" for name, value in values.items()]
    folders = {
        "VIDEO_TOKENIZER.path": "video",
        "AUDIO_TOKENIZER.path": "audio",
        "STORE.source": "clips",
        "STORE.path": "store",
        "DATA.store": "store",
    }
    settings = SETTINGS | {name: str(base / folder) for name, folder in folders.items()}
    lines += [f"{name} = {value!r}" for name, value in settings.items()]
    (base / "run.gin").write_text("\n".join(lines))
    return str(base / "run.gin")


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Programs that run a few times are not worth optimising, nor dividing over devices."""
    build = mesh_lib.build
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh_lib, "build", lambda spec, devices=None: build(spec, jax.devices()[:1]))
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    """Folder with run.gin, clips, both tokenizers, the store, and the trained `lm`."""
    base = tmp_path_factory.mktemp("run")
    write_clips(base / "clips")
    tiny.video_tokenizer().save(base / "video")
    tiny.audio_tokenizer().save(base / "audio")
    gin = write_gin(base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(text.ENCODERS, "letters", __name__)
        assert cli.main(["tokenize", f"--gin_file={gin}"]) == 0
        assert cli.main(["train", f"--gin_file={gin}", f"--workdir={base / 'lm'}"]) == 0
        yield base


def test_the_store_holds_sound_and_counts_clips_without(run):
    manifest = load_manifest(str(run / "store"))
    assert manifest.audio.grid == (2, 15, 1) and manifest.audio.bits == 5
    assert {name: split.silent for name, split in manifest.splits.items()} == {"train": 1, "validation": 1}


def test_training_reports_every_group_and_stream(run):
    entries = [json.loads(line) for line in (run / "lm" / "metrics.jsonl").open()]
    losses = {key: value for entry in entries for key, value in entry.items() if "loss/" in key}
    expected = {f"{group_name(TASKS[t])}/loss/{s}" for t in SOUND_TASKS for s in TASKS[t].output}
    assert losses.keys() == expected and all(np.isfinite(list(losses.values())))


def test_evaluation_gives_the_likelihood_of_every_stream_and_examples(run):
    out = run / "eval"
    command = ["eval", f"--checkpoint={run / 'lm'}", f"--out={out}", "--gin.EVAL.examples=True"]
    assert cli.main([*command, f"--scores={run / 'scores.json'}"]) == 0
    report = json.loads((out / "eval.json").read_text())
    files = {entry["caption"].replace(" ", "_"): entry["files"] for entry in report["media"]}
    assert {files[task]["sampled"].rpartition(".")[2] for task in SOUND_TASKS} == {"mp4", "wav"}
    rows = report["metrics"]["likelihood"]["rows"]
    found = {(row["task"], row["stream"]): row for row in rows}
    assert found.keys() == {(task, s) for task in SOUND_TASKS for s in TASKS[task].output}
    # Codes: 3 x 16 of video and 2 x 15 of audio a clip; 3 known frames are 2 latents and 9 frames.
    # The clip without a sound track counts for none of these tasks.
    tokens = {key: row["tokens"] / (CLIPS - 1) for key, row in found.items()}
    assert tokens["text_to_video_with_audio", "video"] == 48
    assert tokens["text_to_video_with_audio", "audio"] == tokens["video_to_audio", "audio"] == 30
    assert tokens["audio_video_continuation", "video"] == 48 - 2 * 16
    assert tokens["audio_video_continuation", "audio"] == 30 - 2 * 9
    assert all(row["unigram_nats"] > 0 for row in rows)
    gains = json.loads((run / "scores.json").read_text())["condition_gain"]
    assert set(gains) == set(SOUND_TASKS)
    assert list(gains["audio_to_video"]) == ["sound"] and list(gains["video_to_audio"]) == ["video"]
    assert set(gains["audio_video_continuation"]["opening sound"]) == {"video", "audio"}
    clips = {found["clips"] for task in gains.values() for kind in task.values() for found in kind.values()}
    assert clips == {CLIPS - 1}, "without the silent one"


@pytest.mark.parametrize(
    "task", [t if t == "audio_video_continuation" else pytest.param(t, marks=pytest.mark.slow) for t in SOUND_TASKS]
)
def test_every_task_generates_from_the_checkpoint(run, tmp_path, task):
    arguments = ["generate", f"--checkpoint={run / 'lm'}", f"--out={tmp_path}", f"--task={task}"]
    if TASKS[task].text:
        arguments.append("--prompt=tone 3")
    else:
        arguments.append(f"--clip={run / 'clips' / '0.mp4'}")
    assert cli.main(arguments) == 0
    sound = read_sound(tmp_path / "000.wav", CLIP.sample_rate_hz).samples
    assert sound.shape == (CLIP.samples,)
    assert (tmp_path / "000.mp4").exists() == (task != "text_to_audio")
    if task != "text_to_audio":
        assert media.read_clip(tmp_path / "000.mp4", CLIP).audio is not None


def test_tasks_with_sound_are_refused_by_a_run_without(run, tmp_path, capsys):
    gin = f"--gin_file={run / 'run.gin'}"
    silent = ["--gin.AUDIO_TOKENIZER.path=", f"--workdir={tmp_path / 'w'}"]
    assert cli.main(["train", gin, *silent]) == cli.EXIT_USER
    assert "needs sound and this run has none" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_a_shipped_experiment_resolves_with_sound():
    """Added to the quickstart: the paper's 106 frames of four levels for 17 frames at 8 Hz."""
    names = ["gin/models/soundstream_small.gin", "gin/experiments/quickstart.gin"]
    files = [str(assets.root() / name) for name in names]
    experiment = config.load(files, ["AUDIO_TOKENIZER.path=trained", "VOCABULARY.audio_codes=1024"])
    assert Resolved(experiment).format.audio_frames == 106
    assert experiment.vocabulary.audio_levels == 4
