"""A small run of every command, as a user would start it, and what a command left as a value to compare."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("data", "store", "runs/buckets")]
INJECTED = Path(__file__).resolve().parent / "injected"
# Seconds after which a command that should have ended counts as hung.
PATIENCE_S = 300
SETTINGS = {
    "TRAIN.steps": 40,
    "TRAIN.log_every": 1,
    "CHECKPOINT.every": 5,
    "CHECKPOINT.keep": 3,
    "EVAL.batch": 2,
    "EVAL.batches": 4,
    "EVAL.gain_clips": 8,
    "TOKENIZER_TRAIN.batch": 2,
    "TOKENIZER_TRAIN.frames": 5,
    "STORE.clips_per_shard": 4,
    "STORE.batch": 2,
    "EXPORT.platforms": ("cpu",),
}


@dataclasses.dataclass(frozen=True)
class Ended:
    """A command that ended: its exit code (negative: the signal that killed it), and all that it printed."""

    code: int
    text: str


class World:
    """The files of one harness run, below `folder`; what several faults need is made once."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.gin_file = self._write()

    # ---------------------------------------------------------------------------------------- files

    def _write(self) -> Path:
        import small_run

        file = self.folder / "run.gin"
        if file.exists():
            return file
        self._write_clips()
        clips = str(self.folder / "clips")
        return small_run.write(self.folder, {**SETTINGS, "STORE.source": clips, "TOKENIZER_TRAIN.source": clips})

    def _write_clips(self) -> None:
        """Films of noise, each with a caption: 12 to train on, 4 for validation."""
        import numpy as np

        from poet import media

        folder, lines = self.folder / "clips", []
        folder.mkdir(exist_ok=True)
        for number in range(16):
            film = np.random.default_rng(number).integers(0, 256, (12, 16, 16, 3), np.uint8)
            media.write_mp4(folder / f"{number:02d}.mp4", film, 8.0)
            split = "train" if number < 12 else "validation"
            lines.append({"file": f"{number:02d}.mp4", "caption": f"noise {number}", "split": split})
        (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def once(self, name: str, make: Callable[[Path], Any]) -> Path:
        """A folder that `make` fills, once for all faults; it must not be changed: `copy` it."""
        path, done = self.folder / f"once_{name}", self.folder / f"once_{name}.done"
        if not done.exists():
            shutil.rmtree(path, ignore_errors=True)
            make(path)
            done.touch()
        return path

    def new(self, name: str) -> Path:
        """A path where nothing is."""
        path = self.folder / "runs" / name
        path.parent.mkdir(exist_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        return path

    def copy(self, source: Path, name: str) -> Path:
        """A copy that may be hurt."""
        return Path(shutil.copytree(source, self.new(name)))

    # ------------------------------------------------------------------------------------- commands

    def start(
        self,
        arguments: Sequence[str],
        *,
        devices: int = 1,
        fault: Mapping[str, Any] | None = None,
        variables: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
    ) -> subprocess.Popen[str]:
        """Starts `poet ARGUMENTS` in a process of its own.

        `fault`: what `injected/sitecustomize.py` does to it.  `variables`: further ones of its environment.  `within`:
        a command that runs it.
        """
        paths = [str(INJECTED)] if fault else []
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([*paths, str(ROOT)]),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "POET_TEST_FAULT": json.dumps(dict(fault or {})),
            **(variables or {}),
        }
        return subprocess.Popen(
            [*within, sys.executable, "-m", "poet.cli", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, arguments: Sequence[str], **options: Any) -> Ended:
        """`start`, and the end of it."""
        return end(self.start(arguments, **options))

    def command(self, name: str, out: Path | str, *more: str) -> list[str]:
        """The arguments of a command that writes `out`."""
        settings = [f"--gin_file={self.gin_file}"]
        if name in ("eval", "export", "generate"):
            settings = [f"--checkpoint={self.trained}"]
        return [name, *settings, *_OUT[name](out), *more]

    @property
    def trained(self) -> Path:
        """The work dir of an undisturbed training."""
        return self.undisturbed("train")

    def undisturbed(self, name: str) -> Path:
        """What a command leaves that nothing happens to."""

        def make(out: Path) -> None:
            ended = self.run(self.command(name, out))
            assert ended.code == 0, f"{name} fails undisturbed: {ended.text[-3000:]}"

        return self.once(name.replace("-", "_"), make)


_OUT: dict[str, Callable[[Path | str], list[str]]] = {
    "train": lambda out: [f"--workdir={out}"],
    "tokenizer-train": lambda out: [
        f"--workdir={out}",
        "--gin.VIDEO_TOKENIZER.path=''",
        "--gin.TRAIN.steps=4",
        "--gin.CHECKPOINT.every=1",
    ],
    "tokenize": lambda out: [f"--gin.STORE.path={out}", "--gin.TEXT.width=384"],
    "eval": lambda out: [f"--out={out}", "--metric=likelihood", "--metric=condition_gain"],
    "export": lambda out: [f"--out={out}", "--gin.EXPORT.tasks=('text_to_video',)"],
    "generate": lambda out: ["text_to_video", "--prompt=a red ball", f"--out={out}", "--num=2"],
}


def end(process: subprocess.Popen[str]) -> Ended:
    """Waits for a command; one that hangs is killed and says so."""
    try:
        text, _ = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        text = process.communicate()[0] + f"\n(killed by the harness after {PATIENCE_S} s)"
    return Ended(process.returncode, text)


def last(text: str) -> str:
    """The last line of what a command printed."""
    return (text.strip().splitlines() or [""])[-1][:300]


def kill(process: subprocess.Popen[str]) -> Ended:
    """SIGKILL, at once."""
    process.send_signal(signal.SIGKILL)
    return end(process)


def wait(true: Callable[[], bool], process: subprocess.Popen[str]) -> bool:
    """Whether something came true while the process ran."""
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.005)
    return False


# ------------------------------------------------------------------------------------ what was left


def left_by(name: str, out: Path) -> dict[str, str]:
    """What a command left, by name: equal exactly where nothing was lost and nothing changed."""
    return _arrays(out) if name in ("train", "tokenizer-train") else _files(out)


def _arrays(workdir: Path) -> dict[str, str]:
    """Every array of the newest checkpoint, bit for bit."""
    from poet.checkpoints.contents import Contents
    from poet.runs.run import Run

    newest = Run(workdir).newest()
    assert newest is not None, workdir
    return {"step": str(newest.step)} | {name: _sha(array.tobytes()) for name, array in Contents(newest).read()}


# What of a file's content a clock, a folder or a machine decides: these files are compared by name alone.
_OF_THE_CLOCK = ("report.json", "eval.json", "generation.json", "MANIFEST", "README.md", "CHECKPOINT.md", "eval.html")


def _files(out: Path) -> dict[str, str]:
    found = (path for path in sorted(out.rglob("*")) if path.is_file())
    return {
        path.relative_to(out).as_posix(): "" if path.name in _OF_THE_CLOCK else _sha(path.read_bytes())
        for path in found
    }


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def difference(want: Mapping[str, str], got: Mapping[str, str]) -> str:
    """'' where both are equal, else the first few names that are not."""
    names = [name for name in sorted({*want, *got}) if want.get(name) != got.get(name)]
    return f"{len(names)} of {len(want)} differ: {', '.join(names[:4])}" if names else ""
