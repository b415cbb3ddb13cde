"""The stand-in backend with the requests of a whole model, for a page that makes forms of them."""

from __future__ import annotations

import dataclasses
from typing import Any

from stand_in import TEXT, StandIn

from poet.server import films
from poet.server.backend import Accepted
from poet.server.fields import SAMPLE, check_names, schemas
from poet.spec import SampleSpec, from_dict

_COUNT = {"type": "integer", "minimum": 1, "maximum": 8, "default": 1}
_TASK = {
    **{name: TEXT for name in ("prompt", "negative_prompt", "clip", "end", "region", "mask", "depth")},
    "conditioning_frames": {"type": "integer", "minimum": 0, "maximum": 64, "default": 0},
    "num": _COUNT,
    "format": TEXT,
    "upscale": {"type": "boolean", "default": False},
    **schemas(SampleSpec, SAMPLE),
}
_NOTHING = {"text": False, "clip": False, "clip_needed": False, "clip_medium": "", "conditioning_frames": []}
_NOTHING |= {"end": False, "regions": [], "mask": False, "depth": False, "depth_needed": False}
_NOTHING |= {"outputs": ["video"], "formats": ["png"]}
_CLIP = {"clip": True, "clip_needed": True, "clip_medium": "video"}
TASKS = {
    "text_to_video": {"text": True},
    "image_to_video": {"text": True, **_CLIP, "conditioning_frames": [1]},
    "frame_interpolation": {**_CLIP, "conditioning_frames": [1, 2], "end": True},
    "inpainting": {**_CLIP, "regions": ["central", "top_left"], "mask": True},
    "stylization": {"text": True, **_CLIP, "depth": True},
    "audio_to_video": {"clip": True, "clip_needed": True, "clip_medium": "audio"},
}


@dataclasses.dataclass(frozen=True)
class StudioStandIn(StandIn):
    """`poet.server.backend.Backend`; every job makes a strip of noise."""

    steps: int = 4

    @property
    def requests(self) -> dict[str, Any]:
        upscale = {name: _TASK[name] for name in ("prompt", "clip", "seed")}
        return dict.fromkeys(TASKS, _TASK) | films.requests(schemas(SampleSpec, SAMPLE)) | {"upscale": upscale}

    def card(self) -> dict[str, Any]:
        tasks = [{"name": name, **_NOTHING, **facts} for name, facts in TASKS.items()]
        kinds = ["long", "storyboard", "chain"]
        return super().card() | {"tasks": tasks, "films": kinds, "limits": {"max_film_seconds": 60.0}}

    def admit(self, asked: dict[str, Any], media: dict[str, Any]) -> Accepted:
        own = {name: value for name, value in asked.items() if name != "task"}
        check_names(own, self.requests[asked["task"]], f"a request for {asked['task']}")
        from_dict(SampleSpec, {name: value for name, value in own.items() if name in SAMPLE})
        prompt = own.get("prompt", "")
        request = {"prompt": str(prompt), "steps": self.steps, "fault": "", "clip": "", "seconds": 1.0}
        return Accepted(task=asked["task"], request=request, batch_key="", seconds=1.0)
