"""Flags of the commands of films: the model, its prompts, and how a clip continues the film."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poet.cli import command
from poet.spec import PromptSpec, SampleSpec

if TYPE_CHECKING:
    from poet.films.sampler import FilmSampler


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of a command that makes films."""
    command.checkpoint_arguments(parser)
    add = parser.add_argument
    add("--sound", action="store_true", help="with sound")
    add(
        "--style",
        default="",
        metavar="NAME",
        help="texts added to every prompt: a preset of gin/prompts, such as videopoet or arenas, or a gin file",
    )
    add("--negative_prompt", default="", help="what the film must not look like; needs --guidance above 1")
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


@dataclasses.dataclass(frozen=True)
class Studio:
    """A model that makes films, and its settings.

    Attributes:
      sample: settings; their seed is that of the film.
      prompt: texts added to every prompt.
      made_by: identifies the checkpoint.
      ways: how clips continue a film, arguments of `FilmSampler`.
    """

    sampler: FilmSampler
    sample: SampleSpec
    prompt: PromptSpec
    made_by: dict[str, Any]
    ways: dict[str, Any]

    def produce(self, make: Callable[..., list[Path]], wanted: Any, out: str) -> None:
        """Runs `poet.films.long.make` or `poet.films.scenes.make` and prints the files that it writes."""
        folder, settings = Path(out).expanduser(), {"made_by": self.made_by, "sample": self.sample}
        for path in make(self.sampler, wanted, folder, **settings, words=self.prompt.camera):
            print(path)

    def with_sound(self) -> FilmSampler:
        """The same, for films with sound.  UserError in a run without it."""
        return type(self.sampler)(self.sampler.generator, has_audio=True, **self.ways)


def open_studio(args: argparse.Namespace, *, sound: bool | None = None) -> Studio:
    """The model of the flags of `arguments`; `sound` replaces --sound unless None.

    Raises UserError: no checkpoint, unknown settings, or sound in a run without it.
    """
    from poet.films.sampler import FilmSampler
    from poet.sampling.generate import Generator
    from poet.spec import config

    logging.getLogger("poet.sampling.engine").setLevel(logging.WARNING)  # A film has its own line for each clip.
    style = config.style(args.style) if args.style else []
    run, resolved = command.open_checkpoint(args, [*style, *args.bindings, *command.sample_bindings(args)])
    files = run.checkpoint.manifest()["files"]
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
    ways = {"recode": args.recode, "sink": args.sink, "context": args.context}
    sampler = FilmSampler(
        Generator.from_checkpoint(run, resolved), has_audio=args.sound if sound is None else sound, **ways
    )
    prompt = resolved.spec.prompt
    prompt = prompt.replace(negative=args.negative_prompt or prompt.negative)
    return Studio(sampler, resolved.spec.sample, prompt, {"checkpoint": digest}, ways)
