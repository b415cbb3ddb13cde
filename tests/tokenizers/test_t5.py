"""T5's encoder against transformers' numbers, its folders, its place on a mesh, and its errors.

tests/fixtures/t5_states.npz is made by tests/benchmarks/t5_peer.py with the weights that
t5_weights_random.py draws.

B batch, L positions, D width of a state.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import t5_folders
import t5_weights_random as weights

from poet.distributed import mesh as mesh_lib
from poet.spec import MeshSpec, TextSpec, UserError
from poet.tokenizers import t5, t5_files, t5_shape, t5_weights
from poet.tokenizers import text as text_lib

FIXTURE = Path(__file__).parents[1] / "fixtures" / "t5_states.npz"
# What was asked for; states are of the order of 1, and in truth differ by less than 2e-5.
TOLERANCE = 1e-4
TINY = dict(
    model_type="t5",
    vocab_size=512,
    d_model=64,
    d_kv=16,
    d_ff=96,
    num_layers=3,
    num_heads=4,
    feed_forward_proj="gated-gelu",
)


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(FIXTURE) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def vocabulary() -> bytes:
    return t5_folders.train_pieces(55)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, vocabulary) -> Path:
    """A tiny encoder of Hugging Face; not to be changed."""
    folder = t5_folders.write_beside(tmp_path_factory.mktemp("t5"), TINY, vocabulary)
    t5_folders.write_single(folder, weights.draw(TINY, 1))
    return folder


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """The same, to be changed by a test."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def encoder(folder) -> t5.T5:
    return load(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory, vocabulary) -> Path:
    """v1.1 small with a table of 512 rows, in one file."""
    config = weights.CONFIGS["v1_1"]
    folder = t5_folders.write_beside(tmp_path_factory.mktemp("small"), config, vocabulary)
    t5_folders.write_single(folder, weights.draw(config, weights.SEEDS["v1_1"]))
    return folder


def load(folder: Path, mesh=None, **fields) -> t5.T5:
    width = json.loads((folder / "config.json").read_text())["d_model"]
    spec = TextSpec(encoder="t5", path=str(folder), width=width, **fields)
    return text_lib.load_text_encoder(spec, mesh)


