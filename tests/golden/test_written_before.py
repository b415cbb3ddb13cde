"""Files of an earlier version, in `tests/fixtures/written_before`, are read and used as they were.

`write_files.py` wrote them; `expected.json` beside them says what they gave.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import write_files

FILES = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "written_before"
EXPECTED = json.loads((FILES / "expected.json").read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """What this version makes of a copy of them."""
    folder = shutil.copytree(FILES, tmp_path_factory.mktemp("before") / "files")
    command = [sys.executable, write_files.__file__, str(folder), "--read"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "found.json").read_text())


def test_a_store_is_intact_and_holds_what_it_held(found):
    assert found["store"] == EXPECTED["store"]


def test_a_checkpoint_and_released_weights_hold_the_same_parameters(found):
    """Both name the tokenizer that lies beside them, and it is the one."""
    assert found["params"] == EXPECTED["params"] and found["params"]["lm"] == found["params"]["weights"]
    assert found["networks"] == EXPECTED["networks"] != {}


def test_a_run_goes_on_from_its_checkpoint(found):
    assert found["steps"] == [1, 2, 3, 4]


def test_an_export_samples_what_it_did(found):
    tokens = np.array(found["tokens"])
    assert tokens.shape == np.shape(EXPECTED["tokens"])
    if found["key"] == EXPECTED["key"]:
        np.testing.assert_array_equal(tokens, EXPECTED["tokens"])
