"""Settings that may differ from those of a trained model: one comparison for all commands.

Every field declares what another value of it changes (`poet.spec.base.setting`); a purpose says which
sections matter to it and which changes it refuses.  No command compares settings by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from poet.spec import Experiment, UserError, choose
from poet.spec.base import Spec, setting_of

_TOKENIZER = ("clip", "video_tokenizer", "audio_tokenizer", "tokenizer_train", "discriminator", "audio_train")
_RUN = ("optimizer", "train")
# Every other section says what the ids, positions and weights of a model stand for, or changes nothing.
_BESIDE = {*_RUN, "data", "conditioning", "store", "ingest", "tokenizer_train", "discriminator", "audio_train"}
_MODEL = tuple(field.name for field in dataclasses.fields(Experiment) if field.name not in _BESIDE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Purpose:
    """A use of a trained model: the sections that matter, and the changes that are refused.

    `may_grow`: whether the model may get arrays that begin at 0, or more of them (`poet.spec.base.setting`).
    """

    sections: tuple[str, ...]
    refused: tuple[str, ...] = ("arrays", "meaning", "layout")
    may_grow: bool = False


PURPOSES: dict[str, Purpose] = {
    "resume": Purpose(sections=(*_MODEL, "conditioning", *_RUN, "data")),
    "resume_tokenizer": Purpose(sections=(*_TOKENIZER, *_RUN), refused=("arrays", "decoder", "meaning", "layout")),
    # Longer or larger clips of the same kind are what a model may be adapted to.
    "initialise": Purpose(sections=_MODEL, refused=("arrays", "meaning"), may_grow=True),
    "sample": Purpose(sections=(*_MODEL, "conditioning")),
    "evaluate": Purpose(sections=(*_MODEL, "conditioning")),
    "export": Purpose(sections=(*_MODEL, "conditioning")),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """A setting, by its gin name, that two experiments do not share, and what that changes.

    `adds`: the arrays that ours has and theirs lacks, where nothing else differs; '' is none.
    `grows`: whether a larger value can begin with what a smaller one learned.
    """

    name: str
    theirs: Any
    ours: Any
    changes: str
    adds: str = ""
    grows: bool = False

    @property
    def begins_alike(self) -> bool:
        """Whether ours can begin a training with the weights of theirs, and compute the same."""
        return bool(self.adds) or (self.grows and self.ours > self.theirs)

    def __str__(self) -> str:
        return f"{self.name} = {self.theirs!r} (now {self.ours!r})"


def differences(
    theirs: Experiment, ours: Experiment, purpose: str, changes: Collection[str] | None = None
) -> list[Difference]:
    """The settings in which what was trained differs from what is asked for, in order of declaration.

    Args:
      theirs: the experiment that something was trained with.
      ours: that of this command.
      purpose: a name in `PURPOSES`; what it does not look at is not compared.
      changes: those that count; by default those that the purpose refuses.  What a run without sound
        says of sound never counts.
    """
    wanted = choose(purpose, PURPOSES, "purpose")
    counted = wanted.refused if changes is None else changes
    silent = not (theirs.audio_tokenizer.path and ours.audio_tokenizer.path)
    return [
        difference
        for section in wanted.sections
        for difference in _of_section(getattr(theirs, section), getattr(ours, section))
        if difference.changes in counted
        and not (silent and _of_sound(difference.name))
        and not (wanted.may_grow and difference.begins_alike)
    ]


def every_difference(theirs: Experiment, ours: Experiment) -> list[Difference]:
    """All settings in which two experiments differ, of any section, in order of declaration."""
    names = [field.name for field in dataclasses.fields(Experiment)]
    return [d for name in names for d in _of_section(getattr(theirs, name), getattr(ours, name))]


def added(theirs: Experiment, ours: Experiment) -> list[str]:
    """Dotted names of the arrays, or of dicts of arrays, that a model of ours has and theirs lacks; at first they do
    nothing."""
    return [
        d.adds for section in _MODEL for d in _of_section(getattr(theirs, section), getattr(ours, section)) if d.adds
    ]


def check(theirs: Experiment, ours: Experiment, purpose: str, *, what: str, remedy: str) -> None:
    """Raises UserError naming every setting that a purpose refuses to differ.

    Args:
      what: was trained with `theirs`, such as 'the checkpoint PATH'.
      remedy: what to do about it.
    """
    found = differences(theirs, ours, purpose)
    if found:
        raise UserError(f"{what} was trained with {', '.join(map(str, found))}; {remedy}")


def _of_section(theirs: Spec, ours: Spec) -> list[Difference]:
    return [
        Difference(
            name=f"{ours.gin_name()}.{field.name}",
            theirs=getattr(theirs, field.name),
            ours=getattr(ours, field.name),
            changes=declared.changes,
            adds=declared.adds if getattr(ours, field.name) and not getattr(theirs, field.name) else "",
            grows=declared.grows,
        )
        for field in dataclasses.fields(ours)
        if (declared := setting_of(field)) and getattr(theirs, field.name) != getattr(ours, field.name)
    ]


def _of_sound(name: str) -> bool:
    return name == "CLIP.sample_rate_hz" or name.startswith("AUDIO_TOKENIZER.")
