"""The check that a job fits its hardware: what is tried where it does not, and in which order."""

from __future__ import annotations

import dataclasses

import pytest

from poet.launching import fit
from poet.planning import topologies
from poet.planning.forecast import Forecast
from poet.planning.topologies import GIB
from poet.spec import (
    ClipSpec,
    DataSpec,
    Experiment,
    ModelSpec,
    OptimizerSpec,
    TextSpec,
    UserError,
    VideoTokenizerSpec,
    VocabularySpec,
)
from poet.tasks.resolved import Resolved

TARGET = topologies.parse("v5e-16")


def experiment(batch: int = 64, remat: str = "none", **model) -> Experiment:
    sizes = dict(layers=9, width=128, heads=4, kv_heads=4, head_dim=32, mlp_width=256, remat=remat)
    return Experiment(
        clip=ClipSpec(frames=5, height=32, width=32),
        vocabulary=VocabularySpec(visual_bits=6, audio_codes=16, text_pieces=64),
        video_tokenizer=VideoTokenizerSpec(bits=6),
        text=TextSpec(length=8, width=16),
        model=ModelSpec(**sizes | model),
        data=DataSpec(batch=batch, mixture_rates={"text_to_video": 1.0}),
        optimizer=OptimizerSpec(warmup_steps=0),
    )


def forecaster(needs):
    """A forecaster by `needs(spec, topology)` in GiB, of 15.75; and the list of what it was asked for."""
    asked = []

    def forecasts(resolved, topology, groups):
        spec = resolved.spec
        asked.append((spec, topology, groups))
        gib = needs(spec, topology)
        yield Forecast(
            program="train text-to-video",
            fits=gib <= 15.75,
            needed=gib * GIB,
            available=15.75 * GIB,
            flops=1.0,
            compile_s=0.0,
        )

    return forecasts, asked


def clips(spec, topology) -> float:
    """Clips of each device at a time."""
    return spec.data.batch / spec.train.microbatches / topology.size


@pytest.mark.parametrize(
    "needs, change",
    [
        (lambda s, t: 4 if s.model.remat == "full" else 20, "MODEL.remat=full (4.00 of 15.75 GiB)"),
        (lambda s, t: 7 * clips(s, t), "MODEL.remat=full, TRAIN.microbatches=2 (14.00"),
        (lambda s, t: 300 / t.size, "topology: v5e-32 (9.38"),
        (lambda s, t: 4 if s.data.batch == 16 else 99, "MODEL.remat=full, DATA.batch=16 (4.00"),
    ],
)
def test_the_smallest_change_that_the_forecast_accepts_is_named(needs, change):
    forecasts, asked = forecaster(needs)
    said = fit.smallest(Resolved(experiment()), TARGET, ("text-to-video",), forecasts)
    assert said.startswith(f"The smallest change that fits: {change}")
    assert all(groups == ("text-to-video",) for _, _, groups in asked)


def test_where_nothing_fits_what_was_tried_is_listed():
    forecasts, asked = forecaster(lambda s, t: 99)
    said = fit.smallest(Resolved(experiment()), TARGET, ("text-to-video",), forecasts)
    for change in ("MODEL.remat=full", "TRAIN.microbatches=4", "topology: v5e-256", "DATA.batch=16"):
        assert change in said
    assert len(asked) == said.count(";") + 1


def test_every_change_is_one_that_the_mesh_divides():
    for _, resolved, target in fit.changes(Resolved(experiment(batch=48)), TARGET):
        spec = resolved.spec
        assert spec.data.batch % (spec.train.microbatches * 16) == 0 or target.size > TARGET.size


def test_a_job_that_fits_says_nothing_and_one_that_does_not_is_refused(monkeypatch):
    monkeypatch.setattr(topologies, "devices", lambda topology: [])
    resolved = Resolved(experiment())
    monkeypatch.setattr(fit, "forecaster", forecaster(lambda s, t: 1)[0])
    fit.check(resolved, TARGET)
    monkeypatch.setattr(fit, "forecaster", forecaster(lambda s, t: 4 if s.model.remat == "full" else 20)[0])
    with pytest.raises(
        UserError, match=r"v5e-16: train text-to-video does not fit: it needs 20.00 of 15.75.*remat=full"
    ):
        fit.check(resolved, TARGET)


def test_without_the_compiler_the_remedy_is_named(monkeypatch):
    def missing(topology):
        raise UserError("libtpu is not installed")

    monkeypatch.setattr(topologies, "devices", missing)
    with pytest.raises(UserError, match="libtpu is not installed; or launch without the check, by --no_fit_check"):
        fit.check(Resolved(experiment()), TARGET)


def test_devices_of_unknown_memory_are_not_compiled_for(monkeypatch):
    monkeypatch.setattr(topologies, "devices", lambda topology: pytest.fail("asked for devices"))
    fit.check(Resolved(experiment()), topologies.parse("cpu-8"))


@pytest.mark.slow
def test_the_compiler_of_this_machine_accepts_what_is_named(monkeypatch):
    """Devices that hold the step with recomputation, and not the one without."""
    spec, chip = experiment(batch=64), topologies.CHIPS["cpu"]
    needed = {
        remat: next(fit.forecaster(Resolved(experiment(batch=64, remat=remat)), topologies.parse("cpu-8"), ())).needed
        for remat in ("none", "full")
    }
    assert needed["full"] < 0.9 * needed["none"]
    memory = (needed["full"] + needed["none"]) / 2
    small = dataclasses.replace(topologies.parse("cpu-8"), chip=dataclasses.replace(chip, memory=memory))
    with pytest.raises(UserError, match="does not fit.*The smallest change that fits: MODEL.remat=full"):
        fit.check(Resolved(spec), small)
    fit.check(Resolved(experiment(batch=64, remat="full")), small)
