"""Numbers of a service for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from poet.server.store import DONE, FAILED, Job

_SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1)
_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)


class Metrics:
    """The numbers of one service.

    Args:
      depth, running: give how many jobs wait and run.
    """

    def __init__(self, depth: Callable[[], float], running: Callable[[], float]):
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = registry = CollectorRegistry()
        histogram = lambda name, text: Histogram(name, text, ("task",), buckets=_SECONDS, registry=registry)
        counter = lambda name, text, *labels: Counter(name, text, labels, registry=registry)
        Gauge("poet_queue_depth", "Jobs that wait.", registry=registry).set_function(depth)
        Gauge("poet_jobs_running", "Jobs that are being made.", registry=registry).set_function(running)
        self.fill = Gauge("poet_batch_fill", "Places of the batch that are taken, of all.", registry=registry)
        self.wait = histogram("poet_wait_seconds", "From acceptance to the start.")
        self.first = histogram("poet_first_frame_seconds", "From acceptance to the first new frame.")
        self.share = Histogram(
            "poet_first_frame_share", "The same, as a part of the job.", ("task",), buckets=_SHARES, registry=registry
        )
        self.whole = histogram("poet_job_seconds", "From acceptance to the end of jobs that are done.")
        self.jobs = counter("poet_jobs", "Jobs that have ended.", "task", "state")
        self.accepted = counter("poet_jobs_accepted", "Jobs that were accepted.", "task")
        self.media = counter("poet_video_seconds", "Seconds of media that were made.", "task")
        self.busy = counter("poet_busy_seconds", "Seconds in which the worker made something.")
        self.pace = Gauge(
            "poet_video_seconds_per_second",
            "Seconds of media a second of work, of the last job that made some.",
            registry=registry,
        )
        gauge = lambda name, text: Gauge(name, text, registry=registry)
        self.predicted = gauge("poet_memory_predicted_bytes", "Peak of the worker, as predicted of the last jobs.")
        self.measured = gauge("poet_memory_measured_bytes", "Peak of the worker, as measured of the same jobs.")
        self.limit = gauge("poet_memory_limit_bytes", "What the worker may take.")
        self.errors = counter("poet_errors", "Errors by kind.", "kind")
        self.deaths = counter("poet_worker_deaths", "Worker processes that ended by themselves.")
        self.requests = counter("poet_http_requests", "Answers by route and status.", "method", "route", "status")

    def ended(self, job: Job, seconds: float, first_s: float | None = None) -> None:
        """Counts a job that has ended, with `seconds` of media, whose first frame was there after `first_s`."""
        self.jobs.labels(job.task, job.state).inc()
        if job.state == FAILED and job.error:
            self.errors.labels(job.error["kind"]).inc()
        if job.state == DONE and job.finished is not None:
            self.whole.labels(job.task).observe(job.finished - job.created)
            if first_s is not None and job.finished > job.created:
                self.share.labels(job.task).observe(first_s / (job.finished - job.created))
            self.media.labels(job.task).inc(seconds)
            if seconds and job.started is not None and job.finished > job.started:
                self.pace.set(seconds / (job.finished - job.started))

    def page(self) -> tuple[bytes, str]:
        """The page, and its type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_LATEST
