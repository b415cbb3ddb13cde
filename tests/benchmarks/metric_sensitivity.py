"""What each metric of `poet score` does when clips are changed on purpose: a page beside the metrics.

    python data/arenas_av/build.py --data_dir=DIR
    python tests/benchmarks/metric_sensitivity.py --source=DIR/arenas_av/1.0.0 --features=DIR/vectors --write

The submission is clips of one split, changed in one way after another; the reference is clips of another split, as
they are.  Metrics of pairs compare the changed clips with themselves unchanged.  A metric reacts to a change where its
value leaves the interval of the unchanged clips.  Vectors, and the rows of each change, are kept in --features, so that a stopped run goes on.
--write puts the tables into poet/evaluation/sensitivity.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from poet import media
from poet.evaluation import features
from poet.evaluation.metrics.perceptual import distance
from poet.evaluation.metrics.pixels import blurred
from poet.evaluation.score import run, sides
from poet.evaluation.score.run import Setup
from poet.evaluation.score.sides import Clips, Item
from poet.evaluation.score.vectors import Cache
from poet.tokenizers.video import perceptual

_LOG = logging.getLogger(__name__)
PAGE = Path(__file__).resolve().parents[2] / "poet" / "evaluation" / "sensitivity.md"
BLUR_PX, NOISE_LEVELS, NOISE_SNR_DB = 2.0, 20.0, 10.0
UNCHANGED = "as they are"


# ---------------------------------------------------------------------------------------- the changes


def _blur(item: Item, rng: np.random.Generator) -> dict[str, Any]:
    return {"video": blurred(item.video, BLUR_PX)}


def _noise(item: Item, rng: np.random.Generator) -> dict[str, Any]:
    noisy = item.video + rng.normal(0, NOISE_LEVELS, item.video.shape)
    sound = item.sound.astype(np.float64)
    level = np.sqrt((sound**2).mean()) * 10 ** (-NOISE_SNR_DB / 20)
    heard = np.clip(sound + rng.normal(0, max(level, 1.0), sound.shape), -32768, 32767)
    return {"video": np.clip(np.rint(noisy), 0, 255).astype(np.uint8), "sound": heard.astype(np.int16)}


def _shuffled(item: Item, rng: np.random.Generator) -> dict[str, Any]:
    return {"video": item.video[rng.permutation(len(item.video))]}


def _reversed(item: Item, rng: np.random.Generator) -> dict[str, Any]:
    return {"video": np.ascontiguousarray(item.video[::-1]), "sound": np.ascontiguousarray(item.sound[::-1])}


def _frozen(item: Item, rng: np.random.Generator) -> dict[str, Any]:
    return {"video": np.repeat(item.video[:1], len(item.video), axis=0)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """What is done to a set: to each clip, to which clip has which sound and text, and to how many there are."""

    name: str
    each: Callable[[Item, np.random.Generator], dict[str, Any]] | None = None
    shift: int = 0
    step: int = 1


CHANGES = (
    Change(name=UNCHANGED),
    Change(name="blur", each=_blur),
    Change(name="noise", each=_noise),
    Change(name="frames shuffled", each=_shuffled),
    Change(name="time reversed", each=_reversed),
    Change(name="frozen", each=_frozen),
    # Neighbours are of one arena.
    Change(name="wrong pairs", shift=37),
    Change(name="half the clips", step=2),
)


class Changed(Clips):
    """Some clips of a set, evenly spaced, changed."""

    def __init__(self, every: Clips, count: int, change: Change) -> None:
        super().__init__(every.side, every.clip)
        read = _read(every)
        self.change, self.items = change, [read[k] for k in np.linspace(0, len(read) - 1, count).astype(int)]

    def __len__(self) -> int:
        return len(self.items)

    def some(self, place: int) -> list[Item]:
        return [item for item in self.items if item.place == place]

    def __iter__(self) -> Iterator[Item]:
        every = self.items
        for index in range(0, len(every), self.change.step):
            item, other = every[index], every[(index + self.change.shift) % len(every)]
            item = dataclasses.replace(item, sound=other.sound, caption=other.caption)
            if self.change.each:
                rng = np.random.default_rng([0, index])
                item = dataclasses.replace(item, **self.change.each(item, rng))
            yield item


@functools.lru_cache(maxsize=2)
def _read(every: Clips) -> list[Item]:
    """The clips of a split, which is read in order, and once."""
    return list(every)


# ------------------------------------------------------------------------------------------ the page


def measured(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Change -> metric -> its row of `poet score`."""
    split, other = args.splits.split(",")
    one, two = (sides.open_side("--source", args.source, name) for name in (split, other))
    clip, _ = sides.clip_of([one, two], sides.Format(frames=0, height=0, width=0, rate_hz=args.rate_hz), False)
    networks = [features.load(name) for name in features.NETWORKS]
    sets = Setup(networks=networks)
    extra = [distance(perceptual.load(args.perceptual))] if args.perceptual else []
    pairs = Setup(networks=(), extra=extra, pairs=True)
    cache, found = Cache(folder=Path(args.features)), {}
    every, others = Clips(one, clip), Clips(two, clip)
    plain = Changed(others, args.clips, CHANGES[0])
    for change in (change for change in CHANGES if change.name in args.changes or not args.changes):
        kept = cache.folder / f"{args.splits}-{args.clips}-{change.name}.json".replace(" ", "_")
        if not kept.exists():
            _LOG.info("%s", change.name)
            results = [run.evaluate(Changed(every, args.clips, change), plain, sets, cache, [])]
            as_it_was = Changed(every, args.pairs, CHANGES[0])
            results.append(run.evaluate(Changed(every, args.pairs, change), as_it_was, pairs, cache, []))
            media.write_text(kept, json.dumps(_rows(results)))
        found[change.name] = json.loads(kept.read_text())
    return found


