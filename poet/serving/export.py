"""`poet export`: a checkpoint as one folder for all its tasks, which runs without the model's code.

README.md describes the folder.  Serialized programs load without complaint after most single bit flips, hence the
manifest.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from poet import networks as trained_networks
from poet import spec as specs
from poet.checkpoints import checkpoint as checkpoints
from poet.checkpoints import weights as weights_lib
from poet.films.sampler import CONTINUING
from poet.films.windows import Windows
from poet.runs import manifest, networks, outputs
from poet.runs.run import Run
from poet.sampling.generate import Generator
from poet.sampling.requests import make_plan
from poet.sampling.samplers import Truncation
from poet.serving import card, written
from poet.serving.format import (
    CARD,
    FORMAT,
    INDEX,
    PROGRAMS,
    SPEC,
    WEIGHTS,
    WRITTEN_PIECES,
    describe,
    describe_layout,
    open_folder,
    program_file,
)
from poet.serving.loaded import Weights
from poet.serving.lower import Arrays, Programs
from poet.spec import Experiment, ExportSpec, SampleSpec, UserError, compat, from_stored
from poet.tasks.layout import Layout
from poet.tasks.registry import LANGUAGE_MODEL, TASKS, Task, get_task
from poet.tasks.resolved import Resolved

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# All tasks that the checkpoint was trained on.
ALL = "all"
# A file of weights is no larger, unless one array is: what the Hugging Face Hub recommends.
SHARD_BYTES = 5 * 10**9


def run(
    run: Run,
    resolved: Resolved,
    out: str,
    *,
    weights_only: bool = False,
    license_file: str = "",
    overwrite: bool = False,
) -> Path:
    """The body of `poet export`: checks, loads and writes; returns the folder.

    Args:
      resolved: the checkpoint's experiment, with `export` and `sample` as the user wishes.
      weights_only: write the language model's weights and the spec, and no program.
      license_file: the text that the folder is released under; '' takes the checkpoint's.
      overwrite: `out` may hold an earlier output of the same kind, which is replaced.
    """
    spec, kind = resolved.spec.export, outputs.WEIGHTS if weights_only else outputs.EXPORT
    if not weights_only:
        check(resolved, spec)
    outputs.claim(out, kind, overwrite=overwrite, inputs=[run.folder, license_file])
    if weights_only:
        return _release(run, resolved, out, overwrite)
    release = card.Release.of(run, license_file)
    generator = Generator.from_checkpoint(run, in_dtype(resolved))
    return export(generator, spec, out, release=release, overwrite=overwrite)


def in_dtype(resolved: Resolved) -> Resolved:
    """The experiment whose model computes in EXPORT.dtype, or as it was trained where that is ''."""
    model = resolved.spec.model
    return Resolved(resolved.spec.replace(model=model.replace(dtype=resolved.spec.export.dtype or model.dtype)))


def _release(run: Run, resolved: Resolved, out: str, overwrite: bool) -> Path:
    """Parameters as safetensors in EXPORT.dtype; settings of this command do not go with them."""
    checkpoint, remedy = run.checkpoint, "leave them as they were trained"
    trained, experiment = checkpoint.spec, resolved.spec
    compat.check(trained, experiment, "export", what=str(checkpoint.path), remedy=remedy)
    params = checkpoints.load_params(run, trained_networks.of(resolved).model(resolved).abstract())
    dtype = experiment.export.dtype or None
    experiment = experiment.replace(export=ExportSpec(), sample=trained.sample, eval=trained.eval)
    return weights_lib.save(out, experiment, params, dtype, checkpoint.step, checkpoint.networks, overwrite=overwrite)


# ------------------------------------------------------------------------------------------ checks


def check(resolved: Resolved, spec: ExportSpec) -> tuple[Task, ...]:
    """The tasks to be exported; UserError unless each can be, for these platforms."""
    for platform in spec.platforms:
        specs.choose(platform, dict.fromkeys(PLATFORMS), "export platform")
    if not spec.platforms:
        raise UserError(f"EXPORT.platforms is empty: name at least one of {', '.join(PLATFORMS)}")
    if resolved.spec.sample.one_pass:
        raise UserError("an export guides by two passes: set SAMPLE.one_pass = False")
    tasks = tuple(map(get_task, chosen(resolved, spec.tasks)))
    for task in tasks:
        _check_task(resolved, task)
    return tasks


def chosen(resolved: Resolved, names: Sequence[str]) -> tuple[str, ...]:
    """Names of tasks; `ALL` stands for those of the mixture."""
    if not names:
        raise UserError(f"EXPORT.tasks is empty: name tasks, or {ALL!r} for those that the checkpoint was trained on")
    if ALL not in names:
        return tuple(dict.fromkeys(names))
    if len(names) > 1:
        raise UserError(f"EXPORT.tasks = {tuple(names)}: {ALL!r} stands alone")
    trained = tuple(task.name for task in resolved.mixture)
    if not trained:
        raise UserError(f"this checkpoint was trained on no tasks: name those to export, of {', '.join(TASKS)}")
    return trained


def _check_task(resolved: Resolved, task: Task) -> None:
    if task.network != LANGUAGE_MODEL:
        raise UserError(f"task {task.name} is one of the network {task.network}, which is not exported")
    resolved.layout(task)
    resolved.conditioning_range(task)
    coded = [*task.conditions, *(stream for stream in task.predicted if stream.network != networks.PIECES)]
    if apart := [stream.title for stream in coded if not stream.exports]:
        raise UserError(f"task {task.name} needs a {apart[0]}, which an export cannot code; use poet generate")


# ------------------------------------------------------------------------------------------ the record


class Record:
    """What an export says of its tasks, collected task by task, with the programs that they need."""

    def __init__(self, generator: Generator, spec: ExportSpec):
        self.generator, self.spec = generator, spec
        self.resolved = generator.resolved
        self.programs = Programs(generator, self.resolved.spec.sample.weights)
        self.layouts: list[Layout] = []
        self.tasks: dict[str, list[dict[str, Any]]] = {}
        self.films: dict[str, dict[str, list[str]]] = {}
        self.text = self._text_encoder()

    def add(self, task: Task) -> None:
        """A task, at every number of latent frames that may open its output, in a film too."""
        low, high = self.resolved.conditioning_range(task)
        if self.spec.films and task.name in CONTINUING:
            high = max(high, Windows.of(self.resolved).context)
            self.films = self.films or self.programs.of_steps()
        self.tasks[task.name] = [self._entry(task, latents) for latents in range(low, high + 1)]

    def _entry(self, task: Task, latents: int) -> dict[str, Any]:
        plans = [make_plan(self.resolved, task, sample, latents) for sample in samplings(self.resolved, task)]
        plans += [dataclasses.replace(p, truncation=most_general(p.truncation)) for p in plans]
        layout = plans[0].layout
        if layout not in self.layouts:
            self.layouts.append(layout)
        return {
            "latents": latents,
            "layout": self.layouts.index(layout),
            "known": list(plans[0].known),
            **self.programs.of_codecs(plans[0], latents),
            "variants": [describe(plan) | self.programs.of_plan(plan) for plan in dict.fromkeys(plans)],
        }

    def _text_encoder(self) -> dict[str, Any] | None:
        """None where no task takes a text."""
        if not any(task.text for task in check(self.resolved, self.spec)):
            return None
        encoder = self.generator.networks[networks.TEXT]
        record = {"fingerprint": encoder.fingerprint, "length": encoder.length, "width": encoder.width}
        if self.spec.text_encoder:
            record |= {"program": self.programs.of_text(), "controls": encoder.controls}
        return record

    @property
    def apart(self) -> bool:
        """Whether each platform has programs of its own.

        A program for several platforms chooses between variants of operations where it runs, which keeps the compiler
        from fusing them: in bfloat16 it rounds otherwise than the process does.
        """
        return self.resolved.spec.model.dtype == "bfloat16" and len(self.spec.platforms) > 1

    @property
    def writes(self) -> bool:
        """Whether a task writes texts."""
        return any(get_task(name).writes for name in self.tasks)

    def as_json(self) -> dict[str, Any]:
        """The contents of spec.json."""
        used = {**(self.generator.networks.made_with or {}), **self.generator.networks.used}
        return {
            "format": FORMAT,
            "jax": jax.__version__,
            "platforms": list(self.spec.platforms),
            "apart": self.apart,
            "tasks": self.tasks,
            "layouts": [describe_layout(layout) for layout in self.layouts],
            "programs": {name: program.signature for name, program in self.programs.programs.items()},
            "weights": {group: list(arrays) for group, arrays in self.programs.weights.items()},
            "networks": used,
            "text": self.text,
            "writes": self.writes,
            "films": self.films,
            "experiment": specs.to_dict(self.resolved.spec.replace(export=self.spec)),
        }


def samplings(resolved: Resolved, task: Task) -> list[SampleSpec]:
    """Sampling settings whose programs an export has: without guidance, and with it where the model learnt it."""
    sample = resolved.spec.sample
    if all(span.segment.frame is None for span in resolved.layout(task).loss_spans):
        sample = sample.replace(row_lag=0, frame_lag=0)
    found, guided = [sample.replace(guidance=1.0)], sample if sample.guides else sample.replace(guidance=2.0)
    try:
        make_plan(resolved, task, guided, resolved.conditioning_range(task)[0])
    except UserError:  # Its condition was never dropped in training.
        return found
    return [*found, guided]


def most_general(truncation: Truncation) -> Truncation:
    """One that takes any top_k, top_p and min_p; a schedule of each, too."""
    return dataclasses.replace(truncation, top_k=0, nucleus=True, fewer=True, floor=True)


# ------------------------------------------------------------------------------------------ the folder


def export(
    generator: Generator,
    spec: ExportSpec,
    out: str | Path,
    *,
    release: card.Release = card.Release(),
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes the tasks of `spec`; returns the folder, see `outputs.claim`.

    Static settings of the sampler (adaptive guidance, lags, how weights are stored) are those of the experiment's
    `sample`; all others stay inputs.
    """
    tasks = check(generator.resolved, spec)
    output = outputs.claim(out, outputs.EXPORT, overwrite=overwrite)
    record = Record(generator, spec)
    for task in tasks:
        record.add(task)
    with output:
        if record.text is not None and spec.text_encoder:
            record.text["pieces"] = generator.networks[networks.TEXT].save_pieces(output.folder)
        if record.writes:
            table = written.describe(generator.networks[networks.PIECES].processor)
            (output.folder / WRITTEN_PIECES).write_text(json.dumps(table) + "\n")
        write_weights(output.folder, record.programs.weights, shard_bytes)
        finish(output.folder, record, release)
    return output.final


