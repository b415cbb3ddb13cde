"""`poet leaks`: are clips copies of training clips?"""

from __future__ import annotations

import argparse

from poet.cli import command
from poet.runs import outputs

RESULT, TEXT = "leaks.json", "leaks.txt"
# Pairs that are written as pictures.
SHOWN = 8


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("submission", metavar="SUBMISSION", help="a folder of clips, or of tar shards, or a TFDS folder")
    add("--split", default="", help="of the submission; default: its only one")
    add("--training", required=True, metavar="FOLDER", help="such a folder, of what the model was trained on")
    add("--training_split", default="", help="default: its only one")
    add("--heldout", required=True, metavar="FOLDER", help="clips like those of the training set that are not in it")
    add("--heldout_split", default="", help="default: its only one")
    add("--rate_hz", type=command.number(float, at_least=0, at_most=1000), default=0.0, help="where no file states it")
    command.out_argument(parser)


def _run(args: argparse.Namespace) -> None:
    """Writes leaks.json, leaks.txt, and strips of the nearest pairs, and prints the text."""
    from poet import media
    from poet.evaluation import leaks, record
    from poet.evaluation.score import sides

    names = ("submission", "training", "heldout")
    output = outputs.claim_of(args, outputs.LEAKS, [getattr(args, name) for name in names])
    splits = (args.split, args.training_split, args.heldout_split)
    flags = ("SUBMISSION", "--training", "--heldout")
    named = [(flag, getattr(args, name), split) for flag, name, split in zip(flags, names, splits)]
    wanted = sides.Format(frames=0, height=0, width=0, rate_hz=args.rate_hz)
    (submission, training, heldout), _, done = sides.open_all(named, wanted, fit=True)
    with output:
        found = leaks.search(submission, training, heldout) | {"fitted": done}
        record.write(output.folder / RESULT, found)
        media.write_text(output.folder / TEXT, leaks.text(found) + "\n")
        for rank, row in enumerate(found["clips"][:SHOWN]):
            for name, clips, place in zip(("sample", "training"), (submission, training), row["places"]):
                (item,) = clips.some(place)
                media.write_png_strip(output.folder / f"{rank}_{name}.png", item.video, max(1, len(item.video) // 8))
    print(leaks.text(found))


COMMAND = command.Command(
    summary="Find the training clips that clips are nearest to.",
    run=_run,
    arguments=_arguments,
    settings=command.NONE,
    example="samples --training=train_clips --heldout=test_clips --out=leaks",
    place=86,
)
