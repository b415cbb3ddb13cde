"""`poet describe`: what a run is, before it is one."""

from __future__ import annotations

import argparse

from poet.cli import command
from poet.runs import outputs


def _arguments(parser: argparse.ArgumentParser) -> None:
    command.config_arguments(parser)
    parser.add_argument(
        "--devices",
        type=command.number(int, at_least=0, at_most=2**20),
        default=0,
        help="plan for this many devices (default: those present)",
    )
    parser.add_argument(
        "--topology",
        default="",
        metavar="NAME",
        help="compile every step and the decoding loop for devices that need not be present, and print memory "
        "and time: v5e-16, v5p-256, 2xv6e-256, h100-64, cpu-8, ...",
    )
    parser.add_argument(
        "--group",
        action="append",
        default=[],
        dest="groups",
        metavar="NAME",
        help="compile only this group of tasks (repeatable, with --topology)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the resolved spec as JSON; with --topology one line of JSON for each program",
    )
    parser.add_argument("--picture", default="", help="write the tasks' layouts to this SVG file")
    parser.add_argument("--placement", default="", help="write the shards of the parameters to this SVG file")
    command.overwrite_argument(parser)


def _run(args: argparse.Namespace) -> None:
    from poet.planning import describe

    for flag in ("picture", "placement"):
        if path := getattr(args, flag):
            outputs.claim_file(path, overwrite=args.overwrite, flag=f"--{flag}")
    resolved = command.resolve(args)
    if args.picture:
        describe.write_picture(resolved, args.picture)
    if args.placement:
        describe.write_placement(resolved, args.placement, args.devices)
    if args.picture or args.placement:
        return
    describe.run(resolved, devices=args.devices, topology=args.topology, groups=args.groups, as_json=args.json)


COMMAND = command.Command(
    summary="Print the settings, mesh, memory and FLOPs of a run.",
    run=_run,
    arguments=_arguments,
    settings=command.FILES,
    example="--gin_file=gin/experiments/quickstart.gin",
    place=10,
    quiet=True,
)
