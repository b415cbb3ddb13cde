"""`poet long`: a film of any length."""

from __future__ import annotations

import argparse
import dataclasses

from poet.cli import command, films


def _arguments(parser: argparse.ArgumentParser) -> None:
    films.arguments(parser)
    add = parser.add_argument
    add(
        "--out",
        required=True,
        metavar="FOLDER",
        help="folder of the film; a film that an earlier run began there is continued",
    )
    add(
        "--prompt",
        action="append",
        default=[],
        metavar="[SECONDS:]TEXT",
        help="text (repeatable), for the whole film or from a time on, as '3: it begins to rain'",
    )
    add(
        "--seconds",
        type=command.number(float, above=0, at_most=864_000),
        default=10.0,
        help="length of the film, its opening included; a later run may ask for more",
    )
    add("--clip", default="", metavar="FILE", help="picture or video that opens the film, all of it")
    add(
        "--camera",
        default="",
        metavar="MOVE",
        help="movement of the camera: pan left, tilt up, zoom in, dolly out, orbit left, static, handheld, ...",
    )
    add("--sound_prompt", default="", help="separate text for the sound; needs --sound")


def _run(args: argparse.Namespace) -> None:
    from poet.sampling.films import long

    wanted = long.LongFilm(
        prompts=tuple(args.prompt),
        seconds=args.seconds,
        opening=args.clip,
        camera=args.camera,
        sound_prompt=args.sound_prompt,
        negative=args.negative_prompt,
    )
    wanted.check()
    studio = films.open_studio(args)
    wanted = wanted.replace(
        suffix=studio.prompt.suffix, negative=studio.prompt.negative_for(bool(args.prompt)), seed=studio.sample.seed
    )
    films.make(studio, "long", dataclasses.asdict(wanted), args.out)


COMMAND = command.Command(
    summary="Make a film of any length, clip after clip.",
    run=_run,
    arguments=_arguments,
    settings=command.OVERRIDES,
    example='--checkpoint=data/pretrained/lm_arenas --prompt="the player walks forward" --prompt="6: the '
    'player turns left" '
    "--seconds=12 --out=long",
    place=92,
)
