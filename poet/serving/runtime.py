"""Runs an export: needs jax, numpy, safetensors and tokenizers, and neither flax nor the model's code.

    runtime = Runtime.load("exported")
    clips = runtime.text_to_video("the player walks forward", count=4, seed=7)
    clips.video  # uint8 [4, T, H, W, 3]

The API is that of a checkpoint in a process (`poet.sampling.base.TaskSampler`).  A task that derives its condition
from motion needs OpenCV as well.

N samples, S layout length.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from poet.runs import networks
from poet.runs.arrays import read_npz
from poet.sampling.base import TaskSampler, block_of
from poet.sampling.engine import Sampled
from poet.sampling.plans import Plan
from poet.sampling.samplers import Truncation
from poet.sampling.superres import DEFAULT_BATCH, Upscaler, chained
from poet.serving import single, superres
from poet.serving.format import SINGLE, layout_of, open_folder, plan_of, program_file
from poet.serving.loaded import (
    ExportedCodecs,
    ExportedNetworks,
    ExportedPrograms,
    Program,
    Weights,
    WholePrograms,
    text_encoder,
    written_pieces,
)
from poet.serving.steps import ExportedAudio, ExportedVideo, Steps
from poet.spec import Experiment, SampleSpec, UserError, from_stored, near_names
from poet.tasks.registry import Task, get_task
from poet.tasks.resolved import Resolved

# In place of a task in the requests of `main`: `Runtime.upscale`.
UPSCALE = "upscale"


class Runtime(TaskSampler):
    """A loaded export; programs compile at their first call."""

    def __init__(self, folder: Path, record: Mapping[str, Any]):
        self._folder, self._record = folder, record
        weights = Weights(folder)
        platform = _platform() if record.get("apart") else ""
        self._programs = {
            name: Program(
                name,
                signature,
                folder / signature.get("file", program_file(name, platform)),
                functools.partial(_group, weights, record["weights"][signature["weights"]]),
            )
            for name, signature in record["programs"].items()
        }
        resolved = Resolved(from_stored(Experiment, record["experiment"]))
        layouts = [layout_of(described, resolved.vocabulary) for described in record["layouts"]]
        self._entries = {
            name: [_Entry(e, layouts[e["layout"]]) for e in found] for name, found in record["tasks"].items()
        }
        self.resolved = resolved.with_layouts(
            {get_task(name): entries[0].layout for name, entries in self._entries.items()}
        )
        self.networks = ExportedNetworks(self.resolved, record["networks"], self._loaded())
        self.upscalers = superres.upscalers(record.get("upscalers", ()), self._programs, self._text_encoder)
        self._ready: dict[tuple[str, int], ExportedPrograms | WholePrograms] = {}

    @classmethod
    def load(cls, folder: str | Path) -> Runtime:
        """Verifies and loads a folder that `poet export` wrote.

        Raises:
          UserError: not an export, damaged, of another format, or made for other platforms than this machine's.
        """
        folder = Path(folder).expanduser()
        record = open_folder(folder)
        if record["format"] in SINGLE:
            return cls(folder, single.upgraded(record))
        _check_platform(folder, record["platforms"])
        return cls(folder, record)

    @functools.cached_property
    def _text_encoder(self) -> Any:
        """The text encoder of the folder, or what says that it has none."""
        fingerprint = self._record["networks"].get(networks.TEXT, "")
        described = self._record.get("text") or {"fingerprint": fingerprint}
        return text_encoder(self._folder, described, self._programs)

    def _loaded(self) -> dict[str, Any]:
        """The networks that no task's programs are."""
        found, known = {}, self._record["networks"]
        if networks.TEXT in known:
            found[networks.TEXT] = self._text_encoder
        if self._record.get("writes"):
            found[networks.PIECES] = written_pieces(self._folder, known[networks.PIECES])
        return found | self._of_films()

    def _of_films(self) -> dict[str, Any]:
        """Tokenizers that work in chunks, where the export continues films."""
        spec, found = from_stored(Experiment, self._record["experiment"]), {}
        kinds = {
            networks.VIDEO: (ExportedVideo, spec.video_tokenizer),
            networks.AUDIO: (ExportedAudio, spec.audio_tokenizer),
        }
        for name, parts in self._record.get("films", {}).items():
            (kind, own), fingerprint = kinds[name], self._record["networks"][name]
            steps = {
                what: Steps(*(self._programs[program] for program in programs)) for what, programs in parts.items()
            }
            found[name] = kind(own, fingerprint, steps["encode"], steps["decode"])
        return found

    def upscale(
        self,
        clips: np.ndarray | Sampled,
        prompts: Sequence[str] = (),
        *,
        seed: int = 0,
        batch: int = DEFAULT_BATCH,
        **settings: Any,
    ) -> np.ndarray:
        """uint8 [N, T, H, W, 3]: clips by each super-resolution network of the folder, which doubles height and width.

        Args:
          clips: uint8 [N, T, h, w, 3] at the frame rate of the networks' clips, of any size that they take; or what a
            task has made, whose codes are then upscaled as they were sampled.
          prompts, seed, batch: as of `poet.sampling.superres.Upscaler.upscale`.
          settings: fields of SUPER_RESOLUTION that shape no network, such as steps; those of the export where absent.

        Raises UserError: a folder without super-resolution, clips or settings that its networks do not take.
        """
        if not self.upscalers:
            raise UserError("this export has no super-resolution: export again with --upscale=CHECKPOINT")
        video = np.asarray(clips.video if isinstance(clips, Sampled) else clips)
        by = [one.changed(**settings) for one in self.upscalers]
        codes = self._codes_of(clips, by[0]) if isinstance(clips, Sampled) else None
        return chained(by, video, prompts, seed=seed, batch=batch, codes_Nxtxhxw=codes)

    def _codes_of(self, made: Sampled, upscaler: Upscaler) -> np.ndarray | None:
        """Sampled codes [N, t, h, w], if the network reads those of this tokenizer."""
        codes = made.codes.get(networks.VIDEO)
        if codes is None or self._record["networks"].get(networks.VIDEO) != upscaler.video_tokenizer.fingerprint:
            return None
        return np.asarray(codes, np.int32).reshape(-1, *self.resolved.format.video)

    # -------------------------------------------------------------------------- of `TaskSampler`

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def declared(self, task: str) -> Task:
        """The task of a name; UserError for one that this folder lacks."""
        if task not in self.tasks:
            if not self.tasks:
                raise UserError(f"this export has no task {task!r}, but super-resolution alone: see Runtime.upscale")
            raise UserError(
                f"this export has no task {task!r}{near_names(task, self.tasks)}: it has {', '.join(self.tasks)}"
            )
        return get_task(task)

    def codecs(self, task: str, latents: int) -> ExportedCodecs:
        entries = self._entries[self.declared(task).name]
        entry = next((entry for entry in entries if entry.latents == latents), entries[0])
        coded = ({name: self._programs[p] for name, p in found.items()} for found in (entry.encode, entry.decode))
        return ExportedCodecs(*coded, self.networks, self.resolved, task)

    def programs(self, task: str, plan: Plan, sample: SampleSpec) -> ExportedPrograms | WholePrograms:
        """Programs that were exported for a plan, or for a more general one.

        Raises UserError for a plan that none was exported for: says what to export again with.
        """
        stored = self.resolved.spec.sample.weights
        if sample.weights != stored:
            raise UserError(
                f"SAMPLE.weights = {sample.weights!r}: this export holds weights as {stored!r}; leave it so"
            )
        if sample.devices > 1:
            raise UserError(f"SAMPLE.devices = {sample.devices}: an export samples on one device; set it to 1")
        entries = self._entries[self.declared(task).name]
        entry = next((entry for entry in entries if entry.known == plan.known), None)
        if entry is None:
            raise UserError(_of_frames(task, [entry.latents for entry in entries], self.resolved))
        variant = next((v for v in entry.variants if _serves(v, plan)), None)
        if variant is None:
            raise UserError(_of_settings(task, entry.variants, plan))
        return self._compiled(variant, plan, block_of(sample, self.resolved.spec.model.dtype))

    def _compiled(self, variant: Mapping[str, Any], plan: Plan, block: int) -> ExportedPrograms | WholePrograms:
        plan = plan_of(variant | {"known": plan.known}, plan.layout)
        key = json.dumps([variant, list(plan.known)]), block
        if key not in self._ready:
            prefill, *chunks = (self._programs[name] for name in (variant["prefill"], *variant["decode"]))
            fixed = self._record.get("batch", 0)
            self._ready[key] = (
                WholePrograms(plan, prefill, chunks[0], fixed)
                if fixed
                else ExportedPrograms(plan, prefill, chunks, block)
            )
        return self._ready[key]


