"""Files of others, read whole: none is larger than such a file ever is, and nothing in one grows when it is read."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import stat
from typing import Any

from poet.spec.base import UserError, from_stored

# Bytes of the largest file that is read: of what people write; of records, tables and vocabularies; of lists of all
# clips of a data set.
WRITTEN, RECORD, LISTING = 2**20, 2**26, 2**31


def limited(file: pathlib.Path, most: int = RECORD) -> pathlib.Path:
    """The path of a file to be read whole, which need not be there.

    Raises:
      UserError: it has more bytes than `most`, or is a pipe or a device, which might never end.
    """
    try:
        found = os.stat(file)
    except (OSError, ValueError):
        return file  # Reading it says why.
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise UserError(f"{file} is a pipe or device: give a file")
    if stat.S_ISREG(found.st_mode):
        check_size(str(file), found.st_size, most)
    return file


def check_size(name: str, size: int, most: int = RECORD) -> None:
    """Raises UserError for something of more bytes than may be read into memory."""
    if size > most:
        raise UserError(f"{name} has {size / 2**20:,.1f} MiB, larger than the {most >> 20} MiB that are read of it")


def parse_yaml(text: str) -> Any:
    """What a text in YAML holds, of plain values, lists and mappings.

    Raises:
      UserError: it is not YAML, has a key twice, or an alias (`*name`): few lines of those can stand for any amount.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                event = self.peek_event()
                raise UserError(f"the alias *{event.anchor} (line {event.start_mark.line + 1}): write out what it is")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = collections.Counter(key.value for key, _ in node.value if isinstance(key.value, str))
            if twice := next((key for key, count in keys.items() if count > 1), None):
                raise UserError(f"{twice!r} stands twice (line {node.start_mark.line + 1}): keep one")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"not YAML: {' '.join(str(error).split())[:300]}") from None


def read_object(file: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file; UserError, naming the file, for whatever else is there."""
    limited(file)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged: not JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} is damaged: it holds no JSON object")
    return values


def read_json(cls: type, file: pathlib.Path) -> Any:
    """The spec in a JSON file of `to_dict`; UserError, naming the file, for whatever else is there."""
    values = read_object(file)
    try:
        return from_stored(cls, values)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
