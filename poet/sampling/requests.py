"""Checks of a request before any device work, and its plan."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from poet import conditioning, streams
from poet.sampling import fronts
from poet.sampling.plans import DEFAULT_BATCH, Plan
from poet.sampling.samplers import Truncation
from poet.spec import ClipSpec, SampleSpec, Spec, UserError, near_names
from poet.spec.base import MOST_BATCH, MOST_FRAMES, setting
from poet.streams import Derived
from poet.streams.base import CONDITION
from poet.tasks.layout import TEXT_STREAM, Layout
from poet.tasks.registry import TASKS, Task
from poet.tasks.resolved import Resolved
from poet.tokenizers.text import check_texts

# A box of `poet.sampling.masks`, or one that moves.
# In the place of a file of depth: everything is equally far, so that motion alone is the condition.
FLAT = "flat"
_NUMBER = r"\s*-?\d+(?:\.\d+)?\s*"
_BOX = rf"{_NUMBER}(?:,{_NUMBER}){{3}}"
_BOXES = re.compile(rf"{_BOX}(?::{_BOX})?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request(Spec):
    """A request to `poet generate`; sampling parameters are part of the experiment.

    The fields are the command's flags, and the keys of a line of `--requests`.
    """

    task: str = "text_to_video"
    prompt: tuple[str, ...] = ()
    prompt_file: str = ""
    negative_prompt: str = ""
    clip: tuple[str, ...] = ()
    conditioning_frames: int = setting(0, changes="nothing", at_least=0, at_most=MOST_FRAMES)
    end: tuple[str, ...] = ()
    region: str = ""
    mask: tuple[str, ...] = ()
    keep_original: bool = True
    depth: tuple[str, ...] = ()
    num: int = setting(1, changes="nothing", at_least=1, at_most=10**6)
    batch: int = setting(DEFAULT_BATCH, changes="nothing", at_least=1, at_most=MOST_BATCH)
    upscale: tuple[str, ...] = ()
    format: tuple[str, ...] = ()

    RENAMED = {"keep_given": "keep_original"}
    # Fields that name files.
    FILES: ClassVar[tuple[str, ...]] = ("prompt_file", "clip", "end", "mask", "depth", "upscale")

    def files(self) -> list[str]:
        """All files and folders that it names."""
        named = [getattr(self, field) for field in self.FILES]
        paths = [path for value in named for path in ([value] if isinstance(value, str) else value)]
        return [path for path in paths if _is_file(path)]

    def below(self, folder: Path) -> Request:
        """The same with paths that are relative to `folder` made absolute."""

        def absolute(path: str) -> str:
            return str(Path(folder, Path(path).expanduser())) if _is_file(path) else path

        values = {field: getattr(self, field) for field in self.FILES if field != "upscale"}
        changed = {f: absolute(v) if isinstance(v, str) else tuple(map(absolute, v)) for f, v in values.items()}
        return self.replace(**changed)


def _is_file(value: str) -> bool:
    return bool(value) and value != FLAT and not is_box(value)


def is_box(text: str) -> bool:
    """Whether a mask is written as numbers, and is no file."""
    return bool(_BOXES.fullmatch(text))


class Admitted(NamedTuple):
    """A checked request: latent frames that open the output, and the choices of its condition."""

    latents: int
    chosen: conditioning.Choice


def check_all(
    resolved: Resolved,
    task: Task,
    sample: SampleSpec,
    prompts: Sequence[str],
    conditioning_frames: int,
    *,
    clips: int,
    ends: int,
    depths: int,
    region: str,
    negative_prompt: str,
    masks: int = 0,
) -> Admitted:
    """Everything that can be checked of a request before files are read; what it comes to.

    Args:
      conditioning_frames: of each clip; what this function returns counts latent frames.
      clips, ends, depths, masks: how many of each are given.

    Raises:
      UserError: as `check_request`, `check_negative`, `check_depth` and `choose_condition`.
    """
    check_negative(task, sample, negative_prompt)
    dropped_streams(resolved, task, sample)
    check_schedules(resolved.layout(task), task, sample)
    check_lags(resolved.layout(task), task, sample)
    check_depth(resolved, task, depths, clips)
    latents = check_request(resolved, task, prompts, conditioning_frames, clips, depths > 0)
    chosen = choose_condition(resolved, task, conditioning_frames, region, ends=ends, clips=clips, masks=masks)
    return Admitted(latents, chosen)


def check_request(
    resolved: Resolved,
    task: Task,
    prompts: Sequence[str],
    conditioning_frames: int,
    clips: int,
    has_depth: bool = False,
) -> int:
    """Checks a request and returns the latent frames that open its output.

    Args:
      clips: number of conditioning clips.
      has_depth: whether they have depth.

    Raises:
      UserError: it cannot.
    """
    resolved.layout(task)  # Refuses sound in a run without it.
    if isinstance(prompts, str):
        raise UserError(f"prompts must be a list of texts, got the one text {prompts!r}")
    if task.text and not prompts:
        raise UserError(f"task {task.name} needs a text: give --prompt or --prompt_file")
    if prompts and not task.text:
        free = _names(lambda other: other.text)
        raise UserError(f"task {task.name} takes no text: drop the prompt, or use one of {free}")
    if len(prompts) > 1 and clips > 1 and len(prompts) != clips:
        raise UserError(f"{len(prompts)} prompts for {clips} clips: give one of either, or as many")
    latents = opening_latents(resolved, task, conditioning_frames)
    low, high = resolved.conditioning_range(task)
    if not low <= latents <= high:
        opening = _names(lambda other: other.conditioning_latents[1] > 0)
        raise UserError(
            f"conditioning_frames = {conditioning_frames}: {_allowed(resolved, task)} "
            f"(tasks that take conditioning frames: {opening})"
        )
    if conditioning_frames and not clips:
        raise UserError(f"{conditioning_frames} conditioning frames need a clip: give --clip")
    if task.condition and not clips:
        what = " and ".join(streams.get(name).title for name in task.condition)
        raise UserError(f"task {task.name} takes {what} as its condition: give a file with it as --clip")
    if task.derived:
        _check_condition(resolved, task, task.derived, has_depth)
    if clips and not latents and not task.condition:
        raise UserError(f"a clip was given but conditioning_frames is 0: {_allowed(resolved, task)}")
    return latents


def opening_latents(resolved: Resolved, task: Task, conditioning_frames: int) -> int:
    """Latent frames of the conditioning frames that open the output; 0 where these stand in the prefix.

    Raises UserError unless there are 0 or 1 + k * factor.
    """
    if not conditioning_frames or task.derived and task.derived.of_frames:
        return 0
    clip = resolved.spec.clip
    return resolved.spec.video_tokenizer.grid(conditioning_frames, clip.height, clip.width)[0]


def _check_condition(resolved: Resolved, task: Task, derived: Derived, has_depth: bool) -> None:
    spec = resolved.spec.conditioning
    if derived.needs_depth(spec) and not has_depth:
        raise UserError(
            f"task {task.name} takes the depth of a clip, and this one comes without depth: give a video or a "
            "picture of it, near is bright, as --depth=FILE, or the ONNX file of a depth network (MiDaS, "
            f"Depth-Anything) as --gin.CONDITIONING.depth=FILE; with --depth={FLAT} motion alone counts"
        )
    conditioning.check(derived.name, spec, resolved.spec.clip.frames, has_depth=has_depth)


def check_depth(resolved: Resolved, task: Task, depths: int, clips: int) -> None:
    """Raises UserError for depth that the task does not take, or for more or fewer than clips."""
    if not depths:
        return
    if not task.derived or not task.derived.takes_depth:
        raise UserError(f"task {task.name} takes no depth; tasks that do: {_deriving('takes_depth')}")
    task.derived.check_depth(resolved.spec.conditioning)
    _check_pairs("depths", depths, clips)


def _names(wanted: Callable[[Task], bool]) -> str:
    return ", ".join(sorted(name for name, task in TASKS.items() if wanted(task)))


def _deriving(flag: str) -> str:
    """Names of the tasks whose derived stream has this attribute set."""
    return _names(lambda task: bool(task.derived and getattr(task.derived, flag)))


def _check_pairs(what: str, given: int, clips: int) -> None:
    if given not in (1, clips):
        raise UserError(f"{given} {what} for {clips} clips: give one, or as many as clips")


def choose_condition(
    resolved: Resolved,
    task: Task,
    conditioning_frames: int,
    region: str,
    *,
    ends: int = 0,
    clips: int = 1,
    masks: int = 0,
) -> conditioning.Choice:
    """The choices of a task's condition, without randomness.

    Args:
      conditioning_frames: 0 takes the fewest, or CONDITIONING.interpolation_frames.
      region: '' where the run knows one alone.
      ends, masks: how many are given beside `clips` clips.

    Raises:
      UserError: says what is allowed.
    """
    derived, spec, clip = task.derived, resolved.spec.conditioning, resolved.spec.clip
    conditioning_frames = conditioning_frames or default_conditioning_frames(resolved, task, 1)
    frames = derived.frames(spec, clip.frames, resolved.spec.video_tokenizer.factor[0]) if derived else ()
    if frames and conditioning_frames not in frames:
        where = " at both ends" if derived.ends else ""
        raise UserError(
            f"conditioning_frames = {conditioning_frames}: task {task.name} takes {_listed(frames)} "
            f"conditioning frames{where} of "
            f"{clip.frames}"
        )
    if ends and not (derived and derived.ends):
        raise UserError(f"task {task.name} takes no end; {_deriving('ends')} is")
    if ends:
        _check_pairs("ends", ends, clips)
    if masks:
        _check_masks(task, region, masks, clips)
    return conditioning.Choice(
        region="" if masks else _region(task, derived.regions(spec) if derived else (), region),
        frames=conditioning_frames if frames else 0,
    )


def _check_masks(task: Task, region: str, masks: int, clips: int) -> None:
    if not (task.derived and task.derived.region_is):
        raise UserError(f"task {task.name} takes no mask; tasks that do: {_deriving('region_is')}")
    if region:
        raise UserError(f"region {region!r} and a mask were given: give one of them")
    _check_pairs("masks", masks, clips)


def _region(task: Task, allowed: Sequence[str], region: str) -> str:
    if region and not allowed:
        raise UserError(f"task {task.name} has no regions; tasks that do: {_deriving('region_is')}")
    if not region and len(allowed) > 1:
        raise UserError(
            f"task {task.name} needs the region that it {task.derived.region_is}: give --region, one of "
            f"{', '.join(allowed)}, or your own as --mask"
        )
    if region and region not in allowed:
        raise UserError(f"unknown region {region!r} of task {task.name}{near_names(region, allowed)}")
    return region or next(iter(allowed), "")


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:-1])) + " or " * (len(numbers) > 1) + str(numbers[-1])


def check_prompts(prompts: Sequence[str]) -> None:
    """Raises UserError for one that says nothing, or that is no text."""
    for number, prompt in enumerate(check_texts(prompts), 1):
        if not prompt.strip():
            raise UserError(
                f"prompt {number} of {len(prompts)} is empty: give a text, or use a task without "
                "text, such as unconditional"
            )


def check_negative(task: Task, sample: SampleSpec, negative_prompt: str) -> None:
    """Raises UserError for a negative prompt that would change nothing."""
    if not negative_prompt:
        return
    if not task.text:
        raise UserError(f"task {task.name} takes no text: drop the negative prompt")
    if sample.one_pass:
        raise UserError(
            "SAMPLE.one_pass guides against no text at all: drop the negative prompt, or set SAMPLE.one_pass = False"
        )
    if not sample.guides:
        raise UserError(
            "guidance steers away from a negative prompt, and SAMPLE.guidance = 1.0 means none: "
            "set it to another value, such as --guidance=2, or drop the negative prompt"
        )
    if sample.guided_by and TEXT_STREAM not in sample.guided_by:
        raise UserError(
            f"a negative prompt replaces the text that guidance drops, and SAMPLE.guided_by = {sample.guided_by} "
            "does not name it: add 'text', or drop the negative prompt"
        )


def check_formats(task: Task, formats: Sequence[str], clip: ClipSpec) -> None:
    """Raises UserError for a format that nothing of the task's media is written in."""
    media = {stream.medium: stream for stream in (*task.conditions, *task.predicted)}
    known = [name for stream in media.values() for name in stream.formats]
    for name in formats:
        if name not in known:
            raise UserError(f"--format={name}: task {task.name} is written as {', '.join(known)}")
        if name in ("mp4", "webm") and (clip.height % 2 or clip.width % 2):
            raise UserError(f"--format={name} needs even sides, and the clips have {clip.height}x{clip.width}: use gif")


