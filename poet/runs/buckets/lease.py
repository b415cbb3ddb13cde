"""One writer for a folder in a bucket: an object that its holder renews, and that nobody can write unseen.

Each write names the generation that it replaces, and the bucket refuses it where another process wrote since.  So of
two that want the lease one gets it, and a holder that was cut off for a while learns at its next write that another
took over.  No clocks are compared: a lease is stale where it was watched for `STALE_S` and not renewed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from poet.runs.buckets.files import Entry, Place
from poet.runs.lease import FILE, described
from poet.spec import Failure, UserError

_LOG = logging.getLogger(__name__)
# Seconds between two writes of a holder; without one for so long it is dead; between two looks of who waits.
RENEW_S, STALE_S, LOOK_S = 10.0, 60.0, 1.0


class Lost(Failure):
    """Another process took the lease over."""


class Lease:
    """The lease of a folder; `hold` makes one.

    Args:
      copy: names the folder of this machine that is published there.  Who holds that folder's own lock knows that an
        earlier holder with the same copy is dead, and that nobody wrote there since (`claim`).
    """

    def __init__(self, place: Place, copy: str, *, what: str, name: str = FILE):
        self._place, self._copy, self._what, self._name = place, copy, what, name
        self._claimed = ""
        self._started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._generation, self._renewed = "0", 0.0
        self._lock, self._over = threading.Lock(), threading.Event()
        self.lost: Lost | None = None

    def take(self) -> bool:
        """Returns once this process has it: whether the last holder published the same copy.

        Raises:
          UserError: another process holds it, nothing can be written there, or there is no such bucket.
        """
        watched, since = "", 0.0
        while True:
            generation, held = self._now()
            same = held.get("copy") == self._copy
            if not held.get("held") or same or (generation == watched and time.monotonic() - since > STALE_S):
                self._claimed = self._copy if same else ""
                if self._wrote(generation, held=True):
                    return same
                continue  # Another process was faster.
            if watched and generation != watched:
                raise UserError(
                    f"the {self._what} {self._place.url} is in use by another process ({described(held)}); stop it "
                    f"first, or choose another {self._what}"
                )
            if not watched:
                said = f"the {self._what} {self._place.url} was not given back by {described(held)}"
                _LOG.warning("%s: waiting up to %g s for a sign of it", said, STALE_S)
                watched, since = generation, time.monotonic()
            time.sleep(LOOK_S)

    def _now(self) -> tuple[str, dict[str, Any]]:
        """The generation, '0' of none, and what the lease says."""
        entry, found = _read(self._place, self._name)
        return (entry.generation if entry else "0"), found

    def _wrote(self, generation: str, *, held: bool) -> bool:
        """Writes over this generation; whether it still was the one."""
        fields = {"host": socket.gethostname(), "pid": os.getpid(), "started": self._started}
        fields |= {"held": held, "copy": self._claimed, "write": secrets.token_hex(8)}
        begin = time.monotonic()
        try:
            self._generation = self._place.write(self._name, json.dumps(fields).encode(), generation=generation)
        except FileExistsError:  # Or its answer was lost, and a driver tried again.
            generation, found = self._now()
            if found != fields:
                return False
            self._generation = generation
        self._renewed = begin
        return True

    def claim(self) -> None:
        """Says that the copy goes on from what the bucket holds; one that was not yet brought to it must not be taken
        for it after a kill."""
        self._claimed = self._copy
        self.renew()

    def renew(self) -> None:
        """Writes it anew; raises Lost where another process has it."""
        with self._lock:
            if self._over.is_set():
                return
            if self.lost is None and not self._wrote(self._generation, held=True):
                self.lost = Lost(
                    f"the {self._what} {self._place.url} was taken over by {described(self._now()[1])}: this process "
                    f"was cut off from the bucket for more than {STALE_S:g} s"
                )
        if self.lost:
            raise self.lost

    def check(self) -> None:
        """Before something is shown or deleted in the bucket: raises Lost where another process may have the lease."""
        if self.lost or time.monotonic() - self._renewed > STALE_S / 2:
            self.renew()

    def keep(self) -> None:
        """Renews it until `give_back`, in a thread; where the bucket does not answer it goes on trying."""
        while not self._over.wait(RENEW_S):
            try:
                self.renew()
            except Lost as error:
                _LOG.error("%s", error)
                return
            except Exception as error:  # Whoever uploads meets it, too, and ends the run.
                _LOG.warning("the lease of %s was not renewed: %s", self._place.url, error)

    def give_back(self) -> None:
        """Lets others take it; where that fails they wait until it is stale."""
        self._over.set()
        with self._lock:
            try:
                if self.lost is None:
                    self._wrote(self._generation, held=False)
            except Exception as error:
                _LOG.warning("the lease of %s could not be given back: %s", self._place.url, error)


def _read(place: Place, name: str) -> tuple[Entry | None, dict[str, Any]]:
    """A lease as it is now; what is none says nothing."""
    entry = place.entry(name)
    try:
        found = json.loads(place.read(name)) if entry else {}
    except (FileNotFoundError, ValueError):
        found = {}
    return entry, found if isinstance(found, dict) else {}


def holder(place: Place) -> tuple[str, bool | None]:
    """(who holds the lease of a folder, whether a process does), as `poet.runs.lease.holder`.

    None, where it was not renewed lately: by the clocks of the bucket and of this machine, which may differ.
    """
    entry, found = _read(place, FILE)
    if entry is None or not found.get("held"):
        return "", False
    return described(found), True if time.time() - entry.modified <= STALE_S else None


@contextlib.contextmanager
def hold(place: Place, copy: str, *, what: str = "work dir", name: str = FILE) -> Iterator[tuple[Lease, bool]]:
    """Holds the lease of a folder: (it, whether the last holder published the same copy).

    Raises:
      UserError: as `Lease.take`; or the bucket cannot be written conditionally.
    """
    if not place.conditional:
        raise UserError(
            f"{place.field} = {place.url!r}: a {what} may lie in a folder or at gs://; of another bucket mount it, and "
            "give the path"
        )
    lease = Lease(place, copy, what=what, name=name)
    same = lease.take()
    lease.renew()  # The right to replace objects is another than that to create them.
    threading.Thread(target=lease.keep, name="lease", daemon=True).start()
    try:
        yield lease, same
    finally:
        lease.give_back()
