"""The backend of an export: tasks of a folder of programs, sampled without the model's code."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from poet.runs.run import Checkpoint, Run
from poet.server.backend import Maker
from poet.server.checkpoint import CheckpointBackend
from poet.server.settings import ServeSpec
from poet.serving.format import SINGLE, open_folder
from poet.spec import Experiment, UserError, from_stored
from poet.streams.base import reach
from poet.tasks.registry import Task, get_task
from poet.tasks.resolved import Resolved


@dataclasses.dataclass(frozen=True)
class ExportBackend(CheckpointBackend):
    """`poet.server.backend.Backend` of an export: its tasks, and no films.

    Attributes:
      exported: names of the tasks that the folder has.
    """

    exported: tuple[str, ...] = ()

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
        spec = spec.replace(sample=spec.sample.replace(block=block, devices=1))
        run = Run(folder, Checkpoint(folder))
        return cls(run, Resolved(spec), (f"SAMPLE.block={block}",), limits, exported=tuple(record["tasks"]))

    @functools.cached_property
    def tasks(self) -> dict[str, Task]:
        """Tasks that the folder has, by name."""
        return {name: get_task(name) for name in self.exported}

    @property
    def makes_films(self) -> bool:
        """No: films re-encode what they continue by the checkpoint's own networks."""
        return False

    def load(self) -> Maker:
        """Loads the programs, in the worker."""
        maker: Any = reach("poet.server.making:ExportMaker")
        return maker(self)
