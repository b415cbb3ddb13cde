"""`poet tokenizer-train` as a user runs it: two steps of training, interrupted, and poisoned."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from poet import media
from poet.checkpoints import checkpoint
from poet.cli.commands import tokenizer_train
from poet.runs.run import Run
from poet.spec import (
    CheckpointSpec,
    ClipSpec,
    DiscriminatorSpec,
    Experiment,
    MeshSpec,
    OptimizerSpec,
    TokenizerTrainSpec,
    TrainSpec,
    VideoTokenizerSpec,
    VocabularySpec,
)
from poet.tasks.resolved import Resolved
from poet.tokenizers.video import inflation, training
from poet.tokenizers.video.base import VideoTokenizer
from poet.training import loop

STEPS = 4


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """A folder of six short films."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(6):
        ground = rng.integers(0, 256, (1, 4, 4, 3)).repeat(8, 0).astype(np.uint8)
        video = np.roll(ground.repeat(4, 1).repeat(4, 2), i, axis=2)
        media.write_mp4(folder / f"{i}.mp4", video, 8.0)
        lines.append(json.dumps({"file": f"{i}.mp4", "caption": "tiles", "split": "train"}))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def experiment(clips: Path, **train) -> Experiment:
    """Adversarial from step 1 on, so that every part of the state changes."""
    return Experiment(
        clip=ClipSpec(frames=5, height=16, width=16),
        vocabulary=VocabularySpec(visual_bits=6),
        video_tokenizer=VideoTokenizerSpec(
            base_channels=8,
            multipliers=(1,),
            blocks=1,
            temporal_downsample=(),
            stem=(4, 4, 4),
            stem_kernel=1,
            norm_groups=2,
            bits=6,
        ),
        mesh=MeshSpec(fsdp=2, data=1, tensor=4),
        optimizer=OptimizerSpec(learning_rate=1e-3, warmup_steps=0),
        discriminator=DiscriminatorSpec(base_channels=4, multipliers=(2,)),
        tokenizer_train=TokenizerTrainSpec(
            **{"source": str(clips), "batch": 4, "adversarial_weight": 0.1, "gan_start": 1} | train
        ),
        train=TrainSpec(steps=STEPS, log_every=1),
        checkpoint=CheckpointSpec(every=2, keep=5),
    )


@pytest.fixture(scope="module")
def finished(clips, tmp_path_factory) -> tuple[Experiment, Path]:
    exp, workdir = experiment(clips), tmp_path_factory.mktemp("run")
    assert tokenizer_train.train(Resolved(exp), Run(workdir)) == 0
    return exp, workdir


def final_state(exp: Experiment, workdir: Path) -> dict:
    shapes = jax.eval_shape(training.trainable(exp).init, jax.random.key(0))
    keys = ("params", "ema", "opt_state", "critic")
    return {key: checkpoint.load_params(Run.open(workdir), shapes[key], key=key) for key in keys}


@pytest.mark.slow
def test_an_interrupted_run_ends_bit_for_bit_as_a_whole_one(finished, tmp_path) -> None:
    exp, workdir = finished
    resumed = tmp_path / "resumed"
    shutil.copytree(workdir, resumed)
    shutil.rmtree(resumed / "checkpoints" / f"{STEPS:08d}")
    assert tokenizer_train.train(Resolved(exp), Run(resumed)) == 0
    whole, again = final_state(exp, workdir), final_state(exp, resumed)
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    first, second = (VideoTokenizer.load(Run(w).tokenizer) for w in (workdir, resumed))
    assert first.fingerprint == second.fingerprint


def test_every_term_is_logged_by_name(finished) -> None:
    records = [json.loads(line) for line in (finished[1] / "metrics.jsonl").open()]
    names = set().union(*records)
    assert {
        "loss/l2",
        "loss/commitment",
        "loss/entropy",
        "loss/adversarial",
        "critic/loss/adversarial",
        "critic/loss/lecam",
        "critic/loss/r1",
        "codebook_usage",
        "bit_balance",
        "entropy_sample_bits",
        "entropy_batch_bits",
    } <= names


@pytest.mark.slow
def test_a_video_tokenizer_starts_from_its_image_tokenizer(clips, tmp_path) -> None:
    """With a learning rate of nearly zero the first step shows what the run started from."""
    exp = experiment(clips, adversarial_weight=0.0, frames=1)
    exp = exp.replace(video_tokenizer=inflation.image_spec(exp.video_tokenizer))
    assert tokenizer_train.train(Resolved(exp), Run(tmp_path / "image")) == 0
    image = VideoTokenizer.load(Run(tmp_path / "image").tokenizer)
    video = experiment(clips, adversarial_weight=0.0, init_from=str(Run(tmp_path / "image").tokenizer)).replace(
        optimizer=OptimizerSpec(learning_rate=1e-12, warmup_steps=0, weight_decay=0.0), train=TrainSpec(steps=1)
    )
    assert tokenizer_train.train(Resolved(video), Run(tmp_path / "video")) == 0
    tokenizer = VideoTokenizer.load(Run(tmp_path / "video").tokenizer)
    frame = np.random.default_rng(1).integers(0, 256, (2, 1, 16, 16, 3)).astype(np.uint8)
    np.testing.assert_array_equal(tokenizer.encode(frame), image.encode(frame))


@pytest.mark.slow
def test_a_discriminator_that_diverges_stops_the_run_by_name(clips, tmp_path, caplog) -> None:
    """The generator's loss stays finite; what went is named, and the last checkpoint is good."""
    exp = experiment(clips, gan_start=3).replace(checkpoint=CheckpointSpec(every=1))
    # Past its range, so that the divergence is certain and at once.
    object.__setattr__(exp.tokenizer_train, "r1_weight", 1e39)
    with caplog.at_level(logging.INFO), pytest.raises(loop.TrainingDiverged, match="critic/loss"):
        tokenizer_train.train(Resolved(exp), Run(tmp_path))
    assert Run(tmp_path).steps()[-1] == 3
