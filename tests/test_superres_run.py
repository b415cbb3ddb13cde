"""Super-resolution from clips to larger clips: token store, training, checkpoint, files; and what is refused."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent / "store"))
import store_fakes as fakes  # noqa: E402

from poet import cli, media, streams  # noqa: E402
from poet.cli import command  # noqa: E402
from poet.cli.commands import train  # noqa: E402
from poet.evaluation import realesrgan, tokenizers, upscalers  # noqa: E402
from poet.runs.run import Run  # noqa: E402
from poet.sampling import larger, upscaling  # noqa: E402
from poet.spec import (  # noqa: E402
    CheckpointSpec,
    DataSpec,
    EvalSpec,
    Experiment,
    ModelSpec,
    StoreSpec,
    SuperResolutionSpec,
    TextSpec,
    TrainSpec,
    UserError,
    VocabularySpec,
)
from poet.store import reader, writer  # noqa: E402
from poet.streams.base import Encoders  # noqa: E402
from poet.tasks.registry import TASKS  # noqa: E402
from poet.tasks.resolved import Resolved  # noqa: E402
from poet.tokenizers.video import base  # noqa: E402

CLIPS, STEPS = 6, 2
RUN = Experiment(
    clip=fakes.CLIP.replace(height=32, width=32),
    video_tokenizer=fakes.TOKENIZER,
    vocabulary=VocabularySpec(visual_bits=8, audio_codes=16, text_pieces=16),
    text=TextSpec(encoder="t5", length=8, width=4),
    model=ModelSpec(
        layers=3,
        width=16,
        heads=2,
        kv_heads=2,
        head_dim=8,
        mlp_width=16,
        dtype="float32",
        remat="none",
        visual_head="factorised",
    ),
    super_resolution=SuperResolutionSpec(vertical=(1, 0, 2), horizontal=(1, 2, 0), temporal=(2, 4, 4), steps=2),
    data=DataSpec(mixture_rates={"super_resolution": 1.0}, batch=8),
    train=TrainSpec(steps=STEPS, eval_every=STEPS, sample_every=STEPS, eval_batches=1, log_every=1),
    eval=EvalSpec(batch=8, split="train"),
    checkpoint=CheckpointSpec(every=STEPS),
)


@dataclasses.dataclass
class Tokenizer(fakes.MeanTokenizer):
    """With the way back: a code is a grey patch."""

    def decode(self, codes):
        times = np.concatenate([codes[:, :1], codes[:, 1:].repeat(4, axis=1)], axis=1)
        return times.repeat(8, 2).repeat(8, 3)[..., None].repeat(3, -1).astype(np.uint8)


def clip(seed: int) -> np.ndarray:
    cells = np.random.default_rng(seed).integers(0, 256, (1, 4, 4, 1)).astype(np.uint8)
    return cells.repeat(5, 0).repeat(8, 1).repeat(8, 2).repeat(3, 3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Run:
    """Two steps on a store that one `poet tokenize` would write."""
    folder, patch = tmp_path_factory.mktemp("superres"), pytest.MonkeyPatch()
    patch.setattr(base.VideoTokenizer, "of", lambda spec, mesh=None: Tokenizer())
    fakes.write_tfds(folder / "clips" / "1.0.0", {"train": [clip(n) for n in range(8)]})
    run = RUN.replace(data=RUN.data.replace(store=str(folder / "store")))
    encoders = Encoders(networks={"video": Tokenizer(), "text": fakes.LetterEncoder(name="t5")})
    spec = StoreSpec(source=str(folder / "clips" / "1.0.0"), path=run.data.store, splits=("train",), batch=4)
    names = [stream.name for stream in Resolved(run).stored_streams]
    assert names == ["video", "low_resolution"]
    writer.tokenize(spec, run.clip, encoders, names, progress=False)
    assert train.train(Resolved(run), Run(folder / "run")) == 0
    yield Run.open(folder / "run")
    patch.undo()


def test_a_store_holds_codes_of_both_resolutions(trained):
    """Those of the low one are those of the clip at half its size, as anyone would make it smaller."""
    store = trained.checkpoint.spec.data.store
    manifest, examples = reader.load_manifest(store), list(reader.dataset(store, "train").as_numpy_iterator())
    assert [manifest.plan.streams[name].grid for name in ("video", "low_resolution")] == [(2, 4, 4), (2, 2, 2)]
    for example in examples:
        video = clip(int(example["key"].decode().split("/")[1]))
        np.testing.assert_array_equal(example["video"], fakes.mean_codes(video[None]).reshape(-1))
        small = media.resize_video(video, 16, 16)
        np.testing.assert_array_equal(example["low_resolution"], fakes.mean_codes(small[None]).reshape(-1))


def test_training_logs_validation(trained):
    lines = [json.loads(line) for line in trained.metrics.read_text().splitlines()]
    assert any("super_resolution/loss/video" in key for line in lines for key in line)


def test_training_shows_the_low_resolution_what_is_sampled_and_the_truth(trained):
    """Three strips for each clip, whose first is the low resolution and whose last the truth."""
    (picture,) = trained.samples.rglob("*.png")
    image = np.asarray(Image.open(picture))
    assert image.shape == (4 * 3 * 32, 3 * 32, 3)
    shown = image.reshape(4, 3, 32, 3, 32, 3)[:, :, :, 0, :, 0]
    clips = np.stack([clip(n)[0, ::8, ::8, 0] for n in range(8)]).repeat(8, 1).repeat(8, 2).astype(int)
    for low, sampled, truth in shown.astype(int):
        number = np.abs(clips - truth).sum((1, 2)).argmin()
        assert np.abs(clips[number] - truth).max() <= 2
        blocks = low.reshape(2, 16, 2, 16).swapaxes(1, 2).reshape(4, -1)
        assert np.ptp(blocks, axis=1).max() <= 2 and (sampled != truth).any()


def test_files_come_out_twice_as_large(trained, tmp_path):
    """A longer clip than the network's, with sound, and a picture."""
    long, picture = tmp_path / "long.mp4", tmp_path / "still.png"
    sound = (8000 * np.sin(np.arange(24_000) / 20)).astype(np.int16)
    media.write_mp4(long, np.concatenate([clip(1), clip(2)])[:, :16, :24], 8.0, sound, 16_000)
    media.write_png_strip(picture, clip(3)[:1, :16, :16])
    upscaler = larger.from_checkpoint(trained)
    upscaler._text_encoder = fakes.LetterEncoder()
    out = tmp_path / "out"
    out.mkdir()
    files = list(upscaling.run([str(long), str(picture)], [upscaler], out, to=32, prompts=["red", ""]))
    assert [f.name for f in files] == ["000.mp4", "000.png", "001.png", "upscale.json"]
    made = media.read_clip(files[0], RUN.clip.replace(frames=10, height=32, width=48))
    assert media.probe(files[0]).width == 48 and made.audio is not None
    sizes = [sample["size"] for sample in json.loads(files[-1].read_text())["samples"]]
    assert sizes == [[10, 32, 48, 3], [1, 32, 32, 3]]


