"""Programs for accelerators that are not here: names, the report, and what the compilers say."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest

from poet import cli
from poet.cli import command
from poet.distributed import mesh as mesh_lib
from poet.models.transformer import build_model
from poet.planning import forecast, programs, topologies
from poet.spec import (
    ClipSpec,
    DataSpec,
    Experiment,
    MeshSpec,
    ModelSpec,
    OptimizerSpec,
    SampleSpec,
    SuperResolutionSpec,
    TextSpec,
    UserError,
    VideoTokenizerSpec,
    VocabularySpec,
    config,
)
from poet.tasks.resolved import Resolved

QUICKSTART = "--gin_file=gin/experiments/quickstart.gin"


def experiment(clips: int, **model) -> Experiment:
    """Deep enough that layers are scanned."""
    sizes = dict(layers=9, width=128, heads=4, kv_heads=4, head_dim=32, mlp_width=256)
    return Experiment(
        clip=ClipSpec(frames=5, height=32, width=32),
        vocabulary=VocabularySpec(visual_bits=6, audio_codes=16, text_pieces=64),
        video_tokenizer=VideoTokenizerSpec(bits=6),
        text=TextSpec(length=8, width=16),
        model=ModelSpec(**sizes | model),
        mesh=MeshSpec(),
        data=DataSpec(batch=clips, mixture_rates={"text_to_video": 1.0}),
        optimizer=OptimizerSpec(warmup_steps=0),
    )


# ---------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name, grid, size, slices",
    [
        ("v5e-16", (4, 4), 16, 1),
        ("v5p-256", (4, 4, 8), 128, 1),  # 256 TensorCores are 128 devices.
        ("v4-128", (4, 4, 4), 64, 1),
        ("2xv6e-256", (16, 16), 512, 2),
        ("h100-64", (8, 8), 64, 1),
        ("cpu-8", (8,), 8, 1),
    ],
)
def test_names_give_devices_and_slices(name, grid, size, slices):
    found = topologies.parse(name)
    assert (found.grid, found.size, found.slices) == (grid, size, slices)


@pytest.mark.parametrize(
    "name, words",
    [
        ("v5e-17", "v5e-16"),
        ("v6-256", "v6e-256"),
        ("2xv6e-255", "v6e-256"),
        ("2xh100-8", "h100-64"),
        ("0xv6e-16", "2xv6e-256"),
        ("", "unknown topology"),
    ],
)
def test_a_wrong_name_is_refused_with_near_ones(name, words):
    with pytest.raises(UserError, match=words):
        topologies.parse(name)


def test_the_ends_of_a_short_axis_are_not_joined():
    """A v5e pod is a torus of 16 x 16; a slice of it is an open grid, at half the rate."""
    part, pod = (topologies.parse(name).link_rate for name in ("v5e-16", "v5e-256"))
    assert pod == 2 * part == 4 * topologies.CHIPS["v5e"].link_rate


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--topology=v5e-16"], ["libtpu", "pip install -e '.[tpu]'"]),
        (["--topology=h100-64"], ["jax_cuda13_plugin", "pip install -e '.[gpu]'"]),
        (["--topology=v5e-16", "--devices=4"], ["--devices"]),
        (["--group=video"], ["--topology"]),
        (["--topology=cpu-8", "--gin.DATA.batch=8", "--group=vdeo"], ["vdeo", "video"]),
        (["--topology=cpu-8", "--gin.DATA.batch=3"], ["batch", "multiple of 8"]),
    ],
)
def test_mistakes_are_found_before_anything_is_compiled(arguments, words, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: find(n, *a) if n == "x" or "." in n else None)
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *_, **__: pytest.fail("compiled"))
    assert cli.main(["describe", QUICKSTART, *arguments]) == cli.EXIT_USER
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in last for word in words), last


# ------------------------------------------------------------------------------- the whole report


def test_the_report_of_eight_devices_of_this_machine(capsys, monkeypatch):
    """Over fsdp alone every layer is gathered twice, and its gradient summed once, inside loops; no
    device needs another's samples, guided and truncated as they are."""
    run = experiment(8, dtype="float32").replace(sample=SampleSpec(guidance=2.0, top_k=5))
    monkeypatch.setattr(command, "resolve", lambda args: Resolved(run))
    assert cli.main(["describe", "--topology=cpu-8", "--json"]) == 0
    train, decode = map(json.loads, capsys.readouterr().out.splitlines())
    assert (train["program"], decode["program"]) == ("train text-to-video", "decode text-to-video")
    assert train["fits"] is None and train["bound"] == "" and not train["refusal"]
    layers = programs.part_bytes(build_model(Resolved(run)), mesh_lib.abstract(run.mesh, 8), "blocks")
    assert train["in_loops"] == pytest.approx(3 * layers, rel=0.02)
    assert train["in_loops"] < sum(train["moved"].values()) and train["needed"] > train["temporary"] > 0
    # Each of the 32 codes reads parameters that are whole on every device.
    assert decode["calls"] == 32 and sum(decode["moved"].values()) == 0


