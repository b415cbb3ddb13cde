"""Builds Freedoom-AV: python data/freedoom_av/build.py --data_dir=DIR [--size=64] [--seed=0] ..."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import time

CLIP_DURATION_S = 17 / 8


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True, type=pathlib.Path,
                        help="folder of TFDS data sets; this one goes to freedoom_av/1.0.0 in it")
    parser.add_argument("--size", type=int, default=64, help="side of a frame: 64, 128 or 256")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips_per_map", type=int, help="clips of each map, for every split")
    for split, clips in (("train", 60), ("validation", 50), ("test", 20)):
        parser.add_argument(f"--{split}_clips_per_map", type=int, default=None,
                            help=f"clips of each {split} map (default {clips})")
        parser.set_defaults(**{f"{split}_default": clips})
    parser.add_argument("--max_maps", type=int, help="use the first so many maps of each split")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no_sound", action="store_true", help="leave the sound silent")
    parser.add_argument("--overwrite", action="store_true",
                        help="rebuild a finished set that has other settings")
    return parser.parse_args(arguments)


def clips_per_map(options: argparse.Namespace) -> dict[str, int]:
    """The builder's clip counts: a split's own flag, else --clips_per_map, else the default."""
    counts = {}
    for split in ("train", "validation", "test"):
        candidates = (getattr(options, f"{split}_clips_per_map"), options.clips_per_map,
                      getattr(options, f"{split}_default"))
        counts[f"{split}_clips_per_map"] = next(n for n in candidates if n is not None)
    return counts


def finished_settings(folder: pathlib.Path) -> dict | None:
    """Settings of the finished set in `folder`, or None if there is none."""
    import tensorflow_datasets as tfds
    if not (folder / "dataset_info.json").exists():
        return None
    return dict(tfds.builder_from_directory(str(folder)).info.metadata or {})


def build(options: argparse.Namespace) -> None:
    """Renders the set unless it is there with the same settings.

    Raises:
      ValueError: a setting is out of range, or the folder holds a set with other settings.
      ImportError: ViZDoom is missing.
    """
    import tqdm
    from freedoom_av_dataset_builder import Builder, load_sibling
    bar = tqdm.tqdm(unit="clip", desc="freedoom_av",
                    mininterval=0.5 if sys.stderr.isatty() else 10)
    builder = Builder(data_dir=str(options.data_dir), size=options.size, seed=options.seed,
                      max_maps=options.max_maps, sound=not options.no_sound,
                      workers=options.workers, on_clip=bar.update, **clips_per_map(options))
    if not options.no_sound and not builder.settings["has_sound"]:
        print("WARNING: libopenal.so.1 cannot be loaded, so EVERY CLIP WILL BE SILENT. For sound: "
              "apt-get install libopenal1 (Debian), then build again.", file=sys.stderr)
    folder = pathlib.Path(builder.data_path)
    present = finished_settings(folder)
    if present == builder.settings:
        bar.close()
        print(f"{folder} is already built with these settings; nothing to do")
        return
    if present is not None and not options.overwrite:
        raise ValueError(f"{folder} holds a set with other settings: {present}, asked for "
                         f"{builder.settings}; give another --data_dir, or --overwrite")
    load_sibling("workers").check_engine()
    bar.reset(total=builder.clip_count())
    _prepare(builder, overwrite=present is not None)
    bar.close()


def _prepare(builder, overwrite: bool) -> None:
    import tensorflow_datasets as tfds
    start = time.perf_counter()
    mode = (tfds.GenerateMode.REUSE_CACHE_IF_EXISTS if overwrite
            else tfds.GenerateMode.REUSE_DATASET_IF_EXISTS)
    tfds.disable_progress_bar()
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(download_mode=mode))
    clips = sum(split.num_examples for split in builder.info.splits.values())
    print(f"{builder.data_path}: {clips} clips, {clips * CLIP_DURATION_S / 60:.1f} minutes, "
          f"{builder.info.dataset_size / 2**20:.0f} MiB, "
          f"made in {time.perf_counter() - start:.0f} s")


def main() -> int:
    try:
        build(parse_arguments())
    except (ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
