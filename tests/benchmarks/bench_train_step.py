"""Times the train step beside transformers on one core: plain shapes, then those of VideoPoet.

    python tests/benchmarks/bench_train_step.py --peer_python=PEER/bin/python [--cases 7m 59m ...]

PEER is an environment of its own, so that this project needs no torch (and without torchaudio, which
keeps transformers from loading):

    python -m venv PEER && PEER/bin/pip install torch==2.13.0 transformers==5.23.0

Cases `7m` and `59m` are causal sequences whose softmax covers the whole vocabulary on both sides
(`TRAIN.loss_vocabulary = 'full'` here).  The others are sequences of VideoPoet with all 266,496 ids
before its text: here the loss covers the legal ids of each position ('legal', the default), there the
whole vocabulary at every position, as `model(ids, labels=...)` does it.

Competitors: `poet`, the step that `poet train` compiles; `qwen3`, transformers' Llama with a norm on
queries and keys, which is the same network (weights and rotary angles copied, prefix as a mask): its
loss at step 0, over the same ids, must agree to 1e-4 and is printed; `qwen3 compiled`, by
torch.compile; `llama` and `llama compiled`, of the same shape but without that norm, hence with less
work and with a loss of their own.  All compute in float32 with AdamW (theirs fused) and a clip of the
global norm.  No competitor recomputes activations.  Peak memory is what is resident at most in the
second step, weights, moments and libraries with it.
"""

from __future__ import annotations

import functools
import json
import pathlib
import sys
import tempfile
import time
from typing import Any

import harness
import numpy as np

from poet.tasks.resolved import Resolved

RATE, B2, DECAY = 1e-4, 0.95, 0.1
AGREEMENT = 1e-4
# The peers' networks: tables of their own for scores, one rotary position for queries and keys.
LIKE_PEERS = {
    "tables": "untied",
    "embedding_scale": 1.0,
    "axes": "separate",
    "query_place": "own",
    "condition_marker": False,
}
# name -> fields of the model, batch, what the sequence is, and bits of the visual codes
CASES: dict[str, dict[str, Any]] = {
    "7m": {
        "layers": 4,
        "width": 256,
        "heads": 8,
        "head_dim": 32,
        "mlp_width": 704,
        "batch": 2,
        "sequence": 128,
        "bits": 13,
        "runs": 12,
    },
    "59m": {
        "layers": 8,
        "width": 512,
        "heads": 8,
        "head_dim": 64,
        "mlp_width": 1408,
        "batch": 4,
        "sequence": 256,
        "bits": 15,
        "runs": 3,
    },
    "video": {
        "layers": 4,
        "width": 256,
        "heads": 8,
        "head_dim": 32,
        "mlp_width": 704,
        "batch": 1,
        "sequence": ((), ("video",)),
        "bits": 18,
        "runs": 1,
    },
    "sound": {
        "layers": 4,
        "width": 256,
        "heads": 8,
        "head_dim": 32,
        "mlp_width": 704,
        "batch": 1,
        "sequence": (("video",), ("audio",)),
        "bits": 18,
        "runs": 2,
    },
}
UNITS = {
    "7m": "step of 2 x 128 tokens, 7 M parameters, 8,192 ids",
    "59m": "step of 4 x 256 tokens, 59 M parameters, 32,768 ids",
    "video": "step of one clip (its text apart), 1,286 tokens, 266,496 ids",
    "sound": "step of video to sound, 1,711 tokens, 266,496 ids",
}
PEERS = ("qwen3", "qwen3 compiled", "llama", "llama compiled")
# What one step of the larger cases takes leaves no room for all of them in one sitting.
PEERS_OF = {"59m": ("qwen3", "qwen3 compiled"), "video": ("qwen3",), "sound": ("qwen3",)}


# -------------------------------------------------------------------------------------------- poet


def poet_parts(name: str) -> tuple[Any, Any, Any]:
    """(experiment, model, layout) of a case."""
    from poet.models.transformer import build_model
    from poet.spec import Experiment, ModelSpec, OptimizerSpec, TextSpec, TrainSpec, VideoTokenizerSpec, VocabularySpec
    from poet.spec.vocabulary import Special, Vocabulary
    from poet.tasks.layout import CONDITION, OUTPUT, Format, Layout, Segment, build_layout

    case = CASES[name]
    shape = {k: case[k] for k in ("layers", "width", "heads", "head_dim", "mlp_width")}
    plain = isinstance(case["sequence"], int)
    audio = {"audio_levels": 1, "audio_codes": 1} if plain else {}
    experiment = Experiment(
        model=ModelSpec(
            **shape, **LIKE_PEERS, **case.get("model", {}), kv_heads=case["heads"], dtype="float32", remat="none"
        ),
        vocabulary=VocabularySpec(visual_bits=case["bits"], text_pieces=1, **audio),
        video_tokenizer=VideoTokenizerSpec(bits=case["bits"]),
        text=TextSpec(width=8),
        optimizer=OptimizerSpec(learning_rate=RATE, warmup_steps=0, final_fraction=1.0, b2=B2, weight_decay=DECAY),
        train=TrainSpec(loss_vocabulary="full" if plain else "legal"),
    )
    vocabulary = Vocabulary(experiment.vocabulary)
    if plain:
        grid = (case["sequence"], 1, 1)
        layout = Layout(
            (
                Segment("bos", 0, 1, CONDITION, vocabulary.special(Special.BOS), (1, 1, 1)),
                Segment("video", 0, grid[0], OUTPUT, vocabulary.visual, grid),
            )
        )
    else:
        condition, output = case["sequence"]
        layout = build_layout(
            task_token=Special.TASK_VIDEO,
            text=False,
            condition=condition,
            output=output,
            fmt=Format(video=(5, 16, 16), text_length=0, audio_frames=106),
            vocabulary=vocabulary,
        )
    return experiment, build_model(Resolved(experiment)), layout


