"""Small stand-ins with the protocols of the encoders, and small collections of clips."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import types
from collections.abc import Sequence
from typing import Any

import numpy as np

from poet import media
from poet.spec import AudioTokenizerSpec, ClipSpec, ConditioningSpec, StoreSpec, VideoTokenizerSpec, VocabularySpec
from poet.store import manifest as manifests
from poet.store import writer
from poet.streams.base import Encoders

CLIP = ClipSpec(frames=5, height=16, width=16)
# Factor (4, 8, 8): the grid of CLIP is (2, 2, 2).
AUDIO_TOKENIZER = AudioTokenizerSpec(levels=3, codes=24)
TOKENIZER = VideoTokenizerSpec(base_channels=32, multipliers=(1, 1, 1, 1), blocks=1, bits=8)


class Killed(BaseException):
    """Ends a run as a signal does: no `except Exception` sees it."""


@dataclasses.dataclass
class MeanTokenizer:
    """The code of a latent is the rounded mean of the pixels of its patch.

    It is killed when it is asked for batch number `killed_at`.
    """

    spec: VideoTokenizerSpec = TOKENIZER
    fingerprint: str = "mean-tokenizer-1"
    killed_at: int = -1
    batches: int = 0

    def encode(self, video_BxTxHxWx3: np.ndarray) -> np.ndarray:
        if self.batches == self.killed_at:
            raise Killed
        self.batches += 1
        return mean_codes(video_BxTxHxWx3)


def mean_codes(video_BxTxHxWx3: np.ndarray) -> np.ndarray:
    """int32 (B, 1 + (T-1)/4, H/8, W/8), one latent for the first frame and one per four more."""
    batch, frames, height, width, _ = video_BxTxHxWx3.shape
    patches = video_BxTxHxWx3.astype(np.float64)
    patches = patches.reshape(batch, frames, height // 8, 8, width // 8, 8, 3).mean((3, 5, 6))
    first, rest = patches[:, :1], patches[:, 1:]
    rest = rest.reshape(batch, -1, 4, *rest.shape[2:]).mean(2)
    return np.rint(np.concatenate([first, rest], 1)).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class LoudnessTokenizer:
    """A frame's code in level k is its mean absolute sample, rounded, plus k, modulo the codes."""

    spec: AudioTokenizerSpec = AUDIO_TOKENIZER
    fingerprint: str = "loudness-1"

    def encode(self, audio_BxS: np.ndarray, levels: int = 0) -> np.ndarray:
        frames, hop = self.spec.frames(audio_BxS.shape[1]), self.spec.hop
        whole = audio_BxS[:, : frames * hop].astype(np.float64).reshape(-1, frames, hop)
        loudness_BxF = np.rint(np.abs(whole).mean(-1)).astype(np.int32)
        shifts_L = np.arange(levels or self.spec.levels)
        return (loudness_BxF[:, None] + shifts_L[:, None]) % self.spec.codes


@dataclasses.dataclass(frozen=True)
class LetterEncoder:
    """One state per letter: its code point, modulo what float16 holds, in every one of `width` numbers."""

    name: str = "letters"
    length: int = 8
    width: int = 4
    fingerprint: str = "letters-1"

    def __call__(self, texts: Sequence[str]) -> types.SimpleNamespace:
        states = np.zeros((len(texts), self.length, self.width), np.float32)
        lengths = np.array([min(len(t), self.length) for t in texts], np.int32)
        for row, (text, length) in enumerate(zip(texts, lengths)):
            states[row, :length] = np.array([ord(c) % 2**15 for c in text[:length]])[:, None]
        truncated = sum(len(t) > self.length for t in texts)
        return types.SimpleNamespace(states_BxLxD=states, lengths_B=lengths, truncated=truncated)


