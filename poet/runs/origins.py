"""The origins of a run of the language model: its text encoder, and its initial weights."""

from __future__ import annotations

import logging

from poet.runs import networks
from poet.runs.run import Run
from poet.spec import Experiment, TextSpec, UserError, compat
from poet.tokenizers.text import fingerprint_of

_LOG = logging.getLogger(__name__)


def check_text(text: TextSpec, made_with: networks.Networks, *, what: str) -> None:
    """Raises UserError unless the text encoder that the run names made the states that it learns from.

    Training does not need the encoder itself: where it is not here, that is said.

    Args:
      made_with: fingerprints of what the store was made with.
      what: is the store, such as 'the token store PATH'.
    """
    if networks.TEXT not in made_with:
        return
    try:
        ours = {networks.TEXT: fingerprint_of(text)}
    except UserError as error:
        _LOG.warning("the text encoder was not compared with that of the store: %s", error)
        return
    networks.check(made_with, ours, what=what)


def check_start(experiment: Experiment, made_with: networks.Networks) -> None:
    """Raises UserError unless TRAIN.init_from, where given, holds a model whose ids mean the same.

    With TRAIN.init_other_codes they may be codes of other tokenizers, which is logged.
    """
    start = experiment.train.init_from
    if not start:
        return
    what = f"TRAIN.init_from = {start!r}"
    remedy = "set them so, or start from another checkpoint"
    trained = Run.open(start).checkpoint
    compat.check(trained.spec, experiment, "initialise", what=what, remedy=remedy)
    ours = {name: made_with[name] for name in networks.MODEL if name in made_with}
    other = {}
    if experiment.train.init_other_codes and trained.networks:
        other = {n: ours.pop(n) for n in networks.CODES if n in ours and ours[n] != trained.networks.get(n, ours[n])}
    if other:
        _LOG.warning("%s knows codes of other tokenizers (%s): it learns the new ones", what, ", ".join(other))
    networks.check(trained.networks, ours, what=what)
