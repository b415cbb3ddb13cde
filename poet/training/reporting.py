"""The reports of a run: log lines, `metrics.jsonl`, TensorBoard, sample images.

Throughput of a window of steps, without the time of hooks and checkpoints:

    FLOP/s = sum over the steps of Group.flops / seconds
    MFU    = FLOP/s / (devices x peak of one device, dense bf16)

`Group.flops` counts matmuls only, forward and backward, attention as the layout computes it,
without rematerialisation.  If the peak of a device is unknown, there is no MFU.

    goodput = seconds of steps, less those spent waiting for data / all seconds

over all restarts, whose compilation and restoring count as lost, as hooks and checkpoints do.
"""

from __future__ import annotations

import collections
import functools
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from poet.planning.topologies import peak_flops
from poet.runs import anomalies, lines
from poet.runs.run import Run
from poet.runs.timeline import Timeline
from poet.training import nonfinite, trackers
from poet.training.trainable import Group, Report

_LOG = logging.getLogger(__name__)

# Counts of a line, in lines where they are not 0: steps that had no token to learn from, and steps whose update was
# skipped because it was not finite.
UNFED, SKIPPED = "steps_without_tokens", nonfinite.SKIPPED


class Reporter:
    """Collects the metrics of finished steps and writes one line per `log_every` of them.

    A line of step k speaks of the steps since the line before it, the k-th being the last.  Means weigh
    by what they are over: `loss` by tokens, `grad_norm` by steps.  What there was none of is left out
    of the line.  With several groups every metric is written as `<group>/<metric>`, and `loss` is the
    mean over the tokens of all steps.  A failing write (full disk) is logged and costs the line, never the run.
    """

    def __init__(
        self,
        run: Run,
        *,
        steps: int,
        groups: Mapping[str, Group],
        log_every: int,
        device_kind: str,
        devices: int,
        start: int = 0,
        clock: Mapping[str, Any] | None = None,
        setup_s: float = 0.0,
        writes: bool = True,
        now: Callable[[], float] = time.perf_counter,
        timeline: Timeline | None = None,
        open_trackers: Callable[[], list[trackers.Tracker]] = list,
    ):
        """Args:
        start, clock: the restored step and what `clock()` returned at it; later lines of an earlier
          run are dropped.
        setup_s: what this process spent before its first step.
        writes: False on all processes but the first: they log and write nothing.
        timeline: where it says what the time of the loop goes on.
        open_trackers: starts the services that get the log as well; one that fails is logged.
        """
        clock = clock or {}
        self._run, self._steps, self._groups = run, steps, groups
        self._log_every, self._now, self._start = log_every, now, start
        self._timeline, self._open_trackers = timeline or Timeline(None), open_trackers
        peak = peak_flops(device_kind)
        self._peak = peak * devices if peak else None
        # Metric -> [sum, weight] over the steps since the last line.
        self._window: dict[str, list[float]] = dict(clock.get("window", {}))
        self._seconds_before = float(clock.get("seconds", 0.0))
        self._setup_s = setup_s + float(clock.get("setup_s", 0.0))
        self._good_s = float(clock.get("good_s", 0.0))
        self.checkpoint_failures = int(clock.get("checkpoint_failures", 0))
        self._work: collections.Counter = collections.Counter()
        self._file: Any = None
        self._boards: list[Any] = []
        if writes:
            self._open(start)
        self._begin = self._window_begin = now()
        self._paused = 0.0
        self._watch = anomalies.Watch()
        self._measured: dict[str, float] = {}
        self._measured_at = start

    def _open(self, start: int) -> None:
        path = self._run.metrics
        self._guard(lambda: _drop_lines_after(path, start))
        try:
            self._file = open(path, "a", encoding="utf-8", buffering=1)
        except OSError as error:
            _LOG.warning("no metrics are written: %s", error)
            self._file = open(os.devnull, "a", encoding="utf-8")
        board = _tensorboard(self._run.tensorboard)
        self._boards = [board] * (board is not None) + self._trackers()

    def _trackers(self) -> list[trackers.Tracker]:
        try:
            return self._open_trackers()
        except Exception as error:  # Of a service that does not answer.
            _LOG.warning("nothing is tracked: %s", error)
            return []

    def step(self, step: int, group: str, metrics: Mapping[str, tuple[float, float]], *, waited_s: float = 0.0) -> None:
        """Takes the metrics of the step that made the state number `step` (1 is the first).

        A metric is a sum and its weight; see `trainable.Mean`.  None at all: the update was skipped.
        """
        if metrics:
            self._collect(group, metrics)
        else:
            self._add(SKIPPED, 1, 1)
        self._work.update(  # type: ignore[call-overload]  # seconds are no integers
            steps=1,
            clips=self._groups[group].clips,
            tokens=self._groups[group].tokens,
            flops=self._groups[group].flops,
            waited_s=waited_s,
        )
        self._timeline.spent("data", waited_s)
        self._timeline.progress(step, now=step == self._steps)
        if step % self._log_every == 0 or step == self._steps:
            self._write_window(step)

    def _collect(self, group: str, metrics: Mapping[str, tuple[float, float]]) -> None:
        many = len(self._groups) > 1
        for name, (total, weight) in metrics.items():
            self._add(f"{group}/{name}" if many else name, total, weight)
        if many:
            self._add("loss", *metrics["loss"])
        if not metrics["loss"][1]:
            self._add(UNFED, 1, 1)

    def _add(self, name: str, total: float, weight: float) -> None:
        entry = self._window.setdefault(name, [0.0, 0.0])
        entry[0] += total
        entry[1] += weight

    def _write_window(self, step: int) -> None:
        counts = {name: self._window.pop(name)[0] for name in (UNFED, SKIPPED) if name in self._window}
        sums = sorted(self._window.items())
        means = {name: total / weight for name, (total, weight) in sums if weight} | counts
        speed = self._speed(step)
        self._note(step, means)
        self.write(step, "train", means | speed)
        for alert in self._watch.take(step, means | speed):
            self._timeline.alert(step, alert.metric, alert.text)
            _LOG.warning("alert: step %d: %s", step, alert.text)
        if self._file is not None:
            _LOG.info("%s", _line(step, self._steps, means, speed))
        self._window.clear()
        self._work.clear()
        self._window_begin, self._paused = self._now(), 0.0

    def _speed(self, step: int) -> dict[str, float]:
        now = self._now()
        seconds = max(now - self._window_begin - self._paused, 1e-9)
        done = max(step - self._start, 1)
        counted = ("steps", "clips", "tokens", "flops")
        speed = {f"{name}_per_s": self._work[name] / seconds for name in counted}
        if self._peak:
            speed["mfu"] = speed["flops_per_s"] / self._peak
        self._good_s += max(seconds - self._work["waited_s"], 0.0)
        return speed | {
            "goodput": self._good_s / max(self.seconds() + self._setup_s, 1e-9),
            "data_wait": min(self._work["waited_s"] / seconds, 1.0),
            "seconds": self.seconds(),
            "eta_s": (self._steps - step) * (now - self._begin) / done,
            "checkpoint_failures": self.checkpoint_failures,
        }

    def seconds(self) -> float:
        """Time spent in the loop over all restarts."""
        return self._seconds_before + self._now() - self._begin

    def clock(self) -> dict[str, Any]:
        """The state with which a later Reporter continues these lines; it is checkpointed."""
        return {
            "window": {k: list(v) for k, v in self._window.items()},
            "seconds": self.seconds(),
            "setup_s": self._setup_s,
            "good_s": self._good_s,
            "checkpoint_failures": self.checkpoint_failures,
        }

    def pause(self, seconds: float, cause: str) -> None:
        """Takes time that was not spent on training steps out of the current window, for a cause of the timeline."""
        self._paused += seconds
        self._timeline.spent(cause, seconds)

    def report(self, step: int, name: str, report: Report) -> None:
        """Writes what a hook returned under `<name>/`; images also as PNG files in samples/."""
        scalars = {f"{name}/{k}": float(v) for k, v in report.scalars.items()}
        self._note(step, scalars)
        self.write(step, name, scalars, {f"{name}/{k}": v for k, v in report.texts.items()})
        if self._file is None:
            return
        if scalars:
            _LOG.info("step %d | %s", step, _metrics(scalars))
        for key, image in report.images.items():
            self._guard(functools.partial(self._write_image, step, f"{name}/{key}", image))

    def _write_image(self, step: int, name: str, image: np.ndarray) -> None:
        from PIL import Image

        self._run.samples.mkdir(exist_ok=True)
        file = self._run.samples / f"{step:08d}_{name.replace('/', '_')}.png"
        Image.fromarray(np.asarray(image, np.uint8)).save(file)
        for board in self._boards:
            board.write_images(step, {name: np.asarray(image, np.uint8)[None]})

    def write(self, step: int, kind: str, scalars: Mapping[str, float], texts: Mapping[str, str] = {}) -> None:
        """One line of `metrics.jsonl`, {"step", "kind", ...}, and the same on TensorBoard."""
        if self._file is None:
            return
        entry = {"step": step, "kind": kind, **{k: _finite(v) for k, v in scalars.items()}, **texts}
        self._guard(lambda: self._file.write(json.dumps(entry, allow_nan=False) + "\n"))
        for board in self._boards:
            self._guard(functools.partial(board.write_scalars, step, dict(scalars)))
            if texts:
                self._guard(functools.partial(board.write_texts, step, dict(texts)))

    def _note(self, step: int, scalars: Mapping[str, float]) -> None:
        if step != self._measured_at:
            self._measured, self._measured_at = {}, step
        self._measured |= scalars

    def measured(self, step: int) -> dict[str, float]:
        """What was measured at this very step so far, by name in the log; no speeds."""
        return dict(self._measured) if step == self._measured_at else {}

    def _guard(self, write: Callable[[], Any]) -> None:
        """A log that cannot be written must not end the training."""
        try:
            write()
        except Exception as error:  # OSError, or TensorFlow's own types from clu.
            _LOG.warning("metrics could not be written: %s", error)

    def flush(self) -> None:
        """Makes what was written so far durable; called when a checkpoint is."""
        if self._file is not None:
            self._guard(self._file.flush)
            self._guard(lambda: os.fsync(self._file.fileno()))
        for board in self._boards:
            self._guard(board.flush)

    def close(self) -> None:
        """Writes what is pending; the reporter must not be used afterwards."""
        self.flush()
        for board in self._boards:
            self._guard(board.close)
        if self._file is not None:
            self._guard(self._file.close)