def check_states(encoder: t5.T5, reference: dict[str, np.ndarray], name: str) -> None:
    texts = [reference[f"{name}_ids_{row}"].tolist() for row in range(len(weights.LENGTHS))]
    encoded = encoder.encode_ids(texts)
    assert encoded.truncated == 0
    assert encoded.lengths_B.tolist() == list(weights.LENGTHS)
    for row, length in enumerate(weights.LENGTHS):
        expected = reference[f"{name}_states_{row}"]
        states_lxD = encoded.states_BxLxD[row, :length]
        step = states_lxD.shape[1] // expected.shape[1]
        np.testing.assert_allclose(states_lxD[:, ::step], expected, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(np.linalg.norm(states_lxD, axis=-1), reference[f"{name}_norms_{row}"], rtol=1e-5)
        assert not encoded.states_BxLxD[row, length:].any()


# ------------------------------------------------------------------------------------ transformers


def test_v1_1_small_is_that_of_transformers(small, reference):
    check_states(load(small, length=max(weights.LENGTHS)), reference, "v1_1")


@pytest.mark.parametrize("name", ["v1_0", "umt5"])
def test_other_kinds_are_those_of_transformers_from_shards(name, reference, tmp_path, vocabulary):
    config = weights.CONFIGS[name]
    folder = t5_folders.write_beside(tmp_path, config, vocabulary)
    t5_folders.write_shards(folder, weights.draw(config, weights.SEEDS[name]))
    check_states(load(folder, length=max(weights.LENGTHS)), reference, name)


def test_the_fixture_tells_weights_and_positions_apart(reference):
    """States neither repeat nor vanish, so that agreement means something."""
    for name in weights.CONFIGS:
        states = reference[f"{name}_states_3"]
        assert 0.3 < np.abs(states).mean() < 3
        assert np.abs(np.diff(states, axis=0)).mean() > 0.1


def test_buckets_are_those_of_transformers(reference):
    np.testing.assert_array_equal(t5.relative_buckets(300, 32, 128), reference["buckets"])


# Parameters of transformers 5.23.0's T5EncoderModel of each published configuration.
PUBLISHED = {
    "V1_0": {"small": 35_330_816, "base": 109_628_544, "large": 334_939_648, "3B": 1_240_909_824, "11B": 4_864_791_552},
    "V1_1": {"small": 35_332_800, "base": 109_628_544, "large": 341_231_104, "xl": 1_223_527_424, "xxl": 4_762_310_656},
}


@pytest.mark.parametrize("version", PUBLISHED)
def test_published_shapes_have_as_many_parameters_as_in_transformers(version):
    table = getattr(t5_shape, version)
    assert {size: t5_weights.parameters(shape) for size, shape in table.items()} == PUBLISHED[version]


# ----------------------------------------------------------------------------------------- folders


def write_kind(folder: Path, kind: str, tensors: dict[str, np.ndarray]) -> None:
    if kind == "shards":
        t5_folders.write_shards(folder, tensors)
    elif kind == "alias":
        tensors = {"encoder.embed_tokens.weight": tensors["shared.weight"], **tensors}
        del tensors["shared.weight"]
        t5_folders.write_single(folder, tensors)
    else:
        t5_folders.write_t5x(folder, t5_folders.t5x_arrays(tensors, 4, kind == "t5x_stacked"))


@pytest.mark.parametrize("kind", ["shards", "alias", "t5x", "t5x_stacked"])
def test_every_kind_of_folder_holds_the_same_encoder(kind, encoder, tmp_path, vocabulary):
    folder = t5_folders.write_beside(tmp_path, TINY, vocabulary)
    write_kind(folder, kind, weights.draw(TINY, 1))
    other = load(folder)
    assert other.fingerprint == encoder.fingerprint
    jax.tree.map(np.testing.assert_array_equal, other.params, encoder.params)


def test_t5x_with_positions_per_layer(tmp_path, vocabulary, reference):
    config = weights.CONFIGS["umt5"]
    folder = t5_folders.write_beside(tmp_path, config, vocabulary)
    write_kind(folder, "t5x_stacked", weights.draw(config, weights.SEEDS["umt5"]))
    check_states(load(folder, length=max(weights.LENGTHS)), reference, "umt5")


def test_t5x_without_config_takes_the_shape_of_the_arrays(encoder, tmp_path, vocabulary, caplog):
    folder = t5_folders.write_beside(tmp_path, None, vocabulary)
    write_kind(folder, "t5x", weights.draw(TINY, 1))
    with caplog.at_level(logging.INFO):
        other = text_lib.load_text_encoder(TextSpec(encoder="t5", path=str(folder), width=64))
    assert other.fingerprint == encoder.fingerprint
    assert "has no config.json" in caplog.text and "max_distance 128" in caplog.text


def test_fingerprint_covers_weights_shape_and_vocabulary(encoder, copy, vocabulary):
    prints = {encoder.fingerprint}
    tensors = weights.draw(TINY, 1)
    last = tensors["encoder.block.2.layer.1.DenseReluDense.wo.weight"]
    last[-1, -1] = np.nextafter(last[-1, -1], np.float32(9))
    t5_folders.write_single(copy, tensors)
    prints.add(load(copy).fingerprint)
    t5_folders.write_beside(copy, TINY | {"relative_attention_max_distance": 64}, vocabulary)
    prints.add(load(copy).fingerprint)
    t5_folders.write_beside(copy, TINY, t5_folders.train_pieces(54))
    prints.add(load(copy).fingerprint)
    assert len(prints) == 4 and all(len(p) == 16 for p in prints)


def test_bfloat16_is_close_and_changes_no_fingerprint(folder, encoder):
    half = load(folder, dtype="bfloat16")
    assert half.params["layers"]["down"].dtype == jnp.bfloat16
    assert half.params["final_norm"].dtype == half.params["positions"].dtype == jnp.float32
    assert half.fingerprint == encoder.fingerprint
    texts = t5_folders.sentences(8)
    states, expected = half(texts).states_BxLxD, encoder(texts).states_BxLxD
    assert states.dtype == np.float32
    # Two hundredths of the states' size; other weights would differ by more than the states.
    assert 0 < np.linalg.norm(states - expected) / np.linalg.norm(expected) < 0.02


def test_weights_stored_in_bfloat16_load(copy, encoder):
    rounded = {name: value.astype(jnp.bfloat16) for name, value in weights.draw(TINY, 1).items()}
    t5_folders.write_single(copy, rounded)
    stored = load(copy)
    assert stored.fingerprint != encoder.fingerprint
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_array_equal(ours, theirs.astype(jnp.bfloat16)),
        stored.params,
        encoder.params,
    )


# -------------------------------------------------------------------------------------- on a mesh


def test_a_sharded_encoder_is_that_of_transformers(small, reference):
    mesh = mesh_lib.build(MeshSpec(data=1, fsdp=4, tensor=2))
    sharded = load(small, mesh, length=max(weights.LENGTHS))
    check_states(sharded, reference, "v1_1")
    for path, leaf in jax.tree_util.tree_leaves_with_path(sharded.params):
        name = jax.tree_util.keystr(path, simple=True)
        assert leaf.sharding.is_fully_replicated == name.endswith(("norm", "positions")), name
        if not leaf.sharding.is_fully_replicated:
            assert all(s.data.nbytes * 8 == leaf.nbytes for s in leaf.addressable_shards), name


