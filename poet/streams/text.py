"""The caption as a condition: states of a frozen text encoder, which fill positions instead of embedding rows."""

from __future__ import annotations

import dataclasses
from typing import Any

from poet.runs import networks
from poet.spec import TextSpec, VocabularySpec
from poet.spec.vocabulary import Range, Special, Vocabulary
from poet.streams.base import Format, Grid, Stream, reach

# Features of a store and of a batch: float16 [positions, width] of the valid positions, and how many they are.
STATES, LENGTH = "text_states", "text_length"
# The same in a task's examples: (dtype, rank).
FEATURES = {STATES: ("float16", 2), LENGTH: ("int32", 0)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Stream):
    """Its positions hold one forced id; its states are passed beside the ids."""

    def ids(self, vocabulary: Vocabulary) -> tuple[Range, ...]:
        return (vocabulary.special(Special.TEXT),)

    def grid(self, fmt: Format, known: int = 0) -> Grid:
        return (fmt.text_length, 1, 1)

    def places(self, segment: Any) -> None:
        return None

    def load(self, spec: TextSpec, vocabulary: VocabularySpec, mesh: Any = None) -> Any:
        return reach("poet.tokenizers.text:load_text_encoder")(spec, mesh)


STREAM = Text(
    name="text",
    title="text",
    bare=True,
    network=networks.TEXT,
    section="text",
    medium="text",
    stage="text",
    marks="T",
    colour="#8e6bbf",
)
