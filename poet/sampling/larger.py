"""Super-resolution networks by path: checkpoints, and exports that hold some."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from poet.checkpoints import checkpoint as checkpoint_lib
from poet.models.superres import build_model
from poet.runs import networks
from poet.runs.run import Checkpoint, Run, here
from poet.sampling import masked
from poet.sampling.superres import Upscaler
from poet.serving.format import open_folder
from poet.serving.runtime import Runtime
from poet.spec import Experiment, UserError, compat, from_stored, to_dict
from poet.tasks.registry import SUPER_RESOLUTION
from poet.tasks.resolved import Resolved
from poet.tokenizers import frozen
from poet.tokenizers.video.base import VideoTokenizer
from poet.training.networks import expect


def find(path: str) -> Run:
    """The checkpoint or the export at a user's path.

    Raises UserError: neither, a language model, or an export without super-resolution.
    """
    folder = here(path).expanduser()
    if (export := Checkpoint(folder)).exported:
        if not open_folder(folder).get("upscalers"):
            raise UserError(
                f"{folder} is an export without super-resolution: give one that was written with "
                "`poet export --upscale=CHECKPOINT`, or the checkpoint of a super-resolution network"
            )
        return Run(folder, export)
    run = Run.open(path)
    expect(run.checkpoint, SUPER_RESOLUTION)
    return run


def experiments(run: Run) -> list[Experiment]:
    """The experiments of the networks of what `find` found, which are not loaded, with the tokenizers that would be."""
    if not run.checkpoint.exported:
        return [frozen.as_loaded(run.checkpoint.spec)]
    return [from_stored(Experiment, found["experiment"]) for found in open_folder(run.folder)["upscalers"]]


def load(run: Run, change: Callable[[Experiment], Experiment] = lambda spec: spec) -> list[Upscaler]:
    """The networks of what `find` found: one of a checkpoint, all of an export.

    Args:
      change: of the spec of each, before it is loaded.

    Raises UserError: damaged, or settings other than those of sampling were changed.
    """
    if not run.checkpoint.exported:
        return [from_checkpoint(run, Resolved(change(run.checkpoint.spec)))]
    found = Runtime.load(run.folder).upscalers
    return [one.changed(**_sampling(one.experiment, change(one.experiment), run.folder)) for one in found]


def _sampling(before: Experiment, after: Experiment, folder: Path) -> dict[str, Any]:
    """What of SUPER_RESOLUTION differs; UserError where anything else does."""
    if after.replace(super_resolution=before.super_resolution) != before:
        raise UserError(f"{folder} is an export, of which only SUPER_RESOLUTION can be set: export again with the rest")
    old, new = to_dict(before.super_resolution), to_dict(after.super_resolution)
    return {name: getattr(after.super_resolution, name) for name in new if new[name] != old[name]}


def from_checkpoint(run: Run, resolved: Resolved | None = None) -> Upscaler:
    """Loads the checkpoint of a run and its tokenizer.

    `resolved` replaces the experiment in the checkpoint, e.g. with other sampling settings.

    Raises UserError: damaged, a language model, or settings or a tokenizer other than those that it was trained
    with.
    """
    expect(run.checkpoint, SUPER_RESOLUTION)
    trained, what = run.checkpoint.spec, str(run.checkpoint.path)
    resolved = resolved or Resolved(trained)
    compat.check(trained, resolved.spec, "sample", what=what, remedy="leave them as they were trained")
    tokenizer = VideoTokenizer.of(resolved.spec.video_tokenizer)
    networks.check(run.checkpoint.networks, {networks.VIDEO: tokenizer.fingerprint}, what=what)
    model = build_model(resolved)
    params = jax.jit(model.compute_params)(checkpoint_lib.load_params(run, model.abstract()))
    return Upscaler(resolved, masked.Network(model, params), tokenizer)
