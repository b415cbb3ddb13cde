"""Files of jobs: one JSON object a line, done one after the other by one model; what came of each stands beside them.

A job that is done is skipped the next time, one that failed is tried again, and a bad line costs its own job alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from poet import media
from poet import spec as specs
from poet.runs import manifest, outputs
from poet.runs.run import Run
from poet.sampling import command, jobs
from poet.sampling.outputs import Unfinished
from poet.sampling.requests import Request
from poet.spec import SampleSpec, UserError, limited, near_names
from poet.tasks.resolved import Resolved

_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,100}")
_SAMPLE = tuple(field.name for field in dataclasses.fields(SampleSpec))
_REQUEST = tuple(field.name for field in dataclasses.fields(Request))


class Line(NamedTuple):
    """One job of a file.

    name: of its folder.  job: None where `error` says why it cannot be done.  digest: of all that decides its samples.
    """

    name: str
    digest: str
    job: jobs.Job | None
    error: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """The jobs of a file.

    Attributes:
      file: the jobs.
      out: the folder in which each has one of its own.
      settings: bindings that the experiment in the checkpoint was overridden with.
    """

    file: Path
    out: Path
    lines: Sequence[Line]
    resolved: Resolved
    checkpoint: Run
    settings: Sequence[str] = ()

    @property
    def results(self) -> Path:
        """The results of the jobs, a line each; the last one of a name counts."""
        return self.file.with_suffix(".results.jsonl")

    def done(self) -> set[str]:
        """Names of the jobs that are done as the file has them now, and whose folder is whole."""
        return {name for name in self._noted("done") if (self.out / name / manifest.NAME).is_file()}

    def _noted(self, state: str) -> dict[str, dict[str, Any]]:
        """Name -> what was noted last, of the jobs as the file has them now that ended so."""
        last = {found.get("name"): found for found in _objects(self.results)}
        wanted = {line.name: {"state": state, "digest": line.digest} for line in self.lines if line.name in last}
        return {name: last[name] for name, said in wanted.items() if said.items() <= last[name].items()}

    def run(self, *, overwrite: bool = False) -> int:
        """Does what is not done yet; how many jobs failed."""
        done, failed = self.done(), 0
        parts = {name for name, found in self._noted("failed").items() if found.get("files")}
        load: Callable[[], Any] | None = None
        for number, line in enumerate(self.lines, 1):
            if line.name in done:
                _LOG.info("%d of %d, %s: done before, skipped", number, len(self.lines), line.name)
                continue
            _LOG.info("%d of %d, %s", number, len(self.lines), line.name)
            load = load or (command.loader(self.checkpoint, self.resolved, line.job.request.task) if line.job else None)
            if error := self._one(line, load, overwrite or line.name in parts):
                _LOG.warning("%s failed: %s", line.name, error)
            failed += bool(error)
        return failed

    def _one(self, line: Line, load: Callable[[], Any] | None, overwrite: bool) -> str:
        """Does a job and notes it; why it failed, '' if it did not."""
        try:
            if line.job is None:
                raise UserError(line.error)
            inputs = [self.checkpoint.folder, *line.job.request.files()]
            output = outputs.claim(self.out / line.name, outputs.GENERATION, overwrite=overwrite, inputs=inputs)
            with output:
                try:
                    error, files = "", command.produce(line.job, load, self.checkpoint, output.folder, self.settings)
                except Unfinished as unfinished:
                    error, files = str(unfinished), unfinished.files
                self._note(line, error, [path.name for path in files])  # It counts once the folder is whole.
            return error
        except Exception as failure:  # Whatever it is, it is this job's.
            _LOG.debug("%s", line.name, exc_info=True)
            named = "" if isinstance(failure, UserError) else f"{type(failure).__name__}: "
            error = f"{named}{failure}"
            self._note(line, error, [])
            return error

    def _note(self, line: Line, error: str, files: Sequence[str]) -> None:
        found = {"name": line.name, "state": "failed" if error else "done", "digest": line.digest}
        found |= {"error": error} if error else {}
        found["files"] = list(files)
        lines = [*(before for before in _objects(self.results) if before != found), found]
        media.write_text(self.results, "".join(json.dumps(each) + "\n" for each in lines))


def read(
    path: str,
    out: str,
    base: Request,
    resolved: Resolved,
    checkpoint: Run,
    settings: Sequence[str] = (),
    overwrite: bool = False,
) -> Batch:
    """The jobs of a file, each checked as far as that goes without reading its clips.

    Args:
      out: new or empty, or what this command left there earlier.
      base: values of keys that a line lacks.

    Raises:
      UserError: the file cannot be read or holds no job, or `out` holds something else.
    """
    file = Path(path).expanduser().absolute()
    try:
        texts = limited(file).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--requests={path} cannot be read as UTF-8 text: {error}") from None
    numbered = [(number, text) for number, text in enumerate(texts, 1) if text.strip()]
    if not numbered:
        raise UserError(f"--requests={path} holds no job: write one JSON object a line")
    lines: list[Line] = []
    for number, text in numbered:
        taken = {line.name for line in lines}
        lines.append(_line(text, f"{number:0{len(str(len(texts)))}d}", taken, file.parent, base, resolved, checkpoint))
    batch = Batch(
        file=file,
        out=Path(out).expanduser().absolute(),
        lines=lines,
        resolved=resolved,
        checkpoint=checkpoint,
        settings=settings,
    )
    _check_out(batch, overwrite)
    return batch


def _line(
    text: str, number: str, taken: set[str], folder: Path, base: Request, resolved: Resolved, checkpoint: Run
) -> Line:
    name, values = f"line_{number}", {}
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise UserError(f"line {number} is no JSON object")
        asked_name = values.pop("name", name)
        if not isinstance(asked_name, str) or not _NAME.fullmatch(asked_name) or asked_name in taken:
            raise UserError(f"name {asked_name!r}: give another one for each job, of letters, digits, '_', '-' and '.'")
        name = asked_name
        job = jobs.admit(*_asked(values, folder, base, resolved))
    except (UserError, ValueError, RecursionError) as error:
        return Line(name, "", None, str(error))
    said = [job.texts, job.negative]
    described = [specs.to_dict(job.request), specs.to_dict(job.sample), said, checkpoint.checkpoint.fingerprint]
    return Line(name, hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16], job)


def _asked(
    values: dict[str, Any], folder: Path, base: Request, resolved: Resolved
) -> tuple[Request, Resolved, SampleSpec]:
    unknown = [key for key in values if key not in (*_SAMPLE, *_REQUEST)]
    if unknown:
        raise UserError(f"a job has no {unknown[0]!r}{near_names(unknown[0], ('name', *_REQUEST, *_SAMPLE))}")
    own = {key: value for key, value in values.items() if key in _REQUEST}
    request = specs.from_dict(Request, {**specs.to_dict(base), **own})
    kept = {field: getattr(base, field) for field in Request.FILES if field not in own}
    settings = {key: value for key, value in values.items() if key in _SAMPLE}
    sample = specs.from_dict(SampleSpec, {**specs.to_dict(resolved.spec.sample), **settings})
    return request.below(folder).replace(**kept), resolved, sample


def _check_out(batch: Batch, overwrite: bool) -> None:
    """A folder that holds what is no job's is somebody else's."""
    if not batch.out.exists():
        return
    if not batch.out.is_dir():
        raise UserError(f"--out={batch.out} is a file: give a new or empty folder")
    known = {str(found.get("name")) for found in _objects(batch.results)} | {line.name for line in batch.lines}
    partial = {outputs.partial_of(batch.out / name).name for name in known}  # Of one that was killed.
    others = sorted(path.name for path in batch.out.iterdir() if path.name not in known | partial)
    if others and not overwrite:
        raise UserError(
            f"--out={batch.out} holds {others[0]!r}, which is not a job of {batch.file}: give another folder"
        )


def _objects(file: Path) -> list[dict[str, Any]]:
    """The JSON objects in the lines of a file; [] if there is none."""
    found = []
    for text in limited(file).read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            value = json.loads(text)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found
