"""Files of what was generated, each stream in its formats, and a record of the request."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence

from poet import media
from poet.spec import ClipSpec
from poet.streams import Stream

_LOG = logging.getLogger(__name__)


def write_outputs(
    shown: Mapping[str, Sequence[Any]],
    written: Iterable[Stream],
    prompts: Sequence[str],
    out_dir: str | Path,
    clip: ClipSpec,
    details: dict[str, Any],
    findings: Sequence[Sequence[str]] = (),
) -> list[Path]:
    """Writes the media of each sample, and `generate.json`; returns the files.

    Args:
      shown: media of the N samples, by medium, as of `poet.sampling.engine.Drawn`.
      written: a stream for each medium, which writes it.
      prompts: one label per sample.
      clip: gives the frame rate and the sample rate.
      details: what else `generate.json` records.
      findings: how each sample collapsed, in words; () says nothing of any.
    """
    out_dir = Path(out_dir).expanduser()
    written = sorted(written, key=lambda stream: not stream.shows)
    files, samples = [], []
    for row, prompt in enumerate(prompts):
        sample, stem = {medium: items[row] for medium, items in shown.items()}, out_dir / f"{row:03d}"
        paths = [path for s in written for path in s.write(sample[s.medium], stem, clip, sample)]
        noted = {name: value for s in written for name, value in s.record(sample[s.medium]).items()}
        if findings and findings[row]:
            noted["collapse"] = list(findings[row])
            _LOG.warning("sample %d collapsed: %s", row, "; ".join(findings[row]))
        samples.append({"row": row, "prompt": prompt, "files": [path.name for path in paths], **noted})
        files += paths
    record = out_dir / "generate.json"
    rates = {"rate_hz": clip.rate_hz, "sample_rate_hz": clip.sample_rate_hz}
    media.write_text(record, json.dumps({**details, **rates, "samples": samples}, indent=2))
    return [*files, record]
