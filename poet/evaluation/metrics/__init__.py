"""The metrics, one file for each or for a few that belong together; every file here is found by itself."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

from poet.evaluation import metric, samples
from poet.evaluation.features import Features
from poet.evaluation.metric import Metric
from poet.spec import choose


def load() -> None:
    """Imports every file of this package, which registers its metrics (`poet.evaluation.metric.METRICS`)."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def select(table: str, names: Sequence[str] = ()) -> tuple[list[Metric], dict[str, str]]:
    """The metrics of a table, by default all -> (those that can run, what each other one lacks).

    Raises:
      UserError: no such metric in the table.
    """
    known = {name: each for name, each in metric.METRICS.items() if table in each.tables}
    chosen = {name: choose(name, known, f"metric of {table.replace('_', ' ')}") for name in names or known}
    missing = {name: each.install for name, each in chosen.items() if not each.is_installed}
    return [each for name, each in chosen.items() if name not in missing], missing


def of_features(features: Features, table: str) -> list[Metric]:
    """The metrics of a table that the vectors of a network have; see `poet.evaluation.samples.declare`.

    Texts are what clips are made of, not what is scored: a text network has none.
    """
    if features.medium == "text":
        return []
    made = (make(features) for make in samples.MAKERS)
    return [each for each in made if each and table in each.tables]


load()
