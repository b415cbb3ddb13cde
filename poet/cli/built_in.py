"""Clips for shipped weights to be evaluated on, made on the spot where the user names none."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from poet.distributed import processes
from poet.runs import assets, manifest
from poet.runs.run import Run
from poet.spec import UserError, to_dict
from poet.tasks.resolved import Resolved

_LOG = logging.getLogger(__name__)
RECIPE, NAME = "data/arenas_av/build.py", "arenas_av"
# 33 clips of each split, of all places: two batches of the shipped EVAL.batch, and enough to count codes in.
CLIPS_PER_ARENA, ARENAS = 3, 11
# What of an experiment decides the codes of its clips.
_CODED_BY = ("clip", "vocabulary", "video_tokenizer", "audio_tokenizer", "text", "conditioning", "data")


def supply(run: Run, resolved: Resolved, tokenize: Callable[[Resolved], object]) -> Resolved:
    """The spec, with a store and a source if it names neither and the weights ship with poet.

    They are kept in the user's cache folder, so that they are made once.

    Args:
      tokenize: writes the store STORE.path from STORE.source.

    Raises:
      UserError: the game engine is not installed, or nothing can be written to the cache folder.
    """
    spec = resolved.spec
    named = spec.data.store or spec.eval.source or spec.store.source
    if named or not _ships(run) or not (assets.root() / RECIPE).is_file():
        return resolved
    source, store = processes.from_first(lambda: _make(run, resolved, tokenize))
    return Resolved(spec.replace(data=spec.data.replace(store=store), eval=spec.eval.replace(source=source)))


def _ships(run: Run) -> bool:
    return (assets.root() / "data" / "pretrained").resolve() in run.folder.resolve().parents


def clips(run: Run) -> str:
    """Only the source.

    Raises:
      UserError: the weights do not ship with poet, or as `supply`.
    """
    if not _ships(run) or not (assets.root() / RECIPE).is_file():
        raise UserError(
            f"{run.folder} does not ship with poet, so there are no default clips: give yours by --source=CLIPS"
        )
    _render(_cache_folder())
    return str(_source())


def _source() -> Path:
    return _cache_folder() / NAME / "1.0.0"


def _make(run: Run, resolved: Resolved, tokenize: Callable[[Resolved], object]) -> tuple[str, str]:
    folder, source = _cache_folder(), _source()
    store = folder / f"codes-{_key(run, resolved)}"
    _LOG.info(
        "no clips were named (--gin.DATA.store, --gin.EVAL.source): %d game clips in %s are used "
        "instead; rendering and encoding them the first time takes a minute or two",
        2 * ARENAS * CLIPS_PER_ARENA,
        folder,
    )
    _render(folder)
    spec = resolved.spec.store.replace(source=str(source), path=str(store), splits=("train", "validation"), batch=8)
    tokenize(Resolved(resolved.spec.replace(store=spec)))
    return str(source), str(store)


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "poet" / "clips"


def _key(run: Run, resolved: Resolved) -> str:
    parts = {name: to_dict(getattr(resolved.spec, name)) for name in _CODED_BY}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    digest.update((run.checkpoint.path / manifest.NAME).read_bytes())  # The networks that it was trained with.
    return digest.hexdigest()[:12]


def _render(folder: Path) -> None:
    """Builds the data set unless it is there."""
    command = [
        sys.executable,
        str(assets.root() / RECIPE),
        f"--data_dir={folder}",
        f"--clips_per_arena={CLIPS_PER_ARENA}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"the default clips could not be rendered: {reason.removeprefix('error: ')}; or give yours by "
            "--gin.DATA.store=CODES --gin.EVAL.source=CLIPS"
        )
