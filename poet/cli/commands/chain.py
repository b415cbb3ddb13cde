"""`poet chain`: jobs, each of which takes the result of the one before it."""

from __future__ import annotations

import argparse

from poet.cli import command, films


def _arguments(parser: argparse.ArgumentParser) -> None:
    films.arguments(parser)
    add = parser.add_argument
    add(
        "--jobs",
        required=True,
        metavar="FILE",
        help="YAML, a list of jobs such as '- {task: image_to_video, prompt: it begins to rain}'; a task may be `long`",
    )
    add("--clip", default="", metavar="FILE", help="picture or video that the first job takes")
    add(
        "--out",
        required=True,
        metavar="FOLDER",
        help="folder with a folder for each job; results of an earlier run are reused",
    )


def _run(args: argparse.Namespace) -> None:
    from poet.sampling.films import chain
    from poet.spec import to_dict

    request = {"jobs": [to_dict(job) for job in chain.read(args.jobs)], "clip": args.clip}
    films.make(films.open_studio(args), "chain", request, args.out)


COMMAND = command.Command(
    summary="Run a chain of jobs, each on the result of the one before it.",
    run=_run,
    arguments=_arguments,
    settings=command.OVERRIDES,
    example="--checkpoint=data/pretrained/lm_arenas --jobs=data/stories/chain.yaml --out=chain",
    place=98,
)
