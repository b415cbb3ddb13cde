"""The report shows what is there, says what is not, and never lets data become markup."""

from __future__ import annotations

import base64
import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest

from poet import media
from poet.evaluation import charts, tables
from poet.evaluation.report import ReportInputs, write_report
from poet.specs import UserError

ATTACK = "<script>alert('x')</script> \"quoted\" & <img src=x onerror=alert(1)>"
HEADINGS = (
    "Stages", "Data", "Training", "Evaluation", "Reconstructions", "Frame prediction",
    "Generated clips", "Trained for longer", "Tokenizer training", "Export", "Spec",
)


def clip(seed: int, noise: float = 0.0) -> np.ndarray:
    """uint8 (17, 64, 64, 3): a disc that moves over stripes."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    frames = []
    for t in range(17):
        disc = ((x - 16 - 2 * t) ** 2 + (y - 32 - 10 * np.sin(t / 3 + seed)) ** 2) < 100
        ground = 70 + 40 * np.sin((x + 3 * t) / (5 + seed % 4)) + y
        frame = np.stack([ground, ground * 0.7 + 20, np.full_like(ground, 60.0)], -1)
        frame[disc] = (230, 90 + 20 * seed, 60)
        frames.append(frame + rng.normal(0, noise, frame.shape))
    return np.clip(frames, 0, 255).astype(np.uint8)


def write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_evaluation(folder: Path, step: int, loss: float, psnr_db: float) -> None:
    known, entries = 5, []
    for i in range(2):
        strips = {"original": clip(i), "reconstruction": clip(i, 12)}
        clips = {"true": clip(i), "generated": clip(i, 20), "repeat the last frame": clip(i)[:1]}
        caption = f"the player walks forward, clip {i}"
        for kind, videos, suffix in (
            ("reconstruction", strips, ".png"), ("frame_prediction", clips, ".gif")
        ):
            files = {label: f"media/{kind}_{i}_{label.split()[0]}{suffix}" for label in videos}
            for label, video in videos.items():
                if suffix == ".png":
                    media.write_png_strip(folder / files[label], video, 2)
                else:
                    media.write_gif(folder / files[label], video, 8)
            entry = {"kind": kind, "key": f"map07-{i}", "caption": caption, "files": files}
            entries.append(entry | {"note": f"PSNR {psnr_db + i:.2f} dB"})
    likelihood = [
        {"task": task, "stream": stream, "loss_nats": loss + k / 3, "unigram_nats": 7.91,
         "accuracy": 0.12, "tokens": 40_960}
        for k, (task, stream) in enumerate(
            [("text_to_video", "video"), ("text_to_image", "image"), ("frame_prediction", "video")]
        )
    ]
    predicted = [
        {"frames": name, "psnr_db": psnr_db + gain, "psnr_db_error": 0.31, "ssim": 0.61,
         "ssim_error": 0.012, "gain_db": gain, "gain_db_error": 0.1, "win_rate": wins, "clips": 32}
        for name, gain, wins in (
            ("generated", 0.8, 0.72), ("repeat", 0.0, None), ("reconstruction", 5.1, 1.0)
        )
    ]
    curves = {
        name: [None] * known + [psnr_db + gain - 0.3 * f for f in range(12)]
        for name, gain in (("generated", 2.0), ("repeat", 1.0), ("reconstruction", 6.0))
    }
    content = {
        "format": 1, "checkpoint": "lm", "step": step, "split": "validation",
        "metrics": {
            "likelihood": {"rows": likelihood, "notes": ["Means over tokens."], "curves": {}},
            "frame_prediction": {"rows": predicted, "notes": [], "curves": curves},
        },
        "skipped": {"audio_distance": "the checkpoint has no sound"},
        "media": entries, "seconds": {}, "experiment": {},
    }
    write_json(folder / "eval.json", content)


def write_generated(folder: Path, prompts: list[str]) -> None:
    samples = []
    for row, prompt in enumerate(prompts):
        media.write_gif(folder / f"{row:03d}.gif", clip(row, 25), 8)
        media.write_mp4(folder / f"{row:03d}.mp4", clip(row, 25), 8)
        samples.append({"row": row, "prompt": prompt, "files": [f"{row:03d}.mp4", f"{row:03d}.gif"]})
    write_json(folder / "generate.json", {"task": "text_to_video", "samples": samples})


def write_metrics(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng, lines = np.random.default_rng(0), []
    for step in range(10, 1501, 10):
        loss = 6.1 + 6.4 * np.exp(-step / 200) + rng.normal(0, 0.04)
        entry = {"step": step, "kind": "train", "loss": loss, "video/loss/video": loss,
                 "image/loss/image": loss - 0.4, "tokens_per_s": 21_000.0}
        lines.append(json.dumps(entry))
        if step % 250 == 0:
            validation = {f"validation/{t}/loss/video": loss + d for t, d in
                          (("text_to_video", 0.2), ("frame_prediction", -0.3))}
            lines.append(json.dumps({"step": step, "kind": "validation"} | validation))
    path.write_text("\n".join(lines) + '\n{"step": 1510, "ki')


def write_store(folder: Path) -> None:
    statistics = {"video": {"codes": 403_200, "used": 9_811, "entropy_nats": 8.02,
                            "first_frame_entropy_nats": 7.9}}
    skipped = [{"key": "map03-17", "reason": "too short: 9 frames, 17 needed"}]
    splits = {
        "train": {"clips": 1260, "skipped": skipped, "statistics": statistics},
        "validation": {"clips": 160, "skipped": [], "statistics": statistics},
    }
    clip_spec = {"frames": 17, "rate_hz": 8.0, "height": 64, "width": 64}
    manifest = {"source": "data/freedoom_av/1.0.0", "plan": {"clip": clip_spec}, "splits": splits}
    write_json(folder / "manifest.json", manifest)


def write_run(workdir: Path) -> Path:
    """A whole run folder as launch/quickstart.sh leaves it."""
    stages = [
        {"name": "data", "seconds": 71.0, "status": "done", "note": "render game clips"},
        {"name": "train", "seconds": 244.3, "status": "done", "note": f"pretrain {ATTACK}"},
    ]
    write_json(workdir / "stages.json", stages)
    write_store(workdir / "store")
    write_metrics(workdir / "lm" / "metrics.jsonl")
    write_json(workdir / "lm" / "spec.json", {"train": {"steps": 1500}, "note": ATTACK})
    write_json(workdir / "export_check.json", {"equal_tokens": True, "compared_tokens": 320})
    write_evaluation(workdir / "eval", 1500, 6.3, 18.2)
    write_evaluation(workdir / "eval_trained", 20_000, 5.1, 19.4)
    prompts = ["the player turns left", ATTACK, "an imp in view"]
    write_generated(workdir / "generated", prompts)
    write_generated(workdir / "generated_trained", prompts[:1])
    tokenizer = workdir / "tokenizer" / "metrics.jsonl"
    tokenizer.parent.mkdir(parents=True)
    lines = [{"step": s, "kind": "train", "loss": 1 / s} for s in range(1, 7)]
    tokenizer.write_text("\n".join(map(json.dumps, lines)))
    return workdir


class Page(html.parser.HTMLParser):
    """What a browser would see: tags with their attributes, and text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(run_folder: Path) -> Page:
    return Page(write_report(run_folder).read_text(encoding="utf-8"))


