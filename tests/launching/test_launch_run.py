"""Carrying plans out, with stand-ins on the PATH for the programs of clouds, which write down how they are called."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from launches import OF, planned

from poet import cli
from poet.launching import launch
from poet.launching.plan import Plan, State, Step, by_word
from poet.runs import exits
from poet.spec import Failure, UserError

ROOT = Path(__file__).resolve().parents[2]
# Prints what its rules say: the first whose words are all in the call; sleeps where they say so.
STAND_IN = """#!{python}
import json, os, sys, time
with open({log!r}, "a") as log:
    log.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
for words, answer in json.load(open({rules!r})):
    if all(word in [os.path.basename(sys.argv[0]), *sys.argv[1:]] for word in words):
        time.sleep(answer.get("sleep", 0))
        print(answer.get("out", ""), end="")
        print(answer.get("err", ""), end="", file=sys.stderr)
        sys.exit(answer.get("code", 0))
"""


class Programs:
    """Programs that only write down how they are called."""

    def __init__(self, folder: Path, names: tuple[str, ...], rules: list):
        self.folder, self.log = folder / "bin", folder / "calls.jsonl"
        self.folder.mkdir()
        (folder / "rules.json").write_text(json.dumps(rules))
        text = STAND_IN.format(python=sys.executable, log=str(self.log), rules=str(folder / "rules.json"))
        for name in names:
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o755)

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    @property
    def path(self) -> str:
        return f"{self.folder}{os.pathsep}{os.environ['PATH']}"


NAMES = ("gcloud", "kubectl", "sbatch", "squeue", "scancel", "sinfo", "sky")
# The word of a call that takes something, and of the one that gives it back.
TAKES = {"tpu": "create", "gke": "apply", "slurm": "sbatch", "skypilot": "--detach-run"}
GIVES = {"tpu": "delete", "gke": "delete", "slurm": "scancel", "skypilot": "cancel"}
STATE = {
    "tpu": (["queued-resources", "describe"], {"out": "ACTIVE"}),
    "gke": (["--output=jsonpath=state:{.status.terminalState}"], {"out": "state:"}),
    "slurm": (["--format=%T"], {"out": "RUNNING"}),
    "skypilot": (["queue"], {"out": json.dumps([{"job_name": "tiny-1", "status": "RUNNING"}])}),
}


@pytest.fixture
def programs(tmp_path, monkeypatch):
    def make(*rules) -> Programs:
        found = Programs(tmp_path, NAMES, list(rules))
        monkeypatch.setenv("PATH", found.path)
        return found

    return make


def run(plan: Plan, **options) -> int:
    return launch.run(plan, **{"restarts": 3, "wait_s": 0.0, "grace_s": 5.0} | options)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(launch, "POLL_S", 0.01)


def took_and_gave(calls, backend: str) -> tuple[int, int]:
    took = [i for i, call in enumerate(calls) if TAKES[backend] in call and "--test-only" not in call]
    gave = [i for i, call in enumerate(calls) if GIVES[backend] in call]
    assert took and gave, calls
    return took[-1], gave[-1]


# ----------------------------------------------------------------------------- nothing stays allocated


def is_moment(call: list[str], backend: str, moment: str) -> bool:
    """Whether a call is the one that takes, or one that asks for the state."""
    if moment == "running":
        return set(STATE[backend][0]) <= set(call)
    return TAKES[backend] in call and "--test-only" not in call


def interrupt_at(found: Programs, backend: str, moment: str, send) -> None:
    """Calls `send` when the moment has come."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(is_moment(call, backend, moment) for call in found.calls):
        time.sleep(0.02)
    send()


@pytest.mark.parametrize("backend", sorted(TAKES))
@pytest.mark.parametrize("moment, number", [("starting", signal.SIGINT), ("running", signal.SIGTERM)])
def test_a_signal_leaves_nothing_allocated(backend, moment, number, programs):
    """While the request is under way, and while the job runs."""
    slow = [[[TAKES[backend]], {"sleep": 1}]] if moment == "starting" else []
    found = programs([["--test-only"], {}], *slow, STATE[backend])
    send = functools.partial(signal.raise_signal, number)
    thread = threading.Thread(target=interrupt_at, args=(found, backend, moment, send))
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(planned(backend))
    thread.join()
    took, gave = took_and_gave(found.calls, backend)
    assert gave > took
    assert any("tiny-1" in word for word in found.calls[gave])


