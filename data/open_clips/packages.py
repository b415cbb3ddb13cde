"""Debian packages: fetched with apt-get into a folder and unpacked there, without installing."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterable


class PackageError(ValueError):
    """A package cannot be had: says which one and what to do."""


def fetch(names: Iterable[str], folder: pathlib.Path) -> dict[str, str]:
    """Puts the .deb files of packages into a folder, unless they lie there; returns the versions.

    Raises:
      PackageError: apt-get is missing, or does not know or cannot reach a package.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in names if not _deb(name, folder)]
    if missing:
        _download(missing, folder)
    return {name: _deb(name, folder).name.split("_")[1] for name in names}


def _deb(name: str, folder: pathlib.Path) -> pathlib.Path | None:
    return max(folder.glob(f"{name}_*.deb"), default=None)


def _download(names: list[str], folder: pathlib.Path) -> None:
    by_hand = f"put the .deb files of {', '.join(names)} (Debian 12) into {folder} and build again"
    if shutil.which("apt-get") is None:
        raise PackageError(f"apt-get is not installed here; {by_hand}")
    # Downloaded beside its place, so that a broken download is never taken for a package.
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        done = subprocess.run(
            ["apt-get", "-q", "download", *names],
            cwd=fresh,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for file in pathlib.Path(fresh).glob("*.deb"):
            file.replace(folder / file.name)
    lacking = [name for name in names if not _deb(name, folder)]
    if done.returncode or lacking:
        raise PackageError(
            f"apt-get cannot download {', '.join(lacking or names)}: "
            f"{done.stdout.strip()[-400:]}\nRun apt-get update, or {by_hand}"
        )


def unpack(name: str, folder: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Unpacks a fetched package below `target` and returns the folder of its files.

    Raises:
      PackageError: dpkg-deb is missing, or the file is damaged.
    """
    root, deb = target / name, _deb(name, folder)
    if shutil.which("dpkg-deb") is None:
        raise PackageError("dpkg-deb is not installed here; install the package dpkg")
    done = subprocess.run(["dpkg-deb", "-x", str(deb), str(root)], text=True, capture_output=True)
    if done.returncode:
        raise PackageError(f"{deb} is damaged ({done.stderr.strip()}); delete it and build again")
    return root
