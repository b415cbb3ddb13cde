"""What makes films, and their records: `generation.json` beside a film, as beside samples of `poet generate`.

`poet generate --replay` makes either again, with the same bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from poet import media
from poet.media import watermark
from poet.runs.run import Run
from poet.sampling import record
from poet.sampling.base import TaskSampler
from poet.sampling.films import chain, dubbing, edit, long, scenes
from poet.sampling.films.sampler import FilmSampler
from poet.sampling.films.storyboard import Storyboard
from poet.sampling.generate import Generator
from poet.spec import PromptSpec, SampleSpec, from_dict
from poet.tasks.resolved import Resolved

# Fields of requests, wherever they stand in them, that name files.
_FILES = ("opening", "frame", "clip", "given")
# Of `KINDS`: a film that gets a sound.
DUB = "dub"


@dataclasses.dataclass(frozen=True)
class Studio:
    """A checkpoint that makes films.

    Attributes:
      run, resolved: its place, and its experiment with `settings`, the bindings that it was overridden with.
      ways: how films go on, as `FilmSampler` takes it.
      generator: the model, where it is loaded already.
    """

    run: Run
    resolved: Resolved
    settings: Sequence[str] = ()
    ways: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    generator: TaskSampler | None = None

    @functools.cached_property
    def sampler(self) -> FilmSampler:
        """The model, loaded when it is first asked for."""
        return FilmSampler(self.generator or Generator.from_checkpoint(self.run, self.resolved), **self.ways)

    def with_sound(self) -> FilmSampler:
        """The same, for films with sound.  UserError in a run without it."""
        return FilmSampler(self.sampler.generator, **{**self.ways, "has_audio": True})

    @property
    def sample(self) -> SampleSpec:
        """Settings; their seed is that of the film."""
        return self.resolved.spec.sample

    @property
    def prompt(self) -> PromptSpec:
        """Texts added to every prompt."""
        return self.resolved.spec.prompt

    @functools.cached_property
    def made_by(self) -> dict[str, Any]:
        """What tells the checkpoint from others."""
        return {"checkpoint": self.run.checkpoint.fingerprint}

    def make(self, kind: str, request: Mapping[str, Any], folder: Path) -> list[Path]:
        """Makes a film and its record; the files.

        Args:
          kind: of `KINDS`.
          request: what that takes, as JSON has it.

        Raises UserError: the checkpoint cannot make it, or the folder is somebody else's.
        """
        return self.recorded(kind, request, folder, KINDS[kind](self, request, folder))

    def recorded(self, kind: str, request: Mapping[str, Any], folder: Path, files: Sequence[Path]) -> list[Path]:
        """Writes the record of a film that was made of a request; `files` and the record."""
        unmarked = watermark.NO_PICTURE if kind == DUB else ""
        request, inputs = with_files(json.loads(json.dumps(request)), _absolute), []
        with_files(request, lambda path: inputs.append(path) or path)
        used, sample, clip = self.sampler.generator.networks.used, self.sample, self.resolved.spec.clip
        found = {
            "format": record.FORMAT,
            "film": kind,
            "request": request,
            "ways": dict(self.ways),
            **record.made_with(sample, self.run, used, record.hashes(inputs), self.settings),
            "watermark": str(watermark.Marker.of_size(clip.height, clip.width, unmarked or sample.unmarked)),
            "files": {path.relative_to(folder).as_posix(): record.digest(path) for path in files},
        }
        media.write_text(folder / record.NAME, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        return [*files, folder / record.NAME]


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def with_files(value: Any, change: Callable[[str], str], name: str = "") -> Any:
    """The request of a film with the paths of its files changed."""
    if isinstance(value, dict):
        return {key: with_files(inner, change, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_files(inner, change) for inner in value]
    return change(value) if value and name in _FILES else value


def _long(studio: Studio, request: Mapping[str, Any], folder: Path) -> list[Path]:
    wanted = long.LongFilm(**{**request, "prompts": tuple(request["prompts"])})
    return long.make(
        studio.sampler, wanted, folder, made_by=studio.made_by, sample=studio.sample, words=studio.prompt.camera
    )


def _storyboard(studio: Studio, request: Mapping[str, Any], folder: Path) -> list[Path]:
    return scenes.make(
        studio.sampler,
        from_dict(Storyboard, request),
        folder,
        made_by=studio.made_by,
        sample=studio.sample,
        words=studio.prompt.camera,
    )


def _chain(studio: Studio, request: Mapping[str, Any], folder: Path) -> list[Path]:
    jobs, given = [from_dict(chain.Job, job) for job in request["jobs"]], chain.Made()
    with_audio = studio.with_sound() if any(job.sound for job in jobs) else None
    if request["clip"]:
        video, sound = long.read_opening(
            request["clip"], studio.resolved.spec.clip, has_audio=studio.sampler.sounds is not None
        )
        given = chain.Made(video=video, sound=sound)
    made = chain.Chain(studio.sampler, with_audio, studio.sample, studio.made_by, prompt=studio.prompt)
    return made.run(jobs, folder, given)


def _edited(studio: Studio, request: Mapping[str, Any], folder: Path) -> list[Path]:
    """The film of a session's node; all of its tree is made again."""
    fixed = {"sample": studio.sample, "made_by": studio.made_by}
    return edit.Session.remade(folder, studio.sampler, request, **fixed).write()


def _dub(studio: Studio, request: Mapping[str, Any], folder: Path) -> list[Path]:
    """A film of the user's with a sound."""
    wanted = dubbing.Dub(**request)
    return dubbing.make(studio.sampler, wanted, folder, made_by=studio.made_by, sample=studio.sample)


KINDS: dict[str, Callable[[Studio, Mapping[str, Any], Path], list[Path]]] = {
    "long": _long,
    "storyboard": _storyboard,
    "chain": _chain,
    "edit": _edited,
    DUB: _dub,
}
