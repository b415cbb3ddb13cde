"""Which runs may go on in a work dir, and that a refused one leaves it as it was."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path

import linear
import pytest

from poet.runs import versions
from poet.runs.run import Run
from poet.spec import UserError
from poet.training import compiled, loop

pytestmark = pytest.mark.usefixtures("no_tensorboard")
NETWORKS = {"video": "0123", "text": "4567", "store": "89ab"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps, as long as the run was to be."""
    workdir = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "clu.metric_writers", None)
        assert linear.run(workdir, 4, made_with=NETWORKS) is loop.Outcome.FINISHED
    return workdir


@pytest.fixture
def no_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "compile_steps", lambda *_: pytest.fail("it began to compile"))


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "lease.json")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.mark.usefixtures("no_compiling")
@pytest.mark.parametrize(
    "steps, options, words",
    [
        (4, {"width": 256}, r"MODEL.width = 128 \(now 256\)"),  # Not "already trained".
        (8, {"width": 256}, r"MODEL.width = 128 \(now 256\)"),
        (8, {"made_with": NETWORKS | {"video": "ffff"}}, "another video tokenizer.*0123.*ffff"),
        (8, {"made_with": NETWORKS | {"text": "ffff"}}, "another text encoder"),
        (4, {"made_with": NETWORKS | {"store": "ffff"}}, "another token store"),
    ],
)
def test_a_refused_resume_leaves_everything_as_it_was(trained, steps, options, words) -> None:
    before = contents(trained)
    with pytest.raises(UserError, match=words):
        linear.run(trained, steps, **options)
    assert contents(trained) == before


@pytest.mark.usefixtures("no_compiling")
def test_other_code_is_said_and_a_release_that_breaks_is_refused(trained, monkeypatch, caplog) -> None:
    now = versions.of_run()
    assert Run(trained).newest().versions == now
    monkeypatch.setattr(versions, "of_run", lambda: now | {"code": "0123", "jax": "0.0.1"})
    with caplog.at_level(logging.WARNING, "poet"):
        linear.run(trained, 4, made_with=NETWORKS)
    assert f"other code than the checkpoint {trained}" in caplog.text
    assert f"jax {now['jax']} -> 0.0.1, code {now['code']} -> 0123" in caplog.text
    monkeypatch.setattr(versions, "of_run", lambda: now | {"poet": "99.0.0"})
    with pytest.raises(UserError, match=rf"was written by poet {now['poet']}, which poet 99.0.0 does not continue"):
        linear.run(trained, 4, made_with=NETWORKS)


@pytest.mark.parametrize(
    "theirs, ours, broken",
    [
        ("0.1.0", "0.1.7", False),
        ("0.1.9", "0.2.0", True),
        ("0.9.0", "1.0.0", True),
        ("1.2.0", "1.9.3", False),
        ("1.9.0", "2.0.0", True),
        ("2.0.0", "1.9.0", True),
    ],
)
def test_which_releases_break(theirs, ours, broken) -> None:
    assert versions.incompatible({"poet": theirs}, {"poet": ours}) is broken
    assert not versions.incompatible({}, {"poet": ours})  # Written before it was kept.


def test_a_refusal_after_restoring_leaves_the_spec_as_it_was(trained, tmp_path, monkeypatch) -> None:
    workdir = shutil.copytree(trained, tmp_path / "w")
    before = (workdir / "spec.json").read_bytes()

    def refuse(*_):
        raise UserError("no position for a group")

    monkeypatch.setattr(loop._Training, "_resume", refuse)
    with pytest.raises(UserError, match="no position"):
        linear.run(workdir, 6)
    assert (workdir / "spec.json").read_bytes() == before


def test_a_longer_run_goes_on_and_says_so(trained, tmp_path, caplog) -> None:
    workdir = shutil.copytree(trained, tmp_path / "w")
    with caplog.at_level(logging.WARNING, "poet"):
        linear.run(workdir, 5, made_with=NETWORKS)
    assert "TRAIN.steps = 4 (now 5)" in caplog.text
    newest = Run(workdir).newest()
    assert newest.networks == NETWORKS
    assert newest.spec.train.steps == 5


def test_a_checkpoint_that_names_no_networks_is_taken_with_one_warning(tmp_path, caplog) -> None:
    linear.run(tmp_path, 2)
    assert Run.open(tmp_path).checkpoint.networks is None
    with caplog.at_level(logging.WARNING, "poet"):
        linear.run(tmp_path, 2, made_with=NETWORKS)
    assert [r.getMessage() for r in caplog.records if "none was compared" in r.getMessage()]


@pytest.mark.usefixtures("no_compiling")
def test_a_folder_of_something_else_is_refused_before_the_first_write(tmp_path) -> None:
    (tmp_path / "checkpoints" / "00000007").mkdir(parents=True)
    (tmp_path / "checkpoints" / "00000007" / "mine.txt").write_text("x")
    (tmp_path / "thesis.tex").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="not the folder of a run"):
        linear.run(tmp_path, 2)
    assert sorted(tmp_path.rglob("*")) == before
