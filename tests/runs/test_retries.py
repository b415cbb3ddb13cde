from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poet.data import records
from poet.runs import exits, manifest, retries
from poet.store import framing


class Failing:
    """Fails some times, then reads."""

    def __init__(self, times: int, number: int = errno.EIO):
        self.times, self.number, self.calls = times, number, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.times:
            raise OSError(self.number, os.strerror(self.number))
        return "read"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited for, which nobody waits."""
    waited: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", waited.append)
    return waited


@given(times=st.integers(0, len(retries.WAITS_S)), number=st.sampled_from(sorted(retries.PASSING)))
def test_what_passes_is_read_after_rising_waits(times: int, number: int) -> None:
    waited: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retries.time, "sleep", waited.append)
        assert retries.reading("file", Failing(times, number)) == "read"
    assert waited == list(retries.WAITS_S[:times]) == sorted(waited)


def test_what_does_not_pass_is_named_and_another_start_may_help(waits: list[float]) -> None:
    failing = Failing(1000)
    with pytest.raises(retries.ReadFailed, match="^/x/shard cannot be read: Input/output error, 8 times in a row") as e:
        retries.reading("/x/shard", failing)
    assert failing.calls == len(retries.WAITS_S) + 1 and exits.restartable(exits.of(e.value))


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ENOSPC])
def test_what_cannot_pass_is_raised_at_once(waits: list[float], number: int) -> None:
    with pytest.raises(OSError) as caught:
        retries.reading("file", Failing(1, number))
    assert caught.value.errno == number and not waits


def test_a_slow_read_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clock = iter([0.0, retries.SLOW_S + 1])
    monkeypatch.setattr(retries.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.WARNING):
        assert retries.reading("/x/shard", Failing(0)) == "read"
    assert "/x/shard: an answer took 21 s" in caplog.text


def failing_pread(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    failing, real = Failing(times), os.pread

    def pread(*arguments: int) -> bytes:
        failing()
        return real(*arguments)

    monkeypatch.setattr(os, "pread", pread)


def test_records_and_what_reads_them_through_tensorflow(
    tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.tfrecord"
    path.write_bytes(b"".join(framing.frame(bytes([number] * 9)) for number in range(3)))
    stat = path.stat()
    files = records.Files((str(path),), (3,), ((stat.st_size, stat.st_mtime_ns),))
    failing_pread(monkeypatch, 3)
    assert records.Records(files)[1] == bytes([1] * 9) and len(waits) == 3
    failing_pread(monkeypatch, 10**6)
    with pytest.raises(retries.ReadFailed, match="x.tfrecord cannot be read: Input/output error"):
        next(records.batches_of(records.one_pass(files)))


def test_a_disk_that_fails_for_a_moment_damages_no_checkpoint(
    tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"weights")
    manifest.write(tmp_path, {})
    failing, real = Failing(2), manifest._hash

    def hashed(*arguments: object) -> str:
        failing()
        return real(*arguments)

    monkeypatch.setattr(manifest, "_hash", hashed)
    manifest.verify(tmp_path)
    assert failing.calls == 3