def test_sampling_of_super_resolution_is_forecast_by_passes(capsys, monkeypatch):
    """The branches of a clip's guidance stay on its device."""
    run = experiment(8, dtype="float32", layers=3, visual_head="factorised").replace(
        super_resolution=SuperResolutionSpec(vertical=(1, 0, 2), horizontal=(1, 2, 0), temporal=(2, 4, 4), steps=5),
        data=DataSpec(batch=8, mixture_rates={"super_resolution": 1.0}),
    )
    monkeypatch.setattr(command, "resolve", lambda args: Resolved(run))
    assert cli.main(["describe", "--topology=cpu-8", "--json"]) == 0
    train, decode = map(json.loads, capsys.readouterr().out.splitlines())
    group = "text+low_resolution-to-video"
    assert (train["program"], decode["program"]) == (f"train {group}", f"decode {group}")
    assert (decode["calls"], decode["call"]) == (5, "pass") and decode["needed"] > decode["temporary"] > 0
    assert sum(train["moved"].values()) > sum(decode["moved"].values()) == 0


def test_a_refusal_is_a_row_with_advice(monkeypatch):
    """The compiler's words become numbers; other failures stay failures."""
    words = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 27.03G of 15.75G hbm. Exceeds by 11.28G"

    class Lowered:
        def __init__(self, message):
            self.message = message

        def compile(self):
            raise jax.errors.JaxRuntimeError(self.message)

    target = topologies.parse("v5e-16")
    mesh = mesh_lib.abstract(MeshSpec(), 16)
    cost = programs.Cost(flops=1.0, traffic=1.0)
    program = programs.Program(name="train video", lower=lambda: Lowered(words), cost=cost)
    found = forecast._forecast(program, mesh, target)
    assert found.fits is False and found.needed == pytest.approx(27.03 * 2**30)
    run = experiment(64, remat="none")
    advice = " ".join(forecast.advice(Resolved(run), found, target, mesh))
    for change in ("MODEL.remat = 'full'", "TRAIN.microbatches = 2", "MESH.tensor = 2", "more devices"):
        assert change in advice
    one_clip_each = forecast.advice(Resolved(experiment(16, remat="none")), found, target, mesh)
    assert "MESH.sequence = 2 with DATA.batch = 8" in one_clip_each
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        forecast._forecast(dataclasses.replace(program, lower=lambda: Lowered("INTERNAL: a bug")), mesh, target)


def test_a_state_that_is_too_large_is_refused_before_compiling(monkeypatch):
    """8.2 billion parameters with two moments, 92 GiB, on 8 GPUs of 71 GiB: yes; on one: no."""
    monkeypatch.setattr(forecast, "_forecast", lambda *_: None)
    run = config.load(["gin/experiments/pretrain_8b.gin"], ["DATA.batch=8", "DATA.batch_multiple=8"])

    def train(gpus: int, tensor: int) -> forecast.Forecast | None:
        spec = run.replace(mesh=MeshSpec(tensor=tensor))
        target = topologies.parse(f"h100-{gpus}")
        return next(forecast.forecasts(Resolved(spec), target, jax.devices()[:gpus], ["text-to-image"]))

    found = train(1, 1)
    assert found.fits is False and found.needed == pytest.approx(8_216_793_088 * 12, rel=1e-4)
    assert train(8, 4) is None  # Left to the compiler.


