"""What weights that ship should reach, and what they do reach: `bars.md`.

python data/pretrained/bars.py --clips=DATA/arenas_av/1.0.0 --work=DIR

DIR keeps the results of every command; those that it lacks are made, which takes an hour on two
cores, and the page is written from them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from poet.evaluation.suites import cases

HERE = Path(__file__).resolve().parent
PAGE = HERE / "bars.md"
LM, VIDEO, SOUND, LARGER = "lm_arenas", "magvit_v2_64x8", "soundstream_16k", "superres_arenas"
FILMS, SECONDS = 20, 24
# 24 s at 8 frames a second, cut to what the tokenizer takes: 1 more than a multiple of 4.
FILM_FRAMES = 189
Contents = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A figure, and the interval that holds it with 95 %, if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A command, and the file of its result.

    Attributes:
      result: below DIR, or, of one that is part of the repository, below data/pretrained.
      command: as the page has it; {pretrained}, {clips} and {work} are filled in.
      make: runs something else than this one command.
    """

    result: str
    command: str
    make: Callable[[Places], None] | None = None
    shipped: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    clips: str
    work: Path

    def filled(self, command: str) -> list[str]:
        return [part.format(pretrained=HERE, clips=self.clips, work=self.work) for part in shlex.split(command)]


@dataclasses.dataclass(frozen=True)
class Bar:
    """What is asked: `least` <= figure <= `most`; `read` takes the figure from the contents of the run's result."""

    asked: str
    read: Callable[[Contents], Found]
    _: dataclasses.KW_ONLY
    least: float = -math.inf
    most: float = math.inf
    digits: int = 2

    @property
    def text(self) -> str:
        return f"≥ {self.least:g}" if math.isfinite(self.least) else f"≤ {self.most:g}"

    def met(self, found: Found) -> bool:
        return self.least <= found.value <= self.most


# ------------------------------------------------------------------------------------------------ runs


