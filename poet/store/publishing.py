"""A token store that is written at gs://: in a folder of this machine, and published.

What is finished of the work goes to the bucket beside it, so that another machine goes on there; at the end the shards,
and the manifest last.  Its lease stays, given back, as `lease.json`.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from poet.runs import lease
from poet.runs.buckets import lease as bucket_lease
from poet.runs.buckets import mirror
from poet.runs.buckets.files import Place, is_url
from poet.runs.buckets.lease import Lease
from poet.runs.buckets.upload import publish
from poet.spec import UserError
from poet.store import reader
from poet.store.manifest import MANIFEST_FILE
from poet.store.runners import Runner, Serial, Workers

_LOG = logging.getLogger(__name__)
PARTIAL_FOLDER = ".partial"
# Seconds between two looks for work that is finished.
_SEND_S = 60.0


@contextlib.contextmanager
def hold(path: str, runner: Runner) -> Iterator[Path]:
    """The folder to write a store in, for the duration of a block, after which it is in the bucket.

    Of a store that is complete there it is a copy, which must not be changed.

    Raises:
      UserError: the runner's processes do not all work on this machine, the place holds other files, or another
        process writes there; as `poet.runs.buckets.lease.hold`.
    """
    if not is_url(path):
        yield Path(path)
        return
    if not isinstance(runner, (Serial, Workers)):
        raise UserError(
            f"STORE.path = {path!r}: several processes gather a store in a folder that all of them see: mount the "
            "bucket, or give a folder and copy it (gcloud storage rsync)"
        )
    place, folder = Place(path.rstrip("/"), "STORE.path"), mirror.workdir(path)
    with lease.hold(folder.parent, what="store", called=path):
        if _is_complete(place):
            yield reader.folder_of(path)
            return
        copy = mirror.Copy.of(folder.parent)
        with bucket_lease.hold(place, copy.name, what="store") as (held, same):
            if not same:
                _fetch(place, folder)
            held.claim()
            over = threading.Event()
            sender = threading.Thread(target=_send, args=(place, folder, held, over), name="publisher", daemon=True)
            sender.start()
            try:
                yield folder
            finally:
                over.set()
                sender.join()  # Else a file that is on its way would arrive in the finished store.
            size = publish(folder, place, MANIFEST_FILE, held.check, spared=(lease.FILE,))
            _LOG.info("published %s: %.1f MB", path, size / 1e6)


def _is_complete(place: Place) -> bool:
    """Whether a store is there; raises UserError for what is none."""
    names = place.listed()
    if names and not {MANIFEST_FILE, lease.FILE} & names.keys():
        raise UserError(f"{place.url} is not empty and holds no token store; choose another STORE.path")
    return MANIFEST_FILE in names


def _fetch(place: Place, folder: Path) -> None:
    """What other machines finished."""
    shutil.rmtree(folder, ignore_errors=True)
    partial = f"{PARTIAL_FOLDER}/"
    found = {name[len(partial) :]: entry for name, entry in place.listed().items() if name.startswith(partial)}
    if found:
        inner = folder / PARTIAL_FOLDER
        mirror.fill(Place(f"{place.url}/{PARTIAL_FOLDER}", place.field), found, inner, final=inner)


def _send(place: Place, folder: Path, held: Lease, over: threading.Event) -> None:
    """Publishes the files of finished ranges, until it is over; what fails is tried again."""
    sent: dict[str, int] = {}
    while not over.wait(_SEND_S):
        try:
            _send_finished(place, folder, held, sent)
        except Exception as error:  # What lasts, the end will say.
            _LOG.warning("%s", error)


def _send_finished(place: Place, folder: Path, held: Lease, sent: dict[str, int]) -> None:
    """Publishes files that are whole, which have no dot before their names; an index after what it lists.

    Args:
      sent: name -> time of change of those that are there, which is brought up to date.
    """
    for path in sorted((folder / PARTIAL_FOLDER).rglob("[!.]*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or path.name == lease.FILE or sent.get(name) == path.stat().st_mtime_ns:
            continue
        held.check()
        mark = path.stat().st_mtime_ns
        place.upload(path, name)
        sent[name] = mark
