"""How long the trainings of a recipe take, from the FLOPs of their steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from long_training.runner import Job, Stage
from poet.tasks.resolved import Resolved

# FLOP/s by device and kind of training.  Two CPU cores: 0.2 TFLOP of the language model took 5.4 s of CPU time.
# One H100: judgement, not measured (tests/gpu/train_step.py measures): 10 % of its bfloat16 peak, 5 % of its
# TF32 peak.
SPEED = {"cpu": {"video": 75e9, "audio": 75e9, "lm": 75e9}, "gpu": {"video": 25e12, "audio": 5e12, "lm": 99e12}}


def lines(stages: Sequence[Stage], device: str) -> Iterator[str]:
    """A line for each training and one for their sum.

    Args:
      device: 'cpu' (two cores) or 'gpu' (one H100).
    """
    yield f"{'stage':12s} {'steps':>8s} {'TFLOP/step':>11s} {'TFLOP/s':>9s} {'hours':>8s}"
    total = 0.0
    for stage in stages:
        for job in stage.jobs:
            if job.workdir is None:
                continue
            kind, steps, flops = _work(job)
            speed = SPEED[device][kind]
            hours = steps * flops / speed / 3600
            total += hours
            yield f"{stage.name:12s} {steps:8d} {flops / 1e12:11.4f} {speed / 1e12:9.3g} {hours:8.2f}"
    yield f"{'together':12s} {'':8s} {'':11s} {'':9s} {total:8.2f}"
    known = "two idle cores, as measured" if device == "cpu" else "one H100: a judgement, not measured"
    yield f"Speeds are those of {known}; rendering, coding and scoring come on top."


def _work(job: Job) -> tuple[str, int, float]:
    """(kind, steps, mean FLOPs of a step) of a training."""
    from poet.spec import config

    files = [a.partition("=")[2] for a in job.command if a.startswith("--gin_file=")]
    bindings = [a[len("--gin.") :] for a in job.command if a.startswith("--gin.") and ".init_from=" not in a]
    experiment = config.load(files, bindings)
    if "tokenizer-train" not in job.command:
        return "lm", experiment.train.steps, _lm_flops(experiment)
    modality = experiment.tokenizer_train.modality
    return modality, experiment.train.steps, {"video": _video_flops, "audio": _audio_flops}[modality](experiment)


def _lm_flops(experiment) -> float:
    from poet.distributed import mesh
    from poet.training import networks

    resolved = Resolved(experiment)
    groups = networks.of(resolved).trainable(resolved, mesh.abstract(experiment.mesh, 1)).groups
    return _mean({name: group.flops for name, group in groups.items()}, resolved.phases[-1][1])


def _video_flops(experiment) -> float:
    from poet.tokenizers.video import training

    groups = training.trainable(experiment, None).groups
    shares = training.shares(experiment.tokenizer_train, experiment.clip)
    return _mean({name: group.flops for name, group in groups.items()}, shares)


def _audio_flops(experiment) -> float:
    from poet.tokenizers.audio import training

    batch = experiment.tokenizer_train.batch
    return training.train_flops(experiment.audio_tokenizer, experiment.audio_train, batch)


def _mean(flops: Mapping[str, float], shares: Mapping[str, float]) -> float:
    return sum(flops[name] * float(share) for name, share in shares.items()) / float(sum(shares.values()))
