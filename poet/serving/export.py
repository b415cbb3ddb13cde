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

from poet import spec as specs
from poet.checkpoints import checkpoint as checkpoints
from poet.checkpoints import weights as weights_lib
from poet.runs import manifest, networks, outputs
from poet.runs.run import Run
from poet.sampling.films.sampler import CONTINUING
from poet.sampling.films.windows import Windows
from poet.sampling.generate import Generator
from poet.sampling.larger import from_checkpoint
from poet.sampling.requests import make_plan
from poet.sampling.samplers import Truncation
from poet.sampling.superres import Upscaler
from poet.serving import card, lower_superres, written
from poet.serving.format import (
    CARD,
    FORMAT,
    INDEX,
    PROGRAMS,
    SPEC,
    WEIGHTS,
    WHOLE,
    WRITTEN_PIECES,
    describe,
    describe_layout,
    open_folder,
    program_file,
)
from poet.serving.loaded import Weights
from poet.serving.lower import Arrays, Collection, Programs
from poet.spec import Experiment, ExportSpec, SampleSpec, UserError, compat, from_stored
from poet.tasks.layout import Layout
from poet.tasks.registry import LANGUAGE_MODEL, SUPER_RESOLUTION, TASKS, Task, get_task
from poet.tasks.resolved import Resolved
from poet.tokenizers import frozen
from poet.training import networks as trained_networks

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
    upscale: Sequence[Run] = (),
    weights_only: bool = False,
    license_file: str = "",
    overwrite: bool = False,
) -> Path:
    """The body of `poet export`: checks, loads and writes; returns the folder.

    Args:
      run: a language model, or a super-resolution network, which then goes before those of `upscale`.
      resolved: the checkpoint's experiment, with `export`, `sample` and `super_resolution` as the user wishes.
      upscale: super-resolution networks that make clips larger, one after the other.
      weights_only: write the network's weights and the spec, and no program.
      license_file: the text that the folder is released under; '' takes the checkpoint's.
      overwrite: `out` may hold an earlier output of the same kind, which is replaced.
    """
    spec, kind = resolved.spec.export, outputs.WEIGHTS if weights_only else outputs.EXPORT
    tasks = () if weights_only else check(resolved, spec)
    for one in upscale:
        trained_networks.expect(one.checkpoint, SUPER_RESOLUTION)
    outputs.claim(out, kind, overwrite=overwrite, inputs=[run.folder, license_file, *(one.folder for one in upscale)])
    if weights_only:
        return _release(run, resolved, out, overwrite)
    models = Models.load(run, in_dtype(resolved), upscale)
    return write(models, spec, tasks, out, release=card.Release.of(run, license_file), overwrite=overwrite)


@dataclasses.dataclass(frozen=True)
class Models:
    """What an export is made of: a language model, super-resolution networks, or both.

    Attributes:
      upscalers: of checkpoints, in the order in which they make a clip larger.
    """

    generator: Generator | None
    upscalers: tuple[Upscaler, ...] = ()

    @classmethod
    def load(cls, run: Run, resolved: Resolved, upscale: Sequence[Run], larger: Sequence[Resolved] = ()) -> Models:
        """Of the checkpoint of a run as `resolved`, and further ones as they were trained, or as `larger`."""
        larger = larger or [Resolved(one.checkpoint.spec) for one in upscale]
        exported = [Resolved(one.spec.replace(export=resolved.spec.export)) for one in larger]
        pairs = [*zip(upscale, map(in_dtype, exported))]
        if resolved.network == SUPER_RESOLUTION:
            return cls(None, tuple(from_checkpoint(*pair) for pair in [(run, resolved), *pairs]))
        return cls(Generator.from_checkpoint(run, resolved), tuple(from_checkpoint(*pair) for pair in pairs))

    @property
    def resolved(self) -> Resolved:
        """The experiment of the first of them."""
        return self.generator.resolved if self.generator else self.upscalers[0].resolved


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
    """The tasks to be exported, none of super-resolution; UserError unless each can be, for these platforms."""
    for platform in spec.platforms:
        specs.choose(platform, dict.fromkeys(PLATFORMS), "export platform")
    if not spec.platforms:
        raise UserError(f"EXPORT.platforms is empty: name at least one of {', '.join(PLATFORMS)}")
    if resolved.network not in (LANGUAGE_MODEL, SUPER_RESOLUTION):
        raise UserError(f"programs of {trained_networks.of(resolved).title} are not exported: give --weights_only")
    if resolved.network == SUPER_RESOLUTION:
        if tuple(spec.tasks) != (ALL,):
            raise UserError(
                "a super-resolution network has no tasks to choose from: leave out --tasks and EXPORT.tasks"
            )
        return ()
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
        raise UserError(
            f"task {task.name} is of the network {task.network}: export its own checkpoint, or give that as --upscale"
        )
    resolved.layout(task)
    resolved.conditioning_range(task)
    coded = [*task.conditions, *(stream for stream in task.predicted if stream.network != networks.PIECES)]
    if apart := [stream.title for stream in coded if not stream.exports]:
        raise UserError(f"task {task.name} needs a {apart[0]}, which an export cannot code; use poet generate")


