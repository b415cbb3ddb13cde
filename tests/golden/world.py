"""A tiny run of every task, and what each part of the program makes of it, as hashes and a few numbers.

Nothing of a result may depend on the folder it is made in or on a clock.  Whoever moves a part of `poet` changes
how this file calls it, and nothing of what is recorded.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / folder) for folder in ("sampling", "data", "store", "golden")]

import letters  # noqa: E402
import store_fakes  # noqa: E402
import tiny  # noqa: E402
import token_stores  # noqa: E402

from poet import cli, conditioning  # noqa: E402
from poet.checkpoints import weights  # noqa: E402
from poet.data.loader import batches, eval_batches  # noqa: E402
from poet.runs import assets  # noqa: E402
from poet.runs.run import Run  # noqa: E402
from poet.sampling.generate import Generator  # noqa: E402
from poet.sampling.plans import Text  # noqa: E402
from poet.serving import export  # noqa: E402
from poet.serving.runtime import Runtime  # noqa: E402
from poet.spec import Experiment, ExportSpec, SampleSpec, to_dict  # noqa: E402
from poet.store import reader  # noqa: E402
from poet.tasks import registry  # noqa: E402
from poet.tasks.registry import LANGUAGE_MODEL, TASKS  # noqa: E402
from poet.tasks.resolved import Resolved  # noqa: E402
from poet.tokenizers import text as text_encoders  # noqa: E402

PIECES = str(assets.root() / "data/pretrained/pieces_512/spiece.model")
# Of each kind one: text with frames that open the output, a condition made from pixels, sound with its opening.
FEW = ("image_to_video", "inpainting", "audio_video_continuation")
# Those of the language model.
ALL = tuple(name for name, task in TASKS.items() if task.network == LANGUAGE_MODEL)
ROWS, BATCH = 3, 2
SEEDS = (1, 2)
SAMPLE = SampleSpec(temperature=1.5, top_k=24, top_p=0.95, guidance=2.0)
CONDITIONS = tuple(sorted({task.made for task in TASKS.values() if task.made}))

WORLD = tiny.WITH_SOUND.replace(
    text=tiny.WITH_SOUND.text.replace(encoder=letters.NAME, pieces=PIECES),
    conditioning=tiny.WITH_SOUND.conditioning.replace(depth="flat"),
)
text_encoders.ENCODERS[letters.NAME] = letters.__name__


# ------------------------------------------------------------------------------------------- hashes


def sha(*parts: Any) -> str:
    """16 hex digits of arrays (their dtype, shape and bytes), texts and bytes."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, (str, bytes)):
            found.update(part.encode() if isinstance(part, str) else part)
        else:
            array = np.ascontiguousarray(part)
            found.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return found.hexdigest()[:16]


def sha_of_tree(tree: Any) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return sha(*itertools.chain.from_iterable((jax.tree_util.keystr(path), leaf) for path, leaf in leaves))


def sha_of_json(value: Any) -> str:
    return sha(json.dumps(value, sort_keys=True))


# ------------------------------------------------------------------------- layouts, batches: anywhere


def layouts() -> dict[str, Any]:
    """Task -> segments and positions, of the tiny run."""
    found = {}
    for name, task in ((name, TASKS[name]) for name in ALL):
        layout = Resolved(WORLD).layout(task)
        segments = [
            f"{s.role[:1]} {s.stream}.{s.part} {s.length} [{s.ids.low},{s.ids.high}) {s.grid}" for s in layout.segments
        ]
        found[name] = {
            "length": layout.length,
            "prefix": layout.prefix_length,
            "segments": " | ".join(segments),
            "positions": sha(np.round(layout.positions(), 9)),
            "separate_positions": sha(layout.positions(shared=False)),
            "known": [list(Resolved(WORLD).conditioning_codes(task, n)) for n in range(3)],
            "group": registry.group_name(task),
        }
    return found