def parameter_overview(params: Any) -> str:
    """A table of every parameter: shape, dtype, size; totals below."""
    from clu import parameter_overview as overview

    flat = _flatten(params)
    return overview.get_parameter_overview(flat, include_stats=False)


def _flatten(tree: Any) -> dict[str, Any]:
    import jax

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


def write_board(directory: Path, steps: Mapping[int, Mapping[str, float]]) -> bool:
    """Scalars as TensorBoard files of one curve each: step -> tag -> value; values that are not finite are left out.

    Returns False, having said why, where they cannot be written.
    """
    board = _tensorboard(directory)
    if board is None:
        return False
    try:
        for step in sorted(steps):
            scalars = {tag: value for tag, value in steps[step].items() if _finite(value) is not None}
            board.write_scalars(step, scalars)
        board.close()
    except Exception as error:  # OSError, or TensorFlow's own types from clu.
        _LOG.warning("TensorBoard files could not be written: %s", error)
        return False
    return True


def _tensorboard(directory: Path) -> Any:
    """clu's asynchronous writer; None where it cannot write, or TensorFlow, which it needs, is not installed."""
    try:
        from clu import metric_writers

        return metric_writers.AsyncMultiWriter([metric_writers.SummaryWriter(str(directory))])
    except Exception as error:  # Not installed, or TensorFlow's own types where it cannot write.
        _LOG.warning("no TensorBoard files are written (%s); other files have everything", error)
        return None