def _rows(results: list[Mapping[str, Any]]) -> dict[str, Any]:
    tables = [(0, "sets"), (0, "clips"), (1, "pairs"), (1, "sounds")]
    return {row["metric"]: row for k, table in tables for row in results[k]["metrics"].get(table, {"rows": ()})["rows"]}


def page(found: Mapping[str, Mapping[str, Any]], args: argparse.Namespace) -> str:
    """Markdown: a row for each metric, a column for each change; what leaves the interval is bold."""
    plain = found[UNCHANGED]
    lines = [f"| metric | {' | '.join(found)} |", f"|---|{'---|' * len(found)}"]
    for name, row in plain.items():
        cells = [_cell(found[change].get(name), row, change == UNCHANGED) for change in found]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any] | None, plain: Mapping[str, Any], first: bool) -> str:
    if row is None or row["value"] is None:
        return "–"
    text = f"{row['value']:.3g}"
    if first:
        return f"{text} ({plain['from']:.3g}..{plain['to']:.3g})" if plain["from"] is not None else text
    return text if plain["from"] is None or plain["from"] <= row["value"] <= plain["to"] else f"**{text}**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--source", required=True, help="a TFDS folder, or a folder of clips with two splits")
    add("--splits", default="test,validation", help="of the submission and of the reference")
    add("--rate_hz", type=float, default=8.0, help="frames a second, where nothing says it")
    add("--perceptual", default="vgg_hed", help="network of the distance of pairs, '' for none")
    add("--clips", type=int, default=264, help="of each side")
    add("--pairs", type=int, default=64, help="clips whose pairs are compared, which takes longer")
    add(
        "--change",
        action="append",
        default=[],
        dest="changes",
        help="only this one (repeatable), to share the work out",
    )
    add("--features", default="", help="where vectors and the rows of each change are kept; default: nowhere")
    add("--write", action="store_true", help=f"put the table into {PAGE.name}")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    with tempfile.TemporaryDirectory() as folder:
        args.features = args.features or folder
        found = measured(args)
    table = page(found, args)
    print(table)
    if args.write:
        text = PAGE.read_text()
        begin, end = "<!-- table: begin -->", "<!-- table: end -->"
        before, after = text.split(begin)[0], text.split(end)[1]
        split, other = args.splits.split(",")
        said = f"{args.clips} clips of split {split} against {args.clips} of {other}; pairs of {args.pairs} clips."
        PAGE.write_text(f"{before}{begin}\n{said}\n\n{table}\n{end}{after}")


if __name__ == "__main__":
    main()
