"""Positions split over the mesh: loss and gradients are those of one device, heads are exchanged for
positions by all-to-alls alone, and activations take a part of the memory."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
import pytest

from poet.distributed import mesh as mesh_lib
from poet.models import sequence, transformer
from poet.planning import hlo
from poet.spec import MeshSpec, ModelSpec, UserError, VocabularySpec
from poet.spec.vocabulary import Special, Vocabulary
from poet.tasks.layout import Format, build_layout
from poet.training import losses

VOCABULARY = Vocabulary(VocabularySpec(visual_bits=5, audio_levels=1, audio_codes=16, text_pieces=8))
SPEC = ModelSpec(layers=1, width=32, heads=8, kv_heads=4, head_dim=8, mlp_width=48, dtype="float32", remat="none")
TEXT_WIDTH, BATCH = 12, 4
MODEL = transformer.build(SPEC, VOCABULARY, TEXT_WIDTH)
SHAPE = (1, 2, 4, 1)  # (data, fsdp, sequence, tensor); meshes with tensor are in tests/test_sharding.py


# Text whose padding is masked, a video that is given, and a video and sound that are drawn.
LAYOUT = build_layout(
    task_token=Special.TASK_VIDEO,
    text=True,
    condition=("video",),
    output=("video", "audio"),
    fmt=Format(video=(2, 3, 5), text_length=5, audio_frames=5),
    vocabulary=VOCABULARY,
)


def make_batch():
    rng = np.random.default_rng(0)
    tokens = [rng.integers(s.ids.low, s.ids.high, (BATCH, s.length)) for s in LAYOUT.segments]
    return {
        "tokens": np.concatenate(tokens, axis=1).astype(np.int32),
        "known": rng.integers(0, 3, (BATCH, len(LAYOUT.loss_spans))).astype(np.int32),
        "text_states": rng.normal(size=(BATCH, 5, TEXT_WIDTH)).astype(np.float32),
        "text_length": np.array([0, 2, 5, 3], np.int32),
    }


@functools.cache
def initial_params():
    """NumPy draws them: compiling the initialisers would take longer than the tests."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32), MODEL.abstract())


def objective(params, batch):
    found = losses.total(losses.stream_sums(MODEL, params, batch, LAYOUT, z_loss=1e-4))
    return found.objective / found.count


@functools.cache
def derived(shape):
    """The objective and its gradients on a mesh, or on one device without any; and the program."""
    params, batch = initial_params(), make_batch()
    mesh = shape and mesh_lib.build(MeshSpec(**dict(zip(mesh_lib.AXES, shape))), jax.devices()[: math.prod(shape)])
    with jax.set_mesh(mesh) if mesh else jax.ensure_compile_time_eval():
        if mesh:
            params = jax.device_put(params, mesh_lib.Rules().shardings(mesh, MODEL.axes()))
            batch = jax.device_put(batch, mesh_lib.batch_sharding(mesh))
        program = jax.jit(jax.value_and_grad(objective)).lower(params, batch).compile()
        value, grads = program(params, batch)
    if mesh:
        assert jax.tree.all(jax.tree.map(lambda g, p: g.sharding == p.sharding, grads, params))
    return float(value), jax.device_get(grads), program


def test_loss_and_gradients_equal_one_device():
    """A length and spans that the axis does not divide: what fills them up counts nowhere."""
    assert (LAYOUT.length - 1) % 4 and all((s.stop - s.start) % 4 for s in LAYOUT.loss_spans)
    want, want_grads, _ = derived(None)
    value, grads, _ = derived(SHAPE)
    assert value == pytest.approx(want, rel=1e-5)
    for (path, g), w in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(want_grads)):
        np.testing.assert_allclose(g, w, atol=2e-5, rtol=1e-3, err_msg=jax.tree_util.keystr(path))


def moved_elements():
    """Elements that one device's all-to-alls over `sequence` take in a step, by hand."""
    data, fsdp, ways, tensor = SHAPE
    clips, kv, head, width = BATCH // (data * fsdp), SPEC.kv_heads // tensor, SPEC.head_dim, SPEC.width

    def part(length):
        return clips * math.ceil(length / ways)

    read = part(LAYOUT.length - 1)
    # Queries and what attention makes of them, keys, values; heads are two to a key.
    attention = SPEC.layers * read * kv * head * (2 + 2 + 1 + 1)
    # Behind the embedding, in front of the loss, and every span on its own.
    spans = sum(part(span.stop - span.start) for span in LAYOUT.loss_spans)
    return 2 * (attention + width * (2 * read + spans))  # There and, for gradients, back.


def test_heads_are_exchanged_for_positions_and_nothing_larger_moves():
    """Over `sequence`: all-to-alls of what arithmetic says; gathers and sums of parameters alone."""
    along = [c for c in hlo.collectives(derived(SHAPE)[2].as_text()) if c.crosses(SHAPE, 2)]
    assert hlo.totals(along)["all-to-all"] == 4 * moved_elements()
    assert not any(c.in_loop for c in along)
    parameters = sum(p.nbytes for p in jax.tree.leaves(initial_params()))
    gathered = sum(c.bytes for c in along if c.kind == "all-gather")
    # The blocks, and of the head the rows that are legal; no embedding table.
    assert gathered < parameters
    assert not any(c.kind == "collective-permute" for c in along)


def test_activations_take_a_part_of_the_memory():
    """Temporary bytes of one of 2 x 4 devices are about an eighth of those of one device: parameters
    that are whole in use remain."""
    alone, split = (derived(shape)[2].memory_analysis().temp_size_in_bytes for shape in (None, SHAPE))
    assert split < alone / 5


def test_sequences_that_cannot_be_split_are_refused():
    small = build_layout(
        task_token=Special.TASK_VIDEO,
        text=False,
        condition=(),
        output=("video",),
        fmt=Format(video=(1, 1, 1), text_length=5, audio_frames=0),
        vocabulary=VOCABULARY,
    )
    read = small.length - 1
    mesh = mesh_lib.abstract(MeshSpec(fsdp=1, sequence=16), 16)
    with pytest.raises(UserError, match=f"group 'x': MESH.sequence = 16 cannot .* {read} .*at most {read}"):
        sequence.check(mesh, 16, small, "group 'x'")
    mesh = mesh_lib.abstract(MeshSpec(fsdp=1, sequence=2, tensor=4), 8)
    for heads, way_out in ((4, "MESH.sequence = 1$"), (2, "a lower MESH.tensor")):
        with pytest.raises(UserError, match=f"kv_heads = {heads} .*2 x 4.*use {way_out}"):
            sequence.check(mesh, heads, small, "group 'x'")
    sequence.check(mesh, 8, small, "group 'x'")
