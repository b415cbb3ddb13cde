"""Super-resolution networks of checkpoints."""

from __future__ import annotations

import jax

from poet.checkpoints import checkpoint as checkpoint_lib
from poet.models.superres import build_model
from poet.networks import expect
from poet.runs import networks
from poet.runs.run import Run
from poet.sampling import masked
from poet.sampling.superres import Upscaler
from poet.spec import Experiment, compat
from poet.tasks.registry import SUPER_RESOLUTION
from poet.tasks.resolved import Resolved
from poet.tokenizers.video.base import VideoTokenizer


def from_checkpoint(run: Run, experiment: Experiment | None = None) -> Upscaler:
    """Loads the checkpoint of a run and its tokenizer.

    `experiment` replaces the one in the checkpoint, e.g. with other sampling settings.

    Raises UserError: damaged, a language model, or settings or a tokenizer other than those that it was trained
    with.
    """
    expect(run.checkpoint, SUPER_RESOLUTION)
    trained, what = run.checkpoint.spec, str(run.checkpoint.path)
    experiment = experiment or trained
    compat.check(trained, experiment, "sample", what=what, remedy="leave them as they were trained")
    tokenizer = VideoTokenizer.of(experiment.video_tokenizer)
    networks.check(run.checkpoint.networks, {networks.VIDEO: tokenizer.fingerprint}, what=what)
    model = build_model(Resolved(experiment))
    params = jax.jit(model.compute_params)(checkpoint_lib.load_params(run, model.abstract()))
    return Upscaler(experiment, masked.Network(model, params), tokenizer)