# ------------------------------------------------------------------------------------------ the record


class Record:
    """What an export says of its tasks, collected task by task, with the programs that they need."""

    def __init__(self, models: Models, spec: ExportSpec, tasks: Sequence[Task]):
        self.models, self.spec, self.resolved = models, spec, models.resolved
        self.programs: Collection = Collection()
        self.layouts: list[Layout] = []
        self.tasks: dict[str, list[dict[str, Any]]] = {}
        self.films: dict[str, dict[str, list[str]]] = {}
        if models.generator:
            self.programs = Programs(models.generator, self.resolved.spec.sample.weights)
        self.encoder = self._encoder(tasks)
        self.text = self._text()
        for task in tasks:
            self.add(task)
        has_text = self.text is not None and spec.text_encoder
        self.upscalers = [
            lower_superres.described(self.programs, one, n, has_text) for n, one in enumerate(models.upscalers)
        ]

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

    def _encoder(self, tasks: Sequence[Task]) -> Any:
        """The text encoder of all of it, None where nothing takes a text; UserError for several."""
        found = [self.models.generator.networks[networks.TEXT]] if any(task.text for task in tasks) else []
        if self.spec.text_encoder:
            found += [one.text_encoder for one in self.models.upscalers]
        if len({(one.fingerprint, one.length) for one in found}) > 1:
            raise UserError(
                "these networks were trained with text encoders, or TEXT.length, of their own, and a folder has one: "
                "export super-resolution apart, or set EXPORT.text_encoder = False"
            )
        return next(iter(found), None)

    def _text(self) -> dict[str, Any] | None:
        encoder = self.encoder
        if encoder is None:
            return None
        record = {"fingerprint": encoder.fingerprint, "length": encoder.length, "width": encoder.width}
        if self.spec.text_encoder:
            record |= {"program": self.programs.of_text(encoder), "controls": encoder.controls}
        return record

    @property
    def apart(self) -> bool:
        """Whether each platform has programs of its own.

        A program for several platforms chooses between variants of operations where it runs, which keeps the compiler
        from fusing them: in bfloat16 it rounds otherwise than the process does.
        """
        run = (self.resolved, *(one.resolved for one in self.models.upscalers))
        return len(self.spec.platforms) > 1 and any(one.spec.model.dtype == "bfloat16" for one in run)

    @property
    def writes(self) -> bool:
        """Whether a task writes texts."""
        return any(get_task(name).writes for name in self.tasks)

    @property
    def _networks(self) -> dict[str, str]:
        if self.models.generator is None:
            return self.upscalers[0]["networks"]
        frozen = self.models.generator.networks
        return {**(frozen.made_with or {}), **frozen.used}

    def as_json(self) -> dict[str, Any]:
        """The contents of spec.json."""
        return {
            "format": FORMAT,
            "jax": jax.__version__,
            "platforms": list(self.spec.platforms),
            "apart": self.apart,
            "tasks": self.tasks,
            "layouts": [describe_layout(layout) for layout in self.layouts],
            "programs": {name: program.signature for name, program in self.programs.programs.items()},
            "weights": {group: list(arrays) for group, arrays in self.programs.weights.items()},
            "networks": self._networks,
            "text": self.text,
            "writes": self.writes,
            "films": self.films,
            "upscalers": self.upscalers,
            "experiment": specs.to_dict(frozen.as_loaded(self.resolved.spec).replace(export=self.spec)),
        }


