"""Raw clips come in a drawn order that is resumed exactly, whatever part fits memory."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poet.data import pixels
from poet.data.pixels import pixel_batches
from poet.specs import ClipSpec, UserError
from poet.store.sources import RawClip, Skipped

CLIP = ClipSpec(frames=5, height=2, width=3)


class Numbered:
    """Clip i holds i in every pixel of frame 0, i and the frame's number after it."""

    fingerprint = "numbered"

    def __init__(self, size: int, broken: frozenset[int] = frozenset()):
        self.size, self.broken, self.reads = size, broken, []

    def __len__(self) -> int:
        return self.size

    def read(self, start, stop):
        self.reads.append((start, stop))
        for i in range(start, stop):
            if i in self.broken:
                yield Skipped(key=str(i), reason="broken")
            else:
                video = np.full((CLIP.frames, CLIP.height, CLIP.width, 3), i, np.uint8)
                video[..., 0] = np.arange(CLIP.frames)[:, None, None]
                yield RawClip(key=str(i), caption="", video=video, audio=None)


def window_bytes(blocks: int) -> int:
    return blocks * pixels.BLOCK_CLIPS * CLIP.frames * CLIP.height * CLIP.width * 3


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(pixels, "BLOCK_CLIPS", 4)


def open_numbered(monkeypatch, source, **arguments):
    monkeypatch.setattr(pixels, "open_source", lambda path, split, clip: source)
    return pixel_batches("path", "train", CLIP, **({"batch": 5, "seed": 3} | arguments))


def ids(batches):
    return [int(v[0, 0, 0, 1]) for b in batches for v in b["video"]]


