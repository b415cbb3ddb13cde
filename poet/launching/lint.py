"""Rules that every plan keeps, before anything is allocated: each stands for a mistake that has cost somebody a run.

A rule is a function of `(launch, plan)` that yields what is wrong; `rule` registers it under its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from poet.launching import hardware
from poet.launching.backend import Launch
from poet.launching.plan import Plan
from poet.spec import UserError

Rule = Callable[[Launch, Plan], Iterator[str]]
RULES: dict[str, Rule] = {}
# Nodes are repaired in minutes, so restarts must not be used up before.
REPAIR_S = 900.0
# Words of a command that makes, and of one that removes, what others may own.
_MAKES, _REMOVES = {"create", "apply"}, {"delete", "cancel", "scancel", "rm"}
_WIPES = re.compile(r"--overwrite\b|\brm\s+-\w*[rR]|\bgcloud storage rm\b|\bgsutil\b.*\brm\b")


def rule(function: Rule) -> Rule:
    """Registers a rule under its name."""
    RULES[function.__name__.replace("_", "-")] = function
    return function


def findings(launch: Launch, plan: Plan) -> dict[str, list[str]]:
    """What is wrong with a plan, by the name of the rule that says so."""
    found = {name: list(check(launch, plan)) for name, check in RULES.items()}
    return {name: said for name, said in found.items() if said}


def check(launch: Launch, plan: Plan) -> None:
    """Raises UserError for a plan that a rule does not allow."""
    said = [f"{text} [{name}]" for name, texts in findings(launch, plan).items() for text in texts]
    if said:
        raise UserError("; ".join(said))


# ------------------------------------------------------------------------------------- any backend


@rule
def restarts_outlast_a_repair(launch: Launch, plan: Plan) -> Iterator[str]:
    """Restarts that are used up in a minute end a job that lost a node for ten."""
    job = launch.job
    if plan.again and job.restarts and job.restarts * job.wait_s < REPAIR_S:
        yield (
            f"restarts: {job.restarts} x {job.wait_s:g} s are over before lost hardware is replaced "
            f"({REPAIR_S:g} s): raise restarts or wait_s, or set restarts: 0"
        )


@rule
def a_restart_keeps_the_output(launch: Launch, plan: Plan) -> Iterator[str]:
    """A command that empties its folder loses, at its second start, what the first one made."""
    words = [*launch.job.command_line, *(text for name, text in plan.files.items() if name.endswith(".sh"))]
    if wiping := next((found.group() for word in words if (found := _WIPES.search(word))), ""):
        yield f"arguments, setup: {wiping!r} would wipe the job's output at every restart: drop it"


@rule
def what_is_allocated_is_freed(launch: Launch, plan: Plan) -> Iterator[str]:
    """What a plan starts elsewhere must be named where it stops: Ctrl-C may come at any moment."""
    if plan.start and launch.name not in "\n".join(map(str, plan.stop)):
        yield f"nothing would free what {plan.start[0].argv[0]} allocates: it must be stopped by its name"


@rule
def a_machine_of_yours_stays(launch: Launch, plan: Plan) -> Iterator[str]:
    """A TPU that the user has is neither made nor deleted."""
    if not getattr(launch.options, "node", ""):
        return
    for step in (*plan.start, *plan.stop):
        if {"queued-resources", *_MAKES, *_REMOVES} & set(step.argv):
            yield f"tpu.node: {step.argv[0]} would make or delete the TPU that you have: {step}"


@rule
def an_image_is_pinned(launch: Launch, plan: Plan) -> Iterator[str]:
    """Processes that start at different times must not get different images."""
    image = launch.job.image
    tag = image.rpartition("/")[2].partition(":")[2]
    if image and "@sha256:" not in image and tag in ("", "latest"):
        yield f"image: {image} may be another one at the next restart: add a tag, not latest, or its @sha256 digest"


# ---------------------------------------------------------------------------------------- Kubernetes


def manifests(plan: Plan, kind: str) -> list[dict[str, Any]]:
    """The objects of one kind in the YAML files of a plan."""
    import yaml

    texts = [text for name, text in plan.files.items() if name.endswith(".yaml")]
    found = [part for text in texts for part in yaml.safe_load_all(text)]
    return [part for part in found if isinstance(part, dict) and part.get("kind") == kind]


def _jobs(plan: Plan) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every Job of every JobSet, with its pod."""
    for jobset in manifests(plan, "JobSet"):
        for replicated in jobset["spec"]["replicatedJobs"]:
            job = replicated["template"]["spec"]
            yield job, job["template"]["spec"]


