"""Flags of the commands of films: the model, its prompts, and how a clip continues the film."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poet.cli import command

if TYPE_CHECKING:
    from poet.runs.run import Run
    from poet.sampling.films.studio import Studio
    from poet.sampling.record import Replay
    from poet.tasks.resolved import Resolved


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of a command that makes films."""
    command.checkpoint_arguments(parser)
    add = parser.add_argument
    add("--sound", action="store_true", help="with sound")
    command.prompt_arguments(parser)
    add(
        "--context",
        type=command.number(int, at_least=0, at_most=4096),
        default=0,
        metavar="N",
        help="latent frames that condition each new clip (default 0: those of the film's last second)",
    )
    add(
        "--recode",
        action="store_true",
        help="encode the last frames of the film anew for each clip, as the paper does; by default the sampled "
        "codes are carried over",
    )
    add("--sink", action="store_true", help="the first conditioning frame of each clip is the first frame of the film")
    command.sample_arguments(parser)


def open_studio(args: argparse.Namespace, *, sound: bool | None = None) -> Studio:
    """The studio of the flags of `arguments`; `sound` replaces --sound unless None.

    Raises UserError: no checkpoint, or unknown settings.
    """
    from poet.sampling.films.studio import Studio

    settings = command.generation_bindings(args)
    if args.negative_prompt:
        settings.append(f"PROMPT.negative={args.negative_prompt!r}")
    has_audio = args.sound if sound is None else sound
    ways = {"has_audio": has_audio, "recode": args.recode, "sink": args.sink, "context": args.context}
    return _quietly(Studio(*command.open_checkpoint(args, settings), settings, ways))


def studio_of(run: Run, resolved: Resolved, settings: Sequence[str], ways: Mapping[str, Any]) -> Studio:
    """The studio of an open checkpoint, as `Studio` takes it."""
    from poet.sampling.films.studio import Studio

    return _quietly(Studio(run, resolved, settings, ways))


def make(studio: Studio, kind: str, request: Mapping[str, Any], out: str) -> None:
    """Makes a film, see `Studio.make`, and prints its files."""
    for path in studio.make(kind, request, Path(out).expanduser()):
        print(path)


def replay(args: argparse.Namespace, found: Replay) -> tuple[list[Path], Path]:
    """Makes the film of a record again in --out; the files, and that folder.

    Raises UserError: other weights or inputs than the record's, or a folder that holds something.
    """
    from poet.runs import outputs
    from poet.sampling import command as generation
    from poet.sampling import record
    from poet.sampling.films.studio import Studio

    checkpoint, resolved = command.open_checkpoint(args, list(found.settings))
    record.check(found, checkpoint)
    folder = outputs.claim(args.out, outputs.GENERATION, inputs=[checkpoint.folder, *found.made_with["inputs"]]).final
    resolved = generation.as_recorded(resolved, found)
    studio = _quietly(Studio(checkpoint, resolved, found.settings, found.made_with["ways"]))
    return studio.make(found.film, found.request, folder), folder


def _quietly(studio: Studio) -> Studio:
    logging.getLogger("poet.sampling.engine").setLevel(logging.WARNING)  # A film has its own line for each clip.
    return studio
