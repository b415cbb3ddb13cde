"""`poet serve` of an export with super-resolution, from outside: what it makes and what it makes larger."""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shipped import serve, wait_ready

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/serving")]

import exports  # noqa: E402

from poet import media  # noqa: E402
from poet.client import ApiError  # noqa: E402
from poet.media import watermark  # noqa: E402
from poet.serving import export as exporting  # noqa: E402
from poet.serving.runtime import Runtime  # noqa: E402
from poet.spec import ExportSpec, SampleSpec  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TEXT, SEED = "a red door", 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    spec = ExportSpec(tasks=("text_to_video",), platforms=("cpu",), films=False)
    place = tmp_path_factory.mktemp("export") / "both"
    return exporting.export(exports.generator(SampleSpec()), spec, place, upscalers=[exports.upscaler()])


@pytest.fixture(scope="module")
def client(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("service")
    process, found = serve(place / "store", place / "log", folder)
    wait_ready(found)
    yield found
    process.terminate()
    process.wait(60)


def larger(folder: Path, clip: Path) -> np.ndarray:
    """uint8 [T, H, W, 3]: what the folder makes of a file, in this process."""
    spec = exports.LARGER.clip.replace(frames=5, height=16, width=16)
    made = Runtime.load(folder).upscale(media.read_clip(clip, spec).video[None], [TEXT], seed=SEED)[0]
    return watermark.Marker.of(made, "")(made)


def test_a_video_is_made_then_made_larger_from_the_job_and_from_an_upload(client, folder, tmp_path):
    video = client.wait(client.video(TEXT, seed=SEED), timeout_s=300)
    assert video.task == "text_to_video" and video.object == "video"
    paths = {path.suffix: path for path in client.download(video, tmp_path / "small")}
    seen = []
    asked = {"prompt": TEXT, "seed": SEED}
    job = client.wait(client.submit("upscale", clip=video, **asked), on_progress=seen.append, timeout_s=300)
    found = {path.suffix: path for path in client.download(job, tmp_path / "large")}
    assert [file.name for file in job.files] == ["000.mp4", "000.png"] and seen[-1].progress == 100
    large = np.asarray(Image.open(found[".png"]).convert("RGB"))
    np.testing.assert_array_equal(large, media.frame_strip(larger(folder, paths[".mp4"])))
    assert all("generative model" in media.read_comment(path) for path in found.values())
    assert media.probe(found[".mp4"]).count == 5 and media.display_size(found[".mp4"]) == (32, 32)
    sent = client.wait(client.submit("upscale", clip=paths[".mp4"], **asked), timeout_s=300)
    assert client.content(sent, "000.png") == found[".png"].read_bytes()


def test_a_size_asks_for_a_larger_video(client):
    video = client.wait(client.video(TEXT, seed=SEED, size="32x32"), timeout_s=300)
    job = client.wait(client.submit("text_to_video", prompt=TEXT, seed=SEED, upscale=True), timeout_s=300)
    assert client.content(video, "000.png") == client.content(job, "000.png")
    told = json.loads(urllib.request.urlopen(f"{client.url}/v1/videos/{video.id}").read())
    assert told["size"] == "32x32" and client.models()[0]["scale"] == 2
    with pytest.raises(ApiError, match="the model makes 16x16 or 32x32, and nothing else"):
        client.video(TEXT, size="64x64")
    with pytest.raises(ApiError, match="a film has that of the model"):
        client.video(TEXT, size="32x32", seconds=20)


def test_one_request_makes_a_video_and_makes_it_larger(client, folder, tmp_path):
    """The pixels are those of the runtime, which does one after the other."""
    job = client.submit("text_to_video", prompt=TEXT, seed=SEED, upscale=True, format=["png"])
    (file,) = client.download(client.wait(job, timeout_s=300), tmp_path)
    runtime = Runtime.load(folder)
    small = runtime.text_to_video(TEXT, seed=SEED, block=client.models()[0]["batch"])
    made = runtime.upscale(small, [TEXT], seed=SEED, batch=1)[0]
    marked = watermark.Marker.of(made, "")(made)
    np.testing.assert_array_equal(np.asarray(Image.open(file).convert("RGB")), media.frame_strip(marked))


def test_seconds_of_media_count_for_what_is_made_larger(client):
    page = urllib.request.urlopen(f"{client.url}/metrics").read().decode()
    (seconds,) = re.findall(r'^poet_video_seconds_total\{task="upscale"\} (\S+)$', page, re.MULTILINE)
    assert float(seconds) == pytest.approx(2 * 5 / exports.LARGER.clip.rate_hz, rel=0.2)


def test_what_super_resolution_does_not_take_is_refused(client, tmp_path):
    media.write_png_strip(tmp_path / "dot.png", np.zeros((1, 8, 8, 3), np.uint8))
    for fields, said in (
        ({}, "takes one clip"),
        ({"clip": tmp_path / "dot.png"}, "8x8 is smaller"),
        ({"guidance": 2}, "guid"),
    ):
        with pytest.raises(ApiError, match=said) as raised:
            client.submit("upscale", **fields)
        assert raised.value.status == 400
