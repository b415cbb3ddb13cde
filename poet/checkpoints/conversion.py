"""Weights in another form: a checkpoint as released weights, or released weights in another dtype."""

from __future__ import annotations

from pathlib import Path

from poet.checkpoints import weights
from poet.checkpoints.contents import PARAMS, Contents
from poet.runs import outputs
from poet.runs.run import Checkpoint
from poet.spec import ExportSpec


def convert(
    source: Checkpoint, out: str | Path, *, dtype: str | None = None, part: str = PARAMS, overwrite: bool = False
) -> Path:
    """Writes the parameters of `source` as released weights; returns the folder.

    Neither the model nor an accelerator is needed: arrays go through the memory of this host.

    Args:
      dtype: of all arrays; None leaves each as it is.
      part: the top-level key of the training state that becomes the parameters, such as `ema`.
      overwrite: replace earlier released weights in `out`.

    Raises:
      UserError: `source` is damaged or lacks the part, or `out` is not fit to be written.
    """
    outputs.claim(out, outputs.WEIGHTS, overwrite=overwrite, inputs=[source.path])
    contents = Contents(source)
    arrays = {name.removeprefix(f"{part}."): array for name, array in contents.read(part)}
    experiment = source.spec.replace(export=ExportSpec())
    return weights.save(out, experiment, arrays, dtype, source.step, source.networks, overwrite=overwrite)
