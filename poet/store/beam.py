"""The ranges of a store as an Apache Beam pipeline, for Dataflow, Flink, Spark or this machine.

Every worker must see STORE.path, where it leaves the intermediate files: a folder that all of them
mount.  The source may be anything that they can open, gs:// and s3:// among it.  The launcher merges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from poet.spec import UserError
from poet.store.ranges import Range
from poet.store.runners import Factory, Job, Progress, encoders_of


@dataclasses.dataclass(frozen=True)
class Beam:
    """Runs `Create(ranges) | Reshuffle | ParDo(EncodeRange)` and waits for it.

    Args:
        factory: picklable; every worker makes its encoders with it, once.
        runner: Beam's name of it, such as DirectRunner, DataflowRunner, FlinkRunner, SparkRunner.
        options: command-line options of that runner, such as '--project=p'.
    """

    factory: Factory
    runner: str
    options: tuple[str, ...] = ()
    merges: bool = True

    def __call__(self, job: Job, ranges: Sequence[Range], progress: Progress) -> None:
        if not ranges:
            return
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        options = PipelineOptions([f"--runner={self.runner}", *self.options])
        try:
            pipeline = beam.Pipeline(options=options)
        except (ValueError, ImportError, AttributeError) as error:
            raise UserError(f"--runner={self.runner} {' '.join(self.options)}: Beam refuses it: {error}") from None
        with pipeline:
            encode = beam.ParDo(_encode_range(job, self.factory))
            _ = pipeline | beam.Create(list(ranges)) | beam.Reshuffle() | encode
        for item in ranges:
            progress.finished(item)


def _encode_range(job: Job, factory: Factory) -> Any:
    """The DoFn of a job.  A bundle that is tried again finds its finished ranges done."""
    import apache_beam as beam

    class EncodeRange(beam.DoFn):
        def setup(self) -> None:
            self._encoders = encoders_of(factory)

        def process(self, item: Range) -> Any:
            if not item.done:
                job.encode(item, self._encoders)
            yield str(item)

    return EncodeRange()
