"""Text that others wrote: byte-order marks, halves of characters, names that are not UTF-8."""

from __future__ import annotations

import codecs
import collections
import pathlib
from collections.abc import Iterable

from poet.spec import UserError

# Names that a line of a report gives of each kind.
NAMED = 3
_WIDE_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # begins as UTF-16's mark does, so it comes first
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def decoded(raw: bytes) -> str:
    """The text without its byte-order mark, which marks UTF-16 and UTF-32; UTF-8 without one.

    Raises:
        UnicodeDecodeError: it is not in that encoding.
    """
    for mark, encoding in _WIDE_MARKS.items():
        if raw.startswith(mark):
            return raw.decode(encoding)
    return raw.decode("utf-8-sig")


def lines(raw: bytes) -> list[bytes]:
    """The lines of a text file in UTF-8, from any encoding that `decoded` knows.

    A line keeps bytes that are not UTF-8, for its reader to judge.
    """
    if raw.startswith(tuple(_WIDE_MARKS)):
        raw = decoded(raw).encode("utf-8", "surrogatepass")
    # Files with marks that were joined have one at the head of a line.
    return [line.removeprefix(codecs.BOM_UTF8) for line in raw.splitlines()]


def repaired(text: str) -> str:
    """The text with every lone surrogate replaced by U+FFFD; pairs of them become their character.

    >>> repaired("a cat \\ud83d")
    'a cat \\ufffd'
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def readable(name: str) -> str:
    """A name that can be printed and hashed: bytes that are not UTF-8 are spelled out."""
    return name.encode("utf-8", "backslashreplace").decode()


def check_name(field: str, path: str) -> None:
    """Raises UserError for a path that TensorFlow cannot open: one that is not UTF-8."""
    if readable(path) != path:
        raise UserError(f"{field} = {readable(path)!r} is not UTF-8; rename that folder")


def some(names: Iterable[str]) -> str:
    """'a.txt, b.txt, c.txt, ...'"""
    names = list(names)
    more = ", ..." if len(names) > NAMED else ""
    return ", ".join(map(readable, names[:NAMED])) + more


def by_suffix(files: Iterable[str]) -> str:
    """'.txt 9 (a.txt, b.txt, c.txt, ...), hidden 1 (.d.mp4)', frequent ones first."""
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for file in files:
        path = pathlib.PurePosixPath(file)
        kind = "hidden" if path.name.startswith(".") else path.suffix.lower() or "no suffix"
        groups[kind].append(file)
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    return ", ".join(f"{readable(kind)} {len(found)} ({some(found)})" for kind, found in ordered)