def test_every_section_shows_what_its_file_says(page: Page):
    for heading in HEADINGS:
        assert page.words.count(heading) >= 2, f"{heading}: link and heading"
    for said in (
        "4 min 04 s", "1,420", "too short: 9 frames, 17 needed", "the player walks forward, clip 1",
        "unigram entropy (nats)", "7.910", "18.200 ± 0.310", "trained for 20,000 steps",
        "the checkpoint has no sound", "equal tokens", '"steps": 1500', "+0.80 dB", "6 steps.",
    ):
        assert said in page.text, said
    assert not [a for _, a in page.tags if a.get("class") == "missing" and "No " in str(a)]


def test_pictures_are_inside_the_page_and_described(page: Page, run_folder: Path):
    images = [a for tag, a in page.tags if tag == "img"]
    # Per evaluation 2 x 2 strips (shown once) and 2 x 3 clips, and 3 + 1 generated clips.
    assert len(images) == 4 + 2 * 6 + 4
    assert all(a["alt"] for a in images)
    wanted = base64.b64encode((run_folder / "generated" / "002.gif").read_bytes()).decode()
    assert f"data:image/gif;base64,{wanted}" in [a["src"] for a in images]


def test_nothing_is_fetched_and_nothing_runs(page: Page):
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value[:60])
        assert not [name for name in attributes if name.startswith("on")], tag
        assert "url(" not in (attributes.get("style") or "")
    assert not re.search(r"@import|url\(", page.text)


def test_prompts_notes_and_specs_are_text_not_markup(page: Page):
    shown = [w for w in page.words if ATTACK in w]
    assert len(shown) >= 2, "the caption of a clip and the note of a stage, character for character"
    assert ATTACK in json.loads(next(w for w in page.words if w.startswith("{")))["note"]
    assert any(ATTACK in (a.get("alt") or "") for _, a in page.tags)


