"""Builds Open-Sounds: python data/open_sounds/build.py --data_dir=DIR [--seed=0] ..."""

from __future__ import annotations

import argparse
import pathlib
import sys


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data_dir",
        required=True,
        type=pathlib.Path,
        help="folder of TFDS data sets; this one goes to open_sounds/1.0.0 in it",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of recordings and of the splits")
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="PACKAGE", help="packages to leave out, such as festvox-ru (179 MB)"
    )
    parser.add_argument("--workers", type=int, default=1, help="threads that decode; the set does not depend on it")
    parser.add_argument(
        "--packages_dir",
        default="",
        help="folder that keeps downloaded packages, about 630 MB (default: DATA_DIR/open_sounds_packages)",
    )
    parser.add_argument("--overwrite", action="store_true", help="build again over a finished set")
    return parser.parse_args(arguments)


def build(options: argparse.Namespace) -> None:
    """Builds the set unless one with the same settings is there.

    Raises:
      ValueError: a setting is out of range, the folder holds a set with other settings, or a
        package cannot be had.
    """
    import tensorflow_datasets as tfds
    import tqdm
    from open_sounds_dataset_builder import Builder

    builder = Builder(
        data_dir=str(options.data_dir),
        seed=options.seed,
        without=options.without,
        workers=options.workers,
        packages_dir=options.packages_dir,
        on_excerpt=lambda: bar.update(),
    )
    present = builder.data_path.exists()
    if present and not options.overwrite:
        settings = dict(tfds.builder_from_directory(str(builder.data_path)).info.metadata or {})
        if settings != builder.settings:
            raise ValueError(
                f"{builder.data_path} holds a set with other settings: {settings}, "
                f"asked for {builder.settings}; give another --data_dir, or "
                "--overwrite"
            )
        print(f"{builder.data_path} is already built with these settings; nothing to do")
        return
    mode = tfds.GenerateMode.REUSE_CACHE_IF_EXISTS if present else tfds.GenerateMode.REUSE_DATASET_IF_EXISTS
    tfds.disable_progress_bar()
    interval_s = 0.5 if sys.stderr.isatty() else 10
    with tqdm.tqdm(unit="excerpt", desc="open_sounds", mininterval=interval_s) as bar:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(download_mode=mode))
    splits = builder.info.splits
    counts = ", ".join(f"{name} {splits[name].num_examples}" for name in splits)
    dropped = ", ".join(f"{count} {why}" for why, count in builder.dropped.items() if count)
    print(
        f"{builder.data_path}: {counts} excerpts, {builder.info.dataset_size / 2**20:.0f} MiB"
        f"; left out: {dropped or 'nothing'}"
    )


def main() -> int:
    try:
        build(parse_arguments())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
