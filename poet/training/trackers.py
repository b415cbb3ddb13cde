"""Services that experiments are tracked with, behind the methods of clu's metric writers.

What is logged to TensorBoard goes there as well (`TRAIN.trackers`).  Where they are, and under which project, is the
services' own business: WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...  A run that is
resumed goes on in the same place: its id is kept in the work dir.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from poet.runs import assets
from poet.spec import UserError, choose

FILE = "trackers.json"


class Tracker(Protocol):
    """The methods of `clu.metric_writers.MetricWriter` that a training calls."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None: ...

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Arrays uint8 [N, H, W, 3], by name."""

    def flush(self) -> None: ...

    def close(self) -> None: ...


class WandB:
    """Weights & Biases."""

    def __init__(self, folder: Path, known: str | None, config: Mapping[str, Any]):
        import wandb

        self._module = wandb
        self._run = wandb.init(dir=str(folder), id=known, resume="allow" if known else None, config=dict(config))
        # Its own step may not go back, as that of a resumed run does.
        self._run.define_metric("*", step_metric="step")
        self.id = str(self._run.id)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log({"step": step, **scalars})

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        self._run.log({"step": step, **texts})

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Arrays uint8 [N, H, W, 3], by name."""
        self._run.log({"step": step, **{k: [self._module.Image(x) for x in v] for k, v in images.items()}})

    def flush(self) -> None:
        """It sends by itself."""

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """MLflow."""

    def __init__(self, folder: Path, known: str | None, config: Mapping[str, Any]):
        import mlflow

        self._module = mlflow
        self.id = str(mlflow.start_run(run_id=known).info.run_id)
        if not known:
            mlflow.log_dict(dict(config), "spec.json")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        self._module.log_metrics({_plain(name): float(value) for name, value in scalars.items()}, step=step)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            self._module.log_text(text, f"texts/{step:08d}_{_file(name)}.txt")

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Arrays uint8 [N, H, W, 3], by name."""
        for name, batch in images.items():
            for number, image in enumerate(batch):
                self._module.log_image(image, f"images/{step:08d}_{_file(name)}_{number}.png")

    def flush(self) -> None:
        """It sends at once."""

    def close(self) -> None:
        self._module.end_run()


TRACKERS: dict[str, Callable[[Path, str | None, Mapping[str, Any]], Any]] = {"wandb": WandB, "mlflow": MLflow}


def check(names: Sequence[str]) -> None:
    """Raises UserError for a tracker that is unknown, or whose package is not installed."""
    for name in names:
        choose(name, TRACKERS, "tracker")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"TRAIN.trackers = {tuple(names)}: {name} is not installed: {assets.install(name)}")


def start(names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> list[Tracker]:
    """Opens trackers for the run in a work dir, those that it had before where there are any."""
    file = folder / FILE
    try:
        ids = dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        ids = {}
    found = {name: TRACKERS[name](folder, ids.get(name), config) for name in names}
    if found:
        file.write_text(json.dumps(ids | {name: tracker.id for name, tracker in found.items()}) + "\n")
    return list(found.values())


def _plain(name: str) -> str:
    """A name of which MLflow allows every character."""
    return re.sub(r"[^\w\-./ ]", "_", name)


def _file(name: str) -> str:
    return re.sub(r"\W", "_", name)