def films(places: Places) -> None:
    """A film of each of some captions, a seed each, and their scores."""
    flat = places.work / "films" / "all"
    flat.mkdir(parents=True, exist_ok=True)
    listed = cases.load("arenas").cases
    for seed in range(FILMS):
        out = places.work / "films" / f"{seed:02d}"
        text = listed[seed * len(listed) // FILMS].text
        poet(f"long --checkpoint={HERE / LM} --seconds={SECONDS} --seed={seed} --out={out}", f"--prompt={text}")
        shutil.copyfile(out / "film.mp4", flat / f"{seed:02d}.mp4")
    score = RUNS["films"].command.splitlines()[-1].removeprefix("poet ")
    poet(shlex.join(places.filled(score)))


def poet(command: str, *more: str) -> None:
    subprocess.run([sys.executable, "-m", "poet.cli", *shlex.split(command), *more], check=True)


RUNS = {
    "conditions": Run(
        shipped=True,
        result=f"{LM}/scores.json",
        command=f"poet eval --checkpoint={{pretrained}}/{LM} --metric=likelihood --metric=condition_gain "
        "--scores=scores.json --gin.DATA.store=CODES --gin.EVAL.gain_clips=96 --out=OUT",
    ),
    "arenas": Run(
        result="arenas/benchmark.json",
        command=f"poet benchmark arenas --checkpoint={{pretrained}}/{LM} --data={{clips}} --out={{work}}/arenas",
    ),
    "texts": Run(
        result="texts/scores.json",
        command="poet score {work}/arenas/samples/text_to_video --against={clips} --against_split=train "
        "--metric=text_recall_among_all_at_10 --out={work}/texts",
    ),
    "frames": Run(
        result="frames/eval.json",
        command=f"poet eval --checkpoint={{pretrained}}/{LM} --metric=frame_prediction --gin.EVAL.samples=6 "
        "--gin.EVAL.split=test --gin.EVAL.source={clips} --gin.EVAL.clips=32 --out={work}/frames",
    ),
    "films": Run(
        result="films/scores/scores.json",
        command=f"poet long --checkpoint={{pretrained}}/{LM} --seconds={SECONDS} --seed=N --prompt=CAPTION "
        "--out={work}/films/N\n"
        "poet score {work}/films/all --against={work}/films/all --network=none --metric=drift_db "
        f"--metric=collapse_rate --tokenizer={{pretrained}}/{VIDEO} --frames={FILM_FRAMES} --fit "
        "--out={work}/films/scores",
        make=films,
    ),
    "pictures": Run(
        result="pictures/tokenizer_scores.json",
        command="poet tokenizer-eval --gin_file=gin/experiments/tokenizer_arenas_decoder.gin "
        f"--tokenizer={{pretrained}}/{VIDEO} --set=source --codec=x265 "
        "--gin.EVAL.source={clips} --gin.EVAL.split=test --gin.EVAL.clips=33 --out={work}/pictures",
    ),
    "sounds": Run(
        shipped=True,
        result=f"{SOUND}/scores.json",
        command="poet tokenizer-eval --gin_file=gin/experiments/tokenizer_sound.gin "
        f"--tokenizer={{pretrained}}/{SOUND} --gin.EVAL.source=GAMES --gin.EVAL.sounds=SOUNDS --gin.EVAL.clips=16 "
        "--out=OUT",
    ),
    "larger": Run(
        shipped=True,
        result=f"{LARGER}/scores.json",
        command=f"poet upscale-eval --checkpoint={{pretrained}}/{LARGER} --set=source --set=natural --out=OUT "
        "--gin.EVAL.source=LARGE_CLIPS --gin.EVAL.split=test --gin.EVAL.clips=16",
    ),
}

# --------------------------------------------------------------------------------------------- readers


def rows_of(contents: Contents, table: str) -> list[Contents]:
    return contents["metrics"][table]["rows"]


def one(rows: Iterable[Contents], **named: str) -> Contents:
    """The row with these fields; LookupError where there is none."""
    for row in rows:
        if all(row[name] == value for name, value in named.items()):
            return row
    raise LookupError(f"no row of {named}: what its result skipped says why, such as a network that is not installed")


def bounded(row: Contents, name: str) -> Found:
    return Found(value=row[name], low=row.get(f"{name}_low"), high=row.get(f"{name}_high"))


def least_gain(contents: Contents) -> Found:
    """Of all conditions, that of the smallest lower bound; nats a token."""
    tasks = contents["condition_gain"].values()
    gains = [each["nats_per_token"] for task in tasks for condition in task.values() for each in condition.values()]
    return Found(**min(gains, key=lambda each: each["low"]))


def of_clips(task: str, metric: str) -> Callable[[Contents], Found]:
    """A figure of the benchmark."""

    def read(contents: Contents) -> Found:
        row = one(contents["tasks"][task]["rows"], candidate="submission", metric=metric)
        return Found(value=row["value"], low=row["low"], high=row["high"])

    return read


def ahead(task: str, metric: str, candidate: str, field: str = "difference") -> Callable[[Contents], Found]:
    """By how much the submission is ahead of another one of the benchmark."""

    def read(contents: Contents) -> Found:
        return bounded(one(contents["tasks"][task]["rows"], candidate=candidate, metric=metric), field)

    return read


def over_repeating(frames: str) -> Callable[[Contents], Found]:
    def read(contents: Contents) -> Found:
        rows = rows_of(contents, "frame_prediction")
        return Found(value=one(rows, frames=frames)["psnr_db"] - one(rows, frames="repeat")["psnr_db"])

    return read


def of_set(contents: Contents, metric: str) -> Contents:
    """The row of `poet score` with a metric."""
    return one((row for table in contents["metrics"].values() for row in table["rows"]), metric=metric)


def scored(metric: str) -> Callable[[Contents], Found]:
    def read(contents: Contents) -> Found:
        row = of_set(contents, metric)
        return Found(value=row["value"], low=row["from"], high=row["to"])

    return read


def times_chance(contents: Contents) -> Found:
    row = of_set(contents, "text_recall_among_all_at_10")
    value, low, high = (row[field] / row["chance"] for field in ("value", "from", "to"))
    return Found(value=value, low=low, high=high)


def beside_x265(field: str) -> Callable[[Contents], Found]:
    """The tokenizer's figure less that of x265 at the same rate."""

    def read(contents: Contents) -> Found:
        rows = rows_of(contents, "renderings")
        codec = next(row for row in rows if row["codec"].startswith("x265"))
        return Found(value=one(rows, codec="tokenizer")[field] - codec[field])

    return read


def round_trip(contents: Contents) -> Found:
    return bounded(rows_of(contents, "round_trips")[0], "round_trip_match")


def beside_bicubic(field: str) -> Callable[[Contents], Found]:
    def read(contents: Contents) -> Found:
        rows = [row for row in rows_of(contents, "upscalers") if row["set"] == "source"]
        own = next(row for row in rows if row["upscaler"].startswith("super-resolution"))
        return Found(value=own[field] - one(rows, upscaler="bicubic")[field])

    return read


def speech_pesq(contents: Contents) -> Found:
    """With all levels."""
    rows = [row for row in contents["sets"]["speech"]["rows"] if row["codec"].startswith("tokenizer")]
    return Found(value=max(rows, key=lambda row: row["kbit/s"])["PESQ-wb"])


SHUFFLED = "shuffled submission"
BARS: Mapping[str, tuple[Bar, ...]] = {
    "conditions": (
        Bar(
            "the smallest gain of the right condition over another clip's, nats a token", least_gain, least=0, digits=4
        ),
    ),
    "arenas": (
        Bar("text → place", of_clips("text_to_video", "place_agreement"), least=0.85),
        Bar("first frame → place", of_clips("image_to_video", "place_agreement"), least=0.85),
        Bar("text → side of the turn", of_clips("text_to_video", "turn_agreement"), least=0.75),
        Bar("text → shot or none", of_clips("text_to_video", "shot_seen"), least=0.75),
        Bar("hole, over a smooth fill, dB", ahead("inpainting", "hole_psnr_db", "smooth fill"), least=3),
        Bar("interpolation, over a crossfade, dB", ahead("frame_interpolation", "psnr_db", "crossfade"), least=0),
        Bar(
            "stylization: flow above shuffled pairs, deviations",
            ahead("stylization", "flow_agreement", SHUFFLED, "deviations"),
            least=3,
        ),
        Bar(
            "stylization: edges of depth above shuffled pairs, deviations",
            ahead("stylization", "depth_edge_agreement", SHUFFLED, "deviations"),
            least=3,
        ),
        Bar("video → sound: beginnings of shots, F1", of_clips("video_to_audio", "shot_onset_f1"), least=0.5),
        Bar("captions: place and action", of_clips("captioning", "caption_place_and_motion"), least=0.8),
    ),
    "texts": (Bar("recall of texts at 10, times chance", times_chance, least=15, digits=1),),
    "frames": (
        Bar("one sample, over repeating the last frame, dB", over_repeating("generated"), least=1.5),
        Bar("the mean of six samples, over it, dB", over_repeating("mean of 6 samples"), least=3),
    ),
    "films": (
        Bar(f"{FILMS} films of {SECONDS} s: fraction that collapses", scored("collapse_rate"), most=0),
        Bar("their drift, dB", scored("drift_db"), most=3),
    ),
    "larger": (
        Bar("super-resolution, PSNR over bicubic, dB", beside_bicubic("psnr_db"), least=0),
        Bar("its LPIPS-HED less bicubic's", beside_bicubic("LPIPS-HED"), most=0, digits=3),
        Bar("its flicker less bicubic's, levels", beside_bicubic("flicker_levels"), most=0),
    ),
    "pictures": (
        Bar("video tokenizer, PSNR less x265's at its rate, dB", beside_x265("psnr_db"), least=-1.5),
        Bar("its LPIPS-HED less x265's", beside_x265("LPIPS-HED"), most=0, digits=3),
        Bar("its codes that survive a round trip", round_trip, least=0.66),
    ),
    "sounds": (Bar("audio tokenizer, speech, PESQ-wb", speech_pesq, least=2.0),),
}

# ------------------------------------------------------------------------------------------------ page


def page(results: Mapping[str, Contents]) -> str:
    reached = [(run, bar, bar.read(results[run])) for run, bars in BARS.items() for bar in bars]
    met = sum(bar.met(found) for _, bar, found in reached)
    lines = [
        "# What weights that ship should reach",
        "",
        f"The weights of this folder reach {met} of {len(reached)}. On the test split of Arenas-AV, whose seeds no "
        "training and no choice of a checkpoint saw; the first row is on the validation split, sound on the sets of "
        "its card. Intervals hold 95 %. Made by `python data/pretrained/bars.py --clips=CLIPS --work=DIR` "
        "(`launch/figures.sh bars`).",
        "",
        "| what | bar | reached | interval | met | command |",
        "|---|---|---|---|---|---|",
        *(_line(*each) for each in reached),
        "",
        "## Commands",
        "",
        *(f"- **{name}**: {_shown(run)}" for name, run in RUNS.items()),
    ]
    return "\n".join(lines) + "\n"


def _line(run: str, bar: Bar, found: Found) -> str:
    interval = "" if found.low is None else f"[{found.low:.{bar.digits}f}, {found.high:.{bar.digits}f}]"
    met = "yes" if bar.met(found) else "**no**"
    return f"| {bar.asked} | {bar.text} | {found.value:.{bar.digits}f} | {interval} | {met} | {run} |"


def _shown(run: Run) -> str:
    text = run.command.format(pretrained="data/pretrained", clips="CLIPS", work="DIR")
    return ", then ".join(f"`{line}`" for line in text.splitlines())


def results(places: Places) -> dict[str, Contents]:
    """The contents of every result, made where DIR lacks it."""
    found = {}
    for name, run in RUNS.items():
        file = (HERE if run.shipped else places.work) / run.result
        if not file.is_file():
            run.make(places) if run.make else poet(shlex.join(places.filled(run.command.removeprefix("poet "))))
        found[name] = json.loads(file.read_text(encoding="utf-8"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", required=True, help="Arenas-AV, a folder .../arenas_av/1.0.0")
    parser.add_argument("--work", required=True, type=Path, help="folder of the results")
    options = parser.parse_args()
    PAGE.write_text(page(results(Places(clips=options.clips, work=options.work))), encoding="utf-8")


if __name__ == "__main__":
    main()
