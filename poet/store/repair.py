"""Damaged files of a finished store, made again from its source and put in their places."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Callable

from poet.spec import UserError
from poet.store import reader
from poet.store.manifest import MANIFEST_FILE, Manifest, read_json


def repair(path: str, rebuild: Callable[[str], Manifest]) -> list[str]:
    """Replaces what `reader.damaged_files` names; returns those names.

    Nothing changes unless every one of them comes out with the hash that the store's manifest says.

    Args:
        rebuild: writes the same store into another folder; returns its manifest.

    Raises:
        UserError: no store, a damaged manifest, or a source, network or library that gives other bytes now.
    """
    folder = pathlib.Path(path)
    file = folder / MANIFEST_FILE
    if not file.is_file():
        raise UserError(f"there is no token store in {path!r}: no {MANIFEST_FILE}")
    kept = read_json(Manifest, file)
    damaged = reader.damaged_files(folder, kept)
    if not damaged:
        return []
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.repair-", dir=folder.parent) as scratch:
        made = pathlib.Path(scratch) / "store"
        rebuild(str(made))
        if other := [name for name in damaged if name in reader.damaged_files(made, kept)]:
            raise UserError(
                f"the source encodes to other bytes for {', '.join(other)} than the store had: the source, a "
                "network or a library has changed; nothing was replaced. Tokenize again into an empty folder"
            )
        for name in damaged:
            os.replace(made / name, folder / name)
    reader.verify(path)
    return damaged