def finish(folder: Path, record: Record, release: card.Release) -> None:
    """Writes programs, record, card and manifest into a folder that holds everything else."""
    (folder / PROGRAMS).mkdir()
    for name, platform, blob in record.programs.lowered(record.spec.platforms, record.apart):
        (folder / program_file(name, platform)).write_bytes(blob)
    described = record.as_json()
    (folder / SPEC).write_text(json.dumps(described) + "\n")
    release.write(folder)
    (folder / CARD).write_text(card.text(described, release, folder))
    manifest.write(folder, {"kind": outputs.EXPORT, "format": FORMAT, "jax": jax.__version__})


def write_weights(folder: Path, groups: Mapping[str, Arrays], shard_bytes: int = SHARD_BYTES) -> None:
    """Each array once, in one file or in several with an index, as the Hugging Face Hub has them."""
    arrays = {name: array for group in groups.values() for name, array in group.items()}
    shards = _shards(arrays, shard_bytes)
    if len(shards) == 1:
        weights_lib.write_arrays(folder / WEIGHTS, arrays)
        return
    placed = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weights_lib.write_arrays(folder / file, {name: arrays[name] for name in names})
        placed |= dict.fromkeys(names, file)
    total = {"total_size": sum(array.nbytes for array in arrays.values())}
    (folder / INDEX).write_text(json.dumps({"metadata": total, "weight_map": placed}, indent=2) + "\n")


