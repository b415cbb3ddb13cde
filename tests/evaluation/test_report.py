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
from poet.evaluation.report import charts, headlines, tables
from poet.evaluation.report.artifacts import Evaluation, read_evaluation
from poet.evaluation.report.run import write_report
from poet.runs import manifest, outputs
from poet.spec import UserError

ATTACK = "<script>alert('x')</script> \"quoted\" & <img src=x onerror=alert(1)>"
HEADINGS = (
    "Clips",
    "Conditions",
    "Evaluation",
    "Frame prediction",
    "Training",
    "Tokenizer training",
    "Reconstructions",
    "Data",
    "Export",
    "Stages",
    "Spec",
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
        for kind, videos, suffix in (("reconstruction", strips, ".png"), ("frame_prediction", clips, ".gif")):
            files = {label: f"media/{kind}_{i}_{label.split()[0]}{suffix}" for label in videos}
            for label, video in videos.items():
                if suffix == ".png":
                    media.write_png_strip(folder / files[label], video, 2)
                else:
                    media.write_gif(folder / files[label], video, 8)
            entry = {"kind": kind, "key": f"map07-{i}", "caption": caption, "files": files}
            entries.append(entry | {"note": f"PSNR {psnr_db + i:.2f} dB"})
    likelihood = [
        {
            "task": task,
            "stream": stream,
            "loss_nats": loss + k / 3,
            "unigram_nats": 7.91,
            "accuracy": 0.12,
            "tokens": 40_960,
        }
        for k, (task, stream) in enumerate(
            [("text_to_video", "video"), ("text_to_image", "image"), ("frame_prediction", "video")]
        )
    ]
    predicted = [
        {
            "frames": name,
            "psnr_db": psnr_db + gain,
            "psnr_db_error": 0.31,
            "ssim": 0.61,
            "ssim_error": 0.012,
            "gain_db": gain,
            "gain_db_error": 0.1,
            "win_rate": wins,
            "clips": 32,
        }
        for name, gain, wins in (("generated", 0.8, 0.72), ("repeat", 0.0, None), ("reconstruction", 5.1, 1.0))
    ]
    gains = [
        {
            "task": task,
            "condition": condition,
            "stream": "video",
            "nats_per_token": nats / 320,
            "nats_per_clip": nats,
            "nats_per_clip_low": nats - 2,
            "nats_per_clip_high": nats + 3,
            "copyable": None,
            "copyable_nats": None,
            "copyable_accuracy": None,
            "clips": 64,
        }
        for task, condition, nats in (
            ("text_to_video", "text", 12.9),
            ("inpainting", "clip with a hole", 338.0),
            ("stylization", "text", -1.5),
        )
    ]
    curves = {
        name: [None] * known + [psnr_db + gain - 0.3 * f for f in range(12)]
        for name, gain in (("generated", 2.0), ("repeat", 1.0), ("reconstruction", 6.0))
    }
    content = {
        "format": 1,
        "checkpoint": "lm",
        "step": step,
        "split": "validation",
        "metrics": {
            "likelihood": {"rows": likelihood, "notes": ["Means over tokens."], "curves": {}},
            "condition_gain": {"rows": gains, "notes": [], "curves": {}},
            "frame_prediction": {"rows": predicted, "notes": [], "curves": curves},
        },
        "skipped": {"audio_distance": "the checkpoint has no sound"},
        "media": entries,
        "seconds": {},
        "experiment": {},
    }
    write_json(folder / "eval.json", content)
    manifest.write(folder, {"kind": outputs.EVALUATION})


def write_examples(folder: Path, tasks: dict[str, str]) -> None:
    """A folder as of `poet eval --metric=examples`: task -> its condition."""
    entries = []
    for i, (task, given) in enumerate(tasks.items()):
        files = {
            "condition": f"media/{i}_condition.gif",
            "sampled": f"media/{i}_sampled.mp4",
            "true": f"media/{i}_true.gif",
        }
        for file, noise in zip(files.values(), (40, 25, 0)):
            write = media.write_gif if file.endswith(".gif") else media.write_mp4
            write(folder / file, clip(i, noise), 8)
        entries.append(
            {"kind": "example", "key": f"basic-{i} {given}", "caption": task, "note": f"given {given}", "files": files}
        )
    content = {
        "format": 1,
        "checkpoint": "lm",
        "step": 855,
        "split": "validation",
        "metrics": {},
        "skipped": {},
        "media": entries,
        "seconds": {},
        "experiment": {},
    }
    write_json(folder / "eval.json", content)
    manifest.write(folder, {"kind": outputs.EVALUATION})


def write_metrics(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng, lines = np.random.default_rng(0), []
    for step in range(10, 1501, 10):
        loss = 6.1 + 6.4 * np.exp(-step / 200) + rng.normal(0, 0.04)
        entry = {
            "step": step,
            "kind": "train",
            "loss": loss,
            "video/loss/video": loss,
            "image/loss/image": loss - 0.4,
            "tokens_per_s": 21_000.0,
        }
        lines.append(json.dumps(entry))
        if step % 250 == 0:
            validation = {
                f"validation/{t}/loss/video": loss + d for t, d in (("text_to_video", 0.2), ("frame_prediction", -0.3))
            }
            lines.append(json.dumps({"step": step, "kind": "validation"} | validation))
    path.write_text("\n".join(lines) + '\n{"step": 1510, "ki')


def write_store(folder: Path) -> None:
    statistics = {"video": {"codes": 403_200, "used": 9_811, "entropy_nats": 8.02, "first_frame_entropy_nats": 7.9}}
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
    write_json(
        workdir / "export_check.json", {"tasks": [{"task": "text_to_video", "tokens": 320, "media_equal": True}]}
    )
    write_evaluation(workdir / "eval", 1500, 6.3, 18.2)
    write_examples(workdir / "first", {"inpainting": "a hole", "text to video": ATTACK})
    media.write_gif(workdir / "export_check.gif", clip(3), 8)
    gain = {"nats_per_clip": {"value": 21.5, "low": 17.0, "high": 26.0}}
    write_json(workdir / "shipped_scores.json", {"condition_gain": {"video_to_audio": {"video": {"audio": gain}}}})
    tokenizer = workdir / "tokenizer"
    lines = [
        {"step": 0, "kind": "reconstruction", "reconstruction/psnr_db": 22.5},
        {"step": 10, "kind": "train", "loss": 0.1},
        {"step": 80, "kind": "reconstruction", "reconstruction/psnr_db": 23.75},
    ]
    (tokenizer / "samples").mkdir(parents=True)
    (tokenizer / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for step in (0, 40, 80):
        media.write_png_strip(tokenizer / "samples" / f"{step:08d}_reconstruction_clips.png", clip(step), 4)
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
        "4 min 04 s",
        "1,260",
        "too short: 9 frames, 17 needed",
        "the player walks forward, clip 1",
        "unigram entropy (nats)",
        "7.910",
        "18.200 ± 0.310",
        "the checkpoint has no sound",
        "media equal",
        '"steps": 1500',
        "inpainting (given a hole)",
        "after 80 steps",
        "video_to_audio: video → audio",
    ):
        assert said in page.text, said
    assert not [a for _, a in page.tags if a.get("class") == "missing" and "No " in str(a)]


def test_the_page_opens_with_clips_beside_their_conditions(page: Page, run_folder: Path):
    """The first section's files in the page, in the order condition, sampled, true."""
    expected = [
        run_folder / "first" / file
        for i in range(2)
        for file in (f"media/{i}_condition.gif", f"media/{i}_sampled.mp4", f"media/{i}_true.gif")
    ]
    shown = [a["src"] for tag, a in page.tags if tag in ("img", "video")]
    for path, source in zip(expected, shown):
        assert source.endswith(base64.b64encode(path.read_bytes()).decode()), path
    headings = [tag for tag, _ in page.tags if tag in ("h2", "img", "video")]
    assert headings[0] == "h2" and headings.count("h2") == len(HEADINGS)


def test_every_headline_says_what_it_means(page: Page):
    """A number stands in bold, the sentence beside it: no dB without its baseline."""
    text = re.sub(r"\s+", " ", page.text)
    for said in (
        "5 min 15 s from the first rendered frame to this page",
        r"\+1\.25 dB of PSNR: how much nearer the video tokenizer comes .* 80 steps .*22\.5 dB before, 23\.8 dB after",
        r"6\.97 nats is the loss per code of validation clips.* 1,500 steps .*\(frame prediction\).*unigram is 7\.91",
        r"\+0\.8 dB of PSNR: .* nearer to the true ones than the last conditioning frame",
    ):
        assert re.search(said, text), said


def test_pictures_are_inside_the_page_and_described(page: Page):
    images = [a for tag, a in page.tags if tag == "img"]
    # Two examples' two GIFs, 2 x 2 strips, 2 x 3 predicted clips, the tokenizer before and after, the export's clip.
    assert len(images) == 4 + 4 + 6 + 2 + 1
    assert all(a["alt"] for a in images)
    assert len([tag for tag, _ in page.tags if tag == "video"]) == 2


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


def test_bars_begin_at_zero_and_whiskers_hold_their_ends() -> None:
    """By the pixels of the drawing: longer for more, to the left for less than nothing."""
    values = (-3.0, 0.0, 0.5, 12.0, 600.0)
    drawn = charts.bar_chart(
        [charts.Bar(name=f"<{v}>", value=v, low=v - 1, high=v + 1) for v in values], title="bars", x_label="nats"
    )

    def found(pattern: str) -> list[tuple[float, float]]:
        return [tuple(map(float, pair)) for pair in re.findall(pattern, drawn)]

    bars = found(r'<rect class="bar series-0" x="(.*?)" y=".*?" width="(.*?)"')
    whiskers = found(r'<path class="whisker" d="M(.*?) .*?H([\d.]+)M')
    zero = bars[1][0]
    assert bars[1][1] == 0 and bars[0][0] + bars[0][1] == pytest.approx(zero, abs=0.2) and bars[0][1] > 0
    assert all(x == zero for x, _ in bars[1:]) and bars[2][1] < bars[3][1] < bars[4][1]
    for (x, width), (low, high), value in zip(bars, whiskers, values, strict=True):
        assert low < (x if value < 0 else x + width) < high
    assert 0 <= whiskers[0][0] and whiskers[-1][1] <= charts.WIDTH
    assert "&lt;12.0&gt;" in drawn and "<12.0>" not in drawn
    with pytest.raises(ValueError, match="no bars"):
        charts.bar_chart([], title="none", x_label="")


def test_bars_of_like_sizes_are_as_long_as_their_values() -> None:
    """Decibels: a logarithm would show 14 and 22 as nearly the same."""
    values = (22.0, 14.1, 19.8, 0.0, -5.5)
    drawn = charts.bar_chart([charts.Bar(name="", value=v) for v in values], title="", x_label="dB")
    widths = [float(width) for width in re.findall(r'<rect class="bar series-0".*?width="(.*?)"', drawn)]
    np.testing.assert_allclose(np.array(widths) / widths[0], np.abs(values) / 22.0, atol=2e-3)
    assert ">0</text>" in charts.bar_chart([charts.Bar(name="", value=0.0)], title="", x_label="F1")


def test_an_empty_folder_gives_a_page_that_says_what_is_missing(tmp_path: Path):
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    missing = [a for tag, a in page.tags if a.get("class") == "missing"]
    assert len(missing) == len(HEADINGS)
    assert not [tag for tag, _ in page.tags if tag in ("img", "svg", "table")]
    for command in ("poet train", "poet eval", "poet tokenize", "poet tokenizer-train", "poet export"):
        assert command in page.text


def test_a_lost_picture_is_said_not_faked(tmp_path: Path):
    write_examples(tmp_path / "first", {"inpainting": "a hole"})
    (tmp_path / "first" / "media" / "0_sampled.mp4").unlink()
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "0_sampled.mp4 is missing" in page.text and "video" not in [tag for tag, _ in page.tags]


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


def test_a_number_of_an_evaluation_that_was_altered_is_no_number(tmp_path):
    write_evaluation(tmp_path, 1500, 6.30, 20.0)
    file = tmp_path / "eval.json"
    file.write_text(file.read_text().replace("1500", "1600"))
    with pytest.raises(UserError, match="eval.json was altered"):
        read_evaluation(tmp_path)
    file.unlink()
    with pytest.raises(UserError, match="eval.json: No such file"):
        read_evaluation(tmp_path)
    assert not read_evaluation(tmp_path / "elsewhere")


def test_an_evaluation_says_what_matters_in_five_lines(tmp_path):
    write_evaluation(tmp_path, 1500, 6.30, 20.0)
    found = read_evaluation(tmp_path)
    found.content["metrics"]["examples"] = {"rows": [{"task": "text_to_video"}, {"task": "inpainting"}]}
    found.content["metrics"]["reconstruction"] = {"rows": [{"psnr_db": 25.12, "clips": 8}]}
    figures = headlines.of_evaluation(found)
    # The largest of the video streams: no task that copies stands for all.
    assert [number for number, _ in figures] == ["6.97 nats", "2 of 3", "25.1 dB", "+0.8 dB", "2 tasks"]
    assert len(headlines.text(found).splitlines()) == 5
    assert "most clip with a hole in inpainting (338.0 nats a clip), least text in stylization (-1.5" in figures[1][1]
    assert headlines.of_evaluation(Evaluation(tmp_path, {})) == []
