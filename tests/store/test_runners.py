"""Whoever encodes the ranges, the store is that of one process, byte by byte."""

from __future__ import annotations

import functools
import os
import pathlib
import subprocess
import sys

import pytest
import runner_fakes
import store_fakes as fakes

from poet.spec import UserError
from poet.store import reader, runners


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """11 + 3 clips, one of them unusable: three ranges and one."""
    folder = tmp_path_factory.mktemp("clips")
    fakes.write_folder(folder, [10 * k for k in range(11)])
    fakes.write_folder(folder, [10 * k + 5 for k in range(3)], "validation", "v")
    (folder / "clip_004.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def serial(source: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("store") / "s"
    runner_fakes.write(runner_fakes.spec(str(source), str(path)))
    return contents(path)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.mark.slow
def test_workers_write_the_store_of_one_process(
    source: pathlib.Path, serial: dict[str, bytes], tmp_path: pathlib.Path
) -> None:
    spec = runner_fakes.spec(str(source), str(tmp_path / "s"))
    runner_fakes.write(spec, runners.Workers(runner_fakes.encoders, 2))
    assert contents(tmp_path / "s") == serial


def test_a_store_has_one_writer(source: pathlib.Path, serial: dict[str, bytes], tmp_path: pathlib.Path) -> None:
    """A second one is refused with the first one's name; so is one that shares work, of a lone one."""
    path = tmp_path / "s"
    code = (
        "import pathlib, sys; from poet.runs import lease\n"
        "with lease.hold(pathlib.Path(sys.argv[1]), what='store'): print('held', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", code, str(path / ".partial")]
    shared = runners.Distributed(runners.Serial(runner_fakes.encoders()), 0, 2, wait_s=1.0)
    with subprocess.Popen(command, **pipes) as holder:
        assert holder.stdout.readline() == b"held\n"
        for runner in (None, shared):
            with pytest.raises(UserError, match=f"store .* is in use by another.*pid {holder.pid} on "):
                runner_fakes.write(runner_fakes.spec(str(source), str(path)), runner)
        assert [p.name for p in (path / ".partial").iterdir()] == ["lease.json"]
        holder.kill()
    runner_fakes.write(runner_fakes.spec(str(source), str(path)))
    assert contents(path) == serial


@pytest.mark.fault
def test_a_killed_worker_is_named_and_a_second_run_completes(
    source: pathlib.Path, serial: dict[str, bytes], tmp_path: pathlib.Path
) -> None:
    spec = runner_fakes.spec(str(source), str(tmp_path / "s"))
    factory = functools.partial(runner_fakes.dying_encoders, str(tmp_path / "flag"))
    with pytest.raises(RuntimeError, match=r"worker process died.* in work were: train 0\.\.3"):
        runner_fakes.write(spec, runners.Workers(factory, 1))
    with pytest.raises(UserError, match="did not finish"):
        reader.load_manifest(spec.path)
    runner_fakes.write(spec, runners.Workers(factory, 2))
    assert contents(tmp_path / "s") == serial


def start(source: pathlib.Path, path: pathlib.Path, index: int) -> subprocess.Popen:
    here = pathlib.Path(__file__).parent
    paths = [str(here), str(here.parent.parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, runner_fakes.__file__, str(source), str(path), str(index), "2"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_that_share_the_work_write_the_store_of_one(
    source: pathlib.Path, serial: dict[str, bytes], tmp_path: pathlib.Path
) -> None:
    processes = [start(source, tmp_path / "s", index) for index in (1, 0)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert contents(tmp_path / "s") == serial


def test_each_process_takes_every_nth_range_and_the_first_one_merges(
    source: pathlib.Path, serial: dict[str, bytes], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, both give up with a reason; what they did stays, and another run takes it up."""
    monkeypatch.setattr(runners, "POLL_S", 0.05)
    spec = runner_fakes.spec(str(source), str(tmp_path / "s"), wait_s=0.3)
    batches = []
    for index, reason in (
        (0, r"missing are train 4\.\.7, validation 0\.\.2"),
        (1, "manifest.json did not appear.*process 0"),
    ):
        made = runner_fakes.encoders()
        runner = runners.Distributed(runners.Serial(made), index, 2, wait_s=0.3)
        with pytest.raises(RuntimeError, match=reason):
            runner_fakes.write(spec, runner)
        batches.append(made.networks["video"].batches)
    # Ranges of 4, 4, 3 and 3 clips in batches of 2, one clip of the second range unusable.
    assert batches == [4, 4]
    runner_fakes.write(spec)
    assert contents(tmp_path / "s") == serial
    with pytest.raises(UserError, match="process 2 of 2: the index must lie in 0..1"):
        runners.Distributed(runners.Serial(made), 2, 2, wait_s=1.0)


def test_beam_writes_the_store_of_one_process(
    source: pathlib.Path, serial: dict[str, bytes], tmp_path: pathlib.Path
) -> None:
    pytest.importorskip("apache_beam")
    from poet.store import beam

    spec = runner_fakes.spec(str(source), str(tmp_path / "s"))
    runner_fakes.write(spec, beam.Beam(runner_fakes.encoders, "DirectRunner"))
    assert contents(tmp_path / "s") == serial
    other = runner_fakes.spec(str(source), str(tmp_path / "t"))
    with pytest.raises(UserError, match="--runner=NoSuchRunner"):
        runner_fakes.write(other, beam.Beam(runner_fakes.encoders, "NoSuchRunner"))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ray_writes_the_store_of_one_process_and_survives_a_worker(
    source: pathlib.Path, serial: dict[str, bytes], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first worker to make its encoders ends, as if it was killed."""
    pytest.importorskip("ray")
    from poet.store import ray

    # Ray's workers find the fakes by it, whatever runs the tests.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    spec = runner_fakes.spec(str(source), str(tmp_path / "s"))
    factory = functools.partial(runner_fakes.dying_encoders, str(tmp_path / "flag"))
    runner_fakes.write(spec, ray.Ray(factory, resources=(("num_cpus", 1.0),)))
    assert (tmp_path / "flag").exists() and contents(tmp_path / "s") == serial


def test_what_ray_sets_apart_for_a_task_is_read_strictly() -> None:
    from poet.store import ray

    assert ray.resources("num_cpus=4 num_gpus=0.5") == (("num_cpus", 4.0), ("num_gpus", 0.5))
    for text, words in (("num_cpus", "names and numbers"), ("cpus=1", "did you mean num_cpus")):
        with pytest.raises(UserError, match=words):
            ray.resources(text)
