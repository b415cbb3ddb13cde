"""`poet tokenizer-train` and `poet tokenize` as two processes: the run and the store of one."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

import numpy as np
import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "sampling"))

import process_runs  # noqa: E402
import test_sound_run  # noqa: E402
import tiny  # noqa: E402

from poet.media import write_wav  # noqa: E402
from poet.runs.lines import read  # noqa: E402
from poet.spec import AudioTokenizerSpec, to_dict  # noqa: E402

pytestmark = pytest.mark.slow

AUDIO = AudioTokenizerSpec(
    strides=(4, 8), encoder_channels=4, decoder_channels=4, dim=6, dilations=(1,), levels=4, codes=8
)
BOTH = {
    "MESH.fsdp": 4,
    "OPTIMIZER.learning_rate": 1e-5,
    "OPTIMIZER.warmup_steps": 0,
    "TRAIN.steps": 3,
    "TRAIN.log_every": 1,
    "TRAIN.sample_every": 0,
    "CHECKPOINT.every": 2,
    "TOKENIZER_TRAIN.batch": 8,
}
SETTINGS = {
    "audio": {
        "TOKENIZER_TRAIN.modality": "audio",
        **{f"AUDIO_TOKENIZER.{k}": v for k, v in to_dict(AUDIO).items()},
        "AUDIO_TRAIN.samples": 1280,
        "AUDIO_TRAIN.kmeans_iterations": 2,
        "AUDIO_TRAIN.adversarial_weight": 0.0,
    },
    "video": {
        **{f"VIDEO_TOKENIZER.{k}": v for k, v in to_dict(tiny.EXPERIMENT.video_tokenizer).items()},
        # Flat clips make this network's gradients explode: from step 3 on, the last bits decide.
        "TRAIN.steps": 2,
        "VOCABULARY.visual_bits": tiny.EXPERIMENT.video_tokenizer.bits,
        **{f"CLIP.{k}": v for k, v in to_dict(tiny.EXPERIMENT.clip).items()},
    },
}
# The command line with a text encoder of tests, and without TensorBoard: process 0 would be so late with
# TensorFlow that gloo, which waits for 30 s, gives up.
PROGRAM = """
import sys
sys.modules["clu.metric_writers"] = None
sys.path[:0] = sys.argv[1].split(":")
from poet import cli
from poet.tokenizers import text
text.ENCODERS["letters"] = "test_sound_run"
sys.exit(cli.main(sys.argv[2:]))
"""


def poet(count: int, arguments: Sequence[str], devices: int) -> list[str]:
    """Runs the command as so many processes, which must all succeed; what they said."""

    def command(address: str, index: int) -> list[str]:
        flags = [f"--coordinator={address}", f"--processes={count}", f"--process={index}"]
        paths = f"{HERE}:{HERE / 'sampling'}"
        return ["-c", PROGRAM, paths, *arguments, *(flags if count > 1 else [])]

    codes, output = process_runs.run(count, command, devices=[devices] * count)
    assert codes == [0] * count, "\n\n".join(text[-3000:] for text in output)
    return output


def sounds(folder: pathlib.Path) -> None:
    rng, t = np.random.default_rng(0), np.arange(6000) / 16_000
    folder.mkdir()
    for i in range(6):
        wave = np.sin(2 * np.pi * (200 + 300 * i + 800 * t) * t) * 0.3 + 0.01 * rng.normal(size=6000)
        write_wav(folder / f"{i}.wav", np.int16(32767 * wave), 16_000)


def losses(workdir: pathlib.Path) -> dict[str, float]:
    return {
        f"{line['step']} {key}": value
        for line in read(workdir / "metrics.jsonl")
        for key, value in line.items()
        if "loss" in key
    }


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_two_processes_train_a_tokenizer_as_one(modality: str, tmp_path: pathlib.Path) -> None:
    write = {"audio": sounds, "video": test_sound_run.write_clips}[modality]
    write(tmp_path / "media")
    settings = BOTH | SETTINGS[modality] | {"TOKENIZER_TRAIN.source": str(tmp_path / "media")}
    gin = tmp_path / "run.gin"
    gin.write_text("".join(f"{name} = {value!r}\n" for name, value in settings.items()))
    for count in (1, 2):
        arguments = ["tokenizer-train", f"--gin_file={gin}", f"--workdir={tmp_path / str(count)}"]
        output = poet(count, arguments, devices=4 // count)
        assert "wrote" in output[0] and "fingerprint" in output[0]
        assert all("step " not in text for text in output[1:])
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    # Sums of gradients in another order; small steps, or codes near a border would fall to either side.
    assert len(one) >= 2 and two == pytest.approx(one, rel=1e-3)
    files = [{p.name for p in (tmp_path / n / "tokenizer").iterdir()} for n in "12"]
    assert files[0] == files[1]


def test_two_processes_under_a_coordinator_write_the_store_of_one(tmp_path: pathlib.Path) -> None:
    test_sound_run.write_clips(tmp_path / "clips")
    tiny.video_tokenizer().save(tmp_path / "video")
    tiny.audio_tokenizer().save(tmp_path / "audio")
    gin = test_sound_run.write_gin(tmp_path)
    stores = []
    for count in (1, 2):
        store = tmp_path / f"store{count}"
        options = [f"--gin.STORE.path={store}", "--gin.STORE.clips_per_shard=2"]
        poet(count, ["tokenize", f"--gin_file={gin}", *options], devices=1)
        files = [p for p in store.rglob("*") if p.is_file()]
        stores.append({p.relative_to(store).as_posix(): p.read_bytes() for p in files})
    one, two = stores
    assert len([name for name in one if "tfrecord" in name]) >= 4
    assert two.keys() == one.keys() and [name for name in one if one[name] != two[name]] == []


def test_auto_without_a_cluster_says_what_to_give(tmp_path: pathlib.Path) -> None:
    """In one line, before anything is written."""
    quickstart = process_runs.ROOT / "gin/experiments/quickstart.gin"
    arguments = ["train", f"--gin_file={quickstart}", f"--workdir={tmp_path / 'w'}", "--coordinator=auto"]
    codes, (text,) = process_runs.run(1, lambda *_: ["-m", "poet.cli", *arguments], devices=[1])
    assert codes == [2] and not (tmp_path / "w").exists()
    line = text.strip().splitlines()[-1]
    assert line.startswith("poet train: error: --coordinator=auto found no cluster"), text
    assert "--coordinator=HOST:PORT --processes=N --process=I" in line, text
