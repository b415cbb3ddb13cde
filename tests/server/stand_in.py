"""A backend without a model, through the interface of `poet.server.backend`: clips of noise, a step for each frame.

python stand_in.py FOLDER PORT     serves it, with quick jobs
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from poet import media
from poet.server.backend import Accepted, Cancelled, News, Watch, Work, made
from poet.server.fields import check_names
from poet.spec import MOST_SEED, UserError

TEXT = {"type": "string", "default": ""}
FIELDS = {
    "prompt": TEXT,
    "negative_prompt": TEXT,
    "clip": TEXT,
    "seed": {"type": "integer", "minimum": 0, "maximum": MOST_SEED},
    "guidance": {"type": "number", "minimum": 0, "maximum": 100, "default": 1.0},
    "steps": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 4},
    "fault": {"type": "string", "enum": ["", "die", "raise", "refuse"], "default": ""},
}
FILM = {**FIELDS, "seconds": {"type": "number"}, "sound": {"type": "boolean"}}


def frames_of(seed: int, prompt: str, steps: int) -> np.ndarray:
    """uint8 [steps, 16, 16, 3]."""
    return np.random.default_rng([seed, *prompt.encode()]).integers(0, 256, (steps, 16, 16, 3), np.uint8)


@dataclasses.dataclass(frozen=True)
class StandIn:
    """`poet.server.backend.Backend`; step_s: seconds of a step."""

    step_s: float = 0.02
    size: int = 3
    required = {}

    @property
    def requests(self) -> dict[str, Any]:
        return {"text_to_video": FIELDS, "image_to_video": FIELDS, "long": FILM}

    def card(self) -> dict[str, Any]:
        clip = {"frames": 4, "height": 16, "width": 16, "rate_hz": 4.0, "seconds": 1.0, "sample_rate_hz": 16_000}
        facts = {"clip_medium": "video", "conditioning_frames": [1], "regions": [], "outputs": ["video"]}
        flags = dict.fromkeys(("text", "clip", "clip_needed", "end", "mask", "depth", "depth_needed"), False)
        tasks = [{"name": "text_to_video", "formats": ["png"], **facts, **flags}]
        named = {"id": "stand_in", "fingerprint": "0" * 16, "films": ["long"], "sample": {}, "limits": {}}
        return {**named, "clip": clip, "tasks": tasks, "batch": self.size}

    def admit(self, asked: dict[str, Any], media: dict[str, Any]) -> Accepted:
        task = asked.get("task")
        if task not in self.requests:
            raise UserError(f"task {task!r} is no task of this model: {', '.join(self.requests)}")
        own = {name: value for name, value in asked.items() if name != "task"}
        check_names(own, self.requests[task], f"a request for {task}")
        wanted = {"string": str, "integer": int, "number": (int, float), "boolean": bool}
        for name, value in own.items():
            kind = self.requests[task][name]["type"]
            if not isinstance(value, wanted[kind]) or isinstance(value, bool) != (kind == "boolean"):
                raise UserError(f"{name} = {value!r}: expected a {kind}")
        if not 0 <= own.get("guidance", 1) <= 100:
            raise UserError("guidance must lie in 0..100")
        request = {"prompt": "", "steps": 4, "fault": "", "clip": "", **own}
        if not 1 <= request["steps"] <= 1000 or not 0 <= request["seed"] <= MOST_SEED:
            raise UserError("steps must lie in 1..1000, seed in 0..2**32 - 1")
        if request["fault"] not in FIELDS["fault"]["enum"]:
            raise UserError(f"fault {request['fault']!r}: one of {FIELDS['fault']['enum']}")
        if request["prompt"] == "break the service":
            raise RuntimeError("a secret of the service")
        batch_key = "" if task == "long" else f"{task} of {request['steps']}"
        return Accepted(task=task, request={**request, "seconds": 1.0}, batch_key=batch_key, seconds=1.0)

    def load(self) -> Maker:
        return Maker(self.step_s)


class Unloadable(StandIn):
    """A model that cannot be loaded."""

    def load(self) -> Maker:
        raise UserError("the weights are damaged")


@dataclasses.dataclass
class Maker:
    """`poet.server.backend.Maker`."""

    step_s: float

    def session(self, batch_key: str, watch: Watch) -> Session:
        return Session(self.step_s, None if batch_key else watch)


class Session:
    """`poet.server.backend.Session`; with a watch it makes a job in one step."""

    def __init__(self, step_s: float, watch: Watch | None):
        self._step_s, self._watch = step_s, watch
        self._works: dict[str, list[Any]] = {}

    @property
    def names(self) -> list[str]:
        return [*self._works]

    def add(self, work: Work) -> None:
        if work.request["clip"]:
            media.display_size(work.folder / work.request["clip"])
        if work.request["fault"] == "refuse":
            raise UserError(f"{work.folder}/inputs/x.png: it does not show what the task takes")
        self._works[work.id] = [work, 0]

    def drop(self, job_id: str) -> None:
        self._works.pop(job_id, None)

    def step(self) -> list[News]:
        time.sleep(self._step_s)
        if self._watch is None:
            return [news for job_id in self.names for news in self._one(job_id)]
        try:
            (job_id,) = self._works
            while True:
                news, *end = self._one(job_id)
                self._watch(news)
                if end:
                    return end
                time.sleep(self._step_s)
        except Cancelled:
            self._works.clear()
            raise

    def _one(self, job_id: str) -> list[News]:
        work, done = self._works[job_id]
        request = work.request
        fault, steps = request["fault"], request["steps"]
        if fault == "die" and done == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "raise" and done == 1:
            del self._works[job_id]
            return [News(id=job_id, error=RuntimeError(f"a secret in {work.folder}"))]
        frames = frames_of(work.seed, request["prompt"], steps)
        self._works[job_id][1] = done = done + 1
        news = [News(id=job_id, fraction=done / steps, latents=done, frames=lambda: frames[done - 1 : done])]
        if done == steps:
            file = work.place / "000.png"
            media.write_png_strip(file, frames)
            del self._works[job_id]
            news.append(News(id=job_id, fraction=1.0, result=made([file], seconds=request["seconds"])))
        return news


if __name__ == "__main__":
    from poet.server.run import serve
    from poet.server.settings import ServeSpec

    try:
        quick = ServeSpec(grace_seconds=0.5, rate_per_minute=1e6, max_queue=5000, max_queue_per_key=5000)
        step_s = float([*sys.argv, "0.03"][3])
        serve(StandIn(step_s=step_s), Path(sys.argv[1]), port=int(sys.argv[2]), settings=quick)
    except UserError as error:
        sys.exit(f"error: {error}")
