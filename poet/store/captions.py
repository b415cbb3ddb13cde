"""`captions.jsonl`: one JSON object a line, for each file of a folder of media.

What is odd in one line concerns its clip alone: it is mended, or the clip is skipped with the number of
the line.  A field that nobody reads is refused, for it stands in every line.
"""

from __future__ import annotations

import dataclasses
import json
import posixpath
import unicodedata
from collections.abc import Callable
from typing import Any

from poet.spec import UserError, near_names
from poet.store import texts

CAPTIONS_FILE = "captions.jsonl"
FIELDS = ("file", "caption", "split", "kind")
DEFAULT_SPLIT = "train"
EXAMPLE = '{"file": "clips/a.mp4", "caption": "...", "split": "train"}'
# What other programs call our fields.
_CALLED = {
    "file": ("path", "filename", "file_name", "video", "video_path", "audio", "audio_path", "name"),
    "caption": ("text", "prompt", "description", "title", "transcript", "sentence", "captions"),
    "split": ("subset", "partition", "fold"),
    "kind": ("type", "class", "label", "category"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One item of a folder.

    file: its path below the folder as the system spells it.  kind: such as 'speech', or ''.
    broken: why it gives nothing, '' if it does.  mended: what was done to the
    caption and where it stands, or ''.
    """

    file: str
    caption: str = ""
    split: str = DEFAULT_SPLIT
    kind: str = ""
    broken: str = ""
    mended: str = ""

    @property
    def key(self) -> str:
        """The file, printable."""
        return texts.readable(self.file)


def parse(name: str, raw: bytes, size: Callable[[str], int]) -> list[Line]:
    """The lines of a file `name` with these bytes; blank ones do not count.

    A line that cannot be read is of the split of the line before it.

    Args:
        size: bytes of a file below the folder, -1 where there is none.

    Raises:
        UserError: an unknown field, or no line that can be read; with the number of the line.
    """
    found: list[Line] = []
    first: dict[str, int] = {}
    split = None
    for number, content in enumerate(_lines(name, raw), start=1):
        if not content.strip():
            continue
        where = f"{CAPTIONS_FILE} line {number}"
        try:
            line = _line(name, number, content, size)
            if line.file in first:
                raise _Broken("duplicate", f"{line.key!r} stands in line {first[line.file]}")
            first[line.file] = number
            split = line.split
        except _Broken as error:
            file = f"{where}: {error.file}" if error.file else where
            line = Line(file=file, split=split or "", broken=f"{error.kind}: {where}: {error}")
        found.append(line)
    if split is None:
        what = f"the first: {found[0].broken}" if found else "it has none"
        raise UserError(f"{name} has no line that can be read ({what}); a line is {EXAMPLE}")
    before = next(line.split for line in found if line.split)
    return [line if line.split else dataclasses.replace(line, split=before) for line in found]


class _Broken(Exception):
    """A line that gives no item: the kind of its fault, what it is, and the file if it names one."""

    def __init__(self, kind: str, what: str, file: str = "") -> None:
        super().__init__(what)
        self.kind, self.file = kind, file


def _lines(name: str, raw: bytes) -> list[bytes]:
    try:
        return texts.lines(raw)
    except UnicodeDecodeError as error:
        raise UserError(f"{name} cannot be read: {error}; save it as UTF-8") from None


def _line(name: str, number: int, raw: bytes, size: Callable[[str], int]) -> Line:
    try:
        # Names in another encoding stand here as the system has them.
        values = json.loads(raw.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise _Broken("broken caption", f"not JSON ({error})") from None
    if not isinstance(values, dict):
        raise _Broken("broken caption", "no object with a file")
    _refuse_unknown(f"{name} line {number}", values)
    values = {field: value for field, value in values.items() if value is not None}
    for field, value in values.items():
        if not isinstance(value, str):
            raise _Broken("broken caption", f"{field} is {value!r:.60}, not a string")
    if not values.get("file"):
        raise _Broken("broken caption", "no object with a file")
    file = _existing(values.pop("file"), size)
    caption = values.pop("caption", "")
    if any("\udc80" <= letter <= "\udcff" for letter in caption):
        raise _Broken("broken caption", "not UTF-8", texts.readable(file))
    mended = texts.repaired(caption)
    values = {field: texts.readable(value) for field, value in values.items()}
    change = f"caption repaired: {CAPTIONS_FILE} line {number}" if mended != caption else ""
    return Line(file=file, caption=mended, mended=change, **values)


def _refuse_unknown(where: str, values: dict[str, Any]) -> None:
    for field in values:
        if field in FIELDS:
            continue
        called = next((ours for ours, theirs in _CALLED.items() if field.lower() in theirs), "")
        hint = f" (it is called {called!r} here)" if called else near_names(field.lower(), FIELDS)
        raise UserError(
            f"{where}: unknown field {texts.readable(field)!r}{hint}; a line is {EXAMPLE}. Rename or "
            "remove it in all lines"
        )


def _existing(given: str, size: Callable[[str], int]) -> str:
    """The path of a file that exists below the folder, spelled in one way."""
    file = posixpath.normpath(given)
    shown = texts.readable(given)
    if posixpath.isabs(file) or file.split("/")[0] in ("..", "."):
        raise _Broken("outside", f"{shown!r} does not lie in the folder", shown)
    # One system composes accents in names, the other takes them apart.
    for spelled in dict.fromkeys((file, *(unicodedata.normalize(f, file) for f in ("NFC", "NFD")))):
        if size(spelled) >= 0:
            return spelled
    raise _Broken("no such file", f"there is no file {shown!r}", shown)