def _drop_lines_after(path: Path, step: int) -> None:
    """Keeps the lines up to a step: those after it will be written again."""
    if not path.exists():
        return
    kept = [json.dumps(entry) + "\n" for entry in lines.read(path) if entry["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _line(step: int, steps: int, means: Mapping[str, float], speed: Mapping[str, float]) -> str:
    parts = [
        f"step {step}/{steps}",
        _metrics(means),
        f"{_si(speed['tokens_per_s'])}tokens/s",
        f"{_si(speed['clips_per_s'])}clips/s",
        f"{_si(speed['flops_per_s'])}FLOP/s" + (f" (MFU {100 * speed['mfu']:.1f} %)" if "mfu" in speed else ""),
        f"data wait {100 * speed['data_wait']:.0f} %",
        f"goodput {100 * speed['goodput']:.0f} %",
        f"ETA {_duration(speed['eta_s'])}",
    ]
    return " | ".join(part for part in parts if part)


def _metrics(values: Mapping[str, float]) -> str:
    """`loss` first, the rest in order of name."""
    ordered = sorted(values, key=lambda name: (name != "loss", name))
    return "  ".join(f"{name} {values[name]:.4g}" for name in ordered)


def _si(value: float) -> str:
    """1234.5 -> '1.23 k'."""
    for scale, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g} {prefix}"
    return f"{value:.3g} "


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
