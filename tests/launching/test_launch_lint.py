"""Every rule of `poet.launching.lint` finds its mistake, and plans without it are left alone."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import yaml
from launches import OF, launched

from poet.launching import lint
from poet.launching.backends import BACKENDS
from poet.launching.plan import Plan, Step
from poet.spec import UserError


def manifest(plan: Plan, change, name: str = "jobset.yaml") -> Plan:
    """The plan with its manifests changed in place by `change(list of objects)`."""
    parts = copy.deepcopy(list(yaml.safe_load_all(plan.files[name])))
    change(parts)
    return dataclasses.replace(plan, files=plan.files | {name: yaml.safe_dump_all(parts)})


def inner(parts) -> dict:
    return parts[0]["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod(parts) -> dict:
    return inner(parts)["template"]["spec"]


def text(plan: Plan, name: str, before: str, after: str) -> Plan:
    assert before in plan.files[name]
    return dataclasses.replace(plan, files=plan.files | {name: plan.files[name].replace(before, after)})


def steps(plan: Plan, **named) -> Plan:
    return dataclasses.replace(plan, **named)


OWN = {"tpu": {"project": "p", "zone": "z", "node": "mine"}}
RESERVED = {"gke": {"reservation": "ours", "priority": "high"}}
QUEUE = {"topology": "h100-16", "gke": {"cpu": "8", "memory": "64Gi", "make_queue": True}}
# (rule, backend, fields of the job, what is done to its plan), each a mistake that somebody made.
BROKEN = [
    # A spot slice that comes back in ten minutes, and restarts that are over in 70 s.
    ("restarts-outlast-a-repair", "tpu", {"restarts": 7, "wait_s": 10.0}, None),
    # The second start of the job would empty what the first one made.
    ("a-restart-keeps-the-output", "local", {"arguments": ["--overwrite"]}, None),
    ("a-restart-keeps-the-output", "slurm", {"slurm": {"setup": ["rm -rf /shared/runs/tiny"]}}, None),
    # Ctrl-C would leave the request in the queue.
    ("what-is-allocated-is-freed", "tpu", {}, lambda p: steps(p, stop=())),
    ("what-is-allocated-is-freed", "slurm", {}, lambda p: steps(p, stop=(Step(argv=("scancel", "1"), does=""),))),
    # "Use the TPU that I have" must not delete it.
    (
        "a-machine-of-yours-stays",
        "tpu",
        OWN,
        lambda p: steps(p, stop=(Step(argv=("gcloud", "tpu-vm", "delete", "mine", "tiny-1"), does=""),)),
    ),
    ("an-image-is-pinned", "docker", {"image": "registry:5000/poet"}, None),
    ("an-image-is-pinned", "gke", {"image": "poet:latest"}, None),
    # JobSet does not say that Kubernetes rejects the Job.
    (
        "failure-policy-needs-restart-never",
        "gke",
        {},
        lambda p: manifest(p, lambda parts: pod(parts).update(restartPolicy="OnFailure")),
    ),
    # Labels that Kueue needs, the namespace of the queue, and nodes that the autoscaler may take.
    ("a-job-set-is-labelled", "gke", {}, lambda p: manifest(p, lambda parts: parts[0]["metadata"].pop("labels"))),
    ("a-job-set-is-labelled", "gke", {}, lambda p: manifest(p, lambda parts: parts[0]["metadata"].pop("namespace"))),
    (
        "a-job-set-is-labelled",
        "gke",
        RESERVED,
        lambda p: manifest(p, lambda parts: parts[0]["metadata"]["labels"].pop("kueue.x-k8s.io/priority-class")),
    ),
    (
        "a-job-set-is-labelled",
        "gke",
        RESERVED,
        lambda p: manifest(p, lambda parts: pod(parts)["nodeSelector"].pop("cloud.google.com/reservation-name")),
    ),
    ("a-job-set-is-labelled", "gke", {}, lambda p: manifest(p, lambda parts: inner(parts)["template"].pop("metadata"))),
    # A quota of GPUs alone never admits pods that ask for memory too.
    (
        "a-queue-covers-what-pods-ask-for",
        "gke",
        QUEUE,
        lambda p: manifest(
            p,
            lambda parts: parts[1]["spec"]["resourceGroups"][0].update(coveredResources=["nvidia.com/gpu"]),
            "kueue.yaml",
        ),
    ),
    # Two of four pods, and groups of three among four: gated for ever.
    (
        "pods-fill-their-slice",
        "gke",
        {},
        lambda p: manifest(p, lambda parts: inner(parts).update(parallelism=2, completions=2)),
    ),
    ("pods-fill-their-slice", "gke", {}, lambda p: manifest(p, lambda parts: inner(parts).update(completions=8))),
    (
        "pods-fill-their-slice",
        "gke",
        {},
        lambda p: manifest(
            p,
            lambda parts: inner(parts)["template"]["metadata"]["annotations"].update(
                {"kueue.x-k8s.io/podset-slice-size": "3"}
            ),
        ),
    ),
    (
        "pods-select-their-hardware",
        "gke",
        {},
        lambda p: manifest(
            p, lambda parts: pod(parts)["nodeSelector"].update({"cloud.google.com/gke-tpu-topology": "2x4"})
        ),
    ),
    ("a-batch-job-is-queued-again", "slurm", {}, lambda p: text(p, "job.sh", "#SBATCH --requeue\n", "")),
    ("a-batch-job-is-queued-again", "slurm", {}, lambda p: text(p, "job.sh", "scontrol requeue", "true")),
]


@pytest.mark.parametrize("rule, backend, fields, damage", BROKEN, ids=[f"{i}-{b[0]}" for i, b in enumerate(BROKEN)])
def test_a_rule_finds_its_mistake_and_no_other_does(rule, backend, fields, damage):
    launch = launched(backend, **fields)
    plan = BACKENDS[backend].plan(launch)
    broken = damage(plan) if damage else plan
    assert list(lint.findings(launch, broken)) == [rule]
    with pytest.raises(UserError, match=rf"\[{rule}\]"):
        lint.check(launch, broken)
    if damage:
        assert not lint.findings(launch, plan)


def test_every_rule_is_broken_here_and_says_why_it_is_one():
    assert {broken[0] for broken in BROKEN} == set(lint.RULES)
    assert all(len(check.__doc__.split()) > 8 for check in lint.RULES.values())


@pytest.mark.parametrize("backend", sorted(OF))
def test_what_backends_make_keeps_every_rule(backend):
    launch = launched(backend)
    assert not lint.findings(launch, BACKENDS[backend].plan(launch))