def synthetic_store(base: Path) -> Experiment:
    """A run whose store holds drawn codes of every stream, and captions as text tokens."""
    store = token_stores.write_store(base / "codes", sound=True, conditions=CONDITIONS, silent=(3, 8))
    e = token_stores.with_sound(token_stores.make_experiment(store.path, mixture_rates=dict.fromkeys(ALL, 1.0)))
    return e.replace(data=e.data.replace(mixture_rates={n: 1.0 for n in ALL if not TASKS[n].writes}))


def batch_hashes(base: Path) -> dict[str, Any]:
    """Group -> the integers of three batches of training and, task by task, of one of evaluation, through seqio."""
    experiment, found = synthetic_store(base), {}
    for group, iterator in batches(Resolved(experiment)).items():
        taken = list(itertools.islice(iterator, 3))
        found[group] = {"train": [_batch(b) for b in taken], "position": sha(iterator.get_state())}
    for task in experiment.data.mixture_rates:
        found[registry.group_name(TASKS[task])][f"eval {task}"] = _evaluation_batch(experiment, task)
    return found


def _evaluation_batch(experiment: Experiment, task: str, kinds: str = "i") -> dict[str, str]:
    (batch,) = eval_batches(Resolved(experiment), task, "validation", 4, 1)
    return _batch(batch, kinds)


def _batch(batch: Mapping[str, np.ndarray], kinds: str = "i") -> dict[str, str]:
    """Shape and hash of its arrays, of integers unless `kinds` of dtypes says otherwise."""
    arrays = {name: array for name, array in sorted(batch.items()) if array.dtype.kind in kinds}
    return {name: f"{list(array.shape)} {sha(array)}" for name, array in arrays.items()}


# ------------------------------------------------------------- a run by the command line: this machine


def media() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n, 5, 16, 16, 3] and int16 [n, 5000]: a square that moves over a shade, and a tone."""
    y, x = np.mgrid[:16, :16]
    videos, sounds = [], []
    for index in range(10):
        rng = np.random.default_rng(index)
        ground = (40 + 5 * x + 3 * y)[..., None] + rng.integers(0, 40, 3)
        frames = np.repeat(ground[None], 5, axis=0)
        top, left = rng.integers(0, 6, 2)
        for t in range(5):
            frames[t, top + t : top + t + 5, left + t : left + t + 5] = rng.integers(150, 255, 3)
        videos.append(frames.astype(np.uint8))
        period = 8 + 3 * index
        sounds.append((((np.arange(5000) % period) * 2 - period) * (12000 // period)).astype(np.int16))
    return np.stack(videos), np.stack(sounds)


def make_run(base: Path, tasks: Sequence[str], changes: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Writes clips, tokenizers and `run.gin`, a run of these tasks, into `base`.

    Settings are those of `WORLD` with `changes`, such as {"MODEL.width": 16}.  Paths are relative to `base`: nothing
    that the run writes names this machine.
    """
    videos, sounds = media()
    parts = {"train": slice(0, 6), "validation": slice(6, 10)}
    store_fakes.write_tfds(
        base / "clips",
        {name: list(videos[s]) for name, s in parts.items()},
        samples=5000,
        sounds={name: list(sounds[s]) for name, s in parts.items()},
    )
    tiny.video_tokenizer().save(base / "video")
    tiny.audio_tokenizer().save(base / "audio")
    sections = ("clip", "vocabulary", "video_tokenizer", "audio_tokenizer", "text", "model", "conditioning")
    values = {f"{s.upper()}.{name}": value for s in sections for name, value in to_dict(getattr(WORLD, s)).items()}
    lines = [f"{name} = {value!r}" for name, value in (values | _settings(tasks) | dict(changes)).items()]
    (base / "run.gin").write_text("\n".join(lines))


