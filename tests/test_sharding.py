"""FSDP x sequence x tensor sharding of the real train step on eight virtual devices."""

from __future__ import annotations

import fnmatch
import functools
import math

import jax
import numpy as np
import pytest

from poet.distributed import mesh as mesh_lib
from poet.models import transformer
from poet.runs import assets
from poet.spec import (
    ClipSpec,
    DataSpec,
    Experiment,
    MeshSpec,
    ModelSpec,
    OptimizerSpec,
    TextSpec,
    TrainSpec,
    UserError,
    VideoTokenizerSpec,
    VocabularySpec,
    config,
)
from poet.spec.vocabulary import Vocabulary
from poet.tasks.resolved import Resolved
from poet.training import losses, optimizer, step

BATCH = 8


def experiment(**changes) -> Experiment:
    values = dict(
        clip=ClipSpec(frames=5, height=32, width=32),
        vocabulary=VocabularySpec(visual_bits=6, audio_codes=16, text_pieces=64),
        video_tokenizer=VideoTokenizerSpec(bits=6),
        text=TextSpec(length=8, width=16),
        model=ModelSpec(
            layers=2, width=32, heads=8, kv_heads=4, head_dim=8, mlp_width=64, dtype="float32", remat="none"
        ),
        data=DataSpec(batch=BATCH, mixture_rates={"text_to_video": 1.0}),
        optimizer=OptimizerSpec(warmup_steps=0),
        train=TrainSpec(steps=10),
    )
    return Experiment(**{**values, **changes})


def make_batch(run: Experiment, size: int = BATCH) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    layout = Resolved(run).layouts["text_to_video"]
    codes = {"source": 1, "video": 2**run.vocabulary.visual_bits}
    streams = {name: rng.integers(0, codes[name], (size, n)).astype(np.int32) for name, n in layout.streams.items()}
    shape = (size, run.text.length, run.text.width)
    return {
        "tokens": layout.assemble(streams),
        "known": rng.integers(0, 17, (size, 1)).astype(np.int32),
        "text_states": rng.normal(size=shape).astype(np.float32),
        "text_length": rng.integers(0, run.text.length + 1, size).astype(np.int32),
    }


@functools.cache
def initial_params(visual_head: str):
    model = step.build_model(Resolved(with_head(visual_head)))
    return jax.device_get(jax.jit(model.init)(jax.random.key(0)))


def with_head(visual_head: str) -> Experiment:
    return experiment(model=experiment().model.replace(visual_head=visual_head))


def gradients(run: Experiment, shape: tuple[int, ...], loss_vocabulary: str):
    """Loss and gradients (as NumPy) on a mesh of this shape, and the gradients' shardings."""
    sizes = MeshSpec(**dict(zip(mesh_lib.AXES, shape)))
    mesh = mesh_lib.build(sizes, jax.devices()[: math.prod(shape)])
    model = step.build_model(Resolved(run))
    layout = Resolved(run).layouts["text_to_video"]
    shardings = mesh_lib.Rules().shardings(mesh, model.axes())

    def loss(params, batch):
        sums = losses.stream_sums(model, params, batch, layout, loss_vocabulary=loss_vocabulary, z_loss=1e-4)
        found = losses.total(sums)
        return found.objective / found.count

    with jax.set_mesh(mesh):
        params = jax.device_put(initial_params(run.model.visual_head), shardings)
        batch = jax.device_put(make_batch(run), mesh_lib.batch_sharding(mesh))
        value, grads = jax.jit(jax.value_and_grad(loss))(params, batch)
    same = jax.tree.map(lambda g, s: g.sharding.is_equivalent_to(s, g.ndim), grads, shardings)
    return float(value), jax.device_get(grads), same


@functools.cache
def reference(loss_vocabulary: str, visual_head: str):
    return gradients(with_head(visual_head), (1, 1, 1, 1), loss_vocabulary)


@pytest.mark.parametrize(
    "shape, loss_vocabulary, visual_head",
    [
        pytest.param((1, 4, 1, 2), "legal", "full", marks=pytest.mark.slow),
        pytest.param((2, 2, 1, 2), "legal", "full", marks=pytest.mark.slow),
        pytest.param((1, 2, 2, 2), "full", "full", marks=pytest.mark.slow),
        ((1, 2, 2, 2), "legal", "factorised"),
    ],
    ids=str,
)
def test_sharded_loss_and_gradients_equal_single_device(shape, loss_vocabulary, visual_head):
    expected, expected_grads, _ = reference(loss_vocabulary, visual_head)
    value, grads, placed = gradients(with_head(visual_head), shape, loss_vocabulary)
    assert value == pytest.approx(expected, rel=1e-5)
    assert all(jax.tree.leaves(placed)), placed
    assert max(float(np.abs(g).max()) for g in jax.tree.leaves(expected_grads["blocks"])) > 1e-3
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, atol=2e-5, rtol=1e-3), grads, expected_grads)


