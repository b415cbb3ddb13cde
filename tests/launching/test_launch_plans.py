"""Plans of the backends: scripts that shellcheck accepts, manifests that Kubernetes does, and what they say."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from launches import planned

from poet.cli import main as cli
from poet.launching.plan import State
from poet.runs import exits
from poet.spec import UserError

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
VARIANTS = [
    ("slurm", {}),
    ("slurm", {"topology": "h100-1", "hours": 1.5, "environment": {"NAME": "it's"}, "slurm": {"setup": ["cd /x"]}}),
    ("slurm", {"topology": None, "processes": 4}),
    ("tpu", {}),
    ("tpu", {"tpu": {"project": "p", "zone": "z", "results": "gs://bucket/launches"}, "hours": 2}),
    ("tpu", {"topology": "2xv6e-16", "tpu": {"project": "p", "zone": "z", "node": "mine", "setup": ["mount /x"]}}),
    ("skypilot", {}),
    ("skypilot", {"topology": "v6e-16", "hours": 3}),
]


def scripts(plan) -> list[str]:
    """The shell of a plan: its scripts, what SkyPilot runs, and what is run through ssh."""
    found = [text for name, text in plan.files.items() if name.endswith(".sh")]
    tasks = [yaml.safe_load(text) for name, text in plan.files.items() if name == "task.yaml"]
    remote = [word.removeprefix("--command=") for step in plan.steps for word in step.argv if "--command=" in word]
    return found + [f"#!/bin/bash\n{text}\n" for text in [*(task["run"] for task in tasks), *remote]]


@pytest.mark.parametrize("backend, fields", VARIANTS, ids=[f"{b}-{i}" for i, (b, _) in enumerate(VARIANTS)])
def test_scripts_have_no_faults_that_shellcheck_knows(backend, fields, tmp_path):
    found = scripts(planned(backend, **fields))
    assert found
    for number, text in enumerate(found):
        file = tmp_path / f"{number}.sh"
        file.write_text(text)
        # SC1091: what setup sources is on the other machine.  SC2016: $SLURM_PROCID is for the shell of each process.
        command = [BIN / "shellcheck", "--exclude=SC1091,SC2016", file]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_scripts_that_ship_have_no_faults_that_shellcheck_knows():
    files = [*(ROOT / "launch").glob("*.sh"), ROOT / ".ci/run"]
    done = subprocess.run([BIN / "shellcheck", "-x", "--exclude=SC1091", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_container_files_have_no_faults_that_hadolint_knows():
    files = sorted((ROOT / "launch").glob("Containerfile*"))
    assert len(files) == 2
    done = subprocess.run([BIN / "hadolint", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for file in files:
        text = file.read_text()
        assert "\nUSER 10001" in text and ":latest" not in text and "\nFROM python:3.11." in text


@pytest.mark.parametrize("name", ["Containerfile", "Containerfile.train"])
def test_container_files_copy_what_there_is_and_install_extras_that_there_are(name):
    text = (ROOT / "launch" / name).read_text()
    copied = [word for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert copied and not [word for word in copied if not (ROOT / word).exists()]
    listed = subprocess.run(["git", "ls-files", *copied], capture_output=True, text=True, cwd=ROOT).stdout.split()
    assert all(any(file == word or file.startswith(f"{word}/") for file in listed) for word in copied)
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    (extras,) = re.findall(r"^ARG EXTRA=(\S+)$", text, re.MULTILINE)
    assert {*extras.split(",")} <= {*settings["options.extras_require"]}


def test_the_command_of_the_service_s_container_is_one_and_needs_keys(monkeypatch, capsys):
    """It listens beyond the container: without keys it ends, and says so; with them it comes as far as its folder."""
    text = (ROOT / "launch/Containerfile").read_text()
    words = [json.loads(re.search(rf"^{kind} (.+)$", text, re.MULTILINE)[1]) for kind in ("ENTRYPOINT", "CMD")]
    (program, *command), more = words
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("POET_API_KEYS", raising=False)
    assert program == "poet" and cli([*command, *more]) == exits.USER
    assert "give --api_keys" in capsys.readouterr().err
    (port,) = re.findall(r"^EXPOSE (\d+)$", text, re.MULTILINE)
    assert f"--port={port}" in command and f"http://127.0.0.1:{port}/healthz" in text
    (store,) = (word.partition("=")[2] for word in command if word.startswith("--store="))
    assert Path(store).parent.as_posix() == re.search(r"^VOLUME (.+)$", text, re.MULTILINE)[1]


# --------------------------------------------------------------------------------------------- SLURM


def test_a_batch_job_starts_a_process_on_every_node_and_is_queued_again():
    script = planned("slurm", hours=1.5, slurm={"gpus": "gpu:h100"}).files["job.sh"]
    for line in (
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --gres=gpu:h100:8",
        "#SBATCH --partition=long",
        "#SBATCH --time=01:30:00",
        "#SBATCH --signal=TERM@120",
        "#SBATCH --requeue",
        f'if [ "$code" -eq {exits.RESTART} ]',
        'scontrol requeue "$SLURM_JOB_ID"',
        "JAX_PROCESS_ID=$SLURM_PROCID",
    ):
        assert line in script, line


def test_one_process_needs_no_meeting():
    assert "JAX_COORDINATOR" not in planned("slurm", topology="h100-8").files["job.sh"]


# ----------------------------------------------------------------------------------------------- TPU


def argv_of(plan, word: str) -> tuple[str, ...]:
    (step,) = [step for step in (*plan.start, *plan.here, *plan.stop) if word in step.argv]
    return step.argv


def test_a_queued_resource_is_asked_for_and_given_back_by_the_same_name():
    plan = planned("tpu", spot=True)
    create, delete = argv_of(plan, "create"), argv_of(plan, "delete")
    assert create[4:6] == ("create", "tiny-1") and delete[4:6] == ("delete", "tiny-1")
    for flag in (
        "--accelerator-type=v5litepod-16",
        "--node-id=tiny-1",
        "--spot",
        "--runtime-version=v2-alpha-tpuv5-lite",
    ):
        assert flag in create
    assert "--force" in delete and plan.again
    assert "startup-script=/shared/launches/tiny-1/job.sh" in create[-1]


@pytest.mark.parametrize(
    "workdir, message",
    [("s3://bucket/runs", "is no folder, and of buckets those at gs:// alone"), ("runs", "is relative")],
)
@pytest.mark.parametrize("backend", ["tpu", "gke", "skypilot"])
def test_a_work_dir_that_no_process_could_use_is_refused_before_anything_is_rented(backend, workdir, message):
    with pytest.raises(UserError, match=message):
        planned(backend, workdir=workdir)


def test_one_machine_or_several_may_have_a_work_dir_in_a_bucket():
    for fields in ({"topology": "v5e-4"}, {}):
        plan = planned("tpu", workdir="gs://bucket/runs", **fields)
        assert any(step.argv[-1] == "gs://bucket" for step in plan.checks)
        assert "--workdir=gs://bucket/runs" in plan.files["job.sh"]


def test_slices_are_asked_for_together():
    create = argv_of(planned("tpu", topology="2xv6e-16"), "create")
    assert {"--node-count=2", "--node-prefix=tiny-1", "--accelerator-type=v6e-16"} <= set(create)


def test_the_machines_give_themselves_back_but_not_when_they_were_only_stopped():
    lines = planned("tpu", tpu={"project": "p", "zone": "z", "results": "gs://b/l/"}).files["job.sh"].splitlines()
    leaves = next(i for i, line in enumerate(lines) if f"-eq {exits.RESTART}" in line)
    deletes = next(i for i, line in enumerate(lines) if "queued-resources delete tiny-1" in line)
    assert "return" in lines[leaves] and leaves < deletes < lines.index("trap finish EXIT")
    assert 'echo "$code" | gcloud storage cp - gs://b/l/tiny-1.exit' in "\n".join(lines)


def test_a_tpu_that_is_there_is_used_and_stays():
    plan = planned("tpu", tpu={"project": "p", "zone": "z", "node": "mine"})
    words = {word for step in plan.steps for word in step.argv}
    assert "mine" in words and not words & {"create", "delete", "queued-resources"}
    assert "delete" not in plan.files["job.sh"]
    assert all("--worker=all" in step.argv for step in (*plan.start, *plan.here, *plan.stop))


@pytest.mark.parametrize(
    "backend, output, state",
    [
        ("tpu", "WAITING_FOR_RESOURCES\n", State.WAITING),
        ("tpu", "ACTIVE\n", State.RUNNING),
        ("tpu", "SUSPENDED\n", State.LOST),
        ("tpu", "", State.ENDED),
        ("slurm", "PENDING\n", State.WAITING),
        ("slurm", "COMPLETING\n", State.RUNNING),
        ("slurm", "FAILED\n", State.FAILED),
        ("slurm", "", State.ENDED),
        ("gke", "state:", State.RUNNING),
        ("gke", "state:Completed", State.FINISHED),
        ("gke", "state:Failed", State.FAILED),
        ("gke", "", State.ENDED),
        ("skypilot", json.dumps([{"job_name": "other", "status": "FAILED"}]), State.ENDED),
        ("skypilot", json.dumps([{"job_name": "tiny-1", "status": "FAILED_SETUP"}]), State.FAILED),
        ("skypilot", json.dumps([{"job_name": "tiny-1", "status": "RECOVERING"}]), State.RUNNING),
        ("skypilot", json.dumps([{"job_name": "tiny-1", "status": "SUCCEEDED"}]), State.FINISHED),
    ],
)
def test_states_are_read(backend, output, state):
    assert planned(backend).read_state(output) is state


# ----------------------------------------------------------------------------------------------- GKE

GKE = [
    {},
    {"topology": "2xv6e-256", "spot": True, "workdir": "/data/runs", "hours": 10},
    {
        "topology": "h100-16",
        "gke": {"cpu": "100", "memory": "400Gi", "make_queue": True, "volumes": {"/data": "claim"}},
    },
]


@pytest.mark.parametrize("fields", GKE, ids=("tpu", "slices", "gpu"))
def test_the_inner_job_is_one_of_kubernetes(fields):
    import kubernetes_validate

    (jobset,) = yaml.safe_load_all(planned("gke", **fields).files["jobset.yaml"])
    for replicated in jobset["spec"]["replicatedJobs"]:
        spec = replicated["template"]["spec"]
        inner = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": spec}
        kubernetes_validate.validate(inner, "1.31", strict=True)
        wrong = json.loads(json.dumps(inner))
        wrong["spec"]["template"]["spec"]["containers"][0]["imgae"] = "x"
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, "1.31", strict=True)


def test_pods_of_gpus_find_each_other_and_those_of_tpus_ask_their_cluster():
    (gpus,) = yaml.safe_load_all(planned("gke", topology="h100-16").files["jobset.yaml"])
    (tpus,) = yaml.safe_load_all(planned("gke").files["jobset.yaml"])
    containers = [
        found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
        for found in (gpus, tpus)
    ]
    names = {entry["name"]: entry.get("value") for entry in containers[0]["env"]}
    assert names["JAX_COORDINATOR_ADDRESS"] == "tiny-1-pods-0-0.tiny-1:8476" and names["JAX_NUM_PROCESSES"] == "2"
    assert containers[1]["command"][-1] == "--coordinator=auto"


def test_a_queue_that_is_made_has_the_quota_of_all_pods():
    plan = planned("gke", topology="h100-16", gke={"cpu": "100", "memory": "1.5Gi", "make_queue": True})
    kinds = {part["kind"]: part for part in yaml.safe_load_all(plan.files["kueue.yaml"])}
    assert set(kinds) == {"ResourceFlavor", "ClusterQueue", "LocalQueue"}
    (group,) = kinds["ClusterQueue"]["spec"]["resourceGroups"]
    quota = {entry["name"]: entry["nominalQuota"] for entry in group["flavors"][0]["resources"]}
    assert quota == {"nvidia.com/gpu": "16", "cpu": "200", "memory": "3Gi"}
    assert [Path(step.argv[-1]).name for step in plan.start] == ["kueue.yaml", "jobset.yaml"]


def test_codes_that_another_start_cannot_mend_end_the_job():
    (jobset,) = yaml.safe_load_all(planned("gke").files["jobset.yaml"])
    (rule,) = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    codes = set(rule["onExitCodes"]["values"])
    # JobSet's own schema asks for a name.
    assert all(each["name"] for each in jobset["spec"]["failurePolicy"]["rules"])
    assert {exits.USER, exits.PERMANENT} <= codes and not codes & {0, exits.FAILED, exits.RESTART, exits.HUNG}


# ------------------------------------------------------------------------------------------- SkyPilot


def test_a_task_of_skypilot_counts_nodes_as_it_does():
    gpus = yaml.safe_load(planned("skypilot").files["task.yaml"])
    tpus = yaml.safe_load(planned("skypilot", topology="v6e-16").files["task.yaml"])
    assert (gpus["num_nodes"], gpus["resources"]["accelerators"]) == (2, "H100:8")
    assert (tpus["num_nodes"], tpus["resources"]["accelerators"]) == (1, "tpu-v6e-16:1")
    assert gpus["resources"]["job_recovery"]["recover_on_exit_codes"] == [exits.RESTART]


# ---------------------------------------------------------------------------------------------- here


def test_processes_of_this_machine_share_its_devices():
    plan = planned("local", topology="cpu-8", processes=4)
    flags = [dict(word[2:].split("=", 1) for word in step.argv if word.startswith("--co") or word.startswith("--pro"))
             for step in plan.here]  # fmt: skip
    assert [each["process"] for each in flags] == ["0", "1", "2", "3"]
    assert len({each["coordinator"] for each in flags}) == 1
    assert all("device_count=2" in step.environment["XLA_FLAGS"] for step in plan.here)
    gpus = planned("local", topology="h100-8", processes=2).here
    assert [step.environment["CUDA_VISIBLE_DEVICES"] for step in gpus] == ["0,1,2,3", "4,5,6,7"]


def test_a_container_runs_as_who_launches_it_and_ends_by_its_name():
    plan = planned("docker", docker={"volumes": ["/data:/data:ro"], "program": "podman"})
    (run,) = plan.here
    assert {"podman", "--gpus=all", "--volume=/data:/data:ro", "--name=tiny-1", "poet:1"} <= set(run.argv)
    assert any(word.startswith("--user=") and word != "--user=0" for word in run.argv)
    assert all(step.argv[-1] == "tiny-1" for step in plan.stop)