def _shards(arrays: Mapping[str, Any], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, array in arrays.items():
        if shards[-1] and size + array.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += array.nbytes
    return shards


# ------------------------------------------------------------------------------------------ again


def refresh(run: Run, folder: str | Path) -> Path:
    """Writes the programs of an export anew, for the JAX that is installed; weights and settings stay as they are.

    Raises UserError unless the checkpoint is the one that was exported.
    """
    folder = Path(folder).expanduser()
    before = open_folder(folder)
    if before["format"] != FORMAT:
        raise UserError(f"{folder} has format {before['format']}: only {FORMAT} can be refreshed; export it again")
    experiment = from_stored(Experiment, before["experiment"])
    record = Record(Generator.from_checkpoint(run, Resolved(experiment)), experiment.export)
    for task in before["tasks"]:
        record.add(get_task(task))
    record.text = before["text"]
    _check_same(folder, Weights(folder), record.programs.weights, run)
    with outputs.claim(folder, outputs.EXPORT, overwrite=True) as output:
        for file in manifest.read(folder)["files"]:
            if not file.startswith(f"{PROGRAMS}/") and file not in (SPEC, CARD):
                shutil.copy2(folder / file, output.folder / file)
        finish(output.folder, record, card.Release.of_export(folder))
    return output.final


def _check_same(folder: Path, stored: Weights, groups: Mapping[str, Arrays], run: Run) -> None:
    for name, array in ((n, a) for group in groups.values() for n, a in group.items()):
        if name not in stored or not (stored[name].dtype == array.dtype and bool((stored[name] == array).all())):
            raise UserError(f"{folder} holds other weights than {run.folder}: {name} differs; export it again")
