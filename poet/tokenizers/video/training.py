"""The video tokenizer as a `Trainable`: which batches it sees, where it starts, what it leaves.

Adam with warm-up and cosine decay, a moving average of the weights, and the objectives of
`poet.tokenizers.video.losses`; `poet.tokenizers.video.step` puts them together.
"""

from __future__ import annotations

import functools
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from poet.distributed import mesh as mesh_lib
from poet.distributed.mesh import BATCH_AXES
from poet.models import declaration
from poet.models.declaration import Tree
from poet.spec import ClipSpec, DiscriminatorSpec, Experiment, TokenizerTrainSpec, UserError, VideoTokenizerSpec
from poet.tokenizers import adversarial
from poet.tokenizers.adversarial import Step
from poet.tokenizers.video import discriminator, inflation, magvit, perceptual
from poet.tokenizers.video import step as steps
from poet.tokenizers.video.base import VideoTokenizer
from poet.tokenizers.video.losses import Objective
from poet.training import microbatches, optimizer
from poet.training.flops import traced_flops
from poet.training.trainable import Group, Trainable

IMAGE, CLIP = "image", "clip"
Shape = tuple[int, ...]


def trainable(experiment: Experiment, mesh: Mesh | None = None) -> Trainable:
    """The trainable of `poet tokenizer-train`: one group for each of `group_shapes`.

    A batch is {'video': uint8 (batch, frames, height, width, 3)}.

    Raises UserError: a batch that does not divide, crops larger than the clip or not of the
    network's grid, a discriminator that cannot take every group, or weights that do not fit.
    """
    spec, train, judge = experiment.video_tokenizer, experiment.tokenizer_train, experiment.discriminator
    shapes = group_shapes(spec, train, experiment.clip)
    critic = discriminator.declare(judge, *_critic_shape(judge, shapes)) if train.adversarial else None
    nets = adversarial.networks(experiment.optimizer, magvit.declare(spec), critic, judge.learning_rate)
    objective = Objective(
        spec=spec,
        train=train,
        perceptual=perceptual.load(train.perceptual, train.perceptual_path) if train.perceptual else None,
        mesh_axes=() if mesh is None else BATCH_AXES,
    )
    parts = experiment.train.microbatches
    step = steps.train_step(objective, judge, nets, mesh, parts)
    for name, shape in shapes.items():
        _check_batch(shape[0], parts, mesh, f"TOKENIZER_TRAIN.batch, group {name!r}")
    return Trainable(
        init=functools.partial(steps.init, nets, start=_start(spec, train)),
        axes=steps.axes(nets),
        rate=optimizer.learning_rate(experiment.optimizer, experiment.train.steps),
        groups={name: _group(objective, judge, name, shape, step) for name, shape in shapes.items()},
    )


def group_fractions(train: TokenizerTrainSpec, clip: ClipSpec) -> dict[str, float]:
    """Fraction of the steps of each group; crops have equal fractions."""
    kinds = {CLIP: 1.0 - train.image_fraction, IMAGE: train.image_fraction}
    crops = _crops(train, clip)
    return {_name(kind, crop, crops): part / len(crops) for kind, part in kinds.items() for crop in crops if part > 0}