def _settings(tasks: Sequence[str]) -> dict[str, Any]:
    return {
        "VOCABULARY.text_pieces": 512,
        "MODEL.layers": 1,
        "VIDEO_TOKENIZER.path": "video",
        "AUDIO_TOKENIZER.path": "audio",
        "STORE.source": "clips",
        "STORE.path": "store",
        "STORE.batch": 2,
        "STORE.clips_per_shard": 4,
        "DATA.store": "store",
        "DATA.mixture_rates": dict.fromkeys(tasks, 1.0),
        "DATA.batch": 2,
        "DATA.equal_tokens": False,
        "OPTIMIZER.learning_rate": 0.01,
        "TRAIN.steps": 6 if len(tasks) <= len(FEW) else 36,
        "TRAIN.log_every": 1,
        "EVAL.batch": 4,
        "EVAL.batches": 1,
        "EVAL.conditioning_frames": 3,
        "EVAL.clips": 2,
    }


def run(command: str, *arguments: str) -> None:
    code = cli.main([command, *arguments])
    if code:
        raise RuntimeError(f"poet {command} ended with {code}")


def store_hashes(path: Path) -> dict[str, Any]:
    """Split -> hashes of its files, and of each array of its clips."""
    manifest, found = reader.load_manifest(str(path)), {}
    for split, info in manifest.splits.items():
        examples = list(reader.dataset(str(path), split).as_numpy_iterator())
        found[split] = {
            "clips": info.clips,
            "files": sha(*((path / shard.file).read_bytes() for shard in info.shards)),
            **{name: sha(*(e[name] for e in examples)) for name in sorted(examples[0])},
        }
    found["fingerprints"] = {name: s.fingerprint[:16] for name, s in manifest.plan.streams.items()}
    return found


def training(workdir: Path) -> dict[str, Any]:
    """Step by step the losses of the run, and its last parameters, with their moments."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    steps = [line for line in lines if line["kind"] == "train"]
    losses = {line["step"]: {k: v for k, v in line.items() if "loss" in k or "grad" in k} for line in steps}
    state = stored_state(workdir)
    return {
        "losses": {str(step): {n: repr(v) for n, v in found.items()} for step, found in losses.items()},
        "params": sha_of_tree(state["params"]),
        "mean_of_params": f"{np.mean([np.abs(x).mean() for x in jax.tree.leaves(state['params'])]):.9f}",
        "opt_state": sha_of_tree(state["opt_state"]),
    }


def stored_state(workdir: Path) -> dict[str, Any]:
    """Arrays of the newest checkpoint, as they lie there."""
    from orbax.checkpoint import v1 as ocp

    newest = max((workdir / "checkpoints").iterdir())
    stored = ocp.load_checkpointables(newest / "state")
    return {name: jax.tree.map(np.asarray, part["value"]) for name, part in stored.items()}


def scores(workdir: Path, out: Path) -> dict[str, Any]:
    """Metric -> its rows, of everything that `poet eval` measures."""
    run("eval", f"--checkpoint={workdir}", f"--out={out}", "--gin.EVAL.examples=False")
    report = json.loads((out / "eval.json").read_text())
    return {
        name: {
            "rows": len(result["rows"]),
            "sha": sha_of_json([result["rows"], result["curves"]]),
            "first": {k: v for k, v in result["rows"][0].items() if isinstance(v, (str, int, float))},
        }
        for name, result in report["metrics"].items()
    }


# ----------------------------------------------------------------------- samples, exports: this machine


@functools.cache
def generator() -> Generator:
    experiment = WORLD.replace(sample=SAMPLE)
    loaded = {"video": tiny.video_tokenizer(), "audio": tiny.audio_tokenizer(), "text": letters.load(experiment.text)}
    return Generator(Resolved(experiment), tiny.params(), loaded)


def request(task: str) -> dict[str, Any]:
    """Arguments of `Generator.tokens` that the task needs, of `ROWS` samples."""
    declared, made, (videos, sounds) = TASKS[task], generator(), media()
    given, media_of = {}, {"video": videos[:ROWS], "audio": sounds[:ROWS]}
    if declared.text:
        given["text"] = made.encode_text(["a", "grey door", "square 3"])
        given["negative"] = made.encode_text(["dull"] * ROWS)
    if declared.condition:
        given["condition"] = made.encode_condition(task, media_of, region=region(task))
    if declared.conditioning_latents[0]:
        given |= {"known": made.encode_conditioning(task, 1, media_of), "latents": 1}
    return given


def region(task: str) -> str:
    return next(iter(conditioning.regions_of(TASKS[task].made, WORLD.conditioning)), "")


def samples(tasks: Iterable[str]) -> dict[str, Any]:
    """Task -> tokens of two seeds, and what those of the first show and sound like."""
    found = {}
    for task in tasks:
        given = request(task)
        drawn = {
            seed: generator().tokens(task, ROWS, sample=SAMPLE.replace(seed=seed), batch=BATCH, **given)
            for seed in SEEDS
        }
        found[task] = {f"seed {seed}": sha(tokens) for seed, tokens in drawn.items()}
        found[task]["last tokens"] = drawn[SEEDS[0]][0, -6:].tolist()
        found[task] |= _decoded(task, drawn[SEEDS[0]])
    return found


def _decoded(task: str, tokens: np.ndarray) -> dict[str, Any]:
    """Of text tokens nothing: the tiny model draws a few of the vocabulary's alone."""
    decoded = generator().detokenize(task, tokens) if not TASKS[task].writes else {}
    return {name: f"{list(array.shape)} {sha(array)}" for name, array in decoded.items()}


