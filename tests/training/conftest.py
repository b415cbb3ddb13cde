"""Loops under test write no TensorBoard files: it keeps them short."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture
def no_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "clu.metric_writers", None)
