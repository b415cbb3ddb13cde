"""`poet train` and `poet eval` as two processes: the logs and the scores of one."""

from __future__ import annotations

import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "data"))

import process_runs  # noqa: E402
import small_run  # noqa: E402

from poet import cli  # noqa: E402
from poet.cli.commands import tokenize
from poet.evaluation import runner  # noqa: E402
from poet.runs import manifest  # noqa: E402
from poet.runs.lines import read  # noqa: E402
from poet.runs.run import Run  # noqa: E402
from poet.spec import UserError, config  # noqa: E402
from poet.tasks.resolved import Resolved  # noqa: E402

SETTINGS = {
    "MESH.tensor": 2,
    "TRAIN.steps": 6,
    "TRAIN.log_every": 1,
    "TRAIN.eval_every": 6,
    "TRAIN.eval_batches": 1,
    "TRAIN.sample_every": 6,
    "EVAL.batch": 4,
    "EVAL.batches": 2,
}
# What one of the processes runs: training by the command line, then an evaluation among the same ones.
PROGRAM = """
import sys
from poet import cli
from poet.checkpoints import checkpoint
from poet.distributed import processes
from poet.evaluation import runner
from poet.models.transformer import build_model
from poet.runs.run import Run
from poet.tasks.resolved import Resolved
out, workdir, *arguments = sys.argv[1:]
code = cli.main(["train", f"--workdir={workdir}", *arguments])
if not code:
    runner.evaluate(Run.open(workdir), None, out, ["likelihood", "condition_gain"])
    if processes.first():
        run = Run.open(workdir)
        checkpoint.load_params(run, build_model(Resolved(run.checkpoint.spec)).abstract())
        print("loaded by one of them")
sys.exit(code)
"""


@pytest.fixture(scope="module")
def gin_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_run.write(tmp_path_factory.mktemp("run"), SETTINGS))


def scores(out: pathlib.Path, metric: str = "likelihood") -> list[dict]:
    return json.loads((out / runner.RESULT_FILE).read_text())["metrics"][metric]["rows"]


def numbers(workdir: pathlib.Path, kind: str) -> dict[str, float]:
    clocks = ("_per_s", "data_wait", "goodput", "seconds", "eta_s")
    return {
        f"{line['step']} {key}": value
        for line in read(workdir / "metrics.jsonl")
        for key, value in line.items()
        if line["kind"] == kind and isinstance(value, (int, float)) and not key.endswith(clocks)
    }


@pytest.mark.slow
def test_two_processes_train_evaluate_and_sample_as_one(gin_file: str, tmp_path: pathlib.Path) -> None:
    options = [f"--gin_file={gin_file}"]

    def command(address: str, index: int) -> list[str]:
        flags = [f"--coordinator={address}", "--processes=2", f"--process={index}"]
        places = [str(tmp_path / "scores_of_two"), str(tmp_path / "two")]
        return ["-c", PROGRAM, *places, *options, *flags]

    codes, output = process_runs.run(2, command)
    assert codes == [0, 0], "\n\n".join(text[-3000:] for text in output)
    assert all(w in output[0] for w in ("step 6/6", "LIKELIHOOD", "loaded by one")), output[0][-3000:]
    assert "step " not in output[1] and "LIKELIHOOD" not in output[1], output[1]

    assert cli.main(["train", f"--workdir={tmp_path / 'one'}", *options]) == 0
    measured = ["likelihood", "condition_gain"]
    runner.evaluate(Run.open(tmp_path / "one"), None, tmp_path / "scores_of_one", measured)
    for kind in ("train", "validation"):
        one, two = numbers(tmp_path / "one", kind), numbers(tmp_path / "two", kind)
        assert any("loss" in key for key in one) and two == pytest.approx(one, rel=1e-6)
    for one, two in zip(*(scores(tmp_path / f"scores_of_{n}") for n in ("one", "two")), strict=True):
        assert (two["task"], two["stream"], two["tokens"]) == (one["task"], one["stream"], one["tokens"])
        assert two["loss_nats"] == pytest.approx(one["loss_nats"], rel=1e-6)
    one, two = (scores(tmp_path / f"scores_of_{n}", "condition_gain")[0] for n in ("one", "two"))
    assert one["condition"] == two["condition"] == "text" and one["clips"] == two["clips"]
    assert two["nats_per_clip"] == pytest.approx(one["nats_per_clip"], rel=1e-3, abs=1e-4)
    pictures = [sorted(p.name for p in (tmp_path / n).glob("samples/*")) for n in ("one", "two")]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 1
    written = manifest.read(Run(tmp_path / "two").newest().path)
    assert (written["step"], written["processes"]) == (6, 2)


def test_a_kernel_of_other_devices_is_refused_before_the_work_dir_is_touched(
    gin_file: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    flags = [f"--gin_file={gin_file}", "--gin.MODEL.attention=splash", f"--workdir={tmp_path / 'w'}"]
    assert cli.main(["train", *flags]) == cli.EXIT_USER
    assert "'splash' does not run on cpu" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_sharing_the_work_of_a_store_needs_both_numbers(gin_file: str) -> None:
    def runner_of(*flags: str) -> object:
        args = cli._parser().parse_args(["tokenize", *flags])
        return tokenize.runner_of(Resolved(config.load([gin_file])), None, args)

    with pytest.raises(UserError, match="go together"):
        runner_of("--processes=2")
    second = runner_of("--processes=2", "--process=1")
    assert (second.index, second.count, second.merges) == (1, 2, False)
