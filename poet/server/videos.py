"""`/v1/videos`: requests as clients of the OpenAI videos API, vLLM-Omni and SGLang send them, as jobs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from poet.server.fields import Schema, check_names
from poet.server.films import LONG
from poet.server.service import Refused
from poet.spec import MOST_SEED

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_TEXT, _COUNT, _NUMBER = {"type": "string"}, {"type": "integer", "minimum": 1}, {"type": "number"}
_MEDIA = {"type": "string", "description": "the id of an upload or of a job; in a form, the file itself"}
_LENGTH = {"type": "number", "exclusiveMinimum": 0}

FIELDS: dict[str, Schema] = {
    "prompt": {**_TEXT, "minLength": 1, "description": "what it shows"},
    "model": {**_TEXT, "description": "that of the service; any other is refused"},
    "seconds": {
        "anyOf": [_LENGTH, {"type": "string", "pattern": r"^\d+(\.\d+)?$"}],
        "description": "up to the length of a clip makes one clip, more a film of that length",
    },
    "size": {
        **_TEXT,
        "pattern": r"^\d{1,5}x\d{1,5}$",
        "description": "WIDTHxHEIGHT: of the model, or as its super-resolution makes a clip",
    },
    "input_reference": _MEDIA,
    "negative_prompt": _TEXT,
    "seed": {"type": "integer", "minimum": 0, "maximum": MOST_SEED},
    "guidance_scale": {**_NUMBER, "minimum": 0, "maximum": 100},
    "num_frames": {**_COUNT, "description": "instead of seconds"},
    "fps": {**_NUMBER, "description": "that of the model"},
    "width": _COUNT,
    "height": _COUNT,
    "sound": {"type": "boolean", "default": False, "description": "with sound, where the model makes it"},
}
# What others take, and why it means nothing here.
_OTHERS = {
    "num_inference_steps": "the model samples codes one after the other: there are no steps to choose",
    "n": "a request makes one video: send several, or POST /v1/jobs with num",
}


def as_job(asked: Mapping[str, Any], card: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `/v1/jobs` of a request for a video.

    Args:
      card: of the model.

    Raises UserError, with the field's name: what is wrong, and what is allowed.
    """
    for name, why in _OTHERS.items():
        if name in asked:
            raise Refused(f"{name}: {why}", param=name)
    check_names(asked, FIELDS, "a request for a video")
    prompt = asked.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise Refused("prompt: give a text that says what the video shows", param="prompt")
    if asked.get("model") not in (None, "", card["id"]):
        raise Refused(f"model {asked['model']!r}: this service has {card['id']}", 404, "model_not_found", "model")
    larger = _is_larger(asked, card)
    seconds, whole = _seconds(asked, card["clip"]), card["clip"]["seconds"]
    job: dict[str, Any] = {"prompt": prompt}
    for theirs, ours in (("negative_prompt", "negative_prompt"), ("seed", "seed"), ("guidance_scale", "guidance")):
        if asked.get(theirs) not in (None, ""):
            job[ours] = asked[theirs]
    sound = asked.get("sound", False)
    if not isinstance(sound, bool):
        raise Refused(f"sound = {sound!r}: expected true or false", param="sound")
    opening = asked.get("input_reference")
    if seconds > whole + 1e-6:
        if larger:
            raise Refused(
                "size: a film has that of the model; have its result made larger by the job `upscale`", param="size"
            )
        opened = {"clip": opening} if opening else {}
        return {"task": LONG, **job, "seconds": seconds, "sound": sound, **opened}
    more = {**({"clip": opening} if opening else {}), **({"upscale": True} if larger else {})}
    return {"task": _task(bool(opening), sound), **job, **more}


def _task(opened: bool, sound: bool) -> str:
    if opened and sound:
        raise Refused(
            "a clip with an input_reference has no sound: ask for more seconds than one clip, which makes a film",
            param="sound",
        )
    return "image_to_video" if opened else "text_to_video_with_audio" if sound else "text_to_video"


def _number(asked: Mapping[str, Any], name: str) -> float | None:
    value = asked.get(name)
    if value in (None, ""):
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        raise Refused(f"{name} = {value!r}: expected a number", param=name) from None


def _seconds(asked: Mapping[str, Any], clip: Mapping[str, float]) -> float:
    """How long it is to be; without a word, one clip."""
    fps, frames, seconds = (_number(asked, name) for name in ("fps", "num_frames", "seconds"))
    if fps is not None and fps != clip["rate_hz"]:
        raise Refused(f"fps = {fps:g}: the model makes {clip['rate_hz']:g} frames a second", param="fps")
    if frames is not None:
        given = frames / clip["rate_hz"]
        if seconds is not None and abs(given - seconds) * clip["rate_hz"] > 1:
            raise Refused(
                f"seconds = {seconds:g} and num_frames = {frames:g} contradict each other, at {clip['rate_hz']:g} "
                "frames a second: give one of them",
                param="num_frames",
            )
        seconds = given
    if seconds is not None and not 0 < seconds < 1e9:
        raise Refused(f"seconds = {seconds:g}: a video lasts a positive time", param="seconds")
    return clip["seconds"] if seconds is None else seconds


def _is_larger(asked: Mapping[str, Any], card: Mapping[str, Any]) -> bool:
    """Whether the size that is asked for is the one that super-resolution makes; Refused for any but these two."""
    clip, wanted = card["clip"], _wanted_size(asked, card["clip"])
    sizes = {size_of(clip, scale): scale > 1 for scale in (card.get("scale", 1), 1)}
    if wanted not in sizes:
        raise Refused(f"size: the model makes {' or '.join(sorted(sizes))}, and nothing else", param="size")
    return sizes[wanted]


def _wanted_size(asked: Mapping[str, Any], clip: Mapping[str, float]) -> str:
    """WIDTHxHEIGHT of a request; without a word that of the model."""
    width, height = (_number(asked, name) for name in ("width", "height"))
    size = asked.get("size") or ""
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if size and not found:
        raise Refused(f"size = {size!r}: expected WIDTHxHEIGHT, such as {size_of(clip)}", param="size")
    sizes = {(float(found[1]), float(found[2]))} if found else set()
    if width is not None or height is not None:
        sizes.add((clip["width"] if width is None else width, clip["height"] if height is None else height))
    if len(sizes) > 1:
        raise Refused("size contradicts width and height: give one of them", param="size")
    width, height = next(iter(sizes), (clip["width"], clip["height"]))
    return size_of({"width": width, "height": height})


def size_of(clip: Mapping[str, float], scale: int = 1) -> str:
    """WIDTHxHEIGHT of a clip that is made so many times as large."""
    return f"{scale * clip['width']:g}x{scale * clip['height']:g}"
