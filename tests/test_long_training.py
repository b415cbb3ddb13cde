"""data/pretrained/train.sh: stopped in every way and gone on with; its recipes; what may be released."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from poet.checkpoints import weights
from poet.models import declaration, superres
from poet.spec import VideoTokenizerSpec, compat, config
from poet.tasks.registry import SUPER_RESOLUTION
from poet.tasks.resolved import Resolved
from poet.tokenizers.video import magvit
from poet.tokenizers.video.base import VideoTokenizer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(1, str(ROOT / "data/pretrained"))

from long_training import main, release, runner, stages  # noqa: E402

# A training in small: counts to 60, saves its count when it is asked to stop, and goes on from there.
COUNTER = """
import json, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1]); folder.mkdir(exist_ok=True)
count = folder / "count"; asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
(folder / "spec.json").write_text(json.dumps({"train": {"steps": 60}}))
n = int(count.read_text()) if count.exists() else 0
with open(folder / "starts", "a") as file: file.write(f"{n}\\n")
while n < 60 and not asked:
    time.sleep(0.05); n += 1
    line = json.dumps({"step": n, "kind": "train", "loss": 1 / n})
    with open(folder / "metrics.jsonl", "a") as file: file.write(line + "\\n")
count.write_text(str(n)); sys.exit(0 if n == 60 else 75)
"""
DRIVER = """
import pathlib, sys, time
sys.path.insert(0, sys.argv[1]); work = pathlib.Path(sys.argv[2]); hours_s = float(sys.argv[3])
from long_training.runner import Job, Runner, Stage, held
count = lambda name: Job(command=(sys.executable, str(work / "counter.py"), str(work / name)), workdir=work / name)
note = Job(command=(sys.executable, "-c", f"open({str(work / 'once')!r}, 'a').write('x')"))
with held(work) as lock:
    deadline = time.monotonic() + hours_s if hours_s else None
    stages = [Stage(name="first", note="a note", jobs=(note,)),
              Stage(name="second", note="counting", jobs=(count("a"), count("b")))]
    sys.exit(Runner(work, work, lock, {"recipe": "cpu"}, deadline).run(stages))
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "counter.py").write_text(COUNTER)
    return tmp_path


