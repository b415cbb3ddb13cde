"""`poet store`: a token store checked, or its damaged shards made again."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING, Any

from poet.cli import command, stores
from poet.spec import UserError

if TYPE_CHECKING:
    from poet.tasks.resolved import Resolved

_LOG = logging.getLogger(__name__)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("verify", "repair"),
        help="verify: compare every byte with its hash, without settings; repair: make damaged shards again "
        "from the source, with the settings of the store's `poet tokenize`",
    )
    parser.add_argument("store", metavar="STORE", help="folder of a token store")
    command.config_arguments(parser)


def _run(args: argparse.Namespace) -> None:
    if args.action == "repair":
        args.bindings = [*args.bindings, f"STORE.path={args.store}"]
        _repair(command.resolve(args))
    elif args.gin_file or args.bindings or args.size:
        raise UserError("verify takes no settings: drop them")
    else:
        _verify(args.store)


def _verify(path: str) -> None:
    """Compares every byte of a token store with its hash, and says what was compared."""
    from poet.store import reader

    manifest = reader.verify(path)
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    size_bytes = sum(shard.size_bytes for shard in shards)
    clips = sum(shard.clips for shard in shards)
    print(f"{path} is intact: {clips:,} clips in {len(shards):,} shards, {size_bytes:,} bytes")


def _repair(resolved: Resolved) -> None:
    """Makes the damaged shards of STORE.path again, and says which."""
    from poet.store.repair import repair
    from poet.tasks.resolved import Resolved

    spec, path = resolved.spec, resolved.spec.store.path

    def rebuild(path: str) -> Any:
        there = Resolved(spec.replace(store=spec.store.replace(path=path)))
        return stores.write(there, stores.load_encoders(there), None, _LOG.info)

    mended = repair(path, rebuild)
    print(f"{path}: made again: {', '.join(mended)}" if mended else f"{path} is intact")


COMMAND = command.Command(
    summary="Verify or repair a token store.",
    run=_run,
    arguments=_arguments,
    settings=command.FILES,
    example="verify CODES",
    place=60,
)
