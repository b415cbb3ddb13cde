"""Builds Freedoom-AV: python data/freedoom_av/build.py --data_dir=DIR [--size=64] [--seed=0] ..."""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys

sys.path.insert(1, str(pathlib.Path(__file__).resolve().parents[1]))  # game_clips

from game_clips import build_tool  # noqa: E402

CLIPS = {"train": 60, "validation": 50, "test": 20}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    return build_tool.parser(__doc__, "freedoom_av", "map", CLIPS).parse_args(arguments)


def build(options: argparse.Namespace) -> None:
    """Renders the set unless it is there; see `build_tool.build`."""
    from freedoom_av_dataset_builder import Builder

    counts = build_tool.clip_counts(options, "map", CLIPS)
    build_tool.build(
        functools.partial(
            Builder,
            data_dir=str(options.data_dir),
            size=options.size,
            seed=options.seed,
            max_maps=options.max_maps,
            sound=not options.no_sound,
            workers=options.workers,
            **{f"{split}_clips_per_map": count for split, count in counts.items()},
        ),
        options,
    )


if __name__ == "__main__":
    sys.exit(build_tool.exit_code(lambda: build(parse_arguments())))
