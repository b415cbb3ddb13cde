"""A tiny generator that makes films, shared by the tests of this folder: one set of compiled programs."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tiny  # noqa: E402

from poet.sampling.generate import Generator  # noqa: E402
from poet.spec import SampleSpec  # noqa: E402
from poet.tasks.resolved import Resolved  # noqa: E402
from poet.tokenizers.text import EncodedText  # noqa: E402

SAMPLE = SampleSpec(temperature=0.9, seed=3)


class Words:
    """A text encoder whose states are noise of the text."""

    fingerprint = "words"

    def __call__(self, texts):
        states = [np.random.default_rng(list(t.encode())).normal(size=(8, tiny.TEXT_WIDTH)) for t in texts]
        lengths = np.array([min(len(t.split()), 8) for t in texts], np.int32)
        return EncodedText(states_BxLxD=np.stack(states).astype(np.float32), lengths_B=lengths, truncated=0)


@functools.cache
def generator() -> Generator:
    """Clips of 9 frames at 25 Hz, so that every frame has one frame of audio codes."""
    clip = tiny.WITH_SOUND.clip.replace(frames=9, rate_hz=25.0)
    found = Resolved(tiny.WITH_SOUND.replace(clip=clip, sample=SAMPLE))
    return Generator(
        found, tiny.params(), {"video": tiny.video_tokenizer(), "audio": tiny.audio_tokenizer(), "text": Words()}
    )
