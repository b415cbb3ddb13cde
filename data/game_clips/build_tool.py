"""The command line of a recipe of game clips: flags, a set that is there already, the build itself."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

CLIP_DURATION_S = 17 / 8


def parser(description: str, name: str, unit: str, clips: Mapping[str, int]) -> argparse.ArgumentParser:
    """The flags that all recipes have.

    Args:
      name: the data set's, such as `freedoom_av`.
      unit: what a split is made of, such as `map`.
      clips: split -> default number of clips of each unit.
    """
    made = argparse.ArgumentParser(description=description)
    add = made.add_argument
    add(
        "--data_dir",
        required=True,
        type=pathlib.Path,
        help=f"folder of TFDS data sets; this one goes to {name}/1.0.0 in it",
    )
    add("--size", type=int, default=64, help="side of a frame: 64, 128 or 256")
    add("--seed", type=int, default=0)
    add(f"--clips_per_{unit}", type=int, help=f"clips of each {unit}, for every split")
    for split, count in clips.items():
        add(
            f"--{split}_clips_per_{unit}",
            type=int,
            default=None,
            help=f"clips of each {split} {unit} (default {count})",
        )
    add(f"--max_{unit}s", type=int, help=f"use the first so many {unit}s of each split")
    add("--workers", type=int, default=os.cpu_count() or 1)
    add("--no_sound", action="store_true", help="leave the sound silent")
    add("--overwrite", action="store_true", help="rebuild a finished set that has other settings")
    return made


def clip_counts(options: argparse.Namespace, unit: str, clips: Mapping[str, int]) -> dict[str, int]:
    """Split -> clips of each unit: the split's own flag, else that for every split, else `clips`."""
    given = vars(options)
    return {
        split: next(n for n in (given[f"{split}_clips_per_{unit}"], given[f"clips_per_{unit}"], count) if n is not None)
        for split, count in clips.items()
    }


def finished_settings(folder: pathlib.Path) -> dict | None:
    """Settings of the finished set in `folder`, or None if there is none."""
    import tensorflow_datasets as tfds

    if not (folder / "dataset_info.json").exists():
        return None
    return dict(tfds.builder_from_directory(str(folder)).info.metadata or {})


def build(make_builder: Callable[..., Any], options: argparse.Namespace) -> None:
    """Renders the set unless it is there with the same settings.

    Args:
      make_builder: `on_clip` -> the recipe's builder.

    Raises:
      ValueError: a setting is out of range, or the folder holds a set with other settings.
      ImportError: ViZDoom is missing.
    """
    import tqdm

    from game_clips import workers

    with tqdm.tqdm(unit="clip", mininterval=0.5 if sys.stderr.isatty() else 10) as bar:
        builder = make_builder(on_clip=bar.update)
        bar.set_description(builder.name)
        if not options.no_sound and not builder.settings["has_sound"]:
            print(
                "WARNING: libopenal.so.1 cannot be loaded, so EVERY CLIP WILL BE SILENT. For "
                "sound: apt-get install libopenal1 (Debian), then build again.",
                file=sys.stderr,
            )
        folder = pathlib.Path(builder.data_path)
        present = finished_settings(folder)
        if present == builder.settings:
            print(f"{folder} is already built with these settings; nothing to do")
            return
        if present is not None and not options.overwrite:
            raise ValueError(
                f"{folder} holds a set with other settings: {present}, asked for "
                f"{builder.settings}; give another --data_dir, or --overwrite"
            )
        workers.check_engine()
        bar.reset(total=builder.clip_count())
        _prepare(builder, overwrite=present is not None)


def _prepare(builder: Any, overwrite: bool) -> None:
    import tensorflow_datasets as tfds

    start = time.perf_counter()
    mode = tfds.GenerateMode.REUSE_CACHE_IF_EXISTS if overwrite else tfds.GenerateMode.REUSE_DATASET_IF_EXISTS
    tfds.disable_progress_bar()
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(download_mode=mode))
    clips = sum(split.num_examples for split in builder.info.splits.values())
    print(
        f"{builder.data_path}: {clips} clips, {clips * CLIP_DURATION_S / 60:.1f} minutes, "
        f"{builder.info.dataset_size / 2**20:.0f} MiB, "
        f"made in {time.perf_counter() - start:.0f} s"
    )


def exit_code(work: Callable[[], None]) -> int:
    """Runs `work`; what the user can mend is one line and code 2."""
    try:
        work()
    except (ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
