"""A stream that no file knows goes the whole way: layout, store, batch, loss of a step, sampled tokens, media."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import store_fakes as fakes

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "sampling"))

import tiny  # noqa: E402

from poet import media, streams
from poet.data import checks
from poet.data.loader import batches
from poet.distributed import mesh as mesh_lib
from poet.models.transformer import build_model
from poet.sampling import command
from poet.sampling.generate import Generator
from poet.sampling.requests import Request
from poet.serving import export as exporting
from poet.serving.runtime import Runtime
from poet.spec import DataSpec, Experiment, ExportSpec, ModelSpec, StoreSpec, TextSpec, UserError, VocabularySpec
from poet.spec.vocabulary import Range, Special, Vocabulary
from poet.store import reader, writer
from poet.streams.base import Encoders, Format, Grid, Stream, StreamInfo, Target, Traced, checked
from poet.tasks.registry import TASKS, Task
from poet.tasks.resolved import Resolved
from poet.training.step import language_model

LEVELS, CLIPS = 16, 6


class Meter:
    """A network: the mean grey of every latent frame, of 16."""

    fingerprint = "meter-1"

    def encode(self, video_BxTxHxWx3: np.ndarray) -> np.ndarray:
        means_BxT = video_BxTxHxWx3.mean((2, 3, 4))
        return np.stack([means_BxT[:, 0], means_BxT[:, 1:].mean(1)], 1).astype(np.int32) * LEVELS // 256

    def decode(self, codes_Nxtx1x1: np.ndarray) -> np.ndarray:
        return codes_Nxtx1x1[..., 0, 0] * 256 // LEVELS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Brightness(Stream):
    """A code for each latent frame, of ids of its own within the visual table."""

    def ids(self, vocabulary: Vocabulary) -> tuple[Range, ...]:
        visual = vocabulary.visual
        return (Range(visual.low, visual.low + LEVELS, visual.table, visual.low),)

    def grid(self, fmt: Format, known: int = 0) -> Grid:
        return (fmt.video[0], 1, 1)

    def load(self, spec: None, vocabulary: VocabularySpec, mesh: Any = None) -> Meter:
        return Meter()

    def info(self, clip: Any, encoders: Encoders) -> StreamInfo:
        return StreamInfo(grid=(2, 1, 1), bits=4, fingerprint=encoders.networks[self.network].fingerprint)

    def tokenize(self, items: Any, info: StreamInfo, encoders: Encoders) -> np.ndarray:
        return checked(encoders.networks[self.network].encode(np.stack(items))[..., None, None], info)

    def media_shape(self, network: Any, fmt: Format, latents: int | None = None) -> tuple[int, ...]:
        return (fmt.video[0],)

    def read_file(self, path: str, clip: Any, frames: int = 0) -> np.ndarray:
        return np.array(json.loads(Path(path).read_text()))

    def encode(self, network: Meter, media: np.ndarray, fmt: Format, parts: int, latents: int | None = None) -> Any:
        self.check_media(media, self.media_shape(network, fmt))
        return media * LEVELS // 256

    def write(self, item: np.ndarray, target: Target) -> list[Path]:
        target.stem.with_suffix(".json").write_text(json.dumps(item.tolist()))
        return [target.stem.with_suffix(".json")]

    def record(self, item: np.ndarray) -> dict[str, Any]:
        return {"brightest": int(item.max())}

    def encoder(self, network: Meter, fmt: Format, parts: int, latents: int | None = None) -> Traced:
        return Traced(lambda table, greys: table["levels"][greys], {"levels": TABLE}, (fmt.video[0],), "int32")

    def decoder(self, network: Meter, fmt: Format, parts: int) -> Traced:
        return Traced(lambda table, codes: table["greys"][codes], {"greys": GREYS}, (fmt.video[0],), "int32")


TABLE, GREYS = np.arange(256, dtype=np.int32) * LEVELS // 256, np.arange(LEVELS, dtype=np.int32) * 256 // LEVELS
STREAM = Brightness(
    name="brightness", title="brightness", network="meter", stored="brightness", medium="grey", marks="V", exports=True
)
THERE = Task(
    name="video_to_brightness", token=Special.TASK_VIDEO, text=False, condition=("video",), output=("brightness",)
)
BACK = Task(
    name="brightness_to_video", token=Special.TASK_VIDEO, text=False, condition=("brightness",), output=("video",)
)
RUN = Experiment(
    clip=fakes.CLIP,
    video_tokenizer=fakes.TOKENIZER,
    vocabulary=VocabularySpec(visual_bits=8, audio_codes=16, text_pieces=16),
    text=TextSpec(encoder="t5", length=8, width=4),
    model=ModelSpec(layers=1, width=16, heads=2, kv_heads=2, head_dim=8, mlp_width=16, dtype="float32"),
    data=DataSpec(mixture_rates={"video_to_brightness": 1.0, "brightness_to_video": 1.0}, batch=2),
)
RAMPS = [np.full((5, 16, 16, 3), 40 * k, np.uint8) for k in range(CLIPS)]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(streams.STREAMS, STREAM.name, STREAM)
    for task in (THERE, BACK):
        monkeypatch.setitem(TASKS, task.name, task)


@pytest.fixture
def run(registered, tmp_path) -> Experiment:
    """The run, and its token store as `poet tokenize` would write it."""
    fakes.write_tfds(tmp_path / "clips" / "1.0.0", {"train": RAMPS})
    run = RUN.replace(data=RUN.data.replace(store=str(tmp_path / "store")))
    loaded = {stream.network: stream for stream in Resolved(run).stored_streams}
    assert loaded["meter"] is STREAM
    encoders = Encoders(
        networks={"video": fakes.MeanTokenizer(), "text": fakes.LetterEncoder(), "meter": Resolved(run).load(STREAM)}
    )
    store = StoreSpec(source=str(tmp_path / "clips" / "1.0.0"), path=run.data.store, splits=("train",), batch=4)
    names = [stream.name for stream in Resolved(run).stored_streams]
    writer.tokenize(store, run.clip, encoders, names, progress=False)
    return run


def test_its_layout_holds_its_codes_at_the_times_of_their_frames():
    layout = Resolved(RUN).layout(BACK)
    assert layout.streams == {"brightness_in": 2, "source": 1, "video": 8}
    tokens = layout.assemble(
        {
            "brightness_in": np.array([[3, 9]], np.int32),
            "source": np.zeros((1, 1), np.int32),
            "video": np.zeros((1, 8), np.int32),
        }
    )
    assert layout.parse(tokens)["brightness_in"].tolist() == [[3, 9]]
    span = next(s for s in layout.spans if s.segment.stream == "brightness_in")
    np.testing.assert_array_equal(layout.positions()[span.start : span.stop], [[0, 0, 0], [1, 0, 0]])
    with pytest.raises(UserError, match="holds? an id outside"):
        layout.parse(np.where(np.arange(layout.length) == span.start, tokens + LEVELS, tokens))


def test_it_is_stored_batched_learnt_and_sampled(run):
    stored = list(reader.dataset(run.data.store, "train").as_numpy_iterator())
    found = {e["key"].decode(): e["brightness"].tolist() for e in stored}
    assert found == {f"train/{k}": [40 * k * LEVELS // 256] * 2 for k in range(CLIPS)}

    resolved = Resolved(run)
    manifest = checks.check(resolved, fingerprints={"meter": "meter-1"})
    assert checks.networks_of(resolved, manifest)["brightness"] == "meter-1"
    batch = next(batches(resolved)["video-to-brightness"])
    layout = resolved.layout(THERE)
    assert all(codes.tolist() in found.values() for codes in layout.parse(batch["tokens"])["brightness"])

    trainable = language_model(resolved, mesh_lib.build(run.mesh, jax.devices()[:1]))
    state = jax.jit(trainable.init)(jax.random.key(0))
    step = jax.jit(trainable.groups["video-to-brightness"].step)
    state, metrics = step(state, batch, jax.random.key(0), 1e-2)
    loss = float(metrics["loss/brightness"].value())
    assert 0 < loss < 3 * np.log(LEVELS)

    codes = np.stack([e["video"] for e in stored[:3]])
    params = jax.device_get(state["params"])
    generator = Generator(resolved, params, {"video": fakes.MeanTokenizer()})
    tokens = generator.tokens("video_to_brightness", 3, condition={"video_in": codes}, batch=3)
    sampled = layout.parse(tokens)["brightness"]
    assert sampled.shape == (3, 2) and sampled.min() >= 0 and sampled.max() < LEVELS
    greys = STREAM.detokenize(Meter(), sampled, resolved.format)
    np.testing.assert_array_equal(greys, sampled * 256 // LEVELS)


@pytest.fixture(scope="module")
def generator() -> Generator:
    """Of weights that nobody trained, with a tokenizer that decodes: clips have three latent frames."""
    small = RUN.vocabulary.replace(visual_bits=tiny.EXPERIMENT.vocabulary.visual_bits)
    run, rng = RUN.replace(video_tokenizer=tiny.EXPERIMENT.video_tokenizer, vocabulary=small), np.random.default_rng(0)
    resolved = Resolved(run)
    shapes = build_model(resolved).abstract()
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    return Generator(resolved, params, {"video": tiny.video_tokenizer(), "meter": Meter()})


def ask(generator, monkeypatch, tmp_path, task: str, clip: Path) -> dict[str, Any]:
    """The sample in the record of `poet generate`."""
    monkeypatch.setattr(Generator, "from_checkpoint", lambda *_: generator)
    files = command.run(Request(task=task, clip=[str(clip)]), generator.resolved, tiny.RUN, tmp_path / "out")
    assert files[-1].name == "generation.json"
    (sample,) = json.loads((tmp_path / "out" / "generation.json").read_text())["samples"]
    return sample


def test_a_request_for_it_gives_a_file_of_it(generator, monkeypatch, tmp_path):
    media.write_mp4(tmp_path / "clip.mp4", RAMPS[3], 8.0)
    sample = ask(generator, monkeypatch, tmp_path, "video_to_brightness", tmp_path / "clip.mp4")
    assert list(sample["files"]) == ["000.mp4", "000.gif", "000.png", "000.json"], "beside its clip"
    greys = json.loads((tmp_path / "out" / "000.json").read_text())
    assert len(greys) == 3 and set(greys) <= set(GREYS.tolist()) and sample["brightest"] == max(greys)


def test_a_file_of_it_is_what_a_request_starts_from(generator, monkeypatch, tmp_path):
    (tmp_path / "greys.json").write_text("[7, 250, 0]")
    sample = ask(generator, monkeypatch, tmp_path, "brightness_to_video", tmp_path / "greys.json")
    assert list(sample["files"]) == ["000.mp4", "000.gif", "000.png", "000.json"]
    (tmp_path / "greys.json").write_text("[7]")
    with pytest.raises(UserError, match="conditioning grey has shape .1, 1., expected .n, at least 3."):
        ask(generator, monkeypatch, tmp_path, "brightness_to_video", tmp_path / "greys.json")


def test_an_export_codes_it(generator, tmp_path):
    spec = ExportSpec(tasks=("brightness_to_video",), platforms=("cpu",))
    runtime = Runtime.load(exporting.export(generator, spec, tmp_path / "export"))
    greys = np.array([[7, 250, 0], [90, 0, 1], [255, 255, 255]], np.int32)
    result = runtime.brightness_to_video(grey=greys, seed=3)
    condition = generator.encode_condition("brightness_to_video", {"grey": greys})
    sample = generator.resolved.spec.sample.replace(seed=3)
    tokens = generator.tokens("brightness_to_video", 3, condition=condition, sample=sample)
    np.testing.assert_array_equal(result.tokens, tokens)
    np.testing.assert_array_equal(result.video, generator.detokenize("brightness_to_video", tokens).video)


def test_another_network_of_it_is_refused(run):
    with pytest.raises(UserError, match="brightness.fingerprint is 'meter-1', not 'meter-2'"):
        checks.check(Resolved(run), fingerprints={"meter": "meter-2"})


@pytest.mark.parametrize("name", sorted(streams.STREAMS))
def test_declarations_fit_together(name):
    stream = streams.get(name)
    assert stream.name == name and (stream.constant or stream.title)
    assert not stream.opens or stream.opens in streams.STREAMS
    if stream.stored:
        owner = streams.in_store(stream.stored)
        assert owner.stored == owner.name and owner.network == stream.network
