"""`poet prefer make`: folders of clips of two or more systems become a study."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poet import media
from poet.evaluation.preference import answers, clips, pairing, ruins, study
from poet.evaluation.preference.questions import QUESTIONS
from poet.evaluation.preference.study import CHECK, INTACT, PAIR, TRAINING, Study, Trial
from poet.media import MediaError
from poet.runs import outputs
from poet.runs.outputs import Output
from poet.spec import UserError

KIND = "preference study"
# The page's own files lie in this folder of the package.
_PAGE = Path(__file__).parent / "page"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a study is to be.

    Attributes:
      names: of the systems; () for those of their folders.
      by: how clips are paired, `clips.NAME` or `clips.PROMPT`.
      questions: names of those to ask; () for all that can be.
      raters: how many there will be.
      clips: compare so many names of clips, chosen by the seed; 0 is all.
      pairs_per_rater: 0 is all pairs.
      checks, training: pairs of each rater beside those.
      seconds: no clip is longer; 0 is no limit.
      rate_hz: of all clips; 0 is the least of them.
    """

    names: Sequence[str] = ()
    by: str = clips.NAME
    questions: Sequence[str] = ()
    raters: int = 7
    clips: int = 0
    pairs_per_rater: int = 0
    checks: int = 4
    training: int = 3
    seconds: float = 0.0
    rate_hz: float = 0.0
    seed: int = 0


def claim(out: str, folders: Sequence[str], overwrite: bool) -> Output:
    """The output folder; UserError where it cannot be written, or holds a study that has answers."""
    output = outputs.claim(out, KIND, overwrite=overwrite, inputs=folders)
    if (output.final / answers.FILE).is_file():
        raise UserError(f"--out={out} holds answers to an earlier study ({answers.FILE}): give another folder")
    return output


def make(folders: Sequence[str], wanted: Wanted, output: Output) -> Study:
    """Writes a study.

    Raises:
      UserError: folders that are missing, have no clips or share none that can be read; a question that is not known
        or cannot be asked.
    """
    systems, names, unpaired = clips.shared(clips.find(folders, wanted.names), wanted.by)
    asked = _questions(wanted, systems, names)
    rng = np.random.default_rng(wanted.seed)
    measured, unreadable = _measure(systems, names)
    kept = [name for name in names if (name, systems[0].name) in measured]
    if not kept:
        raise UserError(f"no pair of clips can be read: {'; '.join(unreadable.values())}")
    if wanted.clips and wanted.clips < len(kept):
        kept = sorted(rng.choice(kept, wanted.clips, replace=False).tolist())
    made: dict[str, Any] = {"unpaired": unpaired, "unreadable": unreadable, "seed": wanted.seed, "clips": len(kept)}
    with output:
        maker = _Maker(systems=systems, wanted=wanted, folder=output.folder, rng=rng)
        return maker.run(kept, {key: one for key, one in measured.items() if key[0] in set(kept)}, asked, made)


def _questions(wanted: Wanted, systems: Sequence[clips.System], names: Sequence[str]) -> tuple[str, ...]:
    """What to ask; text fidelity only where every prompt is known."""
    unknown = [name for name in wanted.questions if name not in QUESTIONS]
    if unknown:
        raise UserError(f"--questions: {', '.join(unknown)}: give some of {', '.join(QUESTIONS)}")
    lacking = [name for name in names if not clips.prompt(systems, name)]
    can = [name for name, question in QUESTIONS.items() if not (question.needs_prompt and lacking)]
    if cannot := [name for name in wanted.questions if name not in can]:
        raise UserError(
            f"{', '.join(cannot)} needs the prompt of every clip, {len(lacking)} have none, such as {lacking[0]}: add "
            f'captions.jsonl to a folder, a line {{"file": "{lacking[0]}.mp4", "caption": "..."}} each'
        )
    return tuple(name for name in can if not wanted.questions or name in wanted.questions)


