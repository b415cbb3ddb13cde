"""The `<source>` token: which data source an output should look like."""

from __future__ import annotations

import dataclasses
from typing import Any

from poet.spec.vocabulary import Range, Vocabulary
from poet.streams.base import Format, Grid, Stream


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(Stream):
    """One code, 0 for every clip of a store."""

    def ids(self, vocabulary: Vocabulary) -> tuple[Range, ...]:
        return (vocabulary.source,)

    def grid(self, fmt: Format, known: int = 0) -> Grid:
        return (1, 1, 1)

    def places(self, segment: Any) -> None:
        return None


STREAM = Source(name="source", bare=True, constant=True)