def test_what_is_generated_is_upscaled_by_networks_that_take_it(trained):
    small = RUN.clip.replace(height=16, width=16)
    assert len(upscaling.load([trained], TASKS["text_to_video"], small)) == 1
    with pytest.raises(UserError, match="text_to_audio generates no frames"):
        upscaling.load([trained], TASKS["text_to_audio"], small)
    with pytest.raises(UserError, match="8x8 is smaller"):
        upscaling.load([trained], TASKS["text_to_video"], RUN.clip.replace(height=8, width=8))


def test_scores_stand_beside_resizing(trained, tmp_path, monkeypatch):
    """The ceiling is exact where clips are what the tokenizer can say; a way that is not installed is named."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    upscaler = larger.from_checkpoint(trained)
    sets = {"grey": np.stack([clip(n) for n in range(2)])}
    result = upscalers.evaluate(upscaler, sets, tmp_path, perceptual=None, steps=(1, 2))
    rows = {row["upscaler"]: row for row in result["metrics"]["upscalers"]["rows"]}
    assert list(rows) == [
        "nearest",
        "bicubic",
        "lanczos",
        upscalers.CORRECTIONS,
        "super-resolution, 1 steps",
        "super-resolution, 2 steps",
        upscalers.CEILING,
        upscalers.CORRECTED_CEILING,
    ]
    assert rows[upscalers.CORRECTIONS]["consistency_db"] > 40
    assert rows[upscalers.CEILING]["psnr_db"] > 50 > rows["bicubic"]["psnr_db"] > 10
    assert rows[upscalers.CEILING]["flicker_levels"] == 0 and rows["nearest"]["consistency_db"] > 30
    assert {p.name for p in tmp_path.iterdir()} == {"grey.png", upscalers.RESULT_FILE}
    summary = tokenizers.summary(result)
    assert "SSIM" in summary and f"{realesrgan.LABEL} skipped: not installed" in summary


@pytest.mark.parametrize(
    "size, to, networks, words",
    [
        ((128, 128), 128, 1, "128x128, which is no smaller than --to=128"),
        ((48, 48), 128, 1, "2.667 times its height.*make 96 rows"),
        ((32, 32), 128, 1, "4 times its height.*make 64 rows"),
    ],
)
def test_a_factor_that_no_network_has_is_refused(size, to, networks, words):
    with pytest.raises(UserError, match=words):
        upscaling.check_size("a.mp4", size, to, networks)
    upscaling.check_size("a.mp4", (32, 32), 128, 2)
    upscaling.check_size("a.mp4", size, 0, networks)


def test_other_commands_refuse_it_and_other_tokenizers_too(trained, monkeypatch):
    arguments = argparse.Namespace(checkpoint=str(trained.folder))
    with pytest.raises(UserError, match="super-resolution network.*poet upscale"):
        command.open_checkpoint(arguments, [])
    monkeypatch.setattr(base.VideoTokenizer, "of", lambda spec: Tokenizer(fingerprint="another"))
    with pytest.raises(UserError, match="another"):
        larger.from_checkpoint(trained)


def test_its_weights_are_released_and_upscale_the_same(trained, tmp_path, capsys):
    out = tmp_path / "released"
    assert cli.main(["export", f"--checkpoint={trained.folder}", f"--out={out}", "--weights_only"]) == 0
    released, video = Run.open(out), clip(4)[None, :, :16, :16]
    assert released.checkpoint.released and capsys.readouterr().out.strip() == str(out)
    before, after = (larger.from_checkpoint(run).upscale(video) for run in (trained, released))
    np.testing.assert_array_equal(before, after)


def test_a_given_clip_of_the_low_resolution_has_half_the_sides():
    """What a request's media are checked against follows the stream's own grid."""
    fmt = Resolved(RUN).format
    shapes = {name: streams.get(name).media_shape(Tokenizer(), fmt) for name in ("video", "low_resolution")}
    assert shapes == {"video": (5, 32, 32, 3), "low_resolution": (5, 16, 16, 3)}