def draw_tokens(layout: Any, batch: int) -> np.ndarray:
    """int32 [B, S] of uniform codes."""
    rng = np.random.default_rng(0)
    size = {s.stream: s.ids.size for s in layout.segments if not s.forced}
    return layout.assemble(
        {name: rng.integers(0, size[name], (batch, n)).astype(np.int32) for name, n in layout.streams.items()}
    )


def poet_case(name: str, folder: str, export: bool) -> dict[str, Any]:
    """Times the step; with `export` leaves what the peer needs in the folder instead of timing."""
    import jax

    from poet.distributed import mesh as mesh_lib
    from poet.distributed.mesh import Rules
    from poet.training import compiled, flops, optimizer, step
    from poet.training.trainable import Group

    case = CASES[name]
    experiment, model, layout = poet_parts(name)
    mesh = mesh_lib.build(experiment.mesh, jax.devices()[:1])
    tokens = draw_tokens(layout, case["batch"])
    if export:
        export_case(model, layout, tokens, pathlib.Path(folder))
        return {"wall": [], "cpu": []}
    tx = optimizer.build(experiment.optimizer, model.axes())
    rate = optimizer.learning_rate(experiment.optimizer, experiment.train.steps)
    group = Group(
        name=name,
        clips=case["batch"],
        tokens=tokens.size,
        step=step.train_step(model, layout, tx, experiment.optimizer, experiment.train),
        batch=step.batch_shapes(layout, case["batch"], experiment.text.width),
        flops=case["batch"] * flops.train_flops(model, layout, loss_vocabulary=experiment.train.loss_vocabulary),
    )

    def init(key: jax.Array) -> Any:
        params = model.init(key)
        state = {"step": jax.numpy.zeros((), "int32"), "params": params, "opt_state": tx.init(params)}
        return jax.tree.map(compiled.strong, state)

    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(init, jax.random.key(0))
        axes = {
            "step": (),
            "params": model.axes(),
            "opt_state": optimizer.state_axes(tx, model.abstract(), model.axes()),
        }
        shardings = Rules().shardings(mesh, axes)
        abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
        begin, begin_cpu = time.perf_counter(), time.process_time()
        program = compiled.compile_steps({name: group}, abstract, mesh)[name]
        compile_s, compile_cpu_s = time.perf_counter() - begin, time.process_time() - begin_cpu
        state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
        batch = jax.device_put(
            {"tokens": tokens, "known": np.zeros((case["batch"], len(layout.loss_spans)), np.int32)},
            mesh_lib.batch_sharding(mesh),
        )
        moment = compiled.Moment.at(0, 0, rate(0), mesh)
        losses = []

        def run() -> None:
            nonlocal state
            state, metrics = program(state, batch, moment)
            losses.append(float(metrics["loss"].value()))
            jax.block_until_ready(state)

        run()
        peak_mb = harness.peak_of(run)
        times = harness.timed(run, case["runs"], warm=0)  # As many steps as the peer's before.
    return {
        **times,
        "peak_mb": peak_mb,
        "compile_s": compile_s,
        "compile_cpu_s": compile_cpu_s,
        "losses": losses[:3],
        "gflop": group.flops / 1e9,
        "versions": harness.installed(),
    }


def export_case(model: Any, layout: Any, tokens: np.ndarray, folder: pathlib.Path) -> None:
    """The initial parameters by path, tables joined in id order, angles, tokens and loss positions."""
    import jax

    params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    flat = {"/".join(str(k.key) for k in path): value for path, value in leaves}
    arrays = {k: v for k, v in flat.items() if "tables" not in k}
    for part, name in (("embedding", "embed_rows"), ("head", "head_rows")):
        arrays[name] = np.concatenate([params[part]["tables"][t] for t in model.vocabulary.tables])
    arrays["rotary"] = np.asarray(model._rotary(layout)[1])
    np.savez(folder / "weights.npz", **arrays)
    # Row i of the labels is to be predicted at position i - 1; its legal ids are [low, high).
    legal = np.zeros((layout.length, 2), np.int64)
    for span in layout.loss_spans:
        legal[span.start : span.stop] = span.segment.ids.low, span.segment.ids.high
    np.savez(folder / "batch.npz", tokens=tokens, legal=legal, prefix=layout.prefix_length)


