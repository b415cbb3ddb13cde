"""Training of the audio tokenizer: one step on a mesh, whole runs as a user starts them, bad settings."""

from __future__ import annotations

import functools
import json
import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from poet.checkpoints import checkpoint
from poet.cli.commands import tokenizer_train
from poet.distributed import mesh as meshes
from poet.media import write_wav
from poet.runs.run import Run
from poet.spec import (
    AudioTokenizerSpec,
    AudioTrainSpec,
    CheckpointSpec,
    Experiment,
    MeshSpec,
    OptimizerSpec,
    Spec,
    TokenizerTrainSpec,
    TrainSpec,
    UserError,
)
from poet.tasks.resolved import Resolved
from poet.tokenizers import adversarial
from poet.tokenizers.audio import critics, rvq, soundstream, training
from poet.tokenizers.audio import step as steps
from poet.tokenizers.audio.base import AudioTokenizer
from poet.training import loop

STEPS = 4
TERMS = {"loss/mel", "loss/commitment", "loss/wave", "loss/adversarial", "loss/feature"}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    """A folder of six chirps in noise."""
    folder = tmp_path_factory.mktemp("sounds")
    rng, t = np.random.default_rng(0), np.arange(6000) / 16_000
    for i in range(6):
        wave = np.sin(2 * np.pi * (200 + 300 * i + 800 * t) * t) * 0.3 + 0.01 * rng.normal(size=6000)
        write_wav(folder / f"{i}.wav", np.int16(32767 * wave), 16_000)
    return folder


def experiment(source: Path | str = "", batch: int = 8, **train) -> Experiment:
    given = dict(
        samples=1280,
        wave_scales=1,
        wave_channels=4,
        wave_channels_max=8,
        stft_channels=2,
        dead_fraction=0.01,
        wave_weight=1.0,
        kmeans_iterations=2,
    )
    return Experiment(
        audio_tokenizer=AudioTokenizerSpec(
            strides=(4, 8), encoder_channels=4, decoder_channels=4, dim=6, dilations=(1,), levels=4, codes=8
        ),
        mesh=MeshSpec(fsdp=4, data=2),
        optimizer=OptimizerSpec(learning_rate=1e-3, warmup_steps=0),
        tokenizer_train=TokenizerTrainSpec(modality="audio", source=str(source), batch=batch, gan_start=1),
        audio_train=AudioTrainSpec(**given | train),
        train=TrainSpec(steps=STEPS, log_every=1, sample_every=STEPS),
        checkpoint=CheckpointSpec(every=2, keep=5),
    )


def batch(size: int = 8, samples: int = 1280) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {"audio": rng.integers(-8000, 8000, (size, samples)).astype(np.int16)}


# ------------------------------------------------------------------------------------------- a step


@pytest.mark.slow
def test_a_mesh_takes_the_step_that_one_device_takes() -> None:
    """Nothing drawn: no dropout, no dead codes, codebooks there; every term on, no branch."""
    exp = experiment(dropout=0.0, dead_fraction=0.0)
    spec, train = exp.audio_tokenizer, exp.audio_train
    generator, critic = soundstream.declare(spec), critics.declare(train)
    nets = adversarial.networks(exp.optimizer, generator, critic, train.critic_rate)
    objective = steps.Objective(spec=spec, train=train, gan_start=0)

    def trained_codebooks(wave: jax.Array) -> dict:
        state = steps.init(nets, spec, 0, jax.random.key(0))
        z, _ = soundstream.encode(spec, state["params"], wave)
        return state | {"codebooks": rvq.kmeans(z, state["codebooks"], jax.random.key(1), 5)}

    state = jax.jit(trained_codebooks)(batch()["audio"] / 32768)
    alone, told = jax.jit(steps.train_step(objective, nets))(state, batch(), jax.random.key(2), 1e-3)
    mesh = meshes.build(MeshSpec(data=2, fsdp=4))
    with jax.set_mesh(mesh):
        shardings = meshes.Rules().shardings(mesh, steps.axes(nets))
        placed = jax.device_put(state, shardings)
        spread, also = jax.jit(steps.train_step(objective, nets, mesh))(
            placed, jax.device_put(batch(), meshes.batch_sharding(mesh)), jax.random.key(2), 1e-3
        )
    assert TERMS < told.keys()
    for name in told:
        np.testing.assert_allclose(also[name], told[name], rtol=2e-3, atol=1e-4, err_msg=name)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-4),
        jax.device_get(spread["codebooks"]),
        jax.device_get(alone["codebooks"]),
    )


