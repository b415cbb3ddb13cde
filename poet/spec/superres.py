"""Super-resolution in token space: windows, what its training hides, and how it samples.

Imported through `poet.spec`, like every other spec.
"""

from __future__ import annotations

import dataclasses

from poet.spec.base import MOST_SIDE, Spec, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuperResolutionSpec(Spec):
    """Super-resolution by masked modelling (VideoPoet §4.4; spec §1.14): a run whose mixture is the task
    `super_resolution`.  CLIP is the high resolution, MODEL the network, of three layers a block.

    `vertical`, `horizontal` and `temporal` are the windows (t, h, w) of a block's layers, in high-resolution latents;
    0 is the whole side.
    `masked_cells`: what stands where a code is masked: 'mask', a learnt vector; 'condition', with it the low-resolution
    code of the same place (COMMIT's conditional masking, 2212.05199 §3.2).
    `noise`: up to this fraction of the low-resolution codes are replaced by random ones in training, a fraction
    sampled for each clip.  `dropout` hides all of them from that fraction of clips, for guidance.
    `label_smoothing`: of the loss, as in MAGVIT.

    Sampling takes `steps` passes of a cosine schedule; `choice_temperature` is that of the Gumbel noise on
    confidences, which falls to 0.  `guidance` is the scale of the low resolution, `text_guidance` that of text: logits
    = L(none) + guidance (L(low) - L(none)) + text_guidance (L(low, text) - L(low)); 1 is no guidance.
    `overlap` latents are shared by neighbouring tiles, and `overlap_time` latent frames by neighbouring chunks of a
    longer clip.  `consistency`: 1 corrects the result so that it is the input again at the input's size, 0 leaves what
    the network's codes decode to (the paper), and what lies between mixes the two.
    `detail` below 1 mixes in the input resized (bicubic), which flickers less; `steadiness` above 0 is the part of a
    frame that is the frame before it, moved as the input moves, where the input stays the same.
    """

    vertical: tuple[int, int, int] = setting((1, 0, 8), changes="meaning", at_least=0, at_most=MOST_SIDE)
    horizontal: tuple[int, int, int] = setting((1, 8, 0), changes="meaning", at_least=0, at_most=MOST_SIDE)
    temporal: tuple[int, int, int] = setting((5, 8, 8), changes="meaning", at_least=0, at_most=MOST_SIDE)
    masked_cells: str = setting("mask", changes="meaning", one_of=("mask", "condition"))
    noise: float = setting(0.5, changes="course", at_least=0, at_most=1)
    dropout: float = setting(0.1, changes="course", at_least=0, below=1)
    label_smoothing: float = setting(1e-4, changes="course", at_least=0, below=1)
    steps: int = setting(24, changes="nothing", at_least=1, at_most=1024)
    temperature: float = setting(1.0, changes="nothing", at_least=0, at_most=100)
    choice_temperature: float = setting(4.5, changes="nothing", at_least=0, at_most=1000)
    guidance: float = setting(1.0, changes="nothing", at_least=0, at_most=100)
    text_guidance: float = setting(4.0, changes="nothing", at_least=0, at_most=100)
    overlap: int = setting(4, changes="nothing", at_least=0, at_most=MOST_SIDE)
    overlap_time: int = setting(2, changes="nothing", at_least=1, at_most=MOST_SIDE)
    consistency: float = setting(1.0, changes="nothing", at_least=0, at_most=1)
    detail: float = setting(1.0, changes="nothing", at_least=0, at_most=1)
    steadiness: float = setting(0.0, changes="nothing", at_least=0, below=1)

    @property
    def windows(self) -> tuple[tuple[int, int, int], ...]:
        """The windows of a block's layers, in order."""
        return self.vertical, self.horizontal, self.temporal
