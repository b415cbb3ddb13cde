"""Small token stores, written by TFDS's own serializer, and experiments that read them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from poet import conditioning
from poet.spec import (
    AudioTokenizerSpec,
    ClipSpec,
    ConditioningSpec,
    DataSpec,
    Experiment,
    TextSpec,
    VideoTokenizerSpec,
    VocabularySpec,
)
from poet.store.manifest import MANIFEST_FILE, Manifest, Plan, ShardInfo, SplitInfo, StreamInfo, TextInfo, to_json
from poet.store.reader import features as store_features

GRID = (3, 2, 2)
BITS = 6
CLIP = ClipSpec(frames=9, height=16, width=16)
TEXT = TextSpec(length=8, width=4)
# 9 frames at 8 Hz and 16 kHz are 18,000 samples, which hold 56 whole frames of 320.
LEVELS, AUDIO_FRAMES, AUDIO_CODES = 2, 56, 16
AUDIO_BITS = 4
SHARDS = {"train": (7, 5, 9, 8), "validation": (6, 4)}
RATES = {
    "unconditional": 1.0,
    "text_to_image": 1.0,
    "text_to_video": 2.0,
    "image_to_video": 1.0,
    "frame_prediction": 3.0,
}
SOUND_RATES = {
    "video_to_audio": 1.0,
    "audio_to_video": 1.0,
    "text_to_audio": 1.0,
    "text_to_video_with_audio": 1.0,
    "audio_video_continuation": 1.0,
}


@dataclasses.dataclass(frozen=True)
class Store:
    """A store on disk and the records it was written from, per split in file order."""

    path: str
    records: dict[str, list[dict]]


def make_record(
    rng: np.random.Generator, number: int, sound: bool, conditions: Sequence[str] = (), silent: Sequence[int] = ()
) -> dict:
    """`silent` are numbers of records without a sound track, in stores with sound."""
    length = int(rng.integers(1, TEXT.length + 1))
    codes = rng.integers(0, AUDIO_CODES, LEVELS * AUDIO_FRAMES).astype(np.int32)
    return {
        "key": f"clip{number}",
        "caption": f"caption {number}",
        **({"audio": codes, "sounding": np.int32(number not in silent)} if sound else {}),
        "video": rng.integers(0, 2**BITS, int(np.prod(GRID))).astype(np.int32),
        "text_states": rng.normal(size=(length, TEXT.width)).astype(np.float16),
        "text_length": np.int32(length),
        **{n: rng.integers(0, 2**BITS, int(np.prod(GRID))).astype(np.int32) for n in conditions},
    }


def make_plan(items: dict[str, int], sound: bool, conditions: Sequence[str] = (), fingerprint: str = "abc") -> Plan:
    streams = {"video": StreamInfo(grid=GRID, bits=BITS, fingerprint=fingerprint)}
    for name in conditions:
        made_by = conditioning.fingerprint(name, ConditioningSpec(), "abc")
        streams[name] = StreamInfo(grid=GRID, bits=BITS, fingerprint=made_by)
    if sound:
        grid = (LEVELS, AUDIO_FRAMES, 1)
        streams["audio"] = StreamInfo(grid=grid, bits=AUDIO_BITS, fingerprint="heard")
    return Plan(
        items=items,
        sources={},
        clip=CLIP,
        streams=streams,
        text=TextInfo(name="minilm", fingerprint="def", length=TEXT.length, width=TEXT.width),
        clips_per_shard=9,
        batch=4,
        seed=0,
    )


def write_store(
    path: Path,
    shards: dict[str, tuple[int, ...]] = SHARDS,
    seed: int = 0,
    sound: bool = False,
    conditions: Sequence[str] = (),
    silent: Sequence[int] = (),
    fingerprint: str = "abc",
) -> Store:
    items = {split: sum(lengths) for split, lengths in shards.items()}
    plan = make_plan(items, sound, conditions, fingerprint)
    rng = np.random.default_rng(seed)
    records = {
        split: [make_record(rng, i, sound, conditions, silent) for i in range(count)] for split, count in items.items()
    }
    return write_records(path, plan, records, shards)


def write_records(path: Path, plan: Plan, records: dict[str, list[dict]], shards: dict[str, tuple[int, ...]]) -> Store:
    """A store of these records, per split in shards of so many."""
    import tensorflow_datasets as tfds

    features = store_features(plan)
    path.mkdir(parents=True)
    tfds_splits, splits = [], {}
    for split, lengths in shards.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=path, dataset_name="store", split=split, filetype_suffix="tfrecord"
        )
        files = write_files(template, lengths, records[split], features)
        splits[split] = SplitInfo(
            clips=sum(lengths),
            shards=files,
            skipped=(),
            truncated_captions=0,
            statistics={},
            silent=sum(1 - int(record.get("sounding", 1)) for record in records[split]),
        )
        tfds_splits.append(
            tfds.core.SplitInfo(name=split, shard_lengths=list(lengths), num_bytes=0, filename_template=template)
        )
    tfds.folder_dataset.write_metadata(data_dir=path, features=features, split_infos=tfds_splits, check_data=False)
    manifest = Manifest(source="made here", plan=plan, splits=splits)
    (path / MANIFEST_FILE).write_text(to_json(manifest))
    return Store(str(path), records)


def write_files(template, lengths, records, features) -> tuple[ShardInfo, ...]:
    import tensorflow as tf

    shards, rest = [], iter(records)
    for i, length in enumerate(lengths):
        file = Path(template.sharded_filepath(shard_index=i, num_shards=len(lengths)))
        with tf.io.TFRecordWriter(str(file)) as writer:
            for record in itertools.islice(rest, length):
                writer.write(features.serialize_example(record))
        shards.append(ShardInfo(file=file.name, clips=length, size_bytes=file.stat().st_size, sha256=""))
    return tuple(shards)


def make_experiment(store: str, **data) -> Experiment:
    return Experiment(
        clip=CLIP,
        vocabulary=VocabularySpec(visual_bits=BITS),
        video_tokenizer=VideoTokenizerSpec(bits=BITS),
        text=TEXT,
        data=DataSpec(**({"store": store, "mixture_rates": RATES, "batch": 4} | data)),
    )


def with_sound(experiment: Experiment, **changes) -> Experiment:
    """The run with an audio tokenizer that fits the store's codes, and every task with sound."""
    audio = {"levels": 3, "codes": AUDIO_CODES, "path": "trained"} | changes
    return experiment.replace(
        vocabulary=experiment.vocabulary.replace(audio_levels=LEVELS, audio_codes=AUDIO_CODES),
        audio_tokenizer=AudioTokenizerSpec(**audio),
        data=experiment.data.replace(mixture_rates=SOUND_RATES),
    )
