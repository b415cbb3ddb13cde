"""What each command does, rooms put together: the only place that knows all of them."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import jax

from poet import mesh as mesh_lib
from poet.specs import Experiment, UserError
from poet.training import loop
from poet.training.schedule import GroupSchedule
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


def _processes() -> dict[str, int]:
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


# ----------------------------------------------------------------------------------- tokenizers


def tokenizer_train(experiment: Experiment, workdir: str) -> int:
    """Trains the video tokenizer; at the end its averaged weights lie in WORKDIR/tokenizer."""
    from poet.evaluation import hooks
    from poet.tokenizers.video import training

    if experiment.video_tokenizer.path:
        raise UserError(
            f"VIDEO_TOKENIZER.path = {experiment.video_tokenizer.path!r} names frozen weights, which "
            "are not trained further: pass --gin.VIDEO_TOKENIZER.path= to train from scratch"
        )
    with _mesh(experiment) as mesh:
        trainable = training.trainable(experiment, mesh)
        batches = _pixel_batches(experiment, trainable)
        outcome = loop.train(
            trainable,
            batches,
            GroupSchedule(training.shares(experiment), experiment.train.seed),
            workdir=Path(workdir),
            mesh=mesh,
            experiment=experiment,
            hooks=[hooks.reconstructions(experiment)],
        )
        if outcome is loop.Outcome.FINISHED and jax.process_index() == 0:
            _write_tokenizer(experiment, trainable, Path(workdir))
    return _exit_code(outcome)


def _pixel_batches(experiment: Experiment, trainable: Trainable) -> Mapping[str, BatchIterator]:
    from poet.data.pixels import pixel_batches

    spec = experiment.tokenizer_train
    if not spec.folders:
        raise UserError(
            "TOKENIZER_TRAIN.source is empty: give a TFDS folder or a folder of clips, or several of "
            'them with weights as TOKENIZER_TRAIN.sources = {"FOLDER": 3, "OTHER": 1}'
        )
    return {
        name: pixel_batches(
            spec.folders,
            spec.split,
            experiment.clip,
            *group.batch["video"].shape[:4],
            seed=experiment.train.seed,
            **_processes(),
        )
        for name, group in trainable.groups.items()
    }


def _write_tokenizer(experiment: Experiment, trainable: Trainable, workdir: Path) -> None:
    from poet import checkpoint
    from poet.tokenizers.video import training

    shapes = jax.eval_shape(trainable.init, jax.random.key(0))
    ema = checkpoint.load_params(workdir, shapes["ema"], key="ema")
    card = {"steps": experiment.train.steps, "sources": experiment.tokenizer_train.folders}
    folder = workdir / TOKENIZER_FOLDER
    tokenizer = training.export_tokenizer({"ema": ema}, experiment, folder, card)
    _LOG.info("wrote %s, fingerprint %s", folder, tokenizer.fingerprint)


def reconstruct(args: Any) -> None:
    """Writes clips as a tokenizer rebuilds them, and prints rate, PSNR and speed."""
    from poet.evaluation import reconstruct as rebuilding
    from poet.tokenizers.video.base import VideoTokenizer

    clips = [Path(clip) for clip in args.clips]
    targets = rebuilding.targets(Path(args.out), clips)
    options = {name: getattr(args, name) for name in ("chunk_frames", "tile", "overlap")}
    tokenizer = VideoTokenizer.load(args.tokenizer, **options)
    if args.dtype:
        tokenizer = tokenizer.in_dtype(args.dtype)
    size = {name: getattr(args, name) for name in ("height", "width", "frames")}
    for clip, target in zip(clips, targets):
        video = rebuilding.read(clip, tokenizer, rate_hz=args.fps, **size)
        done = rebuilding.reconstruct(
            tokenizer, video, target, name=str(clip), rate_hz=args.fps
        )
        print(done)


def tokenizer_evaluate(experiment: Experiment, args: Any) -> None:
    """Writes OUT/tokenizer_scores.json and pictures, and prints the tables."""
    from poet.evaluation import clip_sets, tokenizer_scores
    from poet.tokenizers.video import perceptual
    from poet.tokenizers.video.base import VideoTokenizer

    spec = experiment.eval
    names = args.sets or [name for name in clip_sets.SETS if name != "source" or spec.source]
    sets, skipped = clip_sets.open_sets(
        names, experiment.clip, spec.clips, spec.source, spec.split
    )
    result = tokenizer_scores.evaluate(
        VideoTokenizer.load(args.tokenizer or experiment.video_tokenizer.path),
        sets,
        Path(args.out),
        perceptual=perceptual.load(args.perceptual) if args.perceptual else None,
        comparators=[name for name in args.codecs or ("x264", "x265") if name != "none"],
        rate_hz=experiment.clip.rate_hz,
        preset=args.preset,
        skipped=skipped,
    )
    print(tokenizer_scores.summary(result))


def _frozen_video_tokenizer(experiment: Experiment, **options: Any) -> Any:
    from poet.tokenizers.video.base import load_video_tokenizer

    return load_video_tokenizer(experiment.video_tokenizer, **options)


def tokenize(experiment: Experiment) -> None:
    """Writes the token store STORE.path from STORE.source."""
    from poet.store.writer import tokenize as write_store
    from poet.tokenizers.text import load_text_encoder

    for field in ("source", "path"):
        if not getattr(experiment.store, field):
            raise UserError(f"STORE.{field} is empty: pass --gin.STORE.{field}=FOLDER")
    manifest = write_store(
        experiment.store,
        experiment.clip,
        tokenizer=_frozen_video_tokenizer(experiment, mesh=mesh_lib.build(experiment.mesh)),
        text=load_text_encoder(experiment.text),
    )
    for split, info in manifest.splits.items():
        print(f"{split}: {info.clips} clips in {len(info.shards)} shards, {len(info.skipped)} skipped")


# ---------------------------------------------------------------------------- the language model


def train(experiment: Experiment, workdir: str) -> int:
    """Pretrains the language model on the token store DATA.store."""
    from poet.data.checks import check
    from poet.data.loader import batches
    from poet.evaluation import hooks
    from poet.tasks import registry
    from poet.training.step import language_model

    if not experiment.data.store:
        raise UserError("DATA.store is empty: pass --gin.DATA.store=FOLDER (see poet tokenize)")
    fingerprint = _frozen_video_tokenizer(experiment).fingerprint
    check(experiment, tokenizer=fingerprint, process_count=jax.process_count())
    with _mesh(experiment) as mesh:
        shares = {g: sum(rates.values()) for g, (_, rates) in registry.groups(experiment).items()}
        outcome = loop.train(
            language_model(experiment, mesh),
            batches(experiment, **_processes()),
            GroupSchedule(shares, experiment.data.seed),
            workdir=Path(workdir),
            mesh=mesh,
            experiment=experiment,
            hooks=[hooks.validation_hook(experiment), hooks.sample_hook(experiment)],
        )
    return _exit_code(outcome)


# ------------------------------------------------------------------------- what checkpoints are for


def _checkpoint(args: Any, bindings: Sequence[str]) -> Experiment:
    """Resolves `args.checkpoint`, among shipped weights too, and returns its spec with `bindings`."""
    from poet import assets, checkpoint, config

    shipped = assets.root() / args.checkpoint
    if not Path(args.checkpoint).exists() and shipped.exists():
        args.checkpoint = str(shipped)
    return config.override(checkpoint.load_experiment(args.checkpoint), bindings)


def evaluate(args: Any, bindings: Sequence[str]) -> None:
    """Writes OUT/eval.json and prints the table."""
    from poet.evaluation import runner

    experiment = _checkpoint(args, bindings)
    runner.evaluate(args.checkpoint, experiment, args.out)


def generate(args: Any, bindings: Sequence[str]) -> None:
    """Writes clips made by a checkpoint."""
    from poet.sampling import generate as generation

    for path in generation.run(args, _checkpoint(args, bindings)):
        print(path)


def export(args: Any, bindings: Sequence[str]) -> None:
    """Writes StableHLO artefacts, or the bare weights, of a checkpoint; compares them if asked to."""
    from poet.sampling.generate import Generator
    from poet.serving import check
    from poet.serving import export as exporting

    experiment = _checkpoint(args, bindings)
    if args.weights_only and args.check:
        raise UserError("--check runs the exported programs, which --weights_only does not write")
    folder = exporting.run(args.checkpoint, experiment, args.out, weights_only=args.weights_only)
    print(folder)
    if not args.check:
        return
    model = experiment.model.replace(dtype=experiment.export.dtype)
    generator = Generator.from_checkpoint(args.checkpoint, experiment.replace(model=model))
    findings = check.compare(generator, Path(folder), Path(args.check))
    for name, value in findings.items():
        print(f"{name.replace('_', ' ')}: {value}")
    if not (findings["tokens_equal"] and findings["pixels_equal"]):
        raise RuntimeError(f"the export {folder} does not draw what the checkpoint draws")


def report(workdir: str) -> None:
    """Writes WORKDIR/report.html."""
    from poet.evaluation.report import write_report

    print(write_report(Path(workdir)))
