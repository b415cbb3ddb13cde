"""The backend of an export: tasks of a folder of programs, sampled without the model's code."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poet.runs.run import Checkpoint, Run
from poet.sampling.films.windows import Windows
from poet.server import needs
from poet.server.backend import Accepted, Maker
from poet.server.checkpoint import CheckpointBackend
from poet.server.settings import ServeSpec
from poet.serving.format import SINGLE, array_bytes, open_folder
from poet.spec import Experiment, UserError, from_stored
from poet.streams.base import reach
from poet.tasks.registry import Task, get_task
from poet.tasks.resolved import Resolved


@dataclasses.dataclass(frozen=True)
class ExportBackend(CheckpointBackend):
    """`poet.server.backend.Backend` of an export: its tasks, and films where it has programs for them.

    Attributes:
      exported: names of the tasks that the folder has.
      films: whether it has programs that continue films.
    """

    exported: tuple[str, ...] = ()
    films: bool = False

    @classmethod
    def of(cls, path: str | Path, block: int, limits: ServeSpec = ServeSpec()) -> ExportBackend:
        """Opens a folder; its programs are loaded by the worker.

        Args:
          block: samples of a batch.

        Raises UserError: not an export, damaged, or of a format whose programs take one number of samples.
        """
        folder = Path(path).expanduser()
        record = open_folder(folder)
        if record["format"] in SINGLE:
            raise UserError(f"{folder} has one task at one batch, by an earlier version: export the checkpoint again")
        spec = from_stored(Experiment, record["experiment"])
        # Films are of the tasks of the mixture.
        rates = {name: spec.data.mixture_rates.get(name, 1.0) for name in record["tasks"]}
        data, sample = spec.data.replace(mixture_rates=rates), spec.sample.replace(block=block, devices=1)
        resolved, run = Resolved(spec.replace(data=data, sample=sample)), Run(folder, Checkpoint(folder))
        exported, films = tuple(record["tasks"]), bool(record.get("films"))
        upscalers = (run,) if record.get("upscalers") else ()
        return cls(run, resolved, (f"SAMPLE.block={block}",), limits, upscalers, exported=exported, films=films)

    @functools.cached_property
    def tasks(self) -> dict[str, Task]:
        """Tasks that the folder has, by name."""
        return {name: get_task(name) for name in self.exported}

    @property
    def makes_films(self) -> bool:
        """Whether the folder has programs that continue films."""
        return self.films

    @property
    def loaded(self) -> Resolved:
        """The experiment, in which the export noted its tokenizer."""
        return self.resolved

    @functools.cached_property
    def held(self) -> needs.Held:
        """All weights of the folder, and the sizes of its networks."""
        sizes = array_bytes(self.run.folder)
        of = lambda *prefixes: sum(size for name, size in sizes.items() if name.startswith(prefixes))
        return needs.Held(weights=of(""), model=of("lm."), codecs=of("video_tokenizer.", "audio_tokenizer."))

    def _film(self, kind: str, asked: Mapping[str, Any]) -> Accepted:
        context, most = asked.get("context", 0), Windows.of(self.resolved).context
        if isinstance(context, int) and context > most:
            raise UserError(f"context = {context}: this export continues films by at most {most} latent frames")
        return super()._film(kind, asked)

    def load(self) -> Maker:
        """Loads the programs, in the worker."""
        maker: Any = reach("poet.server.making:ExportMaker")
        return maker(self)
