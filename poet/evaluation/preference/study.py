"""A study on disk: a folder `page` that any web server may serve, and `key.json`, which says what it hides.

STUDY/page/index.html, page.js, page.css, study.js     what raters see: no names of systems, no right answers
STUDY/page/clips/0000.mp4 ...                           in an order that says nothing
STUDY/key.json                                          systems, trials, the trials of each rater
STUDY/answers.jsonl                                     what raters said, see `answers`
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poet.evaluation.preference.questions import LEFT, QUESTIONS, RIGHT
from poet.evaluation.preference.ruins import RUINS
from poet.media import write_text
from poet.runs import manifest
from poet.spec import UserError, read_object

FORMAT = 1
KEY, PAGE, CLIPS, PUBLIC = "key.json", "page", "clips", "study.js"
PAIR, CHECK, TRAINING = "pair", "check", "training"
# What a twin is called where the name of a system would stand.
INTACT = "intact"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """What a rater sees at a time.

    Attributes:
      kind: `PAIR`, `CHECK` (a clip beside its ruined twin), or `TRAINING` (the same, with the answer explained).
      name: of the clips.
      prompt: '' where it is not known.
      left, right: the systems; of twins `INTACT` and the name of a ruin.
      left_clip, right_clip: files below the page.
    """

    kind: str
    name: str
    prompt: str
    left: str
    right: str
    left_clip: str
    right_clip: str

    @property
    def intact(self) -> str:
        """The side of the intact twin."""
        return LEFT if self.left == INTACT else RIGHT

    @property
    def ruin(self) -> str:
        """The name of the twin's ruin."""
        return self.right if self.left == INTACT else self.left

    def public(self) -> dict[str, Any]:
        """What the page may know: the right answers of training pairs alone."""
        found: dict[str, Any] = {"left": self.left_clip, "right": self.right_clip, "prompt": self.prompt}
        if self.kind == TRAINING:
            ruin = RUINS[self.ruin]
            hint = ruin.explanation.format(side=self.intact)
            found |= {"hint": hint, "expected": dict.fromkeys(ruin.decides, self.intact)}
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A study.

    Attributes:
      id: 16 hex characters; answers carry it.
      systems: their names, at least two.
      questions: names of what is asked of each pair.
      trials: number -> trial, such as 't012'.
      raters: of each rater the numbers of trials, in order.
      made: how it was made: seed, what was fitted, left out or unreadable.
    """

    id: str
    systems: tuple[str, ...]
    questions: tuple[str, ...]
    trials: Mapping[str, Trial]
    raters: tuple[tuple[str, ...], ...]
    made: Mapping[str, Any]

    def public(self) -> dict[str, Any]:
        """What the page may know."""
        return {
            "format": FORMAT,
            "id": self.id,
            "questions": [{"name": name, "text": QUESTIONS[name].text} for name in self.questions],
            "trials": {number: trial.public() for number, trial in self.trials.items()},
            "raters": [list(trials) for trials in self.raters],
        }

    def write(self, folder: Path) -> None:
        """Writes `KEY` and the page's data; the page itself and its clips are not its business."""
        write_text(folder / KEY, json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1))
        data = json.dumps(self.public()).replace("<", "\\u003c")
        write_text(folder / PAGE / PUBLIC, f"window.STUDY = {data};\n")


def read(path: str | Path) -> Study:
    """The study in a folder, whose files are compared with their hashes; UserError for another thing or version."""
    folder = Path(path).expanduser()
    if not (folder / KEY).is_file():
        raise UserError(f"{path} is no study: it has no {KEY}; `poet prefer make` makes one")
    manifest.check_listed(folder)
    found = read_object(folder / KEY)
    version = found.pop("format", None)
    if version != FORMAT:
        raise UserError(
            f"the study {path} has format {version}, this version of poet reads {FORMAT}: make it again with "
            "`poet prefer make`, or use the version that made it"
        )
    trials = {number: Trial(**trial) for number, trial in found["trials"].items()}
    raters = tuple(map(tuple, found["raters"]))
    lists = {name: tuple(found[name]) for name in ("systems", "questions")}
    return Study(id=found["id"], trials=trials, raters=raters, made=found["made"], **lists)
