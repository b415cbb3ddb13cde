"""The one id space: specials | visual codes | audio codes, level by level | text pieces.

VideoPoet §3 table: 256 specials, 2^18 visual codes shared by images and video, 4 x 1,024 audio codes
with a disjoint range per residual level, then text pieces.  With the default spec the ranges start
at 0, 256, 262,400 and 266,496.
"""

from __future__ import annotations

import dataclasses
import enum

from poet.spec import VocabularySpec


class Special(enum.IntEnum):
    """Ids of the special tokens.  Values are part of every checkpoint: never renumber.

    0-31 structure, 32-63 tasks (one per distinct output type, VideoPoet §3.2), 64-95 resolutions,
    96-127 durations, 128-255 sources.
    """

    PAD = 0
    BOS = 1
    EOS = 2
    TEXT = 3  # Holds a position whose embedding is a text encoder state, not a table row.
    BOT_I = 4
    EOT_I = 5
    BOV_I = 6
    EOV_I = 7
    BOA_I = 8
    EOA_I = 9
    BOV_O = 10
    EOV_O = 11
    BOA_O = 12
    EOA_O = 13
    BOT_O = 14
    EOT_O = 15
    HIDDEN = 16  # Holds a position of a condition whose code is not given.
    TASK_VIDEO = 32
    TASK_AUDIO = 33
    TASK_VIDEO_AUDIO = 34
    TASK_TEXT = 35
    RES_PORTRAIT = 64
    DURATION_0 = 96  # The one of n latent frames is DURATION_0 + n.
    SOURCE_0 = 128


SOURCES = 128
DURATIONS = 32


@dataclasses.dataclass(frozen=True)
class Range:
    """Ids [low, high) and the embedding table that holds them (`row = id - table_low`)."""

    low: int
    high: int
    table: str
    table_low: int

    @property
    def size(self) -> int:
        return self.high - self.low


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Derives every range from the spec; hashable, so that layouts built on it are static."""

    spec: VocabularySpec = VocabularySpec()

    @property
    def tables(self) -> dict[str, Range]:
        """Embedding and head tables in id order: name -> its whole range."""
        sizes = {
            "special": self.spec.specials,
            "visual": 2**self.spec.visual_bits,
            "audio": self.spec.audio_levels * self.spec.audio_codes,
            "text": self.spec.text_pieces,
        }
        ranges, low = {}, 0
        for name, size in sizes.items():
            ranges[name] = Range(low, low + size, name, low)
            low += size
        return ranges

    @property
    def size(self) -> int:
        """Total number of ids; 300,000 with the default spec."""
        return self.tables["text"].high

    @property
    def visual(self) -> Range:
        return self.tables["visual"]

    @property
    def text(self) -> Range:
        return self.tables["text"]

    @property
    def source(self) -> Range:
        """Ids of the `<source>` token: which data source the output should look like."""
        return Range(Special.SOURCE_0, Special.SOURCE_0 + SOURCES, "special", 0)

    def duration(self, latents: int) -> Range:
        """The one-id range of the token of that many latent frames, 1..31."""
        low = Special.DURATION_0 + latents
        return Range(low, low + 1, "special", 0)

    def audio(self, level: int) -> Range:
        """Ids of one residual level; levels never share ids."""
        table = self.tables["audio"]
        low = table.low + level * self.spec.audio_codes
        return Range(low, low + self.spec.audio_codes, "audio", table.low)

    def special(self, token: Special) -> Range:
        """The one-id range of a forced token."""
        return Range(int(token), int(token) + 1, "special", 0)