class _Entry:
    """A task at one number of latent frames that open its output."""

    def __init__(self, record: Mapping[str, Any], layout: Any):
        self.layout, self.latents, self.known = layout, record["latents"], tuple(record["known"])
        self.encode, self.decode, self.variants = record["encode"], record["decode"], record["variants"]


def _group(weights: Weights, names: Sequence[str]) -> list[jax.Array]:
    return [weights[name] for name in names]


def _platform() -> str:
    """What JAX runs on here, as exports name it."""
    backend = jax.default_backend()
    return "cuda" if backend == "gpu" else backend


def _check_platform(folder: Path, platforms: Sequence[str]) -> None:
    platform = _platform()
    if platform not in platforms:
        raise UserError(
            f"{folder} runs on {', '.join(platforms)}, this machine has {platform}: export again with "
            f"EXPORT.platforms = ('{platform}',), or set JAX_PLATFORMS to one of them"
        )


# --------------------------------------------------------------------------- which programs serve a request


def _serves(variant: Mapping[str, Any], plan: Plan) -> bool:
    same = _guides(variant) == (plan.guided, plan.scaled, plan.dropped)
    return same and tuple(variant["lags"]) == plan.lags and covers(Truncation(**variant["truncation"]), plan.truncation)


def _guides(variant: Mapping[str, Any]) -> tuple[bool, bool, tuple[str, ...]]:
    return variant["guided"], variant.get("scaled", False), tuple(variant["dropped"])


