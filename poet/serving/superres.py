"""Super-resolution networks of an export, as `poet.sampling.superres.Upscaler` takes them.

N clips, T frames, h, w rows and columns, t latent frames; B, S, M and L as in `poet.sampling.passes`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from poet.runs import networks
from poet.sampling.passes import Branch, Passes, SamplingParams, Text
from poet.sampling.superres import Upscaler
from poet.serving.format import PASSES_PARAMS
from poet.serving.loaded import Program
from poet.spec import Experiment, UserError, VideoTokenizerSpec, from_stored
from poet.tasks.resolved import Resolved


@dataclasses.dataclass(frozen=True)
class WholeVideo:
    """A video tokenizer of clips of any legal length and size; see `poet.tokenizers.video.base`."""

    spec: VideoTokenizerSpec
    fingerprint: str
    encoder: Program
    decoder: Program

    def encode(self, video_NxTxhxwx3: np.ndarray) -> np.ndarray:
        """uint8 clips -> int32 codes [N, t, h, w]."""
        return self.encoder.in_batches(video_NxTxhxwx3).astype(np.int32)

    def decode(self, ids_Nxtxhxw: np.ndarray) -> np.ndarray:
        """Codes -> uint8 clips [N, T, h, w, 3]."""
        return self.decoder.in_batches(ids_Nxtxhxw.astype(np.int32))


@dataclasses.dataclass(frozen=True)
class ExportedPasses:
    """`poet.sampling.superres.Sampler`: a program for each set of branches."""

    programs: Mapping[tuple[Branch, ...], Program]

    def __call__(
        self,
        plan: Passes,
        codes_BxS: np.ndarray,
        low_BxM: np.ndarray,
        text: Text | None,
        rows_B: np.ndarray,
        sampling_params: SamplingParams,
    ) -> jax.Array:
        """The fewest branches that hold those of the plan: what they have more weighs nothing."""
        text = text if plan.reads_text else None
        serving = [b for b in self.programs if {*plan.branches} <= {*b} and plan.reads_text == any(t for _, t in b)]
        if not serving:
            raise UserError(
                "this export has no super-resolution with text: give no prompt, set text_guidance to 0, or export it "
                "with EXPORT.text_encoder = True"
            )
        numbers = (getattr(sampling_params, name) for name in PASSES_PARAMS)
        return self.programs[min(serving, key=len)](codes_BxS, low_BxM, *(text or ()), rows_B, *numbers)[0]


def upscalers(records: Sequence[Mapping[str, Any]], programs: Mapping[str, Program], text: Any) -> list[Upscaler]:
    """The networks that spec.json records, in the order in which they make a clip larger.

    Args:
      text: the folder's text encoder.
    """
    return [_upscaler(record, programs, text) for record in records]


def _upscaler(record: Mapping[str, Any], programs: Mapping[str, Program], text: Any) -> Upscaler:
    experiment = from_stored(Experiment, record["experiment"])
    passes = {
        tuple((bool(low), bool(reads)) for low, reads in found["branches"]): programs[found["program"]]
        for found in record["passes"]
    }
    coders = (programs[record[what]] for what in ("encode", "decode"))
    tokenizer = WholeVideo(experiment.video_tokenizer, record["networks"][networks.VIDEO], *coders)
    return Upscaler(Resolved(experiment), ExportedPasses(passes), tokenizer, text)
