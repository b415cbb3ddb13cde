"""`poet prefer`: people compare clips of two or more systems: a study made, asked and analysed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poet.cli import command
from poet.spec import UserError
from poet.spec.base import MOST_SEED

MAKE, SERVE, ANALYSE = "make", "serve", "analyse"
# Flags of `make` that are fields of `making.Wanted` -> their type or range, and help.
_count = command.number(int, at_least=0, at_most=1_000_000)
_names = lambda text: tuple(filter(None, text.split(",")))  # noqa: E731
_WANTED: dict[str, tuple[Any, str]] = {
    "names": (_names, "make: names of the systems between commas (default: those of the folders)"),
    "by": (str, "make: name: files of one name belong together; prompt: those of one text (default: name)"),
    "questions": (
        _names,
        "make: ask these alone, between commas (default: all five, text_fidelity where prompts are known)",
    ),
    "raters": (command.number(int, at_least=1, at_most=10_000), "make: how many there will be (default: 7)"),
    "clips": (_count, "make: compare so many clips of each system, chosen by the seed; 0: all (default)"),
    "pairs_per_rater": (_count, "make: each rater sees so many pairs; 0: all (default)"),
    "checks": (_count, "make: attention checks of each rater (default: 4)"),
    "training": (_count, "make: pairs for practice before the others (default: 3)"),
    "seconds": (
        command.number(float, at_least=0, at_most=1e6),
        "make: cut clips to so many seconds; 0: whole (default)",
    ),
    "rate_hz": (
        command.number(float, at_least=0, at_most=1000),
        "make: frame rate of all clips; 0: the least (default)",
    ),
    "seed": (command.number(int, at_least=0, at_most=MOST_SEED), "make: of every choice (default: 0)"),
}
# Flags -> the action that takes them.
_OF = dict.fromkeys((*_WANTED, "overwrite"), (MAKE,)) | {
    "out": (MAKE, ANALYSE),
    "port": (SERVE,),
    "answers": (ANALYSE,),
    "least_passed": (ANALYSE,),
    "json": (ANALYSE,),
}


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "action",
        choices=(MAKE, SERVE, ANALYSE),
        help="make: folders of clips become a study; serve: ask raters, on this machine alone; analyse: what they said",
    )
    add("folders", nargs="+", metavar="FOLDER", help="make: two folders of clips or more; else the study")
    for name, (kind, text) in _WANTED.items():
        choices = {"choices": ("name", "prompt")} if name == "by" else {}
        add(f"--{name}", type=kind, default=None, help=text, **choices)
    add(
        "--out", default=None, metavar="PATH", help="make: the study, a new folder; analyse: a JSON file of the results"
    )
    command.overwrite_argument(parser)
    add(
        "--port",
        type=command.number(int, at_least=0, at_most=65_535),
        default=None,
        help="serve: 0 (default): a free one",
    )
    add(
        "--answers",
        action="append",
        default=None,
        metavar="FILE",
        help="analyse: answers that pages without a server kept",
    )
    passed = command.number(float, at_least=0, at_most=1)
    add("--least_passed", type=passed, default=None, help="analyse: share of attention checks to pass (default: 0.75)")
    add("--json", action="store_true", help="analyse: print JSON")


def _run(args: argparse.Namespace) -> None:
    _check_flags(args)
    if args.action == MAKE:
        return _make(args)
    if len(args.folders) != 1:
        raise UserError(f"{args.action} takes one study, got {len(args.folders)} folders")
    return (_serve if args.action == SERVE else _analyse)(args)


def _check_flags(args: argparse.Namespace) -> None:
    for flag, actions in _OF.items():
        takes = flag == "overwrite" and args.action == ANALYSE or args.action in actions
        if getattr(args, flag) not in (None, False) and not takes:
            raise UserError(f"--{flag} is a flag of {' and '.join(actions)}: drop it")


# --------------------------------------------------------------------------------------------- make


def _make(args: argparse.Namespace) -> None:
    from poet.evaluation.preference import making

    if not args.out:
        raise UserError("--out=STUDY is needed: a new folder for the study")
    chosen = {name: value for name in _WANTED if (value := getattr(args, name)) is not None}
    wanted = making.Wanted(**chosen)
    output = making.claim(args.out, args.folders, args.overwrite)
    study = making.make(args.folders, wanted, output)
    print("\n".join(_said(study, args.out)))


def _said(study: Any, out: str) -> list[str]:
    made = study.made
    found = [
        f"{out}: {made['clips']} clips of {' and '.join(study.systems)}, {len(study.raters)} raters",
        f"each sees {made['pairs_per_rater']} pairs, {made['checks']} attention checks, {made['training']} to practise",
        f"questions: {', '.join(study.questions)}",
        f"all clips have {made['area']} pixels a frame at {made['rate_hz']:g} Hz",
        f"files had {', '.join(made['formats'])}",
    ]
    found += [f"fitted ({how}): {_some(names)}" for how, names in made["fitted"].items()]
    found += [f"{system} alone has {_some(names)}: left out" for system, names in made["unpaired"].items()]
    found += [f"unreadable, left out: {why}" for why in made["unreadable"].values()]
    if made["checks"] < made["wanted"]["checks"]:
        found.append("no attention checks: the questions leave none with a certain answer")
    return [*found, f"next: poet prefer serve {out}"]


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} clips, such as {', '.join(names[:3])}"


# -------------------------------------------------------------------------------- serve and analyse


def _serve(args: argparse.Namespace) -> None:
    from poet.evaluation.preference import server, study
    from poet.runs import lease

    folder = Path(args.folders[0]).expanduser()
    found = study.read(folder)
    with lease.hold(folder, what="study"), server.Server(folder, found, args.port or 0) as served:
        links = [f"  rater {rater}: {served.url}?rater={rater}" for rater in range(1, len(found.raters) + 1)]
        print("\n".join([f"{served.url} (Ctrl-C ends it; every answer is on the disk)", *links]), flush=True)
        try:
            served.serve_forever()
        except KeyboardInterrupt:
            print(f"next: poet prefer analyse {args.folders[0]}")


def _analyse(args: argparse.Namespace) -> None:
    from poet.evaluation import record
    from poet.evaluation.preference import analysis, answers, study
    from poet.runs import outputs

    folder = Path(args.folders[0]).expanduser()
    found = study.read(folder)
    file = outputs.claim_file(args.out, overwrite=args.overwrite) if args.out else None
    own = [folder / answers.FILE] if (folder / answers.FILE).is_file() else []
    least = analysis.LEAST_PASSED if args.least_passed is None else args.least_passed
    result = analysis.analyse(found, [*own, *map(Path, args.answers or ())], least)
    if file:
        record.write(file, result)
    print(json.dumps(result, indent=2) if args.json else analysis.text(result))


COMMAND = command.Command(
    summary="Let people compare clips of two or more systems.",
    run=_run,
    arguments=_arguments,
    settings=command.NONE,
    example="make ours theirs --out=study",
    place=88,
    quiet=True,
    publishes=False,
)
