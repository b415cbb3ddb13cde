"""The output folder of a command at gs://: written on this machine, and in the bucket when it is whole."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from poet.runs import exits, lease, manifest
from poet.runs.buckets import mirror
from poet.runs.buckets.files import Entry, Place
from poet.runs.buckets.upload import publish
from poet.runs.run import steps_among
from poet.spec import Failure, UserError

_LOG = logging.getLogger(__name__)


class Unsent(Failure):
    """An output that is whole, but on this machine alone."""

    def __init__(self, url: str, folder: Path, cause: Exception):
        super().__init__(
            f"{cause}; the output lies in {folder}: gcloud storage rsync -r {folder} {url} brings it there"
        )
        self.exit_code = exits.of(cause)


@contextlib.contextmanager
def published(url: str, writes: Callable[[], bool] = lambda: True) -> Iterator[Path]:
    """A folder of this machine to write in, which is in the bucket when the block ends, and then here no more.

    It begins with what the command must know of the place: the MANIFEST of an earlier output, or all files where there
    is none, so that a command that goes on where it was does so on any machine.  What an error leaves stays here for
    the next run.

    Args:
      writes: asked at the end: whether this process sends the folder, and not another one of the same command.

    Raises:
      UserError: it is no place at gs:// that can be written.
      Unsent: the output could not be sent, or another process wrote to the place meanwhile.
    """
    place, folder = Place(url.rstrip("/"), "--out"), mirror.workdir(url)
    _check_writable(place)
    before = place.listed()
    _refuse_others(place, before)
    _bring(place, before, folder)
    mark = _mark(folder)
    try:
        yield folder
    except BaseException:
        if mark and _mark(folder) == mark:  # Of what lies there, not here.
            (folder / manifest.NAME).unlink()
        raise
    if writes() and folder.is_dir():
        _send(place, before, folder)


def _check_writable(place: Place) -> None:
    """Before any work: writes a file beside the folder, and deletes it again."""
    if not place.conditional:
        raise UserError(
            f"--out={place.url}: an output may lie in a folder or at gs://; mount another bucket, and give the path"
        )
    above, _, name = place.url.rpartition("/")
    if above.endswith("/"):
        raise UserError(f"--out={place.url} names a bucket alone: give gs://BUCKET/FOLDER")
    probe = f".{name}.{secrets.token_hex(8)}"
    Place(above, "--out").write(probe, b"")
    Place(above, "--out").delete(probe)


def _refuse_others(place: Place, there: Collection[str]) -> None:
    """Raises UserError for the place of a run or a token store, and for one in a folder whose every file is listed."""
    if {lease.FILE, "manifest.json"} & set(there) or steps_among(there):
        raise UserError(f"--out={place.url} holds a run or a token store: give another folder")
    parts = place.url.split("/")
    for count in range(4, len(parts)):
        above = Place("/".join(parts[:count]), "--out")
        if above.entry(manifest.NAME):
            raise UserError(
                f"--out={place.url} lies in {above.url}, whose MANIFEST lists all of its files: give one outside it"
            )


def _bring(place: Place, there: dict[str, Entry], folder: Path) -> None:
    """Makes the folder say what the place holds, unless it has what an earlier run left."""
    here = folder.is_dir() and any(folder.iterdir())
    if manifest.NAME in there:
        folder.mkdir(parents=True, exist_ok=True)
        place.download(manifest.NAME, there[manifest.NAME], folder / manifest.NAME)
    elif there and not here:
        mirror.fill(place, there, folder, final=folder)


def _mark(folder: Path) -> bytes:
    try:
        return (folder / manifest.NAME).read_bytes()
    except FileNotFoundError:
        return b""


def _send(place: Place, before: dict[str, Entry], folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    whole = folder / manifest.NAME
    last = whole if whole in files else max(files, key=os.path.getmtime)
    try:
        if place.listed() != before:
            raise UserError(f"--out={place.url} was written by another process meanwhile")
        size = publish(folder, place, last.relative_to(folder).as_posix())
    except Exception as error:
        raise Unsent(place.url, folder, error) from error
    shutil.rmtree(folder)
    _LOG.warning("published %s: %.1f MB", place.url, size / 1e6)
