"""Text encoders as programs give the states that they give in the process, bit for bit."""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tokenizers"))

import t5_folders  # noqa: E402
import t5_weights_random  # noqa: E402

from poet.serving import loaded, lower  # noqa: E402
from poet.spec import TextSpec, UserError  # noqa: E402
from poet.tokenizers.text import load_text_encoder  # noqa: E402

TEXTS = ["the dog walks quickly", "", "a red house " * 30, "naïve ﬁ ▁ 🙂 unheard-of", "a cat and a bird"]
T5 = dict(
    model_type="t5",
    vocab_size=512,
    d_model=64,
    d_kv=16,
    d_ff=96,
    num_layers=3,
    num_heads=4,
    feed_forward_proj="gated-gelu",
)


def t5(folder: pathlib.Path) -> TextSpec:
    t5_folders.write_beside(folder, T5, t5_folders.train_pieces(55))
    t5_folders.write_single(folder, t5_weights_random.draw(T5, 1))
    return TextSpec(encoder="t5", path=str(folder), width=64, length=24)


@pytest.mark.parametrize("kind", ["minilm", "t5"])
def test_states_are_those_of_the_process(kind, tmp_path):
    """With the vocabulary's file, texts that are cut, and one that is none."""
    encoder = load_text_encoder(TextSpec(length=24) if kind == "minilm" else t5(tmp_path / "t5"))
    program, weights = lower.text_program(encoder)
    (tmp_path / "text.stablehlo").write_bytes(lower.serialized(program, weights, ("cpu",)))
    record = {name: getattr(encoder, name) for name in ("fingerprint", "length", "width", "controls")}
    record |= {"program": "text", "pieces": encoder.save_pieces(tmp_path)}
    signature = json.loads(json.dumps(program.signature))
    runs = loaded.Program("text", signature, tmp_path / "text.stablehlo", lambda: list(weights.values()))
    found, wanted = loaded.text_encoder(tmp_path, record, {"text": runs})(TEXTS), encoder(TEXTS)
    np.testing.assert_array_equal(found.states_BxLxD, wanted.states_BxLxD)
    np.testing.assert_array_equal(found.lengths_B, wanted.lengths_B)
    assert found.truncated == wanted.truncated > 0 and wanted.lengths_B[1] == 0
    np.testing.assert_array_equal(found.dropped_B, wanted.dropped_B)


def test_an_encoder_that_cannot_be_lowered_is_refused():
    class Other:
        name = "other"

    with pytest.raises(UserError, match="text encoder other cannot be exported: set EXPORT.text_encoder = False"):
        lower.text_program(Other())
