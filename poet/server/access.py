"""Who may ask, and how often: API keys, a rate for each of them, and pages of other sites."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from poet.spec import UserError, limited

ENVIRONMENT = "POET_API_KEYS"
_LEAST_CHARACTERS = 16
# Buckets that are kept; the fullest go first.
_MOST_BUCKETS = 10_000
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def owner_of(key: str) -> str:
    """What the store has of a key."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


class Keys:
    """The keys of a service; without any, everybody is the owner ''."""

    def __init__(self, keys: Mapping[str, str] | None = None):
        """`keys`: name -> key."""
        # Looked up by digest: how long that takes tells nothing of a key.
        self._owners = {hashlib.sha256(key.encode()).digest(): owner_of(key) for key in (keys or {}).values()}

    def __bool__(self) -> bool:
        return bool(self._owners)

    @classmethod
    def read(cls, path: str, environment: Mapping[str, str] = os.environ) -> Keys:
        """The keys in a file, a line `NAME KEY` each, or in the environment as `NAME:KEY,NAME:KEY`.

        Raises UserError for a file that cannot be read, or keys that are short or come twice.
        """
        pairs = [part.split(":", 1) for part in environment.get(ENVIRONMENT, "").split(",") if part.strip()]
        where = ENVIRONMENT
        if path:
            where = f"--api_keys={path}"
            try:
                lines = limited(Path(path).expanduser()).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{where} cannot be read: {error}") from None
            pairs = [line.split(None, 1) for line in lines if line.strip() and not line.lstrip().startswith("#")]
            if not pairs:
                raise UserError(f"{where} holds no key: write a line `NAME KEY` for each, or drop the flag")
        keys: dict[str, str] = {}
        for number, pair in enumerate(pairs, 1):
            name, key = [*(part.strip() for part in pair), ""][:2]
            if not name or name in keys or len(key) < _LEAST_CHARACTERS or key in keys.values():
                raise UserError(
                    f"{where}: key {number} needs a name and a key of its own, at least {_LEAST_CHARACTERS} characters"
                )
            keys[name] = key
        return cls(keys)

    def owner(self, authorization: str) -> str | None:
        """The owner of an `Authorization` header; None for none of them."""
        if not self._owners:
            return ""
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        return self._owners.get(hashlib.sha256(key.strip().encode()).digest())


class Rates:
    """A bucket of requests for each owner or address, which fills at a rate."""

    def __init__(self, per_minute: float, now: Callable[[], float] = time.monotonic):
        self._per_s, self._most, self._now = per_minute / 60, max(per_minute, 1.0), now
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait_s(self, name: str) -> float:
        """Takes one from a bucket: 0; or seconds until there is one, which takes nothing."""
        with self._lock:
            now = self._now()
            held, since = self._buckets.pop(name, (self._most, now))
            held = min(self._most, held + (now - since) * self._per_s)
            if len(self._buckets) >= _MOST_BUCKETS:
                del self._buckets[next(iter(self._buckets))]  # The one that was asked of longest ago.
            self._buckets[name] = (held - 1 if held >= 1 else held, now)
            return 0.0 if held >= 1 else (1 - held) / self._per_s


def foreign(headers: Mapping[str, str], listens_on: str) -> str:
    """Why a browser must not have sent this: it comes from another site's page; '' if it may.

    A page of any site can send forms to this machine, and a name of its own can lead here.
    """
    host = _name(f"//{headers.get('host', '')}")
    if listens_on in LOOPBACK and host not in (*LOOPBACK, "testserver"):
        return f"host {host!r} is not this machine"
    origin = headers.get("origin", "")
    if origin and urlsplit(origin).netloc != headers.get("host", ""):
        return f"pages of {origin} may not use this service"
    return ""


def _name(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""