def _asked(pod: dict[str, Any]) -> dict[str, str]:
    """Resources that the containers of a pod ask for; a limit alone is a request too."""
    parts = [container.get("resources", {}) for container in pod["containers"]]
    return {n: v for part in parts for n, v in {**part.get("limits", {}), **part.get("requests", {})}.items()}


@rule
def failure_policy_needs_restart_never(launch: Launch, plan: Plan) -> Iterator[str]:
    """Kubernetes rejects the Job, and JobSet does not say so: the JobSet waits for ever."""
    for job, pod in _jobs(plan):
        if job.get("podFailurePolicy") and pod.get("restartPolicy") != "Never":
            yield f"podFailurePolicy with restartPolicy {pod.get('restartPolicy')}: only Never is allowed"


@rule
def a_job_set_is_labelled(launch: Launch, plan: Plan) -> Iterator[str]:
    """Without these a JobSet runs in another namespace, beside the queue, or on nodes that are taken away."""
    for jobset in manifests(plan, "JobSet"):
        data = jobset["metadata"]
        labels = data.get("labels", {})
        wanted = {
            "kueue.x-k8s.io/queue-name": launch.job.queue,
            "kueue.x-k8s.io/priority-class": getattr(launch.options, "priority", ""),
        }
        yield from (f"label {name} is not {value!r}" for name, value in wanted.items() if labels.get(name, "") != value)
        if not data.get("namespace"):
            yield "the JobSet has no namespace"
    for job, pod in _jobs(plan):
        annotations = job["template"].get("metadata", {}).get("annotations", {})
        if annotations.get("cluster-autoscaler.kubernetes.io/safe-to-evict") != "false":
            yield "pods may be evicted by the autoscaler: annotate safe-to-evict: 'false'"
        reservation = getattr(launch.options, "reservation", "")
        if reservation and pod.get("nodeSelector", {}).get("cloud.google.com/reservation-name") != reservation:
            yield f"pods are not bound to the reservation {reservation}"


@rule
def a_queue_covers_what_pods_ask_for(launch: Launch, plan: Plan) -> Iterator[str]:
    """Kueue never admits a pod that asks for a resource without quota."""
    queues = manifests(plan, "ClusterQueue")
    covered = {
        name for queue in queues for group in queue["spec"]["resourceGroups"] for name in group["coveredResources"]
    }
    if not queues:
        return
    for _, pod in _jobs(plan):
        yield from (f"the queue has no quota of {name}" for name in sorted(_asked(pod).keys() - covered))


@rule
def pods_fill_their_slice(launch: Launch, plan: Plan) -> Iterator[str]:
    """Pods that do not make up whole slices stay gated for ever."""
    target = launch.job.target
    for job, pod in _jobs(plan):
        devices = sum(int(_asked(pod).get(name, 0)) for name in ("google.com/tpu", "nvidia.com/gpu"))
        slice_size = math.prod(target.grid) if target else 0
        if job["parallelism"] * devices != slice_size:
            yield f"{job['parallelism']} pods x {devices} devices are not the {slice_size} of a slice"
        if job["parallelism"] != job["completions"]:
            yield f"{job['completions']} pods, {job['parallelism']} at a time: they must all run together"
        group = job["template"].get("metadata", {}).get("annotations", {}).get("kueue.x-k8s.io/podset-slice-size")
        if group and job["parallelism"] % int(group):
            yield f"podset-slice-size {group} does not divide {job['parallelism']} pods"


@rule
def pods_select_their_hardware(launch: Launch, plan: Plan) -> Iterator[str]:
    """A pod without the topology of its slice lands on machines that are not joined."""
    target = launch.job.target
    for _, pod in _jobs(plan):
        if target is None or target.chip.platform != "tpu":
            continue
        grid = "x".join(map(str, target.grid))
        wanted = {
            "cloud.google.com/gke-tpu-topology": grid,
            "cloud.google.com/gke-tpu-accelerator": hardware.names(target).gke,
        }
        selected = pod.get("nodeSelector", {})
        yield from (f"nodeSelector {n} is not {v!r}" for n, v in wanted.items() if selected.get(n) != v)


# -------------------------------------------------------------------------------------------- SLURM


@rule
def a_batch_job_is_queued_again(launch: Launch, plan: Plan) -> Iterator[str]:
    """A script of SLURM that is not queued again ends with the first preemption."""
    for name, text in plan.files.items():
        if "#SBATCH" not in text:
            continue
        for wanted in ("--requeue", "--signal=", "--open-mode=append", "scontrol requeue"):
            if wanted not in text:
                yield f"{name} has no {wanted}"
