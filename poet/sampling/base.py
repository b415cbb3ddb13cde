"""The Python API of sampling, whatever the programs come from: from a request to clips.

A sample is determined by the seed, its row (its place in the request) and what it is given: every row has its own
noise, and programs of a fixed size (`SAMPLE.block`) round alike whatever else is sampled.

N samples, n clips, S layout length, L text positions, K known codes, T video frames, F audio samples.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from poet import conditioning, streams
from poet.runs import networks
from poet.sampling.engine import Codecs, Engine, Inputs, Media, Programs, Sampled
from poet.sampling.frozen import FrozenNetworks
from poet.sampling.plans import DEFAULT_BATCH, Plan, Text
from poet.sampling.progress import OnStep, Progress, Sampling
from poet.sampling.requests import check_all, check_depth, choose_condition, default_conditioning_frames, make_plan
from poet.spec import SampleSpec, UserError, near_names
from poet.tasks.registry import Task, get_task
from poet.tasks.resolved import Resolved

_LOG = logging.getLogger(__name__)


class TaskSampler(abc.ABC):
    """Samples the tasks of a model: all but its programs, which a subclass compiles or loads.

    Attributes:
      resolved: the model's experiment.
      networks: its frozen networks.
      on_step: called after each step of every sampling, also of one that films start; what it raises ends it.
    """

    resolved: Resolved
    networks: FrozenNetworks
    on_step: OnStep | None = None

    @property
    @abc.abstractmethod
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that it can sample."""

    @abc.abstractmethod
    def codecs(self, task: str, latents: int) -> Codecs:
        """The tokenizers of a task whose output opens with so many latent frames."""

    @abc.abstractmethod
    def programs(self, task: str, plan: Plan, sample: SampleSpec) -> Programs:
        """Programs of a plan of `task`, kept for the next call; UserError where there are none."""

    def declared(self, task: str) -> Task:
        """The task of a name; UserError with similar names otherwise."""
        return get_task(task)

    def load_networks(self, task: str) -> None:
        """Loads the frozen networks of a task, so that what is missing shows before anything is sampled."""
        for name in self.declared(task).frozen_networks:
            _ = self.networks[name]

    def generate(
        self,
        task: str,
        prompts: Sequence[str] = (),
        *,
        on_progress: Callable[[Progress], None] | None = None,
        **request: Any,
    ) -> Sampled:
        """Samples clips of a request that `check_all` accepts.

        Args:
          task, prompts, request: as of `start`.
          on_progress: called after every latent frame of every batch; an exception in it ends the sampling.

        Raises:
          UserError: the request does not fit the task.
        """
        sampling = self.start(task, prompts, **request)
        for progress in sampling:
            if on_progress is not None:
                on_progress(progress)
        return self.detokenize(task, sampling.tokens)

    def ask(self, task: str, prompts: str | Sequence[str] = (), **arguments: Any) -> Sampled:
        """`generate` in plain arguments: `ask("text_to_video", "a door", seed=7)`, or `.text_to_video("a door")`.

        Args:
          prompts: one text, or several.
          arguments: those of `generate`; settings of sampling (fields of `SampleSpec`), the checkpoint's where absent;
            and media by their names, such as `video` and `audio`.  Clips that open the output give as many frames as
            the task takes at least, unless `conditioning_frames` says how many.

        Raises:
          UserError: the request does not fit the task, or an argument is none of these.
        """
        media = {stream.medium for stream in streams.STREAMS.values() if stream.medium}
        settings = {field.name for field in dataclasses.fields(SampleSpec)}
        own = [name for name in inspect.signature(self.prepare).parameters if name not in ("task", "prompts")]
        allowed = {*own, "batch", "on_progress", *settings, *media}
        for name in arguments:
            if name not in allowed:
                raise UserError(f"task {task} takes no argument {name!r}{near_names(name, sorted(allowed))}")
        request = {name: value for name, value in arguments.items() if name not in settings | media}
        given = {name: np.asarray(value) for name, value in arguments.items() if name in media and value is not None}
        if given:
            request["media"] = given | dict(request.get("media") or {})
            clips = max(map(len, given.values()))
            usual = default_conditioning_frames(self.resolved, self.declared(task), clips)
            request.setdefault("conditioning_frames", usual)
        changed = {name: value for name, value in arguments.items() if name in settings}
        if changed:
            request["sample"] = _changed(request.get("sample") or self.resolved.spec.sample, changed)
        return self.generate(task, [prompts] if isinstance(prompts, str) else prompts, **request)

    def __getattr__(self, name: str) -> Any:
        """`ask` for a task, by its name."""
        if not name.startswith("_") and name in self.tasks:
            return functools.partial(self.ask, name)
        raise AttributeError(f"{type(self).__name__} has no attribute and no task {name!r}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.tasks]

    def start(self, task: str, prompts: Sequence[str] = (), *, batch: int = DEFAULT_BATCH, **request: Any) -> Sampling:
        """An iterator over the steps of `generate`: frames as they come, and an end at any of them.

        Args:
          task, prompts, request: as of `prepare`.
          batch: samples together, unless SAMPLE.block and devices decide it; it changes no sample.

        Raises:
          UserError: the request does not fit the task.
        """
        engine, inputs, count, sample = self.prepare(task, prompts, **request)
        return engine.start(inputs, count, sample, batch=batch)

    def prepare(
        self,
        task: str,
        prompts: Sequence[str] = (),
        *,
        negative_prompt: str = "",
        media: Mapping[str, np.ndarray] | None = None,
        depths: np.ndarray | None = None,
        conditioning_frames: int = 0,
        ends: np.ndarray | None = None,
        region: str = "",
        masks: np.ndarray | None = None,
        count: int = 1,
        sample: SampleSpec | None = None,
    ) -> Prepared:
        """What a request comes to before anything is sampled.

        Args:
          task: a name in `poet.tasks.registry.TASKS`.
          prompts: one or more for a task with text, none for one without.
          negative_prompt: the text that guidance steers away from; empty means no text at all.  It needs a
            guidance other than 1.
          media: conditioning clips, by medium.  Prompts and clips pair up; one of either is used for all
            of the other.
            "video": uint8 [n, >= conditioning_frames, H, W, 3] whose first frames open the output, or whole clips for a
              task with video as its condition, from which a condition such as a structure is derived;
            "audio": int16 or floats in [-1, 1] [n, F] at CLIP.sample_rate_hz: the sound of the clips if the task
              continues it, or the condition of a task with audio as its condition.
          depths: distances [1 or n, T, h, w] of the clips, any size and scale, for a task with
            their structure as its condition.
          conditioning_frames: their number; 1 for a still image.  The result has them encoded and decoded.  For a task
            with them in the prefix: those at the beginning, or at both ends for frame_interpolation; 0 means
            the fewest, or CONDITIONING.interpolation_frames.
          ends: uint8 [1 or n, >= conditioning_frames, H, W, 3], the last frames of frame_interpolation, if the clips
            are not whole.
          region: what inpainting fills or outpainting keeps, one of CONDITIONING's; it may be empty
            if that names only one.
          masks: bool [1 or n, T, H, W], the caller's own region for each clip instead.
          count: samples of each prompt (or clip), adjacent in the result.
          sample: default: that of the checkpoint; guidance has no effect on a task without text.

        Raises:
          UserError: the request does not fit the task.
        """
        sample, media = sample or self.resolved.spec.sample, media or {}
        clips = max(map(len, media.values()), default=0)
        latents, _ = check_all(
            self.resolved,
            self.declared(task),
            sample,
            prompts,
            conditioning_frames,
            clips=clips,
            ends=_count(ends),
            depths=_count(depths),
            region=region,
            negative_prompt=negative_prompt,
            masks=_count(masks),
        )
        items, inputs = max(len(prompts), clips, 1), {}
        self.load_networks(task)
        engine = self.engine(task, sample, latents)
        if clips:
            index = places(clips, items, count)
            found = self.encode_condition(
                task, media, depths, conditioning_frames=conditioning_frames, ends=ends, region=region, masks=masks
            ).items()
            inputs["condition"] = {name: codes[index] for name, codes in found}
        if latents:
            inputs["known"] = engine.conditioning_codes(media)[index]
        if prompts:
            inputs["text"] = _spread(self.encode_text(prompts), items, count)
            inputs["negative"] = _spread(self.encode_text([negative_prompt]), items, count)
        return Prepared(engine, Inputs(**inputs), items * count, sample)

    def tokens(
        self,
        task: str,
        count: int,
        *,
        text: Text | None = None,
        negative: Text | None = None,
        condition: Mapping[str, np.ndarray] | None = None,
        known: np.ndarray | None = None,
        latents: int = 0,
        sample: SampleSpec | None = None,
        batch: int = DEFAULT_BATCH,
        source: int = 0,
    ) -> np.ndarray:
        """Samples whole sequences, int32 [N, S], that the task's layout parses.

        Args:
          text, negative: states of N texts; absent means no text.
          condition: codes [N, n] of every stream of the condition, such as "video_in".
          known: conditioning codes [N, K] that open the output, in the order of `encode_conditioning`.
          latents: their number of latent frames.
          source: the data source to imitate, an index below 128.
        """
        inputs = Inputs(text=text, negative=negative, condition=condition or {}, known=known, source=source)
        sample = sample or self.resolved.spec.sample
        return self.engine(task, sample, latents).sample(inputs, count, sample, batch=batch)

    def engine(self, task: str, sample: SampleSpec | None = None, latents: int = 0) -> Engine:
        """The engine of a task; its programs are compiled when they first run, and kept.

        Args:
          sample: default is the checkpoint's; top_k, and whether top_p and guidance take part, shape the programs.
          latents: conditioning latent frames that open the output.
        """
        sample = sample or self.resolved.spec.sample
        plan = make_plan(self.resolved, self.declared(task), sample, latents)
        return Engine(self.programs(task, plan, sample), self.codecs(task, latents), task, self.on_step)

    def media(self, task: str, latents: int = 0) -> Media:
        """From media to codes and back, for a task whose output opens with so many latent frames."""
        declared = self.declared(task)
        known = self.resolved.conditioning_codes(declared, latents)
        plan = Plan(layout=self.resolved.layout(declared), known=known)
        return Media(plan, self.codecs(task, latents), task)

    def encode_text(self, texts: Sequence[str]) -> Text:
        """States of texts; what the encoder has no room for is dropped and said."""
        encoded = self.networks[networks.TEXT](texts)
        dropped_B = encoded.dropped_B if encoded.dropped_B is not None else np.zeros(len(texts), int)
        for text, dropped, length in zip(texts, dropped_B, encoded.lengths_B):
            if dropped:
                words = len(text.split())
                lost = round(words * dropped / (dropped + length))
                _LOG.warning(
                    "a prompt of %d words is cut: its last %d of %d tokens, about %d words, are not "
                    "read (TEXT.length = %d): %.60s...",
                    words,
                    dropped,
                    dropped + length,
                    lost,
                    self.resolved.spec.text.length,
                    text,
                )
        return Text(encoded.states_BxLxD, encoded.lengths_B)

    def encode_condition(
        self, task: str, media: Mapping[str, np.ndarray], depths: np.ndarray | None = None, **chosen: Any
    ) -> dict[str, np.ndarray]:
        """Codes [n, N] of the streams that a task is conditioned on, by name in its layout.

        `media` is that of `generate`, `chosen` that of `make_condition`.
        """
        derived, cells = self.declared(task).derived, None
        if derived and derived.medium in media:
            made = self.make_condition(task, media[derived.medium], depths, **chosen)
            media, cells = {**media, derived.medium: made.video}, made.cells
        hides = self.resolved.spec.conditioning.hide_cells
        return self.media(task).condition_codes(media, cells if hides else None)

    def make_condition(
        self,
        task: str,
        clips: np.ndarray,
        depths: np.ndarray | None = None,
        *,
        conditioning_frames: int = 0,
        ends: np.ndarray | None = None,
        region: str = "",
        masks: np.ndarray | None = None,
    ) -> Seen:
        """The conditions of a task from clips uint8 [n, T, H, W, 3].  The arguments are those of `generate`."""
        declared, spec = self.declared(task), self.resolved.spec.conditioning
        chosen = choose_condition(
            self.resolved,
            declared,
            conditioning_frames,
            region,
            ends=_count(ends),
            clips=len(clips),
            masks=_count(masks),
        )
        check_depth(self.resolved, declared, _count(depths), len(clips))
        derived, clip = declared.derived, self.resolved.spec.clip
        if not derived:
            return Seen(clips, None)
        for given in (clips, ends):
            if given is not None:
                derived.check_media(given, (chosen.frames or 1, clip.height, clip.width, 3))
        if derived.learned:
            self.networks.expect_rendering(derived, depths is not None)
        if depths is not None:
            spec = spec.replace(depth="dataset")
            depths = np.broadcast_to(depths, (len(clips), *depths.shape[1:]))
        regions = _regions(chosen, masks, (len(clips), clip.frames, clip.height, clip.width))
        found = [
            conditioning.make(
                derived.name,
                whole,
                spec,
                chosen=regions[row],
                depth=None if depths is None else depths[row],
                factor=self.resolved.spec.video_tokenizer.factor,
            )
            for row, whole in enumerate(_whole_clips(clips, clip.frames, chosen, ends))
        ]
        return Seen(np.stack([made.video for made in found]), np.stack([made.cells for made in found]))

    def encode_conditioning(self, task: str, latents: int, media: Mapping[str, np.ndarray]) -> np.ndarray:
        """Codes [n, K] of the first latent frames, and for output with sound of the sound in their time.

        The order is that of the loss spans: video first, then level by level.
        """
        return self.media(task, latents).conditioning_codes(media)

    def detokenize(self, task: str, tokens_NxS: np.ndarray) -> Sampled:
        """Decodes the output streams of whole sequences into media."""
        return self.media(task).detokenize(tokens_NxS)


class Prepared(NamedTuple):
    """A request that can be sampled: `count` samples of `inputs` by an engine, with these settings."""

    engine: Engine
    inputs: Inputs
    count: int
    sample: SampleSpec


class Seen(NamedTuple):
    """The condition of a task from n clips: the clips, or what is derived from them.

    video: uint8 [n, T, H, W, 3].  cells: bool [n, t, h, w], the latents that are given; None for all.
    """

    video: np.ndarray
    cells: np.ndarray | None


def _changed(sample: SampleSpec, changes: Mapping[str, Any]) -> SampleSpec:
    """With other settings, which may be arrays or numbers of NumPy; UserError for values that no setting takes."""
    plain = {
        name: value.tolist() if isinstance(value, np.ndarray | np.generic) else value for name, value in changes.items()
    }
    return sample.replace(**plain)


def block_of(sample: SampleSpec, dtype: str) -> int:
    """Samples that a compiled program of a model in this dtype takes; 0 takes any number."""
    fixed = dtype == "bfloat16" or sample.devices > 1
    return sample.block or (DEFAULT_BATCH if fixed else 0)


def _count(array: np.ndarray | None) -> int:
    return 0 if array is None else len(array)


def places(given: int, items: int, count: int) -> np.ndarray:
    """The index, among 1 or `items` inputs, of each of items x count samples."""
    index = np.arange(items) if given == items else np.zeros(items, np.int64)
    return np.repeat(index, count)


def _spread(text: Text, items: int, count: int) -> Text:
    return text.rows(places(len(text.lengths), items, count))


def _regions(
    chosen: conditioning.Choice, masks: np.ndarray | None, shape: tuple[int, int, int, int]
) -> list[conditioning.Choice]:
    """The choices for each of n clips of `shape` [n, T, H, W]; UserError for masks that leave nothing to sample."""
    if masks is None:
        return [chosen] * shape[0]
    masks = np.asarray(masks)
    if masks.dtype != bool or masks.shape[1:] != shape[1:]:
        raise UserError(
            f"masks are {masks.dtype}{list(masks.shape)}, expected bool[1 or n, {', '.join(map(str, shape[1:]))}]"
        )
    for mask in masks:
        if mask.all() or not mask.any():
            raise UserError(
                f"a mask holds {'everything' if mask.all() else 'nothing'}: it must mark a part of the clip"
            )
    return [dataclasses.replace(chosen, mask=mask) for mask in np.broadcast_to(masks, shape)]


def _whole_clips(clips: np.ndarray, frames: int, chosen: conditioning.Choice, ends: np.ndarray | None) -> np.ndarray:
    """Clips of `frames` frames of which a condition takes no more than `chosen.frames`, at one end or both.

    Args:
      clips: uint8 [n, >= chosen.frames, H, W, 3].
      ends: uint8 [1 or n, >= chosen.frames, H, W, 3], that end them; None where the clips are whole.
    """
    given = chosen.frames
    if ends is not None:
        last = np.broadcast_to(ends[:, :given], (len(clips), given, *ends.shape[2:]))
        between = np.repeat(clips[:, given - 1 : given], frames - 2 * given, axis=1)
        return np.concatenate([clips[:, :given], between, last], axis=1)
    if given and len(clips[0]) < frames:
        rest = np.repeat(clips[:, -1:], frames - clips.shape[1], axis=1)
        return np.concatenate([clips, rest], axis=1)
    return clips