@pytest.mark.parametrize("axes", [dict(data=2, fsdp=1, tensor=4), dict(data=2, fsdp=4, tensor=1)])
def test_every_mesh_gives_the_same_states(axes, folder, encoder):
    other = load(folder, mesh_lib.build(MeshSpec(**axes)))
    texts = [*t5_folders.sentences(9), ""]
    np.testing.assert_allclose(other(texts).states_BxLxD, encoder(texts).states_BxLxD, atol=TOLERANCE)
    assert other.fingerprint == encoder.fingerprint


def test_no_more_than_a_devices_part_of_a_tensor_is_read(folder, monkeypatch):
    tensors = t5_files.open_tensors(folder)
    shape = t5_shape.read_shape(tensors)
    read: list[tuple[str, int]] = []
    whole = t5_files.SafeTensors.read

    def recorded(self, name, *parts):
        value = whole(self, name, *parts)
        read.append((name, value.size))
        return value

    monkeypatch.setattr(t5_files.SafeTensors, "read", recorded)
    t5_weights.load_params(tensors, shape, mesh_lib.build(MeshSpec(data=1, fsdp=4, tensor=2)), "float32")
    sizes = {name: int(np.prod(dims)) for name, dims in t5_weights.tensor_shapes(shape).items()}
    assert {name for name, _ in read} == sizes.keys()
    for name, size in read:
        replicated = "norm" in name or "relative_attention_bias" in name
        assert size == (sizes[name] if replicated else sizes[name] // 8), name
    # Parts that devices share, and whole arrays, are read once.
    assert sum(size for _, size in read) == sum(sizes.values())


def test_xxl_lies_in_equal_parts():
    shape = t5_shape.V1_1["xxl"]
    mesh = mesh_lib.abstract(MeshSpec(data=1, fsdp=4, tensor=2), 8)
    rules, axes = mesh_lib.Rules(), t5_weights.logical_axes(shape)
    structs = t5_weights.abstract_params(shape, "bfloat16")
    rules.check(mesh, axes, structs)
    parts = jax.tree.map(
        lambda struct, sharding: mesh_lib.local_bytes(sharding, struct.shape, struct.dtype),
        structs,
        rules.shardings(mesh, axes),
    )
    assert sum(jax.tree.leaves(parts)) < 2 * PUBLISHED["V1_1"]["xxl"] / 8 * 1.001


def test_it_runs_under_a_mesh_that_it_does_not_lie_on(encoder, folder):
    texts = t5_folders.sentences(3)
    with jax.set_mesh(mesh_lib.build(MeshSpec())):
        under = encoder(texts).states_BxLxD
        loaded_there = load(folder)(texts).states_BxLxD
    np.testing.assert_array_equal(under, encoder(texts).states_BxLxD)
    np.testing.assert_array_equal(loaded_there, under)


# ------------------------------------------------------------------------------------------- texts


def test_states_depend_on_the_text_alone(encoder):
    texts = t5_folders.sentences(12)
    encoded = encoder(texts)
    for row in (0, 5, 11):
        alone = encoder([texts[row]])
        length = alone.lengths_B[0]
        assert encoded.lengths_B[row] == length
        np.testing.assert_allclose(encoded.states_BxLxD[row, :length], alone.states_BxLxD[0, :length], atol=TOLERANCE)
        assert not encoded.states_BxLxD[row, length:].any()


def test_padding_does_not_change_states(encoder):
    ids = encoder.pieces(["a red bird sings"])[0]
    found = []
    for bucket, fill in ((len(ids), 0), (32, 0), (32, 77)):
        ids_1xl = np.full((1, bucket), fill, np.int32)
        ids_1xl[0, : len(ids)] = ids
        found.append(encoder._states(ids_1xl, np.array([len(ids)], np.int32))[0, : len(ids)])
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    np.testing.assert_array_equal(found[2], found[1])


def test_long_texts_are_cut_and_counted(folder):
    encoder = load(folder, length=20)
    long = " ".join(t5_folders.sentences(30))
    pieces = encoder.pieces([long])[0]
    encoded = encoder([long, "a dog", long])
    assert encoded.truncated == 2
    assert encoded.lengths_B.tolist() == [20, len(encoder.pieces(["a dog"])[0]), 20]
    kept = encoder.encode_ids([[*pieces[:19], 1]])
    assert kept.truncated == 0
    np.testing.assert_allclose(encoded.states_BxLxD[0], kept.states_BxLxD[0], atol=TOLERANCE)


@pytest.mark.parametrize("text", ["", " ", " \t\n "])
def test_a_text_without_pieces_is_no_text(encoder, text):
    encoded = encoder([text, "a dog"])
    assert encoded.lengths_B[0] == 0 and not encoded.states_BxLxD[0].any()
    assert encoded.lengths_B[1] > 1
    assert encoder([]).states_BxLxD.shape == (0, 64, 64)


def test_texts_close_with_the_eos_piece(encoder, vocabulary):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=vocabulary)
    texts = t5_folders.sentences(5)
    assert encoder.pieces(texts) == [processor.encode(text) + [1] for text in texts]
    with pytest.raises(UserError, match="text 1"):
        encoder(["a dog", None])


