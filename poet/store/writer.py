"""`poet tokenize`: raw clips in, a shuffled store of codes and text states out.

Two phases.  First every range of a source becomes one intermediate file by a pure function, so
ranges may be done anywhere, in any order, and are never done twice.  Then all clips, ordered by a
seeded hash of their key, are copied into the final shards: a shuffle over the whole split that
depends on neither the ranges nor the order of work.  All files appear by renaming, and the
manifest comes last, so a run that was killed at any point ends, when started again, with the same
bytes as one that was not.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import tqdm

from poet import media, streams
from poet.runs import lease, networks
from poet.spec import ClipSpec, IngestSpec, StoreSpec, UserError, to_dict
from poet.store import filters, publishing, reader, remote, report, runners, texts
from poet.store import manifest as manifests
from poet.store.manifest import Manifest, Plan
from poet.store.merge import merge_split
from poet.store.publishing import PARTIAL_FOLDER
from poet.store.ranges import plan_ranges
from poet.store.raw import Source
from poet.store.runners import Job, Runner
from poet.store.sources import open_splits
from poet.streams.base import Encoders, StreamInfo

_LOG = logging.getLogger(__name__)

PLAN_FILE = "plan.json"


def tokenize(
    spec: StoreSpec,
    clip: ClipSpec,
    encoders: Encoders,
    names: Sequence[str],
    *,
    ingest: IngestSpec = IngestSpec(),
    runner: Runner | None = None,
    progress: bool = True,
    log: Callable[[str], Any] = _LOG.info,
) -> Manifest:
    """Writes the store `spec.path`, here or at gs://, continuing an interrupted run; a finished store is returned.

    Args:
        encoders: the frozen networks.
        names: of the streams of `poet.streams` that the store holds.
        ingest: which clips are cut out of the media, and which are dropped.
        runner: who encodes, by default this process with the given encoders.
        log: takes the lines of `poet.store.report` at the end.

    Raises:
        UserError: the clip does not fit the tokenizers; the source or a split is missing; the path
            holds another store or other files; more than `spec.max_skipped` of a split's clips
            are unusable.  All but the last before any clip is encoded.
    """
    texts.check_name("STORE.path", spec.path)
    filters.load_hook(ingest.nsfw)
    infos = {name: streams.in_store(name).info(clip, encoders) for name in names}
    sources = open_splits(spec, clip, ingest)
    has_depth = all(source.has_depth for source in sources.values())
    for name in names:
        streams.in_store(name).check(clip, encoders, has_depth=has_depth)
    text = manifests.text_info(encoders.networks[networks.TEXT])
    plan = make_plan(spec, clip, sources, infos, text, ingest)
    runner = runner or runners.Serial(encoders)
    with contextlib.ExitStack() as leases:
        folder = leases.enter_context(publishing.hold(spec.path, runner))
        if _prepare(folder, spec.path, plan, runner, spec.wait_s, leases):
            manifest = reader.load_manifest(str(folder))
            _log_lines(log, report.lines(manifest))
            return manifest
        job = make_job(folder, plan, sources, spec.max_skipped)
        for note in dict.fromkeys(note for source in sources.values() for note in source.notes):
            log(note)
        _encode_all(job, runner, progress)
        if runner.merges:
            return _merge(folder, spec, job, log)
    _wait_for(folder, spec.wait_s)
    return reader.load_manifest(spec.path)


def _merge(folder: pathlib.Path, spec: StoreSpec, job: Job, log: Callable[[str], Any]) -> Manifest:
    """Phase 2: the final shards of all splits, and what the store says of itself."""
    partials, bits = job.partials(), job.plan.ingest.deduplicate
    deduplicator = filters.Deduplicator(bits) if bits >= 0 else None
    seen: set[bytes] = set()
    splits = {
        split: merge_split(folder, job.plan, split, partials[split], spec.max_skipped, deduplicator, seen)
        for split in job.plan.items
    }
    manifest = _finish(folder, Manifest(source=spec.source, plan=job.plan, splits=splits))
    _log_lines(log, report.lines(manifest, partials))
    return manifest


def _log_lines(log: Callable[[str], Any], lines: list[str]) -> None:
    for line in lines:
        log(line)


def make_plan(
    spec: StoreSpec,
    clip: ClipSpec,
    sources: dict[str, Source],
    infos: dict[str, StreamInfo],
    text: manifests.TextInfo,
    ingest: IngestSpec = IngestSpec(),
) -> Plan:
    """Everything that determines the bytes of a store."""
    for split, source in sources.items():
        if not len(source):
            raise UserError(f"the split {split!r} of {spec.source} is empty")
    return Plan(
        items={split: len(source) for split, source in sources.items()},
        sources={split: source.fingerprint for split, source in sources.items()},
        clip=clip,
        streams=infos,
        text=text,
        clips_per_shard=spec.clips_per_shard,
        batch=spec.batch,
        seed=spec.seed,
        ingest=ingest,
    )


def _prepare(
    folder: pathlib.Path, called: str, plan: Plan, runner: Runner, wait_s: float, leases: contextlib.ExitStack
) -> bool:
    """Claims the folder, which is `called` so by its user, for this plan; true where the store is already complete.

    Of several processes the one that merges does so; files that others may be writing stay.

    Raises:
        UserError: it holds another store or other files, or another process writes there, whose work
            this one was not started to share.
    """
    if not runner.merges:
        _wait_for(folder, wait_s, folder / PARTIAL_FOLDER / PLAN_FILE)
    alone = not isinstance(runner, runners.Distributed)
    if folder.as_posix() in ("", "."):
        raise UserError("STORE.path is not set: give a folder for the store")
    partial = folder / PARTIAL_FOLDER
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if not (folder / manifests.MANIFEST_FILE).exists() and not (partial / PLAN_FILE).exists():
        if names - {PARTIAL_FOLDER}:
            raise UserError(f"{called} is not empty and holds no token store; choose another STORE.path")
    if not (folder / manifests.MANIFEST_FILE).exists():
        hold = functools.partial(lease.hold, partial, what="store")
        leases.enter_context(hold(shared=not alone))
        if not alone:
            leases.enter_context(hold(name=f"lease-{runner.index}.json"))
    # A process that held the lease until now may have completed it.
    complete = (folder / manifests.MANIFEST_FILE).exists()
    if complete:
        _check_plan(called, reader.load_manifest(str(folder)).plan, plan)
        if runner.merges:
            shutil.rmtree(partial, ignore_errors=True)
    elif (partial / PLAN_FILE).exists():
        _check_plan(called, manifests.read_json(Plan, partial / PLAN_FILE), plan)
        leftovers = itertools.chain(folder.glob(".*.tmp"), partial.glob("*/.*.tmp"))
        for leftover in leftovers if alone else ():
            leftover.unlink()
    else:
        media.write_text(partial / PLAN_FILE, manifests.to_json(plan))
    return complete


def _check_plan(called: str, stored: Plan, plan: Plan) -> None:
    lines = manifests.differences(to_dict(stored), to_dict(plan))
    if lines:
        raise UserError(
            f"{called} holds a store of another configuration: {'; '.join(lines)}. "
            "Choose another STORE.path, or delete that folder"
        )


def _wait_for(folder: pathlib.Path, wait_s: float, *files: pathlib.Path) -> None:
    """Waits for a file of process 0 or the manifest, as long as anything in the folder changes."""

    def signs() -> list[str]:
        return sorted(p.name for p in folder.rglob("*"))

    runners.wait_for_any([folder / manifests.MANIFEST_FILE, *files], signs, wait_s)


def make_job(folder: pathlib.Path, plan: Plan, sources: dict[str, Source], max_skipped: float) -> Job:
    """Every unit of work of a store, with its intermediate file."""
    ranges = (
        item
        for split, source in sources.items()
        for item in plan_ranges(split, source.clips(), plan, folder / PARTIAL_FOLDER / split)
    )
    return Job(plan=plan, sources=sources, ranges=tuple(ranges), max_skipped=max_skipped)


def _encode_all(job: Job, runner: Runner, progress: bool) -> None:
    """Brings every range into its intermediate file; those that are done and intact stay."""
    todo = []
    total = sum(item.clips for item in job.ranges)
    with tqdm.tqdm(total=total, unit="clip", disable=not progress) as bar:
        reporter = runners.Bar(job, bar)
        for item in job.ranges:
            if item.intact:
                reporter.finished(item)
                continue
            if item.done:
                _LOG.warning("the intermediate file %s is damaged: it is encoded again", item.file)
                item.forget()
            todo.append(item)
        bar.unpause()
        runner(job, todo, reporter)
    remote.forget_copies()


def _finish(folder: pathlib.Path, manifest: Manifest) -> Manifest:
    """TFDS metadata, then the manifest, then the intermediate files go."""
    import tensorflow_datasets as tfds

    infos = []
    for split, info in manifest.splits.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=reader.DATASET_NAME, split=split, filetype_suffix="tfrecord"
        )
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard.clips for shard in info.shards],
                num_bytes=sum(shard.size_bytes for shard in info.shards),
                filename_template=template,
            )
        )
    tfds.folder_dataset.write_metadata(data_dir=folder, features=reader.features(manifest.plan), split_infos=infos)
    manifest = manifest.replace(metadata=reader.metadata_hashes(folder))
    media.write_text(folder / manifests.MANIFEST_FILE, manifests.to_json(manifest))
    shutil.rmtree(folder / PARTIAL_FOLDER, ignore_errors=True)
    return manifest
