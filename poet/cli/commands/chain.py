"""`poet chain`: jobs, each of which takes the result of the one before it."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

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
    from poet.films import chain
    from poet.films.long import read_opening

    jobs = chain.read(args.jobs)
    studio = films.open_studio(args)
    with_audio = studio.with_sound() if any(job.sound for job in jobs) else None
    given = chain.Made()
    if args.clip:
        video, sound = read_opening(args.clip, studio.sampler.generator.resolved.spec.clip, has_audio=args.sound)
        given = chain.Made(video=video, sound=sound)
    made = chain.Chain(studio.sampler, with_audio, studio.sample, studio.made_by, prompt=studio.prompt)
    for path in made.run(jobs, Path(args.out).expanduser(), given):
        print(path)


COMMAND = command.Command(
    summary="Run a chain of jobs, each on the result of the one before it.",
    run=_run,
    arguments=_arguments,
    settings=command.OVERRIDES,
    example="--checkpoint=data/pretrained/lm_arenas --jobs=data/stories/chain.yaml --out=chain",
    place=98,
    log_level=logging.INFO,
)