Sizes = dict[tuple[str, str], clips.Measured]


def _measure(systems: Sequence[clips.System], names: Sequence[str]) -> tuple[Sizes, dict[str, str]]:
    """(name, system) -> its measures, of names that can be read of every system; and file -> why it cannot be."""
    measured: Sizes = {}
    unreadable = {}
    for name in names:
        found = {}
        for system in systems:
            try:
                found[name, system.name] = clips.measure(system.files[name])
            except MediaError as error:
                unreadable[f"{system.name}: {name}"] = str(error)
        if len(found) == len(systems):
            measured |= found
    return measured, unreadable


class _Maker:
    """Writes clips under numbers that say nothing, and gathers the trials that show them."""

    def __init__(self, *, systems: Sequence[clips.System], wanted: Wanted, folder: Path, rng: np.random.Generator):
        self.systems, self.wanted, self.folder, self.rng = systems, wanted, folder, rng
        self.rate_hz = 0.0
        self.numbered: dict[Trial, str] = {}
        self.numbers: list[int] = []
        self.files: dict[tuple[str, str], str] = {}

    def run(self, names: Sequence[str], measured: Sizes, asked: tuple[str, ...], made: dict[str, Any]) -> Study:
        (self.folder / study.PAGE / study.CLIPS).mkdir(parents=True)
        area, rate_hz = clips.target(list(measured.values()))
        self.rate_hz = self.wanted.rate_hz or rate_hz
        twins = 2 * (self.wanted.checks + self.wanted.training)
        self.numbers = self.rng.permutation(len(measured) + twins).tolist()
        motion, fitted = self._write_clips(names, measured, area)
        made |= {"area": area, "rate_hz": self.rate_hz, "fitted": fitted}
        made["formats"] = sorted({f"{one.width}x{one.height} at {one.rate_hz:.4g} Hz" for one in measured.values()})
        raters = self._raters(names, motion, asked, made)
        return self._finish(asked, raters, made)

    # --------------------------------------------------------------------------------- clips

    def _write_clips(self, names: Sequence[str], measured: Sizes, area: int) -> tuple[dict, dict[str, list[str]]]:
        """(name, system) -> levels of motion; and what was done -> to which clips."""
        motion, fitted = {}, {}
        for name in names:
            seconds = min(measured[name, system.name].seconds for system in self.systems)
            seconds = min(seconds, self.wanted.seconds or seconds)
            for system in self.systems:
                one = measured[name, system.name]
                spec = clips.fitted_spec(one, area, self.rate_hz, seconds)
                video, said = clips.read(system.files[name], spec, one)
                motion[name, system.name] = ruins.motion(video)
                self.files[name, system.name] = self._write(video)
                if said:
                    fitted.setdefault(said, []).append(f"{system.name}: {name}")
        return motion, fitted

    def _write(self, video: np.ndarray) -> str:
        """Writes the next clip; its path below the page.  All go the same way, so that files tell nothing."""
        path = f"{study.CLIPS}/{self.numbers.pop():04d}.mp4"
        media.write_mp4(self.folder / study.PAGE / path, video, self.rate_hz)
        return path

    # -------------------------------------------------------------------------------- trials

    def _add(self, trial: Trial) -> str:
        """The number of a trial, the same for the same trial."""
        return self.numbered.setdefault(trial, f"t{len(self.numbered):04d}")

    def _view(self, view: pairing.View) -> str:
        pair = view.pair
        sides = (pair.second, pair.first) if view.is_flipped else (pair.first, pair.second)
        return self._add(self._trial(PAIR, pair.name, sides, [self.files[pair.name, side] for side in sides]))

    def _trial(self, kind: str, name: str, sides: Sequence[str], paths: Sequence[str]) -> Trial:
        text = clips.prompt(self.systems, name)
        left, right = dict(left=sides[0], left_clip=paths[0]), dict(right=sides[1], right_clip=paths[1])
        return Trial(kind=kind, name=name, prompt=text, **left, **right)

    def _twins(self, kind: str, count: int, motion: dict, asked: Sequence[str]) -> list[tuple[str, str]]:
        """So many pairs of a clip and its ruined twin: the numbers of both arrangements of sides."""
        usable = [
            name
            for name, ruin in ruins.RUINS.items()
            if (ruin.checks or kind == TRAINING) and set(ruin.decides) & set(asked)
        ]
        lively = sorted(motion, key=motion.get, reverse=True)
        if motion[lively[0]] < ruins.LEAST_MOTION_LEVELS:
            usable = [name for name in usable if not ruins.RUINS[name].needs_motion]
        moving = [key for key in lively if motion[key] >= ruins.LEAST_MOTION_LEVELS]
        found = []
        for place in range(count if usable else 0):
            ruin = usable[place % len(usable)]
            among = moving if ruins.RUINS[ruin].needs_motion else lively
            key = among[int(self.rng.integers(len(among)))]
            found.append(self._twin(kind, key, ruin))
        return found

    def _twin(self, kind: str, key: tuple[str, str], ruin: str) -> tuple[str, str]:
        """The clip anew beside its twin: a check does not differ from a pair by a file that was seen before."""
        source = self.folder / study.PAGE / self.files[key]
        one = clips.measure(source)
        video, _ = clips.read(source, clips.fitted_spec(one, one.height * one.width, self.rate_hz, one.seconds), one)
        paths = self._write(video), self._write(ruins.RUINS[ruin].apply(video, self.rng))
        sides = INTACT, ruin
        both = [self._trial(kind, key[0], sides[::step], paths[::step]) for step in (1, -1)]
        return self._add(both[0]), self._add(both[1])

    def _raters(
        self, names: Sequence[str], motion: dict, asked: Sequence[str], made: dict[str, Any]
    ) -> list[list[str]]:
        wanted = self.wanted
        called = [system.name for system in self.systems]
        views = pairing.design(names, called, wanted.raters, wanted.pairs_per_rater, self.rng)
        checks = self._twins(CHECK, wanted.checks, motion, asked)
        training = self._twins(TRAINING, wanted.training, motion, asked)
        made |= {"checks": len(checks), "training": len(training), "pairs_per_rater": len(views[0])}
        made["wanted"] = dataclasses.asdict(wanted)
        return [self._rater(place, seen, checks, training) for place, seen in enumerate(views)]

    def _rater(
        self, place: int, views: Sequence[pairing.View], checks: Sequence[tuple], training: Sequence[tuple]
    ) -> list[str]:
        """The trials of a rater: training, then pairs with checks among them, whose sides differ between raters."""
        sides = iter([checks[i][(place + i) % 2] for i in self.rng.permutation(len(checks))])
        order = pairing.with_checks(len(views), len(checks), self.rng)
        main = [next(sides) if at is None else self._view(views[at]) for at in order]
        return [pair[(place + i) % 2] for i, pair in enumerate(training)] + main

    def _finish(self, asked: tuple[str, ...], raters: Sequence[Sequence[str]], made: dict[str, Any]) -> Study:
        """Renumbers the trials, so that numbers tell no kind, and writes what is left to write."""
        order = self.rng.permutation(len(self.numbered))
        called = {number: f"t{order[place]:04d}" for place, number in enumerate(self.numbered.values())}
        trials = dict(sorted((called[number], trial) for trial, number in self.numbered.items()))
        lists = tuple(tuple(called[number] for number in rater) for rater in raters)
        content = [{number: dataclasses.asdict(t) for number, t in trials.items()}, lists, asked, made]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
        names = tuple(system.name for system in self.systems)
        result = Study(id=digest, systems=names, questions=asked, trials=trials, raters=lists, made=made)
        for file in sorted(_PAGE.iterdir()):
            shutil.copyfile(file, self.folder / study.PAGE / file.name)
        result.write(self.folder)
        return result
