"""Trivial submissions hold what they are called after, under the names of the clips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from poet import cli, media
from poet.evaluation.baselines import BASELINES
from poet.spec import ClipSpec

CLIP = ClipSpec(frames=5, height=16, width=16, rate_hz=8.0)


def read(path: Path) -> np.ndarray:
    return media.read_clip(path, CLIP).video


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Sets of random clips; the first frame of test clip i is nearly that of training clip 2 i."""
    root, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    train = rng.integers(0, 256, (7, 5, 16, 16, 3), np.uint8)
    test = rng.integers(0, 256, (3, 5, 16, 16, 3), np.uint8)
    test[:, 0] = train[::2, 0][:3] // 2 + 60
    for name, videos in (("train", train), ("test", test)):
        (root / name / "deep").mkdir(parents=True)
        for place, video in enumerate(videos):
            media.write_apng(root / name / "deep" / f"{place}.apng", video, 8.0)
    lines = [json.dumps({"file": f"deep/{i}.apng", "caption": f"clip {i}"}) for i in range(3)]
    (root / "test" / "captions.jsonl").write_text("\n".join(lines))
    arguments = [str(root / "test"), f"--training={root / 'train'}", "--conditioning_frames=2", f"--out={root / 'out'}"]
    assert cli.main(["baselines", *arguments]) == 0
    found = {name: np.stack([read(root / "out" / name / "deep" / f"{i}.apng") for i in range(3)]) for name in BASELINES}
    return root, train, test, found


def test_each_is_what_it_says(made):
    _, train, test, found = made
    np.testing.assert_array_equal(found["last_frame"][:, :2], test[:, :2])
    np.testing.assert_array_equal(found["last_frame"][:, 2:], np.repeat(test[:, 1:2], 3, 1))
    np.testing.assert_array_equal(found["nearest_training"], train[::2][:3])
    np.testing.assert_array_equal(found["training_mean"], np.repeat(np.rint(train.mean(0))[None], 3, 0))
    assert all(any(np.array_equal(x, y) for y in train) for x in found["random_training"])
    owners = [[i for i, y in enumerate(test) if np.array_equal(x, y)] for x in found["shuffled"]]
    assert sorted(owners) == [[0], [1], [2]] and all(own != [i] for i, own in enumerate(owners))


def test_texts_stay_those_of_the_clips(made):
    root = made[0]
    lines = [json.loads(line) for line in (root / "out/shuffled/captions.jsonl").read_text().splitlines()]
    assert {line["file"]: line["caption"] for line in lines} == {f"deep/{i}.apng": f"clip {i}" for i in range(3)}


def test_poet_score_takes_them(made, capsys):
    root = made[0]
    sets = [str(root / "out/last_frame"), f"--against={root / 'test'}"]
    arguments = [*sets, "--pairs", "--network=none", "--perceptual=", "--metric=psnr_db", f"--out={root / 'scores'}"]
    assert cli.main(["score", *arguments]) == 0, capsys.readouterr().err
    found = json.loads((root / "scores/scores.json").read_text())
    assert found["pairs"] == 3


def test_mistakes(made, capsys):
    root = made[0]
    base = ["baselines", str(root / "test"), f"--training={root / 'train'}"]
    assert cli.main([*base, f"--out={root / 'x'}", "--conditioning_frames=6"]) == cli.EXIT_USER
    assert "5 frames" in capsys.readouterr().err
    assert cli.main([*base, f"--out={root / 'out'}"]) == cli.EXIT_USER