def exports(tasks: Iterable[str], base: Path) -> dict[str, Any]:
    """Task -> tokens that its exported programs sample for the same request, and its layouts; one folder for all.

    Of text tokens nothing, as in `_decoded`.
    """
    tasks = [task for task in tasks if not TASKS[task].writes]
    spec = ExportSpec(tasks=tuple(tasks), platforms=("cpu",), text_encoder=False)
    folder = export.export(generator(), spec, base / "exports")
    runtime, stored = Runtime.load(folder), json.loads((folder / "spec.json").read_text())
    found, held = {}, sha_of_tree(weights.read_arrays(folder / "model.safetensors"))
    for task in tasks:
        entries = stored["tasks"][task]
        found[task] = {
            f"seed {seed}": sha(runtime.tokens(task, ROWS, sample=SAMPLE.replace(seed=seed), **request(task)))
            for seed in SEEDS
        }
        found[task]["layouts"] = sha_of_json([stored["layouts"][entry["layout"]] for entry in entries])
        found[task]["weights"] = held
    return found


def exported_tokens(folder: Path) -> np.ndarray:
    """Tokens that an export samples after one known frame, with text states that are all the same."""
    runtime, task = Runtime.load(folder), "image_to_video"
    text = runtime.resolved.spec.text
    states = Text(np.full((ROWS, text.length, text.width), 0.5, np.float32), np.full(ROWS, 3, np.int32))
    known = runtime.encode_conditioning(task, 1, {"video": media()[0][:ROWS, :1]})
    sample = runtime.resolved.spec.sample.replace(seed=1)
    return runtime.tokens(task, ROWS, text=states, known=known, latents=1, sample=sample)


# --------------------------------------------------------------------------------------------- all of it


def anywhere(base: Path) -> dict[str, Any]:
    """What integers alone decide: the same on every machine."""
    return {"layouts": layouts(), "batches": batch_hashes(base)}


def here(base: Path, tasks: Sequence[str]) -> dict[str, Any]:
    """What floating-point numbers decide, for these tasks: the same with one compiler on one kind of machine."""
    base.mkdir(parents=True, exist_ok=True)
    before = os.getcwd()
    os.chdir(base)
    try:
        make_run(base, tasks)
        run("tokenize", "--gin_file=run.gin")
        run("train", "--gin_file=run.gin", "--workdir=lm")
        trained = Run.open("lm").checkpoint.spec
        return {
            "store": store_hashes(base / "store"),
            "batches": {task: _evaluation_batch(trained, task, "if") for task in tasks},
            "training": training(base / "lm"),
            "samples": samples(tasks),
            "exports": exports(tasks, base / "exports"),
            "scores": scores(Path("lm"), Path("eval")),
        }
    finally:
        os.chdir(before)
