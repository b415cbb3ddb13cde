"""A tiny run with random weights whose logits are far from flat, shared by sampling and serving."""

from __future__ import annotations

import functools

import jax
import numpy as np

from poet.models import transformer
from poet.specs import (
    ClipSpec,
    Experiment,
    ModelSpec,
    TextSpec,
    VideoTokenizerSpec,
    VocabularySpec,
)
from poet.tasks.layout import Layout
from poet.tasks.registry import get_task, run_format, task_layout
from poet.vocabulary import Vocabulary

TEXT_WIDTH = 384

EXPERIMENT = Experiment(
    clip=ClipSpec(frames=5, height=16, width=16),
    vocabulary=VocabularySpec(visual_bits=6, audio_codes=16, text_pieces=64),
    video_tokenizer=VideoTokenizerSpec(
        base_channels=8,
        multipliers=(1, 1),
        blocks=1,
        temporal_downsample=(True,),
        stem=(1, 2, 2),
        norm_groups=4,
        bits=6,
    ),
    text=TextSpec(length=8, width=TEXT_WIDTH),
    model=ModelSpec(
        layers=2, width=32, heads=4, kv_heads=2, head_dim=8, mlp_width=64, dtype="float32"
    ),
)


def layout_of(task: str) -> Layout:
    vocabulary = Vocabulary(EXPERIMENT.vocabulary)
    return task_layout(get_task(task), run_format(EXPERIMENT), vocabulary)


@functools.cache
def model() -> transformer.Model:
    return transformer.build(EXPERIMENT.model, Vocabulary(EXPERIMENT.vocabulary), TEXT_WIDTH)


@functools.cache
def params() -> dict:
    """Random parameters; the output tables are scaled so that logits differ by several units."""
    tree = jax.jit(model().init)(jax.random.key(0))
    tree["head"]["tables"] = jax.tree.map(lambda x: 40 * x, tree["head"]["tables"])
    return tree


def texts(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(states [rows, L, E], lengths [rows]); garbage past a length, which nobody may read."""
    generator = np.random.default_rng(seed)
    states = generator.normal(size=(rows, EXPERIMENT.text.length, TEXT_WIDTH)).astype(np.float32)
    return states, generator.integers(1, EXPERIMENT.text.length + 1, rows).astype(np.int32)
