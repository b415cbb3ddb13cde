"""How a run stands, from its files alone: `poet status`."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from poet.checkpoints import listing
from poet.runs import goodput, lease, lines, timeline
from poet.runs.buckets import lease as bucket_lease
from poet.runs.buckets.files import Place
from poet.runs.run import Run, steps_among
from poet.spec import UserError, read_object

_SPEEDS = ("steps_per_s", "tokens_per_s", "clips_per_s", "flops_per_s", "mfu", "data_wait")
_ALERTS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status:
    """How a run stands.

    Attributes:
      running: whether a process holds the work dir; None where this machine cannot say.
      holder: who, as the lease says; '' is nobody.
      step, steps: done and planned; None is not known yet.
      losses: of the last line, by name in the log.
      speed: steps, tokens, ... a second, MFU, and the fraction of the time that steps wait for data.
      left_s: seconds to the end at the speed so far; None where it is not known.
      silent_s: seconds since the run last wrote a line; None where it never did.
      account: what the time went on; None for a run from before it was written down.
      saved: the newest checkpoint, of which only the manifest was checked; None is none.
      alerts: the last unusual values, as (step, text).
    """

    workdir: str
    running: bool | None
    holder: str
    step: int | None
    steps: int | None
    losses: Mapping[str, float]
    speed: Mapping[str, float]
    left_s: float | None
    silent_s: float | None
    account: goodput.Account | None
    saved: listing.Entry | None
    checkpoints: int
    checkpoint_failures: int
    alerts: tuple[tuple[int, str], ...]

    def as_json(self) -> dict[str, Any]:
        """A JSON object of all of it."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {
            "account": self.account and self.account.as_json(),
            "saved": self.saved and self.saved.as_json(),
            "alerts": [{"step": step, "text": text} for step, text in self.alerts],
        }


def of(run: Run, now: float | None = None) -> Status:
    """How the run of a work dir stands.

    Args:
      now: Unix seconds.

    Raises:
      UserError: the folder is not that of a run.
    """
    if not run.folder.is_dir() or not (run.spec_file.is_file() or run.metrics.is_file() or run.steps()):
        raise UserError(f"{run.folder} is not the work dir of a run: it has neither spec.json nor checkpoints")
    held = lease.holder(run.folder)
    return _of(run, str(run.folder), held, listing.entries(run, hashes=False), time.time() if now is None else now)


def in_bucket(url: str) -> Status:
    """As `of`, of a work dir behind a URL: its logs, its lease and the manifests of its checkpoints are read."""
    place = Place(url.rstrip("/"), "WORKDIR")
    found = place.listed()
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(Path(scratch))
        for file in (run.spec_file, run.metrics, run.timeline):
            if entry := found.get(file.name):
                file.write_bytes(place.read(file.name))
                os.utime(file, (entry.modified, entry.modified))
        if not any(run.folder.iterdir()) and not steps_among(found):
            raise UserError(f"{url} is not the work dir of a run: it has neither spec.json nor checkpoints")
        saved = listing.in_bucket(url) if steps_among(found) else []
        return _of(run, place.url, bucket_lease.holder(place), saved, time.time())


def _of(
    run: Run, called: str, held: tuple[str, bool | None], checkpoints: Sequence[listing.Entry], now: float
) -> Status:
    log = list(lines.read(run.metrics)) if run.metrics.is_file() else []
    trained = [line for line in log if line.get("kind") == "train"]
    last: Mapping[str, Any] = trained[-1] if trained else {}
    holder, running = held
    entries = list(timeline.read(run.timeline))
    account = goodput.account(entries)
    saved = [entry for entry in checkpoints if entry.whole]
    silent_s = _silent_s(run, now)
    return Status(
        workdir=called,
        running=running,
        holder=holder if running else "",
        step=max((step for step in (last.get("step"), account.step or None) if step is not None), default=None),
        steps=_planned(run.spec_file),
        losses=_numbers(last, lambda name: name.split("/")[-1] == "loss"),
        speed=_numbers(last, _SPEEDS.__contains__),
        left_s=max(last["eta_s"] - (silent_s or 0.0), 0.0) if running and _is_number(last.get("eta_s")) else None,
        silent_s=silent_s,
        account=account if account.last else None,
        saved=saved[-1] if saved else None,
        checkpoints=len(saved),
        checkpoint_failures=int(last.get("checkpoint_failures") or 0),
        alerts=tuple((e["step"], str(e.get("text"))) for e in entries if e["event"] == timeline.ALERT)[-_ALERTS:],
    )


def _planned(spec: Path) -> int | None:
    try:
        found = read_object(spec).get("train", {}).get("steps")
    except (UserError, AttributeError):
        return None
    return found if isinstance(found, int) else None


def _silent_s(run: Run, now: float) -> float | None:
    """Seconds since one of the logs was written to."""
    times = [path.stat().st_mtime for path in (run.metrics, run.timeline) if path.is_file()]
    return max(now - max(times), 0.0) if times else None


def _numbers(line: Mapping[str, Any], wanted: Any) -> dict[str, float]:
    return {name: value for name, value in line.items() if wanted(name) and _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
