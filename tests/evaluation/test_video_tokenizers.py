"""`poet tokenizer-eval`: code statistics against brute force, scores against a second count."""

from __future__ import annotations

import itertools
import json
import types
from pathlib import Path

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from poet.conditioning import CONDITIONS
from poet.evaluation import tokenizers, video_tokenizers
from poet.evaluation.metrics import perceptual, pixels
from poet.evaluation.metrics.codes import reachable_codes, statistics
from poet.evaluation.metrics.pixels import clip_psnr, clip_ssim
from poet.spec import ConditioningSpec, UserError, VideoTokenizerSpec
from poet.tokenizers.video import magvit
from poet.tokenizers.video.base import VideoTokenizer

SPEC = VideoTokenizerSpec(
    base_channels=8, multipliers=(1,), blocks=1, temporal_downsample=(), stem=(2, 4, 4), norm_groups=4, bits=10
)
# A network's place is taken by a distance that can be counted by hand.
PERCEPTUAL = types.SimpleNamespace(
    name="mean_abs",
    label="mean abs",
    params={"scale": jnp.float32(2)},
    distance=lambda params, a, b: params["scale"] * jnp.abs(a - b).mean(axis=(1, 2, 3)),
)
WAYS = 4


def random_tokenizer() -> VideoTokenizer:
    shapes = jax.eval_shape(lambda: magvit.init(SPEC, jax.random.key(1)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes)
    return VideoTokenizer.from_params(SPEC, params)


def waves(count: int) -> np.ndarray:
    """uint8 (count, 9, 32, 32, 3)."""
    n, t, y, x = np.mgrid[:count, :9, :32, :32]
    channels = [np.sin((x + (n + 1) * t) / p) * np.cos((y - t) / p) for p in (3, 5, 8)]
    return np.rint(128 + 100 * np.stack(channels, -1)).astype(np.uint8)


def rows_of(result: dict, name: str, table: str = "renderings") -> list[dict]:
    """The rows of a set in a table."""
    return [row for row in result["metrics"][table]["rows"] if row["set"] == name]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> types.SimpleNamespace:
    out, tokenizer = tmp_path_factory.mktemp("scores") / "new", random_tokenizer()
    sets = {"waves": waves(2), "flipped": waves(1)[..., ::-1].copy()}
    result = video_tokenizers.evaluate(
        tokenizer,
        sets,
        out,
        perceptual=PERCEPTUAL,
        preset="fast",
        skipped={"atari": "no ale"},
        conditions=ConditioningSpec(),
        depths={"waves": list(waves(2)[..., 0])},
    )
    return types.SimpleNamespace(out=out, tokenizer=tokenizer, sets=sets, result=result)


def test_result_is_what_the_file_holds(scored: types.SimpleNamespace) -> None:
    stored = json.loads((scored.out / tokenizers.RESULT_FILE).read_text())
    assert stored == scored.result and stored["skipped"] == {"atari": "no ale"}
    assert stored["fingerprint"] == scored.tokenizer.fingerprint


def test_tokenizer_is_scored_on_what_it_rebuilds(scored: types.SimpleNamespace) -> None:
    clips = scored.sets["waves"]
    rebuilt = scored.tokenizer.decode(scored.tokenizer.encode(clips))
    row = rows_of(scored.result, "waves")[0]
    assert row["codec"] == video_tokenizers.TOKENIZER
    assert row["psnr_db"] == pytest.approx(np.mean([clip_psnr(*p) for p in zip(clips, rebuilt)]))
    assert row["ssim"] == pytest.approx(np.mean([clip_ssim(*p) for p in zip(clips, rebuilt)]))
    mse = np.mean((clips.astype(float) - rebuilt) ** 2)
    assert row["psnr_of_mean_MSE_db"] == pytest.approx(20 * np.log10(255) - 10 * np.log10(mse))
    gap = np.abs(clips.astype(float) - rebuilt)[:, :: perceptual.EVERY] / 255
    assert row["mean abs"] == pytest.approx(2 * gap.mean(), rel=1e-5)


def test_round_trips_begin_where_the_scores_are(scored: types.SimpleNamespace) -> None:
    for name, clips in scored.sets.items():
        tokenizer = scored.tokenizer
        (found,) = rows_of(scored.result, name, "round_trips")
        ids = tokenizer.encode(clips)
        again = tokenizer.encode(tokenizer.decode(ids))
        assert found["round_trip_match"] == pytest.approx((again == ids).mean())
        assert found["psnr_after_1_db"] == pytest.approx(rows_of(scored.result, name)[0]["psnr_db"])


def test_conditions_are_scored_that_each_set_has(scored: types.SimpleNamespace) -> None:
    names = {name: [row["condition"] for row in rows_of(scored.result, name, "conditions")] for name in scored.sets}
    assert names["waves"] == list(CONDITIONS), "with depth"
    assert names["flipped"] == [name for name in CONDITIONS if name != "structure"]


def test_codecs_get_the_bits_of_the_codes_and_a_little_more(scored: types.SimpleNamespace) -> None:
    """9x32x32 pixels are 5x8x8 codes of 10 bits."""
    for name, found in scored.result["sets"].items():
        ours, *codecs = rows_of(scored.result, name)
        assert ours["bits_per_pixel"] == 5 * 8 * 8 * 10 / (9 * 32 * 32)
        assert len(codecs) == len(found["codecs"]) == 2 * WAYS
        for row in codecs:
            assert 1 <= row["bits_per_pixel"] / ours["bits_per_pixel"] < 1.15
            detail = found["codecs"][row["codec"]]
            assert detail["packets_bits_per_pixel"] > row["bits_per_pixel"]
            assert "-preset fast" in detail["command"] and row["codec"][:4] in detail["command"]


def test_pictures_stand_beside_the_file(scored: types.SimpleNamespace) -> None:
    """Originals, the tokenizer and two codecs: four strips of three frames for every clip."""
    width = video_tokenizers.LABEL_WIDTH + 3 * 32
    for name, clips in scored.sets.items():
        with Image.open(scored.out / f"{name}.png") as image:
            assert image.size == (width, len(clips) * 4 * 32)
            pixels = np.asarray(image)
        assert np.array_equal(pixels[:32, video_tokenizers.LABEL_WIDTH :][:, :32], clips[0, 0])


def test_summary_names_everything(scored: types.SimpleNamespace) -> None:
    text = tokenizers.summary(scored.result)
    for word in (
        "waves",
        "flipped",
        "x264 yuv420p, per clip",
        "mean abs",
        "PSNR (dB)",
        "PSNR after 12 (dB)",
        "inpainting",
        "no ale",
    ):
        assert word in text


def test_codecs_and_distance_may_be_left_out(tmp_path: Path) -> None:
    result = video_tokenizers.evaluate(
        random_tokenizer(), {"waves": waves(1)}, tmp_path, perceptual=None, comparators=()
    )
    (row,) = rows_of(result, "waves")
    assert result["distance"] is None and "mean abs" not in row


def test_mistakes_are_told(tmp_path: Path) -> None:
    def evaluate(sets: dict, **options) -> None:
        video_tokenizers.evaluate(random_tokenizer(), sets, tmp_path, perceptual=None, **options)

    with pytest.raises(UserError, match="no set of clips.*no ale"):
        evaluate({}, skipped={"atari": "no ale"})
    with pytest.raises(UserError, match="no codec 'vp9'"):
        evaluate({"waves": waves(1)}, comparators=("vp9",))
    with pytest.raises(UserError, match="8x8 pixels"):
        evaluate({"small": waves(1)[:, :, :8, :8]})
    with pytest.raises(UserError, match="nearest are 7 and 9"):
        evaluate({"short": waves(1)[:, :8]})
    with pytest.raises(UserError, match="uint8"):
        evaluate({"float": waves(1) / 255})


# ------------------------------------------------------------------------------------------ codes


@hypothesis.settings(deadline=None)
@hypothesis.given(
    ids=hnp.arrays(np.int32, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=st.integers(0, 31))
)
def test_code_statistics_against_a_count_by_hand(ids: np.ndarray) -> None:
    found = statistics(ids, 32)
    codes = ids.reshape(-1).tolist()
    counts = np.array([codes.count(code) for code in range(32)])
    assert found["codes_used"] == len(set(codes)) and found["usage"] == len(set(codes)) / 32
    assert found["entropy_bits"] == pytest.approx(scipy.stats.entropy(counts, base=2), abs=1e-12)
    on = [np.mean([code >> bit & 1 for code in codes]) for bit in range(5)]
    balances = [2 * min(share, 1 - share) for share in on]
    assert found["bit_balance"] == pytest.approx(np.mean(balances))
    assert found["worst_bit_balance"] == pytest.approx(min(balances))


@pytest.mark.parametrize("bits, tokens", [(1, 1), (1, 4), (2, 3), (2, 5), (3, 4)])
def test_reachable_codes_against_every_outcome(bits: int, tokens: int) -> None:
    outcomes = itertools.product(range(2**bits), repeat=tokens)
    mean = np.mean([len(set(outcome)) for outcome in outcomes])
    assert reachable_codes(tokens, 2**bits) == pytest.approx(mean, rel=1e-12)


def test_uniform_codes_use_what_can_be_reached() -> None:
    """Few tokens of a large codebook: a small share of all codes, all of the reachable ones."""
    ids = np.random.default_rng(0).integers(0, 2**18, (40, 5, 16, 16))
    found = statistics(ids, 2**18)
    assert found["usage"] < 0.2 and abs(found["usage_of_reachable"] - 1) < 0.01
    assert found["bit_balance"] > 0.99


def test_equal_videos_have_the_ceiling_as_psnr() -> None:
    assert pixels.mse_db(0.0) == pixels.PSNR_CEILING_DB
    assert pixels.mse_db(1e-9) == pixels.PSNR_CEILING_DB
