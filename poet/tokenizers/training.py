"""The video tokenizer as a `Trainable`: Adam, cosine schedule, EMA of the weights.

The whole loss runs inside one `jax.shard_map` over the batch axes of the mesh: weights are
gathered once, the batch entropy is that of the global batch, and gradients come back summed.
"""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any, Callable, Mapping

import jax
import jax.extend.core as jax_core
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from poet.mesh import BATCH_AXES, check_batch
from poet.specs import Experiment, VideoTokenizerSpec
from poet.tokenizers import layers, losses, magvit
from poet.tokenizers.base import VideoTokenizer
from poet.tokenizers.layers import Tree
from poet.training import optimizer
from poet.training.trainable import Batch, Group, Metrics, State, Trainable

Step = Callable[[State, Batch, jax.Array], tuple[State, Metrics]]


def trainable(experiment: Experiment, mesh: Mesh | None = None) -> Trainable:
    """What `poet tokenizer-train` trains.

    One group, `clip`: batch {'video': uint8 (batch, frames, height, width, 3)} of the run's
    `ClipSpec`; with `tokenizer_train.image_share` > 0 also `image`, of one-frame clips, holding as
    many latents per step.  State: step, params, opt_state, ema.
    """
    spec, train = experiment.video_tokenizer, experiment.tokenizer_train
    clip = experiment.clip
    frames = train.frames or clip.frames
    shapes = {"clip": (train.batch, frames, clip.height, clip.width, magvit.RGB)}
    if train.image_share > 0:
        latent_frames = spec.grid(frames, clip.height, clip.width)[0]
        shapes["image"] = (train.batch * latent_frames, 1, *shapes["clip"][2:])
    axes, params = layers.axes(magvit.declare(spec)), shapes_of(spec)
    opt_axes = optimizer.state_axes(_optimizer(experiment), params, axes)
    return Trainable(
        init=functools.partial(init_state, experiment),
        axes={"step": (), "params": axes, "ema": axes, "opt_state": opt_axes},
        groups={name: _group(experiment, mesh, name, shape) for name, shape in shapes.items()},
    )


def init_state(experiment: Experiment, key: jax.Array) -> State:
    """A fresh state; the moving average starts at the initial weights."""
    params = magvit.init(experiment.video_tokenizer, key)
    return {
        "step": jnp.int32(0),
        "params": params,
        "ema": jax.tree.map(jnp.copy, params),
        "opt_state": _optimizer(experiment).init(params),
    }


def shapes_of(spec: VideoTokenizerSpec) -> Tree:
    """ShapeDtypeStructs of the weights."""
    return jax.eval_shape(lambda: magvit.init(spec, jax.random.key(0)))


def _optimizer(experiment: Experiment) -> optax.GradientTransformation:
    axes = layers.axes(magvit.declare(experiment.video_tokenizer))
    return optimizer.build(experiment.optimizer, experiment.train.steps, axes)


def _group(
    experiment: Experiment, mesh: Mesh | None, name: str, shape: tuple[int, ...]
) -> Group:
    spec = experiment.video_tokenizer
    t, h, w = spec.grid(*shape[1:4])
    if mesh is not None:
        check_batch(mesh, shape[0], f"TOKENIZER_TRAIN.batch, group {name!r}")
    return Group(
        name=name,
        step=train_step(experiment, mesh),
        batch={"video": jax.ShapeDtypeStruct(shape, jnp.uint8)},
        clips=shape[0],
        tokens=shape[0] * t * h * w,
        flops=3.0 * forward_flops(spec, shape),
    )


def train_step(experiment: Experiment, mesh: Mesh | None = None) -> Step:
    """The pure step.  `key` is unused: the objective draws nothing at random."""
    loss_fn, tx = _global_loss(experiment, mesh), _optimizer(experiment)
    rate = optimizer.learning_rate(experiment.optimizer, experiment.train.steps)

    def step(state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
        del key
        gradients, metrics = jax.grad(loss_fn, has_aux=True)(
            state["params"], batch["video"], state["step"]
        )
        updates, opt_state = tx.update(gradients, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        decay = ema_decay(experiment.tokenizer_train.ema_decay, state["step"])
        ema = jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), state["ema"], params)
        new = {"step": state["step"] + 1, "params": params, "ema": ema, "opt_state": opt_state}
        norm = optax.tree.norm(gradients)
        return new, metrics | {"grad_norm": norm, "learning_rate": rate(state["step"])}

    return step


def _global_loss(experiment: Experiment, mesh: Mesh | None) -> Callable[..., Any]:
    """(params, video, step) -> (loss, metrics) over the global batch."""
    local = functools.partial(
        losses.tokenizer_loss, experiment.video_tokenizer, experiment.tokenizer_train
    )
    if mesh is None:
        return local
    replicated = PartitionSpec()
    sharded = jax.shard_map(
        functools.partial(local, mesh_axes=BATCH_AXES),
        mesh=mesh,
        in_specs=(replicated, PartitionSpec(BATCH_AXES), replicated),
        out_specs=(replicated, replicated),
    )

    def loss_fn(params: Tree, video: jax.Array, step: jax.Array) -> Any:
        gathered = jax.tree.map(lambda p: jax.sharding.reshard(p, replicated), params)
        return sharded(gathered, video, step)

    return loss_fn


def ema_decay(decay: float, step: jax.Array) -> jax.Array:
    """min(decay, (1 + step) / (10 + step)), so that a short run does not average its start."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def forward_flops(spec: VideoTokenizerSpec, shape: tuple[int, ...]) -> float:
    """Matmul and convolution FLOPs of one reconstruction of a batch of this shape."""
    params = shapes_of(spec)
    video = jax.ShapeDtypeStruct(shape, jnp.float32)
    traced = jax.make_jaxpr(functools.partial(magvit.reconstruct, spec))(params, video)
    return _count_flops(traced.jaxpr)


def _count_flops(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        for inner in jax_core.jaxprs_in_params(equation.params):
            total += _count_flops(inner)
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            out_dim = equation.params["dimension_numbers"].rhs_spec[0]
            total += 2.0 * equation.outvars[0].aval.size * kernel.size / kernel.shape[out_dim]
        elif equation.primitive.name == "dot_general":
            (contracting, _), _ = equation.params["dimension_numbers"]
            depth = 1
            for dim in contracting:
                depth *= equation.invars[0].aval.shape[dim]
            total += 2.0 * equation.outvars[0].aval.size * depth
    return total


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
