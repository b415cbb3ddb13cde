"""The text output vocabulary: round trips, cutting, errors, and the one that is shipped."""

from __future__ import annotations

import json

import hypothesis
import numpy as np
import pytest
import t5_folders
from hypothesis import strategies as st

from poet.runs import assets
from poet.spec import UserError
from poet.tokenizers import pieces as pieces_lib
from poet.tokenizers.pieces import EOS, PAD, UNKNOWN, load_pieces

SHIPPED = assets.root() / "data" / "pretrained" / "pieces_512"
LETTERS = sorted(set("".join(t5_folders.WORDS)))
# Blanks that are not single are normalised away, and U+2581 is how SentencePiece writes a blank.
UNICODE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=" ▁"), min_size=1, max_size=20)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> pieces_lib.Pieces:
    """Without byte fallback: what lies outside the training alphabet cannot be written."""
    file = tmp_path_factory.mktemp("pieces") / "spiece.model"
    file.write_bytes(t5_folders.train_pieces(55))
    return load_pieces(file)


@pytest.fixture(scope="module")
def shipped() -> pieces_lib.Pieces:
    return load_pieces(SHIPPED)


def check_rows(ids_BxL: np.ndarray, lengths_B: np.ndarray, length: int, size: int) -> None:
    assert ids_BxL.dtype == lengths_B.dtype == np.int32
    assert ids_BxL.shape == (len(lengths_B), length)
    for row, count in zip(ids_BxL, lengths_B, strict=True):
        assert row[count - 1] == EOS and (row[count:] == PAD).all()
        assert ((row[: count - 1] > UNKNOWN) & (row[: count - 1] < size)).all()


@hypothesis.settings(deadline=None, max_examples=80)
@hypothesis.given(st.lists(st.lists(st.text(LETTERS, min_size=1, max_size=9), max_size=8).map(" ".join), max_size=5))
def test_texts_of_the_training_alphabet_come_back(trained, texts):
    ids_BxL, lengths_B, truncated = trained.encode(texts, 100)
    check_rows(ids_BxL, lengths_B, 100, trained.size)
    assert truncated == 0
    assert trained.decode(ids_BxL) == texts


@hypothesis.settings(deadline=None, max_examples=80)
@hypothesis.given(st.lists(UNICODE, max_size=4).map(" ".join))
def test_the_shipped_pieces_write_any_text(shipped, text):
    ids_1xL, lengths_1, _ = shipped.encode([text], 400)
    check_rows(ids_1xL, lengths_1, 400, 512)
    assert shipped.decode(ids_1xL) == [text]


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(seed=st.integers(0, 99), length=st.integers(1, 30))
def test_long_texts_keep_their_first_pieces_and_close(trained, seed, length):
    texts = t5_folders.sentences(4, seed)
    ids_BxL, lengths_B, truncated = trained.encode(texts, length)
    check_rows(ids_BxL, lengths_B, length, trained.size)
    uncut = trained.ids(texts)
    assert truncated == sum(len(ids) > length for ids in uncut)
    for row, count, ids in zip(ids_BxL, lengths_B, uncut, strict=True):
        assert count == min(len(ids), length)
        assert row[: count - 1].tolist() == ids[: count - 1]


def test_no_texts_and_empty_texts(trained):
    ids_BxL, lengths_B, truncated = trained.encode([], 5)
    assert (ids_BxL.shape, lengths_B.shape, truncated) == ((0, 5), (0,), 0)
    assert trained.decode(ids_BxL) == []
    ids_BxL, lengths_B, _ = trained.encode(["", "  "], 3)
    assert ids_BxL.tolist() == [[EOS, PAD, PAD]] * 2 and lengths_B.tolist() == [1, 1]
    assert trained.decode(ids_BxL) == ["", ""]


def test_decoding_stops_at_the_first_closing_piece(trained):
    dog, cat = (trained.ids([word])[0][:-1] for word in ("dog", "cat"))
    rows = [dog + [EOS] + cat + [EOS], dog + cat + [PAD, EOS], [EOS] + dog + cat + [PAD]]
    width = max(map(len, rows))
    ids = np.array([row + [PAD] * (width - len(row)) for row in rows])
    assert trained.decode(ids) == ["dog", "dog cat", ""]


def test_what_cannot_be_written_shows(trained, shipped):
    ids, _, _ = trained.encode(["dog 雪"], 9)
    assert UNKNOWN in ids and trained.decode(ids) == ["dog  ⁇ "]
    first_byte = shipped.ids(["雪"])[0][1]
    assert shipped.decode(np.array([[first_byte, EOS]])) == ["\ufffd"]


def test_the_shipped_pieces_are_those_of_their_card(shipped):
    card = json.loads((SHIPPED / "card.json").read_text())
    assert (shipped.size, shipped.fingerprint) == (card["pieces"], card["fingerprint"])
    caption = "the player walks forward and turns right, fires the shotgun, two barrels in view"
    # Words of the captions are pieces, not bytes.
    assert len(shipped.ids([caption])[0]) <= len(caption.split()) + 3


def test_fingerprint_is_that_of_the_file(trained, shipped, tmp_path):
    file = tmp_path / "other.model"
    file.write_bytes((SHIPPED / "spiece.model").read_bytes())
    assert load_pieces(file).fingerprint == shipped.fingerprint != trained.fingerprint
    assert len(shipped.fingerprint) == 16


@pytest.mark.parametrize(
    "control, given",
    [(dict(pad_id=-1, eos_id=2, unk_id=0, bos_id=1), r"\(-1, 2, 0\)"), (dict(pad_id=3), r"\(3, 1, 2\)")],
)
def test_other_control_ids_are_refused(control, given, tmp_path):
    (tmp_path / "spiece.model").write_bytes(t5_folders.train_pieces(55, **control))
    with pytest.raises(UserError, match=given + r".*--pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1"):
        load_pieces(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"not a model"])
def test_files_that_are_no_model_are_refused(content, tmp_path):
    if content is not None:
        (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(UserError, match="cannot read the SentencePiece model.*spiece.model.*train"):
        load_pieces(tmp_path / "spiece.model")


def test_calls_that_make_no_sense_are_refused(trained):
    for call, words in (
        (lambda: trained.encode("a dog", 9), "sequence of texts"),
        (lambda: trained.encode(["a", None], 9), "text 1"),
        (lambda: trained.encode(["a"], 0), "length = 0"),
        (lambda: trained.decode(np.array([1, 2])), r"\(2,\)"),
        (lambda: trained.decode(np.array([[1.0]])), "float64"),
        (lambda: trained.decode(np.array([[55]])), r"0\.\.54"),
        (lambda: trained.decode(np.array([[-1, 3]])), r"-1\.\.3"),
    ):
        with pytest.raises(UserError, match=words):
            call()
