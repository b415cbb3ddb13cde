"""Plans of small jobs, for the tests of launching."""

from __future__ import annotations

from pathlib import Path

import yaml

from poet.launching import job
from poet.launching.backend import Launch
from poet.launching.backends import BACKENDS
from poet.launching.plan import Plan

SECTIONS = {name: backend.options for name, backend in BACKENDS.items()}
FOLDER = Path("/shared/launches/tiny-1")
# Fields that a job has for a backend, beside those of every job.
OF = {
    "local": {},
    "docker": {"image": "poet:1", "topology": "h100-8"},
    "slurm": {"topology": "h100-16", "queue": "long"},
    "tpu": {"image": "eu-docker.pkg.dev/p/poet:1", "topology": "v5e-16", "tpu": {"project": "p", "zone": "z"}},
    "gke": {"image": "poet:1", "topology": "v5e-16", "queue": "research"},
    "skypilot": {"image": "poet:1", "topology": "h100-16"},
}


def described(backend: str, **fields) -> job.Description:
    """A description for a backend; fields may replace, and None drops, those that it has."""
    common = {"name": "tiny", "gin_files": "gin/experiments/quickstart_train.gin", "workdir": "/shared/runs/tiny"}
    values = common | OF[backend] | {"backend": backend} | fields
    return job.parse(yaml.safe_dump({n: v for n, v in values.items() if v is not None}), SECTIONS)


def launched(backend: str, **fields) -> Launch:
    found = described(backend, **fields)
    return Launch(job=found.job, options=found.options[backend], name="tiny-1", folder=FOLDER)


def planned(backend: str, **fields) -> Plan:
    return BACKENDS[backend].plan(launched(backend, **fields))
