"""The backend of a checkpoint: what may be asked of it, in the process of the service, without a device.

The worker loads `poet.server.making`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from poet import streams
from poet.models.transformer import build_model
from poet.runs.run import Run, here
from poet.sampling import jobs, larger, superres
from poet.sampling.plans import Plan
from poet.sampling.requests import Request
from poet.server import films, needs
from poet.server.backend import Accepted, Maker
from poet.server.fields import SAMPLE, Schema, check_names, schemas
from poet.server.intake import SOUND
from poet.server.memory import Need
from poet.server.settings import ServeSpec
from poet.spec import SampleSpec, TextSpec, UserError, from_dict, near_names, to_dict
from poet.streams.base import reach
from poet.streams.low_resolution import SCALE
from poet.tasks.registry import Task
from poet.tasks.resolved import Resolved
from poet.tokenizers import frozen, minilm

# What is said where nothing smaller of a request would fit, and the parts of a clip's sides that are tried.
_MORE = "this service needs more memory (--memory_gib) or a smaller --batch"
_PARTS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05)
# Fields of requests for samples that are the client's; the others name paths of this machine.
REQUEST = (
    "prompt",
    "negative_prompt",
    "clip",
    "conditioning_frames",
    "end",
    "region",
    "mask",
    "keep_original",
    "depth",
)
REQUEST += ("num", "format")
UPSCALE = "upscale"
# Fields that requests have which are of no task.
_REQUIRED = {**films.REQUIRED, UPSCALE: ("clip",)}


@dataclasses.dataclass(frozen=True)
class CheckpointBackend:
    """`poet.server.backend.Backend` of a checkpoint.

    Attributes:
      run, resolved: the checkpoint, and its experiment with `settings`, the bindings that it was overridden with;
        SAMPLE.block is at least 1.
      limits: of the service.
      upscalers: super-resolution networks that make clips larger, one after the other.
    """

    run: Run
    resolved: Resolved
    settings: tuple[str, ...]
    limits: ServeSpec = ServeSpec()
    upscalers: tuple[Run, ...] = ()

    @property
    def size(self) -> int:
        """Samples of a batch."""
        return self.resolved.spec.sample.block * self.resolved.spec.sample.devices

    @functools.cached_property
    def tasks(self) -> dict[str, Task]:
        """Tasks that the checkpoint was trained on, by name."""
        return {task.name: task for task in self.resolved.mixture}

    @functools.cached_property
    def requests(self) -> dict[str, dict[str, Schema]]:
        """Task -> schemas of the fields of its requests, beside `task`."""
        sample = schemas(SampleSpec, SAMPLE)
        for name, value in to_dict(self.resolved.spec.sample).items():
            if name in sample:
                sample[name]["default"] = value
        del sample["seed"]["default"]  # A request without one has a random one.
        of_samples = schemas(Request, REQUEST)
        of_samples["num"] |= {"maximum": self.limits.max_samples}
        of_films = films.requests(sample, self.resolved.spec.prompt.camera) if self.makes_films else {}
        found = {name: {**of_samples, **sample, **self._larger_fields(task)} for name, task in self.tasks.items()}
        found |= of_films
        if self.upscalers:
            named = {name: schemas(Request, [name])[name] for name in ("prompt", "clip")}
            found[UPSCALE] = {**named, "seed": sample["seed"]}
        return found

    def _larger_fields(self, task: Task) -> dict[str, Schema]:
        """The field that has the networks make what a task has made larger, where there are pictures and networks."""
        if not self.upscalers or not any(stream.shows for stream in task.predicted):
            return {}
        said = f"whether its pictures are made {self.scale} times as high and wide"
        return {UPSCALE: {"type": "boolean", "default": False, "description": said}}

    @functools.cached_property
    def required(self) -> dict[str, tuple[str, ...]]:
        """Task -> the fields that no request for it may leave out."""
        return {name: _needed(self._described(task)) for name, task in self.tasks.items()} | _REQUIRED

    @property
    def makes_films(self) -> bool:
        """Whether any task continues frames."""
        return any(task.output[0] == "video" for task in self.tasks.values() if task.output)

    def card(self) -> dict[str, Any]:
        """The model, as `/v1/models` has it: enough to make a form of any of its requests."""
        clip, checkpoint = self.resolved.spec.clip, self.run.checkpoint
        return {
            "id": f"{checkpoint.path.name}-{checkpoint.fingerprint}",
            "fingerprint": checkpoint.fingerprint,
            "clip": {
                "frames": clip.frames,
                "height": clip.height,
                "width": clip.width,
                "rate_hz": clip.rate_hz,
                "seconds": clip.frames / clip.rate_hz,
                "sample_rate_hz": clip.sample_rate_hz,
            },
            "scale": self.scale,
            "tasks": [self._described(task) for task in self.tasks.values()],
            "films": [name for name in self.requests if name not in self.tasks],
            "sample": {name: value for name, value in to_dict(self.resolved.spec.sample).items() if name in SAMPLE},
            "batch": self.size,
            "limits": to_dict(self.limits),
        }

    def _described(self, task: Task) -> dict[str, Any]:
        """What a form of a task needs."""
        derived, spec = task.derived, self.resolved.spec
        factor = spec.video_tokenizer.factor[0]
        within = derived.frames(spec.conditioning, spec.clip.frames, factor) if derived else ()
        opens = [*self.resolved.conditioning_choices(task)]
        return {
            "name": task.name,
            "text": task.text,
            "clip": bool(task.condition) or task.conditioning_latents[1] > 0,
            "clip_needed": bool(task.condition) or task.conditioning_latents[0] > 0,
            "clip_medium": next((stream.medium for stream in task.conditions), "video" if opens else ""),
            "conditioning_frames": list(within) or opens,
            "end": bool(derived and derived.ends),
            "regions": list(derived.regions(spec.conditioning)) if derived else [],
            "mask": bool(derived and derived.region_is),
            "depth": bool(derived and derived.takes_depth),
            "depth_needed": bool(derived and derived.needs_depth(spec.conditioning)),
            "outputs": [stream.medium for stream in map(streams.get, task.output)],
            "formats": [*dict.fromkeys(f for stream in (*task.conditions, *task.predicted) for f in stream.formats)],
        }

    # ------------------------------------------------------------------------------------ requests

    def admit(self, asked: Mapping[str, Any], media: Mapping[str, Mapping[str, Any]] | None = None) -> Accepted:
        """Checks a request, by the checks of `poet generate` and of films; `media` is what is known of its files.

        Raises UserError: says what is wrong, and what is allowed.
        """
        task = asked.get("task")
        if not isinstance(task, str) or task not in self.requests:
            raise UserError(f"task {task!r} is no task of this model{near_names(str(task), [*self.requests])}")
        own = {name: value for name, value in asked.items() if name != "task"}
        check_names(own, self.requests[task], f"a request for {task}")
        self._check_texts(own)
        if task == UPSCALE:
            return self._upscale(own, media or {})
        return self._samples(task, own, media or {}) if task in self.tasks else self._film(task, own)

    def _check_texts(self, asked: Any) -> None:
        """Texts that no prompt is as long as are refused wherever they stand."""
        if isinstance(asked, Mapping):
            asked = [*asked.values()]
        if isinstance(asked, list):
            for part in asked:
                self._check_texts(part)
        elif isinstance(asked, str) and len(asked) > self.limits.max_prompt:
            raise UserError(f"a text of {len(asked)} characters: this service takes {self.limits.max_prompt}")

    def _samples(self, task: str, asked: Mapping[str, Any], media: Mapping[str, Mapping[str, Any]]) -> Accepted:
        request = from_dict(Request, {"task": task, **{n: v for n, v in asked.items() if n in REQUEST}})
        own = {name: value for name, value in asked.items() if name in SAMPLE}
        sample = from_dict(SampleSpec, {**to_dict(self.resolved.spec.sample), **own})
        for name in ("prompt", "clip", "end", "mask", "depth", "format"):
            if len(getattr(request, name)) > self.limits.max_samples:
                raise UserError(f"{len(getattr(request, name))} of {name}: a request has {self.limits.max_samples}")
        facts = self._described(self.tasks[task])
        if facts["clip_needed"] and not request.clip:
            raise UserError(f"task {task} needs a clip ({facts['clip_medium']}): give the id of an upload or a job")
        for name in request.clip:
            _check_kind(task, facts["clip_medium"], name, media.get(name))
        larger = asked.get(UPSCALE, False)
        if not isinstance(larger, bool):
            raise UserError(f"{UPSCALE} = {larger!r}: expected true or false")
        if larger:  # Clip by clip: what they take of memory does not grow with their number.
            networks = tuple(str(run.checkpoint.path.absolute()) for run in self.upscalers)
            request = request.replace(upscale=networks, batch=1)
            self._check_size(self.resolved.spec.clip.height, self.resolved.spec.clip.width)
        job = jobs.admit(request, self.resolved, sample)
        if job.count > self.limits.max_samples:
            raise UserError(f"{job.count} samples: a request of this service has at most {self.limits.max_samples}")
        shared = repr((task, job.plan, sample.replace(seed=0, watermark=False)))
        clip, timed = self.resolved.spec.clip, {"video", "audio"} & {*job.task.output}
        seconds = job.count * clip.frames / clip.rate_hz if timed else 0.0
        return Accepted(
            task=task,
            request={"request": to_dict(request), "sample": to_dict(sample), "seconds": seconds},
            batch_key=hashlib.sha256(shared.encode()).hexdigest()[:16],
            samples=min(job.count, self.size),
            seconds=seconds,
            need=self._need(job, job.count),
            advice=functools.partial(self._fewer, job),
        )

    @functools.cached_property
    def loaded(self) -> Resolved:
        """The experiment with the tokenizer that the worker loads."""
        return Resolved(frozen.as_loaded(self.resolved.spec))

    @functools.cached_property
    def held(self) -> needs.Held:
        """What the worker loads when a job first needs it, and the sizes of its networks."""
        spec = self.resolved.spec
        model = build_model(self.resolved)
        params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.abstract())) * model.dtype.itemsize
        paths = (spec.video_tokenizer.path, spec.audio_tokenizer.path)
        codecs = sum(_stored_bytes(here(path)) for path in paths if path)
        others = [_text_bytes(spec.text)] + [_stored_bytes(run.folder) for run in self.upscalers]
        # The parameters once more, as loops read them.
        return needs.Held(weights=params + codecs + sum(others), model=params, codecs=codecs)

    def _fewer(self, job: jobs.Job, room: int) -> str:
        """How many samples of a request would fit."""
        counts = range(job.count - 1, 0, -1)
        found = next((n for n in counts if self._need(job, n).total <= room), None)
        return f"{found} of its {job.count} samples would fit" if found else _MORE

    def _need(self, job: jobs.Job, count: int) -> Need:
        """Of so many of a job's samples."""
        need, clip = needs.of_samples(self.loaded, job.plan, count, self.size, self.held), self.resolved.spec.clip
        if not job.request.upscale:
            return need
        return needs.then(need, needs.of_larger(self.larger, count * clip.frames, clip.height, clip.width, self.held))

    def _upscale(self, asked: Mapping[str, Any], media: Mapping[str, Mapping[str, Any]]) -> Accepted:
        request = from_dict(Request, {name: value for name, value in asked.items() if name != "seed"})
        seed = from_dict(SampleSpec, {"seed": asked["seed"]}).seed
        if len(request.clip) != 1 or len(request.prompt) > 1:
            raise UserError("upscale takes one clip, and at most one prompt")
        about = media.get(request.clip[0])
        _check_kind(UPSCALE, "video", request.clip[0], about)
        own = {"upscale": request.clip[0], "prompt": list(request.prompt), "seed": seed}
        seconds = about["seconds"] if about else 0.0
        more = self._size_facts(about) if about else {}
        return Accepted(task=UPSCALE, request={**own, "seconds": seconds}, samples=self.size, seconds=seconds, **more)

    def _size_facts(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """What a clip needs of memory, and what would fit.  UserError for one that the networks do not take."""
        height, width, frames = (about[name] for name in ("height", "width", "frames"))
        self._check_size(height, width)
        frames = max(frames, math.ceil(about["seconds"] * self.larger[0].spec.clip.rate_hz))
        need = lambda part: needs.of_larger(self.larger, frames, int(height * part), int(width * part), self.held)

        def advice(room: int) -> str:
            part = next((part for part in _PARTS if need(part).total <= room), None)
            return f"{int(width * part)}x{int(height * part)} would fit" if part else _MORE

        return {"need": need(1.0), "advice": advice}

    @property
    def scale(self) -> int:
        """How many times as high and wide they make a clip."""
        return SCALE ** len(self.larger)

    @functools.cached_property
    def larger(self) -> list[Resolved]:
        """The experiments of the super-resolution networks, in their order."""
        return [Resolved(spec) for run in self.upscalers for spec in larger.experiments(run)]

    def _check_size(self, height: int, width: int) -> None:
        """Raises UserError for pictures that are too small for the first network, their width cut to whole latents."""
        first = self.larger[0]
        superres.check(first, (1, 1, height, width - width % first.spec.video_tokenizer.factor[2], 3))

    def _film(self, kind: str, asked: Mapping[str, Any]) -> Accepted:
        film = films.admit(kind, asked, self.resolved, self.limits.max_film_seconds)
        request = {"film": kind, "request": dict(film.request), "ways": dict(film.ways)}
        more = {"sample": to_dict(film.sample), "clips": film.clips, "seconds": film.seconds}
        plans = [self._film_plan(task, film.sample) for task in self.tasks.values() if task.output[:1] == ("video",)]
        need = needs.of_film(self.loaded, plans, film.seconds, self.size, self.held)
        seconds = film.seconds
        return Accepted(task=kind, request={**request, **more}, samples=self.size, seconds=seconds, need=need)

    def _film_plan(self, task: Task, sample: SampleSpec) -> Plan:
        """The plan of a task of films, guided where it may be: that with more rows."""
        layout = self.resolved.layout(task)
        return Plan(layout=layout, guided=sample.guides and layout.text_span is not None)

    def load(self) -> Maker:
        """Loads the checkpoint, in the worker."""
        return reach("poet.server.making:CheckpointMaker")(self)


def _stored_bytes(folder: Path) -> int:
    """Bytes of the weights in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _text_bytes(spec: TextSpec) -> int:
    """Bytes of a text encoder; 0 where it is not installed, which the worker says."""
    try:
        return _stored_bytes(here(spec.path) if spec.path else minilm.find_folder(""))
    except UserError:
        return 0


def _needed(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields that no request for a task may leave out, of what a form of it needs."""
    needed = {"prompt": facts["text"], "clip": facts["clip_needed"], "depth": facts["depth_needed"]}
    return tuple(name for name, is_needed in needed.items() if is_needed)


def _check_kind(task: str, medium: str, name: str, about: Mapping[str, Any] | None) -> None:
    """Raises UserError for an upload that is known to lack what a task takes."""
    if about is None or not medium:
        return
    if medium == "audio" and not about["has_sound"]:
        raise UserError(f"{name} has no sound, which task {task} takes")
    if medium == "video" and about["kind"] == SOUND:
        raise UserError(f"{name} is a sound, and task {task} takes a picture or a video")
