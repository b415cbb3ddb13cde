"""The registry of token streams: every file of this package that declares `STREAM`.

Layouts, stores, batches, sampling, evaluation and export use the interface `poet.streams.base.Stream` and never
compare names.
"""

from __future__ import annotations

import importlib
import pkgutil

from poet.spec import choose
from poet.streams.base import CONDITION, GIVEN, HIDDEN, OUTPUT, Encoders, Format, Grid, Stream, StreamInfo, code_bits
from poet.streams.derived import Derived


def _declared() -> dict[str, Stream]:
    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    found = [module.STREAM for module in modules if hasattr(module, "STREAM")]
    return {stream.name: stream for stream in sorted(found, key=lambda s: (not s.shows, s.name))}


STREAMS: dict[str, Stream] = _declared()


def get(name: str) -> Stream:
    """The stream of a name in tasks; UserError with similar names otherwise."""
    return choose(name, STREAMS, "stream")


def derived() -> dict[str, Derived]:
    """The conditions that are derived from pixels by name, in the order of their rank."""
    found = sorted((s for s in STREAMS.values() if isinstance(s, Derived)), key=lambda s: (s.rank, s.name))
    return {stream.name: stream for stream in found}


def in_layout(name: str) -> Stream | None:
    """The stream of a name in layouts; None for a special token."""
    return STREAMS.get(name) or STREAMS.get(name.removesuffix(GIVEN))


def in_store(feature: str) -> Stream:
    """The stream of a feature of a store; UserError with similar names otherwise."""
    return choose(feature, STREAMS, "stream of a store")