def test_what_is_heard_and_what_is_wanted_follow_the_switch() -> None:
    clean = np.array([[1000, 2000], [3000, 32000]], np.int16)
    noise = np.array([[10, 20], [30, 2000]], np.int16)
    heard, wanted, switch = steps.waves({"audio": clean, "noise": noise, "denoise": np.array([1, 0], np.int8)})
    noisy = np.minimum((clean.astype(float) + noise) / 32768, 1.0)
    np.testing.assert_allclose(heard, noisy)
    np.testing.assert_allclose(wanted, [clean[0] / 32768, noisy[1]])
    np.testing.assert_array_equal(switch, [1, 0])


def test_si_sdr_by_its_definition() -> None:
    rng = np.random.default_rng(0)
    target, noise = rng.normal(size=(2, 2000)), rng.normal(size=(2, 2000))
    target -= target.mean(1, keepdims=True)
    noise -= noise.mean(1, keepdims=True)
    noise -= target * (noise * target).sum(1, keepdims=True) / (target**2).sum(1, keepdims=True)
    expected = 10 * np.log10((target**2).sum(1) / (0.01 * noise**2).sum(1))
    found = steps.si_sdr_db(np.float32(3 * (target + 0.1 * noise)), np.float32(target))
    np.testing.assert_allclose(found, expected, rtol=1e-3)


# ------------------------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def finished(sounds, tmp_path_factory) -> tuple[Experiment, Path]:
    exp, workdir = experiment(sounds), tmp_path_factory.mktemp("run")
    assert tokenizer_train.train(Resolved(exp), Run(workdir)) == 0
    return exp, workdir


def final_state(exp: Experiment, workdir: Path) -> dict:
    shapes = jax.eval_shape(training.trainable(exp).init, jax.random.key(0))
    keys = ("params", "codebooks", "opt_state", "critic")
    return {key: checkpoint.load_params(Run.open(workdir), shapes[key], key=key) for key in keys}


@pytest.mark.slow
def test_an_interrupted_run_ends_bit_for_bit_as_a_whole_one(finished, tmp_path) -> None:
    exp, workdir = finished
    resumed = tmp_path / "resumed"
    shutil.copytree(workdir, resumed)
    shutil.rmtree(resumed / "checkpoints" / f"{STEPS:08d}")
    assert tokenizer_train.train(Resolved(exp), Run(resumed)) == 0
    jax.tree.map(np.testing.assert_array_equal, final_state(exp, workdir), final_state(exp, resumed))


def test_every_term_is_logged_and_the_tokenizer_is_written(finished) -> None:
    exp, workdir = finished
    names = set().union(*(json.loads(line) for line in (workdir / "metrics.jsonl").open()))
    assert TERMS | {"critic/loss", "codes/usage", "codes/entropy_bits_last", "si_sdr_db"} <= names
    first, *rest = [r for r in map(json.loads, (workdir / "metrics.jsonl").open()) if TERMS < r.keys()]
    # Before its start the critic rests; k-means has filled the codebooks by then.
    assert first["loss/adversarial"] == first["critic/loss"] == 0 and first["codes/usage"] > 0.3
    assert all(r["loss/feature"] > 0 and r["critic/loss"] > 0 for r in rest) and rest
    assert "reconstruction/spectrogram_difference" in names
    assert list((workdir / "samples").glob(f"{STEPS:08d}_*spectrograms.png"))
    tokenizer = AudioTokenizer.load(Run(workdir).tokenizer)
    card = json.loads((Run(workdir).tokenizer / "card.json").read_text())
    assert card["fingerprint"] == tokenizer.fingerprint and card["steps"] == STEPS
    assert tokenizer.decode(tokenizer.encode(batch()["audio"])).shape == (8, 1280)


