"""Feature networks of metrics of whole sets, one file each; every file here is found by itself."""

from __future__ import annotations

import importlib
import pkgutil

from poet.evaluation.features.base import NETWORKS, SOUND_RATE_HZ, Features, Network, load, register

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
