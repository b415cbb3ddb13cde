"""Sounds that an audio tokenizer is scored on: held-out sound of games, speech, music and effects.

Shape suffixes: N sounds, S samples.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from poet.spec import AudioTokenizerSpec, EvalSpec, UserError, choose
from poet.store.sounds import RawSound, open_sounds, usable

# Set -> the kind of sound in the folder of EVAL.sounds; '' takes all of EVAL.source.
SETS: Mapping[str, str] = {"game": "", "speech": "speech", "music": "music", "effects": "effects"}


def open_sets(
    names: Sequence[str], spec: AudioTokenizerSpec, evaluation: EvalSpec, samples: int
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Sounds of the named sets -> (int16 (N, samples) of each, why a set was skipped).

    'game' is from EVAL.source, the others are the kinds of sound in EVAL.sounds; both by EVAL.split.
    A set has at most EVAL.clips sounds, spread evenly over the split: the beginnings of those that
    are long enough.

    Args:
      names: of `SETS`; () takes those with a folder; a set without sound is skipped.
      spec: its sample rate is that of the sounds.

    Raises:
      UserError: no such set, no folder for it, or a named one that has no sound of that length.
    """
    folders = {"": evaluation.source, **dict.fromkeys(list(SETS.values())[1:], evaluation.sounds)}
    wanted = {name: choose(name, SETS, "set of sounds") for name in names or SETS}
    if not names:
        wanted = {name: kind for name, kind in wanted.items() if folders[kind]}
    for name, kind in wanted.items():
        if not folders[kind]:
            field = "sounds" if kind else "source"
            raise UserError(f"the set {name!r} needs --gin.EVAL.{field}=FOLDER")
    if not wanted:
        raise UserError(
            "no sounds to score on: give --gin.EVAL.source=FOLDER (sound of games) or "
            "--gin.EVAL.sounds=FOLDER (a TFDS folder with the feature 'kind'), or both"
        )
    found = _read(wanted, spec, evaluation)
    opened = {n: _spread(found[kind], evaluation.clips, samples) for n, kind in wanted.items()}
    seconds = samples / spec.sample_rate_hz
    skipped = {
        name: f"{folders[wanted[name]]} has no {wanted[name] or 'sound'} of {seconds:.3f} s or more "
        f"in its split {evaluation.split!r}"
        for name, sounds in opened.items()
        if not len(sounds)
    }
    if names and skipped:
        raise UserError("; ".join(skipped.values()))
    return {name: sounds for name, sounds in opened.items() if len(sounds)}, skipped


def _read(wanted: Mapping[str, str], spec: AudioTokenizerSpec, evaluation: EvalSpec) -> dict[str, list[RawSound]]:
    """Kind -> its sounds, in the order of the split; '' for all of EVAL.source."""

    def sounds(folder: str, field: str) -> list[RawSound]:
        opened = open_sounds(folder, evaluation.split, spec.sample_rate_hz, field=field, split_field="EVAL.split")
        return usable(opened.read(0, len(opened)), folder)

    found: dict[str, list[RawSound]] = collections.defaultdict(list)
    if "" in wanted.values():
        found[""] = sounds(evaluation.source, "EVAL.source")
    if any(wanted.values()):
        for sound in sounds(evaluation.sounds, "EVAL.sounds"):
            if sound.kind:
                found[sound.kind].append(sound)
    return found


def _spread(sounds: Iterable[RawSound], most: int, samples: int) -> np.ndarray:
    """int16 (N, samples): the beginnings of at most `most` sounds, evenly spaced among those that
    are long enough, so that few of them are of one recording."""
    long_enough = [sound.samples[:samples] for sound in sounds if len(sound.samples) >= samples]
    if not long_enough:
        return np.zeros((0, samples), np.int16)
    places = np.linspace(0, len(long_enough) - 1, min(most, len(long_enough)))
    return np.stack([long_enough[round(place)] for place in places])