def group_shapes(spec: VideoTokenizerSpec, train: TokenizerTrainSpec, clip: ClipSpec) -> dict[str, Shape]:
    """Batch shape of every group: equal pixels per step, and images as many latents as clips."""
    frames, crops = train.frames or clip.frames, _crops(train, clip)
    largest = max(h * w for h, w in crops)
    shapes = {}
    for h, w in crops:
        if h > clip.height or w > clip.width:
            raise UserError(
                f"TOKENIZER_TRAIN.crops holds {(h, w)}, larger than the clips of CLIP.height = "
                f"{clip.height} and CLIP.width = {clip.width}"
            )
        batch = train.batch * (largest // (h * w))
        latent_frames = spec.grid(frames, h, w)[0]
        shapes[_name(CLIP, (h, w), crops)] = (batch, frames, h, w, magvit.RGB)
        shapes[_name(IMAGE, (h, w), crops)] = (batch * latent_frames, 1, h, w, magvit.RGB)
    return {name: shapes[name] for name in group_fractions(train, clip)}


def _crops(train: TokenizerTrainSpec, clip: ClipSpec) -> tuple[tuple[int, int], ...]:
    return train.crops or ((clip.height, clip.width),)


def _name(kind: str, crop: tuple[int, int], crops: tuple[tuple[int, int], ...]) -> str:
    return kind if len(crops) == 1 else f"{kind}_{crop[0]}x{crop[1]}"


def _critic_shape(judge: DiscriminatorSpec, shapes: Mapping[str, Shape]) -> Shape:
    """(frames, height, width) of the clips that the discriminator is declared for."""
    sizes = sorted({shape[1:4] for shape in shapes.values()})
    if judge.head == "flatten" and len(sizes) > 1:
        raise UserError(
            f"DISCRIMINATOR.head = 'flatten' reads clips of one shape, and this run has {sizes} "
            "(frames, height, width): set DISCRIMINATOR.head = 'mean', or leave TOKENIZER_TRAIN."
            "crops and .image_fraction alone"
        )
    return sizes[-1]


def _start(spec: VideoTokenizerSpec, train: TokenizerTrainSpec) -> Tree | None:
    """The weights that the run starts from, if it does not start from chance."""
    if not train.init_from:
        return None
    source = VideoTokenizer.load(train.init_from)
    return inflation.encoder_kept(spec, source) if train.frozen_encoder else inflation.initial_weights(spec, source)


def _check_batch(batch: int, parts: int, mesh: Mesh | None, what: str) -> None:
    if mesh is not None:
        mesh_lib.check_batch(mesh, batch, what)
    microbatches.check(batch, parts, 1 if mesh is None else mesh_lib.batch_ways(mesh), what)


def _group(objective: Objective, judge: DiscriminatorSpec, name: str, shape: Shape, step: Step) -> Group:
    return Group(
        name=name,
        step=step,
        batch={"video": jax.ShapeDtypeStruct(shape, jnp.uint8)},
        clips=shape[0],
        tokens=shape[0] * math.prod(objective.spec.grid(*shape[1:4])),
        flops=train_flops(objective, judge, shape),
    )


def train_flops(objective: Objective, judge: DiscriminatorSpec, shape: Shape) -> float:
    """Matmul and convolution FLOPs of one step: a backward pass counts as two forward ones.

    The discriminator judges the reconstruction for the generator (forward, and backward to its
    input), then the clip and the reconstruction for itself; R1 takes a gradient of a gradient,
    counted as six forward passes.  The perceptual network itself does not learn.
    """
    train, frozen = objective.train, objective.perceptual
    total = 3.0 * forward_flops(objective.spec, shape)
    if train.adversarial:
        params = declaration.shapes(discriminator.declare(judge, *shape[1:4]))
        video = jax.ShapeDtypeStruct(shape, jnp.float32)
        judged = traced_flops(functools.partial(discriminator.apply, judge), params, video)
        total += (2 + 2 * 3 + 6 / train.r1_every) * judged
    if frozen is not None:
        frames = min(train.perceptual_frames or shape[1], shape[1])
        pictures = jax.ShapeDtypeStruct((shape[0] * frames, *shape[2:]), jnp.float32)
        # One call embeds both images: forward twice, and backward to one of them.
        total += 1.5 * traced_flops(frozen.distance, frozen.params, pictures, pictures)
    return total


def forward_flops(spec: VideoTokenizerSpec, shape: tuple[int, ...]) -> float:
    """Matmul and convolution FLOPs of one reconstruction of a batch of this shape."""
    params, video = declaration.shapes(magvit.declare(spec)), jax.ShapeDtypeStruct(shape, jnp.float32)
    return traced_flops(functools.partial(magvit.reconstruct, spec), params, video)


def export_tokenizer(
    ema: Tree, spec: VideoTokenizerSpec, out_dir: str | pathlib.Path, card: Mapping[str, Any], encoder_of: str = ""
) -> VideoTokenizer:
    """Writes the moving average as frozen weights, with `card` as `card.json` beside them.

    Args:
      encoder_of: folder of the tokenizer whose encoder was kept; '' for an encoder that was trained.
    """
    out = pathlib.Path(out_dir)
    if encoder_of:
        spec = spec.replace(codes_of=VideoTokenizer.load(encoder_of).fingerprint)
    tokenizer = VideoTokenizer.from_params(spec, jax.tree.map(jax.device_get, ema))
    tokenizer.save(out)
    text = json.dumps({**card, "fingerprint": tokenizer.fingerprint}, indent=2, sort_keys=True)
    (out / "card.json").write_text(text + "\n")
    return tokenizer
