"""Files of others: a mutated one is read or refused by a `UserError`, and no code of one is run."""

from __future__ import annotations

import ast
import functools
import random
import re
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parent))

import fault_inputs  # noqa: E402
import fault_world  # noqa: E402, F401  (its paths)

from poet.runs import manifest  # noqa: E402
from poet.runs.run import Checkpoint  # noqa: E402
from poet.spec import UserError, config  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
# What loads objects by running code that a file names, and the modules that may use it.
RUNS_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
MAY = {"poet/tokenizers/torch_files.py"}  # Takes tensors and dicts of them alone, and refuses every other name.


@pytest.fixture(scope="module", params=fault_inputs.READERS)
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder, declared = tmp_path_factory.mktemp("inputs"), fault_inputs.READERS[request.param]
    seeds = declared.seeds(folder)
    for data in seeds:
        declared.read(data, folder / "whole")  # Whole ones are read.
    return seeds, functools.partial(declared.read, folder=folder / "input")


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(rng=st.randoms(use_true_random=False))
def test_a_mutated_input_is_read_or_refused(reader, rng: random.Random) -> None:
    seeds, read = reader
    try:
        read(fault_inputs.mutated(rng.choice(seeds), rng))
    except UserError:
        pass


# What a module that could do so has somewhere in its text.
RUN_CODE = (*RUNS_CODE, r"\b(eval|exec|compile)\(", r"yaml\.", "torch", r"os\.system", "shell=")
WORDS = re.compile("|".join(RUN_CODE))


def _suspects() -> list[tuple[str, str]]:
    texts = ((file.relative_to(ROOT).as_posix(), file.read_text()) for file in sorted((ROOT / "poet").rglob("*.py")))
    return [(name, text) for name, text in texts if WORDS.search(text)]


def test_no_code_of_a_file_is_run() -> None:
    """No pickles but those of torch's weights, read without running anything; no eval, exec or unsafe YAML."""
    found = []
    for name, text in _suspects():
        for node in ast.walk(ast.parse(text)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if RUNS_CODE & {module.split(".")[0] for module in modules} and name not in MAY:
                found.append(f"{name}:{node.lineno} imports {modules}")
            if isinstance(node, ast.Call) and (why := _unsafe(node, text)):
                found.append(f"{name}:{node.lineno} {why}")
    assert not found


def _unsafe(call: ast.Call, text: str) -> str:
    """Why a call may run code; a loader of YAML that is derived from the safe one does not."""
    called = ast.unparse(call.func)
    if called == "yaml.load" and "(yaml.SafeLoader)" in text:
        return ""
    if called in ("eval", "exec", "compile", "yaml.load", "yaml.unsafe_load", "torch.load", "os.system"):
        return called
    for keyword in call.keywords:
        if keyword.arg in ("allow_pickle", "shell") and ast.unparse(keyword.value) != "False":
            return f"{called}({keyword.arg}=...)"
    return ""


@pytest.mark.parametrize("name", ["/etc/hostname", "../outside", "a/../../outside", "", "a\0b"])
def test_a_manifest_cannot_make_us_read_another_folder(name: str, tmp_path: Path) -> None:
    """A manifest with a hash of its own that fits, as whoever writes one on purpose has it."""
    (tmp_path / "outside").write_bytes(b"secret")
    folder = tmp_path / "weights"
    folder.mkdir()
    (data,) = fault_inputs.READERS["manifests with a hash that fits"].seeds(folder)
    body = fault_inputs.json.loads(data)
    body["files"][name] = "0" * 64
    with pytest.raises(UserError):
        text = fault_inputs.json.dumps(body).encode()
        digest = fault_inputs.hashlib.sha256(text).hexdigest().encode()
        (folder / manifest.NAME).write_bytes(text + b"\n" + digest + b"\n")
        Checkpoint(folder).verify()
    with pytest.raises(manifest.Corrupt, match="no file of the folder"):
        manifest.check_listed(folder)


def test_a_listed_name_that_no_disk_takes_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    manifest.write(tmp_path, {})
    file = tmp_path / manifest.NAME
    body = file.read_bytes().split(b"\n")[0].replace(b'"a"', b'"' + b"a" * 300 + b'"')
    file.write_bytes(body + b"\n" + fault_inputs.hashlib.sha256(body).hexdigest().encode() + b"\n")
    with pytest.raises(manifest.Corrupt, match="aaa: File name too long"):
        manifest.check_listed(tmp_path)


def test_a_listed_device_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    manifest.write(tmp_path, {})
    (tmp_path / "a").unlink()
    (tmp_path / "a").symlink_to("/dev/zero")
    with pytest.raises(manifest.Corrupt, match="a is no file"):
        manifest.check_listed(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "import os",
        "from os import system",
        "TRAIN.steps = %steps",
        "steps = 3",
        "TRAIN.steps = @os.getpid()",
        "TRAIN.init_from = @print",
        "x/TRAIN.steps = 3",
        "print.sep = 'x'",
        "gin.enter_interactive_mode.x = 1",
        "include '/etc/hostname'",
        "include '../secret.gin'",
        f"include '{'a' * 5000}.gin'",
    ],
)
def test_a_gin_file_binds_registered_names_alone(line: str, tmp_path: Path) -> None:
    (tmp_path / "secret.gin").write_text("TRAIN.steps = 77\n")
    file = tmp_path / "runs/x.gin"
    file.parent.mkdir()
    file.write_text(f"{line}\n")
    with pytest.raises(UserError) as caught:
        config.load([str(file)])
    assert str(file) in str(caught.value)


def test_a_gin_file_includes_what_lies_beside_it_and_what_is_shipped(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/a.gin").write_text("TRAIN.steps = 77\n")
    (tmp_path / "x.gin").write_text(f"include 'gin/models/tiny.gin'\ninclude '{tmp_path}/parts/a.gin'\n")
    assert config.load([str(tmp_path / "x.gin")]).train.steps == 77
