"""The configuration of cutting and filtering in `poet tokenize`."""

from __future__ import annotations

import dataclasses

from poet.spec.base import Spec, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestSpec(Spec):
    """How media files are cut into clips, and which clips are dropped.  The defaults drop none.

    crop: the box of the clip's aspect that a frame is cut to, 'centre' or 'random' (a function of the
      key, the same for all frames of a file).
    shots: cut files at shot boundaries; no clip crosses one.
    clips_per_file: take this many clips at most, one after the other; 0 takes all.
    min_motion: least mean absolute difference of successive frames, 0..1 of full scale.
    min_brightness: least mean of all pixels, 0..1.
    min_loudness_db: least root mean square of the sound, in dB of full scale; 0 is off.  Counts in
      stores with sound alone.
    nsfw: 'module:function', called with uint8 (T, H, W, 3); drops the clips it returns true for.
      `poet tokenize` runs it with --allow_code alone.
    deduplicate: drops clips whose perceptual hashes differ by at most so many of 64 bits from those
      of a clip that stays; -1 is off.
    max_copied_gb: members of tars and files behind URLs are copied to this machine while they are
      read; larger ones are skipped, 0 takes all.
    """

    crop: str = setting("centre", changes="meaning", one_of=("centre", "random"))
    shots: bool = setting(False, changes="meaning")
    clips_per_file: int = setting(1, changes="meaning", at_least=0, at_most=10**6)
    min_motion: float = setting(0.0, changes="meaning", at_least=0, at_most=1)
    min_brightness: float = setting(0.0, changes="meaning", at_least=0, at_most=1)
    min_loudness_db: float = setting(0.0, changes="meaning", at_least=-200, at_most=0)
    nsfw: str = setting("", changes="meaning")
    # Beyond 16 bits, a quarter of a hash, different clips would count as duplicates.
    deduplicate: int = setting(-1, changes="meaning", at_least=-1, at_most=16)
    max_copied_gb: float = setting(4.0, changes="meaning", at_least=0, at_most=10**6)

    def validate(self) -> None:
        self.require(
            not self.nsfw or all(self.nsfw.partition(":")), "nsfw", "expected 'module:function', or '' for none"
        )

    @property
    def expands(self) -> bool:
        """Whether a file may give more than its first clip."""
        return self.shots or self.clips_per_file != 1
