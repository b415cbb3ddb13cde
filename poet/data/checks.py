"""Whether a run can be fed: everything that can be known from the manifest, before device work."""

from __future__ import annotations

import logging
from types import MappingProxyType
from typing import Any

from poet import streams
from poet.data.tasks import flags, stored_features
from poet.runs import networks
from poet.spec import UserError
from poet.store.manifest import Manifest, TextInfo, check_store
from poet.store.reader import check_split, load_manifest
from poet.streams.text import FEATURES
from poet.tasks.registry import Task
from poet.tasks.resolved import Resolved

_LOG = logging.getLogger(__name__)

TRAIN_SPLIT = "train"


def check(
    resolved: Resolved, *, fingerprints: networks.Networks = MappingProxyType({}), split: str = TRAIN_SPLIT
) -> Manifest:
    """Returns the manifest of DATA.store if it can feed every group of the run.

    Args:
      fingerprints: of the frozen networks at hand (`poet.runs.networks`), which decode the output; one that is
        absent, or that no task of the mixture uses, is not compared.
      split: the split to be trained on.

    Raises:
      UserError: no complete store; an unknown task; a stream that a task needs and the store lacks;
        a task with sound in a run or with a store without it; another clip format, grid, code
        size, text encoder or tokenizer; a split that is missing; tasks with sound and no clip that has a
        sound track.  How many clips have none is logged.  A split smaller than a batch feeds it
        by repeating its clips, which is logged.
    """
    has_text = resolved.has_text  # Refuses a task that this run cannot have, before a store is opened.
    manifest = load_manifest(resolved.spec.data.store)
    _check_clip(resolved, manifest)
    for task in resolved.mixture:
        _check_streams(resolved, manifest, task)
    text = resolved.spec.text
    check_store(
        manifest,
        text=TextInfo(name=text.encoder, fingerprint="", length=text.length, width=text.width) if has_text else None,
        streams=_expected_streams(resolved, fingerprints),
    )
    _check_split(resolved, manifest, split)
    _check_silent(resolved, manifest, split)
    return manifest


def _expected_streams(resolved: Resolved, fingerprints: networks.Networks) -> dict[str, dict[str, Any]]:
    """Fields of the stored streams that the mixture takes, and of the video, which every store has."""
    return {
        stream.stored: stream.expected(
            resolved.format, resolved.spec.vocabulary, resolved.spec.conditioning, fingerprints
        )
        for stream in resolved.stored_streams
        if stream.network in resolved.used_networks
    }


def _check_clip(resolved: Resolved, manifest: Manifest) -> None:
    names = ["frames", "height", "width", "rate_hz"]
    if resolved.has_audio:
        names.append("sample_rate_hz")
    for name in names:
        stored, wanted = getattr(manifest.clip, name), getattr(resolved.spec.clip, name)
        if stored != wanted:
            raise UserError(
                f"the token store {resolved.spec.data.store} was made with CLIP.{name} = {stored}, "
                f"this run has {wanted}: set CLIP.{name} = {stored}, or tokenize again"
            )


def _check_streams(resolved: Resolved, manifest: Manifest, task: Task) -> None:
    present = {*manifest.plan.streams, *FEATURES, *flags(task)}
    features = stored_features(task, resolved.layout(task))
    missing = [name for name in features if name not in present]
    if missing:
        remedies = [streams.in_store(name).setting or f"{task.name} in DATA.mixture_rates" for name in missing]
        raise UserError(
            f"the token store {resolved.spec.data.store} lacks the streams {', '.join(missing)} "
            f"that {task.name} needs (it has {', '.join(sorted(manifest.plan.streams))}): "
            f"tokenize again with {' and '.join(remedies)}, or set its rate to 0"
        )


def _check_split(resolved: Resolved, manifest: Manifest, split: str) -> None:
    check_split(manifest, split)
    info = manifest.splits[split]
    group, batch = max(resolved.batches.items(), key=lambda item: item[1])
    if batch > info.clips:
        _LOG.warning(
            "a batch of group %s takes %d clips and split %r of %s has %d, so clips are repeated within a "
            "step (a smaller DATA.batch or DATA.equal_tokens = False takes fewer)",
            group,
            batch,
            split,
            resolved.spec.data.store,
            info.clips,
        )


def _check_silent(resolved: Resolved, manifest: Manifest, split: str) -> None:
    """Refuses tasks with sound that would have nothing to learn from; says what becomes of silent clips."""
    names = ", ".join(task.name for task in resolved.mixture if task.has_audio)
    info, skipped = manifest.splits[split], resolved.spec.data.silent_clips == "skip"
    if not names or not info.silent:
        return
    where = f"clips of split {split!r} of {resolved.spec.data.store}"
    if skipped and info.silent >= info.clips:
        raise UserError(
            f"none of the {info.clips} {where} has a sound track, so {names} would have nothing to learn: "
            "tokenize clips with sound, set these rates of DATA.mixture_rates to 0, or take their sound as silence "
            "with DATA.silent_clips = 'train'"
        )
    _LOG.info(
        "%d of %d %s have no sound track: %s %s (DATA.silent_clips = %r)",
        info.silent,
        info.clips,
        where,
        names,
        "skip them" if skipped else "take their sound as silence",
        resolved.spec.data.silent_clips,
    )


def networks_of(resolved: Resolved, manifest: Manifest) -> dict[str, str]:
    """Fingerprints of what the mixture's codes and texts come from, and of the codes themselves.

    They go into every checkpoint of the run (`poet.runs.networks`); networks of the store that no task of
    the mixture uses are absent.
    """
    tasks = resolved.mixture
    used = {networks.VIDEO, *(name for task in tasks for name in task.frozen_networks)}
    used |= {stream.stored for task in tasks for stream in (*task.conditions, *task.predicted)}
    found = {name: value for name, value in manifest.networks.items() if name in used}
    return found | {networks.STORE: manifest.identity(TRAIN_SPLIT)}
