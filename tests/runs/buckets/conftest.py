"""The bucket of the tests: an emulator in a process of its own, and requests that do not wait between their tries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import bucket_servers
import pytest

from poet.runs import retries
from poet.runs.buckets import lease, mirror


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bucket_servers.Server]:
    with bucket_servers.running(tmp_path_factory.mktemp("bucket")) as found, pytest.MonkeyPatch.context() as patch:
        patch.setenv(bucket_servers.EMULATOR, found.address)
        yield found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache of the test's own, no waits between tries (neither ours nor those of gcsfs), and leases of a second."""

    async def at_once(*_: object) -> None:
        pass

    monkeypatch.setenv(mirror.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(retries, "WAITS_S", (0.0,) * 7)
    for name, seconds in (("RENEW_S", 0.2), ("STALE_S", 1.0), ("LOOK_S", 0.05)):
        monkeypatch.setattr(lease, name, seconds)
    monkeypatch.setattr("gcsfs.retry.asyncio.sleep", at_once)
