"""Specs, gin files and overrides: what is accepted, and how a mistake reads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from poet.runs import assets
from poet.spec import (
    GIN_NAMES,
    Experiment,
    MeshSpec,
    ModelSpec,
    TokenizerTrainSpec,
    UserError,
    VideoTokenizerSpec,
    config,
    from_dict,
    to_dict,
)
from poet.spec.base import setting_of, type_hints

GIN_FILES = sorted((assets.root() / "gin").rglob("*.gin"))


@pytest.mark.parametrize("path", GIN_FILES, ids=lambda p: p.stem)
def test_every_shipped_gin_file_runs_by_itself(path: Path) -> None:
    experiment = config.load([str(path)])
    assert from_dict(Experiment, json.loads(json.dumps(to_dict(experiment)))) == experiment


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "a.gin"
    path.write_text(text)
    return str(path)


def test_later_bindings_win_and_bare_strings_need_no_quotes(tmp_path: Path) -> None:
    file = write(tmp_path, "MODEL.layers = 3\nDATA.mixture_rates = {'text_to_video': 1}\n")
    e = config.load([file], ["MODEL.layers=5", "STORE.path=a/b c.d", "TRAIN.steps=7"])
    assert (e.model.layers, e.store.path, e.train.steps) == (5, "a/b c.d", 7)
    assert e.data.mixture_rates == {"text_to_video": 1.0}


def test_loading_twice_forgets_the_first(tmp_path: Path) -> None:
    config.load([write(tmp_path, "MODEL.layers = 3\n")])
    assert config.load([]).model.layers == ModelSpec().layers


@pytest.mark.parametrize(
    "text, words",
    [
        ("MODEL.lyers = 2\n", ["line 1", "lyers", "layers"]),
        ("\nMODLE.layers = 2\n", ["line 2", "MODLE", "MODEL"]),
        ("MODEL.layers = '2'\n", ["MODEL.layers", "int", "str"]),
        ("MODEL.layers = True\n", ["MODEL.layers", "bool"]),
        ("MODEL.layers = 0\n", ["MODEL.layers", "1..1024"]),
        ("MODEL.remat = 'ful'\n", ["MODEL.remat", "full"]),
        ("a/MODEL.layers = 3\n", ["scope"]),
        ("import os\n", ["import"]),
        ("from __gin__ import dynamic_registration\n", ["import"]),
        ("MODEL.layers = @os.getcwd()\n", ["not allowed"]),
        ("LAYERS = 3\n", ["macro"]),
        ("MODEL.layers = = 3\n", ["not valid gin"]),
        ("include 'gin/models/tny.gin'\n", ["tny.gin", "tiny.gin"]),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        config.load([write(tmp_path, text)])
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_config_cannot_run_code(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    module = tmp_path / "evil_module.py"
    module.write_text(f"open({str(mark)!r}, 'w')\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        with pytest.raises(UserError):
            config.load([write(tmp_path, "import evil_module\n")])
    assert not mark.exists()


def test_every_field_round_trips_through_gin(tmp_path: Path) -> None:
    """One line per field of the default experiment gives the default experiment."""
    e = Experiment()
    lines = [
        f"{GIN_NAMES[type(part).__name__]}.{field.name} = {getattr(part, field.name)!r}"
        for part in (getattr(e, f.name) for f in dataclasses.fields(e))
        for field in dataclasses.fields(part)
    ]
    assert config.load([write(tmp_path, "\n".join(lines))]) == e


def test_override_changes_only_what_it_names() -> None:
    e = config.override(Experiment(), ["SAMPLE.top_k=7", "SAMPLE.seed=3"])
    assert (e.sample.top_k, e.sample.seed) == (7, 3)
    assert e.replace(sample=Experiment().sample) == Experiment()


def test_unknown_keys_of_a_stored_spec_are_refused() -> None:
    values = to_dict(Experiment())
    values["model"]["layrs"] = 3
    with pytest.raises(UserError, match="layrs.*layers"):
        from_dict(Experiment, values)


def test_a_setting_of_before_is_read_from_a_stored_spec_and_refused_in_gin() -> None:
    values = to_dict(Experiment())
    values["audio_train"]["dead_below"] = 2.0
    assert from_dict(Experiment, values) == Experiment()
    with pytest.raises(UserError, match="dead_below.*allowed: samples"):
        config.override(Experiment(), ["AUDIO_TRAIN.dead_below=2.0"])


def test_the_name_that_a_setting_had_is_read_and_in_gin_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    new = Experiment(tokenizer_train=TokenizerTrainSpec(derived_fraction=0.25))
    values = to_dict(new)
    values["tokenizer_train"]["derived_share"] = values["tokenizer_train"].pop("derived_fraction")
    assert from_dict(Experiment, values) == new and not caplog.records
    written = config.override(Experiment(), ["TOKENIZER_TRAIN.derived_share=0.25"])
    assert written == new
    assert "TOKENIZER_TRAIN.derived_share is called TOKENIZER_TRAIN.derived_fraction now" in caplog.text


def test_names_that_settings_had_stand_for_settings_that_there_are() -> None:
    for spec in type_hints(Experiment).values():
        fields = {field.name for field in dataclasses.fields(spec)}
        assert set(spec.RENAMED.values()) <= fields and not fields & set(spec.RENAMED)


@pytest.mark.parametrize("spec, devices", [(MeshSpec(tensor=3), 8), (MeshSpec(fsdp=4), 8)])
def test_a_mesh_that_does_not_fit_the_devices(spec: MeshSpec, devices: int) -> None:
    with pytest.raises(UserError, match=f"{devices} present"):
        spec.shape(devices)


def test_mesh_shapes() -> None:
    assert MeshSpec(tensor=2).shape(8) == (1, 4, 1, 2)
    assert MeshSpec(data=-1, fsdp=2, tensor=2).shape(16) == (4, 2, 1, 2)
    assert MeshSpec(data=1, sequence=4, tensor=1).shape(8) == (1, 2, 4, 1)


@pytest.mark.parametrize(
    "size, words", [((16, 128, 128), "13 and 17"), ((17, 100, 128), "96 and 104"), ((17, 4, 8), "8")]
)
def test_illegal_clip_sizes_name_the_nearest_legal_ones(size, words) -> None:
    with pytest.raises(UserError, match=words):
        VideoTokenizerSpec().grid(*size)


def test_tokenizer_and_vocabulary_must_agree() -> None:
    with pytest.raises(UserError, match="visual_bits.*bits"):
        config.load([], ["VIDEO_TOKENIZER.bits=12"])


SECTIONS = sorted(type_hints(Experiment).items())


@pytest.mark.parametrize("name, cls", SECTIONS, ids=[name for name, _ in SECTIONS])
def test_every_field_says_its_range_and_what_it_changes(name: str, cls: type) -> None:
    """A number has both ends of a range; either end is kept, what lies beyond it refused."""
    del name
    for field in dataclasses.fields(cls):
        declared, hint = setting_of(field), str(type_hints(cls)[field.name])
        assert declared is not None, f"{cls.__name__}.{field.name} is declared without setting()"
        if "int" in hint or "float" in hint:
            assert None not in (declared.low, declared.high), f"{field.name} has no range"
            assert declared.low < declared.high
            for beyond in (declared.low - 1, declared.high + 1):
                assert declared.broken_rule(beyond) and declared.broken_rule((beyond,))
            assert not declared.broken_rule((declared.low + declared.high) / 2)
            assert bool(declared.broken_rule(declared.low)) == (declared.above is not None)
            assert bool(declared.broken_rule(declared.high)) == (declared.below is not None)


@pytest.mark.parametrize(
    "binding",
    [
        "OPTIMIZER.learning_rate=1e999",
        "OPTIMIZER.b1=2",
        "OPTIMIZER.b2=1.0",
        "OPTIMIZER.b1=-0.5",
        "OPTIMIZER.weight_decay=-1",
        "OPTIMIZER.clip_norm=1e999",
        "MODEL.rope_base=0",
        "MODEL.rope_base=-1",
        "TRAIN.eval_every=-3",
        "TRAIN.sample_every=-1",
        "TRAIN.z_loss=-1",
        "TRAIN.seed=-1",
        "TRAIN.seed=4294967296",
        "CLIP.height=1000000000",
        "CLIP.rate_hz=1e999",
        "CLIP.rate_hz=0",
        "DATA.mixture_rates={'text_to_video': 1e999}",
        "DATA.mixture_rates={'text_to_video': -1}",
        "DATA.text_dropout=1.0",
        "DATA.image_fractions=((0.5, 2.0), (1.0, 0.1))",
        "SAMPLE.temperature=1e999",
        "SAMPLE.top_p=0",
        "SAMPLE.seed=100000000000000000000000",
        "VIDEO_TOKENIZER.stem=(0, 4, 4)",
        "VIDEO_TOKENIZER.blocks=0",
        "VIDEO_TOKENIZER.multipliers=(-1,)",
        "AUDIO_TOKENIZER.strides=(2, 0)",
        "MESH.fsdp=-2",
        "TOKENIZER_TRAIN.crops=((0, 64),)",
        "TOKENIZER_TRAIN.l2_weight=-5",
        "TOKENIZER_TRAIN.gan_start=-1",
        "AUDIO_TRAIN.noise_gain_db=(-1e999, 0.0)",
        "EXPORT.dtype='float64'",
        "INGEST.min_motion=2",
        "STORE.wait_s=0",
        "TEXT.dtype='float64'",
    ],
)
def test_senseless_values_are_refused_with_their_name(binding: str) -> None:
    with pytest.raises(UserError) as error:
        config.load([], [binding])
    assert binding.partition("=")[0] in str(error.value) and "\n" not in str(error.value)
