"""Pages that say what the code does: drawn from it, or run as they stand."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from poet import media
from poet.distributed import mesh
from poet.models import placement
from poet.models.transformer import build_model
from poet.runs import assets
from poet.spec import config
from poet.tasks import picture, registry
from poet.tasks.resolved import Resolved

ROOT = Path(__file__).resolve().parent.parent


def test_the_picture_of_the_layouts_is_that_of_the_code():
    experiment = config.load(["gin/experiments/pretrain_300m.gin"])
    drawn = picture.svg(Resolved(experiment).layouts)
    assert (ROOT / "poet/tasks/layouts.svg").read_text() == drawn, (
        "poet describe --gin_file=gin/experiments/pretrain_300m.gin --picture=poet/tasks/layouts.svg --overwrite"
    )


def test_every_task_stands_in_its_page_and_in_the_paper_s_mixture():
    page = (ROOT / "poet/tasks/README.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.M)[: len(registry.TASKS)]
    named = set(re.findall(r"`(\w+)`", page))
    assert set(registry.TASKS) <= named
    mixture = config.load(["gin/experiments/pretrain_300m.gin"])
    of_the_model = {name for name, task in registry.TASKS.items() if task.network == registry.LANGUAGE_MODEL}
    assert {task.name for task in Resolved(mixture).mixture} == of_the_model


@pytest.mark.slow
def test_bring_your_own_data_runs_as_written(tmp_path):
    """The commands of data/README.md, in order, on a folder of films."""
    (block,) = re.findall(r"```bash\n(.*?)```", (ROOT / "data/README.md").read_text(), re.S)
    (tmp_path / "my_clips").mkdir()
    rng, lines = np.random.default_rng(0), []
    for name in ("one", "two", "three", "four"):
        film = rng.integers(0, 256, (30, 48, 80, 3), np.uint8)
        media.write_mp4(tmp_path / "my_clips" / f"{name}.mp4", film, 12.0)
        lines.append({"file": f"{name}.mp4", "caption": "a red ball rolls", "split": "train"})
    (tmp_path / "my_clips/captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    poet = f'poet() {{ "{sys.executable}" -m poet.cli "$@"; }}\n'
    # A newcomer's machine has one device, not the eight of tests/conftest.py.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    subprocess.run(["bash", "-euc", poet + block], cwd=tmp_path, check=True, env=environment)
    for folder in ("my_clips_sampled", "my_clips_painted"):
        assert (tmp_path / folder / "000.mp4").stat().st_size > 0


def test_the_picture_of_the_shards_is_that_of_the_code():
    experiment = config.load(["gin/experiments/pretrain_8b.gin"])
    drawn = placement.svg(build_model(Resolved(experiment)), mesh.abstract(experiment.mesh, 128))
    assert (ROOT / "poet/models/sharding.svg").read_text() == drawn, (
        "poet describe --gin_file=gin/experiments/pretrain_8b.gin --devices=128 "
        "--placement=poet/models/sharding.svg --overwrite"
    )


def test_the_page_of_the_shards_lists_every_rule():
    page = (ROOT / "poet/models/sharding.md").read_text()
    listed = {}
    for names, axes in re.findall(r"^\| (`.*?) \| (.*?) \|", page, re.M):
        found = tuple(re.findall(r"`(\w+)`", axes))
        listed |= dict.fromkeys(re.findall(r"`(\w+)`", names), found)
    rules = {n: () if e is None else (e,) if isinstance(e, str) else e for n, e in mesh.DEFAULT_RULES.items()}
    assert listed == rules


def test_the_page_of_what_fits_is_that_of_its_cells():
    """Every number of the page is one that the compiler gave, and cells that lack say so."""
    spec = importlib.util.spec_from_file_location("where_it_fits", ROOT / "tests/benchmarks/where_it_fits.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = script.cells()
    page = (ROOT / "gin/models/where_it_fits.md").read_text()
    assert page == script.page(found), "python tests/benchmarks/where_it_fits.py --page"
    computed = {(cell["size"], cell["topology"]) for cell in found}
    missing = len(script.every()) - len(computed)
    assert script.page(found).count("not computed |" + " |" * 7) == missing


def test_no_text_tells_to_install_the_package_that_somebody_else_owns():
    """`poet` on the package index is another project: ours is videopoet-jax there."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    wrong = re.compile(r"""\bpoet\[\w|pip3? install (-\S+ )*['"]?poet\b""")
    found = []
    for name in listed.split():
        if name != "tests/test_docs.py" and Path(name).suffix in (".py", ".md", ".sh", ".cfg", ".toml", ".gin"):
            found += [name] if wrong.search((ROOT / name).read_text()) else []
    assert not found
    assert "name = videopoet-jax\n" in (ROOT / "setup.cfg").read_text()
    assert assets.install("tpu") == "pip install -e '.[tpu]'"


def test_an_installed_package_is_extended_by_its_own_name(monkeypatch):
    monkeypatch.setattr(assets, "CHECKOUT", ROOT / "nowhere")
    assert assets.install("tpu") == "pip install 'videopoet-jax[tpu]'"


def test_every_relative_link_of_a_page_leads_somewhere():
    tops = ("poet", "gin", "data", "tests", "launch")
    pages = [*ROOT.glob("*.md"), *(page for top in tops for page in (ROOT / top).rglob("*.md"))]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())]
    assert len(links) > 50
    assert not [(page, link) for page, link in links if "://" not in link and not (page.parent / link).exists()]


@pytest.mark.parametrize("package", ["poet/spec", pytest.param("poet", marks=pytest.mark.slow)])
def test_the_api_reference_builds(package: str, tmp_path: Path):
    """Every module has its page."""
    (tmp_path / "launch").mkdir()
    shutil.copy(ROOT / "launch/docs.sh", tmp_path / "launch")
    (tmp_path / "launch/setup.sh").write_text('say() { echo "$*"; }\n')  # The environment is here already.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", str(tmp_path / "launch/docs.sh"), str(tmp_path / "pages"), package]
    subprocess.run(command, cwd=ROOT, check=True, timeout=500, capture_output=True, env=environment)
    modules = [path for path in (ROOT / package).rglob("*.py") if path.name != "__main__.py"]
    pages = [p.parent if p.name == "__init__.py" else p for p in modules]
    missing = [p for p in pages if not (tmp_path / "pages" / p.relative_to(ROOT).with_suffix(".html")).exists()]
    assert pages and not missing