# -------------------------------------------------------------------------------------------- peer


def peer_case(who: str, name: str, folder: str) -> dict[str, Any]:
    import peer_lm
    import torch

    torch.manual_seed(0)
    case, batch = CASES[name], np.load(pathlib.Path(folder) / "batch.npz")
    weights = pathlib.Path(folder) / "weights.npz"
    network, _, compiled = who.partition(" ")
    with np.load(weights) as file:
        vocabulary = file["head_rows"].shape[0]
    tokens = torch.from_numpy(batch["tokens"]).long()
    model = peer_lm.build(network, {**case, "kv_heads": case["heads"]}, vocabulary, tokens.shape[1])
    if network == "qwen3":
        peer_lm.copy_weights(model, weights)
    tx = peer_lm.optimizer(model, RATE, B2, DECAY)
    inputs: dict[str, Any] = {"input_ids": tokens[:, :-1], "use_cache": False}
    prefix = int(batch["prefix"])
    if prefix > 1:
        length = tokens.shape[1] - 1
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        seen[:prefix, :prefix] = True
        inputs["attention_mask"] = seen[None, None].expand(len(tokens), 1, -1, -1)
    covered = torch.from_numpy(batch["legal"][:, 1] > 0)
    # transformers shifts labels by itself: the last one has no input here, so it is given shifted.
    shift_labels = torch.where(covered[1:], tokens[:, 1:], -100)
    out: dict[str, Any] = {"versions": harness.installed()}
    if network == "qwen3":
        out["loss_legal"] = legal_loss(model, inputs, tokens, batch["legal"])
    forward = torch.compile(model) if compiled else model
    losses = []

    def run() -> None:
        loss = forward(**inputs, labels=shift_labels, shift_labels=shift_labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        tx.step()
        tx.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))

    first = harness.timed(run, 1, warm=0)
    out["peak_mb"] = harness.peak_of(run)
    out |= harness.timed(run, case["runs"], warm=0)
    # A compiled one compiles in its first step.
    compile_s, cpu_s = (first[key][0] - min(out[key]) if compiled else 0.0 for key in ("wall", "cpu"))
    return {**out, "compile_s": compile_s, "compile_cpu_s": cpu_s, "losses": losses[:3]}


def legal_loss(model: Any, inputs: Any, tokens: Any, legal: np.ndarray) -> float:
    """Mean cross-entropy over the legal ids of each loss position: what 'legal' computes here."""
    import torch

    with torch.no_grad():
        x = model.model(**inputs).last_hidden_state
        total, count = 0.0, 0
        starts = np.flatnonzero(np.diff(np.vstack([[[0, 0]], legal]), axis=0).any(axis=1))
        for start, stop in zip(starts, [*starts[1:], len(legal)]):
            low, high = legal[start]
            if high == 0:
                continue
            logits = x[:, start - 1 : stop - 1] @ model.lm_head.weight[low:high].T
            labels = tokens[:, start:stop] - int(low)
            total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
            count += labels.numel()
    return total / count


# --------------------------------------------------------------------------------------- comparison


def compare(flags: Any) -> None:
    for name in flags.cases:
        with tempfile.TemporaryDirectory() as folder:

            def run(python: str, who: str) -> dict[str, Any]:
                return harness.child(python, __file__, (who, name, folder), flags.core)

            cases = {"poet": functools.partial(run, sys.executable, "poet")}
            if flags.peer_python:
                run(sys.executable, "export")
                for who in PEERS_OF.get(name, PEERS):
                    cases[who] = functools.partial(run, flags.peer_python, who)
            found = harness.interleave(cases, flags.rounds)
        checked = agreement(name, found)
        print(checked)
        harness.save("train_step", name, found, unit=UNITS[name], agreement=checked)


def agreement(name: str, found: dict[str, list[dict[str, Any]]]) -> str:
    """How far apart the losses of the same network are."""
    if "qwen3" not in found:
        return ""
    ours, theirs = found["poet"][0]["losses"], found["qwen3"][0]["losses"]
    legal = not isinstance(CASES[name]["sequence"], int)
    first = found["qwen3"][0]["loss_legal"] if legal else theirs[0]
    apart = abs(ours[0] - first)
    verdict = "agrees" if apart <= AGREEMENT else "DOES NOT AGREE"
    text = f"loss at step 0: {ours[0]:.6f} and {first:.6f}, {verdict} to {AGREEMENT:g}"
    text += "" if legal else f"; at step 2: {ours[2]:.6f} and {theirs[2]:.6f}"
    return f"{text}; {harness.peaks(found)}"


if __name__ == "__main__":
    flags = harness.arguments(__doc__, CASES).parse_args()
    if not flags.case:
        compare(flags)
    else:
        who, name, folder = flags.case.split(",")
        if who in ("poet", "export"):
            print(json.dumps(poet_case(name, folder, export=who == "export")))
        else:
            print(json.dumps(peer_case(who, name, folder)))
