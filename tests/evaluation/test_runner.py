"""`poet eval` on a tiny run: its numbers against other computations, its refusals, its files."""

from __future__ import annotations

import collections
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.stats
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from poet.data.loader import eval_batches
from poet.distributed.mesh import build
from poet.evaluation import hooks, metric, runner, tokenizer_hooks
from poet.evaluation.likelihood import scored
from poet.evaluation.metrics import tokens
from poet.evaluation.report import tables
from poet.evaluation.resources import Resources
from poet.models.transformer import build_model
from poet.spec import Experiment, UserError
from poet.store.manifest import SkippedInfo
from poet.store.reader import dataset, load_manifest
from poet.store.sources import open_source
from poet.tasks.resolved import Resolved
from poet.tokenizers.video.base import VideoTokenizer
from poet.training.losses import text_of

NOT_ASKED_FOR = {"examples": "EVAL.examples is False"}


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory):
    """(what evaluate returned, its folder)."""
    out = tmp_path_factory.mktemp("eval")
    return runner.evaluate(run.disk, None, out), out


def changed(experiment: Experiment, part: str, **fields) -> Experiment:
    return experiment.replace(**{part: getattr(experiment, part).replace(**fields)})


def numpy_likelihood(run, task: str) -> tuple[float, float, int]:
    """(loss, accuracy, tokens) by float64 log-softmax over the model's final states."""
    e, layout = run.experiment, Resolved(run.experiment).layouts[task]
    model, span = build_model(Resolved(e)), layout.loss_spans[0]
    ids, start = span.segment.ids, span.start - layout.prefix_length
    table = run.params["embedding"]["tables"][ids.table].astype(np.float64)
    rows = table[ids.low - ids.table_low :][: ids.size]
    hidden = jax.jit(lambda b: model.hidden(run.params, b["tokens"], layout, text_of(b, layout)))
    losses, hits = [], []
    for batch in eval_batches(Resolved(e), task, e.eval.split, e.eval.batch, e.eval.batches):
        x = np.asarray(hidden(batch), np.float64)[:, start : start + span.segment.length]
        logits = x @ rows.T
        labels = batch["tokens"][:, span.start : span.stop] - ids.low
        log_z = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
        label = np.take_along_axis(logits, labels[..., None], -1)[..., 0]
        counts = np.arange(span.segment.length) >= batch["known"][:, :1]
        losses += (log_z - label)[counts].tolist()
        hits += (logits.argmax(-1) == labels)[counts].tolist()
    return np.mean(losses), np.mean(hits), len(losses)


@pytest.mark.parametrize("task", ["text_to_video", "frame_prediction"])
def test_likelihood_equals_a_float64_recomputation(run, evaluated, task):
    rows = evaluated[0]["metrics"]["likelihood"]["rows"]
    row = next(r for r in rows if r["task"] == task)
    loss, accuracy, tokens = numpy_likelihood(run, task)
    assert row["tokens"] == tokens
    assert row["loss_nats"] == pytest.approx(loss, rel=1e-4)
    assert row["accuracy"] == pytest.approx(accuracy, abs=1.5 / tokens)
    uniform = np.log(2**run.experiment.vocabulary.visual_bits)
    assert abs(loss - uniform) > 0.01, "a uniform model would hide a wrong slice"


@pytest.mark.parametrize("task", ["text_to_video", "text_to_image", "frame_prediction"])
def test_the_unigram_is_counted_in_training_and_scored_on_what_the_model_is(run, evaluated, task):
    """Against plain loops over the store's records."""
    e = run.experiment
    train, validation = (
        [np.asarray(x["video"]) for x in dataset(e.data.store, split).as_numpy_iterator()]
        for split in ("train", "validation")
    )
    _, height, width = load_manifest(e.data.store).video.grid
    codes = height * width if task == "text_to_image" else len(train[0])
    given = 2 * height * width if task == "frame_prediction" else 0
    counts = collections.Counter(code for clip in train[:8] for code in clip[given:codes].tolist())
    total, size = sum(counts.values()), 2**e.vocabulary.visual_bits
    scored = [code for clip in validation[:16] for code in clip[given:codes].tolist()]
    nats = np.array([np.log((total + size) / (counts[code] + 1)) for code in scored])
    [row] = [r for r in evaluated[0]["metrics"]["likelihood"]["rows"] if r["task"] == task]
    assert row["unigram_nats"] == pytest.approx(nats.mean()) and row["tokens"] == len(scored)
    by_batch = nats.reshape(2, -1).mean(axis=1)
    assert row["unigram_nats_error"] == pytest.approx(scipy.stats.sem(by_batch), abs=1e-12)
    assert row["loss_nats_error"] >= 0


