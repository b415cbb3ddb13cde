"""Whether a text says of a clip of the game what its caption says: fields `caption` and `written`, lists of texts.

Texts are searched for the phrases of the recipes' captions (`data/game_clips/words.py`), wherever they stand: a model
that describes a clip in other words is scored too low.

N clips.
"""

from __future__ import annotations

from collections.abc import Callable

from poet.evaluation.columns import Columns
from poet.evaluation.metric import Batch, Metric, Values, register
from poet.evaluation.metrics.arenas import SHOT, balanced, named_place, shots_told

TABLE = "captions"
MOTIONS = ("walks forward", "walks backward", "steps left", "steps right", "turns left", "turns right", "hardly moves")
EVENTS = ("fires the", "kills", "picks up an item", "picks up a medical kit", "gets hurt", "changes to the")


def first_motion(text: str) -> str | None:
    """The motion that a text names first, which is the commonest one of the clip."""
    there = {text.find(motion): motion for motion in MOTIONS if motion in text}
    return there[min(there)] if there else None


def actions(text: str) -> frozenset[str]:
    """The motions and events that a text names."""
    return frozenset(phrase for phrase in MOTIONS + EVENTS if phrase in text)


def _agreement(read: Callable[[str], object | None]) -> Callable[[Batch], Values]:
    """Of clips whose captions say something by `read`, those of which the text says the same."""

    def measure(batch: Batch) -> Values:
        pairs = [(read(true), read(made)) for true, made in zip(batch["caption"], batch["written"], strict=True)]
        known = [true is not None for true, _ in pairs]
        return Values.of(batch, [true is not None and true == made for true, made in pairs], known)

    return measure


def _place_and_motion(text: str) -> tuple[str, str] | None:
    place, motion = named_place(text), first_motion(text)
    return (place, motion) if place and motion else None


def _f1(batch: Batch) -> Values:
    """F1 is twice what both name over all that either names."""
    pairs = [(actions(true), actions(made)) for true, made in zip(batch["caption"], batch["written"], strict=True)]
    return Values.of(batch, [2 * len(a & b) for a, b in pairs], [len(a) + len(b) for a, b in pairs])


def _declare(name: str, measure: Callable[[Batch], Values | Columns], note: str, **more: Callable) -> None:
    needs = ("caption", "written")
    register(Metric(name=name, better="more", tables=(TABLE,), needs=needs, measure=measure, note=note, **more))


_declare(
    "caption_place_and_motion",
    _agreement(_place_and_motion),
    "Fraction of texts that name the place and, first of all motions, the commonest motion of the clip.",
)
_declare("caption_place", _agreement(named_place), "Fraction of texts that name the place of the clip.")
_declare("caption_motion", _agreement(first_motion), "Fraction of texts that name the commonest motion first.")
_declare("caption_actions_f1", _f1, "F1 of the motions and events that texts name.")
_declare(
    "caption_shot",
    shots_told(lambda batch, place: SHOT in batch["written"][place]),
    "Balanced accuracy of whether a text has a shot; chance: 0.5.",
    finish=balanced,
)