def test_the_page_says_what_fits_what_moves_and_what_to_change(monkeypatch, capsys):
    """The report after the plan, with two programs as the compiler might have left them."""
    known = dict(available=16 * 2**30, flops=1e12, compile_s=2.0)
    fits = forecast.Forecast(
        program="train video",
        fits=True,
        needed=8 * 2**30,
        temporary=2**30,
        in_loops=2**30,
        moved={"all-gather": 2 * 2**30},
        across=2**29,
        seconds={"compute": 0.5, "ICI": 0.75},
        **known,
    )
    refused = forecast.Forecast(
        program="train image", fits=False, needed=20 * 2**30, refusal="RESOURCE_EXHAUSTED: no room", **known
    )
    monkeypatch.setattr(forecast, "forecasts", lambda *_: iter((fits, refused)))
    assert cli.main(["describe", QUICKSTART, "--topology=cpu-8", "--gin.DATA.batch=8"]) == 0
    page = capsys.readouterr().out
    for words in (
        "Parameters",
        "train video: fits: needs 8.00 of 16.00 GiB",
        "2.000 GiB all-gather",
        "0.500 GiB between slices",
        "predicted 0.75 s, bound by ICI",
        "train image: DOES NOT FIT: needs at least 20.00 of 16.00 GiB",
        "change: more devices",
    ):
        assert words in page, words


def test_the_slowest_resource_is_the_bound():
    target = topologies.parse("2xv6e-256")
    cost = programs.Cost(flops=918e12, traffic=1.64e12)
    times = forecast._seconds(cost, {"all-gather": 36e9, "all-reduce": 36e9}, {"all-reduce": 12.5e9}, target)
    assert times == pytest.approx(
        {"compute": 1 / forecast.EFFICIENCY, "ICI": 3 * 36e9 / 360e9, "HBM": 1.0, "network": 2.0}
    )


# ------------------------------------------------------------------------- what libtpu says (slow)

# The compiler of TPUs is in libtpu alone, which the extra `tpu` brings and the suite does not install.
without_libtpu = importlib.util.find_spec("libtpu") is None
tpu = [pytest.mark.slow, pytest.mark.skipif(without_libtpu, reason="libtpu compiles for TPUs: pip install -e '.[tpu]'")]


class TestWithLibtpu:
    pytestmark = tpu

    def step(self, name: str, run: Experiment) -> forecast.Forecast:
        target = topologies.parse(name)
        return next(forecast.forecasts(Resolved(run), target, topologies.devices(target), decode=False))

    @pytest.mark.parametrize("chip", ("v4", "v5e", "v5p", "v6e"))
    def test_the_library_knows_the_chips_by_these_names(self, chip):
        size = max(topologies.GRIDS[chip]) if chip in ("v5e", "v6e") else 64
        target = topologies.parse(f"{chip}-{size * topologies.CHIPS[chip].counts}")
        found = topologies.devices(target)
        assert {d.device_kind for d in found} == {target.chip.kind} and len(found) == target.size

    def test_slices_lie_along_data(self):
        target = topologies.parse("2xv6e-16")
        with pytest.raises(UserError, match="MESH.data = 2"):
            mesh_lib.build(MeshSpec(), topologies.devices(target))
        mesh = mesh_lib.build(MeshSpec(data=2), topologies.devices(target))
        assert [{d.slice_index for d in part.flat} for part in mesh.devices] == [{0}, {1}]

    def test_layers_move_three_times_their_bytes_whatever_the_number_of_chips(self):
        """Weak scaling by proof: one clip a chip, 16, 64 and 256 chips."""
        run, moved = experiment(1, width=256, mlp_width=512), {}
        for chips in (16, 64, 256):
            data = dataclasses.replace(run.data, batch=chips)
            moved[chips] = self.step(f"v5e-{chips}", run.replace(data=data)).in_loops
        layers = programs.part_bytes(build_model(Resolved(run)), mesh_lib.abstract(run.mesh, 16), "blocks")
        assert all(size == pytest.approx(3 * layers, rel=0.02) for size in moved.values()), (moved, layers)

    def test_what_cannot_fit_is_refused_in_seconds(self):
        """By our sum of the state, and by the compiler, whose words are understood."""
        found = self.step("v5e-16", experiment(16, layers=64, width=8192, mlp_width=65536))
        assert found.fits is False and found.needed > found.available > 15 * 2**30
        target = topologies.parse("v5e-16")
        mesh = mesh_lib.build(MeshSpec(), topologies.devices(target))
        x = jax.ShapeDtypeStruct((2**19, 2**19), jnp.float32, sharding=mesh_lib.batch_sharding(mesh))
        cost = programs.Cost(flops=1.0, traffic=1.0)
        with jax.set_mesh(mesh):
            lower = functools.partial(jax.jit(lambda x: jnp.sort(x, axis=1) + x.sum()).lower, x)
            found = forecast._forecast(programs.Program(name="train sort", lower=lower, cost=cost), mesh, target)
        # A copy of its 64 GiB and two more.
        assert found.fits is False and found.needed == pytest.approx(192 * 2**30) and found.compile_s < 60
