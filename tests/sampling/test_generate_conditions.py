"""Tasks with made conditions and written text: what the model sees is what is made from the clip."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny
from PIL import Image

from poet import conditioning, media
from poet.conditioning import regions
from poet.sampling import command
from poet.sampling.generate import Generator
from poet.sampling.requests import Request
from poet.spec import SampleSpec, UserError
from poet.tasks.resolved import Resolved
from poet.tokenizers.pieces import load_pieces

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 5, 16, 16, 3)).astype(np.uint8)
WRITES = tiny.EXPERIMENT.replace(
    text=tiny.EXPERIMENT.text.replace(pieces="data/pretrained/pieces_512"),
    conditioning=tiny.EXPERIMENT.conditioning.replace(inpainting=("central",)),
    sample=SampleSpec(temperature=2.0, seed=1),
)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(
        Resolved(WRITES),
        tiny.params(),
        {"video": tiny.video_tokenizer(), "pieces": load_pieces("data/pretrained/pieces_512")},
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    media.write_mp4(path, PIXELS[0] // 4 + 64, 8.0)
    return path


def test_the_prefix_holds_the_codes_of_the_made_clip(generator):
    task = "inpainting"
    condition = generator.encode_condition(task, {"video": PIXELS})
    hole = np.zeros((5, 16, 16), bool)
    hole[:, 4:12, 4:12] = True  # COMMIT's central region
    hidden = np.stack([regions.fill(clip, hole, "edge") for clip in PIXELS])
    codes = tiny.video_tokenizer().encode(hidden)
    t, h, w = codes.shape[1:]
    cells = np.ones((t, h, w), bool)
    cells[:, h // 4 : h * 3 // 4, w // 4 : w * 3 // 4] = False
    expected = np.where(cells, codes, -1).reshape(2, -1)
    np.testing.assert_array_equal(condition["video_in"], expected)
    streams = tiny.layout_of(task).parse(generator.tokens(task, 2, condition=condition))
    np.testing.assert_array_equal(streams["video_in"], expected)


def test_a_first_frame_as_condition_is_the_frame_alone(generator):
    condition = generator.encode_condition("image_to_video_bidirectional", {"video": PIXELS})
    frame = tiny.video_tokenizer().encode(PIXELS[:, :1]).reshape(2, -1)
    np.testing.assert_array_equal(condition["image_in"], frame)


def test_structure_takes_the_depth_that_is_given_with_a_clip(generator):
    depths = np.random.default_rng(1).integers(0, 256, (2, 5, 8, 8))
    shown = generator.make_condition("stylization", PIXELS, depths).video
    for row in range(2):
        made = conditioning.make(
            "structure",
            PIXELS[row],
            WRITES.conditioning,
            key=str(row),
            depth=depths[row],
            factor=WRITES.video_tokenizer.factor,
        )
        np.testing.assert_array_equal(shown[row], made.video)


def run(monkeypatch, generator, clip, out, task, **changes):
    monkeypatch.setattr(Generator, "from_checkpoint", lambda *_: generator)
    return command.run(Request(task=task, clip=[str(clip)], **changes), Resolved(WRITES), tiny.RUN, out)


def test_a_caption_is_written_beside_its_clip(monkeypatch, generator, clip, tmp_path):
    files = run(monkeypatch, generator, clip, tmp_path, "captioning", num=2)
    names = [f"00{row}{kind}" for row in (0, 1) for kind in (".mp4", ".gif", ".png", ".txt")]
    assert [path.name for path in files] == [*names, "generation.json"]
    samples = json.loads((tmp_path / "generation.json").read_text())["samples"]
    assert [s["text"] for s in samples] == [
        (tmp_path / f"00{row}.txt").read_text().removesuffix("\n") for row in (0, 1)
    ]


def test_a_painted_clip_is_drawn_whole(monkeypatch, generator, clip, tmp_path):
    files = run(monkeypatch, generator, clip, tmp_path, "inpainting")
    shown = media.read_clip(files[0], WRITES.clip).video
    assert shown.shape == (5, 16, 16, 3) and np.abs(shown[0] - PIXELS[0, 0].astype(int)).mean() > 3


def test_a_mask_decides_what_is_painted_and_the_rest_is_the_given_clip(monkeypatch, generator, clip, tmp_path):
    files = run(monkeypatch, generator, clip, tmp_path, "inpainting", mask=["8,0,16,16"], num=2)
    for strip in (file for file in files if file.suffix == ".png"):
        painted = np.stack(np.split(np.asarray(Image.open(strip)), 5, axis=1))
        given = media.read_clip(clip, WRITES.clip).video
        np.testing.assert_array_equal(painted[:, :, :8], given[:, :, :8])
        assert (painted[:, :, 8:] != given[:, :, 8:]).mean() > 0.5
    with pytest.raises(UserError, match="captioning takes no mask; tasks that do: inpainting, outpainting"):
        run(monkeypatch, None, clip, tmp_path, "captioning", mask=["8,0,16,16"])


def test_a_structure_without_depth_is_refused_before_the_model_is_loaded(monkeypatch, clip, tmp_path):
    with pytest.raises(UserError, match="without depth.*CONDITIONING.depth"):
        run(monkeypatch, None, clip, tmp_path, "stylization", prompt=["a hall"])
