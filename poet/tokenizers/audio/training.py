"""The audio tokenizer as a `Trainable`: which batches it sees, where it starts, what it leaves."""

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
from poet.models import declaration
from poet.models.declaration import Tree
from poet.spec import AudioTokenizerSpec, AudioTrainSpec, Experiment, UserError
from poet.tokenizers import adversarial
from poet.tokenizers.audio import critics, soundstream
from poet.tokenizers.audio import step as steps
from poet.tokenizers.audio.base import CODEBOOKS, AudioTokenizer
from poet.training import optimizer
from poet.training.flops import traced_flops
from poet.training.trainable import Group, State, Trainable

GROUP = "sound"
# float32 weights beyond this make a released tokenizer larger than it needs to be.
RELEASED_DTYPE = "bfloat16"


def trainable(experiment: Experiment, mesh: Mesh | None = None) -> Trainable:
    """The trainable of `poet tokenizer-train` for TOKENIZER_TRAIN.modality = 'audio': one group.

    Raises UserError: a batch that does not divide, excerpts that are no whole frames or too short
    for the discriminators, a noise source without a switch or a switch without one, or weights to
    start from of another network.
    """
    spec, train, size = experiment.audio_tokenizer, experiment.audio_train, experiment.tokenizer_train.batch
    _check(spec, train)
    _check_batch(size, experiment.train.microbatches, mesh)
    critic = critics.declare(train) if train.adversarial else None
    nets = adversarial.networks(experiment.optimizer, soundstream.declare(spec), critic, train.critic_rate)
    objective = steps.Objective(spec=spec, train=train, gan_start=experiment.tokenizer_train.gan_start)
    frames = size * spec.frames(train.samples)
    group = Group(
        name=GROUP,
        step=steps.train_step(objective, nets, mesh),
        batch=_shapes(train, size),
        clips=size,
        tokens=frames * spec.levels,
        flops=train_flops(spec, train, size),
    )
    start = _start(spec, experiment.tokenizer_train.init_from)
    return Trainable(
        init=functools.partial(steps.init, nets, spec, frames, start=start),
        axes=steps.axes(nets),
        rate=optimizer.learning_rate(experiment.optimizer, experiment.train.steps),
        groups={GROUP: group},
    )


def _shapes(train: AudioTrainSpec, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = {"audio": jax.ShapeDtypeStruct((batch, train.samples), jnp.int16)}
    if train.noise_source:
        shapes["noise"] = shapes["audio"]
        shapes["denoise"] = jax.ShapeDtypeStruct((batch,), jnp.int8)
    return shapes


def _check(spec: AudioTokenizerSpec, train: AudioTrainSpec) -> None:
    if train.samples % spec.hop:
        low = max(train.samples // spec.hop, 1) * spec.hop
        raise UserError(
            f"AUDIO_TRAIN.samples = {train.samples}: excerpts hold whole frames of {spec.hop} "
            f"samples; nearest are {low} and {low + spec.hop}"
        )
    if train.adversarial:
        critics.check_samples(train.samples)
    if bool(train.noise_source) != bool(spec.denoise):
        raise UserError(
            f"AUDIO_TRAIN.noise_source = {train.noise_source!r} and AUDIO_TOKENIZER.denoise = "
            f"{spec.denoise!r}: the switch is learnt from noise that is mixed in, so give both or "
            "neither"
        )


def _check_batch(batch: int, parts: int, mesh: Mesh | None) -> None:
    if parts > 1:
        raise UserError(
            f"TRAIN.microbatches = {parts}: codebooks learn from whole "
            "batches; lower TOKENIZER_TRAIN.batch or AUDIO_TRAIN.samples, or use more devices"
        )
    if mesh is not None:
        mesh_lib.check_batch(mesh, batch, "TOKENIZER_TRAIN.batch")


def _start(spec: AudioTokenizerSpec, folder: str) -> Tree | None:
    """The weights that the run starts from, if it does not start from chance."""
    if not folder:
        return None
    tokenizer = AudioTokenizer.load(folder)
    wanted = spec.replace(path="", dtype=tokenizer.spec.dtype)
    if wanted != tokenizer.spec:
        raise UserError(
            f"TOKENIZER_TRAIN.init_from = {folder!r} holds another network: {tokenizer.spec}, this run trains {wanted}"
        )
    return tokenizer.params


def train_flops(spec: AudioTokenizerSpec, train: AudioTrainSpec, batch: int) -> float:
    """Matmul and convolution FLOPs of one step: a backward pass counts as two forward ones.

    The discriminators judge the reconstruction and the sound for the generator (forward, and
    backward to the reconstruction), then both for themselves.
    """
    wave = jax.ShapeDtypeStruct((batch, train.samples), jnp.float32)
    params = declaration.shapes(soundstream.declare(spec))

    def rebuild(params: Tree, wave: jax.Array) -> jax.Array:
        return soundstream.decode(spec, params, soundstream.encode(spec, params, wave)[0])[0]

    total = 3.0 * traced_flops(rebuild, params, wave)
    if train.adversarial:
        judges = declaration.shapes(critics.declare(train))
        judged = traced_flops(functools.partial(critics.apply, train), judges, wave)
        total += (3 + 2 * 3) * judged
    return total


def params_of(state: State) -> Tree:
    """The weights that a frozen tokenizer has, from a training state or its shapes."""
    return {**state["params"], CODEBOOKS: state["codebooks"]["vectors"]}


def export_tokenizer(
    params: Tree, spec: AudioTokenizerSpec, out_dir: str | pathlib.Path, card: Mapping[str, Any]
) -> AudioTokenizer:
    """Writes frozen weights as bfloat16, with `card` as `card.json` beside them.

    The tokenizer that is returned, and its fingerprint, are of the rounded weights.
    """
    out = pathlib.Path(out_dir)
    AudioTokenizer.from_params(spec, jax.tree.map(jax.device_get, params)).save(out, RELEASED_DTYPE)
    tokenizer = AudioTokenizer.load(out)
    text = json.dumps({**card, "fingerprint": tokenizer.fingerprint}, indent=2, sort_keys=True)
    (out / "card.json").write_text(text + "\n")
    return tokenizer