def test_every_condition_of_every_task_has_its_gain(run, evaluated, tmp_path):
    rows = evaluated[0]["metrics"]["condition_gain"]["rows"]
    found = {(r["task"], r["condition"], r["stream"]) for r in rows}
    texts = {("text_to_image", "text", "image"), ("text_to_video", "text", "video")}
    assert found == texts | {("frame_prediction", "first 5 frames", "video")}
    assert {r["clips"] for r in rows} == {16}, "all whole batches that the split has"
    assert all(r["nats_per_token"] != 0 for r in rows)
    off = changed(run.experiment, "eval", gain_clips=0)
    with pytest.raises(UserError, match="condition_gain: EVAL.gain_clips is 0"):
        runner.evaluate(run.disk, Resolved(off), tmp_path, scores_file=tmp_path / "scores.json")
    alone = changed(run.experiment, "eval", gain_clips=1, batch=1)
    assert "two or more" in Resources(run.disk, Resolved(alone), tmp_path).lacks("others")
    assert list(tmp_path.iterdir()) == []


def test_pixel_metrics_equal_scikit_image_on_the_same_clips(run, evaluated):
    e, metrics = run.experiment, evaluated[0]["metrics"]
    source = open_source(e.store.source, "validation", e.clip)
    every = np.stack([clip.video for clip in source.read(0, len(source))])
    videos = every[[len(every) * i // e.eval.clips for i in range(e.eval.clips)]]

    def mean_psnr(other: np.ndarray, first: int) -> float:
        pairs = ((videos[n, t], other[n, t]) for n in range(len(videos)) for t in range(first, 9))
        return np.mean([min(peak_signal_noise_ratio(a, b), 58.92) for a, b in pairs])

    tokenizer = VideoTokenizer.of(e.video_tokenizer)
    rebuilt = tokenizer.decode(tokenizer.encode(videos))
    [row] = metrics["reconstruction"]["rows"]
    assert row["psnr_db"] == pytest.approx(mean_psnr(rebuilt, 0))
    rows = {r["frames"]: r for r in metrics["frame_prediction"]["rows"]}
    known = e.eval.conditioning_frames
    held = np.repeat(videos[:, known - 1 : known], 9, axis=1)
    assert rows["repeat"]["psnr_db"] == pytest.approx(mean_psnr(held, known), abs=1e-3)
    assert rows["reconstruction"]["psnr_db"] == pytest.approx(mean_psnr(rebuilt, known))
    assert rows["generated"]["clips"] == e.eval.clips
    assert np.isfinite(rows["generated"]["psnr_db"])


def test_files_hold_what_was_returned_and_the_pictures_it_names(run, evaluated, capsys):
    report, out = evaluated
    assert json.loads((out / "eval.json").read_text()) == report
    assert report["step"] == 7 and report["skipped"] == NOT_ASKED_FOR
    assert report["networks"].keys() == {"video", "text"}
    assert {m["kind"] for m in report["media"]} == {"reconstruction", "frame_prediction"}
    for entry in report["media"]:
        assert all((out / file).stat().st_size > 50 for file in entry["files"].values())
        assert entry["caption"].startswith("square ")
    text = runner.render(report)
    for said in ("LIKELIHOOD", "FRAME PREDICTION", "repeat reconstructed", "unigram (nats)"):
        assert said in text


def test_the_source_is_that_of_the_store_and_what_it_left_out_is_not_scored(run, tmp_path, caplog):
    """A run that was trained from a store alone; two clips of its split were left out of it."""
    e = run.experiment
    e = changed(changed(e, "store", source="", path=""), "eval", clips=17)
    whole = Resources(run.disk, Resolved(e), tmp_path)
    keys = [clip.key for clip in whole.clips]
    assert whole.source_path == run.experiment.store.source and len(keys) == 17
    left = Resources(run.disk, Resolved(e), tmp_path)
    split = left.manifest.splits["validation"]
    skipped = tuple(SkippedInfo(key=key, reason="static: 0") for key in (keys[3], f"{keys[8]}#0"))
    splits = left.manifest.splits | {"validation": split.replace(skipped=skipped)}
    left.__dict__["manifest"] = left.manifest.replace(splits=splits)
    assert [clip.key for clip in left.clips] == [k for i, k in enumerate(keys) if i not in (3, 8)]
    assert "2 of 17 clips are not scored, as the store skipped them" in caplog.text
    gone = Resources(run.disk, Resolved(e), tmp_path)
    gone.__dict__["manifest"] = left.manifest.replace(source=str(tmp_path / "gone"))
    assert "which the store was made from, is not there" in gone.lacks("source")


def test_what_is_not_configured_is_skipped_with_a_reason(run, tmp_path, capsys):
    bare = changed(changed(run.experiment, "data", store=""), "video_tokenizer", path="")
    with pytest.raises(UserError, match="likelihood: DATA.store is empty"):
        runner.evaluate(run.disk, Resolved(bare), tmp_path, ["likelihood"])
    with pytest.raises(UserError, match="VIDEO_TOKENIZER.path is empty"):
        runner.evaluate(run.disk, Resolved(bare), tmp_path)
    no_store = changed(changed(run.experiment, "data", store=""), "eval", clips=1)
    skipped = runner._skipped(runner.TABLES, Resources(run.disk, Resolved(no_store), tmp_path))
    no_codes = dict.fromkeys(("likelihood", "condition_gain"), "DATA.store is empty")
    assert skipped == no_codes | NOT_ASKED_FOR
    untrained = changed(run.experiment, "data", mixture_rates={"text_to_video": 1.0})
    skipped = runner._skipped(runner.TABLES, Resources(run.disk, Resolved(untrained), tmp_path))
    assert "not trained on frame_prediction" in skipped["frame_prediction"]


@pytest.mark.parametrize(
    "part, fields, message",
    [
        ("data", {"store": "absent/store"}, "no token store in 'absent/store'"),
        ("eval", {"source": "absent/clips"}, "absent/clips' is not a folder"),
        ("eval", {"split": "test"}, "no split 'test'"),
        ("eval", {"batch": 800}, "EVAL.batch = 800.*17 clips"),
        ("eval", {"batch": 3}, "EVAL.batch: a batch of 3 cannot be split over 8"),
        ("video_tokenizer", {"path": "absent/weights"}, "no tokenizer weights"),
        ("model", {"width": 64}, r"trained with MODEL.width = 32 \(now 64\)"),
    ],
)
def test_mistakes_are_refused_before_any_device_work(run, tmp_path, monkeypatch, part, fields, message):
    monkeypatch.setattr(runner, "_measure", lambda *_: pytest.fail("device work was begun"))
    with pytest.raises(UserError, match=message):
        runner.evaluate(run.disk, Resolved(changed(run.experiment, part, **fields)), tmp_path)
    assert not (tmp_path / "eval.json").exists()


def test_a_store_or_a_tokenizer_that_it_was_not_trained_with_is_refused(run, tmp_path):
    """The store's own networks agree with each other; the checkpoint's are others."""
    for name in ("video", "text"):
        resources = Resources(run.disk, Resolved(run.experiment), tmp_path)
        vars(resources)["made_with"] = resources.made_with | {name: "another"}
        with pytest.raises(UserError, match=f"another {'video tokenizer' if name == 'video' else 'text encoder'}"):
            resources.manifest  # noqa: B018


def gif_seconds(path: Path) -> float:
    """How long a GIF shows its frames; equal ones may have become one."""
    with Image.open(path) as image:
        frames = range(image.n_frames)
        return sum(image.seek(i) or image.info["duration"] for i in frames) / 1000


def test_every_task_gives_one_example_beside_its_condition(run, tmp_path):
    rates = {"unconditional": 1.0, "frame_prediction": 1.0, "inpainting": 1.0}
    e = changed(run.experiment, "data", store="", mixture_rates=rates)
    e = changed(e, "conditioning", fill="black")
    report = runner.evaluate(run.disk, Resolved(changed(e, "eval", examples=True)), tmp_path, ["examples"])
    media = {entry["caption"].replace(" ", "_"): entry for entry in report["media"]}
    assert set(media) == set(rates)
    assert {name: set(entry["files"]) for name, entry in media.items()} == {
        "unconditional": {"sampled", "true"},
        "frame_prediction": {"condition", "sampled", "true"},
        "inpainting": {"condition", "sampled", "true"},
    }
    assert len({entry["key"] for entry in media.values()}) == 3, "each of another clip"
    assert media["inpainting"]["note"] == "condition: clip with a hole"
    seconds = {label: gif_seconds(tmp_path / file) for label, file in media["frame_prediction"]["files"].items()}
    rate_hz = e.clip.rate_hz
    assert seconds == pytest.approx({"condition": 5 / rate_hz, "sampled": 9 / rate_hz, "true": 9 / rate_hz}, abs=0.1)
    first = np.asarray(Image.open(tmp_path / media["inpainting"]["files"]["condition"]).convert("RGB"))
    hidden = (first < 12).all(-1)
    assert hidden.sum() in (8 * 8, 8 * 16 // 2), "a region of the first frame is black"


# -------------------------------------------------------------------------------------- hooks


def test_validation_in_training_equals_the_evaluation(run, evaluated):
    e = changed(run.experiment, "data", mixture_rates={"text_to_video": 1.0})
    mesh = build(e.mesh)
    with jax.set_mesh(mesh):
        hook = hooks.validation_hook(Resolved(e))
        state = {"params": Resources(run.disk, Resolved(e), Path()).load_params()}
        scalars = hook.fn(state, 5).scalars
    rows = evaluated[0]["metrics"]["likelihood"]["rows"]
    row = next(r for r in rows if r["task"] == "text_to_video")
    names = {"text_to_video/loss/video", "text_to_video/accuracy/video"}
    assert hook.every == 5 and set(scalars) == names | {"loss"}
    assert scalars["loss"] == scalars["text_to_video/loss/video"]
    assert scalars["text_to_video/loss/video"] == pytest.approx(row["loss_nats"], rel=1e-5)


def test_a_likelihood_over_no_tokens_does_not_exist(run):
    """Clips that are given whole score nothing: no loss of 0.0, in a table or in a curve."""
    e, task = run.experiment, "frame_prediction"
    layout = Resolved(e).layouts[task]
    whole = np.array([[span.segment.length for span in layout.loss_spans]], np.int32)

    def batches():
        for batch in eval_batches(Resolved(e), task, "validation", e.eval.batch, 1):
            yield {**batch, "known": np.repeat(whole, len(batch["known"]), axis=0)}

    mesh = build(e.mesh)
    with jax.set_mesh(mesh):
        params = Resources(run.disk, Resolved(e), Path()).load_params()
        model = build_model(Resolved(e))
        steps = scored(model, params, batches(), layout, mesh)
        found = metric.walk(steps, [tokens.LOSS, tokens.ACCURACY])["video"]
    row = metric.columns(found)
    assert (row["loss_nats"], row["accuracy"], found["loss_nats"].summary.n) == (None, None, 0)
    assert tables.cells([row]).rows == (("–", "–"),)


def test_sample_strips_show_true_clips_over_drawn_ones(run):
    e = changed(run.experiment, "data", mixture_rates={"frame_prediction": 1.0})
    with jax.set_mesh(build(e.mesh)):
        hook = hooks.sample_hook(Resolved(e))
        state = {"params": Resources(run.disk, Resolved(e), Path()).load_params()}
        image = hook.fn(state, 5).images["frame_prediction"]
    assert image.shape == (2 * hooks.CLIPS_SHOWN * 16, 5 * 16, 3) and image.dtype == np.uint8
    layout = Resolved(e).layouts["frame_prediction"]
    batch = next(eval_batches(Resolved(e), "frame_prediction", "validation", 4, 1))
    codes = layout.parse(batch["tokens"])["video"].reshape(4, *Resolved(e).format.video)
    true = VideoTokenizer.of(e.video_tokenizer).decode(codes)
    np.testing.assert_array_equal(image[:16, 16:32], true[0, 2])
    np.testing.assert_array_equal(image[32:48, :16], true[1, 0])
    # Frames 0..4 are known, and the tokenizer is causal: both rows show the same.
    np.testing.assert_array_equal(image[16:32, :16], image[:16, :16])
    assert np.any(image[16:32, 48:] != image[:16, 48:]), "drawn frames differ from true ones"


def test_hooks_that_are_off_read_nothing():
    e = Experiment()
    assert dataclasses.astuple(e.train)
    for make in (hooks.validation_hook, hooks.sample_hook, tokenizer_hooks.reconstructions):
        assert make(Resolved(e)).every == 0


def test_tokenizer_training_shows_its_reconstructions(run):
    e = run.experiment
    tokenizer = VideoTokenizer.of(e.video_tokenizer)
    hook = tokenizer_hooks.reconstructions(Resolved(e))
    report = hook.fn({"ema": jax.tree.map(jax.numpy.asarray, tokenizer.params)}, 5)
    source = open_source(e.store.source, "validation", e.clip)
    videos = np.stack([clip.video for clip in source.read(0, hooks.CLIPS_SHOWN)])
    rebuilt = tokenizer.decode(tokenizer.encode(videos))
    want = np.mean([peak_signal_noise_ratio(a, b) for v, r in zip(videos, rebuilt) for a, b in zip(v, r)])
    assert report.scalars["psnr_db"] == pytest.approx(want)
    np.testing.assert_array_equal(report.images["clips"][16:32, :16], rebuilt[0, 0])
