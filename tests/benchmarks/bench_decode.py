"""Times cached decoding beside transformers' `generate`, with classifier-free guidance and without, on one core.

    python tests/benchmarks/bench_decode.py --peer_python=PEER/bin/python [--cases 7m 59m]

PEER is an environment of its own: python -m venv PEER && PEER/bin/pip install torch transformers (torch for the CPU:
--index-url https://download.pytorch.org/whl/cpu).  Without it the rows of transformers are left out.  A prompt of 16 positions, then 128 greedy tokens for each of
4 samples, in float32; seconds are of the tokens after the first, without the prompt.

Competitors: `poet`, the decoding loop of `poet generate`: conditional and unconditional rows in one
pass; `qwen3 guidance_scale`, `generate` with a static cache and its own guidance, which runs the
unconditional rows by themselves; `qwen3 doubled`, `generate` with a static cache over twice the rows
without combining them: the least that guidance in one pass could cost there; `qwen3 doubled compiled`, the same by
`torch.compile`, which is not timed while it compiles.  Without guidance: `poet`, `qwen3`, which is `generate` with a
static cache, and `qwen3 compiled`.  All have the same shape
and random weights; no token of the end is known, so all draw every token.  Tokens are not compared:
`generate` reads a prompt causally, a prefix LM does not (bench_train_step.py compares the networks).
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
import time
from typing import Any

import harness

PROMPT, TOKENS, BATCH, GUIDANCE = 16, 128, 4, 3.0
CASES: dict[str, dict[str, int]] = {
    "7m": {"layers": 4, "width": 256, "heads": 8, "head_dim": 32, "mlp_width": 704, "bits": 13},
    "59m": {"layers": 8, "width": 512, "heads": 8, "head_dim": 64, "mlp_width": 1408, "bits": 15},
}
RUNS = {"7m": 3, "59m": 2}
GUIDED = "guided"
# Competitors, with guidance and without.
PEERS = {
    GUIDED: ("qwen3 guidance_scale", "qwen3 doubled", "qwen3 doubled compiled"),
    "plain": ("qwen3", "qwen3 compiled"),
}


def poet_case(name: str, guided: bool) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from poet.models.transformer import build
    from poet.sampling.decode import Decoder, Plan
    from poet.sampling.samplers import SamplingParams
    from poet.spec import ModelSpec, SampleSpec, VocabularySpec
    from poet.spec.vocabulary import Special, Vocabulary
    from poet.tasks.layout import CONDITION, OUTPUT, TEXT_STREAM, Layout, Segment

    case = dict(CASES[name])
    words = Vocabulary(VocabularySpec(visual_bits=case.pop("bits"), audio_levels=1, audio_codes=1, text_pieces=1))
    spec = ModelSpec(**case, kv_heads=case["heads"], dtype="float32", remat="none")
    model = build(spec, words, spec.width)
    # One token opens the output, so that the first draw stands after the prompt of PROMPT positions.
    text, grid = PROMPT - 1, (TOKENS, 1, 1)
    layout = Layout(
        (
            Segment(TEXT_STREAM, 0, text, CONDITION, words.special(Special.TEXT), (text, 1, 1)),
            Segment("bov_o", 0, 1, OUTPUT, words.special(Special.BOV_O), (1, 1, 1)),
            Segment("video", 0, TOKENS, OUTPUT, words.visual, grid),
        )
    )
    decoder = Decoder(model, Plan(layout=layout, guided=guided))
    params = jax.jit(model.init)(jax.random.key(0))
    sampling_params = SamplingParams.of(SampleSpec(temperature=0.0, guidance=GUIDANCE))
    rng = np.random.default_rng(0)
    lengths = np.tile([text, 0] if guided else [text], BATCH).astype(np.int32)
    states = rng.normal(size=(len(lengths), text, spec.width)).astype(np.float32)
    given = layout.assemble({"video": np.zeros((BATCH, TOKENS), np.int32)})[:, :PROMPT]
    rows = jnp.arange(BATCH, dtype=jnp.int32)
    begin = time.perf_counter()
    decode = decoder.decode.lower(
        params, *jax.eval_shape(decoder.prefill, params, given, states, lengths), rows, sampling_params
    ).compile()
    compile_s = time.perf_counter() - begin
    wall, cpu = [], []
    for _ in range(RUNS[name] + 1):
        cache, x = jax.block_until_ready(decoder.prefill(params, given, states, lengths))
        once = harness.timed(lambda: jax.block_until_ready(decode(params, cache, x, rows, sampling_params)), 1, 0)
        wall += once["wall"]
        cpu += once["cpu"]
    return {"wall": wall[1:], "cpu": cpu[1:], "compile_s": compile_s, "versions": harness.installed()}


def peer_case(who: str, name: str, doubled: bool) -> dict[str, Any]:
    import peer_lm
    import torch

    case = CASES[name]
    model = peer_lm.build("qwen3", {**case, "kv_heads": case["heads"]}, 2 ** case["bits"], PROMPT + TOKENS)
    model = model.eval()
    if who.endswith("compiled"):
        model.forward = torch.compile(model.forward, dynamic=False)
    guided = who == "qwen3 guidance_scale"
    rows = BATCH if guided or not doubled else 2 * BATCH
    prompt = torch.randint(0, 2 ** case["bits"], (rows, PROMPT))
    settings: dict[str, Any] = {
        "do_sample": False,
        "cache_implementation": "static",
        "attention_mask": torch.ones_like(prompt),
    }
    if guided:
        settings |= {"guidance_scale": GUIDANCE, "negative_prompt_ids": torch.zeros_like(prompt)}

    def run(tokens: int) -> None:
        with torch.inference_mode():
            out = model.generate(prompt, max_new_tokens=tokens, min_new_tokens=tokens, **settings)
        if out.shape != (rows, PROMPT + tokens):
            raise RuntimeError(f"generate gave {tuple(out.shape)}")

    run(TOKENS), run(1)
    times: dict[str, list[float]] = {"wall": [], "cpu": []}
    for _ in range(RUNS[name]):
        # The prompt gives the first token; what 128 take longer than one is 127 steps.
        long, short = harness.timed(lambda: run(TOKENS), 1, 0), harness.timed(lambda: run(1), 1, 0)
        for key in times:
            times[key].append((long[key][0] - short[key][0]) * TOKENS / (TOKENS - 1))
    return {**times, "compile_s": 0.0, "versions": harness.installed()}


def compare(flags: Any) -> None:
    if not flags.peer_python:
        print("no --peer_python: the rows of transformers are left out; the head of this file says how to install it")
    for name, how in itertools.product(flags.cases, flags.how):

        def run(python: str, who: str) -> Any:
            return functools.partial(harness.child, python, __file__, (who, name, how), flags.core)

        cases = {"poet": run(sys.executable, "poet")}
        cases |= {who: run(flags.peer_python, who) for who in (PEERS[how] if flags.peer_python else ())}
        found = harness.interleave(cases, flags.rounds)
        said = "guided samples" if how == GUIDED else "samples without guidance"
        unit = f"{TOKENS} tokens of {BATCH} {said}, {name.upper()} parameters"
        harness.save("decode", name if how == GUIDED else f"{name}_{how}", found, unit=unit)


if __name__ == "__main__":
    parser = harness.arguments(__doc__, CASES)
    parser.add_argument("--how", nargs="*", default=list(PEERS), choices=list(PEERS))
    flags = parser.parse_args()
    if not flags.case:
        compare(flags)
    else:
        who, name, how = flags.case.split(",")
        guided = how == GUIDED
        print(json.dumps(poet_case(name, guided) if who == "poet" else peer_case(who, name, guided)))
