"""Files of what was generated, each stream in its formats, and a record of the request."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from poet import media
from poet.media.watermark import Marker
from poet.sampling import record
from poet.sampling.engine import Sampled
from poet.sampling.jobs import Job
from poet.spec import UserError
from poet.streams.base import Target

_LOG = logging.getLogger(__name__)
# Room that is kept for the record while samples are written.
_SPARE_BYTES = 1 << 16


class Unfinished(UserError):
    """Not every sample could be written; `files` are those of the others, and their record."""

    def __init__(self, message: str, files: Sequence[Path]) -> None:
        super().__init__(message)
        self.files = list(files)


def write_outputs(shown: Sampled, job: Job, out_dir: str | Path, details: Mapping[str, Any]) -> list[Path]:
    """Writes the media of each sample, and the record of all; returns the files.

    Args:
      shown: of N samples, as of `jobs.sample`.
      details: what the record says beside the samples, see `record.describe`.

    Raises:
      Unfinished: a file could not be written; those of the samples before are whole.
    """
    out_dir = Path(out_dir).expanduser()
    out_dir.mkdir(parents=True, exist_ok=True)
    spare, samples, failure = out_dir / ".spare", [], None
    marker = Marker.of(shown.video, job.unmarked)
    details = {**details, "watermark": str(marker)}
    spare.write_bytes(bytes(_SPARE_BYTES))
    for row in range(job.count):
        try:
            samples.append(_write_sample(shown, job, out_dir, details, row, marker))
        except OSError as error:
            failure = error
            for path in out_dir.glob(f"{_name(job, row)}.*"):
                path.unlink()
            break
    spare.unlink()
    files = [out_dir / name for sample in samples for name in sample["files"]] if samples else []
    if failure is not None and not samples:
        raise UserError(f"no sample could be written: {failure}") from failure
    media.write_text(out_dir / record.NAME, json.dumps({**details, "samples": samples}, indent=2))
    files.append(out_dir / record.NAME)
    if failure is not None:
        message = f"{len(samples)} of {job.count} samples are written, the next could not be: {failure}"
        raise Unfinished(message, files) from failure
    return files


def _name(job: Job, row: int) -> str:
    """Files sort as the samples do."""
    return f"{row:0{max(len(str(job.count - 1)), 3)}d}"


def _write_sample(
    shown: Sampled, job: Job, out_dir: Path, details: Mapping[str, Any], row: int, marker: Marker
) -> dict[str, Any]:
    """Writes one sample; what the record says of it."""
    sample = {medium: items[row] for medium, items in shown.items()}
    if not marker.lacking:
        sample["video"] = marker(sample["video"])
    target = Target(
        out_dir / _name(job, row),
        job.resolved.spec.clip,
        sample,
        job.request.format,
        record.comment(job, details, row),
        job.originals[row],
    )
    written = sorted(job.streams, key=lambda stream: not stream.shows)
    paths = [path for stream in written for path in stream.write(sample[stream.medium], target)]
    noted = {name: value for stream in written for name, value in stream.record(sample[stream.medium]).items()}
    if shown.findings and shown.findings[row]:
        noted["collapse"] = list(shown.findings[row])
        _LOG.warning("sample %d collapsed: %s", row, "; ".join(shown.findings[row]))
    hashes = {path.name: record.digest(path) for path in paths}
    return {"row": row, "prompt": job.labels[row], "files": hashes, **noted}
