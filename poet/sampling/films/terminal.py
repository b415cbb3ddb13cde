"""The commands of `poet edit`, lines of text from a terminal or a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import ClassVar

from poet.sampling.films import camera
from poet.sampling.films.edit import CANDIDATE, CUT, Session
from poet.sampling.films.sampler import Wish
from poet.spec import PromptSpec, UserError, choose

HELP = """  say TEXT        candidates with this text; TEXT | TEXT | ...: one for each
  more            further candidates with the same texts
  NUMBER          choose a candidate, or go back to any earlier clip and branch from there
  at FRAME        the next candidates begin after this frame of the film; at end
  camera MOVE     add a movement to the texts: pan left, zoom in, ...; camera none
  count N         candidates at a time
  undo            back to the clip before
  tree            all clips of the session
  film            write the film of the current clip
  quit"""


@dataclasses.dataclass
class Terminal:
    """The state between two lines.

    Attributes:
      session: the session that they edit.
      count: candidates of a single text.
      prompt: texts added to every prompt.
      record: called with the files of a written film; returns them and its record.
    """

    session: Session
    count: int = 4
    prompt: PromptSpec = PromptSpec()
    record: Callable[[list[Path]], list[Path]] = list
    texts: tuple[str, ...] = ("",)
    at: int | None = None
    move: str = ""

    def run(self, lines: Iterable[str], say: Callable[[str], None]) -> None:
        """Executes lines until `quit` or their end; errors are printed, and the next line follows."""
        for line in lines:
            if line.strip().lower() in ("quit", "exit", "q"):
                return
            try:
                answer = self.execute(line)
            except UserError as error:
                answer = f"error: {error}"
            if answer:
                say(answer)

    def execute(self, line: str) -> str:
        """Executes a line and returns the answer.  Raises UserError for an invalid line."""
        word, _, rest = line.strip().partition(" ")
        if not word:
            return ""
        if word.isdecimal():
            return self._choose(int(word))
        return choose(word.lower(), self._COMMANDS, "command")(self, rest.strip())

    def _say(self, text: str) -> str:
        self.texts = tuple(part.strip() for part in text.split("|"))
        return self._more("")

    def _more(self, _: str) -> str:
        texts = self.texts * self.count if len(self.texts) == 1 else self.texts
        phrase = camera.phrase(self.move, self.prompt.camera)
        prompts = [self.prompt.complete(text, phrase) for text in texts]
        wishes = [Wish(prompt=prompt, negative=self.prompt.negative_for(bool(prompt))) for prompt in prompts]
        found = self.session.propose(wishes, at=self.at)
        return f"candidates {found[0]}..{found[-1]}: {self.session.folder / 'sheet.png'}"

    def _choose(self, number: int) -> str:
        self.session.choose(number)
        self.at = None
        return self._where()

    def _where(self) -> str:
        frames = self.session.frames()
        seconds = frames / self.session.sampler.windows.rate_hz
        return f"clip {self.session.current}: a film of {frames} frames, {seconds:.2f} s"

    def _at(self, text: str) -> str:
        if text == "end":
            self.at = None
            return self._where()
        frames = self.session.frames()
        if not text.isdecimal() or not 1 <= int(text) <= frames:
            raise UserError(f"at {text}: give a number of frames in 1..{frames}, or 'end'")
        self.at = int(text)
        return f"the next candidates begin after frame {text} of {frames}"

    def _camera(self, text: str) -> str:
        self.move = "" if text in ("", "none") else text
        return camera.phrase(self.move, self.prompt.camera) or "no movement"

    def _count(self, text: str) -> str:
        if not text.isdecimal() or not 1 <= int(text) <= 64:
            raise UserError(f"count {text}: give a number in 1..64")
        self.count = int(text)
        return f"{text} candidates at a time"

    def _undo(self, _: str) -> str:
        self.session.undo()
        self.at = None
        return self._where()

    def _tree(self, _: str) -> str:
        lines = []
        for number, node in enumerate(self.session.nodes):
            what = {CANDIDATE: node.wish.prompt or "(no text)", CUT: f"cut after frame {node.at}"}.get(
                node.kind, "begin"
            )
            mark = "*" if number == self.session.current else " "
            lines.append(f"{mark}{number:4}  from {node.parent if node.parent >= 0 else '-':>4}  {what}")
        return "\n".join(lines)

    def _film(self, _: str) -> str:
        return "\n".join(map(str, self.record(self.session.write())))

    def _help(self, _: str) -> str:
        return HELP

    _COMMANDS: ClassVar[Mapping[str, Callable[[Terminal, str], str]]] = {
        "say": _say,
        "more": _more,
        "at": _at,
        "camera": _camera,
        "count": _count,
        "undo": _undo,
        "tree": _tree,
        "film": _film,
        "help": _help,
    }