def encoders(
    *, audio_levels: int = 1, conditioning_spec: ConditioningSpec = ConditioningSpec(), **networks: Any
) -> Encoders:
    """Encoders of the networks that are not None: video, text, audio, pieces."""
    return Encoders(
        networks={name: network for name, network in networks.items() if network is not None},
        conditioning=conditioning_spec,
        vocabulary=VocabularySpec(audio_levels=audio_levels),
    )


def tokenize(
    spec: StoreSpec,
    clip: ClipSpec = CLIP,
    *,
    tokenizer: Any = None,
    text: Any = LetterEncoder(),
    audio: Any = None,
    audio_levels: int = 1,
    pieces: Any = None,
    conditions: Sequence[str] = (),
    conditioning_spec: ConditioningSpec = ConditioningSpec(),
    **options: Any,
) -> manifests.Manifest:
    """`writer.tokenize`: the video, what its networks make, and the conditions; without a progress bar."""
    made = encoders(
        video=tokenizer or MeanTokenizer(),
        text=text,
        audio=audio,
        pieces=pieces,
        audio_levels=audio_levels,
        conditioning_spec=conditioning_spec,
    )
    names = [name for name in ("video", "audio", "pieces") if name in made.networks]
    return writer.tokenize(spec, clip, made, [*names, *conditions], **{"progress": False, **options})


def flat_video(level: int, frames: int = CLIP.frames, side: int = CLIP.height) -> np.ndarray:
    """uint8 (frames, side, side, 3) of one grey level."""
    return np.full((frames, side, side, 3), level, np.uint8)


def write_folder(folder: pathlib.Path, levels: Sequence[int], split: str = "train", prefix: str = "clip") -> None:
    """A grey mp4 per level with the caption 'grey <level>'; adds to what the folder holds."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "captions.jsonl", "a") as captions:
        for index, level in enumerate(levels):
            file = f"{prefix}_{index:03d}.mp4"
            media.write_mp4(folder / file, flat_video(level), CLIP.rate_hz)
            line = {"file": file, "caption": f"grey {level}", "split": split}
            captions.write(json.dumps(line) + "\n")


def write_tfds(
    folder: pathlib.Path,
    splits: dict[str, Sequence[np.ndarray]],
    *,
    shard_clips: int = 7,
    samples: int = CLIP.samples,
    sounds: dict[str, Sequence[np.ndarray]] | None = None,
) -> None:
    """A TFDS folder with key, video, audio, text; clip i of a split has the key '<split>/<i>'.

    Without `sounds`, int16 (samples,) of each clip, clip i has `samples` times the sample i.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    folder.mkdir(parents=True)
    video = next(iter(splits.values()))[0]
    features = tfds.features.FeaturesDict(
        {
            "key": tfds.features.Text(),
            "video": tfds.features.Tensor(shape=(None, *video.shape[1:]), dtype=np.uint8),
            "audio": tfds.features.Tensor(shape=(samples,), dtype=np.int16),
            "text": tfds.features.Text(),
            "unused": tfds.features.Scalar(np.float32),
        }
    )
    infos = []
    for split, videos in splits.items():
        starts = range(0, len(videos), shard_clips)
        for shard, start in enumerate(starts):
            name = f"fake-{split}.tfrecord-{shard:05d}-of-{len(starts):05d}"
            with tf.io.TFRecordWriter(str(folder / name)) as writer:
                for index in range(start, min(start + shard_clips, len(videos))):
                    example = {
                        "key": f"{split}/{index}",
                        "video": videos[index],
                        "audio": sounds[split][index] if sounds else np.full(samples, index, np.int16),
                        "text": f"text {index}",
                        "unused": 0.0,
                    }
                    writer.write(features.serialize_example(example))
        lengths = [min(shard_clips, len(videos) - start) for start in starts]
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name="fake", split=split, filetype_suffix="tfrecord"
        )
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=1, filename_template=template))
    tfds.folder_dataset.write_metadata(data_dir=folder, features=features, split_infos=infos)
