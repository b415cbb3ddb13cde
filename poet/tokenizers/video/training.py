"""The video tokenizer as a `Trainable`: which batches it sees, where it starts, what it leaves.

Adam with warm-up and cosine decay, a moving average of the weights, and the objectives of
`poet.tokenizers.video.losses`; `poet.tokenizers.video.step` puts them together.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from poet.distributed import mesh as mesh_lib
from poet.spec import Experiment, UserError, VideoTokenizerSpec
from poet.tokenizers import declaration
from poet.tokenizers.adversarial import Step
from poet.tokenizers.declaration import Tree
from poet.tokenizers.video import discriminator, inflation, magvit
from poet.tokenizers.video import step as steps
from poet.tokenizers.video.base import VideoTokenizer
from poet.tokenizers.video.perceptual import Perceptual
from poet.training import microbatches, optimizer
from poet.training.flops import traced_flops
from poet.training.trainable import Group, State, Trainable

IMAGE, CLIP = "image", "clip"
Shape = tuple[int, ...]


def trainable(experiment: Experiment, mesh: Mesh | None = None) -> Trainable:
    """What `poet tokenizer-train` trains: one group for each of `group_shapes`.

    A batch is {'video': uint8 (batch, frames, height, width, 3)}.

    Raises UserError: a batch that does not divide, crops larger than the clip or not of the
    network's grid, a discriminator that cannot take every group, or weights that do not fit.
    """
    shapes = group_shapes(experiment)
    nets = steps.networks(experiment, _critic_shape(experiment, shapes))
    frozen = steps.load_perceptual(experiment)
    step = steps.train_step(experiment, nets, mesh, frozen)
    start = _start(experiment)
    return Trainable(
        init=functools.partial(steps.init, nets, start=start),
        axes=steps.axes(nets),
        rate=optimizer.learning_rate(experiment.optimizer, experiment.train.steps),
        groups={
            name: _group(experiment, mesh, name, shape, step, frozen)
            for name, shape in shapes.items()
        },
    )


def shares(experiment: Experiment) -> dict[str, float]:
    """Share of the steps that each group gets; crops share alike."""
    train = experiment.tokenizer_train
    kinds = {CLIP: 1.0 - train.image_fraction, IMAGE: train.image_fraction}
    crops = _crops(experiment)
    return {
        _name(kind, crop, crops): share / len(crops)
        for kind, share in kinds.items()
        for crop in crops
        if share > 0
    }


def group_shapes(experiment: Experiment) -> dict[str, Shape]:
    """Batch shape of every group: equal pixels per step, and images as many latents as clips."""
    spec, train, clip = experiment.video_tokenizer, experiment.tokenizer_train, experiment.clip
    frames, crops = train.frames or clip.frames, _crops(experiment)
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
    return {name: shapes[name] for name in shares(experiment)}


def _crops(experiment: Experiment) -> tuple[tuple[int, int], ...]:
    clip = experiment.clip
    return experiment.tokenizer_train.crops or ((clip.height, clip.width),)


def _name(kind: str, crop: tuple[int, int], crops: tuple[tuple[int, int], ...]) -> str:
    return kind if len(crops) == 1 else f"{kind}_{crop[0]}x{crop[1]}"


def _critic_shape(experiment: Experiment, shapes: Mapping[str, Shape]) -> Shape:
    """(frames, height, width) of the clips that the discriminator is declared for."""
    sizes = sorted({shape[1:4] for shape in shapes.values()})
    flat = experiment.tokenizer_train.adversarial and experiment.discriminator.head == "flatten"
    if flat and len(sizes) > 1:
        raise UserError(
            f"DISCRIMINATOR.head = 'flatten' reads clips of one shape, and this run has {sizes} "
            "(frames, height, width): set DISCRIMINATOR.head = 'mean', or leave TOKENIZER_TRAIN."
            "crops and .image_fraction alone"
        )
    return sizes[-1]


def _start(experiment: Experiment) -> Tree | None:
    """The weights that the run starts from, if it does not start from chance."""
    folder = experiment.tokenizer_train.init_from
    if not folder:
        return None
    return inflation.initial_weights(experiment.video_tokenizer, VideoTokenizer.load(folder))


def _group(
    experiment: Experiment,
    mesh: Mesh | None,
    name: str,
    shape: Shape,
    step: Step,
    frozen: Perceptual | None,
) -> Group:
    batch, t, h, w = shape[0], *experiment.video_tokenizer.grid(*shape[1:4])
    what = f"TOKENIZER_TRAIN.batch, group {name!r}"
    if mesh is not None:
        mesh_lib.check_batch(mesh, batch, what)
    shards = 1 if mesh is None else mesh_lib.batch_ways(mesh)
    microbatches.check(batch, experiment.train.microbatches, shards, what)
    return Group(
        name=name,
        step=step,
        batch={"video": jax.ShapeDtypeStruct(shape, jnp.uint8)},
        clips=batch,
        tokens=batch * t * h * w,
        flops=train_flops(experiment, shape, frozen),
    )


def shapes_of(spec: VideoTokenizerSpec) -> Tree:
    """ShapeDtypeStructs of the weights."""
    return jax.eval_shape(lambda: magvit.init(spec, jax.random.key(0)))


def train_flops(experiment: Experiment, shape: Shape, frozen: Perceptual | None) -> float:
    """Matmul and convolution FLOPs of one step: a backward pass counts as two forward ones.

    The discriminator judges the reconstruction for the generator (forward, and backward to its
    input), then the clip and the reconstruction for itself; R1 takes a gradient of a gradient,
    counted as six forward passes.  The perceptual network itself does not learn.
    """
    train = experiment.tokenizer_train
    total = 3.0 * forward_flops(experiment.video_tokenizer, shape)
    if train.adversarial:
        judged = _critic_flops(experiment, shape)
        total += (2 + 2 * 3 + 6 / train.r1_every) * judged
    if frozen is not None:
        frames = min(train.perceptual_frames or shape[1], shape[1])
        pictures = jax.ShapeDtypeStruct((shape[0] * frames, *shape[2:]), jnp.float32)
        # One call embeds both images: forward twice, and backward to one of them.
        total += 1.5 * traced_flops(frozen.distance, frozen.params, pictures, pictures)
    return total


def _critic_flops(experiment: Experiment, shape: Shape) -> float:
    spec = experiment.discriminator
    params = jax.eval_shape(
        lambda: declaration.init(discriminator.declare(spec, *shape[1:4]), jax.random.key(0))
    )
    video = jax.ShapeDtypeStruct(shape, jnp.float32)
    return traced_flops(functools.partial(discriminator.apply, spec), params, video)


def forward_flops(spec: VideoTokenizerSpec, shape: tuple[int, ...]) -> float:
    """Matmul and convolution FLOPs of one reconstruction of a batch of this shape."""
    video = jax.ShapeDtypeStruct(shape, jnp.float32)
    return traced_flops(functools.partial(magvit.reconstruct, spec), shapes_of(spec), video)


def export_tokenizer(
    state: State, experiment: Experiment, out_dir: str | pathlib.Path, card: Mapping[str, Any]
) -> VideoTokenizer:
    """Writes the moving average as frozen weights, with `card` as `card.json` beside them."""
    out = pathlib.Path(out_dir)
    params = jax.tree.map(jax.device_get, state["ema"])
    tokenizer = VideoTokenizer.from_params(experiment.video_tokenizer, params)
    tokenizer.save(out)
    text = json.dumps({**card, "fingerprint": tokenizer.fingerprint}, indent=2, sort_keys=True)
    (out / "card.json").write_text(text + "\n")
    return tokenizer
