"""What raters are asked of a pair: the five questions of VideoPoet's comparison by people, in words of our own."""

from __future__ import annotations

import dataclasses

LEFT, TIE, RIGHT = "left", "tie", "right"
ANSWERS = (LEFT, TIE, RIGHT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A question about the clips of a pair.

    Attributes:
      text: as the page asks it; the answer is a side, or a tie.
      needs_prompt: it can be asked only where the prompt is known.
    """

    name: str
    text: str
    needs_prompt: bool = False


QUESTIONS = {
    question.name: question
    for question in (
        Question(name="text_fidelity", text="Which clip fits the text better?", needs_prompt=True),
        Question(name="video_quality", text="Which clip looks better, frame by frame?"),
        Question(name="motion_interestingness", text="In which clip is the motion more interesting?"),
        Question(name="motion_realism", text="In which clip is the motion more realistic?"),
        Question(name="temporal_consistency", text="In which clip do things stay the same better over time?"),
    )
}
