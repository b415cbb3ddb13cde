"""The versions that results may depend on."""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

import poet


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Name -> version of poet, Python and those of the packages that are installed."""
    found = {"poet": poet.__version__, "python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def of_code() -> str:
    """16 hex characters for every Python file of the package: a version alone does not see a change of a checkout."""
    folder, digest = Path(poet.__file__).parent, hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def of_run() -> dict[str, str]:
    """What a training's results may depend on beside its settings: versions, and `code`, as `of_code`."""
    return installed(("jax", "jaxlib", "numpy", "optax")) | {"code": of_code()}


def changes(theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    """What differs, each as 'jax 0.8.0 -> 0.8.1'; of what was not written down nothing is known."""
    return [f"{name} {theirs[name]} -> {value}" for name, value in ours.items() if theirs.get(name, value) != value]


def incompatible(theirs: Mapping[str, str], ours: Mapping[str, str]) -> bool:
    """Whether a run must not go on with other versions than it had: those of a poet whose number says that it breaks.

    That is the first number, and until 1.0 the middle one.
    """
    return "poet" in theirs and _generation(theirs["poet"]) != _generation(ours["poet"])


def _generation(version: str) -> list[str]:
    numbers = version.split(".")
    return numbers[:2] if numbers[0] == "0" else numbers[:1]
