"""`poet tokenizer-eval` for sound: rows against a second count, files, speed on one core."""

from __future__ import annotations

import concurrent.futures
import json
import math
import os
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.io.wavfile
import scipy.stats
from PIL import Image

from poet import cli, media
from poet.evaluation import metric, sound_tokenizers, tokenizers
from poet.evaluation.codecs import speed as sound_speed
from poet.evaluation.metrics import sounds as sound_metrics
from poet.evaluation.metrics.codes import statistics
from poet.spec import AudioTokenizerSpec, UserError
from poet.tokenizers.audio import base
from poet.tokenizers.audio.base import AudioTokenizer

SPEC = AudioTokenizerSpec(
    strides=(4, 5), encoder_channels=4, decoder_channels=4, dim=8, dilations=(1,), levels=4, codes=32
)
SAMPLES = 8001
METRICS = ("log-mel_db", "SI-SDR_db")


def random_tokenizer(spec: AudioTokenizerSpec) -> AudioTokenizer:
    """The network as it is, with weights of any size: no step of `init` is compiled."""
    shapes = jax.eval_shape(lambda: base.init(spec, jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    return AudioTokenizer.from_params(spec, params)


@pytest.fixture(scope="module")
def tokenizer() -> AudioTokenizer:
    return random_tokenizer(SPEC)


def tones(count: int) -> np.ndarray:
    """int16 (count, SAMPLES)."""
    n, t = np.mgrid[1 : count + 1, :SAMPLES] / [[[1]], [[16_000]]]
    waves = np.sin(2 * np.pi * 220 * n * t) * (1 + np.sin(2 * np.pi * 4 * t)) / 2
    return np.round(9000 * waves).astype(np.int16)


def rows_of(result: dict, name: str) -> list[dict]:
    """The rows of a set."""
    return [row for row in result["metrics"]["sounds"]["rows"] if row["set"] == name]


@pytest.fixture(scope="module")
def scored(tokenizer: AudioTokenizer, tmp_path_factory: pytest.TempPathFactory) -> types.SimpleNamespace:
    out, sets = tmp_path_factory.mktemp("scores") / "new", {"music": tones(3), "game": tones(1)}
    result = sound_tokenizers.evaluate(
        tokenizer, sets, out, metrics=METRICS, speed=False, skipped={"speech": "none was found"}
    )
    return types.SimpleNamespace(out=out, tokenizer=tokenizer, sets=sets, result=result)


def test_result_is_what_the_file_holds(scored: types.SimpleNamespace) -> None:
    stored = json.loads((scored.out / tokenizers.RESULT_FILE).read_text())
    assert stored == scored.result and stored["skipped"] == {"speech": "none was found"}
    assert stored["fingerprint"] == scored.tokenizer.fingerprint


def test_rows_are_of_the_levels_there_are_and_of_opus(scored: types.SimpleNamespace) -> None:
    """32 codes 800 times a second are 4 kbit/s a level."""
    rows = rows_of(scored.result, "music")
    assert [row["codec"] for row in rows] == [
        "tokenizer, 1 level",
        "tokenizer, 2 levels",
        "tokenizer, 4 levels",
        "Opus, 6 kbit/s",
        "Opus, 12 kbit/s",
    ]
    assert [row["kbit/s"] for row in rows[:3]] == [4, 8, 16]
    # Sounds of half a second cannot be told apart finely.
    assert all(1 <= row["kbit/s"] / rate < 1.25 for row, rate in zip(rows[3:], (6, 12)))


def test_tokenizer_is_scored_on_what_its_first_levels_rebuild(scored: types.SimpleNamespace) -> None:
    sounds = scored.sets["music"]
    row = rows_of(scored.result, "music")[1]
    rebuilt = scored.tokenizer.decode(scored.tokenizer.encode(sounds, levels=2), SAMPLES)
    pairs = list(zip(sounds / 32768, rebuilt / 32768))
    for key, score in (("log-mel_db", sound_metrics.log_mel_distance), ("SI-SDR_db", sound_metrics.si_sdr_db)):
        values = [score(*pair) for pair in pairs]
        assert row[key] == pytest.approx(np.mean(values))
        assert row[f"{key}_error"] == pytest.approx(scipy.stats.sem(values))


def test_codes_are_counted_by_level(scored: types.SimpleNamespace) -> None:
    ids = [scored.tokenizer.encode(sounds) for sounds in scored.sets.values()]
    for level in range(4):
        counts = np.bincount(np.concatenate([i[:, level].reshape(-1) for i in ids]), minlength=32)
        row = scored.result["metrics"]["codes_by_level"]["rows"][level]
        assert row["level"] == level + 1 and row["tokens"] == counts.sum() == 4 * 400
        assert row["usage"] == np.count_nonzero(counts) / 32
        assert row["entropy_bits"] == pytest.approx(scipy.stats.entropy(counts, base=2))


def test_one_code_has_no_entropy() -> None:
    found = statistics(np.zeros((2, 5), np.int32), 1000, "codes_by_level")
    assert found["entropy_bits"] == 0 and found["codes_used"] == 1
    assert math.copysign(1, found["entropy_bits"]) == 1


def test_pictures_and_sounds_stand_beside_the_file(scored: types.SimpleNamespace) -> None:
    sounds = scored.sets["music"]
    for index in range(3):
        rate_hz, original = scipy.io.wavfile.read(scored.out / f"music/{index}_original.wav")
        assert rate_hz == 16_000 and np.array_equal(original, sounds[index])
    rebuilt = scored.tokenizer.decode(scored.tokenizer.encode(sounds), SAMPLES)
    written = scipy.io.wavfile.read(scored.out / "music/2_tokenizer_4.wav")[1]
    assert np.array_equal(written, rebuilt[2])
    assert (scored.out / "game/0_opus_6000.wav").exists()
    with Image.open(scored.out / "music.png") as image, Image.open(scored.out / "game.png") as one:
        assert image.width > 2 * one.width and image.height == one.height


def test_summary_names_everything(scored: types.SimpleNamespace) -> None:
    text = tokenizers.summary(scored.result)
    for word in (
        "music",
        "game",
        "tokenizer, 4 levels",
        "Opus, 6 kbit/s",
        "log-mel (dB)",
        "SI-SDR (dB)",
        "entropy",
        "none was found",
    ):
        assert word in text


@pytest.mark.skipif(not metric.METRICS["STOI"].is_installed, reason="needs pystoi")
def test_silence_is_counted_and_does_not_crash(tokenizer: AudioTokenizer, tmp_path: Path) -> None:
    sounds = np.stack([tones(1)[0], np.zeros(SAMPLES, np.int16)])
    sets = {"mixed": sounds, "silent": sounds[1:]}
    result = sound_tokenizers.evaluate(
        tokenizer, sets, tmp_path, levels=(1,), metrics=("log-mel_db", "SI-SDR_db", "STOI"), speed=False
    )
    mixed, silent = (result["sets"][name] for name in sets)
    assert mixed["undefined"]["SI-SDR_db"] == 1 and mixed["undefined"]["log-mel_db"] == 0
    row = rows_of(result, "mixed")[0]
    assert row["SI-SDR_db"] is not None and row["SI-SDR_db_error"] is None and silent["undefined"]["SI-SDR_db"] == 1
    assert rows_of(result, "silent")[0]["SI-SDR_db"] is None
    assert "set 'mixed', SI-SDR_db: not defined for 1 of 2 originals" in tokenizers.summary(result)


def test_other_sample_rates_are_scored_at_16_khz(tmp_path: Path) -> None:
    spec = SPEC.replace(sample_rate_hz=24_000)
    tokenizer = random_tokenizer(spec)
    result = sound_tokenizers.evaluate(
        tokenizer, {"tones": tones(1)}, tmp_path, metrics=METRICS, levels=(4,), speed=False
    )
    ours, *_ = rows_of(result, "tones")
    assert ours["kbit/s"] == 24 and math.isfinite(ours["log-mel_db"])


def test_mistakes_are_told(tokenizer: AudioTokenizer, tmp_path: Path) -> None:
    def evaluate(sets: dict, **options: object) -> None:
        sound_tokenizers.evaluate(tokenizer, sets, tmp_path, speed=False, **options)

    with pytest.raises(UserError, match="no set of sounds.*none"):
        evaluate({}, skipped={"speech": "none"})
    with pytest.raises(UserError, match="1..4"):
        evaluate({"tones": tones(1)}, levels=(8, 12))
    with pytest.raises(UserError, match="expected int16"):
        evaluate({"tones": tones(1) / 32768})
    with pytest.raises(UserError, match="STOI"):
        evaluate({"tones": tones(1)}, metrics=("STOY",))


# ------------------------------------------------------------------------------------------- speed


def test_speed_is_measured_on_one_core(tokenizer: AudioTokenizer) -> None:
    found = sound_speed.measure(tokenizer, SAMPLES, (1, 4), (6_000,), runs=3)
    assert found["seconds"] == SAMPLES / 16_000 and found["runs"] == 3
    if hasattr(os, "sched_getaffinity"):
        assert found["core"] == min(os.sched_getaffinity(0))
    for factors in (*found["tokenizer"].values(), found["opus"]["6000"]):
        for step in ("encode", "decode"):
            assert 0 < factors[step]["least"] <= factors[step]["median"]
            assert factors[step]["median"] <= factors[step]["greatest"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux alone pins a process")
def test_pinned_thread_has_one_core() -> None:
    """In a thread of its own, which alone is pinned."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        core = pool.submit(sound_speed.pin).result()
        assert pool.submit(os.sched_getaffinity, 0).result() == {core}


def test_factor_is_sound_over_time() -> None:
    import time

    found = sound_speed.factors(lambda: time.sleep(0.02), seconds=1.0, runs=3)
    assert 5 < found["least"] <= found["median"] <= found["greatest"] <= 50 < found["cpu_median"]


# ----------------------------------------------------------------------------------------- command


def test_command(
    tokenizer: AudioTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The modality of the configuration chooses; wrong sets and codecs are refused."""
    fake = {"seconds": 1.0, "runs": 1, "core": 0}
    factors = {s: dict.fromkeys(("median", "least", "greatest", "cpu_median"), 30.0) for s in ("encode", "decode")}
    monkeypatch.setattr(
        sound_speed,
        "measure",
        lambda _, __, levels, rates: (
            fake
            | {"tokenizer": {str(count): factors for count in levels}, "opus": {str(rate): factors for rate in rates}}
        ),
    )
    tokenizer.save(tmp_path / "tokenizer")
    for index, sound in enumerate(tones(2)):
        media.write_wav(tmp_path / "sounds" / f"{index}.wav", sound, 16_000)
    gin = tmp_path / "run.gin"
    gin.write_text("TOKENIZER_TRAIN.modality = 'audio'\nCLIP.frames = 4\nEVAL.split = 'train'\n")
    arguments = [
        "tokenizer-eval",
        f"--gin_file={gin}",
        f"--out={tmp_path / 'out'}",
        f"--gin.EVAL.source={tmp_path / 'sounds'}",
    ]
    trained = f"--tokenizer={tmp_path / 'tokenizer'}"
    assert cli.main([*arguments, trained, "--codec=none"]) == 0
    printed = capsys.readouterr().out
    assert "tokenizer, 4 levels" in printed and "decode x" in printed and "Opus," not in printed
    stored = json.loads((tmp_path / "out" / tokenizers.RESULT_FILE).read_text())
    assert stored["sets"]["game"]["sounds"] == 2 and stored["sets"]["game"]["seconds"] == 0.5
    for wrong, told in (
        ([trained, "--codec=x264"], "--codec=x264 is not for"),
        ([trained, "--set=atari"], "--set=atari is not for"),
        ([], "AUDIO_TOKENIZER.path is empty"),
    ):
        assert cli.main([*arguments, *wrong]) == cli.EXIT_USER
        assert told in capsys.readouterr().err


def test_a_codec_that_falls_silent_scores_worse_and_every_row_counts_the_same_sounds(
    tokenizer: AudioTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A metric that fails on silence: of the original nobody counts, of a rendering the worst counts."""

    def loudness(truth: np.ndarray, other: np.ndarray) -> float:
        return 5 - abs(np.std(truth) - np.std(other)) if truth.any() and other.any() else math.nan

    monkeypatch.setattr(metric, "METRICS", {})
    sound_metrics.declare("loudness", loudness, worst=1.0)
    sounds = np.concatenate([tones(3), np.zeros((1, SAMPLES), np.int16)])
    halting = types.SimpleNamespace(sounds_NxS=sounds.copy(), bits_per_second=1.0, asked_for=1, lags=())
    halting.sounds_NxS[1] = 0
    monkeypatch.setattr(sound_tokenizers, "code_opus", lambda *_: halting)
    result = sound_tokenizers.evaluate(
        tokenizer, {"mixed": sounds}, tmp_path, levels=(1,), bit_rates=(6000,), speed=False
    )
    ours, opus = rows_of(result, "mixed")
    assert ours["loudness_n"] == opus["loudness_n"] == 3
    assert opus["loudness"] == pytest.approx((5 + 1 + 5) / 3)
    assert result["sets"]["mixed"]["undefined"] == {"loudness": 1}
    assert result["sets"]["mixed"]["failed"]["Opus, 6 kbit/s"] == {"loudness": 1}
    assert "Opus, 6 kbit/s failed on 1 sounds" in tokenizers.summary(result)
