"""A tiny run with random weights whose logits are far from flat, shared by sampling and serving."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import numpy as np

from poet.models import transformer
from poet.runs.run import Checkpoint, Run
from poet.sampling.generate import Generator
from poet.spec import (
    AudioTokenizerSpec,
    ClipSpec,
    Experiment,
    ModelSpec,
    SampleSpec,
    TextSpec,
    VideoTokenizerSpec,
    VocabularySpec,
)
from poet.spec.vocabulary import Vocabulary
from poet.tasks.layout import Layout
from poet.tasks.registry import get_task
from poet.tasks.resolved import Resolved
from poet.tokenizers.audio.base import AudioTokenizer
from poet.tokenizers.audio.base import init as init_audio
from poet.tokenizers.video import magvit
from poet.tokenizers.video.base import VideoTokenizer

TEXT_WIDTH = 384
# Of a request whose weights nobody reads.
RUN = Run(Path("nowhere"), Checkpoint(Path("nowhere")))
RUN.checkpoint.__dict__["fingerprint"] = "0" * 16

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
        layers=2,
        width=32,
        heads=4,
        kv_heads=2,
        head_dim=8,
        mlp_width=64,
        dtype="float32",
        # Rows are long, see `params`: what they embed is kept short beside what the blocks add.
        embedding_scale=0.025,
    ),
)

# The same run with sound: 5 frames last 5,000 samples, which hold 15 whole frames of codes.  Two
# levels of 32 codes have as many ids as the four of 16 above, so the same parameters serve.
WITH_SOUND = EXPERIMENT.replace(
    clip=EXPERIMENT.clip.replace(sample_rate_hz=8000),
    vocabulary=EXPERIMENT.vocabulary.replace(audio_levels=2, audio_codes=32),
    audio_tokenizer=AudioTokenizerSpec(
        sample_rate_hz=8000,
        strides=(4, 8, 10),
        encoder_channels=2,
        decoder_channels=2,
        dim=8,
        dilations=(1,),
        levels=3,
        codes=32,
        path="given to the generator",
    ),
)


def layout_of(task: str) -> Layout:
    return Resolved(EXPERIMENT).layout(get_task(task))


@functools.cache
def model(visual_head: str = "full") -> transformer.Model:
    spec = EXPERIMENT.model.replace(visual_head=visual_head)
    return transformer.build(spec, Vocabulary(EXPERIMENT.vocabulary), TEXT_WIDTH)


@functools.cache
def params(visual_head: str = "full") -> dict:
    """Those of `model`."""
    return params_of(model(visual_head))


@functools.cache
def params_of(model: transformer.Model) -> dict:
    """Random parameters; rows of tables are long, so that logits differ by several units.

    NumPy draws them: compiling the initialisers would take longer than the tests.
    """
    generator = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path)
        if "norm" in name:
            return np.ones(leaf.shape, np.float32)
        scale = 0.8 if "tables" in name else 0.15
        return (scale * generator.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, model.abstract())


def texts(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(states [rows, L, E], lengths [rows]); garbage past a length, which nobody may read."""
    generator = np.random.default_rng(seed)
    states = generator.normal(size=(rows, EXPERIMENT.text.length, TEXT_WIDTH)).astype(np.float32)
    return states, generator.integers(1, EXPERIMENT.text.length + 1, rows).astype(np.int32)


@functools.cache
def video_tokenizer() -> VideoTokenizer:
    """The network with NumPy weights; its reconstructions mean nothing, its arithmetic does."""
    spec, generator = EXPERIMENT.video_tokenizer, np.random.default_rng(4)
    shapes = jax.eval_shape(lambda: magvit.init(spec, jax.random.key(0)))
    draw = lambda leaf: (0.2 * generator.normal(size=leaf.shape)).astype(np.float32)
    return VideoTokenizer.from_params(spec, jax.tree.map(draw, shapes))


@functools.cache
def audio_tokenizer() -> AudioTokenizer:
    """NumPy weights of a size that lets different sounds have different codes."""
    spec, generator = WITH_SOUND.audio_tokenizer, np.random.default_rng(6)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if len(leaf.shape) == 1:  # A bias would drown the sound.
            return np.zeros(leaf.shape, np.float32)
        fan_in = np.prod(leaf.shape[:-1])
        return (generator.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(np.float32)

    weights = jax.tree.map(draw, jax.eval_shape(lambda: init_audio(spec, jax.random.key(0))))
    weights["codebooks"] *= 3  # About as long as latents are.
    return AudioTokenizer.from_params(spec, weights)


def generator(sample: SampleSpec, sound: bool = False, **loaded: object) -> Generator:
    """A generator of the tiny run whose default sampling settings are these, with further networks by name."""
    experiment = (WITH_SOUND if sound else EXPERIMENT).replace(sample=sample)
    sounds = {"audio": audio_tokenizer()} if sound else {}
    return Generator(Resolved(experiment), params(), {"video": video_tokenizer(), **sounds, **loaded})
