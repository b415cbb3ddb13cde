"""Two processes that share nothing but a bucket train as two that share a folder."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import bucket_servers
import jax
import numpy as np
import pytest

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / name) for name in (".", "data")]

import process_runs  # noqa: E402
import small_run  # noqa: E402

from poet.checkpoints import shards  # noqa: E402
from poet.checkpoints.contents import Contents  # noqa: E402
from poet.runs.buckets import mirror  # noqa: E402
from poet.runs.buckets.files import Place  # noqa: E402
from poet.runs.lines import read  # noqa: E402
from poet.runs.run import Run  # noqa: E402

SETTINGS = {"MESH.tensor": 2, "TRAIN.steps": 6, "TRAIN.log_every": 1, "CHECKPOINT.every": 3, "CHECKPOINT.keep": 2}
# A process with a cache of its own.
PROGRAM = f"import os, sys; os.environ[{mirror.CACHE!r}] = sys.argv.pop(1); from poet import cli; sys.exit(cli.main())"


def arrays(run: Run) -> dict[str, np.ndarray]:
    return dict(Contents(run.newest()).read())


@pytest.fixture(scope="module")
def gin_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_run.write(tmp_path_factory.mktemp("run"), SETTINGS))


def trained(gin_file: str, workdir: str, caches: list[Path]) -> list[str]:
    def command(address: str, index: int) -> list[str]:
        flags = [f"--coordinator={address}", "--processes=2", f"--process={index}", f"--workdir={workdir}"]
        return ["-c", PROGRAM, str(caches[index]), "train", f"--gin_file={gin_file}", *flags]

    codes, output = process_runs.run(2, command)
    assert codes == [0, 0], "\n\n".join(text[-3000:] for text in output)
    return output


@pytest.mark.slow
def test_two_processes_with_nothing_but_a_bucket_between_them(
    gin_file: str, tmp_path: Path, server: bucket_servers.Server
) -> None:
    url, caches = f"gs://{bucket_servers.BUCKET}/apart", [tmp_path / "first", tmp_path / "second"]
    trained(gin_file, str(tmp_path / "shared"), caches)
    want = arrays(Run(tmp_path / "shared"))

    assert "has a folder of its own" in trained(gin_file, url, caches)[0]
    held = mirror.fetch(url)
    assert Run(held).steps() == [3, 6] and Run(held).at(6).verify()["processes"] == 2
    got = arrays(Run(held))
    assert got.keys() == want.keys() and all(np.array_equal(got[name], want[name]) for name in want)
    assert not [name for name in Place(url).listed() if "/parts/" in name]

    for name in [name for name in Place(url).listed() if "00000006" in name]:
        Place(url).delete(name)
    shutil.rmtree(caches[1])  # Another machine goes on in its place.
    assert "resuming from step 3" in trained(gin_file, url, caches)[0]
    again = mirror.fetch(url)
    resumed = arrays(Run(again))
    assert all(np.array_equal(resumed[name], want[name]) for name in want)
    assert [line["step"] for line in read(again / "metrics.jsonl") if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]


def test_shards_of_all_processes_are_the_state(tmp_path: Path) -> None:
    """Each part of an array lies in the file of one process, and one that is nowhere is named."""
    from safetensors.numpy import save_file

    mesh = jax.make_mesh((4, 2), ("a", "b"), devices=jax.devices()[:8])
    sharded = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a", None))
    whole = {"w": np.arange(24, dtype=np.float32).reshape(8, 3), "n": np.int32(7)}
    state = {"params": {"w": jax.device_put(whole["w"], sharded)}, "step": jax.numpy.asarray(whole["n"])}
    own = shards.held(state, once=True)
    assert len(own) == 5 and sum(part.size for part in own.values()) == 25
    names = sorted(own)
    for number, half in enumerate((names[:2], names[2:])):
        save_file({name: own[name] for name in half}, tmp_path / f"{number}.safetensors")
    files = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    found = shards.joined(abstract, files, tmp_path)
    assert np.array_equal(found["params"]["w"], whole["w"]) and found["step"] == 7
    with pytest.raises(ValueError, match="no process wrote all of params.w"):
        shards.joined(abstract, files[1:], tmp_path)