def covers(have: Truncation, want: Truncation) -> bool:
    """Whether a program of one truncation samples what one of another would: by values that change nothing."""
    guidance = ("capped", "projected", "momentum")
    if any(getattr(have, name) != getattr(want, name) for name in guidance):
        return False
    any_number = have.fewer and not have.top_k
    counts = any_number or (have.top_k, have.fewer) == (want.top_k, want.fewer)
    return counts and have.nucleus >= want.nucleus and have.floor >= want.floor


def _of_frames(task: str, latents: Sequence[int], resolved: Resolved) -> str:
    frames = " or ".join(str(resolved.frames_of(number)) for number in latents)
    return f"this export of task {task} takes {frames} conditioning frames that open the output"


def _of_settings(task: str, variants: Sequence[Mapping[str, Any]], plan: Plan) -> str:
    """What no variant has, by the settings that would make one."""
    wanted = []
    if not any(_guides(variant) == (plan.guided, plan.scaled, plan.dropped) for variant in variants):
        by = f" and SAMPLE.guided_by = {plan.dropped}" if plan.guided else ""
        by += f" and SAMPLE.one_pass = {plan.scaled}" if plan.guided or plan.scaled else ""
        wanted.append(f"SAMPLE.guidance {'other than 1' if plan.guided or plan.scaled else '= 1'}{by}")
    if not any(tuple(v["lags"]) == plan.lags for v in variants):
        wanted.append(f"SAMPLE.row_lag = {plan.lags[0]} and SAMPLE.frame_lag = {plan.lags[1]}")
    if not any(covers(Truncation(**v["truncation"]), plan.truncation) for v in variants):
        fields = {"top_k": "top_k", "nucleus": "top_p", "floor": "min_p", "capped": "guidance_cap",
                  "projected": "guidance_parallel", "momentum": "guidance_momentum"}  # fmt: skip
        used = [f"SAMPLE.{name}" for field, name in fields.items() if getattr(plan.truncation, field)]
        wanted.append(f"the same {', '.join(used)}" if used else "SAMPLE.top_k, top_p and adaptive guidance unused")
    return f"no program of this export samples {task} this way: export again with {' and '.join(wanted)}"


# ------------------------------------------------------------------------------------- file to file


def main(arguments: Sequence[str]) -> None:
    """`python -m poet.serving.runtime EXPORT [REQUEST.npz RESULT.npz]...`: requests, file to file.

    A request holds `arguments`, JSON of `TaskSampler.ask` (where the task is "upscale", of `Runtime.upscale`), and its
    arrays by name.  A result gets what the task makes, its `tokens`, and the names of the `modules` that were loaded,
    to show what a serving host needs.
    """
    folder, *files = arguments
    runtime = Runtime.load(folder)
    for request, result in _pairs(files):
        arrays = read_npz(request)
        made = _made(runtime, json.loads(str(arrays.pop("arguments"))), arrays)
        modules = np.array(sorted({name.split(".")[0] for name in sys.modules}))
        np.savez(result, modules=modules, tokens=made.tokens, **made)


def _made(runtime: Runtime, arguments: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Sampled:
    if arguments["task"] != UPSCALE:
        return runtime.ask(**arguments, **arrays)
    del arguments["task"]
    return Sampled(video=runtime.upscale(arrays["video"], **arguments))


def _pairs(files: Sequence[str]) -> Iterator[tuple[str, str]]:
    return zip(files[::2], files[1::2], strict=True)


if __name__ == "__main__":
    main(sys.argv[1:])
