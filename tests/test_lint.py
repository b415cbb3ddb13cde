"""What tools say of the code: ruff of all of it, mypy of the core; and what its docstrings tell."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ("spec", "tasks", "models", "training")


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_a_tool_finds_nothing(command: str, tmp_path: Path) -> None:
    cache = {"mypy": [f"--cache-dir={tmp_path}"], "ruff": ["--no-cache"]}[command.split()[0]]
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), *cache], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def public_functions(package: str):
    """(where, function) of every function and method without an underscore, in modules without one."""
    for path in sorted((ROOT / "poet" / package).rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            owned = node.body if isinstance(node, ast.ClassDef) and node.name[0] != "_" else [node]
            for function in owned:
                if isinstance(function, ast.FunctionDef) and function.name[0] != "_":
                    yield f"{path.relative_to(ROOT)}:{function.name}", function


def is_told(function: ast.FunctionDef) -> bool:
    """Every array that is taken has its dims in its name, or the docstring speaks of shapes."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    hints = {a.arg: ast.unparse(a.annotation) for a in arguments if a.annotation}
    arrays = [name for name, hint in hints.items() if re.search(r"\b(jax|jnp|np)\.(Array|ndarray)", hint)]
    bare = [name for name in arrays if not re.search(r"_[A-Z]\w*$", name)]
    shape = r"\[[^\]]*\]|\b[A-Za-z0-9]+x[A-Z]|\(\w+, [^)]*\)|[Ss]calar|shape|x_[A-Z]|key"
    return not bare or set(bare) <= {"key", "step"} or bool(re.search(shape, ast.get_docstring(function) or ""))


def raises(function: ast.FunctionDef) -> bool:
    return any(isinstance(node, ast.Raise) and node.exc is not None for node in ast.walk(function))


@pytest.mark.parametrize("package", CORE)
def test_public_functions_say_shapes_and_errors(package: str):
    for where, function in public_functions(package):
        said = ast.get_docstring(function) or ""
        assert is_told(function), f"{where} takes arrays: its docstring says no shape"
        if raises(function):
            assert re.search(r"Raises|[Ee]rror|refuse|must", said), f"{where} raises: its docstring does not say so"
