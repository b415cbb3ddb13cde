"""A small run of every command, as a user would start it, and what a command left as a value to compare."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
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
# Seconds after which a command that should have ended counts as hung: of an idle machine; `--patience` of a loaded one.
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
# The width of the text encoder that is shipped.
TEXT = "--gin.TEXT.width=384"
# Clips at two sizes, for super-resolution.
PAIRS = (
    "--gin.CLIP.height=32",
    "--gin.CLIP.width=32",
    "--gin.DATA.mixture_rates={'super_resolution': 1.0}",
    "--gin.MODEL.layers=3",
    "--gin.MODEL.visual_head='factorised'",
    "--gin.SUPER_RESOLUTION.vertical=(1, 0, 2)",
    "--gin.SUPER_RESOLUTION.horizontal=(1, 2, 0)",
    "--gin.SUPER_RESOLUTION.temporal=(2, 4, 4)",
    "--gin.SUPER_RESOLUTION.steps=2",
)


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

    @property
    def gin(self) -> str:
        return f"--gin_file={self.gin_file}"

    # ---------------------------------------------------------------------------------------- files

    def _write(self) -> Path:
        import small_run

        file = self.folder / "run.gin"
        if file.exists():
            return file
        shutil.rmtree(self.folder / "store", ignore_errors=True)  # Of a run of the harness that was stopped here.
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
        return [*COMMANDS[name](self, out), *more]

    @property
    def trained(self) -> Path:
        """The work dir of an undisturbed training."""
        return self.undisturbed("train")

    def undisturbed(self, name: str) -> Path:
        """What a command leaves that nothing happens to."""

        def make(out: Path) -> None:
            ended = self.run(self.command(name, out))
            assert ended.code == 0, f"{name} fails undisturbed: {ended.text[-3000:]}"

        return self.once(re.sub(r"\W", "_", name), make)


def _requests(world: World, out: Path | str) -> list[str]:
    """A file of two jobs, in the folder where their results are left."""
    file = Path(out) / "jobs.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"name": name, "seed": len(name)}) + "\n" for name in ("red", "blue")))
    return ["generate", "unconditional", f"--checkpoint={world.trained}", f"--requests={file}", f"--out={out}/clips"]


# Name -> the arguments that leave something at a path; beside the commands those that make what they read.
COMMANDS: dict[str, Callable[[World, Path | str], list[str]]] = {
    "train": lambda world, out: ["train", world.gin, f"--workdir={out}"],
    "tokenizer-train": lambda world, out: [
        "tokenizer-train",
        world.gin,
        f"--workdir={out}",
        "--gin.VIDEO_TOKENIZER.path=''",
        "--gin.TRAIN.steps=4",
        "--gin.CHECKPOINT.every=1",
    ],
    "tokenize": lambda world, out: ["tokenize", world.gin, TEXT, f"--gin.STORE.path={out}"],
    "eval": lambda world, out: [
        "eval",
        f"--checkpoint={world.trained}",
        f"--out={out}",
        "--metric=likelihood",
        "--metric=condition_gain",
    ],
    "export": lambda world, out: ["export", f"--checkpoint={world.trained}", f"--out={out}", "--tasks=unconditional"],
    "generate": _requests,
    "tokenize pairs": lambda world, out: ["tokenize", world.gin, TEXT, *PAIRS, f"--gin.STORE.path={out}"],
    "train on pairs": lambda world, out: [
        "train",
        world.gin,
        TEXT,
        *PAIRS,
        "--gin.TRAIN.steps=2",
        "--gin.CHECKPOINT.every=2",
        f"--gin.DATA.store={world.undisturbed('tokenize pairs')}",
        f"--workdir={out}",
    ],
    "upscale": lambda world, out: [
        "upscale",
        *(str(world.folder / "clips" / name) for name in ("00.mp4", "01.mp4")),
        f"--checkpoint={world.undisturbed('train on pairs')}",
        f"--out={out}",
    ],
}


def end(process: subprocess.Popen[str]) -> Ended:
    """Waits for a command; one that hangs is killed and says so."""
    try:
        text, _ = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        text = process.communicate()[0] + f"\n(killed by the harness after {PATIENCE_S:.0f} s)"
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
    if "train" not in name:
        return _files(out)
    return _arrays(out) | {f"tokenizer/{file}": value for file, value in _files(out / "tokenizer").items()}


def _arrays(workdir: Path) -> dict[str, str]:
    """Every array of the newest checkpoint, bit for bit."""
    from poet.checkpoints.contents import Contents
    from poet.runs.run import Run

    newest = Run(workdir).newest()
    assert newest is not None, workdir
    return {"step": str(newest.step)} | {name: _sha(array.tobytes()) for name, array in Contents(newest).read()}


# Files whose content a clock or a machine decides, and the manifests of these: compared by name alone.
_OF_THE_CLOCK = ("report.json", "report.html", "MANIFEST", "README.md", "CHECKPOINT.md")
_SECONDS = re.compile(rb'"seconds": ({[^}]*}|[^,}]*)')
_BOARD = re.compile(r"(events\.out\.tfevents)\..*")


def _files(out: Path) -> dict[str, str]:
    found = (path for path in sorted(out.rglob("*")) if path.is_file())
    return dict(_file(path, path.relative_to(out).as_posix()) for path in found)


def _file(path: Path, name: str) -> tuple[str, str]:
    """Its name, and what of it is the same every time."""
    if path.name in _OF_THE_CLOCK:
        return name, ""
    if _BOARD.search(name):  # It has the time, the host and the process in its name.
        return _BOARD.sub(r"\1", name), ""
    return name, _sha(_SECONDS.sub(b"", path.read_bytes()))


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def difference(want: Mapping[str, str], got: Mapping[str, str]) -> str:
    """'' where both are equal, else the first few names that are not."""
    names = [name for name in sorted({*want, *got}) if want.get(name) != got.get(name)]
    return f"{len(names)} of {len(want)} differ: {', '.join(names[:4])}" if names else ""