@pytest.mark.slow
def test_a_run_starts_from_a_trained_tokenizer(finished, sounds, tmp_path) -> None:
    trained = Run(finished[1]).tokenizer
    exp = experiment(sounds, adversarial_weight=0.0, dead_fraction=0.0, codebook_decay=0.999999)
    exp = exp.replace(
        tokenizer_train=exp.tokenizer_train.replace(init_from=str(trained)),
        optimizer=OptimizerSpec(learning_rate=1e-12, warmup_steps=0, weight_decay=0.0),
        train=TrainSpec(steps=1),
    )
    assert tokenizer_train.train(Resolved(exp), Run(tmp_path)) == 0
    before, after = AudioTokenizer.load(trained), AudioTokenizer.load(tmp_path / "tokenizer")
    np.testing.assert_array_equal(before.encode(batch()["audio"]), after.encode(batch()["audio"]))
    other = exp.replace(audio_tokenizer=exp.audio_tokenizer.replace(codes=16))
    with pytest.raises(UserError, match="holds another network"):
        tokenizer_train.train(Resolved(other), Run(tmp_path / "other"))


@pytest.mark.slow
def test_a_critic_that_diverges_stops_the_run_by_name(sounds, tmp_path, caplog, monkeypatch) -> None:
    # Past its range, so that the divergence is certain and at once.
    monkeypatch.setattr(Spec, "_check_value", lambda *_: None)
    exp = experiment(sounds, critic_rate=1e30).replace(checkpoint=CheckpointSpec(every=1))
    with caplog.at_level(logging.INFO), pytest.raises(loop.TrainingDiverged, match="loss"):
        tokenizer_train.train(Resolved(exp), Run(tmp_path))
    assert Run(tmp_path).steps()[-1] <= 3


@pytest.mark.slow
def test_denoising_is_trained_with_noise_from_a_source(sounds, tmp_path) -> None:
    exp = experiment(sounds, noise_source=str(sounds), adversarial_weight=0.0)
    exp = exp.replace(audio_tokenizer=exp.audio_tokenizer.replace(denoise="encoder"), train=TrainSpec(steps=2))
    assert tokenizer_train.train(Resolved(exp), Run(tmp_path)) == 0
    tokenizer = AudioTokenizer.load(tmp_path / "tokenizer", denoise=True)
    # Both conditions were met, and their biases, which start at zero, have moved.
    assert (np.abs(tokenizer.params["film"]["bias"]).max(axis=1) > 1e-4).all()


# ----------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(samples=1300), "AUDIO_TRAIN.samples = 1300.*1280 and 1312"),
        (dict(samples=640), "windows of 1024"),
        (dict(noise_source="x"), "give both or neither"),
        (dict(batch=6), "a batch of 6"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict, message: str) -> None:
    mesh = meshes.build(MeshSpec(data=2, fsdp=4))
    with pytest.raises(UserError, match=message):
        training.trainable(experiment(**change), mesh)


def test_microbatches_are_refused_and_frozen_weights_are_not_trained(sounds, tmp_path) -> None:
    exp = experiment(sounds)
    with pytest.raises(UserError, match="TRAIN.microbatches = 2"):
        training.trainable(exp.replace(train=TrainSpec(microbatches=2)))
    named = exp.audio_tokenizer.replace(path="somewhere", codes=1024)
    frozen = exp.replace(audio_tokenizer=named)
    with pytest.raises(UserError, match="AUDIO_TOKENIZER.path"):
        tokenizer_train.train(Resolved(frozen), Run(tmp_path))
