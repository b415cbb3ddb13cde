"""The configuration of the language model: clips, ids, texts, conditions, and the network.

Imported through `poet.spec`, like every other spec.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from poet.spec.base import DTYPES, MOST_FRAMES, MOST_SEED, MOST_SIDE, Spec, setting

OUTPAINTING = ("horizontal", "vertical", "central", "top_left", "dynamic_vertical")
INPAINTING = ("central", "top_left", "dynamic_central")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipSpec(Spec):
    """The media format of a run.  VideoPoet §1.5: 17 or 41 frames at 8 fps, 128x128 or 224x128."""

    frames: int = setting(17, changes="layout", at_least=1, at_most=MOST_FRAMES)
    height: int = setting(128, changes="layout", at_least=1, at_most=MOST_SIDE)
    width: int = setting(128, changes="layout", at_least=1, at_most=MOST_SIDE)
    rate_hz: float = setting(8.0, changes="meaning", above=0, at_most=1000)
    sample_rate_hz: int = setting(16_000, changes="meaning", at_least=1, at_most=384_000)

    @property
    def portrait(self) -> bool:
        return self.height > self.width

    @property
    def samples(self) -> int:
        """Audio samples of the clip: 17 frames at 8 fps and 16 kHz are 34,000."""
        return round(self.frames / self.rate_hz * self.sample_rate_hz)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularySpec(Spec):
    """Sizes of the one id space (VideoPoet §1.2): specials | visual | audio levels | text pieces.

    The text range is sized so that the default total is 300,000 ids.
    """

    specials: int = setting(256, changes="arrays", at_least=256, at_most=65_536)
    visual_bits: int = setting(18, changes="arrays", at_least=1, at_most=18)
    audio_levels: int = setting(4, changes="arrays", at_least=1, at_most=64)
    audio_codes: int = setting(1024, changes="arrays", at_least=1, at_most=65_536)
    text_pieces: int = setting(33_504, changes="arrays", at_least=1, at_most=2**22)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSpec(Spec):
    """The frozen text encoder: VideoPoet §1.2 reserves 64 positions (T5-XL states in the paper).

    `pieces` is the SentencePiece model of generated text (captions), also at `length` positions;
    empty for a run that generates none.
    `dtype` is that of the encoder's matrix products; its states are float32 whatever it is.
    """

    encoder: str = setting("minilm", changes="meaning")
    length: int = setting(64, changes="layout", at_least=1, at_most=8192)
    width: int = setting(384, changes="arrays", at_least=1, at_most=65_536)
    path: str = setting("", changes="nothing")
    pieces: str = setting("", changes="nothing")
    dtype: str = setting("float32", changes="nothing", one_of=DTYPES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditioningSpec(Spec):
    """Conditions made from a clip's pixels (`poet.conditioning`; spec §1.4, §2.6).

    `outpainting` and `inpainting` list regions, one of which is sampled for each clip by its key.
    Interpolation keeps `interpolation_frames` at both ends, prediction at most the first
    `prediction_latents` latent frames.  `flow` is 'dis' (OpenCV) or the ONNX file of a network such as RAFT;
    `flow_scale` is the motion that saturates, as a fraction of the width.  `depth` is 'dataset' (the
    source's own), 'flat', or the ONNX file of a network such as MiDaS.
    `fill` is the filling of holes; with `hide_cells` latents with filling are hidden from the model.
    `sound_place` is the place of conditioning sound in a task that generates frames and sound: 'prefix', so that
    generated frames attend to it, and again at the start of the output; or only 'output', after the frames.
    """

    BEFORE: ClassVar[Mapping[str, Any]] = {"sound_place": "output", "fill": "black", "hide_cells": False}
    BUILT_IN: ClassVar[tuple[str, ...]] = ("dis", "dataset", "flat")
    RENAMED = {"given_sound": "sound_place"}

    outpainting: tuple[str, ...] = setting(OUTPAINTING, changes="course", one_of=OUTPAINTING)
    inpainting: tuple[str, ...] = setting(INPAINTING, changes="course", one_of=INPAINTING)
    interpolation_frames: int = setting(1, changes="course", at_least=1, at_most=MOST_FRAMES)
    prediction_latents: int = setting(3, changes="course", at_least=1, at_most=MOST_FRAMES)
    # Paths change nothing: the fingerprint of the condition identifies the networks.
    flow: str = setting("dis", changes="nothing")
    flow_scale: float = setting(0.1, changes="meaning", above=0, at_most=10)
    depth: str = setting("dataset", changes="nothing")
    seed: int = setting(0, changes="course", at_least=0, at_most=MOST_SEED)
    fill: str = setting("edge", changes="course", one_of=("black", "grey", "mean", "edge", "noise"))
    hide_cells: bool = setting(True, changes="meaning")
    sound_place: str = setting("prefix", changes="meaning", one_of=("prefix", "output"))

    def validate(self) -> None:
        for field in ("outpainting", "inpainting"):
            self.require(len(getattr(self, field)) > 0, field, "names at least one region")
        self.require(self.flow not in ("", "dataset", "flat"), "flow", "is 'dis' or an ONNX file")
        self.require(self.depth not in ("", "dis"), "depth", "is 'dataset', 'flat' or an ONNX file")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec(Spec):
    """The prefix LM.  The papers publish no depth or width; sizes are those of gin/models/*.gin.

    `remat` decides what a block keeps for the backward pass: 'none' recomputes nothing, 'dots' keeps the
    results of weight products, 'offload' keeps them in host memory, 'full' keeps only the block's input.
    `attention` is the kernel of training: 'auto' takes splash on TPU, cuDNN's on GPU in 16 bits, and
    XLA's own products elsewhere (`poet/models/kernels.py`).
    `visual_head` embeds and scores a visual code: 'full' has a row for each; 'factorised' scores its
    `visual_leading` most significant bits (0: half of them), then the rest conditioned on these, with
    rows that embed and score (`poet/models/tables.py`).
    `tables`: 'tied', a row embeds an id and scores it; 'untied', two tables.  Embedded rows are multiplied by
    `embedding_scale`; 0 stands for the square root of the width, which gives them the size of the residual
    stream.
    `axes`: 'shared', one place at one time has the same rotary position in all streams, and sound has the
    time of its frames; 'separate', every segment begins where the one before it ends.
    `query_place`: queries have the rotary position of the token that they predict ('target') or of the token
    that they come from ('own').
    `code_rows`: initial rows of visual codes: sums over their bits ('bits'), or random ('random').
    `condition_marker`: learnt vectors mark conditioning codes and hidden cells.
    `aligned_conditions`: a condition's code is also added, through a learnt matrix, where the code of the same place
    is predicted, so that attention need not find it (the conditional decoding of ControlAR, 2410.02705).
    `condition_encoder`: features of an encoder that reads the bits of conditioning pictures around a cell and adds what
    it finds where that cell is predicted, and to the sound of that time (`poet/models/condition_encoder.py`); 0: none.
    `guidance_input`: the scale of guidance by text is an input, so that `SAMPLE.one_pass` guides without a second pass
    (guidance-free training, 2501.15420); a training step then costs a second forward pass of the layouts with text.
    The defaults are measured: `poet/models/conditions.md`.
    """

    # Values of models that were trained before these fields existed.
    BEFORE: ClassVar[Mapping[str, Any]] = {
        "tables": "untied",
        "embedding_scale": 1.0,
        "axes": "separate",
        "query_place": "own",
        "condition_marker": False,
    }

    layers: int = setting(4, changes="arrays", at_least=1, at_most=1024, grows=True)
    width: int = setting(128, changes="arrays", at_least=1, at_most=2**17)
    heads: int = setting(4, changes="arrays", at_least=1, at_most=1024)
    kv_heads: int = setting(4, changes="arrays", at_least=1, at_most=1024)
    head_dim: int = setting(32, changes="arrays", at_least=8, at_most=4096)
    mlp_width: int = setting(512, changes="arrays", at_least=1, at_most=2**20)
    rope_base: float = setting(100.0, changes="meaning", above=1, at_most=1e9)
    axes: str = setting("shared", changes="meaning", one_of=("shared", "separate"))
    query_place: str = setting("target", changes="meaning", one_of=("target", "own"))
    tables: str = setting("tied", changes="arrays", one_of=("tied", "untied"))
    embedding_scale: float = setting(0.0, changes="meaning", at_least=0, at_most=1e4)
    condition_marker: bool = setting(True, changes="arrays")
    aligned_conditions: bool = setting(False, changes="arrays", adds="embedding.aligned")
    condition_encoder: int = setting(0, changes="arrays", at_least=0, at_most=2**14, adds="embedding.conditions")
    guidance_input: bool = setting(False, changes="arrays", adds="embedding.guidance")
    code_rows: str = setting("bits", changes="nothing", one_of=("bits", "random"))
    dtype: str = setting("bfloat16", changes="nothing", one_of=DTYPES)
    param_dtype: str = setting("float32", changes="course", one_of=DTYPES)
    remat: str = setting("full", changes="nothing", one_of=("none", "dots", "offload", "full"))
    attention: str = setting("auto", changes="nothing", one_of=("auto", "xla", "splash", "cudnn"))
    visual_head: str = setting("full", changes="arrays", one_of=("full", "factorised"))
    visual_leading: int = setting(0, changes="arrays", at_least=0, at_most=17)

    def validate(self) -> None:
        self.require(self.heads % self.kv_heads == 0, "kv_heads", f"must divide heads={self.heads}")
        self.require(self.head_dim % 2 == 0, "head_dim", "must be even (rotary pairs over t, h and w)")
        self.require(
            not self.visual_leading or self.visual_head == "factorised",
            "visual_leading",
            "is read with visual_head='factorised' alone",
        )