def start(work: Path, hours_s: float = 0.0) -> subprocess.Popen:
    command = [sys.executable, "-c", DRIVER, str(ROOT / "data/pretrained"), str(work), str(hours_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for_step(folder: Path, step: int) -> None:
    give_up = time.monotonic() + 30
    while runner.progress(folder).get("step", 0) < step:
        assert time.monotonic() < give_up
        time.sleep(0.02)


def starts(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "starts").read_text().split()]


def test_a_killed_run_stops_its_child_and_the_next_one_goes_on(work: Path) -> None:
    first = start(work)
    wait_for_step(work / "a", 5)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = start(work)  # Waits for the child of the first, which saves.
    assert second.wait(30) == runner.DONE, second.stdout.read()
    assert (work / "once").read_text() == "x", "a finished stage is not run again"
    went_on = starts(work / "a")
    assert went_on[0] == 0 and 5 <= went_on[1] < 60 and starts(work / "b") == [0]
    status = json.loads((work / "status.json").read_text())
    assert status["state"] == "finished" and status["stages"]["second"]["step"] == 60
    assert status["stages"]["second"]["of"] == 60 and status["loss"] == pytest.approx(1 / 60)


def test_time_that_is_spent_stops_at_a_checkpoint_and_is_no_failure(work: Path, capsys: pytest.CaptureFixture) -> None:
    run = start(work, hours_s=2.0)
    assert run.wait(30) == runner.DONE
    assert "the time is spent" in run.stdout.read()
    kept = int((work / "a" / "count").read_text())
    assert 0 < kept < 60 and not (work / "stages" / "second.json").exists()
    main.tell(work)
    assert "second     stopped" in (said := capsys.readouterr().out) and f"step {kept} of 60" in said


def test_a_signal_is_handed_on_and_a_second_run_is_refused_meanwhile(work: Path) -> None:
    run = start(work)
    wait_for_step(work / "a", 3)
    assert runner.running(work)
    with pytest.raises(runner.Mistake, match=f"process {run.pid}"), runner.held(work):
        pass
    run.send_signal(signal.SIGTERM)
    assert run.wait(30) == runner.STOPPED
    assert (work / "a" / "count").exists() and not runner.running(work)


def test_a_failing_stage_ends_the_run_with_the_end_of_its_log(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    job = runner.Job(command=(sys.executable, "-c", "raise SystemExit('no such clips')"))
    with runner.held(tmp_path) as lock:
        made = runner.Runner(tmp_path, tmp_path, lock, {})
        assert made.run([runner.Stage(name="codes", note="", jobs=(job,))]) == runner.FAILED
    assert "no such clips" in capsys.readouterr().out
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"


def test_another_recipe_is_not_mixed_in(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runner.write_json(tmp_path / "status.json", {"recipe": "cpu"})
    assert main.main(["--device=gpu", f"--work={tmp_path}"]) == runner.USER
    assert "begun with the cpu recipe" in capsys.readouterr().err


def experiment_of(job: runner.Job):
    files = [flag.partition("=")[2] for flag in job.command if flag.startswith("--gin_file=")]
    return config.load(files, [flag[6:] for flag in job.command if flag.startswith("--gin.")])


@pytest.mark.parametrize("name", stages.RECIPES)
def test_every_recipe_s_super_resolution_fits_the_codes_that_it_makes(name: str) -> None:
    _, tokenize, train = stages.stages(stages.RECIPES[name], Path("/work_dir"), ROOT)["superres"].jobs
    codes, network = experiment_of(tokenize), experiment_of(train)
    assert codes.store.path == network.data.store and codes.video_tokenizer == network.video_tokenizer
    resolved = Resolved(network)
    assert resolved.network == SUPER_RESOLUTION and resolved.format == Resolved(codes).format
    superres.build_model(resolved).places(resolved.format.video)


@pytest.mark.parametrize("name", stages.RECIPES)
def test_every_recipe_adapts_the_model_that_it_trains_on_the_codes_that_it_makes(name: str) -> None:
    table = stages.stages(stages.RECIPES[name], Path("/work_dir"), ROOT)
    found = {key: experiment_of(table[key].jobs[-1]) for key in ("tokenizer", "round", "codes", "lm", "adapt")}
    compat.check(found["lm"], found["adapt"], "initialise", what="lm", remedy="")
    assert set(found["adapt"].data.mixture_rates) <= set(found["codes"].data.mixture_rates)
    for other in ("tokenizer", "round", "lm"):
        same = found["codes"].video_tokenizer.replace(path="")
        assert found[other].video_tokenizer.replace(path="") == same and found[other].clip == found["codes"].clip


def test_more_than_fits_is_not_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("lm", 700), ("tokenizer", 300)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").write_bytes(bytes(size))
    monkeypatch.setattr(release, "MOST_BYTES", 1000)
    assert release.check_size(tmp_path) == 1000
    monkeypatch.setattr(release, "MOST_BYTES", 999)
    with pytest.raises(ValueError, match="lm 0.0"):
        release.check_size(tmp_path)


def test_a_decoder_trained_after_its_encoder_is_released_in_half_the_bytes(tmp_path: Path) -> None:
    """Codes and their name stay; pixels differ by the rounding of bfloat16.  Others stay whole."""
    spec = VideoTokenizerSpec(
        base_channels=8, multipliers=(1,), blocks=1, temporal_downsample=(), stem=(4, 4, 4), norm_groups=2, bits=6
    )
    params = jax.tree.map(np.asarray, jax.jit(lambda: magvit.init(spec, jax.random.key(0)))())
    video = np.random.default_rng(0).integers(0, 256, (1, 5, 16, 16, 3)).astype(np.uint8)
    for codes_of, kept in (("0123456789abcdef", 1 / 2), ("", 1)):
        before = VideoTokenizer.from_params(spec.replace(codes_of=codes_of), params)
        before.save(tmp_path / "t")
        release.halve_decoder(tmp_path / "t")
        after = VideoTokenizer.load(tmp_path / "t")
        arrays = weights.read_arrays(tmp_path / "t" / "model.safetensors").items()
        sizes = {part: sum(a.nbytes for name, a in arrays if name.startswith(part)) for part in ("encoder", "decoder")}
        wanted = {part: 4 * declaration.count(magvit.declare(spec)[part]) for part in sizes}
        assert sizes == {"encoder": wanted["encoder"], "decoder": kept * wanted["decoder"]}
        codes = before.encode(video)
        np.testing.assert_array_equal(after.encode(video), codes)
        assert after.fingerprint == before.fingerprint
        off = np.abs(before.decode(codes).astype(int) - after.decode(codes)).max()
        assert off <= 4 and (off == 0) == (codes_of == "")


@pytest.mark.slow
@pytest.mark.long
def test_the_whole_chain_at_toy_sizes_survives_a_kill(tmp_path: Path) -> None:
    """All stages by the real programs; killed in the middle of the language model, and run again."""
    command = [sys.executable, str(ROOT / "data/pretrained/long_training/main.py"), "--smoke", f"--work={tmp_path}"]
    environment = os.environ | {"XLA_FLAGS": ""}
    first = subprocess.Popen(command, env=environment)
    while not list((tmp_path / "lm" / "checkpoints").glob("[0-9]" * 8)):
        assert first.poll() is None
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    subprocess.run(command, env=environment, check=True)
    released = tmp_path / "release/data/pretrained"
    scores = json.loads((released / stages.LM / "scores.json").read_text())
    assert scores["step"] == 8 and "video" in scores["condition_gain"]["text_to_video"]["text"]
    assert (released / stages.TOKENIZER / "scores.json").exists()