def samplings(resolved: Resolved, task: Task) -> list[SampleSpec]:
    """Sampling settings whose programs an export has: without guidance, and with it, by two passes or one, where the
    model learnt it."""
    sample, (latents, _) = resolved.spec.sample, resolved.conditioning_range(task)
    if all(span.segment.frame is None for span in resolved.layout(task).loss_spans):
        sample = sample.replace(row_lag=0, frame_lag=0)
    guided, found = sample if sample.guides else sample.replace(guidance=2.0), [sample.replace(guidance=1.0)]
    for one_pass in (False, True):
        try:
            changed = guided.replace(one_pass=one_pass)
            make_plan(resolved, task, changed, latents)
        except UserError:  # Its condition was never dropped in training, or the scale is no input of the model.
            continue
        found.append(changed)
    return found


def most_general(truncation: Truncation) -> Truncation:
    """One that takes any top_k, top_p and min_p; a schedule of each, too."""
    return dataclasses.replace(truncation, top_k=0, nucleus=True, fewer=True, floor=True)


# ------------------------------------------------------------------------------------------ the folder


def export(
    generator: Generator,
    spec: ExportSpec,
    out: str | Path,
    *,
    upscalers: Sequence[Upscaler] = (),
    release: card.Release = card.Release(),
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes the tasks of `spec`; returns the folder, see `outputs.claim`.

    Static settings of the sampler (adaptive guidance, lags, how weights are stored) are those of the experiment's
    `sample`; all others stay inputs.
    """
    tasks = check(generator.resolved, spec)
    models = Models(generator, tuple(upscalers))
    return write(models, spec, tasks, out, release=release, overwrite=overwrite, shard_bytes=shard_bytes)


def write(
    models: Models,
    spec: ExportSpec,
    tasks: Sequence[Task],
    out: str | Path,
    *,
    release: card.Release = card.Release(),
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes what `check` has admitted; returns the folder, see `outputs.claim`."""
    output = outputs.claim(out, outputs.EXPORT, overwrite=overwrite)
    record = Record(models, spec, tasks)
    with output:
        if record.text is not None and spec.text_encoder:
            record.text["pieces"] = record.encoder.save_pieces(output.folder)
        if record.writes:
            table = written.describe(models.generator.networks[networks.PIECES].processor)
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


def refresh(run: Run, folder: str | Path, upscale: Sequence[Run] = ()) -> Path:
    """Writes the programs of an export anew, for the JAX that is installed; weights and settings stay as they are.

    Raises UserError unless the checkpoints are those that were exported.
    """
    folder = Path(folder).expanduser()
    before = open_folder(folder)
    if before["format"] not in WHOLE:
        raise UserError(f"{folder} has format {before['format']}: only {FORMAT} can be refreshed; export it again")
    models, spec = _again(run, folder, before, upscale)
    record = Record(models, spec, [*map(get_task, before["tasks"])])
    record.text = before["text"]
    _check_same(folder, Weights(folder), record.programs.weights, run)
    with outputs.claim(folder, outputs.EXPORT, overwrite=True) as output:
        for file in manifest.read(folder)["files"]:
            if not file.startswith(f"{PROGRAMS}/") and file not in (SPEC, CARD):
                shutil.copy2(folder / file, output.folder / file)
        finish(output.folder, record, card.Release.of_export(folder))
    return output.final


def _again(run: Run, folder: Path, before: Mapping[str, Any], upscale: Sequence[Run]) -> tuple[Models, ExportSpec]:
    """The models of an export from their checkpoints, and its settings."""
    experiment = from_stored(Experiment, before["experiment"])
    larger = [Resolved(from_stored(Experiment, found["experiment"])) for found in before.get("upscalers", ())]
    trained_networks.expect(run.checkpoint, Resolved(experiment).network)
    beside = larger if before["tasks"] else larger[1:]
    if len(beside) != len(upscale):
        raise UserError(
            f"{folder} has {len(beside)} super-resolution networks beside --checkpoint: give each as --upscale"
        )
    return Models.load(run, Resolved(experiment), upscale, beside), experiment.export


def _check_same(folder: Path, stored: Weights, groups: Mapping[str, Arrays], run: Run) -> None:
    for name, array in ((n, a) for group in groups.values() for n, a in group.items()):
        if name not in stored or not (stored[name].dtype == array.dtype and bool((stored[name] == array).all())):
            raise UserError(f"{folder} holds other weights than {run.folder}: {name} differs; export it again")
