"""`poet score`: two folders of clips, by stand-ins of the networks, through the command as a user calls it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import test_features

from poet import cli, media
from poet.evaluation import features
from poet.evaluation.features import Features, Network, base
from poet.evaluation.score import sides
from poet.evaluation.score.sides import Format
from poet.spec import UserError
from poet.store.folders import NoSplit

FRAMES, SIDE, RATE_HZ, CLIPS = 9, 32, 8.0, 7
CALLS: list[str] = []


def stand_in(name: str, prefix: str, medium: str, width: int) -> Network:
    """A network that takes means of parts of what it reads."""

    def run(value) -> np.ndarray:
        CALLS.append(prefix)
        flat = np.frombuffer(value.encode() or b"\0", np.uint8) if medium == "text" else value.reshape(-1)
        parts = np.array_split(flat.astype(np.float32), width)
        return np.array([[part.mean() if part.size else 0.0 for part in parts]], np.float32)

    loaded = Features(
        name=name, prefix=prefix, medium=medium, width=width, fingerprint=name[:1] * 16, reads={"parts": width}, run=run
    )
    return Network(name=name, prefix=prefix, medium=medium, package="numpy", install="", load=lambda: loaded)


@pytest.fixture(autouse=True)
def networks(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        stand_in("pixels", "frame", "frames", 3),
        stand_in("course", "motion", "video", 4),
        stand_in("waves", "sound", "sound", 2),
        stand_in("letters", "text", "text", 384),
    ]
    monkeypatch.setattr(base, "NETWORKS", {network.name: network for network in made})
    monkeypatch.setattr(features, "NETWORKS", base.NETWORKS)
    CALLS.clear()


def write_clips(folder: Path, seed: int, clips: int = CLIPS, sound: bool = True, frames: int = FRAMES) -> Path:
    rng, lines = np.random.default_rng(seed), []
    folder.mkdir()
    for index in range(clips):
        start = rng.integers(40, 200, (1, 4, 4, 3))
        video = (start + 4 * np.arange(frames)[:, None, None, None]).repeat(8, 1).repeat(8, 2).astype(np.uint8)
        wave = (rng.normal(size=round(frames / RATE_HZ * 16_000)) * 2000).astype(np.int16)
        media.write_mp4(folder / f"{index:03d}.mp4", video, RATE_HZ, *((wave, 16_000) if sound else ()))
        lines.append(json.dumps({"file": f"{index:03d}.mp4", "caption": f"clip number {index}"}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("score")
    return write_clips(root / "made", 0), write_clips(root / "real", 1)


def score(made: Path, real: Path, out: Path, *flags: str) -> dict:
    code = cli.main(["score", str(made), f"--against={real}", f"--out={out}", "--perceptual=", *flags])
    assert code == 0
    return json.loads((out / "scores.json").read_text())


def rows(result: dict, table: str) -> dict[str, dict]:
    return {row["metric"]: row for row in result["metrics"][table]["rows"]}


def test_every_metric_that_applies_is_measured_and_says_what_it_depends_on(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    result = score(*folders, out, "--pairs")
    found = rows(result, "sets")
    assert {f"{p}_{m}" for p in ("frame", "motion", "sound") for m in ("frechet", "kernel_gaussian")} <= set(found)
    assert not any(name.startswith("text_") and "recall" not in name for name in found)
    assert found["frame_frechet"]["from"] < found["frame_frechet"]["value"] < found["frame_frechet"]["to"]
    assert {"change_levels", "warping_error_levels", "frozen_rate", "frame_diversity"} <= set(rows(result, "clips"))
    assert rows(result, "pairs")["psnr_db"]["pairs"] == CLIPS and "SI-SDR_db" in rows(result, "sounds")
    assert "needs --tokenizer" in result["skipped"]["collapse_rate"]
    manifest = result["metrics"]["sets"]["manifests"]["frame_frechet"]
    assert manifest["networks"] == {"pixels": "p" * 16} and manifest["network"]["parts"] == 3
    assert result["clip"] == {
        "frames": FRAMES, "rate_hz": RATE_HZ, "height": SIDE, "width": SIDE,
        "crop": "about the centre", "resize": "bicubic, antialiased", "range": [0, 255],
    }  # fmt: skip
    for side in ("submission", "reference"):
        assert result[side]["clips"] == CLIPS and len(result[side]["fingerprint"]) == 16
    table = list(csv.DictReader((out / "scores.csv").open()))
    assert {row["metric"] for row in table} == {n for t in result["metrics"] for n in rows(result, t)}
    (row,) = [row for row in table if row["metric"] == "frame_frechet"]
    assert row["networks"] == "pixels:" + "p" * 16 and row["reference fingerprint"] and "numpy:" in row["versions"]
    printed = capsys.readouterr().out
    assert "frame_frechet" in printed and (out / "scores.txt").read_text() in printed
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64") == 8 and "frame_frechet" in page and "<script" not in page


def test_a_set_against_itself_is_at_0(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poet.evaluation.score.run.KEPT_BYTES", 2 * FRAMES * SIDE * SIDE * 3)  # Others are read again.
    result = score(folders[1], folders[1], tmp_path / "out", "--pairs")
    found = rows(result, "sets")
    for prefix in ("frame", "motion", "sound"):
        assert found[f"{prefix}_frechet"]["value"] == pytest.approx(0, abs=1e-3)
        # Unbiased: each clip is not far from itself, but a pair with itself does not count within a set.
        assert found[f"{prefix}_kernel_gaussian"]["value"] < 0
    assert rows(result, "pairs")["ssim"]["value"] == 1
    beside = rows(result, "clips")["change_levels"]
    assert beside["value"] == beside["reference value"]


def test_vectors_are_kept_and_a_second_run_computes_none(folders: tuple[Path, Path], tmp_path: Path) -> None:
    flags = ("--metric=frame_diversity", "--metric=sound_diversity")
    first = score(*folders, tmp_path / "out", *flags)
    assert sorted(CALLS) == ["frame"] * 2 * CLIPS + ["sound"] * 2 * CLIPS  # Of no other network.
    CALLS.clear()
    again = score(*folders, tmp_path / "out", "--overwrite", *flags)
    assert not CALLS and again == first
    stored = sorted((tmp_path / "out" / "features").glob("pixels-*/*.npy"))
    stored[0].write_bytes(stored[0].read_bytes()[:20])
    assert score(*folders, tmp_path / "out", "--overwrite", *flags) == first and CALLS == ["frame"]


def test_what_a_stopped_run_left_is_gone_on_with_and_nothing_else_is_touched(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from poet.evaluation.score import run

    real = run.Cache.__call__

    def stopped(self, network, item):
        if len(CALLS) == 9:
            raise KeyboardInterrupt
        return real(self, network, item)

    monkeypatch.setattr(run.Cache, "__call__", stopped)
    flags = [f"--against={folders[1]}", f"--out={tmp_path / 'out'}", "--metric=frame_diversity"]
    assert cli.main(["score", str(folders[0]), *flags]) == 130
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["features"]
    monkeypatch.setattr(run.Cache, "__call__", real)
    score(*folders, tmp_path / "out", "--metric=frame_diversity")
    assert len(CALLS) == 2 * CLIPS
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    assert cli.main(["score", str(folders[0]), f"--against={folders[1]}", f"--out={tmp_path / 'other'}"]) == 2


def test_clips_that_cannot_be_read_are_counted_and_named(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    made = write_clips(tmp_path / "made", 2)
    (made / "003.mp4").write_bytes(b"no film")
    result = score(made, folders[1], tmp_path / "out", "--metric=frame_frechet")
    assert list(result["submission"]["unreadable"]) == ["003.mp4"]
    assert result["submission"]["clips"] == CLIPS - 1 == rows(result, "sets")["frame_frechet"]["clips"]
    assert "003.mp4" in (tmp_path / "out" / "report.html").read_text()
    text = (tmp_path / "out" / "scores.txt").read_text()
    assert "1 cannot be read\n  003.mp4: " in text and text.count("cannot be read") == 1


def test_sets_that_differ_are_refused_or_fitted(
    tmp_path: Path, folders: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    short = write_clips(tmp_path / "short", 3, frames=6)
    assert cli.main(["score", str(folders[0]), f"--against={short}", f"--out={tmp_path / 'no'}"]) == 2
    told = capsys.readouterr().err
    assert "7 x 9 frames of 32x32 at 8 Hz" in told and "7 x 6 frames" in told and "--fit" in told
    sizes = ("--fit", "--height=16", "--width=16")
    result = score(folders[0], short, tmp_path / "out", *sizes, "--metric=change_levels")
    assert result["clip"]["frames"] == 6 and result["clip"]["height"] == 16
    assert len(result["fitted"]) == 2 and "fitted to 6 frames of 16x16" in result["fitted"][0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--split=test"], "has no split 'test'"),
        (["--metric=frame_frechte"], "frame_frechet"),
        (["--network=pixel"], "pixels"),
        (["--against=nowhere"], "does not exist"),
        (["--tokenizer=data/pretrained/magvit_v2_64x8", "--frames=6", "--fit"], "nearest are 5 and 9; give --frames"),
    ],
)
def test_mistakes_are_found_before_any_work(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, flags: list[str], message: str
) -> None:
    arguments = ["score", str(folders[0]), f"--against={folders[1]}", f"--out={tmp_path / 'out'}", *flags]
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err and not CALLS and not (tmp_path / "out").exists()


def test_only_the_metrics_that_are_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    result = score(*folders, tmp_path / "out", "--metric=change_levels", "--network=none")
    assert {n for t in result["metrics"] for n in rows(result, t)} == {"change_levels"} and not CALLS


def test_a_network_of_one_s_own_is_one_more_with_metrics_of_its_name(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    fields = {"medium": "frames", "size": [SIDE, SIDE], "every": 4}
    path = test_features.write_network(tmp_path, ["n", 3, SIDE, SIDE], [2, 3], fields)
    result = score(*folders, tmp_path / "out", f"--network={path}", "--network=pixels", "--metric=mine_frechet")
    assert set(rows(result, "sets")) == {"mine_frechet"} and list(result["networks"]) == ["mine"] and not CALLS
    manifest = result["metrics"]["sets"]["manifests"]["mine_frechet"]
    assert manifest["network"]["size"] == [SIDE, SIDE] and manifest["network"]["clip_rate_hz"] == RATE_HZ


def test_formats_fit_where_their_rates_nearly_do() -> None:
    one = Format(frames=9, height=4, width=4, rate_hz=8.0)
    assert one.fits(Format(frames=9, height=4, width=4, rate_hz=8.1))
    assert one.fits(Format(frames=9, height=4, width=4, rate_hz=0))
    assert not one.fits(Format(frames=9, height=4, width=4, rate_hz=9))
    assert sides._frames_at(Format(frames=18, height=4, width=4, rate_hz=16), 8.0) == 9
    side = sides.Side(
        flag="SUBMISSION", path="x", split="", source=None, formats=[Format(frames=9, height=4, width=4, rate_hz=0)],
        origins=frozenset(), unreadable={},
    )  # fmt: skip
    with pytest.raises(UserError, match="give --rate_hz"):
        sides.clip_of([side], Format(frames=0, height=0, width=0, rate_hz=0), fit=False)
    clip, done = sides.clip_of([side], Format(frames=0, height=0, width=0, rate_hz=8), fit=False)
    assert clip.rate_hz == 8 and "states no rate" in done[0]


@pytest.mark.parametrize(("flag", "option"), [("CLIPS", "--split"), ("--training", "--training_split")])
def test_a_set_of_several_splits_names_the_option_that_chooses_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, option: str
) -> None:
    def many(*_):
        raise NoSplit("of the loader", ("train", "test"))

    monkeypatch.setattr(sides, "open_source", many)
    with pytest.raises(UserError, match=f"has the splits train, test: give one by {option}$"):
        sides.open_side(flag, str(tmp_path), "")


def test_names_without_their_suffix_make_pairs() -> None:
    assert sides.stem("a/b.mp4") == sides.stem("a/b.webm") == sides.stem("a/b") == "a/b"
    assert sides.stem("test/arena/00003") == "test/arena/00003" and sides.stem("v1.2#17") == "v1.2"


def test_a_folder_that_poet_generate_wrote_has_its_prompts_and_each_sample_once(tmp_path: Path) -> None:
    made = write_clips(tmp_path / "made", 4, clips=2)
    (made / "captions.jsonl").unlink()
    media.write_gif(made / "000.gif", np.zeros((FRAMES, SIDE, SIDE, 3), np.uint8), RATE_HZ)
    samples = [{"prompt": f"prompt {k}", "files": {f"{k:03d}.mp4": "", f"{k:03d}.gif": ""}} for k in range(2)]
    (made / "generation.json").write_text(json.dumps({"samples": samples}))
    side = sides.open_side("SUBMISSION", str(made), "")
    clip, _ = sides.clip_of([side], Format(frames=0, height=0, width=0, rate_hz=0), fit=False)
    items = list(sides.Clips(side, clip))
    assert [(item.key, item.caption) for item in items] == [("000.mp4", "prompt 0"), ("001.mp4", "prompt 1")]
    (made / "generation.json").write_text(json.dumps({"film": "long", "files": {"000.mp4": ""}}))
    assert not sides.Clips(side, clip).prompts
    (made / "generation.json").write_text("[]")
    with pytest.raises(UserError, match="not a record of poet generate"):
        sides.Clips(side, clip)
