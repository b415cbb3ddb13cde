"""Builds Arenas-AV: python data/arenas_av/build.py --data_dir=DIR [--size=64] [--seed=0] ..."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Callable
from typing import Any

sys.path.insert(1, str(pathlib.Path(__file__).resolve().parents[1]))  # game_clips

from game_clips import build_tool  # noqa: E402

CLIPS = {"train": 300, "validation": 24, "test": 24}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = build_tool.parser(__doc__, "arenas_av", "arena", CLIPS)
    parser.add_argument(
        "--arena",
        action="append",
        default=[],
        dest="arenas",
        metavar="NAME",
        help="of this arena only, such as my_way_home (repeatable)",
    )
    return parser.parse_args(arguments)


def build(options: argparse.Namespace) -> None:
    """Renders the set unless it is there; see `build_tool.build`."""
    from arenas_av_dataset_builder import Builder
    from game_clips.workers import check_engine

    check_engine()
    counts = build_tool.clip_counts(options, "arena", CLIPS)

    def make(on_clip: Callable[[], Any]) -> Builder:
        builder = Builder(
            data_dir=str(options.data_dir),
            size=options.size,
            seed=options.seed,
            max_arenas=options.max_arenas,
            arenas=tuple(options.arenas),
            sound=not options.no_sound,
            workers=options.workers,
            on_clip=on_clip,
            **{f"{split}_clips_per_arena": count for split, count in counts.items()},
        )
        if builder.missing:
            print(
                f"WARNING: the installed vizdoom lacks the scenarios {', '.join(builder.missing)}; "
                "the others are rendered",
                file=sys.stderr,
            )
        return builder

    build_tool.build(make, options)


if __name__ == "__main__":
    sys.exit(build_tool.exit_code(lambda: build(parse_arguments())))
