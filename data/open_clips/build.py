"""Builds Open-Clips: python data/open_clips/build.py --data_dir=DIR [--size=64] [--seed=0] ..."""

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
        help="folder of TFDS data sets; this one goes to open_clips/1.0.0 in it",
    )
    parser.add_argument("--size", type=int, default=64, help="side of a frame, 16 to 256")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--garment_clips", type=int, default=600, help="clips of moving Fashion-MNIST")
    parser.add_argument(
        "--packages_dir",
        default="",
        help="folder that keeps downloaded packages, about 230 MB (default: DATA_DIR/open_clips_packages)",
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
    from open_clips_dataset_builder import Builder

    builder = Builder(
        data_dir=str(options.data_dir),
        size=options.size,
        seed=options.seed,
        garment_clips=options.garment_clips,
        packages_dir=options.packages_dir,
        on_clip=lambda: bar.update(),
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
    with tqdm.tqdm(unit="clip", desc="open_clips", mininterval=interval_s) as bar:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(download_mode=mode))
    print(
        f"{builder.data_path}: {builder.info.splits['train'].num_examples} clips, "
        f"{builder.info.dataset_size / 2**20:.0f} MiB"
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
