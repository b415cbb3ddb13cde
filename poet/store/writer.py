"""`poet tokenize`: raw clips in, a shuffled store of codes and text states out.

Two phases.  First every range of a source becomes one intermediate file by a pure function, so
ranges may be done anywhere, in any order, and are never done twice.  Then all clips, ordered by a
seeded hash of their key, are copied into the final shards: a shuffle over the whole split that
depends on neither the ranges nor the order of work.  All files appear by renaming, and the
manifest comes last, so a run that was killed at any point ends, when started again, with the same
bytes as one that was not.
"""

from __future__ import annotations

import itertools
import pathlib
import shutil
from collections.abc import Sequence

import tqdm

from poet import conditioning, media
from poet.specs import ClipSpec, ConditioningSpec, StoreSpec, UserError, to_dict
from poet.store import manifest as manifests
from poet.store import reader
from poet.store.encode import (
    AudioTokenizer,
    Encoders,
    PartialShard,
    Pieces,
    TextEncoder,
    VideoTokenizer,
    encode_range,
    load_partial,
    source_ranges,
)
from poet.store.manifest import Manifest, Plan, SkippedInfo, StreamInfo
from poet.store.merge import check_skipped, merge_split
from poet.store.sources import Source, open_source

PARTIAL_FOLDER = ".partial"
PLAN_FILE = "plan.json"


def tokenize(
    spec: StoreSpec,
    clip: ClipSpec,
    *,
    tokenizer: VideoTokenizer,
    text: TextEncoder,
    audio: AudioTokenizer | None = None,
    audio_levels: int = 0,
    pieces: Pieces | None = None,
    conditions: Sequence[str] = (),
    conditioning_spec: ConditioningSpec = ConditioningSpec(),
    progress: bool = True,
) -> Manifest:
    """Writes the store `spec.path`, continuing an interrupted run; a finished store is returned.

    Args:
        audio: codes the clips' sound into a second stream; None makes a store without sound.
        audio_levels: how many of its levels are stored.
        pieces: codes the captions into a stream of text that is written; None makes none.
        conditions: names in `poet.conditioning.CONDITIONS`, each of which gets a stream of codes.
        conditioning_spec: what shapes them.

    Raises:
        UserError: the clip does not fit the tokenizers; the source or a split is missing; the path
            holds another store or other files; more than `spec.max_skipped` of a split's clips
            are unusable.  All but the last before any clip is encoded.
    """
    encoders = Encoders(
        tokenizer=tokenizer, text=text, audio=audio, pieces=pieces, conditioning=conditioning_spec
    )
    streams = {"video": _video_stream(tokenizer, clip)}
    if audio is not None:
        streams["audio"] = _audio_stream(audio, clip, audio_levels)
    if pieces is not None:
        streams["pieces"] = _pieces_stream(pieces, text.length)
    sources = {split: open_source(spec.source, split, clip) for split in spec.splits}
    has_depth = all(source.has_depth for source in sources.values())
    for name in conditions:
        conditioning.check(name, conditioning_spec, clip.frames, has_depth=has_depth)
        made_by = conditioning.fingerprint(name, conditioning_spec, tokenizer.fingerprint)
        streams[name] = streams["video"].replace(fingerprint=made_by)
    plan = make_plan(spec, clip, sources, streams, manifests.text_info(text))
    folder = pathlib.Path(spec.path)
    if _prepare(folder, plan):
        return reader.load_manifest(spec.path)
    partials = _encode_all(folder, plan, sources, encoders, spec.max_skipped, progress)
    splits = {
        split: merge_split(folder, plan, split, partials[split], spec.max_skipped)
        for split in spec.splits
    }
    return _finish(folder, Manifest(source=spec.source, plan=plan, splits=splits))


def _video_stream(tokenizer: VideoTokenizer, clip: ClipSpec) -> StreamInfo:
    return StreamInfo(
        grid=tokenizer.spec.grid(clip.frames, clip.height, clip.width),
        bits=tokenizer.spec.bits,
        fingerprint=tokenizer.fingerprint,
    )


def _audio_stream(tokenizer: AudioTokenizer, clip: ClipSpec, levels: int) -> StreamInfo:
    spec = tokenizer.spec
    if not 1 <= levels <= spec.levels or clip.sample_rate_hz != spec.sample_rate_hz:
        raise UserError(
            f"{levels} levels of sound at {clip.sample_rate_hz} Hz were asked for: the audio "
            f"tokenizer takes 1..{spec.levels} levels at {spec.sample_rate_hz} Hz; set "
            "VOCABULARY.audio_levels and CLIP.sample_rate_hz"
        )
    return StreamInfo(
        grid=(levels, spec.frames(clip.samples), 1),
        bits=manifests.code_bits(spec.codes),
        fingerprint=tokenizer.fingerprint,
    )


