"""Checkpoints of processes that see no common folder: their bucket has all of them.

Each process sends the shards that it holds, in one file; process 0, whose folder is published, joins them, so that a
checkpoint is the same as one of a folder that all see.  To restore, the others fetch it.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from poet.checkpoints import shards
from poet.distributed import processes
from poet.runs.buckets import mirror
from poet.runs.buckets.files import Place, crc32c
from poet.runs.publishing import Publisher
from poet.runs.run import CHECKPOINTS, Run
from poet.spec import Failure

# Writes a state, whose arrays are on the host, to a folder.
Write = Callable[[Path, Mapping[str, Any]], None]


class Apart:
    """What the processes of a run do for its checkpoints; every one has its own.

    Attributes:
      run: the run, in the folder of this process.
    """

    def __init__(self, run: Run, publisher: Publisher):
        self._place, self._publisher = Place(f"{run.url}/{CHECKPOINTS}", "--workdir"), publisher
        self._saves = 0
        home = run.folder.parent
        self.run = (
            run if processes.first() else Run(home / f"process_{processes.index()}" / run.folder.name, url=run.url)
        )
        self.run.checkpoints.mkdir(parents=True, exist_ok=True)

    # ------------------------------------------------------------------------------------------- saving

    def start(self, state: Mapping[str, Any], write: Write) -> Callable[[Path], None]:
        """Copies the shards of this process; what is returned brings them together, in a thread, below a folder.

        Args:
          write: called on process 0, with all of the state.

        Raises, when called:
          Failure: another process did not send its part, which says why.
        """
        self._saves += 1
        number, own = self._saves, shards.held(state, once=True)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(state))

        def gather(folder: Path) -> None:
            with _scratch(folder / "parts") as parts:
                if not processes.first():
                    return self._send(number, own, parts)
                _write_part(parts / _name(0), own)
                others = [self._received(number, index, parts) for index in range(1, jax.process_count())]
                write(folder / "state", shards.joined(abstract, [parts / _name(0), *others], parts))
                for index in range(1, jax.process_count()):
                    self._place.delete(f"parts/{_name(index)}")

        return gather

    def _send(self, number: int, own: Mapping[str, Any], parts: Path) -> None:
        file = parts / _name(processes.index())
        try:
            _write_part(file, own)
            self._place.upload(file, f"parts/{file.name}")
        except Exception as error:
            processes.tell(_told(number, processes.index()), f"! {error}")
            raise
        processes.tell(_told(number, processes.index()), crc32c(file))

    def _received(self, number: int, index: int, parts: Path) -> Path:
        """The part of another process, once it is sent."""
        said, name = processes.hear(_told(number, index)), _name(index)
        entry = None if said.startswith("!") else self._place.entry(f"parts/{name}")
        if entry is None or entry.crc32c != said:
            raise Failure(f"process {index} did not send its part of the checkpoint: {said.removeprefix('! ')}")
        self._place.download(f"parts/{name}", entry, parts / name)
        return parts / name

    # ---------------------------------------------------------------------------------------- restoring

    def bring(self, step: int) -> None:
        """Makes the checkpoint of a step, which process 0 has, lie in the folder of every process; all of them call it.

        Raises:
          publishing.Unpublished, manifest.Corrupt: it could not be sent, or what came is damaged.
        """
        processes.from_first(self._publisher.finish)
        processes.together(lambda: None if processes.first() else self._fetch(step))

    def _fetch(self, step: int) -> None:
        found = self.run.at(step)
        for old in set(self.run.steps()) - {step}:
            shutil.rmtree(self.run.at(old).path)
        place = Place(f"{self._place.url}/{found.path.name}", "--workdir")
        mirror.fill(place, place.listed(), found.path, final=found.path)
        found.verify()


def _name(index: int) -> str:
    return f"{index}.safetensors"


def _told(number: int, index: int) -> str:
    return f"part/{number}/{index}"


def _write_part(file: Path, own: Mapping[str, Any]) -> None:
    from safetensors.numpy import save_file

    save_file(dict(own), file)


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder for the duration of a block."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
