"""Kubernetes on Google's cloud: a JobSet, which Kueue admits when its quota allows, restarted as a whole."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from poet.launching import hardware, shell
from poet.launching.backend import PORT, Backend, Launch, buckets, check_container, check_remote_workdir, command
from poet.launching.plan import Plan, State, Step, by_word
from poet.runs import exits
from poet.spec import Spec, UserError, setting

MANIFEST, QUEUES = "jobset.yaml", "kueue.yaml"
_PODS = "pods"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GkeSpec(Spec):
    """What a cluster asks for.

    Attributes:
      namespace: of the job and its queue.
      context: of kubectl; '': the current one.
      priority: a WorkloadPriorityClass of Kueue.
      reservation: the nodes of this reservation alone.
      service_account: of Kubernetes, which reads and writes the bucket.
      cpu, memory: requests of each pod, such as 100 and 400Gi; '': none.  The queue must have quota for them.
      make_queue: also make `queue`, with exactly the quota of this job, for a cluster of one's own.
      volumes: PATH: CLAIM, persistent volume claims mounted in every pod.
    """

    namespace: str = setting("default", changes="nothing")
    context: str = setting("", changes="nothing")
    priority: str = setting("", changes="nothing")
    reservation: str = setting("", changes="nothing")
    service_account: str = setting("", changes="nothing")
    cpu: str = setting("", changes="nothing")
    memory: str = setting("", changes="nothing")
    make_queue: bool = setting(False, changes="nothing")
    volumes: dict[str, str] = setting(changes="nothing", default_factory=dict)

    def validate(self) -> None:
        self.require(bool(self.namespace), "namespace", "name one, such as default")
        rooted = all(path.startswith("/") for path in self.volumes)
        self.require(rooted, "volumes", "give PATH: CLAIM with absolute paths, such as /data: my-claim")


def _plan(launch: Launch) -> Plan:
    check_container(launch)
    check_remote_workdir(launch)
    job, options = launch.job, launch.options
    if not job.on_accelerators:
        raise UserError(f"topology: name accelerators, such as v5e-16 or h100-16, not {job.topology!r}")
    if options.make_queue and not job.queue:
        raise UserError("gke.make_queue: name the queue that is made, such as queue: poet")
    if job.spot and options.reservation:
        raise UserError("spot, gke.reservation: nodes of a reservation are no spot nodes: drop one")
    manifests = {MANIFEST: [_jobset(launch)]} | ({QUEUES: _queues(launch)} if options.make_queue else {})
    place = (*([f"--context={options.context}"] if options.context else []), f"--namespace={options.namespace}")
    kubectl = ("kubectl", *place)
    files = [str(launch.folder / name) for name in sorted(manifests, reverse=True)]  # The queue first.
    return Plan(
        files={name: _yaml(parts) for name, parts in manifests.items()},
        checks=_checks(launch, kubectl),
        start=tuple(
            Step(argv=(*kubectl, "apply", f"--filename={file}"), does="creates what it says") for file in files
        ),
        state=Step(
            argv=(*kubectl, "get", "jobset", launch.name, "--output=jsonpath=state:{.status.terminalState}"),
            does="asks where the job stands",
        ),
        read_state=by_word({"state:Completed": State.FINISHED, "state:Failed": State.FAILED}, absent=State.ENDED),
        stop=(
            Step(argv=(*kubectl, "delete", *_made(launch), "--ignore-not-found", "--wait=false"), does="deletes it"),
        ),
        log=f"{' '.join(kubectl)} logs --follow --selector=jobset.sigs.k8s.io/jobset-name={launch.name} "
        "--max-log-requests=64 --prefix",
    )


def _made(launch: Launch) -> list[str]:
    """What `start` creates, by name: the files need not be on the machine that deletes it."""
    queue = launch.job.queue
    queues = [f"localqueue/{queue}", f"clusterqueue/{queue}", f"resourceflavor/{queue}"]
    return [f"jobset/{launch.name}", *(queues if launch.options.make_queue else [])]


def _checks(launch: Launch, kubectl: tuple[str, ...]) -> tuple[Step, ...]:
    job, options = launch.job, launch.options
    found = [Step(argv=(*kubectl, "get", "jobset", "--output=name"), does="looks for JobSet in the cluster")]
    if job.queue and not options.make_queue:
        found.append(Step(argv=(*kubectl, "get", "localqueue", job.queue), does="looks for the queue"))
    if options.priority:
        found.append(
            Step(argv=(*kubectl, "get", "workloadpriorityclass", options.priority), does="looks for the priority")
        )
    found += [Step(argv=("gcloud", "storage", "ls", bucket), does="looks for the bucket") for bucket in buckets(job)]
    return tuple(found)


def _yaml(parts: list[Any]) -> str:
    import yaml

    return "---\n".join(yaml.safe_dump(part, sort_keys=False, width=1000) for part in parts)


# --------------------------------------------------------------------------------------- the JobSet


def _jobset(launch: Launch) -> dict[str, Any]:
    job, options = launch.job, launch.options
    labels = {"kueue.x-k8s.io/queue-name": job.queue, "kueue.x-k8s.io/priority-class": options.priority}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": launch.name,
            "namespace": options.namespace,
            "labels": {name: value for name, value in labels.items() if value},
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": job.restarts,
                # What another start cannot mend ends the job; everything else starts all pods again.
                "rules": [{"name": "lasting", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "ttlSecondsAfterFinished": 86_400,
            "replicatedJobs": [{"name": _PODS, "replicas": job.target.slices, "template": {"spec": _job(launch)}}],
        },
    }


def _job(launch: Launch) -> dict[str, Any]:
    """One slice, whose pods start and end together."""
    hosts = hardware.hosts(launch.job.target) // launch.job.target.slices
    lasting = sorted({c for c, meaning in exits.MEANINGS.items() if c and not meaning.restart} | {shell.TIMED_OUT})
    codes = {"containerName": "poet", "operator": "In", "values": lasting}
    return {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": codes}]},
        "template": {"metadata": {"annotations": _annotations(launch)}, "spec": _pod(launch)},
    }


def _annotations(launch: Launch) -> dict[str, str]:
    """No node of a running pod is taken away to save money; each slice is on a node pool of its own."""
    keep = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    if launch.job.target.chip.platform != "tpu":
        return keep
    return keep | {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}


def _pod(launch: Launch) -> dict[str, Any]:
    job, options = launch.job, launch.options
    volumes = [
        {"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": claim}}
        for number, claim in enumerate(options.volumes.values())
    ]
    pod = {
        # A Job with a podFailurePolicy must not restart containers by itself.
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.grace_s,
        "serviceAccountName": options.service_account,
        "nodeSelector": _nodes(launch),
        "tolerations": _tolerations(launch),
        "containers": [_container(launch)],
        "volumes": [*volumes, {"name": "shared-memory", "emptyDir": {"medium": "Memory"}}],
    }
    return {name: value for name, value in pod.items() if value}


def _nodes(launch: Launch) -> dict[str, str]:
    job, target = launch.job, launch.job.target
    label = hardware.names(target).gke
    if target.chip.platform == "tpu":
        grid = "x".join(map(str, target.grid))
        nodes = {"cloud.google.com/gke-tpu-accelerator": label, "cloud.google.com/gke-tpu-topology": grid}
    else:
        nodes = {"cloud.google.com/gke-accelerator": label}
    if launch.options.reservation:
        nodes["cloud.google.com/reservation-name"] = launch.options.reservation
    if job.spot:
        nodes["cloud.google.com/gke-spot"] = "true"
    return nodes


def _resource(launch: Launch) -> str:
    return {"tpu": "google.com/tpu", "cuda": "nvidia.com/gpu"}[launch.job.target.chip.platform]


def _tolerations(launch: Launch) -> list[dict[str, str]]:
    keys = [_resource(launch), *(["cloud.google.com/gke-spot"] if launch.job.spot else [])]
    return [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in keys]


def _requests(launch: Launch) -> dict[str, str]:
    own = {"cpu": launch.options.cpu, "memory": launch.options.memory}
    devices = {_resource(launch): str(hardware.devices_per_host(launch.job.target))}
    return devices | {name: value for name, value in own.items() if value}


def _container(launch: Launch) -> dict[str, Any]:
    job, options = launch.job, launch.options
    tpus, several = job.target.chip.platform == "tpu", job.process_count > 1
    flags = ["--coordinator=auto"] if tpus and several else []
    mounts = [{"name": f"volume-{number}", "mountPath": path} for number, path in enumerate(options.volumes)]
    devices = {_resource(launch): _requests(launch)[_resource(launch)]}
    return {
        "name": "poet",
        "image": job.image,
        "command": list(shell.limited(command(job, *flags), job.hours, job.grace_s)),
        "env": [
            *({"name": name, "value": value} for name, value in sorted(job.variables.items())),
            *(_meeting(launch) if several and not tpus else []),
        ],
        "resources": {"requests": _requests(launch), "limits": devices},
        "volumeMounts": [*mounts, {"name": "shared-memory", "mountPath": "/dev/shm"}],
        "securityContext": {"allowPrivilegeEscalation": False},
    }


def _meeting(launch: Launch) -> list[dict[str, Any]]:
    """Pods of a JobSet have names in DNS; which of them one is stands in an annotation."""
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    return [
        {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{launch.name}-{_PODS}-0-0.{launch.name}:{PORT}"},
        {"name": "JAX_NUM_PROCESSES", "value": str(launch.job.process_count)},
        {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
    ]


# ---------------------------------------------------------------------------------------- the queue


def _queues(launch: Launch) -> list[dict[str, Any]]:
    """A queue with the quota of this job: of everything that its pods ask for, or none would ever start."""
    job, options = launch.job, launch.options
    pods = hardware.hosts(job.target)
    quota = [{"name": name, "nominalQuota": _times(value, pods)} for name, value in _requests(launch).items()]
    flavor = {"name": job.queue, "resources": quota}
    group = {"coveredResources": [entry["name"] for entry in quota], "flavors": [flavor]}
    head = {"apiVersion": "kueue.x-k8s.io/v1beta1"}
    return [
        head | {"kind": "ResourceFlavor", "metadata": {"name": job.queue}, "spec": {"nodeLabels": _nodes(launch)}},
        head
        | {
            "kind": "ClusterQueue",
            "metadata": {"name": job.queue},
            "spec": {"namespaceSelector": {}, "resourceGroups": [group]},
        },
        head
        | {
            "kind": "LocalQueue",
            "metadata": {"name": job.queue, "namespace": options.namespace},
            "spec": {"clusterQueue": job.queue},
        },
    ]


def _times(quantity: str, count: int) -> str:
    """A quantity of Kubernetes, such as 400Gi, `count` times."""
    digits = quantity.rstrip("KMGTPEikm")
    try:
        number = float(digits) * count
    except ValueError:
        raise UserError(f"gke: {quantity!r} is no quantity, such as 100, 500m or 400Gi") from None
    return f"{math.trunc(number) if number.is_integer() else number}{quantity[len(digits) :]}"


BACKEND = Backend(title="GKE, by JobSet and Kueue", options=GkeSpec, programs=("kubectl",), plan=_plan)
