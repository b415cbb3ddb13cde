"""The ranges of a store as tasks of a Ray cluster, or of a Ray that is started on this machine.

As with Beam, every worker must see STORE.path; the process that starts the command merges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from poet.spec import Failure, UserError, near_names
from poet.store.ranges import Range
from poet.store.runners import Factory, Job, Progress, encoders_of

LOCAL = "local"
# How often the task of a range is started again after its worker died.
RETRIES = 3
_RESOURCES = ("num_cpus", "num_gpus", "memory")


@dataclasses.dataclass(frozen=True)
class Ray:
    """Runs a task for each range.  A worker that dies takes its task along, which is started elsewhere.

    Args:
        factory: picklable; every worker makes its encoders with it, once.
        address: of a cluster, such as 'ray://head:10001' or 'auto'; 'local' starts Ray here.
        resources: options of each task, such as {'num_cpus': 4, 'num_gpus': 1}.
    """

    factory: Factory
    address: str = LOCAL
    resources: tuple[tuple[str, float], ...] = ()
    merges: bool = True

    def __call__(self, job: Job, ranges: Sequence[Range], progress: Progress) -> None:
        if not ranges:
            return
        import ray

        try:
            ray.init(address=self.address, logging_level="warning", log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"--runner=ray, {self.address}: Ray refuses it: {error}") from None
        try:
            self._run(ray, job, ranges, progress)
        finally:
            ray.shutdown()

    def _run(self, ray: Any, job: Job, ranges: Sequence[Range], progress: Progress) -> None:
        encode = ray.remote(max_retries=RETRIES, **dict(self.resources))(_encode_range)
        shared = ray.put((job, self.factory))
        pending = {encode.remote(shared, item): item for item in ranges}
        while pending:
            (done,), _ = ray.wait(list(pending), num_returns=1)
            item = pending.pop(done)
            try:
                ray.get(done)
            except ray.exceptions.WorkerCrashedError:
                raise Failure(
                    f"the worker of {item} died {RETRIES + 1} times, killed or out of memory. Finished ranges stay: "
                    "run the same command again, with more memory for each task"
                ) from None
            progress.finished(item)


def resources(text: str) -> tuple[tuple[str, float], ...]:
    """What a task needs, from 'num_cpus=4 num_gpus=0.5'.  Raises UserError for another text."""
    try:
        found = [(name, float(number)) for name, number in (word.split("=") for word in text.split())]
    except ValueError:
        raise UserError(f"--ray_task={text}: give names and numbers, such as num_cpus=4 num_gpus=1") from None
    if unknown := [name for name, _ in found if name not in _RESOURCES]:
        raise UserError(f"--ray_task: unknown name {unknown[0]!r}{near_names(unknown[0], _RESOURCES)}")
    return tuple(found)


def _encode_range(shared: tuple[Job, Factory], item: Range) -> None:
    """A task.  One that is started again may find its range done."""
    job, factory = shared
    if not item.done:
        job.encode(item, encoders_of(factory))