@pytest.mark.parametrize("blocks", [1, 2, 100])
def test_every_epoch_holds_every_clip_once_in_a_new_order(monkeypatch, blocks):
    source = Numbered(25)
    iterator = open_numbered(monkeypatch, source, window_bytes=window_bytes(blocks))
    epochs = [ids(itertools.islice(iterator, 5)) for _ in range(3)]
    assert all(sorted(epoch) == list(range(25)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3


def test_a_source_that_fits_memory_is_read_once_for_all_groups(monkeypatch):
    source = Numbered(20)
    for frames in (0, 1):
        iterator = open_numbered(monkeypatch, source, frames=frames)
        list(itertools.islice(iterator, 30))
    assert sum(stop - start for start, stop in source.reads) == 20


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_resuming_at_any_point_continues_bit_for_bit(data):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(pixels, "BLOCK_CLIPS", 4)
        size = data.draw(st.integers(5, 30))
        breakable = st.integers(0, 29).filter(lambda i: i % 4)  # no block is broken as a whole
        broken = frozenset(data.draw(st.sets(breakable, max_size=3)))
        blocks = data.draw(st.integers(1, 9))
        source = Numbered(size, broken)

        def open_():
            return open_numbered(
                monkeypatch, source, frames=2, window_bytes=window_bytes(blocks)
            )

        original = open_()
        list(itertools.islice(original, data.draw(st.integers(0, 20))))
        resumed = open_()
        resumed.set_state(original.get_state())
        for _ in range(4):
            np.testing.assert_array_equal(next(original)["video"], next(resumed)["video"])


def test_the_seed_decides_the_order(monkeypatch):
    source = Numbered(25)
    first, same, other = (
        ids(itertools.islice(open_numbered(monkeypatch, source, seed=seed), 5))
        for seed in (0, 0, 1)
    )
    assert first == same != other


def test_broken_items_are_replaced_by_clips_that_can_be_read(monkeypatch):
    broken = frozenset({1, 2, 9})
    iterator = open_numbered(monkeypatch, Numbered(25, broken), window_bytes=window_bytes(2))
    assert set(ids(itertools.islice(iterator, 10))) == set(range(25)) - broken


def test_excerpts_are_consecutive_frames_from_every_start(monkeypatch):
    iterator = open_numbered(monkeypatch, Numbered(10), frames=3)
    starts = set()
    for batch in itertools.islice(iterator, 20):
        assert batch["video"].shape == (5, 3, CLIP.height, CLIP.width, 3)
        assert batch["video"].dtype == np.uint8
        for video in batch["video"]:
            frames = video[:, 0, 0, 0].tolist()
            assert frames == list(range(frames[0], frames[0] + 3))
            starts.add(frames[0])
    assert starts == {0, 1, 2}


def test_processes_take_their_parts_of_the_same_batches(monkeypatch):
    source = Numbered(24)
    whole = open_numbered(monkeypatch, source, batch=6)
    parts = [
        open_numbered(monkeypatch, source, batch=6, process_index=i, process_count=3)
        for i in range(3)
    ]
    for _ in range(9):
        joined = np.concatenate([next(part)["video"] for part in parts])
        np.testing.assert_array_equal(next(whole)["video"], joined)


def test_crops_are_windows_of_the_clip_from_every_place(monkeypatch):
    """Pixel values are their places, so a crop tells where it was cut."""
    places = np.arange(6 * 7).reshape(6, 7)
    clip = CLIP.replace(height=6, width=7)

    class Placed(Numbered):
        def read(self, start, stop):
            for item in super().read(start, stop):
                video = np.broadcast_to(places[None, ..., None], (5, 6, 7, 3)).astype(np.uint8)
                yield dataclasses.replace(item, video=video)

    monkeypatch.setattr(pixels, "open_source", lambda *_: Placed(50))
    batch = next(pixel_batches("path", "train", clip, 50, 2, 4, 3, seed=1))["video"]
    assert batch.shape == (50, 2, 4, 3, 3)
    corners = {divmod(int(video[0, 0, 0, 0]), 7) for video in batch}
    for video, (row, column) in ((v, divmod(int(v[0, 0, 0, 0]), 7)) for v in batch):
        want = places[row : row + 4, column : column + 3]
        np.testing.assert_array_equal(video[1, ..., 2], want)
    assert {r for r, _ in corners} == set(range(3)) and {c for _, c in corners} == set(range(5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": 6}, r"excerpts of \(6, 2, 3\)"),
        ({"process_count": 2}, "2 processes cannot share"),
    ],
)
def test_impossible_requests_are_refused(monkeypatch, arguments, message):
    with pytest.raises(UserError, match=message):
        open_numbered(monkeypatch, Numbered(25), **arguments)


def test_a_batch_may_span_epochs(monkeypatch):
    iterator = open_numbered(monkeypatch, Numbered(3), batch=9, seed=-1)
    assert sorted(ids([next(iterator)])) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_an_empty_split_is_refused(monkeypatch):
    with pytest.raises(UserError, match="empty"):
        open_numbered(monkeypatch, Numbered(0))


def test_a_source_without_any_clip_is_refused(monkeypatch):
    iterator = open_numbered(monkeypatch, Numbered(8, frozenset(range(8))))
    with pytest.raises(UserError, match="can be read as a clip"):
        next(iterator)


def test_clips_of_a_tfds_folder_are_read(tmp_path):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(0)
    videos = rng.integers(0, 256, (6, CLIP.frames, CLIP.height, CLIP.width, 3), np.uint8)
    features = tfds.features.FeaturesDict(
        {"video": tfds.features.Tensor(shape=videos.shape[1:], dtype=np.uint8)}
    )
    template = tfds.core.ShardedFileTemplate(
        data_dir=tmp_path, dataset_name="clips", split="train", filetype_suffix="tfrecord"
    )
    file = template.sharded_filepath(shard_index=0, num_shards=1)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for video in videos:
            writer.write(features.serialize_example({"video": video}))
    split = tfds.core.SplitInfo(
        name="train", shard_lengths=[6], num_bytes=0, filename_template=template
    )
    tfds.folder_dataset.write_metadata(
        data_dir=tmp_path, features=features, split_infos=[split], check_data=False
    )
    batch = next(pixel_batches(str(tmp_path), "train", CLIP, batch=6))["video"]
    assert sorted(v.tobytes() for v in batch) == sorted(v.tobytes() for v in videos)
