"""The location of shipped gin files and small weights: the checkout, else the installed wheel's data."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from poet.spec import UserError

CHECKOUT = Path(__file__).resolve().parents[2]
# `poet` on the package index is somebody else's.
DISTRIBUTION = "videopoet-jax"


def root() -> Path:
    """The folder that holds `gin/` and `data/pretrained/`."""
    if in_checkout():
        return CHECKOUT
    return Path(sysconfig.get_path("data")) / "share" / "poet"


def in_checkout() -> bool:
    """Whether this package runs from a checkout, and not from an installed wheel."""
    return (CHECKOUT / "gin" / "models").is_dir()


def install(extra: str) -> str:
    """The command that installs this package with an extra."""
    return f"pip install -e '.[{extra}]'" if in_checkout() else f"pip install '{DISTRIBUTION}[{extra}]'"


def places(path: str | Path) -> tuple[Path, Path, Path]:
    """Possible paths of weights of a name: from the current folder, among the shipped files, in `data/pretrained/`."""
    return Path.cwd() / path, root() / path, root() / "data" / "pretrained" / path


def find(path: str, what: str) -> Path:
    """An existing file or folder: as given from the current folder, else among the shipped ones."""
    for candidate in (Path(path), root() / path):
        if candidate.exists():
            return candidate
    raise UserError(f"{what} {path!r} does not exist (looked in . and in {root()})")
