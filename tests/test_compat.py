"""Which settings and networks may differ from those that a model was trained with."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from poet.runs import networks
from poet.spec import ConditioningSpec, Experiment, ModelSpec, UserError, compat, read_json, to_dict
from poet.spec.base import setting_of, type_hints

BASE = Experiment().replace(audio_tokenizer=Experiment().audio_tokenizer.replace(path="somewhere"))


def turned(bindings: dict[str, Any], base: Experiment = BASE) -> Experiment:
    """`base` with 'section.field' set."""
    for name, value in bindings.items():
        section, field = name.split(".")
        base = base.replace(**{section: getattr(base, section).replace(**{field: value})})
    return base


MAY_TURN = {
    "model.attention": "xla",
    "model.remat": "none",
    "model.dtype": "float32",
    "mesh.tensor": 2,
    "train.log_every": 3,
    "train.eval_every": 7,
    "train.microbatches": 2,
    "checkpoint.every": 9,
    "train.init_from": "x",
    "data.store": "moved/codes",
    "video_tokenizer.path": "moved/weights",
    "text.path": "moved/encoder",
    "text.pieces": "moved/pieces",
    "sample.temperature": 0.5,
    "eval.clips": 3,
    "export.dtype": "bfloat16",
    "store.source": "x",
    "ingest.shots": True,
}
TRAINING_ONLY = {
    "data.seed": 5,
    "data.batch": 8,
    "data.equal_tokens": False,
    "train.seed": 4,
    "optimizer.name": "muon",
    "optimizer.state_dtype": "bfloat16",
}
WHAT_IT_IS = {
    "model.rope_base": 5e5,
    "model.layers": 3,
    "clip.rate_hz": 4.0,
    "text.encoder": "t5",
    "video_tokenizer.dtype": "bfloat16",
    "video_tokenizer.blocks": 2,
    "audio_tokenizer.dim": 64,
    "audio_tokenizer.dtype": "bfloat16",
    "vocabulary.text_pieces": 512,
}
LONGER = {"clip.frames": 33, "clip.height": 64, "clip.width": 64, "text.length": 32}
COURSE = {
    "train.steps": 7,
    "optimizer.learning_rate": 1e-5,
    "optimizer.weight_decay": 0.0,
    "data.mixture_rates": {"text_to_video": 1.0},
    "data.text_dropout": 0.2,
    "train.z_loss": 0.0,
}


def refused(purpose: str, bindings: dict[str, Any]) -> set[str]:
    """Those of the bindings that a purpose refuses, each alone."""
    return {name for name, value in bindings.items() if compat.differences(BASE, turned({name: value}), purpose)}


@pytest.mark.parametrize("purpose", sorted(compat.PURPOSES))
def test_speed_paths_and_reports_may_always_differ(purpose: str) -> None:
    assert not refused(purpose, MAY_TURN)


def test_a_resume_refuses_all_that_changes_what_was_learned() -> None:
    must = TRAINING_ONLY | WHAT_IT_IS | LONGER
    assert refused("resume", must) == must.keys()
    # Levels times codes give the same number of ids, and so the same arrays.
    both = turned(
        {"vocabulary.audio_levels": 2, "vocabulary.audio_codes": 2048, "audio_tokenizer.codes": 2048},
        BASE.replace(audio_tokenizer=Experiment().audio_tokenizer),
    )
    assert {d.name for d in compat.differences(BASE, both, "resume")} >= {
        "VOCABULARY.audio_levels",
        "VOCABULARY.audio_codes",
    }


def test_the_course_of_training_may_turn_and_is_told() -> None:
    assert not refused("resume", COURSE)
    told = compat.differences(BASE, turned(COURSE), "resume", ("course",))
    assert {d.name.lower() for d in told} == COURSE.keys()


def test_a_decoder_may_be_another_where_its_codes_are_read() -> None:
    """A language model and a store know codes alone; the training of the tokenizer knows its arrays."""
    other = {"video_tokenizer.decoder_channels": 64, "video_tokenizer.decoder_stem_kernel": 5}
    assert refused("resume_tokenizer", other) == other.keys()
    assert not any(refused(purpose, other) for purpose in compat.PURPOSES if purpose != "resume_tokenizer")


def test_adaptation_takes_longer_clips_of_the_same_kind() -> None:
    assert refused("initialise", WHAT_IT_IS) == WHAT_IT_IS.keys()
    assert not refused("initialise", LONGER | TRAINING_ONLY | COURSE)


@pytest.mark.parametrize(
    "change, array", [({"model.aligned_conditions": True}, "aligned"), ({"model.condition_encoder": 8}, "conditions")]
)
def test_arrays_that_do_nothing_at_first_may_be_added_at_the_start_of_a_training_alone(change, array) -> None:
    larger = turned(change)
    assert not compat.differences(BASE, larger, "initialise")
    assert compat.added(BASE, larger) == [f"embedding.{array}"]
    assert compat.differences(larger, BASE, "initialise") and not compat.added(larger, BASE)
    for purpose in ("resume", "sample", "evaluate", "export"):
        assert compat.differences(BASE, larger, purpose)


def test_an_encoder_of_another_size_is_another_model() -> None:
    some, more = turned({"model.condition_encoder": 8}), turned({"model.condition_encoder": 16})
    assert compat.differences(some, more, "initialise") and not compat.added(some, more)


@pytest.mark.parametrize("purpose", ["sample", "evaluate", "export"])
def test_a_trained_model_is_not_another_one(purpose: str) -> None:
    must = WHAT_IT_IS | LONGER | {"conditioning.flow_scale": 0.2}
    assert refused(purpose, must) == must.keys()
    assert not refused(purpose, TRAINING_ONLY | COURSE | {"conditioning.inpainting": ("central",)})


def test_a_tokenizer_goes_on_with_its_own_settings() -> None:
    must = {
        "tokenizer_train.batch": 3,
        "tokenizer_train.crops": ((32, 32),),
        "discriminator.head": "mean",
        "audio_train.wave_scales": 2,
        "video_tokenizer.blocks": 2,
        "train.seed": 4,
    }
    assert refused("resume_tokenizer", must) == must.keys()
    assert not refused("resume_tokenizer", {"model.layers": 3, "data.seed": 5, "tokenizer_train.l2_weight": 1.0})


def test_a_run_without_sound_says_nothing_about_sound() -> None:
    silent = BASE.replace(audio_tokenizer=Experiment().audio_tokenizer)
    other = turned({"audio_tokenizer.dim": 64, "clip.sample_rate_hz": 8000}, silent)
    assert not compat.differences(silent, other, "initialise")


def test_every_difference_of_every_section_is_found() -> None:
    """Each field alone, set to a value of its type: found by a purpose of its section and change."""
    experiment = Experiment()
    for section, cls in type_hints(Experiment).items():
        for field in dataclasses.fields(cls):
            changes = setting_of(field).changes
            spec = getattr(experiment, section)
            other = object.__new__(cls)  # A value that no rule between fields sees.
            vars(other).update(vars(spec) | {field.name: "another"})
            found = compat._of_section(spec, other)
            assert [(d.name, d.changes) for d in found] == [(f"{cls.gin_name()}.{field.name}", changes)]


def test_a_refusal_names_all_that_differs_and_what_to_do() -> None:
    ours = turned({"model.rope_base": 5e5, "clip.rate_hz": 4.0})
    with pytest.raises(UserError) as error:
        compat.check(BASE, ours, "resume", what="the checkpoint X", remedy="set them back")
    assert str(error.value) == (
        "the checkpoint X was trained with CLIP.rate_hz = 8.0 (now 4.0), MODEL.rope_base = 100.0 "
        "(now 500000.0); set them back"
    )


def test_networks_are_compared_where_both_name_them(caplog: pytest.LogCaptureFixture) -> None:
    theirs = {"video": "a", "text": "b", "structure": "c"}
    networks.check(theirs, {"video": "a", "audio": "z"}, what="X")
    for name, word in (("text", "TEXT.encoder"), ("structure", "condition 'structure'")):
        with pytest.raises(UserError, match=word):
            networks.check(theirs, {name: "other"}, what="X")
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        networks.check(None, {"video": "a"}, what="X")
    assert len(caplog.records) == 1 and "none was compared" in caplog.text


def test_a_model_from_before_is_read_as_it_was_made_and_refused_with_what_differs(tmp_path: Path) -> None:
    """A stored spec that lacks a field was made when nothing else was done than what `BEFORE` says."""
    values = to_dict(Experiment())
    for section, cls in (("model", ModelSpec), ("conditioning", ConditioningSpec)):
        assert cls.BEFORE
        for field in cls.BEFORE:
            del values[section][field]
    (tmp_path / "spec.json").write_text(json.dumps(values))
    old = read_json(Experiment, tmp_path / "spec.json")
    assert {field: getattr(old.model, field) for field in ModelSpec.BEFORE} == ModelSpec.BEFORE
    with pytest.raises(UserError) as refusal:
        compat.check(old, Experiment(), "sample", what="the checkpoint X", remedy="train anew")
    message = str(refusal.value)
    for told in (
        "MODEL.tables = 'untied' (now 'tied')",
        "MODEL.axes = 'separate'",
        "MODEL.query_place = 'own'",
        "CONDITIONING.hide_cells = False",
        "CONDITIONING.sound_place = 'output'",
    ):
        assert told in message, told
    # What is written in full is taken as it is written.
    (tmp_path / "spec.json").write_text(json.dumps(to_dict(Experiment())))
    assert read_json(Experiment, tmp_path / "spec.json") == Experiment()
