"""The import floors of WORKSPACE.md, and what importing the package may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "poet"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Module or package -> floor.  A module may import poet modules of its own floor or lower ones.
FLOORS = {
    "poet": 0,
    "poet.spec": 0,
    "poet.streams": 0,
    "poet.tasks": 0,
    "poet.runs": 0,
    "poet.cli.logs": 0,
    "poet.distributed": 1,
    "poet.media": 1,
    "poet.conditioning": 1,
    "poet.planning": 1,
    "poet.launching": 1,
    "poet.launching.fit": 4,
    "poet.sampling.samplers": 1,
    "poet.sampling.fronts": 1,
    "poet.sampling.plans": 1,
    "poet.sampling.engine": 1,
    "poet.sampling.collapse": 1,
    "poet.sampling.progress": 1,
    "poet.sampling.base": 1,
    "poet.sampling.frozen": 1,
    "poet.sampling.passes": 1,
    "poet.sampling.projection": 1,
    "poet.sampling.steadying": 1,
    "poet.sampling.superres": 1,
    "poet.sampling.requests": 1,
    "poet.serving.format": 1,
    "poet.serving.runtime": 1,
    "poet.serving.loaded": 1,
    "poet.serving.steps": 1,
    "poet.serving.single": 1,
    "poet.serving.superres": 1,
    "poet.serving.written": 1,
    "poet.runs.compile_cache": 1,
    "poet.checkpoints.weights": 1,
    "poet.checkpoints.listing": 0,
    "poet.checkpoints.policy": 0,
    "poet.models": 2,
    "poet.tokenizers": 2,
    "poet.tokenizers.text": 1,
    "poet.tokenizers.pieces": 1,
    "poet.tokenizers.video.tiling": 1,
    "poet.store": 2,
    "poet.data": 2,
    "poet.runs.origins": 2,
    "poet.training": 3,
    "poet.sampling": 3,
    "poet.checkpoints": 3,
    "poet.tokenizers.adversarial": 3,
    "poet.tokenizers.video.training": 3,
    "poet.tokenizers.video.step": 3,
    "poet.tokenizers.video.losses": 3,
    "poet.tokenizers.audio.training": 3,
    "poet.tokenizers.audio.step": 3,
    "poet.training.loop": 4,
    "poet.training.reporting": 4,
    "poet.training.saving": 4,
    "poet.evaluation": 4,
    "poet.serving": 4,
    "poet.server": 4,
    "poet.server.store": 0,
    "poet.server.database": 0,
    "poet.planning.programs": 2,
    "poet.planning.decoding": 3,
    "poet.planning.passes": 3,
    "poet.planning.describe": 4,
    "poet.planning.forecast": 4,
    "poet.spec.config": 5,
    "poet.cli": 5,
}
# A network's own file may import what trains, validates and forecasts it.
FLOORS |= {f"poet.training.networks.{path.stem}": 4 for path in (PACKAGE / "training/networks").glob("[!_]*.py")} | {
    "poet.training.networks.base": 3
}
# Third-party package -> the only modules that may import it.
OWNERS = {
    "gin": {"poet.spec.config"},
    "orbax": {"poet.checkpoints.checkpoint", "poet.checkpoints.contents"},
    "clu": {"poet.training.reporting"},
    "seqio": {"poet.data"},
    "tensorflow": {"poet.data", "poet.store"},
    "tensorflow_datasets": {"poet.data", "poet.store"},
    "flax": {"poet.tokenizers.t5_files"},
    "av": {"poet.media"},
    "fsspec": {"poet.runs.buckets"},
    "apache_beam": {"poet.store.beam"},
    "ray": {"poet.store.ray"},
    "cv2": {"poet.conditioning"},
    "onnxruntime": {"poet.conditioning"},
    "fastapi": {"poet.server"},
    "starlette": {"poet.server"},
    "uvicorn": {"poet.server"},
    "pydantic": {"poet.server"},
    "sse_starlette": {"poet.server"},
    "prometheus_client": {"poet.server"},
}
# Imports of these must stand inside functions: they cost seconds.
LAZY = {
    "tensorflow",
    "tensorflow_datasets",
    "seqio",
    "matplotlib",
    "fsspec",
    "etils",
    "apache_beam",
    "ray",
    "cv2",
    "onnxruntime",
}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def lookup(table: dict, name: str):
    """The entry of the longest dotted prefix of `name`."""
    while name not in table:
        name = name.rpartition(".")[0]
        assert name, "no floor is declared"
    return table[name]


def imports(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_downwards(path: Path) -> None:
    name = name_of(path)
    floor = lookup(FLOORS, name)
    for target in imports(ast.parse(path.read_text())):
        if target.split(".")[0] == "poet" and target != "poet":
            assert lookup(FLOORS, target) <= floor, f"{name} (floor {floor}) imports {target}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_third_party_packages_stay_in_their_rooms(path: Path) -> None:
    name = name_of(path)
    for target in imports(ast.parse(path.read_text())):
        owners = OWNERS.get(target.split(".")[0])
        if owners:
            assert any(name == o or name.startswith(o + ".") for o in owners), (name, target)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_slow_packages_are_imported_inside_functions(path: Path) -> None:
    tree = ast.parse(path.read_text())
    top = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    heavy = {t.split(".")[0] for n in top for t in imports(n)} & LAZY
    assert not heavy, f"{name_of(path)} imports {heavy} at its top"


def graph() -> dict[str, set[str]]:
    """Module -> the modules of this package that it imports, at its top or inside functions."""
    names, found = {name_of(path) for path in MODULES}, {}
    for path in MODULES:
        targets = {t if t in names else t.rpartition(".")[0] for t in imports(ast.parse(path.read_text()))}
        found[name_of(path)] = targets & names - {name_of(path)}
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other, with those that import them; [] if there are none."""
    left = graph
    while free := {name for name, targets in left.items() if not targets & left.keys()}:
        left = {name: targets for name, targets in left.items() if name not in free}
    return sorted(left)


