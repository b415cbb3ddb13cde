"""Folders of this machine, brought into a bucket: whole, or not to be seen."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from poet.runs.buckets.files import Entry, Place, crc32c, each


def publish(
    folder: Path, place: Place, last: str, check: Callable[[], None] = lambda: None, spared: Collection[str] = ()
) -> int:
    """Makes a place in a bucket hold what a folder holds; returns how many bytes were sent.

    The file `last` says that the others are whole: it is deleted there before anything changes, and sent when all else
    is there.  What a killed process sent is not sent again.

    Args:
      check: called before anything is deleted, and before `last` is sent; what it raises ends the work.
      spared: files there that are left as they are.

    Raises:
      As `poet.runs.buckets.files.retried`.
    """
    ours = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    theirs = place.listed()
    changed = {name: path for name, path in ours.items() if not _equal(path, theirs.get(name))}
    strange = theirs.keys() - ours.keys() - set(spared)
    if not changed and not strange:
        return 0
    if last in theirs:
        check()
        place.delete(last)
    changed[last] = ours[last]
    each(lambda name: place.upload(changed[name], name), changed.keys() - {last})
    check()
    each(place.delete, strange)
    place.upload(changed[last], last)
    return sum(path.stat().st_size for path in changed.values())


def withdraw(place: Place, last: str) -> None:
    """Deletes what `publish` sent, first the file that says it is whole."""
    place.delete(last)
    each(place.delete, place.listed())


def _equal(file: Path, entry: Entry | None) -> bool:
    """Whether a file of the bucket is this one, as far as its checksum says."""
    return bool(entry and entry.crc32c and entry.size == file.stat().st_size and entry.crc32c == crc32c(file))