@pytest.mark.slow
def test_ctrl_c_at_a_terminal_leaves_nothing_allocated(tmp_path):
    found = Programs(tmp_path, NAMES, [STATE["tpu"]])
    command = ["launch", description(tmp_path, "tpu"), "--no_fit_check", f"--folder={tmp_path}/launches"]
    process = subprocess.Popen(
        [sys.executable, "-m", "poet.cli", *command],
        env=os.environ | {"PATH": found.path, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    interrupt_at(found, "tpu", "running", lambda: process.send_signal(signal.SIGINT))
    said = process.communicate(timeout=60)[0]
    assert process.returncode == exits.INTERRUPTED, said
    took, gave = took_and_gave(found.calls, "tpu")
    name = next(line.split(":")[0] for line in said.splitlines() if line.startswith("tiny-"))
    assert gave > took and name in found.calls[gave]


@pytest.mark.parametrize("backend", sorted(TAKES))
def test_a_start_that_fails_is_undone(backend, programs):
    found = programs([["--test-only"], {}], [[TAKES[backend]], {"code": 1, "err": "quota exceeded"}])
    with pytest.raises(Failure, match="quota exceeded"):
        run(planned(backend))
    took, gave = took_and_gave(found.calls, backend)
    assert gave > took


def test_a_job_that_ends_is_given_back_too(programs):
    found = programs(
        [["describe"], {"code": 1, "err": "ERROR: NOT_FOUND: no such resource"}], [["cat"], {"out": "2\n"}]
    )
    assert run(planned("tpu", tpu={"project": "p", "zone": "z", "results": "gs://bucket/launches"})) == exits.USER
    took, gave = took_and_gave(found.calls, "tpu")
    assert gave > took


def test_a_detached_job_goes_on(programs):
    found = programs()
    assert run(planned("tpu"), detach=True) == 0
    assert not [call for call in found.calls if "delete" in call or "describe" in call]


# ----------------------------------------------------------------------------------- what happens


def test_lost_hardware_is_asked_for_again_so_often_and_no_more(programs):
    found = programs([["describe"], {"out": "SUSPENDED"}])
    assert run(planned("tpu", spot=True), restarts=2) == exits.FAILED
    calls = [call[4] for call in found.calls if call[:4] == ["gcloud", "compute", "tpus", "queued-resources"]]
    assert [word for word in calls if word != "describe"] == ["create", "delete"] * 3


def test_a_check_that_fails_costs_nothing(programs):
    found = programs([["localqueue"], {"code": 1, "err": 'localqueues "research" not found'}])
    with pytest.raises(UserError, match="queue.*not found.*nothing was started"):
        run(planned("gke"))
    assert not [call for call in found.calls if "apply" in call]


def test_answers_that_fail_are_asked_for_again(programs):
    """The stand-in answers by a file that it consumes, so that only its third answer is one."""
    count = "import pathlib; p = pathlib.Path('n'); p.write_text(p.read_text() + 'x' if p.exists() else 'x')"
    code = f"{count}; import sys; print('DONE'); sys.exit(len(p.read_text()) < 3)"
    state = Step(argv=(sys.executable, "-c", code), does="asks")
    plan = Plan(state=state, read_state=by_word({"DONE": State.FINISHED}, absent=State.ENDED))
    programs()
    assert run(plan) == 0 and Path("n").read_text() == "xxx"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def python(code: str) -> Step:
    return Step(argv=(sys.executable, "-c", code), does="process", environment={"NAME": "value"})


def test_processes_here_run_together_and_their_first_failure_is_the_code():
    waits = "import time; time.sleep(60)"
    begin = time.monotonic()
    assert run(Plan(here=(python(waits), python("import sys; sys.exit(74)"), python(waits)))) == exits.PERMANENT
    assert time.monotonic() - begin < 30
    assert run(Plan(here=(python("import os; assert os.environ['NAME'] == 'value'"), python("")))) == 0


def test_a_process_here_may_save_before_it_ends(tmp_path):
    """Asked by SIGTERM, it has its grace; one that takes longer is killed."""
    saves = (
        "import signal, sys, time, pathlib\n"
        "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('saved').write_text(''), sys.exit(75)))\n"
        "pathlib.Path('ready').touch(); time.sleep(60)"
    )
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    waits = "while not pathlib.Path('ready').exists(): time.sleep(0.05)"
    fails = f"import time, pathlib, sys\n{waits}\ntime.sleep(0.3)\nsys.exit(3)"
    begin = time.monotonic()
    assert run(Plan(here=(python(saves), python(deaf), python(fails))), grace_s=1.0) == 3
    assert Path("saved").exists() and time.monotonic() - begin < 30


# ------------------------------------------------------------------------------------- the command


def description(tmp_path: Path, backend: str, **fields) -> str:
    values = {"name": "tiny", "gin_files": "gin/experiments/quickstart_train.gin", "workdir": "/shared/runs/tiny"}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values | OF[backend] | {"backend": backend} | fields))
    return str(tmp_path / "job.yaml")


@pytest.mark.parametrize("backend", sorted(OF))
def test_a_dry_run_prints_everything_and_runs_nothing(backend, tmp_path, programs, capsys):
    found = programs()
    file = description(tmp_path, backend)
    assert cli.main(["launch", file, "--dry_run", "--no_fit_check"]) == 0
    printed = capsys.readouterr().out
    plan = planned(backend)
    for step in plan.steps:
        assert step.argv[0] in printed
    for name, text in plan.files.items():
        assert name in printed and text.splitlines()[0] in printed
    assert not found.calls and not Path("launches").exists()


@pytest.mark.parametrize(
    "backend, arguments, fields, words",
    [
        ("tpu", ["--backend=slrum"], {}, ["slrum", "did you mean slurm"]),
        ("local", ["--detach"], {}, ["--detach", "nohup"]),
        ("tpu", [], {"bindings": {"MODEL.widht": 3}}, ["widht", "width"]),
        ("tpu", [], {"image": "poet"}, ["an-image-is-pinned"]),
        ("tpu", [], {}, ["gcloud", "not installed", "--dry_run"]),
    ],
)
def test_mistakes_are_found_before_anything_is_started(
    backend, arguments, fields, words, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    file = description(tmp_path, backend, **fields)
    assert cli.main(["launch", file, "--no_fit_check", *arguments]) == exits.USER
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert not Path("launches").exists()


def test_an_earlier_launch_is_stopped_by_its_name(tmp_path, programs):
    found = programs()
    file = description(tmp_path, "gke")
    assert cli.main(["launch", file, "--stop=tiny-0101-aaaa"]) == 0
    (call,) = found.calls
    assert "delete" in call and "jobset/tiny-0101-aaaa" in call
