"""What each command does, rooms put together: the only place that knows all of them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import shlex
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

import jax

from poet.distributed import mesh as mesh_lib
from poet.distributed import processes
from poet.runs import networks, outputs
from poet.spec import Experiment, ExportSpec, Failure, UserError, choose
from poet.tasks.resolved import Resolved
from poet.training import loop
from poet.training.schedule import GroupSchedule, PhasedSchedule, check_all_trained
from poet.training.trainable import BatchIterator, Trainable

_LOG = logging.getLogger(__name__)

TOKENIZER_FOLDER = "tokenizer"


@contextlib.contextmanager
def _mesh(experiment: Experiment) -> Iterator[jax.sharding.Mesh]:
    mesh = mesh_lib.build(experiment.mesh)
    with jax.set_mesh(mesh):
        yield mesh


def _exit_code(outcome: loop.Outcome) -> int:
    return loop.EXIT_PREEMPTED if outcome is loop.Outcome.PREEMPTED else 0


# ----------------------------------------------------------------------------------- tokenizers


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TokenizerRun:
    """What `poet tokenizer-train` needs of a modality.

    Attributes:
      trainable: what learns.
      batches: iterators by group.
      shares: of the steps, by group.
      hook: what is looked at on the way.
      export: (shapes of the state, work dir, folder, card) -> the frozen tokenizer, written to the folder.
    """

    trainable: Trainable
    batches: Mapping[str, BatchIterator]
    shares: Mapping[str, float]
    hook: loop.Hook
    export: Callable[[Any, Path, Path, Mapping[str, Any]], Any]


def tokenizer_train(experiment: Experiment, workdir: str) -> int:
    """Trains the tokenizer of TOKENIZER_TRAIN.modality; at the end it lies in WORKDIR/tokenizer."""
    spec = experiment.tokenizer_train
    if experiment.train.init_from:
        raise UserError(
            "TRAIN.init_from is the language model's: start a tokenizer with TOKENIZER_TRAIN.init_from"
        )
    _refuse_frozen(f"{spec.modality.upper()}_TOKENIZER", experiment)
    if not spec.folders:
        raise UserError(
            "TOKENIZER_TRAIN.source is empty: give a TFDS folder or a folder of clips, or several of "
            'them with weights as TOKENIZER_TRAIN.sources = {"FOLDER": 3, "OTHER": 1}'
        )
    with _mesh(experiment) as mesh:
        run = {"video": _video_run, "audio": _audio_run}[spec.modality](experiment, mesh)
        outcome = loop.train(
            run.trainable,
            run.batches,
            GroupSchedule(run.shares, experiment.train.seed),
            workdir=Path(workdir),
            mesh=mesh,
            experiment=experiment,
            hooks=[run.hook],
            purpose="resume_tokenizer",
        )
        shapes = jax.eval_shape(run.trainable.init, jax.random.key(0))
    # Without the mesh's shardings: process 0 loads them alone, on one device.
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)
    if outcome is loop.Outcome.FINISHED and processes.first():
        card = {"steps": experiment.train.steps, "sources": spec.folders}
        folder = Path(workdir) / TOKENIZER_FOLDER
        tokenizer = run.export(shapes, Path(workdir), folder, card)
        _LOG.info("wrote %s, fingerprint %s", folder, tokenizer.fingerprint)
    return _exit_code(outcome)


def _refuse_frozen(name: str, experiment: Experiment) -> None:
    path = getattr(experiment, name.lower()).path
    if path:
        raise UserError(
            f"{name}.path = {path!r} names frozen weights, which are not trained further: pass "
            f"--gin.{name}.path= to train from scratch, or start from them with "
            "TOKENIZER_TRAIN.init_from"
        )


def _video_run(experiment: Experiment, mesh: jax.sharding.Mesh) -> _TokenizerRun:
    from poet.checkpoints import checkpoint
    from poet.data.pixels import Derived, pixel_batches
    from poet.evaluation import hooks
    from poet.tokenizers.video import training

    spec, trainable = experiment.tokenizer_train, training.trainable(experiment, mesh)
    derived = None
    if spec.derived_fraction:
        factor = experiment.video_tokenizer.factor
        derived = Derived(share=spec.derived_fraction, spec=experiment.conditioning, factor=factor)
    batches = {
        name: pixel_batches(
            spec.folders,
            spec.split,
            experiment.clip,
            *group.batch["video"].shape[:4],
            seed=experiment.train.seed,
            share=processes.batch_share(mesh),
            derived=derived,
        )
        for name, group in trainable.groups.items()
    }

    def export(shapes: Any, workdir: Path, folder: Path, card: Mapping[str, Any]) -> Any:
        ema = checkpoint.load_params(workdir, shapes["ema"], key="ema")
        return training.export_tokenizer({"ema": ema}, experiment, folder, card)

    return _TokenizerRun(
        trainable=trainable,
        batches=batches,
        shares=training.shares(experiment),
        hook=hooks.reconstructions(experiment),
        export=export,
    )


def _audio_run(experiment: Experiment, mesh: jax.sharding.Mesh) -> _TokenizerRun:
    from poet.checkpoints import checkpoint
    from poet.data.sounds import sound_batches
    from poet.evaluation import sound_hooks
    from poet.tokenizers.audio import training

    spec, trainable = experiment.tokenizer_train, training.trainable(experiment, mesh)
    batches = sound_batches(
        spec.folders,
        spec.split,
        experiment.audio_tokenizer,
        experiment.audio_train,
        spec.batch,
        seed=experiment.train.seed,
        share=processes.batch_share(mesh),
    )

    def export(shapes: Any, workdir: Path, folder: Path, card: Mapping[str, Any]) -> Any:
        loaded = {
            key: checkpoint.load_params(workdir, shapes[key], key=key)
            for key in ("params", "codebooks")
        }
        return training.export_tokenizer(training.params_of(loaded), experiment, folder, card)

    return _TokenizerRun(
        trainable=trainable,
        batches={training.GROUP: batches},
        shares={training.GROUP: 1.0},
        hook=sound_hooks.reconstructions(experiment),
        export=export,
    )


def _frozen_video_tokenizer(experiment: Experiment, **options: Any) -> Any:
    from poet.tokenizers.video.base import load_video_tokenizer

    return load_video_tokenizer(experiment.video_tokenizer, **options)


def load_encoders(experiment: Experiment) -> Any:
    """The frozen networks that a token store is made with, on the devices of this process."""
    from poet import streams

    mesh = mesh_lib.build(experiment.mesh, jax.local_devices())
    loading = {stream.network: stream for stream in Resolved(experiment).stored_streams}
    loading[networks.TEXT] = streams.get("text")
    return streams.Encoders(
        networks={name: stream.load(experiment, mesh) for name, stream in loading.items()},
        conditioning=experiment.conditioning,
        vocabulary=experiment.vocabulary,
    )


def tokenize(experiment: Experiment, args: Any) -> None:
    """Writes the token store STORE.path from STORE.source.

    It holds sound if AUDIO_TOKENIZER.path is set, captions to be written if TEXT.pieces is, and the
    conditions that the tasks of DATA.mixture_rates take.
    """
    for field in ("source", "path"):
        if not getattr(experiment.store, field):
            raise UserError(f"STORE.{field} is empty: pass --gin.STORE.{field}=FOLDER")
    if experiment.ingest.nsfw and not args.allow_code:
        raise UserError(
            f"INGEST.nsfw = {experiment.ingest.nsfw!r} would run Python code that the configuration names: "
            "look at that function, then pass --allow_code, or --gin.INGEST.nsfw= to do without"
        )
    encoders = load_encoders(experiment)
    _write_store(experiment, encoders, _store_runner(experiment, encoders, args), print)


def _write_store(
    experiment: Experiment, encoders: Any, runner: Any, log: Callable[[str], Any]
) -> Any:
    from poet.store.writer import tokenize as write_store

    return write_store(
        experiment.store,
        experiment.clip,
        encoders,
        [stream.name for stream in Resolved(experiment).stored_streams],
        ingest=experiment.ingest,
        runner=runner,
        log=log,
    )


def verify_store(path: str) -> None:
    """Compares every byte of a token store with its hash, and says what was compared."""
    from poet.store import reader

    manifest = reader.verify(path)
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    size_bytes = sum(shard.size_bytes for shard in shards)
    clips = sum(shard.clips for shard in shards)
    print(f"{path} is intact: {clips:,} clips in {len(shards):,} shards, {size_bytes:,} bytes")


def repair_store(experiment: Experiment) -> None:
    """Makes the damaged shards of STORE.path again, and says which."""
    from poet.store.repair import repair

    def rebuild(path: str) -> Any:
        there = experiment.replace(store=experiment.store.replace(path=path))
        return _write_store(there, load_encoders(there), None, _LOG.info)

    path = experiment.store.path
    mended = repair(path, rebuild)
    print(f"{path}: made again: {', '.join(mended)}" if mended else f"{path} is intact")


def _store_runner(experiment: Experiment, encoders: Any, args: Any) -> Any:
    """Who encodes: a Beam runner, worker processes or this process, alone or as one of several."""
    from poet.store import beam, runners

    factory, spec = functools.partial(load_encoders, experiment), experiment.store
    count, index = args.processes, args.process
    if (count is None) != (index is None):
        raise UserError("--processes=N and --process=I go together: give both, or neither")
    if count is None:
        count, index = jax.process_count(), jax.process_index()
    if args.runner:
        if count > 1:
            raise UserError(
                f"--runner={args.runner} shares out the work itself: start one process, not {count}"
            )
        return beam.Beam(factory, args.runner, tuple(shlex.split(args.beam_options)))
    if args.beam_options:
        raise UserError("--beam_options needs --runner, such as --runner=DirectRunner")
    many = spec.workers > 1
    inner = runners.Workers(factory, spec.workers) if many else runners.Serial(encoders)
    if count == 1:
        return inner
    return runners.Distributed(inner, index, count, spec.wait_s)


# ---------------------------------------------------------------------------- the language model


def train(experiment: Experiment, workdir: str) -> int:
    """Pretrains the language model on the token store DATA.store."""
    from poet.runs import origins
    from poet.data.checks import check, networks_of
    from poet.data.loader import batches
    from poet.evaluation import hooks
    from poet.models.kernels import choose_kernel
    from poet.training.step import language_model

    if not experiment.data.store:
        raise UserError("DATA.store is empty: pass --gin.DATA.store=FOLDER (see poet tokenize)")
    resolved = Resolved(experiment)
    _ = resolved.layouts  # Tasks that the run has no network for are named before networks are loaded.
    loading = resolved.used_networks.items()
    fingerprints = {name: stream.load(experiment).fingerprint for name, stream in loading}
    manifest = check(resolved, fingerprints=fingerprints)
    made_with = networks_of(resolved, manifest)
    origins.check_text(experiment, made_with)
    origins.check_start(experiment, made_with)
    order = PhasedSchedule(resolved.phases, experiment.data.seed)
    check_all_trained(resolved, order)
    with _mesh(experiment) as mesh:
        choose_kernel(experiment.model.attention, experiment.model.dtype)  # Or no work dir is touched.
        outcome = loop.train(
            language_model(resolved, mesh),
            batches(resolved, share=processes.batch_share(mesh)),
            order,
            workdir=Path(workdir),
            mesh=mesh,
            experiment=experiment,
            hooks=[hooks.validation_hook(experiment), hooks.sample_hook(experiment)],
            made_with=made_with,
        )
    return _exit_code(outcome)


# ------------------------------------------------------------------------- what checkpoints are for


def _checkpoint(args: Any, bindings: Sequence[str]) -> Experiment:
    """Resolves `args.checkpoint`, among shipped weights too, and returns its spec with `bindings`.

    What an earlier export was told is no default of this command.
    """
    from poet.checkpoints import checkpoint
    from poet.runs import assets
    from poet.spec import config

    shipped = assets.root() / args.checkpoint
    if not Path(args.checkpoint).exists() and shipped.exists():
        args.checkpoint = str(shipped)
    trained = checkpoint.load_experiment(args.checkpoint)
    return config.override(trained.replace(export=ExportSpec()), bindings)


def evaluate(args: Any, bindings: Sequence[str]) -> None:
    """Writes OUT/eval.json and prints the table."""
    from poet.cli import built_in
    from poet.evaluation import runner

    for name in args.metrics:
        choose(name, runner.TABLES, "--metric")
    experiment = _checkpoint(args, bindings)
    inputs = [args.checkpoint, experiment.data.store, experiment.eval.source]
    processes.from_first(lambda: outputs.claim_of(args, outputs.EVALUATION, inputs) and None)
    scores = processes.from_first(lambda: _claimed_file(args.scores, args, "--scores"))
    experiment = built_in.supply(
        args.checkpoint, experiment, lambda e: _write_store(e, load_encoders(e), None, _LOG.info)
    )
    with outputs.claim_of(args, outputs.EVALUATION, inputs) if processes.first() else contextlib.nullcontext() as output:
        out = output.folder if output else args.out
        kept = Path(scores) if scores else None
        runner.evaluate(args.checkpoint, experiment, out, args.metrics or None, scores_file=kept)


def _claimed_file(path: str, args: Any, flag: str) -> str:
    """The absolute path of a file that may be written; '' for none."""
    return str(outputs.claim_file(path, overwrite=args.overwrite, flag=flag)) if path else ""


def generate(args: Any, bindings: Sequence[str]) -> None:
    """Writes clips made by a checkpoint."""
    from poet.sampling import command

    experiment = _checkpoint(args, bindings)
    given = [args.checkpoint, args.prompt_file, *args.clip, *args.end, *args.depth]
    output = outputs.claim_of(args, outputs.GENERATION, given)
    args.out = str(output.folder)
    with output:
        written = command.run(args, experiment)
    for path in written:
        print(output.where(path))


def export(args: Any, bindings: Sequence[str]) -> None:
    """Writes StableHLO artefacts, or the bare weights, of a checkpoint; compares them if asked to."""
    from poet.sampling.generate import Generator
    from poet.serving import check
    from poet.serving import export as exporting

    experiment = _checkpoint(args, bindings)
    if args.weights_only and args.check:
        raise UserError("--check runs the exported programs, which --weights_only does not write")
    if args.check:
        for written in (Path(args.check), Path(args.check).with_suffix(".gif")):
            outputs.claim_file(written, overwrite=args.overwrite, flag="--check")
    folder = exporting.run(
        args.checkpoint,
        experiment,
        args.out,
        weights_only=args.weights_only,
        overwrite=args.overwrite,
    )
    print(folder)
    if not args.check:
        return
    experiment = exporting.in_dtype(experiment)
    generator = Generator.from_checkpoint(args.checkpoint, experiment, experiment.export.task)
    findings = check.compare(generator, folder, Path(args.check))
    for name, value in findings.items():
        print(f"{name.replace('_', ' ')}: {value}")
    if not all(value for name, value in findings.items() if name.endswith("_equal")):
        raise Failure(f"the export {folder} does not draw what the checkpoint draws")


def report(workdir: str) -> None:
    """Writes WORKDIR/report.html; prints its path and the numbers of its head."""
    from poet.evaluation.report import run as reports

    reports.check_workdir(Path(workdir))
    print(reports.write_report(Path(workdir)))
    for number, meaning in reports.figures(Path(workdir)):
        print(f"  {number:>12s}  {meaning}.")
