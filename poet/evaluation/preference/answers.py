"""What raters said: a line of JSON for each answer, on the disk before the page hears that it is kept.

    {"study": "1f0c...", "rater": 1, "trial": "t012", "question": "video_quality", "answer": "left", "at": "2026-..."}

A later answer to the same question replaces an earlier one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from poet.evaluation.preference.questions import ANSWERS
from poet.evaluation.preference.study import Study
from poet.spec import UserError, limited

FILE = "answers.jsonl"
# (rater, number of a trial, name of a question) -> a side or a tie.
Answers = dict[tuple[int, str, str], str]


@dataclasses.dataclass(kw_only=True)
class Book:
    """Answers that were read.

    Attributes:
      answers: the last of each.
      refused: line -> why it does not count, such as 'answers.jsonl:17'.
      lines: that were read.
    """

    answers: Answers = dataclasses.field(default_factory=dict)
    refused: dict[str, str] = dataclasses.field(default_factory=dict)
    lines: int = 0


def problem(study: Study, found: Any) -> str:
    """Why an answer does not belong to a study; '' if it does."""
    if not isinstance(found, dict):
        return "it is no JSON object"
    if found.get("study") != study.id:
        return f"it is of the study {found.get('study')!r}, not {study.id!r}"
    rater = found.get("rater")
    if type(rater) is not int or not 1 <= rater <= len(study.raters):
        return f"rater must be a number from 1 to {len(study.raters)}, got {rater!r}"
    if found.get("trial") not in study.raters[rater - 1]:
        return f"rater {rater} has no trial {found.get('trial')!r}"
    if found.get("question") not in study.questions:
        return f"question must be one of {', '.join(study.questions)}, got {found.get('question')!r}"
    return "" if found.get("answer") in ANSWERS else f"answer must be one of {', '.join(ANSWERS)}"


def read(study: Study, files: Iterable[Path]) -> Book:
    """The answers of files, later ones last; what does not belong to the study is refused line by line.

    Raises:
      UserError: a file cannot be read.
    """
    book = Book()
    for file in files:
        try:
            lines = limited(file).read_bytes().split(b"\n")
        except OSError as error:
            raise UserError(f"answers cannot be read from {file}: {error.strerror}") from None
        for number, line in enumerate(lines, 1):
            if line.strip():
                _take(study, book, f"{file.name}:{number}", line)
    return book


def _take(study: Study, book: Book, where: str, line: bytes) -> None:
    book.lines += 1
    try:
        found = json.loads(line)
    except ValueError:
        book.refused[where] = "it is no JSON: a write that was cut short leaves such a line"
        return
    if why := problem(study, found):
        book.refused[where] = why
    else:
        book.answers[found["rater"], found["trial"], found["question"]] = found["answer"]


class Writer:
    """Appends answers to a file; each is on the disk when `add` returns.  Threads may share it."""

    def __init__(self, file: Path) -> None:
        self._lock = threading.Lock()
        self._file = open(file, "ab")
        if self._file.tell() and file.read_bytes()[-1:] != b"\n":  # Of a write that was cut short.
            self._write(b"\n")

    def add(self, study: Study, rater: int, trial: str, question: str, answer: str) -> None:
        """Appends one answer."""
        fields = {"study": study.id, "rater": rater, "trial": trial, "question": question, "answer": answer}
        line = json.dumps(fields | {"at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}) + "\n"
        with self._lock:
            self._write(line.encode())

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
