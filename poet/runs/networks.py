"""The frozen networks that codes and weights depend on: name -> fingerprint.

A token store, a checkpoint, released weights, an export and a generation keep these names; where two of
them meet, what both name must be equal.  A path says where a network lies, never which one it is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from poet.spec import UserError

_LOG = logging.getLogger(__name__)

VIDEO, AUDIO, TEXT, PIECES, STORE = "video", "audio", "text", "pieces", "store"
# Of a network whose decoder was trained after its encoder: its codes are named by the network, its pictures by this.
DECODER = "{}_decoder"
# Those that the ids and text states of a language model come from.
MODEL = (VIDEO, AUDIO, TEXT, PIECES)
CODES = (VIDEO, AUDIO)
# Name -> what it is, and the setting that says where it lies.  Other names are conditions of a store.
_KNOWN = {
    VIDEO: ("video tokenizer", "VIDEO_TOKENIZER.path"),
    AUDIO: ("audio tokenizer", "AUDIO_TOKENIZER.path"),
    TEXT: ("text encoder", "TEXT.encoder and TEXT.path"),
    DECODER.format(VIDEO): ("video decoder", "VIDEO_TOKENIZER.path"),
    PIECES: ("vocabulary of written text", "TEXT.pieces"),
    STORE: ("token store", "DATA.store"),
}
Networks = Mapping[str, str]


def check(theirs: Networks | None, ours: Networks, *, what: str) -> None:
    """Raises UserError unless everything that both name has the same fingerprint.

    Args:
      theirs: of something made earlier; None if it does not record them, which is logged.
      ours: those of this run.
      what: the thing made with `theirs`, such as 'the checkpoint PATH'.
    """
    if theirs is None:
        _LOG.warning("%s does not record its frozen networks: none was compared", what)
        return
    for name in sorted(theirs.keys() & ours.keys()):
        if theirs[name] != ours[name]:
            kind, setting = _KNOWN.get(name, (f"condition {name!r}", "CONDITIONING"))
            raise UserError(
                f"{what} was made with another {kind}: its fingerprint is {theirs[name]}, here it "
                f"is {ours[name]}; set {setting} to that one"
            )