def default_conditioning_frames(resolved: Resolved, task: Task, clips: int) -> int:
    """For clips without a number, the fewest frames that the task takes.

    At the ends of an interpolation, CONDITIONING.interpolation_frames.
    """
    if not clips:
        return 0
    if task.derived and task.derived.of_frames:
        return task.derived.usual_frames(resolved.spec.conditioning)
    return resolved.frames_of(resolved.conditioning_range(task)[0])


def _allowed(resolved: Resolved, task: Task) -> str:
    frames = resolved.conditioning_choices(task)
    if not frames:
        return f"task {task.name} takes no conditioning frames"
    return f"task {task.name} takes {' or '.join(map(str, frames))} conditioning frames"


def make_plan(resolved: Resolved, task: Task, sample: SampleSpec, latents: int) -> Plan:
    """The decoding program of a task; guided where it has a condition to be guided by and the scale is not 1.

    Args:
      latents: conditioning latent frames that open the output.

    Raises:
      UserError: guidance by a condition that training never dropped or the task has not, or a schedule of
        another length than the output, or lags that its pictures have no codes for.
    """
    layout, dropped = resolved.layout(task), dropped_streams(resolved, task, sample)
    check_schedules(layout, task, sample)
    check_lags(layout, task, sample)
    return Plan(
        layout=layout,
        known=resolved.conditioning_codes(task, latents),
        guided=bool(dropped),
        scaled=sample.one_pass and sample.guides and task.text,
        dropped=dropped,
        truncation=Truncation.of(sample),
        lags=(sample.row_lag, sample.frame_lag),
    )


