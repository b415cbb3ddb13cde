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
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from poet.mesh import BATCH_AXES, check_batch
from poet.specs import Experiment, OptimizerSpec, VideoTokenizerSpec
from poet.tokenizers import layers, losses, magvit
from poet.tokenizers.base import VideoTokenizer
from poet.tokenizers.layers import Tree
from poet.training.trainable import Batch, Group, Metrics, State, Trainable

Step = Callable[[State, Batch, jax.Array], tuple[State, Metrics]]


def trainable(experiment: Experiment, mesh: Mesh | None = None) -> Trainable:
    """What `poet tokenizer-train` trains.

    One group, `clip`: batch {'video': uint8 (batch, frames, height, width, 3)} of the run's
    `ClipSpec`; with `tokenizer_train.image_share` > 0 also `image`, of one-frame clips, holding as
    many latents per step.  State: step, params, opt_state {mu, nu}, ema.
    """
    spec, train = experiment.video_tokenizer, experiment.tokenizer_train
    clip = experiment.clip
    frames = train.frames or clip.frames
    shapes = {"clip": (train.batch, frames, clip.height, clip.width, magvit.RGB)}
    if train.image_share > 0:
        latent_frames = spec.grid(frames, clip.height, clip.width)[0]
        shapes["image"] = (train.batch * latent_frames, 1, *shapes["clip"][2:])
    axes = layers.axes(magvit.declare(spec))
    return Trainable(
        init=functools.partial(init_state, spec),
        axes={"step": (), "params": axes, "ema": axes, "opt_state": {"mu": axes, "nu": axes}},
        groups={name: _group(experiment, mesh, name, shape) for name, shape in shapes.items()},
    )


def init_state(spec: VideoTokenizerSpec, key: jax.Array) -> State:
    """A fresh state; the moving average starts at the initial weights."""
    params = magvit.init(spec, key)
    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    return {
        "step": jnp.int32(0),
        "params": params,
        "ema": jax.tree.map(jnp.copy, params),
        "opt_state": {"mu": zeros(params), "nu": zeros(params)},
    }


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
    optimizer, train = experiment.optimizer, experiment.tokenizer_train
    steps = experiment.train.steps
    loss_fn = _global_loss(experiment, mesh)

    def step(state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
        del key
        gradients, metrics = jax.grad(loss_fn, has_aux=True)(
            state["params"], batch["video"], state["step"]
        )
        params, opt_state, norms = adam_update(optimizer, steps, state, gradients)
        decay = ema_decay(train.ema_decay, state["step"])
        ema = jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), state["ema"], params)
        new = {"step": state["step"] + 1, "params": params, "ema": ema, "opt_state": opt_state}
        return new, metrics | norms

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


def schedule(spec: OptimizerSpec, steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then cosine to `final_fraction` of the peak at `steps`."""
    warmup = min(spec.warmup_steps, max(steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else spec.learning_rate,
        spec.learning_rate,
        warmup,
        max(steps, warmup + 1),
        spec.learning_rate * spec.final_fraction,
    )


def adam_update(
    spec: OptimizerSpec, steps: int, state: State, gradients: Tree
) -> tuple[Tree, Tree, Metrics]:
    """One clipped Adam step (decoupled decay on kernels only): params, opt_state, metrics."""
    norm = optax.global_norm(gradients)
    scale = jnp.minimum(1.0, spec.clip_norm / jnp.maximum(norm, 1e-12))
    gradients = jax.tree.map(lambda g: g * scale, gradients)
    count = (state["step"] + 1).astype(jnp.float32)
    old = state["opt_state"]
    mu = jax.tree.map(lambda m, g: spec.b1 * m + (1 - spec.b1) * g, old["mu"], gradients)
    nu = jax.tree.map(lambda v, g: spec.b2 * v + (1 - spec.b2) * g * g, old["nu"], gradients)
    mu_scale, nu_scale = 1 / (1 - spec.b1**count), 1 / (1 - spec.b2**count)
    rate = schedule(spec, steps)(state["step"])

    def update(p: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
        decay = spec.weight_decay * p if p.ndim > 1 else 0.0
        return p - rate * (m * mu_scale / (jnp.sqrt(v * nu_scale) + 1e-8) + decay)

    params = jax.tree.map(update, state["params"], mu, nu)
    return params, {"mu": mu, "nu": nu}, {"grad_norm": norm, "learning_rate": rate}


def ema_decay(decay: float, step: jax.Array) -> jax.Array:
    """min(decay, (1 + step) / (10 + step)), so that a short run does not average its start."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def forward_flops(spec: VideoTokenizerSpec, shape: tuple[int, ...]) -> float:
    """Matmul and convolution FLOPs of one reconstruction of a batch of this shape."""
    params = jax.eval_shape(lambda: magvit.init(spec, jax.random.key(0)))
    video = jax.ShapeDtypeStruct(shape, jnp.float32)
    traced = jax.make_jaxpr(functools.partial(magvit.reconstruct, spec))(params, video)
    return _count_flops(traced.jaxpr)


def _count_flops(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        for inner in jax.core.jaxprs_in_params(equation.params):
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
