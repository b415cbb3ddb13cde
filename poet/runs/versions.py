"""The versions that results may depend on."""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Iterable
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
