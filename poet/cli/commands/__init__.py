"""The commands of `poet`: a file of this package that declares `COMMAND` is one, called as the file is.

It holds the command's flags, its help and its job; what several take is in `poet.cli.command`.
"""

from __future__ import annotations

import importlib
import pkgutil

from poet.cli.command import Command


def _declared() -> dict[str, Command]:
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    found = {name.replace("_", "-"): importlib.import_module(f"{__name__}.{name}").COMMAND for name in names}
    return dict(sorted(found.items(), key=lambda item: item[1].place))


COMMANDS: dict[str, Command] = _declared()
