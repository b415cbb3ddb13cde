"""Requests for films: what may be asked of a checkpoint, checked without the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from poet.sampling.films import chain
from poet.sampling.films.camera import MOVES
from poet.sampling.films.long import LongFilm
from poet.sampling.films.prompts import Schedule
from poet.sampling.films.sampler import Wish, check_trained, check_wish
from poet.sampling.films.storyboard import CONTINUE, Storyboard
from poet.sampling.films.windows import Windows
from poet.server.fields import SAMPLE, Schema, check_names, schemas
from poet.spec import MOST_SEED, SampleSpec, UserError, from_dict, to_dict
from poet.tasks.resolved import Resolved

LONG, STORYBOARD, CHAIN = "long", "storyboard", "chain"
# Fields that a request for them has.
REQUIRED: Mapping[str, tuple[str, ...]] = {STORYBOARD: ("scenes",), CHAIN: ("jobs",)}
# How films go on (`poet.sampling.films.sampler.FilmSampler`).
_WAYS: dict[str, Schema] = {
    "context": {"type": "integer", "minimum": 0, "maximum": 4096, "default": 0},
    "recode": {"type": "boolean", "default": False},
    "sink": {"type": "boolean", "default": False},
}
_TEXT: Schema = {"type": "string", "default": ""}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Film:
    """A film that can be made.

    Attributes:
      request: of `poet.sampling.films.studio.KINDS`, as JSON has it.
      ways: how it goes on.
      sample: settings, with the seed.
      seconds: how long it is.
      clips: of the model that it takes.
    """

    request: Mapping[str, Any]
    ways: Mapping[str, Any]
    sample: SampleSpec
    seconds: float
    clips: int


def requests(sample: Mapping[str, Schema], words: Mapping[str, str] | None = None) -> dict[str, dict[str, Schema]]:
    """Kind of film -> schemas of the fields of its request.

    Args:
      words: a model's own for movements of the camera (`PROMPT.camera`).
    """
    camera = {**_TEXT, "enum": [*dict.fromkeys(("", *MOVES, *(words or {})))]}
    timed = {"type": "array", "items": {"type": "string"}}
    long = {
        "prompt": {"anyOf": [{"type": "string"}, timed], "description": "texts, later ones as `3: it begins to rain`"},
        "seconds": {"type": "number", "exclusiveMinimum": 0, "default": LongFilm.seconds},
        "clip": {**_TEXT, "description": "an upload or a job whose result opens the film"},
        "camera": camera,
        **{name: _TEXT for name in ("sound_prompt", "negative_prompt")},
        "sound": {"type": "boolean", "default": False},
    }
    seed = {"seed": {"type": "integer", "minimum": 0, "maximum": MOST_SEED}}
    board, jobs = schemas(Storyboard), schemas(chain.Job)
    scenes = {"type": "array", "minItems": 1, "items": board["scenes"]["items"]}
    scenes["items"]["properties"]["camera"] = camera
    listed = {"type": "array", "minItems": 1, "items": _object(jobs, ["task"])}
    others = {name: schema for name, schema in sample.items() if name != "seed"}
    return {
        LONG: {**long, **_WAYS, **sample},
        STORYBOARD: {**board, **seed, "scenes": scenes, **_WAYS, **others},
        CHAIN: {"jobs": listed, "clip": long["clip"], **seed, **others},
    }


def _object(properties: Mapping[str, Schema], required: list[str]) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": dict(properties), "required": required}


def admit(kind: str, asked: Mapping[str, Any], resolved: Resolved, most_seconds: float) -> Film:
    """Checks a request for a film; UserError says what is wrong, and what is allowed."""
    return _KINDS[kind](dict(asked), resolved, most_seconds)


def _settings(asked: Mapping[str, Any], resolved: Resolved) -> SampleSpec:
    own = {name: value for name, value in asked.items() if name in SAMPLE}
    return from_dict(SampleSpec, {**to_dict(resolved.spec.sample), **own})


def _ways(asked: Mapping[str, Any], has_audio: bool) -> dict[str, Any]:
    defaults = {name: schema["default"] for name, schema in _WAYS.items()}
    ways = {name: asked.get(name, default) for name, default in defaults.items()}
    for name, value in ways.items():
        if type(value) is not type(defaults[name]):
            raise UserError(f"{name} = {value!r}: expected {type(defaults[name]).__name__}")
    if ways["recode"] and ways["sink"]:
        raise UserError("a sink is a carried code: give only one of recode and sink")
    return {"has_audio": has_audio, **ways}


def _length(seconds: Any, most: float) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= most:
        raise UserError(f"seconds = {seconds!r}: a film of this service has more than 0 and at most {most:g} seconds")
    return float(seconds)


def _text(asked: Mapping[str, Any], name: str) -> str:
    value = asked.get(name, "")
    if not isinstance(value, str):
        raise UserError(f"{name} = {value!r}: expected a text")
    return value


def _flag(asked: Mapping[str, Any], name: str) -> bool:
    value = asked.get(name, False)
    if not isinstance(value, bool):
        raise UserError(f"{name} = {value!r}: expected true or false")
    return value


def _long(asked: dict[str, Any], resolved: Resolved, most_seconds: float) -> Film:
    sample, prompt = _settings(asked, resolved), resolved.spec.prompt
    texts = asked.get("prompt", [])
    texts = [texts] if isinstance(texts, str) and texts else texts or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"prompt = {texts!r}: expected a text, or a list of them")
    wanted = LongFilm(
        prompts=tuple(texts),
        seconds=_length(asked.get("seconds", LongFilm.seconds), most_seconds),
        opening=_text(asked, "clip"),
        camera=_text(asked, "camera"),
        suffix=prompt.suffix,
        negative=prompt.negative_for(bool(texts), _text(asked, "negative_prompt")),
        sound_prompt=_text(asked, "sound_prompt"),
        seed=sample.seed,
    )
    wanted.check()
    ways = _ways(asked, _flag(asked, "sound"))
    windows = Windows.of(resolved, ways["context"])
    for text in Schedule.parse(wanted.prompts).prompts:
        wish = Wish(prompt=text, negative=wanted.negative if text else "", sound_prompt=wanted.sound_prompt)
        _check(resolved, windows, wish, sample, bool(wanted.opening), ways)
    return Film(
        request=dataclasses.asdict(wanted) | {"prompts": list(wanted.prompts)},
        ways=ways,
        sample=sample,
        seconds=wanted.seconds,
        clips=_clips(windows, wanted.seconds),
    )


def _check(
    resolved: Resolved, windows: Windows, wish: Wish, sample: SampleSpec, opened: bool, ways: Mapping[str, Any]
) -> None:
    if wish.sound_prompt and not ways["has_audio"]:
        raise UserError("a sound_prompt needs sound = true")
    check_wish(resolved, windows, wish, sample, opened=opened, has_audio=ways["has_audio"])


def _clips(windows: Windows, seconds: float) -> int:
    return max(windows.clips_for(windows.frames_in(seconds), 0), 1)


def _storyboard(asked: dict[str, Any], resolved: Resolved, most_seconds: float) -> Film:
    sample, prompt = _settings(asked, resolved), resolved.spec.prompt
    fields = {name: value for name, value in asked.items() if name in schemas(Storyboard)}
    scenes = fields.get("scenes")
    if not isinstance(scenes, list) or not all(isinstance(scene, dict) for scene in scenes):
        raise UserError("scenes: expected a list of objects, such as [{'prompt': 'a dog runs'}]")
    fields["seed"] = sample.seed
    board = from_dict(Storyboard, fields)
    board = board.replace(suffix=board.suffix or prompt.suffix, negative=board.negative or prompt.negative)
    seconds = _length(sum(scene.seconds for scene in board.scenes), most_seconds)
    ways = _ways(asked, board.sound)
    windows = Windows.of(resolved, ways["context"])
    for number, scene in enumerate(board.scenes, 1):
        text = board.prompt(scene, prompt.camera)
        negative = (scene.negative or board.negative) if text else ""
        opened = bool(scene.frame or scene.clip or scene.transition == CONTINUE)
        wish = Wish(prompt=text, negative=negative, sound_prompt=scene.sound_prompt)
        try:
            _check(resolved, windows, wish, sample, opened, ways)
        except UserError as error:
            raise UserError(f"scene {number}: {error}") from None
    clips = sum(_clips(windows, scene.seconds) for scene in board.scenes)
    return Film(request=to_dict(board), ways=ways, sample=sample, seconds=seconds, clips=clips)


def _chain(asked: dict[str, Any], resolved: Resolved, most_seconds: float) -> Film:
    sample, listed = _settings(asked, resolved), asked.get("jobs")
    if not isinstance(listed, list) or not listed or not all(isinstance(job, dict) for job in listed):
        raise UserError("jobs: expected a list of objects, such as [{'task': 'text_to_video', 'prompt': 'a dog runs'}]")
    jobs, clip = [], resolved.spec.clip
    for number, values in enumerate(listed):
        try:
            check_names(values, schemas(chain.Job), "a job of a chain")
            if "task" not in values:
                raise UserError("it has no task")
            job = from_dict(chain.Job, {"seed": (sample.seed + number) % (MOST_SEED + 1), **values})
            if job.task != LONG:
                check_trained(resolved, job.task)
        except UserError as error:
            raise UserError(f"job {number + 1}: {error}") from None
        jobs.append(job)
    long = [job.seconds for job in jobs if job.task == LONG]
    seconds = _length(max([clip.frames / clip.rate_hz, *long]), max(most_seconds, clip.frames / clip.rate_hz))
    windows = Windows.of(resolved, 0)
    return Film(
        request={"jobs": [to_dict(job) for job in jobs], "clip": _text(asked, "clip")},
        ways=_ways({}, False),
        sample=sample,
        seconds=seconds,
        clips=len(jobs) - len(long) + sum(_clips(windows, each) for each in long),
    )


_KINDS = {LONG: _long, STORYBOARD: _storyboard, CHAIN: _chain}
