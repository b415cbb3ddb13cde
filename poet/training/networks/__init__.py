"""Networks that a run can train from a token store, by name: each is a file here that declares `NETWORK`.

A task names its network (`poet.tasks.registry.Task.network`).  Training, `poet describe`, forecasts and refusals use
the interface `poet.training.networks.base.Network` and never compare names.
"""

from __future__ import annotations

import importlib
import pkgutil

from poet.runs.run import Checkpoint
from poet.spec import UserError, choose
from poet.tasks.registry import TASKS
from poet.tasks.resolved import Resolved
from poet.training.networks.base import Network


def _declared() -> dict[str, Network]:
    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    return {module.NETWORK.name: module.NETWORK for module in modules if hasattr(module, "NETWORK")}


NETWORKS: dict[str, Network] = _declared()


def get(name: str) -> Network:
    """The network of this name; UserError with near names otherwise."""
    return choose(name, NETWORKS, "network")


def of(resolved: Resolved) -> Network:
    """The network that a run trains; UserError for a mixture with tasks of two."""
    return get(resolved.network)


def expect(checkpoint: Checkpoint, name: str) -> None:
    """Raises UserError unless a checkpoint is of the network `name`; it says which commands take the checkpoint."""
    theirs, ours = of(Resolved(checkpoint.spec)), get(name)
    if theirs is ours:
        return
    takers = " or ".join(f"`poet {command}`" for command in theirs.commands)
    task = next(task.name for task in TASKS.values() if task.network == name)
    raise UserError(
        f"{checkpoint.path} is {theirs.title}: "
        f"{f'give it to {takers}' if takers else 'no command samples from it'}, and this command {ours.title}, "
        f"which a run with e.g. DATA.mixture_rates = {{{task!r}: 1.0}} trains"
    )
