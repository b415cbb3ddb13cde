"""An sdist, the wheel that is built from it, and what it does where there is no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

from poet import media

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.long]


def build(kind: str, source: Path, out: Path) -> Path:
    """An archive that setuptools makes of a folder of sources."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True, timeout=300)
    (found,) = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, and the packages of this one."""
    base = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (base / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, base / "source" / name)
    sdist = build("sdist", base / "source", base / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(base / "unpacked", filter="data")
    (unpacked,) = (base / "unpacked").iterdir()
    wheel = build("wheel", unpacked, base / "wheels")
    venv.create(base / "venv", with_pip=False, symlinks=True)
    python = base / "venv/bin/python"
    command = ["pip", f"--python={python}", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", *command], check=True, timeout=300)
    (own,) = (base / "venv/lib").glob("python*/site-packages")
    (own / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    shutil.rmtree(base / "source")
    return base / "venv/bin"


def run(installed: Path, folder: Path, *words: str) -> str:
    """Output of a program of the environment, run from a folder without a checkout."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    done = subprocess.run(
        [installed / words[0], *words[1:]], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_wheel_is_what_runs(installed: Path, tmp_path: Path):
    where = run(installed, tmp_path, "python", "-c", "import poet; print(poet.__file__)")
    assert Path(where.strip()).is_relative_to(installed.parent)
    assert "Train, evaluate and serve" in run(installed, tmp_path, "poet", "--help")
    assert "Mesh of 8" in run(
        installed, tmp_path, "poet", "describe", "--gin_file=gin/experiments/pretrain_300m.gin", "--devices=8"
    )


def test_the_shipped_weights_generate(installed: Path, tmp_path: Path):
    run(
        installed,
        tmp_path,
        *("poet", "generate", "--checkpoint=lm_arenas", "--task=text_to_video", "--prompt=a red hall", "--out=made"),
    )
    (film,) = (tmp_path / "made").glob("*.mp4")
    with media.open_film(film) as opened:
        assert sum(1 for _ in opened.timed()) == 17
