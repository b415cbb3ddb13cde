"""Clips that stand in where shipped weights are evaluated and nobody names any."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from poet.cli import built_in
from poet.runs import assets
from poet.runs.run import Run
from poet.spec import UserError
from poet.tasks.resolved import Resolved

LM = str(assets.root() / "data/pretrained/lm_arenas")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done, in order; nothing is rendered."""
    done: list[str] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(built_in, "_render", lambda folder: done.append(f"rendered {folder.name}"))
    return done


def test_shipped_weights_get_a_store_and_its_clips(made: list[str], tmp_path: Path) -> None:
    trained, stores = Run.open(LM).checkpoint.spec, []
    for _ in range(2):
        found = built_in.supply(Run.open(LM), Resolved(trained), lambda r: stores.append(r.spec.store)).spec
        assert found.eval.source == str(tmp_path / "poet/clips/arenas_av/1.0.0") == stores[-1].source
        assert found.data.store == stores[-1].path and stores[-1].splits == ("train", "validation")
    assert made == ["rendered clips"] * 2 and stores[0] == stores[1]
    other = trained.replace(data=trained.data.replace(mixture_rates={"text_to_video": 1.0}))
    assert built_in.supply(Run.open(LM), Resolved(other), lambda r: None).spec.data.store != found.data.store


def test_what_the_user_names_and_what_does_not_ship_is_left_as_it_is(made: list[str], tmp_path: Path) -> None:
    trained = Run.open(LM).checkpoint.spec
    named = Resolved(trained.replace(data=trained.data.replace(store="codes")))
    assert built_in.supply(Run.open(LM), named, pytest.fail) == named
    assert built_in.supply(Run(tmp_path), Resolved(trained), pytest.fail).spec == trained and not made


def test_a_missing_engine_is_said_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    failed = subprocess.CompletedProcess([], 2, "", "bar\nerror: rendering needs vizdoom: pip install it\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match="pip install it; or give yours"):
        built_in.supply(Run.open(LM), Resolved(Run.open(LM).checkpoint.spec), pytest.fail)
