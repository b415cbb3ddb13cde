"""What holes are best filled with: the share of given codes that stay the clip's own, by `CONDITIONING.fill`.

    python tests/benchmarks/bench_fills.py --source=DATA/arenas_av/1.0.0 --tokenizer=data/pretrained/magvit_v2_64x8
    python tests/benchmarks/bench_fills.py --page        # results/fills/*.json -> poet/conditioning/fills.md

One run for each tokenizer, on clips spread over the source's validation split; the other conditions' round trips
are those of the default fill.
"""

from __future__ import annotations

import argparse
import json
import pathlib

HERE = pathlib.Path(__file__).resolve()
RESULTS = HERE.parent / "results" / "fills"
PAGE = HERE.parents[2] / "poet" / "conditioning" / "fills.md"
FILLS = ("black", "grey", "mean", "edge", "noise")
PAINTED = ("inpainting", "outpainting")


def measure(source: str, tokenizer_folder: str, count: int) -> dict:
    """Shares of given codes kept by fill and condition, and the rows of the other conditions."""
    import numpy as np

    from poet.evaluation.video_tokenizers import condition_rows
    from poet.spec import ClipSpec, ConditioningSpec
    from poet.store.sources import open_source
    from poet.tokenizers.video.base import VideoTokenizer

    tokenizer = VideoTokenizer.load(tokenizer_folder)
    opened = open_source(source, "validation", ClipSpec(frames=17, height=64, width=64))
    places = np.linspace(0, len(opened) - 1, count).astype(int)
    items = [next(iter(opened.read(int(i), int(i) + 1))) for i in places]
    clips, depths = np.stack([item.video for item in items]), [item.depth for item in items]
    spec = ConditioningSpec()
    kept = {
        fill: {
            row["condition"]: row["given_codes_kept"]
            for row in condition_rows(tokenizer, clips, spec.replace(fill=fill), names=PAINTED)
        }
        for fill in FILLS
    }
    return {
        "tokenizer": pathlib.Path(tokenizer_folder).name,
        "bits": tokenizer.spec.bits,
        "grid": list(tokenizer.spec.grid(*clips.shape[1:4])),
        "clips": count,
        "kept": kept,
        "rows": condition_rows(tokenizer, clips, spec, depths),
    }


def page() -> None:
    """Writes the tables of all results."""
    from poet.evaluation.report.tables import format_table

    found = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]
    head = f"| tokenizer | condition | {' | '.join(FILLS)} |\n{'|---' * (2 + len(FILLS))}|\n"
    lines = [
        f"| {one['tokenizer']}, {one['bits']} bits on {tuple(one['grid'])} | {name} | "
        + " | ".join(f"{one['kept'][fill][name]:.1%}" for fill in FILLS)
        + " |\n"
        for one in found
        for name in PAINTED
    ]
    tables = "\n\n".join(f"{one['tokenizer']}:\n\n```\n{format_table(one['rows'])}\n```" for one in found)
    PAGE.write_text(
        "# What fills holes, and what is left of conditions\n\n"
        "Share of given codes that are the clip's own, by `CONDITIONING.fill` "
        f"({found[0]['clips']} validation clips of the arenas):\n\n"
        + head
        + "".join(lines)
        + "\nRound trips of every condition with the default fill (flow and "
        "depth errors are relative: at 1 nothing is left; `poet tokenizer-eval` prints the same):\n\n"
        + tables
        + "\n\nWritten by `python tests/benchmarks/bench_fills.py`.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="")
    parser.add_argument("--tokenizer", default="data/pretrained/magvit_v2_64x8")
    parser.add_argument("--name", default="", help="of the result, if not that of the folder")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args()
    if options.page:
        return page()
    found = measure(options.source, options.tokenizer, options.clips)
    found["tokenizer"] = options.name or found["tokenizer"]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{found['tokenizer']}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
