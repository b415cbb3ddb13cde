"""`poet serve`: an HTTP service over a checkpoint or an export."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from poet.cli import command
from poet.runs.run import Checkpoint, here
from poet.server.settings import ServeSpec
from poet.spec import UserError, type_hints
from poet.spec.base import MOST_BATCH, setting_of

if TYPE_CHECKING:
    from poet.server.checkpoint import CheckpointBackend

_HELP = {
    "max_queue": "jobs that wait at once",
    "max_queue_per_key": "of them those of one API key",
    "rate_per_minute": "requests that make something, of a key or an address",
    "max_body_mib": "a JSON body",
    "max_upload_mib": "an uploaded file",
    "max_pixels": "pixels of a frame of it",
    "max_media_seconds": "its length",
    "max_decoded_mib": "all its frames as bytes",
    "intake_seconds": "time of the process that decodes it",
    "intake_mib": "memory of that process",
    "max_samples": "samples of a request",
    "max_film_seconds": "seconds of a film",
    "max_prompt": "characters of a text",
    "memory_gib": "GiB that the worker may take, by which jobs are admitted; 0 is nine tenths of what the machine "
    "has, or its accelerator",
    "max_deaths": "worker processes that may die of a job before it fails",
    "grace_seconds": "time for what runs when the service is stopped; then it is queued again",
    "keep_hours": "age at which ended jobs and uploads are removed",
    "keep_mib": "size of all files at which the oldest ended jobs are removed",
}


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--checkpoint", required=True, help="a work dir, a checkpoint, a folder of released weights, or an export")
    add(
        "--store",
        required=True,
        metavar="FOLDER",
        help="folder of the jobs and their files; an earlier one is taken up",
    )
    add("--host", default="127.0.0.1", help="address to listen on; any but this machine's own needs API keys")
    add("--port", type=command.number(int, at_least=0, at_most=65_535), default=8000, help="0 takes a free port")
    add(
        "--api_keys",
        default="",
        metavar="FILE",
        help="API keys, a line `NAME KEY` each [POET_API_KEYS=NAME:KEY,NAME:KEY] (default: everybody on this machine)",
    )
    add(
        "--batch",
        type=command.number(int, at_least=1, at_most=MOST_BATCH),
        default=4,
        help="samples of several requests that are made together; a request has the same bytes alone, with the same "
        "number here",
    )
    add(
        "--upscale",
        action="append",
        default=[],
        metavar="CHECKPOINT",
        help="super-resolution network of the task `upscale`, or an export with some (repeatable); an "
        "export at --checkpoint has its own",
    )
    add(
        "--style",
        default="",
        metavar="NAME",
        help="texts added to every prompt: a preset of gin/prompts, or a gin file",
    )
    add(
        "--no_previews",
        action="store_false",
        dest="previews",
        help="no pictures of new frames in the events of jobs; each costs a decoding of the clip",
    )
    limits = parser.add_argument_group("limits")
    hints = type_hints(ServeSpec)
    for field in dataclasses.fields(ServeSpec):
        if field.name in _HELP:
            declared = setting_of(field)
            kind = command.number(
                hints[field.name],
                **{
                    name: value
                    for name in ("at_least", "above", "at_most", "below")
                    if (value := getattr(declared, name)) is not None
                },
            )
            text = f"{_HELP[field.name]} ({field.default:g})"
            limits.add_argument(f"--{field.name}", type=kind, default=field.default, help=text)


def _run(args: argparse.Namespace) -> None:
    from poet.server.access import LOOPBACK, Keys
    from poet.server.run import serve

    keys = Keys.read(args.api_keys)
    if args.host not in LOOPBACK and not keys:
        raise UserError(
            f"--host={args.host} lets other machines use this service: give --api_keys=FILE, or listen on 127.0.0.1"
        )
    settings = ServeSpec(**{field.name: getattr(args, field.name) for field in dataclasses.fields(ServeSpec)})
    backend = _backend(args, settings)
    serve(
        backend,
        Path(args.store).expanduser(),
        host=args.host,
        port=args.port,
        keys=keys,
        settings=settings,
        sample_rate_hz=backend.resolved.spec.clip.sample_rate_hz,
        level=logging.DEBUG if args.verbose else logging.INFO,
    )


def _backend(args: argparse.Namespace, settings: ServeSpec) -> CheckpointBackend:
    from poet.sampling import larger
    from poet.server.checkpoint import CheckpointBackend
    from poet.server.exported import ExportBackend
    from poet.spec import config

    folder = here(args.checkpoint).expanduser()
    if Checkpoint(folder).exported:
        if args.bindings or args.style or args.upscale:
            raise UserError(
                f"{args.checkpoint} is an export, whose settings are fixed: leave out --gin, --style and --upscale, or "
                "serve its checkpoint"
            )
        return ExportBackend.of(folder, args.batch, settings)
    bindings = [*(config.style(args.style) if args.style else []), *args.bindings, f"SAMPLE.block={args.batch}"]
    run, resolved = command.open_checkpoint(args, bindings)
    upscalers = tuple(larger.find(path) for path in args.upscale)
    return CheckpointBackend(run, resolved, tuple(bindings), settings, upscalers)


COMMAND = command.Command(
    summary="Serve a checkpoint or an export over HTTP.",
    run=_run,
    arguments=_arguments,
    settings=command.OVERRIDES,
    example="--checkpoint=data/pretrained/lm_arenas --store=service",
    place=97,
)
