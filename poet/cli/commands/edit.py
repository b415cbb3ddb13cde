"""`poet edit`: clip by clip, a choice among candidates."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from poet.cli import command, films


def _arguments(parser: argparse.ArgumentParser) -> None:
    films.arguments(parser)
    add = parser.add_argument
    add(
        "--session",
        required=True,
        metavar="FOLDER",
        help="new folder, or one of a session to resume; it keeps all candidates",
    )
    add("--clip", default="", metavar="FILE", help="picture or video that opens a new session")
    add("--count", type=command.number(int, at_least=1, at_most=64), default=4, help="candidates at a time")
    add(
        "--do",
        action="append",
        default=[],
        metavar="LINE",
        help="line to execute before those of the terminal (repeatable); `--do=help` lists the commands",
    )
    add("--batch", action="store_true", help="stop after the lines of --do")


def _run(args: argparse.Namespace) -> None:
    from poet.sampling.films import edit, terminal
    from poet.sampling.films.long import read_opening

    folder = Path(args.session).expanduser()
    studio = films.open_studio(args)
    made = {"sample": studio.sample, "made_by": studio.made_by}
    if (folder / edit.SESSION).exists():
        session = edit.Session.open(folder, studio.sampler, **made)
    else:
        clip = studio.resolved.spec.clip
        video, sound = read_opening(args.clip, clip, has_audio=args.sound) if args.clip else (None, None)
        session = edit.Session.create(folder, studio.sampler, video=video, sound=sound, seed=studio.sample.seed, **made)
    record = lambda files: studio.recorded("edit", session.request, folder, files)
    desk = terminal.Terminal(session, args.count, studio.prompt, record)
    with session.hold():
        desk.run([*args.do, *(["quit"] if args.batch else [])], print)
        if not args.batch:
            desk.run(_typed(), print)


def _typed() -> Iterator[str]:
    """Lines of the terminal, or of what is piped in."""
    prompts = sys.stdin.isatty()
    if prompts:
        print("help lists the commands")
    while True:
        if prompts:
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line


COMMAND = command.Command(
    summary="Edit interactively: choose among candidates, continue, undo, branch.",
    run=_run,
    arguments=_arguments,
    settings=command.OVERRIDES,
    example='--checkpoint=data/pretrained/lm_arenas --session=session --do="say the player walks forward | '
    'the player turns left" '
    "--do=1 --do=film --batch",
    place=96,
)
