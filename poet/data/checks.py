"""Whether a run can be fed: everything that can be known from the manifest, before device work."""

from __future__ import annotations

import logging
from typing import Any

from poet import conditioning
from poet.runs import networks
from poet.data.tasks import stored_features
from poet.spec import UserError
from poet.store.manifest import Manifest, TextInfo, check_store, code_bits
from poet.store.reader import check_split, load_manifest
from poet.tasks.registry import Task
from poet.tasks.resolved import Resolved

_LOG = logging.getLogger(__name__)

TRAIN_SPLIT = "train"

# Stream -> what a store is made with to have it; that of a condition follows from the mixture.
REMEDIES = {"audio": "AUDIO_TOKENIZER.path set", "pieces": "TEXT.pieces set"}


def check(
    resolved: Resolved,
    *,
    tokenizer: str | None = None,
    audio_tokenizer: str | None = None,
    pieces: str | None = None,
    split: str = TRAIN_SPLIT,
) -> Manifest:
    """Returns the manifest of DATA.store if it can feed every group of the run.

    Args:
      tokenizer: fingerprint of the video tokenizer that decodes the output; None is not compared.
      audio_tokenizer: that of the audio tokenizer, where a task of the mixture has sound.
      pieces: that of the text pieces, where a task writes.
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
        tokenizer=tokenizer,
        grid=resolved.format.video,
        bits=resolved.spec.vocabulary.visual_bits,
        text=TextInfo(name=text.encoder, fingerprint="", length=text.length, width=text.width)
        if has_text
        else None,
        streams=_other_streams(resolved, tokenizer, audio_tokenizer, pieces),
    )
    _check_split(resolved, manifest, split)
    _check_silent(resolved, manifest, split)
    return manifest


def _other_streams(
    resolved: Resolved, tokenizer: str | None, audio: str | None, pieces: str | None
) -> dict[str, dict[str, Any]]:
    """Fields that the streams beside the video must have, for those that the mixture takes."""
    vocabulary, streams = resolved.spec.vocabulary, {}
    if resolved.has_audio:
        streams["audio"] = {
            "fingerprint": audio,
            "grid": [vocabulary.audio_levels, resolved.format.audio_frames, 1],
            "bits": code_bits(vocabulary.audio_codes),
        }
    if resolved.writes:
        streams["pieces"] = {"fingerprint": pieces, "grid": [resolved.spec.text.length, 1, 1]}
    if tokenizer is not None:
        for name in resolved.derived_conditions:
            made_by = conditioning.fingerprint(name, resolved.spec.conditioning, tokenizer)
            streams[name] = {"fingerprint": made_by}
    return streams


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
    present = {*manifest.plan.streams, "text_states", "text_length"}
    features = stored_features(task, resolved.layout(task))
    missing = [name for name in features if name not in present and name != "sounding"]
    if missing:
        remedies = [REMEDIES.get(name, f"{task.name} in DATA.rates") for name in missing]
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
            "a batch of group %s takes %d clips and split %r of %s has %d, so clips come several times in "
            "a step (a smaller DATA.batch or DATA.equal_tokens = False takes fewer)",
            group, batch, split, resolved.spec.data.store, info.clips,
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
            "tokenize clips with sound, set these rates of DATA.rates to 0, or take their sound as silence "
            "with DATA.silent_clips = 'train'"
        )
    _LOG.info(
        "%d of %d %s have no sound track: %s %s (DATA.silent_clips = %r)", info.silent, info.clips, where,
        names, "skip them" if skipped else "take their sound as silence", resolved.spec.data.silent_clips,
    )


def networks_of(resolved: Resolved, manifest: Manifest) -> dict[str, str]:
    """Fingerprints of what the mixture's codes and texts come from, and of the codes themselves.

    They go into every checkpoint of the run (`poet.runs.networks`); networks of the store that no task of
    the mixture uses are left out.
    """
    used = {networks.VIDEO, *resolved.derived_conditions}
    if resolved.has_audio:
        used.add(networks.AUDIO)
    if resolved.writes:
        used.add(networks.PIECES)
    if resolved.has_text:
        used.add(networks.TEXT)
    found = {name: value for name, value in manifest.networks.items() if name in used}
    return found | {networks.STORE: manifest.identity(TRAIN_SPLIT)}
