"""`poet tokenizer-train`: trains a video or audio tokenizer, which then lies in the run's `tokenizer`."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from poet.cli import command
from poet.runs.run import Run
from poet.spec import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from poet.tasks.resolved import Resolved
    from poet.training.trainable import BatchIterator, Trainable

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Parts:
    """The parts of the training of a modality.

    Attributes:
      trainable: what learns.
      batches: iterators by group.
      fractions: of the steps, by group.
      state_keys: top-level keys of the state that the frozen tokenizer is made from.
      export: ({key: parameters}, folder, card) -> the frozen tokenizer, written to the folder.
    """

    trainable: Trainable
    batches: Mapping[str, BatchIterator]
    fractions: Mapping[str, float]
    state_keys: tuple[str, ...]
    export: Callable[[Mapping[str, Any], Any, Mapping[str, Any]], Any]


def _run(args: argparse.Namespace) -> int:
    resolved = command.resolve(args)
    command.start_processes(args)
    return train(resolved, Run.to_train(args.workdir))


def train(resolved: Resolved, run: Run) -> int:
    """Trains the tokenizer of TOKENIZER_TRAIN.modality and returns the exit code.

    Raises:
      UserError: settings that no training can have; see also `poet.training.loop.train`.
    """
    import jax

    from poet.distributed import mesh as mesh_lib
    from poet.distributed import processes
    from poet.evaluation import tokenizer_hooks
    from poet.runs import publishing
    from poet.training import loop
    from poet.training.schedule import GroupSchedule

    spec = resolved.spec
    _check(resolved)
    mesh = mesh_lib.build(spec.mesh)
    with jax.set_mesh(mesh):
        parts = {"video": _video, "audio": _audio}[spec.tokenizer_train.modality](resolved, mesh)
        outcome = loop.train(
            parts.trainable,
            parts.batches,
            GroupSchedule(parts.fractions, spec.train.seed),
            run=run,
            mesh=mesh,
            experiment=spec,
            hooks=[tokenizer_hooks.reconstructions(resolved)],
            purpose="resume_tokenizer",
        )
        shapes = jax.eval_shape(parts.trainable.init, jax.random.key(0))
    if outcome is loop.Outcome.FINISHED and processes.first():
        card = {"steps": spec.train.steps, "sources": spec.tokenizer_train.folders}
        with publishing.hold(run):
            _freeze(parts, shapes, run, card)
    return outcome.exit_code


def _check(resolved: Resolved) -> None:
    spec = resolved.spec.tokenizer_train
    if resolved.spec.train.init_from:
        raise UserError("TRAIN.init_from is the language model's: start a tokenizer with TOKENIZER_TRAIN.init_from")
    tokenizer = getattr(resolved.spec, f"{spec.modality}_tokenizer")
    if tokenizer.path:
        name = tokenizer.gin_name()
        raise UserError(
            f"{name}.path = {tokenizer.path!r} names frozen weights, which are not trained further: pass "
            f"--gin.{name}.path= to train from scratch, or start from them with "
            "TOKENIZER_TRAIN.init_from"
        )
    if spec.frozen_encoder and not spec.init_from:
        raise UserError(
            "TOKENIZER_TRAIN.frozen_encoder keeps the encoder of a trained tokenizer: give its folder as "
            "TOKENIZER_TRAIN.init_from"
        )
    if not spec.folders:
        raise UserError(
            "TOKENIZER_TRAIN.source is empty: give a TFDS folder or a folder of clips, or several of "
            'them with weights as TOKENIZER_TRAIN.sources = {"FOLDER": 3, "OTHER": 1}'
        )


def _freeze(parts: _Parts, shapes: Mapping[str, Any], run: Run, card: Mapping[str, Any]) -> None:
    """Writes the tokenizer that the newest checkpoint holds."""
    import jax

    from poet.checkpoints import checkpoint

    # Without the mesh's shardings: process 0 loads them alone, on one device.
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)
    loaded = {key: checkpoint.load_params(run, shapes[key], key=key) for key in parts.state_keys}
    tokenizer = parts.export(loaded, run.tokenizer, card)
    _LOG.info("wrote %s, fingerprint %s", run.tokenizer, tokenizer.fingerprint)


def _video(resolved: Resolved, mesh: Mesh) -> _Parts:
    from poet.data.pixels import Derived, pixel_batches
    from poet.distributed import processes
    from poet.tokenizers.video import training

    experiment, spec = resolved.spec, resolved.spec.tokenizer_train
    trainable = training.trainable(experiment, mesh)
    derived = None
    if spec.derived_fraction:
        factor = experiment.video_tokenizer.factor
        derived = Derived(fraction=spec.derived_fraction, spec=experiment.conditioning, factor=factor)
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
    return _Parts(
        trainable=trainable,
        batches=batches,
        fractions=training.group_fractions(spec, experiment.clip),
        state_keys=("ema",),
        export=lambda loaded, folder, card: training.export_tokenizer(
            loaded["ema"], experiment.video_tokenizer, folder, card, spec.init_from if spec.frozen_encoder else ""
        ),
    )


def _audio(resolved: Resolved, mesh: Mesh) -> _Parts:
    from poet.data.sounds import sound_batches
    from poet.distributed import processes
    from poet.tokenizers.audio import training

    experiment, spec = resolved.spec, resolved.spec.tokenizer_train
    batches = sound_batches(
        spec.folders,
        spec.split,
        experiment.audio_tokenizer,
        experiment.audio_train,
        spec.batch,
        seed=experiment.train.seed,
        share=processes.batch_share(mesh),
    )
    return _Parts(
        trainable=training.trainable(experiment, mesh),
        batches={training.GROUP: batches},
        fractions={training.GROUP: 1.0},
        state_keys=("params", "codebooks"),
        export=lambda loaded, folder, card: training.export_tokenizer(
            training.params_of(loaded), experiment.audio_tokenizer, folder, card
        ),
    )


COMMAND = command.Command(
    summary="Train a video or audio tokenizer.",
    run=_run,
    arguments=command.workdir_arguments,
    settings=command.FILES,
    example="--gin_file=gin/experiments/tokenizer_64.gin --gin.TOKENIZER_TRAIN.source=CLIPS --workdir=runs/tokenizer",
    place=20,
)
