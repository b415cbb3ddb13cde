"""Plain-English captions made from the engine's own record of a clip, and from nothing else.

`caption(record)` is a pure function: the data set stores the record beside the text, so anyone can
derive the caption again and check it.  `words` says what a record holds.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

sys.path.insert(1, str(pathlib.Path(__file__).resolve().parents[1]))  # game_clips

from game_clips.words import action_phrases, event_phrases, joined, object_phrases  # noqa: E402


def caption(record: dict[str, Any]) -> str:
    """One sentence in lower case without a full stop: motions, events, objects in view."""
    clauses = [f"the player {joined(action_phrases(record))}", *event_phrases(record)]
    objects = object_phrases(record)
    if objects:
        clauses.append(f"{joined(objects)} in view")
    return ", ".join(clauses)
