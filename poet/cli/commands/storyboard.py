"""`poet storyboard`: one film from a list of scenes."""

from __future__ import annotations

import argparse

from poet.cli import command, films


def _arguments(parser: argparse.ArgumentParser) -> None:
    films.arguments(parser)
    add = parser.add_argument
    add(
        "--scenes",
        required=True,
        metavar="FILE",
        help="YAML with prompt, seconds, camera, transition (cut, continue), frame, clip, sound_prompt of "
        "each scene; or a text with a prompt in each line, for five seconds",
    )
    add(
        "--out",
        required=True,
        metavar="FOLDER",
        help="folder of the film; unchanged scenes of an earlier run are reused",
    )


def _run(args: argparse.Namespace) -> None:
    from poet.sampling.films import storyboard
    from poet.spec import to_dict

    board = storyboard.read(args.scenes)
    studio = films.open_studio(args, sound=args.sound or board.sound)
    board = board.replace(
        suffix=board.suffix or studio.prompt.suffix,
        negative=board.negative or studio.prompt.negative,
        seed=board.seed if args.seed is None else args.seed,
    )
    films.make(studio, "storyboard", to_dict(board), args.out)


COMMAND = command.Command(
    summary="Make a film from a storyboard.",
    run=_run,
    arguments=_arguments,
    settings=command.OVERRIDES,
    example="--checkpoint=data/pretrained/lm_arenas --scenes=data/stories/arenas.yaml --style=arenas --out=story",
    place=94,
)
