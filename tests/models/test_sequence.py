"""Positions split over the mesh: loss and gradients of every kind of layout are those of one device, heads
are exchanged for positions by all-to-alls alone, and activations take a part of the memory."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
import pytest

from poet import hlo
from poet import mesh as mesh_lib
from poet.models import sequence, transformer
from poet.specs import MeshSpec, ModelSpec, UserError, VocabularySpec
from poet.tasks.layout import Format, build_layout
from poet.training import losses
from poet.vocabulary import Special, Vocabulary

VOCABULARY = Vocabulary(VocabularySpec(visual_bits=5, audio_levels=1, audio_codes=16, text_pieces=8))
SPEC = ModelSpec(
    layers=1, width=32, heads=8, kv_heads=4, head_dim=8, mlp_width=48, dtype="float32", remat="none"
)
TEXT_WIDTH, BATCH = 12, 4
MODEL = transformer.build(SPEC, VOCABULARY, TEXT_WIDTH)
SHAPE = (1, 2, 4, 1)  # (data, fsdp, sequence, tensor); meshes with tensor are in tests/test_sharding.py


def make_layout(text, condition, output):
    return build_layout(
        task_token=Special.TASK_VIDEO, text=text, condition=condition, output=output,
        fmt=Format(video=(2, 3, 5), text_length=5, audio_frames=3), vocabulary=VOCABULARY,
    )


LAYOUTS = {
    "text": make_layout(True, (), ("video",)),
    "sound": make_layout(False, ("video",), ("video", "audio")),
}


def make_batch(layout):
    rng = np.random.default_rng(0)
    tokens = [rng.integers(s.ids.low, s.ids.high, (BATCH, s.length)) for s in layout.segments]
    batch = {
        "tokens": np.concatenate(tokens, axis=1).astype(np.int32),
        "known": rng.integers(0, 3, (BATCH, len(layout.loss_spans))).astype(np.int32),
    }
    if layout.text_span:
        batch["text_states"] = rng.normal(size=(BATCH, 5, TEXT_WIDTH)).astype(np.float32)
        batch["text_length"] = np.array([0, 2, 5, 3], np.int32)
    return batch


@functools.cache
def initial_params():
    return jax.device_get(jax.jit(MODEL.init)(jax.random.key(0)))


def objectives(params, batches):
    return sum(
        losses.objective(losses.stream_sums(MODEL, params, batch, LAYOUTS[name], z_loss=1e-4))[0]
        for name, batch in batches.items()
    )


@functools.cache
def derived(shape):
    """The objectives of all layouts and their gradients on a mesh, and the compiled program."""
    params, batches = initial_params(), {name: make_batch(layout) for name, layout in LAYOUTS.items()}
    mesh = shape and mesh_lib.build(
        MeshSpec(**dict(zip(mesh_lib.AXES, shape))), jax.devices()[: math.prod(shape)]
    )
    with jax.set_mesh(mesh) if mesh else jax.ensure_compile_time_eval():
        if mesh:
            params = jax.device_put(params, mesh_lib.Rules().shardings(mesh, MODEL.axes()))
            batches = jax.device_put(batches, mesh_lib.batch_sharding(mesh))
        program = jax.jit(jax.value_and_grad(objectives)).lower(params, batches).compile()
        value, grads = program(params, batches)
    if mesh:
        assert jax.tree.all(jax.tree.map(lambda g, p: g.sharding == p.sharding, grads, params))
    return float(value), jax.device_get(grads), program


def test_losses_and_gradients_equal_one_device():
    """Lengths and spans that the axis does not divide: what fills them up counts nowhere."""
    for layout in LAYOUTS.values():
        assert (layout.length - 1) % 4 and all((s.stop - s.start) % 4 for s in layout.loss_spans)
    want, want_grads, _ = derived(None)
    value, grads, _ = derived(SHAPE)
    assert value == pytest.approx(want, rel=1e-5)
    for (path, g), w in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(want_grads)):
        np.testing.assert_allclose(g, w, atol=2e-5, rtol=1e-3, err_msg=jax.tree_util.keystr(path))


def moved_elements(layout):
    """Float32 elements that one device's all-to-alls over `sequence` take for one layout, by hand."""
    data, fsdp, ways, tensor = SHAPE
    clips, kv, head, width = BATCH // (data * fsdp), SPEC.kv_heads // tensor, SPEC.head_dim, SPEC.width

    def part(length):
        return clips * math.ceil(length / ways)

    read = part(layout.length - 1)
    # Queries and what attention makes of them, keys, values; heads are two to a key.
    attention = SPEC.layers * read * kv * head * (2 + 2 + 1 + 1)
    # Behind the embedding, in front of the loss, and every span on its own.
    spans = sum(part(span.stop - span.start) for span in layout.loss_spans)
    return 2 * (attention + width * (2 * read + spans))  # There and, for gradients, back.


def test_heads_are_exchanged_for_positions_and_nothing_larger_moves():
    """Over `sequence`: all-to-alls of what arithmetic says; gathers and sums of parameters alone."""
    along = [c for c in hlo.collectives(derived(SHAPE)[2].as_text()) if c.crosses(SHAPE, 2)]
    exchanged = sum(moved_elements(layout) for layout in LAYOUTS.values())
    assert hlo.totals(along)["all-to-all"] == 4 * exchanged
    assert not any(c.in_loop for c in along)
    parameters = sum(p.nbytes for p in jax.tree.leaves(initial_params()))
    gathered = sum(c.bytes for c in along if c.kind == "all-gather")
    # The blocks once a layout; no embedding table, and of the head the rows that are legal.
    assert gathered < len(LAYOUTS) * parameters
    assert not any(c.kind == "collective-permute" for c in along)


def test_activations_take_a_part_of_the_memory():
    """Temporary bytes of one of 2 x 4 devices are about an eighth of those of one device: parameters
    that are whole in use remain."""
    alone, split = (derived(shape)[2].memory_analysis().temp_size_in_bytes for shape in (None, SHAPE))
    assert split < alone / 5


def test_sequences_that_cannot_be_split_are_refused():
    layout = make_layout(False, (), ("video",))
    mesh = mesh_lib.abstract(MeshSpec(fsdp=1, sequence=64), 64)
    with pytest.raises(UserError, match="group 'x': MESH.sequence = 64 cannot split the 3. positions"):
        sequence.check(mesh, 64, layout, "group 'x'")
    mesh = mesh_lib.abstract(MeshSpec(fsdp=1, sequence=2, tensor=4), 8)
    for heads, way_out in ((4, "MESH.sequence = 1$"), (2, "a lower MESH.tensor")):
        with pytest.raises(UserError, match=f"kv_heads = {heads} .*2 x 4.*use {way_out}"):
            sequence.check(mesh, heads, layout, "group 'x'")
    sequence.check(mesh, 8, layout, "group 'x'")
