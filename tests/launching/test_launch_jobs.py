"""Descriptions of jobs: strict reading, and the examples that ship."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from launches import OF, SECTIONS, described

from poet import cli
from poet.launching import hardware, job, lint
from poet.launching.backend import Launch, command
from poet.launching.backends import BACKENDS
from poet.planning import topologies
from poet.runs import exits
from poet.spec import UserError, config

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "launch/jobs").glob("*.yaml"))
JOB = "name: tiny\ngin_files: gin/experiments/quickstart.gin\nworkdir: /runs/tiny\n"


def test_fields_become_the_words_of_a_command():
    text = JOB + "bindings: {DATA.store: /data/a b, DATA.batch: 8}\narguments: [--verbose]\nsize: tiny\n"
    assert job.parse(text, SECTIONS).job.command_line == (
        "poet",
        "train",
        "--gin_file=gin/experiments/quickstart.gin",
        "--size=tiny",
        "--gin.DATA.store=/data/a b",
        "--gin.DATA.batch=8",
        "--workdir=/runs/tiny",
        "--verbose",
    )


@pytest.mark.parametrize(
    "text, words",
    [
        ("[1, 2]", ["expected fields"]),
        ("name: {", ["not YAML"]),
        ("gin_files: a.gin", ["name is missing"]),
        (JOB + "topolgy: v5e-16", ["topolgy", "did you mean topology"]),
        (JOB + "tpu: {projct: p}", ["tpu", "projct", "did you mean project"]),
        (JOB + "tpu: 3", ["tpu", "expected fields"]),
        (JOB + "topology: v5e-17", ["v5e-17", "v5e-16"]),
        (JOB + "name: other", ["'name' stands twice", "line"]),
        (JOB + "processes: many", ["job.processes", "whole number"]),
        (JOB + "command: trian", ["job.command", "did you mean train"]),
        (JOB.replace("tiny", "Tiny_1"), ["job.name", "lower-case"]),
        (JOB + "topology: cpu-8\nprocesses: 3", ["8 devices cannot be split"]),
        (JOB + "topology: v5e-16\nprocesses: 2", ["has 4 hosts", "drop it"]),
        (JOB.replace("workdir: /runs/tiny\n", ""), ["job.workdir", "name a folder"]),
        (JOB + "command: tokenize", ["tokenize has no work dir"]),
        (JOB + "environment: {A-B: 1}", ["job.environment"]),
        (JOB + "restarts: -1", ["job.restarts", "0..1000000"]),
        (JOB + "arguments: [verbose]", ["--name=value"]),
        ("name: tiny\nworkdir: /runs\n", ["gin_files", "name a gin file"]),
    ],
)
def test_mistakes_are_named(text, words):
    with pytest.raises(UserError) as error:
        job.parse(text, SECTIONS)
    assert all(word in str(error.value) for word in words), error.value


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff")
    for name, words in (("no.yaml", "no such file"), (".", "not a file"), ("latin.yaml", "UTF-8")):
        with pytest.raises(UserError, match=words):
            job.read(tmp_path / name, SECTIONS)


@pytest.mark.parametrize(
    "backend, fields, words",
    [
        ("local", {"topology": "v5e-16"}, "drop it"),
        ("docker", {"topology": "h100-16"}, "one process"),
        ("docker", {"image": None}, "image is missing"),
        ("docker", {"topology": "v5e-4"}, "tpu.node"),
        ("docker", {"docker": {"volumes": ["data"]}}, "absolute paths"),
        ("slurm", {"topology": "v5e-16"}, "backends tpu or gke"),
        ("slurm", {"spot": True}, "partitions"),
        ("slurm", {"workdir": "runs/tiny"}, "relative"),
        ("slurm", {"processes": 1}, "among 2 nodes"),
        ("tpu", {"tpu": {"project": "p"}}, "tpu.zone is missing"),
        ("tpu", {"topology": "h100-8"}, "name a TPU"),
        ("tpu", {"gin_files": "mine.gin"}, "mine.gin is not in the image"),
        ("tpu", {"spot": True, "tpu": {"project": "p", "zone": "z", "node": "n"}}, "drop spot"),
        ("tpu", {"spot": True, "tpu": {"project": "p", "zone": "z", "reserved": True}}, "drop one"),
        ("gke", {"topology": "cpu-8"}, "name accelerators"),
        ("gke", {"workdir": "runs/tiny"}, "relative"),
        ("gke", {"queue": None, "gke": {"make_queue": True}}, "name the queue"),
        ("gke", {"gke": {"make_queue": True, "cpu": "many"}}, "no quantity"),
        ("skypilot", {"topology": None}, "topology is missing"),
        ("skypilot", {"topology": "2xv6e-16"}, "single slices"),
    ],
)
def test_what_a_backend_cannot_run_is_refused(backend, fields, words):
    found = described(backend, **fields) if "volumes" not in str(fields) else None
    with pytest.raises(UserError, match=words):
        found = found or described(backend, **fields)
        launch = Launch(job=found.job, options=found.options[backend], name="tiny-1", folder=ROOT)
        BACKENDS[backend].plan(launch)


def test_every_backend_has_a_job_in_these_tests():
    assert set(OF) == set(BACKENDS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_run_where_they_say(path: Path):
    """By their own backend, and by every one that they have a section for; their commands and settings are poet's."""
    found = job.read(path, SECTIONS)
    sections = {name for name in BACKENDS if f"\n{name}:" in path.read_text()}
    for name in {found.job.backend} | sections:
        launch = Launch(job=found.job, options=found.options[name], name="x-1", folder=ROOT / "launches/x-1")
        assert not lint.findings(launch, BACKENDS[name].plan(launch))
    words = [word for word in found.job.command_line[1:] if not word.startswith(cli.GIN_PREFIX)]
    assert cli._parse(words).command == found.job.command
    assert command(found.job) == ("poet", "supervise", "--", *found.job.command_line[1:])
    assert config.load(found.job.gin_files, found.job.bindings).train.steps > 0


def test_examples_use_every_backend():
    used = {name for path in EXAMPLES for name in BACKENDS if f"{name}" in path.read_text()}
    assert used == set(BACKENDS)


@pytest.mark.parametrize(
    "name, per_host, hosts",
    [("v5e-8", 8, 1), ("v5e-16", 4, 4), ("v5p-8", 4, 1), ("v4-32", 4, 4), ("2xv6e-16", 4, 8), ("h100-4", 4, 1),
     ("h100-64", 8, 8), ("cpu-8", 8, 1)],
)  # fmt: skip
def test_hosts_of_topologies(name, per_host, hosts):
    target = topologies.parse(name)
    assert (hardware.devices_per_host(target), hardware.hosts(target)) == (per_host, hosts)


def test_every_chip_has_the_names_of_its_clouds():
    assert set(hardware.NAMES) == set(topologies.CHIPS) - {"cpu"}
    with pytest.raises(UserError, match="accelerators"):
        hardware.names(topologies.parse("cpu-8"))


def test_the_guide_says_what_to_do_at_every_exit_code():
    page = (ROOT / "launch/operations.md").read_text()
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", page, re.M)] == sorted(exits.MEANINGS)


def test_the_page_of_launching_has_every_field_backend_and_rule():
    page = (ROOT / "launch/README.md").read_text()
    named = set(re.findall(r"`([\w]+)`", page))
    assert {field.name for field in dataclasses.fields(job.Job)} | set(BACKENDS) <= named
    assert set(lint.RULES) == set(re.findall(r"^\| ([a-z]+(?:-[a-z]+)+) \|", page, re.M))
