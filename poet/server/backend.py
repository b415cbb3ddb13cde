"""What makes the results of a service: the interface that a checkpoint fills (`poet.server.checkpoint`).

One `Backend` is known to two processes.  That of the service asks it for its card and to admit requests; it must not
touch a device there.  The worker asks it to load, and to make what was admitted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from poet.server.memory import Need
from poet.spec import UserError

# Of errors that a job can end with.
BAD_REQUEST, BAD_MEDIA, TOO_LARGE, DIED, INTERNAL = "bad_request", "bad_media", "too_large", "worker_died", "internal"


class Cancelled(Exception):
    """The job that is being made shall stop."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accepted:
    """A request that can be made.

    Attributes:
      task: its name for people and metrics.
      request: what `Session.add` takes, as JSON; files are named relative to the job's folder.
      batch_key: jobs of equal values may share a session; '' makes each alone.
      samples: places of a session that it takes.
      seconds: of the media that it makes, all samples together.
      need: of the worker's memory.
      advice: what would fit into so many bytes, in words.
    """

    task: str
    request: Mapping[str, Any]
    batch_key: str = ""
    samples: int = 1
    seconds: float = 0.0
    need: Need = Need()
    advice: Callable[[int], str] = lambda room: ""


class Work(NamedTuple):
    """A job as the worker sees it.

    folder: of the job: `inputs/` has its files; what it makes goes to `work/`, which an earlier try may have left.
    """

    id: str
    task: str
    request: Mapping[str, Any]
    seed: int
    folder: Path

    @property
    def place(self) -> Path:
        """Where its files are made."""
        return self.folder / "work"


@dataclasses.dataclass(frozen=True, kw_only=True)
class News:
    """What came of a step for one job.

    Attributes:
      fraction: of its work that is done.
      latents: latent frames of its pictures that are whole.
      left_s: seconds that the rest may take; None until that can be said.
      frames: makes the new frames of its first sample, uint8 [F, H, W, 3]; None where there are none.
      result: what was made (`made`), at the end; None before.
      error: why it failed; None where it has not.
    """

    id: str
    fraction: float = 0.0
    latents: int = 0
    left_s: float | None = None
    frames: Callable[[], Any] | None = None
    result: Mapping[str, Any] | None = None
    error: Exception | None = None


class Session(Protocol):
    """Jobs of one batch key that are being made together.

    Attributes:
      names: ids of those in it.
    """

    names: Sequence[str]

    def add(self, work: Work) -> None:
        """Takes a job in; what is wrong with it is raised, and concerns it alone."""

    def drop(self, job_id: str) -> None:
        """Takes a job out, as soon as that can be."""

    def step(self) -> list[News]:
        """Goes on by a latent frame, for some of the jobs; [] where nothing is left.

        Jobs that are done or have failed have left.
        """


# Called with the news of a job while a step lasts long; raises Cancelled if that shall stop.
Watch = Callable[[News], None]


class Maker(Protocol):
    """A loaded backend."""

    def session(self, batch_key: str, watch: Watch) -> Session:
        """A new session, for jobs of a batch key."""


class Backend(Protocol):
    """See the module; it is pickled on its way to the worker.

    Attributes:
      size: samples that a session holds.
      requests: task -> JSON schema of the fields of its requests, beside `task`.
      required: task -> those that no request for it may leave out; a task is absent where there are none.
    """

    size: int
    requests: Mapping[str, Mapping[str, Any]]
    required: Mapping[str, Sequence[str]]

    def card(self) -> dict[str, Any]:
        """The model, as `/v1/models` has it."""

    def admit(self, asked: Mapping[str, Any], media: Mapping[str, Mapping[str, Any]]) -> Accepted:
        """Checks a request.

        Args:
          media: what is known of the files that it names (`poet.server.intake.Media.about`), by their names in it.

        Raises UserError: says what is wrong, and what is allowed.
        """

    def load(self) -> Maker:
        """Loads what the worker needs.  UserError where it cannot be."""


def made(files: Sequence[Path], **about: Any) -> dict[str, Any]:
    """The result of a job: its files by name, the most telling one first, and what else is known."""
    return {"files": [path.name for path in files], **about}


def kind_of(error: Exception) -> str:
    """The kind of error that ends a job."""
    from poet.media import MediaError

    if isinstance(error.__cause__, OSError):  # Of a disk, whatever it says of the request.
        return INTERNAL
    if isinstance(error, MediaError):
        return BAD_MEDIA
    return BAD_REQUEST if isinstance(error, UserError) else INTERNAL
