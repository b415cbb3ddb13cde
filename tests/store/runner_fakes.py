"""What worker processes and the processes of a shared run import by name."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal
import sys

import numpy as np
import store_fakes as fakes

from poet.spec import StoreSpec
from poet.store import runners
from poet.streams.base import Encoders


def encoders() -> Encoders:
    return fakes.encoders(video=fakes.MeanTokenizer(), text=fakes.LetterEncoder())


@dataclasses.dataclass
class DyingTokenizer(fakes.MeanTokenizer):
    """Kills its own process once, in its second batch."""

    flag: str = ""

    def encode(self, video_BxTxHxWx3: np.ndarray) -> np.ndarray:
        if self.batches == 1 and not pathlib.Path(self.flag).exists():
            pathlib.Path(self.flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(video_BxTxHxWx3)


def dying_encoders(flag: str) -> Encoders:
    return fakes.encoders(video=DyingTokenizer(flag=flag), text=fakes.LetterEncoder())


def spec(source: str, path: str, **changes: object) -> StoreSpec:
    made = StoreSpec(source=source, path=path, clips_per_shard=4, batch=2, max_skipped=0.2)
    return made.replace(**changes)


def write(store: StoreSpec, runner: runners.Runner | None = None) -> object:
    return fakes.tokenize(store, runner=runner)


if __name__ == "__main__":
    source, path, index, count = sys.argv[1:]
    write(spec(source, path), runners.Distributed(runners.Serial(encoders()), int(index), int(count), wait_s=120.0))