def test_moments_lie_where_their_parameters_lie():
    """`tx.init` under the mesh, with no sharding asked for: nothing is replicated by accident."""
    run = experiment()
    mesh = mesh_lib.build(MeshSpec(data=1, fsdp=4, tensor=2))
    trainable = step.language_model(Resolved(run), mesh)
    declared = mesh_lib.Rules().shardings(mesh, trainable.axes)
    model = step.build_model(Resolved(run))
    tx = optimizer.build(run.optimizer, model.axes())
    with jax.set_mesh(mesh):
        params = jax.tree.map(
            lambda leaf, s: jax.device_put(np.zeros(leaf.shape, leaf.dtype), s), model.abstract(), declared["params"]
        )
        inherited = jax.jit(tx.init)(params)
    moments = 0
    for leaf, want in zip(jax.tree.leaves(inherited), jax.tree.leaves(declared["opt_state"]), strict=True):
        assert leaf.ndim == 0 or leaf.sharding.is_equivalent_to(want, leaf.ndim), (leaf, want)
        moments += leaf.ndim >= 3 and not leaf.sharding.is_fully_replicated
    matrices = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim >= 3]
    assert moments == 2 * len(matrices)


@pytest.mark.parametrize("size", ("300m", "1b", "8b"))
@pytest.mark.parametrize("tensor", (1, 2, 4, 8))
def test_shipped_sizes_divide(size, tensor):
    """On 8 x tensor devices every dim divides and the MLP is cut by every device."""
    spec = config.load([str(assets.root() / "gin" / "models" / f"{size}.gin")]).model
    model = transformer.build(spec, Vocabulary(), 2048)
    mesh = mesh_lib.abstract(MeshSpec(fsdp=8, tensor=tensor), 8 * tensor)
    rules, axes, shapes = mesh_lib.Rules(), model.axes(), model.abstract()
    rules.check(mesh, axes, shapes)
    for name, leaf in shapes["blocks"]["mlp"].items():
        sharding = rules.shardings(mesh, axes["blocks"]["mlp"][name])
        shard = mesh_lib.local_bytes(sharding, leaf.shape, leaf.dtype)
        assert shard * 8 * tensor == leaf.size * leaf.dtype.itemsize


@pytest.mark.parametrize("size", ("300m", "1b", "8b"))
@pytest.mark.parametrize("sequence, tensor", ((1, 1), (1, 8), (8, 1)))
def test_no_large_leaf_is_replicated(size, sequence, tensor):
    """Of the whole train state on 32 x tensor devices: every array above a MiB is cut by fsdp and
    sequence, and every one above 64 MiB by all devices; what is left whole is under 4 MiB together."""
    run = config.load([f"gin/experiments/pretrain_{size}.gin"], ["DATA.batch=256"])
    axes = MeshSpec(fsdp=32 // sequence, sequence=sequence, tensor=tensor)
    mesh = mesh_lib.abstract(axes, 32 * tensor)
    trainable = step.language_model(Resolved(run), mesh)
    state = jax.eval_shape(trainable.init, jax.random.key(0))
    shardings = mesh_lib.Rules().shardings(mesh, trainable.axes)
    whole = share = 0
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(shardings), strict=True
    ):
        size_bytes = leaf.size * leaf.dtype.itemsize
        here = mesh_lib.local_bytes(sharding, leaf.shape, leaf.dtype)
        ways, name = size_bytes // here, jax.tree_util.keystr(path)
        assert size_bytes < 2**20 or ways >= 32, (name, leaf.shape, sharding.spec)
        assert size_bytes < 2**26 or ways == 32 * tensor, (name, leaf.shape, sharding.spec)
        share += here
        whole += here if ways == 1 else 0
    assert whole < 2**22


# Where each kind of parameter lies: the design, apart from the rules that carry it out.
WIDTH, COLUMNS = ("fsdp", "sequence"), ("sequence", "fsdp")
PLACED = {
    "embedding.tables.*": ("tensor", COLUMNS),
    "embedding.text_states": (None, COLUMNS),
    "embedding.markers": (None, None),
    "blocks.attention.query": (None, WIDTH, "tensor", None, None),
    "blocks.attention.key": (None, WIDTH, "tensor", None),
    "blocks.attention.value": (None, WIDTH, "tensor", None),
    "blocks.attention.out": (None, "tensor", None, None, WIDTH),
    "blocks.mlp.down": (None, "tensor", WIDTH),
    "blocks.mlp.*": (None, WIDTH, "tensor"),
    "blocks.*scale": (None, None),
    "head.norm.scale": (None,),
    "head.tables.*": ("tensor", COLUMNS),
}


@pytest.mark.parametrize("size", ("tiny", "300m", "1b", "8b"))
def test_every_parameter_lies_where_the_design_says(size):
    spec = config.load([f"gin/models/{size}.gin"], ["MODEL.tables='untied'"]).model
    axes = transformer.build(spec, Vocabulary(), 2048).axes()
    leaves = jax.tree_util.tree_leaves_with_path(axes, is_leaf=mesh_lib.is_axes)
    used = set()
    for path, names in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        pattern = next(p for p in PLACED if fnmatch.fnmatch(name, p))
        assert tuple(mesh_lib.Rules().spec(names)) == PLACED[pattern], name
        used.add(pattern)
    assert used == set(PLACED)


def test_two_dims_on_one_mesh_axis_are_refused_by_name():
    rules = mesh_lib.Rules({**mesh_lib.DEFAULT_RULES, "kv_heads": "fsdp"})
    with pytest.raises(UserError, match="'embed' and 'kv_heads' of one array both map.*'fsdp'"):
        rules.spec(("embed", "kv_heads", "head_dim"))