def test_no_modules_import_each_other() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]
    assert circle(graph()) == []


def takes_an_experiment(node: ast.AST) -> bool:
    """Whether it is a function with an argument, or a field, of the type `Experiment`."""
    if isinstance(node, ast.FunctionDef):
        return "Experiment" in ast.unparse(node.args)
    return isinstance(node, ast.AnnAssign) and "Experiment" in ast.unparse(node.annotation)


def test_few_places_take_a_whole_experiment() -> None:
    """All others say by their arguments what they read: a spec, or a value of `poet.tasks.resolved.Resolved`."""
    assert takes_an_experiment(ast.parse("spec: Experiment | None").body[0])
    texts = {name_of(path): text for path in MODULES if "Experiment" in (text := path.read_text())}
    found = {name: sum(map(takes_an_experiment, ast.walk(ast.parse(text)))) for name, text in texts.items()}
    assert sum(found.values()) <= 20, {name: count for name, count in found.items() if count}


def test_few_entries_stand_at_the_top() -> None:
    """A newcomer reads them all: what serves one package lies within it."""
    assert len({path.relative_to(PACKAGE).parts[0] for path in MODULES}) <= 22


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_private_names_stay_in_their_package(path: Path) -> None:
    """Neither `from poet.other import _name` nor `other._name`."""
    nodes, own = list(ast.walk(ast.parse(path.read_text()))), name_of(path).split(".")[:2]
    modules, taken = set(), []
    for node in nodes:
        package = node.module.split(".")[:2] if isinstance(node, ast.ImportFrom) else own
        if package[0] == "poet" and package != own:
            modules |= {alias.asname or alias.name for alias in node.names}
            taken += [f"{node.module}.{alias.name}" for alias in node.names if is_private(alias.name)]
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            taken += [f"{node.value.id}.{node.attr}"] if is_private(node.attr) else []
    assert not taken


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout


def test_import_and_help_load_nothing_heavy() -> None:
    code = (
        "import sys, poet\n"
        "from poet import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "print('HEAVY', sorted({'tensorflow','seqio','jax','flax','gin'} & set(sys.modules)))"
    )
    assert "HEAVY []" in run_python(code)


def test_model_step_sampling_and_runtime_run_without_tensorflow() -> None:
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in {'tensorflow', 'seqio', 'tensorflow_datasets', 'gin', 'clu'}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import poet.models.transformer, poet.training.step, poet.sampling.generate\n"
        "import poet.checkpoints.checkpoint, poet.serving.runtime, poet.tokenizers.video.base\n"
        "print('ok')"
    )
    assert run_python(code).strip().endswith("ok")


def test_test_files_have_names_of_their_own():
    """pytest imports them as top-level modules, so that two of one name cannot both be collected."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted(n for n in names if names.count(n) > 1)