def dropped_streams(resolved: Resolved, task: Task, sample: SampleSpec) -> tuple[str, ...]:
    """Streams of the layout that guidance compares with and without; () is no guidance, or one pass.

    Raises UserError: as `make_plan`, or one pass of a model that has no input for it.
    """
    if sample.one_pass and not resolved.spec.model.guidance_input:
        raise UserError(
            "SAMPLE.one_pass needs a model that reads the scale of guidance, and this one was trained with "
            "MODEL.guidance_input = False: set SAMPLE.one_pass = False, or adapt it by TRAIN.init_from with that input"
        )
    if not sample.guides or sample.one_pass:
        return ()
    data, text = resolved.spec.data, {TEXT_STREAM: TEXT_STREAM} if task.text else {}
    allowed = text | {name: stream.called(CONDITION) for name, stream in zip(task.condition, task.conditions)}
    names = sample.guided_by or tuple(text)
    for name in names:
        if name not in allowed:
            has = ", ".join(allowed) or "none"
            raise UserError(f"SAMPLE.guided_by names {name!r}: the conditions of task {task.name} are {has}")
        field = "text_dropout" if name == TEXT_STREAM else "condition_dropout"
        if not getattr(data, field):
            raise UserError(
                f"guidance by {name} compares with samples that go without, and this model never saw one: it was "
                f"trained with DATA.{field} = 0; train with 0.1, name other conditions in SAMPLE.guided_by, or set "
                "SAMPLE.guidance = 1"
            )
    return tuple(dict.fromkeys(allowed[name] for name in names))


def check_schedules(layout: Layout, task: Task, sample: SampleSpec) -> None:
    """Raises UserError for a schedule with another number of values than the output has latent frames."""
    latents = int(layout.latents.max()) + 1
    for field in SampleSpec.SCHEDULES:
        value = getattr(sample, field)
        if isinstance(value, tuple) and len(value) != latents:
            raise UserError(
                f"SAMPLE.{field} = {value}: a schedule of {len(value)} values for the {latents} latent frames of "
                f"task {task.name}; give {latents}, or one number for all"
            )


def check_lags(layout: Layout, task: Task, sample: SampleSpec) -> None:
    """Raises UserError for a row_lag or frame_lag beyond the grid of the pictures, or for a task without pictures."""
    if not sample.row_lag:
        return
    grids = [span.segment.grid for span in layout.loss_spans if span.segment.frame is not None]
    if not grids:
        raise UserError(f"SAMPLE.row_lag = {sample.row_lag}: task {task.name} makes no pictures; set it to 0")
    for grid in grids:
        fronts.check(grid, sample.row_lag, sample.frame_lag)
