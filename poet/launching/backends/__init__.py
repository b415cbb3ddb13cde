"""The backends of `poet launch`: a file of this package that declares `BACKEND` is one, called as the file is."""

from __future__ import annotations

import importlib
import pkgutil

from poet.launching.backend import Backend


def _declared() -> dict[str, Backend]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}").BACKEND for name in names}


BACKENDS: dict[str, Backend] = _declared()
