"""A model samples with the networks and settings that it was trained with, and no others."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from poet import conditioning
from poet.checkpoints import weights
from poet.runs.run import Run
from poet.sampling.generate import Generator
from poet.serving import export
from poet.spec import Experiment, UserError
from poet.tasks.resolved import Resolved

VIDEO_LOADER = "poet.tokenizers.video.base.VideoTokenizer.of"
CLIPS = np.zeros((1, 5, 16, 16, 3), np.uint8)


@dataclasses.dataclass(frozen=True)
class Other:
    """A network that is another one."""

    fingerprint: str = "another"
    size: int = 1


def experiment(folder: Path) -> Experiment:
    base = tiny.WITH_SOUND
    return base.replace(
        video_tokenizer=base.video_tokenizer.replace(path=str(folder / "video")),
        audio_tokenizer=base.audio_tokenizer.replace(path=str(folder / "audio")),
        text=base.text.replace(pieces="somewhere"),
        conditioning=base.conditioning.replace(depth="flat"),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights with the networks that they name beside them."""
    folder = tmp_path_factory.mktemp("trained")
    tiny.video_tokenizer().save(folder / "video")
    tiny.audio_tokenizer().save(folder / "audio")
    spec, video = experiment(folder), tiny.video_tokenizer().fingerprint
    made_with = {
        "video": video,
        "audio": tiny.audio_tokenizer().fingerprint,
        "text": "trained",
        "pieces": "trained",
        "structure": conditioning.fingerprint("structure", spec.conditioning, video),
    }
    weights.save(folder / "lm", spec, tiny.params(), "float32", 3, made_with)
    return folder


def test_the_networks_it_was_trained_with_are_taken(trained: Path) -> None:
    made = Generator.from_checkpoint(Run.open(trained / "lm"))
    assert made.networks["audio"].fingerprint == made.networks.made_with["audio"]
    assert made.make_condition("stylization", CLIPS).video.shape == CLIPS.shape
    assert made.networks.used.keys() == {"video", "audio"}


@pytest.mark.parametrize(
    "name, loader",
    [("text", "text.load_text_encoder"), ("pieces", "pieces.load_pieces"), ("audio", "audio.base.AudioTokenizer.of")],
)
def test_another_network_is_refused_when_it_is_loaded(trained, monkeypatch, name, loader) -> None:
    made = Generator.from_checkpoint(Run.open(trained / "lm"))
    monkeypatch.setattr(f"poet.tokenizers.{loader}", lambda *_, **__: Other())
    with pytest.raises(UserError, match="fingerprint is .* another"):
        made.networks[name]


def test_a_video_tokenizer_of_the_same_shape_is_refused(trained, tmp_path, monkeypatch) -> None:
    other = tiny.video_tokenizer()
    params = jax.tree.map(lambda x: x + np.float32(1e-3), other.params)
    type(other).from_params(other.spec, params).save(tmp_path / "video")
    spec = experiment(trained)
    moved = spec.video_tokenizer.replace(path=str(tmp_path / "video"))
    with pytest.raises(UserError, match="another video tokenizer"):
        Generator.from_checkpoint(Run.open(trained / "lm"), Resolved(spec.replace(video_tokenizer=moved)))


@pytest.mark.parametrize(
    "section, field, value",
    [
        ("model", "rope_base", 5e5),
        ("clip", "rate_hz", 4.0),
        ("clip", "frames", 9),
        ("video_tokenizer", "dtype", "bfloat16"),
        ("text", "encoder", "t5"),
        ("conditioning", "flow_scale", 0.3),
    ],
)
def test_other_settings_are_refused_before_anything_is_loaded(trained, monkeypatch, section, field, value):
    monkeypatch.setattr(VIDEO_LOADER, lambda *_, **__: pytest.fail("it was loaded"))
    spec = experiment(trained)
    changed = spec.replace(**{section: getattr(spec, section).replace(**{field: value})})
    with pytest.raises(UserError, match=f"{section.upper()}.{field} = .* \\(now {value!r}\\)"):
        Generator.from_checkpoint(Run.open(trained / "lm"), Resolved(changed))


def test_sound_alone_needs_no_video_tokenizer(trained, monkeypatch) -> None:
    monkeypatch.setattr(VIDEO_LOADER, lambda *_, **__: pytest.fail("it was loaded"))
    made = Generator.from_checkpoint(Run.open(trained / "lm"), task="text_to_audio")
    assert made.networks.used == {}


def test_another_rendering_of_structure_is_refused(trained: Path) -> None:
    spec, made_with = experiment(trained), Generator.from_checkpoint(Run.open(trained / "lm")).networks.made_with

    def given(**changes) -> Generator:
        changed = spec.replace(conditioning=spec.conditioning.replace(**changes))
        return Generator(Resolved(changed), tiny.params(), made_with=made_with)

    made = given(depth="dataset")
    with pytest.raises(UserError, match="condition 'structure'"):
        made.make_condition("stylization", CLIPS, np.ones((1, 5, 16, 16), np.float32))
    given(inpainting=("central",), seed=3).make_condition("inpainting", CLIPS)


def test_released_again_they_name_their_networks_still(trained: Path, tmp_path: Path) -> None:
    spec = experiment(trained)
    again = export.run(Run.open(trained / "lm"), Resolved(spec), str(tmp_path / "again"), weights_only=True)
    assert Run.open(again).checkpoint.networks == Run.open(trained / "lm").checkpoint.networks != {}
    other = spec.replace(model=spec.model.replace(rope_base=5e5))
    with pytest.raises(UserError, match="MODEL.rope_base = 100.0"):
        export.run(Run.open(trained / "lm"), Resolved(other), str(tmp_path / "other"), weights_only=True)
    assert not (tmp_path / "other").exists()


def test_weights_that_name_no_networks_are_taken_with_one_warning(trained, tmp_path, caplog) -> None:
    weights.save(tmp_path / "lm", experiment(trained), tiny.params(), "float32", 3)
    with caplog.at_level(logging.WARNING):
        made = Generator.from_checkpoint(Run.open(tmp_path / "lm"))
        made.networks["audio"]
    assert len([r for r in caplog.records if "none was compared" in r.getMessage()]) == 1