def test_charts_hold_both_losses_and_the_entropy_line(page: Page):
    assert "train: video" in page.text and "validation: frame_prediction" in page.text
    assert "unigram 7.91" in page.text
    assert any(a.get("class") == "level" for tag, a in page.tags if tag == "path")


def test_an_empty_folder_gives_a_page_that_says_what_is_missing(tmp_path: Path):
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    missing = [a for tag, a in page.tags if a.get("class") == "missing"]
    assert len(missing) == len(HEADINGS)
    assert not [tag for tag, _ in page.tags if tag in ("img", "svg", "table")]
    for command in ("poet train", "poet eval", "poet tokenize", "poet generate", "poet export"):
        assert command in page.text


def test_a_lost_picture_is_said_not_faked(tmp_path: Path):
    write_generated(tmp_path / "generated", ["a prompt"])
    (tmp_path / "generated" / "000.gif").unlink()
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "000.gif is missing" in page.text and "img" not in [tag for tag, _ in page.tags]


def test_samples_with_sound_are_shown_by_what_sounds(tmp_path: Path):
    """A silent sample moves by itself; one with a wav beside it has controls to hear it with."""
    folder = tmp_path / "generated"
    write_generated(folder, ["mute", "a door", "rain"])
    record = json.loads((folder / "generate.json").read_text())
    for name in ("001.wav", "002.wav"):
        media.write_wav(folder / name, np.arange(800, dtype=np.int16), 8000)
    record["samples"][1]["files"].append("001.wav")
    record["samples"][2]["files"] = ["002.wav"]
    write_json(folder / "generate.json", record)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    shown = {tag: attrs for tag, attrs in page.tags if tag in ("img", "video", "audio")}
    assert "controls" in shown["video"] and "controls" in shown["audio"]
    for tag, name in (("img", "000.gif"), ("video", "001.mp4"), ("audio", "002.wav")):
        data = base64.b64encode((folder / name).read_bytes()).decode()
        assert shown[tag]["src"].endswith(data)


def test_stages_may_be_one_file_each_in_the_order_they_ended(tmp_path: Path):
    import os

    for second, name in enumerate(("tokenize", "data")):
        path = tmp_path / "stages" / f"{name}.json"
        write_json(path, {"name": name, "seconds": 3, "status": "done", "note": ""})
        os.utime(path, (second, second))
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert 0 < text.index("tokenize") < text.index(" data ")


def test_what_cannot_be_reported_is_a_user_error(tmp_path: Path):
    with pytest.raises(UserError, match="not a folder"):
        write_report(tmp_path / "absent")
    (tmp_path / "stages.json").write_text("{")
    with pytest.raises(UserError, match="stages.json is not valid JSON"):
        write_report(tmp_path)
    inputs = ReportInputs(title="only a spec")
    assert "only a spec" in write_report(tmp_path, "other.html", inputs).read_text()


def test_tables_are_aligned():
    rows = [
        {"task": "a", "psnr_db": 20.5, "psnr_db_error": 0.25, "clips": 12_345, "win_rate": None},
        {"task": "longer name", "psnr_db": 8.0, "psnr_db_error": None, "clips": 7, "win_rate": 0.5},
    ]
    heading, titles, rule, first, second = tables.format_table(rows, "HEAD").splitlines()
    assert heading == "HEAD"
    assert re.split(r"  +", titles) == ["task", "PSNR (dB)", "clips", "win rate"]
    assert re.split(r"  +", first) == ["a", "20.500 ± 0.250", "12,345", "–"]
    ends = [m.end() for m in re.finditer(r"-+", rule)]
    for line in (titles, first, second):
        assert all(line[end : end + 2].strip() == "" for end in ends)
        assert all(line[end - 1] != " " for end in ends[1:]), "numbers end together"


def test_ticks_are_round_and_inside():
    for low, high in ((0.3, 9.8), (-2.0, 2.0), (5.91, 5.97), (0, 123_456)):
        found = charts.ticks(low, high)
        assert 3 <= len(found) <= 11 and low <= found[0] and found[-1] <= high
        assert np.allclose(np.diff(found), found[1] - found[0])


def test_thinning_keeps_the_mean_and_the_ends_of_time():
    points = [(float(i), float(i % 7)) for i in range(4000)]
    thin = charts.thin(points)
    assert len(thin) == charts.MAX_POINTS
    assert np.mean([y for _, y in thin]) == pytest.approx(np.mean([y for _, y in points]))
    assert thin[0][0] < 10 and thin[-1][0] > 3989
