"""`poet benchmark`: a checkpoint under a published protocol."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from poet.cli import command
from poet.spec import UserError, choose, read_object
from poet.spec.base import MOST_BATCH

RESULT, TEXT, CLIPS, ABOUT = "benchmark.json", "benchmark.txt", "clips", "about.json"


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("preset", metavar="PRESET", help="a protocol; an unknown name lists them")
    command.checkpoint_arguments(parser, required=False)
    add("--data", default="", metavar="FOLDER", help="cases, clips and real clips; --describe says which and where")
    add(
        "--features",
        action="append",
        default=[],
        metavar="FILE",
        help="JSON file of a feature network of your own (poet/evaluation/features/own.py), one for each measure, in "
        "their order",
    )
    add("--out", default="", metavar="FOLDER", help="samples and scores; a run that was stopped goes on there")
    add("--num", type=command.number(int, at_least=0, at_most=10**7), default=0, help="cases and real clips; 0: all")
    add("--batch", type=command.number(int, at_least=1, at_most=MOST_BATCH), default=4, help="clips sampled together")
    add("--describe", action="store_true", help="print the protocol, and what to prepare in which layout")
    add("--dry_run", action="store_true", help="all of it on stand-ins of the right shapes: no checkpoint, no data")
    command.prompt_arguments(parser)
    command.sample_arguments(parser)
    _suite_arguments(parser)


def _suite_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of poet's own benchmarks."""
    add = parser.add_argument_group("poet's own: arenas, freedoom (poet/evaluation/suites/README.md)").add_argument
    add(
        "--submission",
        default="",
        metavar="FOLDER",
        help="clips of any model, TASK/NAME.mp4: scored instead of a checkpoint",
    )
    add(
        "--conditions", default="", metavar="FOLDER", help="write what conditions each clip, for other models, and stop"
    )
    add("--task", action="append", default=[], dest="tasks", metavar="TASK", help="only this one (repeatable)")
    command.overwrite_argument(parser)


def _run(args: argparse.Namespace) -> None:
    from poet.cli import suites
    from poet.evaluation.benchmarks.presets import PRESETS

    if args.preset in suites.names():
        suites.run(args)
        return
    preset = choose(args.preset, PRESETS | dict.fromkeys(suites.names()), "preset")
    if args.describe:
        print(_described(preset))
    elif not args.out:
        raise UserError("--out=FOLDER is needed: samples and scores go there")
    elif args.dry_run:
        _dry(preset, _folder(args.out, {"preset": preset.name, "dry_run": True}))
    elif not args.checkpoint:
        raise UserError("--checkpoint is needed, or --dry_run, or --describe")
    else:
        _real(preset, args)


def _described(preset: Any) -> str:
    from poet.evaluation.benchmarks import data

    lines = [preset.title, f"task: {preset.task}; {preset.count:,} samples" if preset.count else f"task: {preset.task}"]
    lines += [preset.facts, f"sampled: {preset.sampled}; compared: {preset.scored}, the {preset.cut} of a real clip"]
    lines += [f"{one.published}: {one.network}" for one in preset.measures]
    lines += [f"scored by {preset.tool}"] if preset.tool else []
    lines += [f"{p.system}: {p.measure} {p.value:g} ({p.source})" for p in preset.published]
    return "\n".join(lines if preset.name == data.VBENCH else [*lines, data.layout(preset)])


def _folder(path: str, about: dict[str, Any]) -> Path:
    """A new or empty folder, or that of the same run; UserError for another one."""
    from poet import media

    folder = Path(path).expanduser().absolute()
    note = folder / ABOUT
    if note.is_file() and read_object(note) != about:
        raise UserError(f"--out={path} holds another run ({note.read_text().strip()}): give another folder")
    if not note.is_file() and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out={path} is not empty and holds no run of this command: give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    media.write_text(note, json.dumps(about))
    return folder


def _real(preset: Any, args: argparse.Namespace) -> None:
    from poet.evaluation.benchmarks import data, run, sampling
    from poet.evaluation.features import own
    from poet.spec import to_dict

    settings = command.generation_bindings(args)
    checkpoint, resolved = command.open_checkpoint(args, settings)
    clip = resolved.spec.clip
    rate_hz = preset.scored.rate_hz or 1.0
    networks = run.check_networks(preset, [own.load(file, rate_hz) for file in args.features])
    found = data.read(preset, args.data, args.num)
    preset, count = sampling.planned(preset, len(found.cases))
    weights = checkpoint.checkpoint.fingerprint
    about = {"preset": preset.name, "num": args.num, "checkpoint": weights, "sample": to_dict(resolved.spec.sample)}
    out = _folder(args.out, about)
    if preset.tool and preset.conditioning_frames:
        samples = sampling.sample_films(preset, found.cases, out, checkpoint, resolved, settings)
    else:
        samples = sampling.sample(preset, found.cases, count, out, checkpoint, resolved, settings, args.batch)
    differing = run.deviations(preset, clip, len(samples), len(found.real))
    _finish(preset, found, samples, networks, out, differing, about | {"data": args.data})


def _dry(preset: Any, out: Path) -> None:
    """On stand-ins, which are removed."""
    from poet.evaluation.benchmarks import data, run, standins

    with tempfile.TemporaryDirectory() as folder:
        little = standins.small(preset)
        if preset.name != data.VBENCH:
            standins.write_data(little, Path(folder) / "data")
        found = data.read(little, f"{folder}/data", standins.CASES)
        samples = standins.write_samples(little, found.cases, Path(folder) / "samples")
        networks = run.check_networks(little, standins.networks(little))
        differing = ["a dry run: neither data, samples nor networks are real"]
        _finish(little, found, samples, networks, out, differing, {"dry_run": True})


def _finish(preset: Any, found: Any, samples: dict, networks: list, out: Path, differing: list, about: dict) -> None:
    """Scores the samples, or lays them out for the program that does, and writes the record."""
    from poet import media
    from poet.evaluation import record
    from poet.evaluation.benchmarks import run

    measured: dict[str, Any] = {"scores": [], "sets": []}
    if preset.tool:
        (out / CLIPS).mkdir(exist_ok=True)
        for name, file in samples.items():
            shutil.copyfile(file, out / CLIPS / f"{name}{file.suffix}")
    else:
        measured = run.measure(preset, found, samples, networks, out)
    result = run.record(preset, measured, differing, run=about)
    record.write(out / RESULT, result)
    media.write_text(out / TEXT, run.text(result) + "\n")
    print(run.text(result))


COMMAND = command.Command(
    summary="Sample and score a checkpoint under a published protocol.",
    run=_run,
    arguments=_arguments,
    settings=command.OVERRIDES,
    example="msrvtt_fvd --dry_run --out=benchmark",
    place=87,
)
