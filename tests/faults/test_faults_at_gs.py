"""The short form of every fault at gs://, in a file of its own: files are shared out among processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import fault_registry  # noqa: E402
import fault_world  # noqa: E402

SHORT = [name for name, fault in fault_registry.load().items() if fault.short and fault_registry.AT_GS in name]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> fault_world.World:
    return fault_world.World(tmp_path_factory.mktemp("world"))


@pytest.mark.fault
@pytest.mark.parametrize("name", SHORT)
def test_nothing_is_lost(name: str, world: fault_world.World) -> None:
    fault_registry.nothing_is_lost(name, world)