def _pieces_stream(pieces: Pieces, length: int) -> StreamInfo:
    return StreamInfo(
        grid=(length, 1, 1),
        bits=manifests.code_bits(pieces.size),
        fingerprint=pieces.fingerprint,
    )


def make_plan(
    spec: StoreSpec,
    clip: ClipSpec,
    sources: dict[str, Source],
    streams: dict[str, StreamInfo],
    text: manifests.TextInfo,
) -> Plan:
    """Everything that determines the bytes of a store."""
    if not sources:
        raise UserError("STORE.splits is empty: name at least one split")
    for split, source in sources.items():
        if not len(source):
            raise UserError(f"the split {split!r} of {spec.source} is empty")
    return Plan(
        items={split: len(source) for split, source in sources.items()},
        sources={split: source.fingerprint for split, source in sources.items()},
        clip=clip,
        streams=streams,
        text=text,
        clips_per_shard=spec.clips_per_shard,
        batch=spec.batch,
        seed=spec.seed,
    )


def _prepare(folder: pathlib.Path, plan: Plan) -> bool:
    """Claims the folder for this plan; true where the store is already complete."""
    if folder.as_posix() in ("", "."):
        raise UserError("STORE.path is not set: give a folder for the store")
    partial = folder / PARTIAL_FOLDER
    complete = (folder / manifests.MANIFEST_FILE).exists()
    if complete:
        _check_plan(folder, reader.load_manifest(str(folder)).plan, plan)
        shutil.rmtree(partial, ignore_errors=True)
    elif (partial / PLAN_FILE).exists():
        _check_plan(folder, manifests.read_json(Plan, partial / PLAN_FILE), plan)
        for leftover in itertools.chain(folder.glob(".*.tmp"), partial.glob("*/.*.tmp")):
            leftover.unlink()
    elif folder.exists() and any(p.name != PARTIAL_FOLDER for p in folder.iterdir()):
        raise UserError(
            f"{folder} is not empty and holds no token store; choose another STORE.path"
        )
    else:
        media.write_text(partial / PLAN_FILE, manifests.to_json(plan))
    return complete


def _check_plan(folder: pathlib.Path, stored: Plan, plan: Plan) -> None:
    lines = manifests.differences(to_dict(stored), to_dict(plan))
    if lines:
        raise UserError(
            f"{folder} holds a store of another configuration: {'; '.join(lines)}. "
            "Choose another STORE.path, or delete that folder"
        )


def _encode_all(
    folder: pathlib.Path,
    plan: Plan,
    sources: dict[str, Source],
    encoders: Encoders,
    max_skipped: float,
    progress: bool,
) -> dict[str, list[PartialShard]]:
    """Brings every range of every split into its intermediate file."""
    work = {split: _ranges(folder, plan, split) for split in sources}
    ranges = itertools.chain.from_iterable(work.values())
    done = sum(stop - start for start, stop, file in ranges if load_partial(file))
    with tqdm.tqdm(
        total=sum(plan.items.values()), initial=done, unit="clip", disable=not progress
    ) as bar:
        return {
            split: _encode_split(source, work[split], plan, encoders, split, max_skipped, bar)
            for split, source in sources.items()
        }


def _ranges(folder: pathlib.Path, plan: Plan, split: str) -> list[tuple[int, int, pathlib.Path]]:
    """Every unit of work of a split with its intermediate file."""
    return [
        (start, stop, folder / PARTIAL_FOLDER / split / f"{start:010d}.examples")
        for start, stop in source_ranges(plan.items[split], plan)
    ]


def _encode_split(
    source: Source,
    ranges: list[tuple[int, int, pathlib.Path]],
    plan: Plan,
    encoders: Encoders,
    split: str,
    max_skipped: float,
    bar: tqdm.tqdm,
) -> list[PartialShard]:
    """Encodes the ranges of a split that an earlier run has not finished."""
    partials = []
    skipped: list[SkippedInfo] = []
    for start, stop, file in ranges:
        partial = load_partial(file)
        if partial is None:
            partial = encode_range(source, start, stop, plan, encoders, file, bar.update)
        partials.append(partial)
        skipped += partial.skipped
        check_skipped(split, skipped, plan.items[split], max_skipped)
        bar.set_description(f"{split}, {len(skipped)} skipped")
    return partials


def _finish(folder: pathlib.Path, manifest: Manifest) -> Manifest:
    """TFDS metadata, then the manifest, then the intermediate files go."""
    import tensorflow_datasets as tfds

    infos = []
    for split, info in manifest.splits.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder,
            dataset_name=reader.DATASET_NAME,
            split=split,
            filetype_suffix="tfrecord",
        )
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard.clips for shard in info.shards],
                num_bytes=sum(shard.size_bytes for shard in info.shards),
                filename_template=template,
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=reader.features(manifest.plan), split_infos=infos
    )
    media.write_text(folder / manifests.MANIFEST_FILE, manifests.to_json(manifest))
    shutil.rmtree(folder / PARTIAL_FOLDER)
    return manifest
