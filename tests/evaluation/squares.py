"""A world of moving squares, in codes: every condition tells something that no other one does.

A square of one of four colours stands on a ground of random tiles and moves over the edges of the
picture, by one or two cells a latent, in one of four directions, hopping to the side on the way.

  text       its colour and its direction
  first frame   the ground, the place and the colour
  hole       everything outside the middle of the picture
  structure  where the square is, at every time, but no colour and no ground
  sound      level 0: direction and hop of the moment, level 1: colour and speed
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "data"))
import token_stores  # noqa: E402

from poet.spec import (  # noqa: E402
    AudioTokenizerSpec,
    ClipSpec,
    DataSpec,
    EvalSpec,
    Experiment,
    ModelSpec,
    OptimizerSpec,
    TextSpec,
    TrainSpec,
    VideoTokenizerSpec,
    VocabularySpec,
)
from poet.store.manifest import Plan, StreamInfo, TextInfo  # noqa: E402
from poet.tasks.layout import HIDDEN  # noqa: E402

GRID, BITS = (3, 4, 4), 6
AUDIO_FRAMES, LEVELS, AUDIO_CODES = 9, 2, 16
COLOURS, DIRECTIONS, TILES = 4, ((0, 1), (0, -1), (1, 0), (-1, 0)), 4
SQUARE, GROUND, PLACE = 1, 32, 48
# Of each audio frame, the latent of the same time.
LATENT = [0, 1, 1, 1, 1, 2, 2, 2, 2]
CLIPS = {"train": 768, "validation": 64}
TASKS = (
    "text_to_video",
    "image_to_video",
    "frame_prediction",
    "inpainting",
    "stylization",
    "video_to_audio",
    "audio_to_video",
    "audio_video_continuation",
    "captioning",
)


def record(rng: np.random.Generator, number: int) -> dict:
    """A clip of the store."""
    colour, direction, fast = rng.integers(COLOURS), rng.integers(len(DIRECTIONS)), rng.integers(2)
    hops_T = np.array([0, *rng.integers(0, 4, GRID[0] - 1)])
    ground_HxW, start = rng.integers(0, TILES, GRID[1:]), rng.integers(0, 4, 2)
    video, place = np.tile(GROUND + ground_HxW, (GRID[0], 1, 1)), np.full(GRID, PLACE)
    step = np.array(DIRECTIONS[direction])
    for t in range(GRID[0]):
        y, x = start + t * (1 + fast) * step + hops_T[t] * step[::-1]
        for i in range(4):
            cell = t, (y + i // 2) % 4, (x + i % 2) % 4
            video[cell], place[cell] = SQUARE + 4 * colour + i, PLACE + 1
    hole = video.copy()
    hole[:, 1:3, 1:3] = HIDDEN
    levels = [direction * 4 + hops_T[LATENT], np.full(AUDIO_FRAMES, colour * 4 + 2 * fast)]
    streams = {"video": video, "inpainting": hole, "structure": place, "audio": np.array(levels)}
    states = np.zeros((2, 8), np.float16)
    states[0, colour] = states[1, 4 + direction] = 1
    return {
        "key": f"squares/{number:04d}",
        "caption": f"colour {colour} moves {direction}",
        **{name: codes.reshape(-1).astype(np.int32) for name, codes in streams.items()},
        "pieces": np.array([1 + colour, 5 + direction], np.int32),
        "sounding": np.int32(1),
        "text_states": states,
        "text_length": np.int32(2),
    }


def write_store(path: pathlib.Path) -> token_stores.Store:
    streams = {
        name: StreamInfo(grid=GRID, bits=BITS, fingerprint=name) for name in ("video", "inpainting", "structure")
    }
    streams["audio"] = StreamInfo(grid=(LEVELS, AUDIO_FRAMES, 1), bits=4, fingerprint="audio")
    streams["pieces"] = StreamInfo(grid=(2, 1, 1), bits=4, fingerprint="pieces")
    plan = Plan(
        items=CLIPS,
        sources={},
        clip=experiment("").clip,
        streams=streams,
        text=TextInfo(name="minilm", fingerprint="text", length=2, width=8),
        clips_per_shard=1024,
        batch=4,
        seed=0,
    )
    rng = np.random.default_rng(0)
    records = {split: [record(rng, i) for i in range(count)] for split, count in CLIPS.items()}
    return token_stores.write_records(path, plan, records, {split: (count,) for split, count in CLIPS.items()})


def experiment(store: str, tasks: tuple[str, ...] = TASKS, **changes) -> Experiment:
    """A model that a core trains in a minute."""
    run = Experiment(
        clip=ClipSpec(frames=9, height=32, width=32),
        vocabulary=VocabularySpec(visual_bits=BITS, audio_levels=LEVELS, audio_codes=AUDIO_CODES, text_pieces=16),
        video_tokenizer=VideoTokenizerSpec(bits=BITS),
        audio_tokenizer=AudioTokenizerSpec(path="trained", strides=(10, 10, 20), levels=LEVELS, codes=AUDIO_CODES),
        text=TextSpec(length=2, width=8, pieces="trained"),
        model=ModelSpec(
            # Codes of this world are labels, whose bits mean nothing.
            code_rows="random",
            layers=2,
            width=64,
            heads=4,
            kv_heads=4,
            head_dim=16,
            mlp_width=128,
            dtype="float32",
            remat="none",
        ),
        data=DataSpec(
            store=store, mixture_rates=dict.fromkeys(tasks, 1.0), batch=32, equal_tokens=False, text_dropout=0.0
        ),
        optimizer=OptimizerSpec(learning_rate=5e-3, warmup_steps=20, weight_decay=0.0),
        train=TrainSpec(steps=240),
        eval=EvalSpec(batch=32, conditioning_frames=1, gain_clips=64),
    )
    return run.replace(**changes)
