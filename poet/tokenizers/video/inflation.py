"""Two-step training: the weights that a video tokenizer starts from (spec §2.5).

An image tokenizer is the same network with kernels of one frame and no downsampling in time.  Its
kernels go into the last temporal tap, the one that causal padding leaves at the present frame; where
space-to-depth folds frames into channels they go to the window's last frame, and where depth-to-space
unfolds them every frame gets them.  The inflated network codes a single frame exactly as the image
tokenizer does, and rebuilds a still clip as a still clip.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from poet.models import declaration
from poet.models.declaration import Tree, Weight
from poet.spec import UserError, VideoTokenizerSpec, to_dict
from poet.tokenizers.video import magvit
from poet.tokenizers.video.base import VideoTokenizer


def image_spec(spec: VideoTokenizerSpec) -> VideoTokenizerSpec:
    """The image tokenizer that inflates to `spec`."""
    stems = {name: (1, *getattr(spec, name)[1:]) for name in ("stem", "decoder_stem") if getattr(spec, name)}
    halving = ("temporal_downsample", "decoder_temporal_downsample")
    return spec.replace(temporal_kernel=1, **{n: (False,) * len(getattr(spec, n)) for n in halving}, **stems)


def initial_weights(spec: VideoTokenizerSpec, source: VideoTokenizer) -> Tree:
    """Weights of `source` for the network of `spec`: as they are, or inflated.

    Raises UserError, naming the fields that differ, when `source` is neither that network nor its
    image tokenizer.
    """
    if not _differing(spec, source.spec):
        return source.params
    if not _differing(image_spec(spec), source.spec):
        return inflate(spec, source.params)
    same, image = _differing(spec, source.spec), _differing(image_spec(spec), source.spec)
    raise UserError(
        f"TOKENIZER_TRAIN.init_from holds another network: VIDEO_TOKENIZER differs in {same}, and "
        f"its image network in {image}; train one of them first, or change those fields"
    )


def encoder_kept(spec: VideoTokenizerSpec, source: VideoTokenizer) -> Tree:
    """Weights of `source` for a network that keeps its encoder; without its finer decoder where `spec` has another.

    Raises UserError, naming the fields that differ, when the encoder is another.
    """
    differing = _differing(spec, source.spec)
    if encoder := [name for name in differing if name not in spec.DECODER]:
        raise UserError(
            f"TOKENIZER_TRAIN.frozen_encoder keeps the encoder of TOKENIZER_TRAIN.init_from, which is another network: "
            f"VIDEO_TOKENIZER differs in {encoder}; include the gin file of those weights"
        )
    first = {name: child for name, child in source.params["decoder"].items() if name != "fine"}
    return {**source.params, "decoder": first} if differing else source.params


def inflate(spec: VideoTokenizerSpec, image_params: Tree) -> Tree:
    """Weights of `image_spec(spec)` -> weights of `spec`, float32."""

    def pair(declared: Tree | Weight, image: Tree) -> Tree:
        if declaration.is_weight(declared):
            return jnp.asarray(_inflate_array(np.asarray(image), declared.shape))
        return {name: pair(child, image[name]) for name, child in declared.items()}

    return pair(magvit.declare(spec), image_params)


def _inflate_array(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Frames folded into channels are the slowest-varying part of them."""
    repeats = shape[-1] // image.shape[-1]
    image = np.tile(image, (1,) * (image.ndim - 1) + (repeats,))
    if image.shape == shape:
        return image
    inflated = np.zeros(shape, image.dtype)
    inflated[-1, ..., shape[-2] - image.shape[-2] :, :] = image[0]
    return inflated


def _differing(a: VideoTokenizerSpec, b: VideoTokenizerSpec) -> list[str]:
    first, second = to_dict(a), to_dict(b)
    return [name for name in first if name not in ("path", "dtype", "codes_of") and first[name] != second[name]]
