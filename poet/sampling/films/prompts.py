"""Texts of a film that change by time."""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections.abc import Sequence

from poet.spec import UserError

_TIMED = re.compile(r"\s*(\d+(?:\.\d+)?)\s*:\s*(.*)", re.S)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Prompts by time.

    Attributes:
      starts_s: when each begins, in seconds of the film; rising from 0.
      prompts: as many texts.
    """

    starts_s: tuple[float, ...]
    prompts: tuple[str, ...]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Schedule:
        """The schedule of texts such as 'a dog' (from the beginning) and '3.5: it begins to rain'; it may be empty.

        Raises UserError for an empty text, a time that comes twice, or none for the beginning.
        """
        timed: dict[float, str] = {}
        for text in texts:
            found = _TIMED.fullmatch(text)
            start, prompt = (float(found[1]), found[2].strip()) if found else (0.0, text.strip())
            if not prompt:
                raise UserError(f"prompt {text!r} is empty: give a text, as 'a dog runs' or '3: it begins to rain'")
            if start in timed:
                raise UserError(
                    f"two prompts begin at {start:g} s, {timed[start]!r} and {prompt!r}: begin later ones with their "
                    "seconds, as '3: it begins to rain'"
                )
            timed[start] = prompt
        if timed and 0.0 not in timed:
            raise UserError(f"the first prompt begins at {min(timed):g} s: give one for 0 s, as '0: a dog runs'")
        starts = sorted(timed) or [0.0]
        return cls(tuple(starts), tuple(timed.get(start, "") for start in starts))

    def at(self, seconds: float) -> str:
        """The prompt of a moment; '' in a film without text."""
        return self.prompts[max(bisect.bisect_right(self.starts_s, seconds) - 1, 0)]

    def check_length(self, seconds: float) -> None:
        """Raises UserError for a prompt that begins when the film is over."""
        if self.starts_s[-1] >= seconds:
            raise UserError(
                f"prompt {self.prompts[-1]!r} begins at {self.starts_s[-1]:g} s of a film of {seconds:g} s: "
                "lengthen it, or let the prompt begin earlier"
            )
