"""A tiny run on disk, made by the rooms themselves: clips, tokenizer, token store, checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poet import media
from poet.checkpoints import checkpoint
from poet.models.transformer import build_model
from poet.runs.run import Run
from poet.spec import (
    CheckpointSpec,
    ClipSpec,
    DataSpec,
    EvalSpec,
    Experiment,
    ModelSpec,
    StoreSpec,
    TextSpec,
    TokenizerTrainSpec,
    TrainSpec,
    VideoTokenizerSpec,
    VocabularySpec,
)
from poet.store.writer import tokenize
from poet.streams.base import Encoders
from poet.tasks.resolved import Resolved
from poet.tokenizers.text import EncodedText
from poet.tokenizers.video import magvit
from poet.tokenizers.video.base import VideoTokenizer

BITS = 6
STEP = 7
CLIPS = {"train": 10, "validation": 17}
EXPERIMENT = Experiment(
    clip=ClipSpec(frames=9, height=16, width=16),
    vocabulary=VocabularySpec(visual_bits=BITS, audio_codes=16, text_pieces=64),
    video_tokenizer=VideoTokenizerSpec(
        base_channels=8,
        multipliers=(1, 1),
        blocks=1,
        temporal_downsample=(True,),
        stem=(2, 4, 4),
        norm_groups=4,
        bits=BITS,
    ),
    text=TextSpec(length=8, width=4),
    model=ModelSpec(layers=1, width=32, heads=4, kv_heads=2, head_dim=8, mlp_width=64, dtype="float32"),
    data=DataSpec(mixture_rates={"text_to_video": 1.0, "text_to_image": 1.0, "frame_prediction": 1.0}, batch=8),
    train=TrainSpec(eval_every=5, eval_batches=2, sample_every=5),
    eval=EvalSpec(batch=8, batches=2, clips=5, conditioning_frames=5),
    checkpoint=CheckpointSpec(),
)


@dataclasses.dataclass(frozen=True)
class TinyRun:
    """A run on disk, and what it was made from."""

    experiment: Experiment
    disk: Run
    params: dict


@dataclasses.dataclass(frozen=True)
class LetterEncoder:
    """A text encoder whose states are the letters' code points."""

    name: str = "letters"
    length: int = EXPERIMENT.text.length
    width: int = EXPERIMENT.text.width
    fingerprint: str = "letters-1"

    def __call__(self, texts) -> EncodedText:
        lengths = np.array([min(len(t), self.length) for t in texts], np.int32)
        states = np.zeros((len(texts), self.length, self.width), np.float32)
        for row, text in enumerate(texts):
            letters = np.array([ord(c) / 100 for c in text[: self.length]])
            states[row, : lengths[row]] = letters[:, None] * np.arange(1, self.width + 1)
        return EncodedText(states_BxLxD=states, lengths_B=lengths, truncated=0)


def moving_square(index: int) -> np.ndarray:
    """uint8 (9, 16, 16, 3): a bright square that moves over a shaded ground."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[:16, :16]
    ground = (40 + 5 * x + 3 * y)[..., None] + rng.integers(0, 40, 3)
    frames = np.repeat(ground[None], 9, axis=0)
    top, left = rng.integers(0, 5, 2)
    for t in range(9):
        frames[t, top + t // 2 : top + t // 2 + 5, left + t // 2 : left + t // 2 + 5] = 230
    return frames.astype(np.uint8)


def write_clips(folder: Path) -> None:
    folder.mkdir()
    lines, index = [], 0
    for split, count in CLIPS.items():
        for _ in range(count):
            file = f"{index:03d}.mp4"
            media.write_mp4(folder / file, moving_square(index), EXPERIMENT.clip.rate_hz)
            lines.append({"file": file, "caption": f"square {index}", "split": split})
            index += 1
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))


def save_tokenizer(folder: Path) -> VideoTokenizer:
    """Random weights: codes depend on the pixels, which is all that these tests need."""
    spec = EXPERIMENT.video_tokenizer
    shapes, rng = jax.eval_shape(lambda: magvit.init(spec, jax.random.key(1))), np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes)
    tokenizer = VideoTokenizer.from_params(spec, params)
    tokenizer.save(folder)
    return tokenizer


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    base = tmp_path_factory.mktemp("run")
    write_clips(base / "clips")
    tokenizer = save_tokenizer(base / "tokenizer")
    store = StoreSpec(source=str(base / "clips"), path=str(base / "store"), clips_per_shard=5, batch=4)
    encoders = Encoders(networks={"video": tokenizer, "text": LetterEncoder()})
    tokenize(store, EXPERIMENT.clip, encoders, ["video"], progress=False)
    e = EXPERIMENT
    experiment = e.replace(
        store=store,
        data=e.data.replace(store=store.path),
        video_tokenizer=e.video_tokenizer.replace(path=str(base / "tokenizer")),
        text=e.text.replace(encoder="letters"),
        tokenizer_train=TokenizerTrainSpec(source=store.source),
    )
    params = jax.jit(build_model(Resolved(experiment)).init)(jax.random.key(2))
    # Rows as long as trained ones, so that losses differ from those of a uniform model.
    tables = params["embedding"]["tables"]
    params["embedding"]["tables"] = jax.tree.map(lambda x: 3 * x, tables)
    disk = Run(base / "lm")
    checkpoint.save(
        disk,
        step=STEP,
        state={"step": jnp.int32(STEP), "params": params},
        iterators={},
        experiment=experiment,
        clock={},
        policy=CheckpointSpec(keep=1),
        networks={"video": tokenizer.fingerprint, "text": LetterEncoder.fingerprint},
    )
    return TinyRun(experiment, disk, jax.device_get(params))
