"""A small token store, written by TFDS's own serializer, and an experiment that reads it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from poet.specs import (
    ClipSpec,
    DataSpec,
    Experiment,
    TextSpec,
    VideoTokenizerSpec,
    VocabularySpec,
)

GRID = (3, 2, 2)
BITS = 6
TEXT = TextSpec(length=8, width=4)
SHARDS = {"train": (7, 5, 9, 8), "validation": (6, 4)}
RATES = {
    "unconditional": 1.0,
    "text_to_image": 1.0,
    "text_to_video": 2.0,
    "image_to_video": 1.0,
    "frame_prediction": 3.0,
}


@dataclasses.dataclass(frozen=True)
class Store:
    """A store on disk and the records it was written from, per split in file order."""

    path: str
    records: dict[str, list[dict]]


def make_record(rng: np.random.Generator, number: int) -> dict:
    length = int(rng.integers(1, TEXT.length + 1))
    return {
        "key": f"clip{number}",
        "caption": f"caption {number}",
        "video": rng.integers(0, 2**BITS, int(np.prod(GRID))).astype(np.int32),
        "text_states": rng.normal(size=(length, TEXT.width)).astype(np.float16),
        "text_length": np.int32(length),
    }


def write_store(path: Path, shards: dict[str, tuple[int, ...]] = SHARDS, seed: int = 0) -> Store:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "key": tfds.features.Text(),
            "caption": tfds.features.Text(),
            "video": tfds.features.Tensor(shape=(int(np.prod(GRID)),), dtype=np.int32),
            "text_states": tfds.features.Tensor(shape=(None, TEXT.width), dtype=np.float16),
            "text_length": tfds.features.Scalar(dtype=np.int32),
        }
    )
    path.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    records, infos = {}, []
    for split, lengths in shards.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=path, dataset_name="store", split=split, filetype_suffix="tfrecord"
        )
        records[split] = []
        for i, length in enumerate(lengths):
            name = template.sharded_filepath(shard_index=i, num_shards=len(lengths))
            with tf.io.TFRecordWriter(str(name)) as file:
                for _ in range(length):
                    record = make_record(rng, len(records[split]))
                    records[split].append(record)
                    file.write(features.serialize_example(record))
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=list(lengths), num_bytes=0, filename_template=template
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=path, features=features, split_infos=infos, check_data=False
    )
    return Store(str(path), records)


def make_experiment(store: str, **data) -> Experiment:
    return Experiment(
        clip=ClipSpec(frames=9, height=16, width=16),
        vocabulary=VocabularySpec(visual_bits=BITS),
        video_tokenizer=VideoTokenizerSpec(bits=BITS),
        text=TEXT,
        data=DataSpec(**({"store": store, "rates": RATES, "batch": 4} | data)),
    )


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_store(tmp_path_factory.mktemp("stores") / "store")


@pytest.fixture(scope="session")
def experiment(store: Store) -> Experiment:
    return make_experiment(store.path)
