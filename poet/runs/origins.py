"""Where a run of the language model comes from: its text encoder, and the weights that it starts with."""

from __future__ import annotations

import logging

from poet.checkpoints import checkpoint
from poet.runs import networks
from poet.spec import compat
from poet.spec import Experiment, UserError
from poet.tokenizers.text import fingerprint_of

_LOG = logging.getLogger(__name__)


def check_text(experiment: Experiment, made_with: networks.Networks) -> None:
    """Raises UserError unless the text encoder that the run names made the states that it learns from.

    Training does not need the encoder itself: where it is not here, that is said.

    Args:
      made_with: fingerprints of what DATA.store was made with.
    """
    if networks.TEXT not in made_with:
        return
    try:
        ours = {networks.TEXT: fingerprint_of(experiment.text)}
    except UserError as error:
        _LOG.warning("the text encoder was not compared with that of the store: %s", error)
        return
    networks.check(made_with, ours, what=f"the token store {experiment.data.store}")


def check_start(experiment: Experiment, made_with: networks.Networks) -> None:
    """Raises UserError unless TRAIN.init_from, where given, holds a model whose ids mean the same."""
    start = experiment.train.init_from
    if not start:
        return
    what = f"TRAIN.init_from = {start!r}"
    remedy = "set them so, or start from another checkpoint"
    trained = checkpoint.load_experiment(start)
    compat.check(trained, experiment, "initialise", what=what, remedy=remedy)
    ours = {name: made_with[name] for name in networks.MODEL if name in made_with}
    networks.check(checkpoint.load_networks(start), ours, what=what)