# ------------------------------------------------------------------------------------------ errors


def refused(folder: Path | str, *words: str, mesh=None, **fields) -> None:
    spec = TextSpec(**dict(encoder="t5", path=str(folder), width=64) | fields)
    with pytest.raises(UserError) as error:
        text_lib.load_text_encoder(spec, mesh)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_specs_that_cannot_be_served(folder):
    refused("", "TEXT.path is empty", "spiece.model")
    refused("/no/such/folder", "is no folder")
    refused(folder, "width 64", "512", width=512)
    refused(folder, "3 to 512", "600", length=600)
    refused(folder, "heads", "8", mesh=mesh_lib.build(MeshSpec(data=1, fsdp=1, tensor=8)))


@pytest.mark.parametrize("name", ["model.safetensors", "spiece.model", "config.json"])
def test_missing_and_damaged_files_are_named(copy, name):
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    refused(copy, name)
    (copy / name).unlink()
    refused(copy, "has no", name)


def test_a_missing_shard_is_named(copy):
    (copy / "model.safetensors").unlink()
    t5_folders.write_shards(copy, weights.draw(TINY, 1))
    (copy / "model-00002-of-00003.safetensors").unlink()
    refused(copy, "model-00002-of-00003.safetensors", "missing")


WO = "encoder.block.1.layer.1.DenseReluDense.wo.weight"


def test_other_tensors_are_named(copy):
    tensors = weights.draw(TINY, 1)

    def write(changes: dict[str, np.ndarray | None]) -> None:
        changed = {k: v for k, v in (tensors | changes).items() if v is not None}
        safetensors.numpy.save_file(changed, copy / "model.safetensors")

    write({WO: None})
    refused(copy, WO, "absent")
    write({WO: tensors[WO][:, :5].copy()})
    refused(copy, WO, "(64, 5)", "(64, 96)")
    write({"encoder.block.3.layer.0.layer_norm.weight": np.ones(64, np.float32)})
    refused(copy, "encoder.block.3.layer.0.layer_norm.weight", "absent")
    write({WO: np.where(tensors[WO] > 0, tensors[WO], np.float32(np.nan))})
    refused(copy, WO, "NaN")
    write({WO: tensors[WO].astype(np.int32)})
    refused(copy, WO, "int32")
    write({name: None for name in tensors if name.startswith("encoder.block")})
    refused(copy, "no T5 encoder")


def test_a_vocabulary_larger_than_the_table(copy, vocabulary):
    config = TINY | {"vocab_size": 50}
    t5_folders.write_beside(copy, config, vocabulary)
    t5_folders.write_single(copy, weights.draw(config, 1))
    refused(copy, "55 pieces", "50 rows")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model_type": "bert"}, ["bert", "t5"]),
        ({"feed_forward_proj": "gated-silu"}, ["gated-silu", "gated-gelu"]),
        ({"feed_forward_proj": "relu"}, ["wi.weight", "absent"]),
        ({"num_layers": 2}, ["encoder.block.2", "absent"]),
        ({"d_ff": None}, ["d_ff"]),
        ({"d_ff": "96"}, ["d_ff", "positive integer"]),
    ],
)
def test_a_config_of_another_model(copy, vocabulary, change, words):
    config = {k: v for k, v in (TINY | change).items() if v is not None}
    t5_folders.write_beside(copy, config, vocabulary)
    refused(copy, *words)


def test_t5x_checkpoints_that_are_none(tmp_path, vocabulary):
    folder = t5_folders.write_beside(tmp_path, TINY, vocabulary)
    (folder / "checkpoint").write_bytes(b'model_checkpoint_path: "model.ckpt-1000000"')
    refused(folder, "checkpoint", "T5X")
    arrays = t5_folders.t5x_arrays(weights.draw(TINY, 1), 4, stacked=False)
    t5_folders.write_t5x(folder, arrays)
    shutil.rmtree(folder / "target.encoder.layers_1.mlp.wo.kernel")
    refused(folder, "target.encoder.layers_1.mlp.wo.kernel")
