"""`poet benchmark arenas` and its like: what they do with a checkpoint, with a submission, or for other models."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from poet.cli import command
from poet.runs import outputs
from poet.spec import UserError, choose

SAMPLES = "samples"


def names() -> list[str]:
    """The benchmarks."""
    from poet.evaluation.suites import cases

    return list(cases.LISTS)


def run(args: argparse.Namespace) -> None:
    """Samples where a checkpoint is given, scores, writes; or writes the conditions for other models."""
    from poet.evaluation.suites import cases, submissions, writing

    suite = cases.load(args.preset)
    if args.describe:
        print(writing.described(suite))
        return
    _check(args, suite)
    if args.conditions:
        output = outputs.claim(args.conditions, outputs.CONDITIONS, inputs=[args.data])
        reals = cases.clips(suite, args.data, args.num)
        with output:
            submissions.write_conditions(suite, reals, output.folder)
        print(f"{args.conditions}: conditions of {len(reals)} clips for {len(submissions.TASKS)} tasks")
        return
    _score(args, suite)


def _check(args: argparse.Namespace, suite: Any) -> None:
    """Raises UserError for flags that do not go together."""
    if not args.data:
        raise UserError(f"--data is needed: {suite.data}")
    if args.dry_run:
        raise UserError("--dry_run is of published protocols: this one's data can be rendered")
    given = [bool(x) for x in (args.checkpoint, args.submission, args.conditions)]
    if sum(given) != 1:
        raise UserError("give one of --checkpoint, --submission=FOLDER (of another model) and --conditions=FOLDER")
    if not args.conditions and not args.out:
        raise UserError("--out=FOLDER is needed: samples and scores go there")
    from poet.evaluation.suites.tasks import TASKS

    for name in args.tasks:
        choose(name, TASKS, "--task")


def _score(args: argparse.Namespace, suite: Any) -> None:
    from poet.evaluation.suites import cases, run, submissions, writing

    inputs = [args.data, args.submission]
    output = outputs.claim(args.out, outputs.SUITE, overwrite=args.overwrite, inputs=inputs, resumed=SAMPLES)
    reals = cases.clips(suite, args.data, args.num)
    folder, who, tokenizers = Path(args.submission), {"path": args.submission}, {}
    tasks = [] if args.checkpoint else submissions.tasks_of(suite, folder, args.tasks)
    if args.checkpoint:
        folder = output.final / SAMPLES
        tasks, who, tokenizers = _sample(args, suite, reals, folder)
    with output:
        result = run.evaluate(suite, args.data, reals, tasks, folder, tokenizers, who)
        writing.write(output.folder, result, suite, reals, folder)
    print(writing.text(result))


def _sample(args: argparse.Namespace, suite: Any, reals: Any, folder: Path) -> tuple[list, dict, dict]:
    """The tasks, what the record says of the model, and its tokenizers; samples go below the folder."""
    from poet.evaluation.suites import submissions
    from poet.evaluation.suites.run import NETWORK, PIECES
    from poet.evaluation.suites.tasks import TASKS
    from poet.sampling.generate import Generator
    from poet.spec import to_dict

    opened, resolved = command.open_checkpoint(args, command.generation_bindings(args))
    clip = resolved.spec.clip
    if (clip.frames, clip.height, clip.width, clip.rate_hz) != (17, suite.clip.height, suite.clip.width, 8.0):
        raise UserError(f"{suite.title} has clips of {suite.clip}, the checkpoint makes {clip}")
    tasks = [suite.tasks[name] for name in args.tasks or TASKS if resolved.spec.data.mixture_rates.get(name, 0) > 0]
    if not tasks:
        raise UserError(f"{args.checkpoint} was not trained on any of {', '.join(args.tasks or TASKS)}")
    settings = {"sample": to_dict(resolved.spec.sample), "batch": args.batch}
    who = {"checkpoint": opened.checkpoint.fingerprint, **settings}
    submissions.claim(folder, who)
    generator = Generator.from_checkpoint(opened, resolved)
    for task in tasks:
        submissions.sample(generator, task, reals, folder, clip, resolved.spec.sample, args.batch)
    who = {"path": args.checkpoint, "step": opened.checkpoint.step, **who}
    tokenizers = {name: generator.networks[name] for name in {NETWORK[task.makes] for task in tasks}}
    if PIECES in tokenizers:
        tokenizers[PIECES] = _given_back(tokenizers[PIECES], resolved.format.pieces_length)
    return tasks, who, tokenizers


def _given_back(pieces: Any, length: int) -> Callable[[list[str]], list[str]]:
    """Texts, as a vocabulary of text tokens gives them back after so many of these."""
    return lambda texts: pieces.decode(pieces.encode(texts, length)[0])
