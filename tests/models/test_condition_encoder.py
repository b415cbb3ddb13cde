"""The condition encoder beside loops over cells and moments in float64, and what it may depend on."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from poet.distributed import mesh as mesh_lib
from poet.models import condition_encoder
from poet.models.declaration import axes, init, shapes
from poet.models.transformer import project_in
from poet.spec import MeshSpec, ModelSpec, VocabularySpec
from poet.spec.vocabulary import Special, Vocabulary
from poet.tasks.layout import Format, Layout, Span, build_layout
from poet.training import flops

BITS, FEATURES, WIDTH = 5, 6, 8
VOCABULARY = Vocabulary(VocabularySpec(visual_bits=BITS, audio_codes=16, audio_levels=2, text_pieces=8))
DECLARED = condition_encoder.declare(ModelSpec(width=WIDTH, condition_encoder=FEATURES), VOCABULARY)
GRID = (3, 2, 3)


def layout_of(*output: str) -> Layout:
    return build_layout(
        task_token=Special.TASK_VIDEO,
        text=False,
        condition=("video",),
        output=output,
        fmt=Format(video=GRID, text_length=4, audio_frames=9, audio_time=(0.1, 0.31)),
        vocabulary=VOCABULARY,
    )


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    """Random ones, `picture` and `sound` too."""
    rng = np.random.default_rng(2)
    return {name: rng.normal(size=w.shape).astype(np.float32) for name, w in DECLARED.items()}


def tokens_of(layout: Layout) -> np.ndarray:
    rng = np.random.default_rng(3)
    tokens = np.concatenate([rng.integers(s.ids.low, s.ids.high, (2, s.length)) for s in layout.segments], axis=1)
    span = given(layout)
    tokens[:, span.start + 1 : span.stop : 4] = Special.HIDDEN
    return tokens.astype(np.int32)


def given(layout: Layout) -> Span:
    return next(s for s in layout.spans if s.segment.stream == "video_in")


def encoded(weights, layout: Layout, tokens: np.ndarray) -> list[tuple[Span, np.ndarray]]:
    found = condition_encoder.encode(weights, tokens, layout, BITS, np.dtype("float32"))
    return [(span, np.asarray(x) @ np.asarray(kernel)) for span, x, kernel in found]


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def cell(weights, picture: np.ndarray, t: int, y: int, x: int) -> np.ndarray:
    """Features [F] of one cell of ids [T, Y, X]."""
    read = []
    for row in (y - 1, y, y + 1):
        for column in (x - 1, x, x + 1):
            inside = 0 <= row < GRID[1] and 0 <= column < GRID[2]
            token = picture[t, row, column] if inside else Special.HIDDEN
            code = token - VOCABULARY.visual.low
            read += [0] * BITS if token == Special.HIDDEN else [1 if code & 2**k else -1 for k in range(BITS)]
    read += [-1 + 2 * y / (GRID[1] - 1), -1 + 2 * x / (GRID[2] - 1)]
    return gelu(gelu(np.array(read, np.float64) @ weights["first"]) @ weights["second"])


def test_a_cell_is_encoded_with_the_bits_around_it(weights) -> None:
    layout = layout_of("video")
    tokens = tokens_of(layout)
    ((span, found),) = encoded(weights, layout, tokens)
    assert span.segment.stream == "video"
    for row, picture in enumerate(tokens[:, given(layout).start : given(layout).stop].reshape(2, *GRID)):
        expected = [cell(weights, picture, *place) @ weights["picture"] for place in np.ndindex(*GRID)]
        np.testing.assert_allclose(found[row], expected, rtol=1e-3, atol=1e-3)


def pooled(weights, picture: np.ndarray, t: int) -> np.ndarray:
    """[H * F] of one latent frame; 0 before the first and after the last."""
    if not 0 <= t < GRID[0]:
        return np.zeros(condition_encoder.HEADS * FEATURES)
    cells = np.array([cell(weights, picture, t, y, x) for y in range(GRID[1]) for x in range(GRID[2])])
    scores = np.exp(cells @ weights["heads"])
    return ((scores / scores.sum(axis=0)).T @ cells).reshape(-1)


def test_sound_is_told_of_the_pictures_around_its_time(weights) -> None:
    layout = layout_of("audio")
    tokens = tokens_of(layout)
    found = encoded(weights, layout, tokens)
    assert [span.segment.part for span, _ in found] == [0, 9]
    picture = tokens[0, given(layout).start : given(layout).stop].reshape(GRID)
    for level, (_, x) in enumerate(found):
        for i in range(9):
            time = 0.1 + 0.31 * i
            t = min(int(np.floor(time + 0.5)), GRID[0] - 1)
            frames = np.concatenate([pooled(weights, picture, t + k) for k in (-1, 0, 1)])
            angle = np.pi * np.arange(1, 7) * (time + 0.5 - t)
            moment = np.concatenate([np.cos(angle), np.sin(angle)]) @ weights["times"] + weights["levels"][level]
            expected = gelu(frames @ weights["frames"] + moment) @ weights["sound"]
            np.testing.assert_allclose(x[0, i], expected, rtol=2e-3, atol=2e-3)


def test_what_is_predicted_is_not_read(weights) -> None:
    layout = layout_of("video", "audio")
    tokens = tokens_of(layout)
    other = tokens.copy()
    other[:, layout.prefix_length :] = tokens[::-1, layout.prefix_length :]
    for (_, one), (_, two) in zip(encoded(weights, layout, tokens), encoded(weights, layout, other), strict=True):
        np.testing.assert_array_equal(one, two)


def test_it_begins_as_if_it_were_not_there() -> None:
    made = init(DECLARED, jax.random.key(0))
    assert not made["picture"].any() and not made["sound"].any() and made["first"].any()
    assert all(len(a) == leaf.ndim for a, leaf in zip(axes(DECLARED).values(), shapes(DECLARED).values(), strict=True))


@pytest.mark.parametrize("output", [("video",), ("audio",), ("video", "audio")])
def test_its_flops_are_those_of_its_products(output) -> None:
    layout = layout_of(*output)
    tokens = jax.ShapeDtypeStruct((1, layout.length), np.int32)

    def run(weights, tokens):
        found = condition_encoder.encode(weights, tokens, layout, BITS, np.dtype("float32"))
        return [x @ kernel for _, x, kernel in found]

    traced = flops.traced_flops(run, shapes(DECLARED), tokens)
    counted = condition_encoder.flops(DECLARED, layout)
    # Not counted: what depends on no input, and the choice of a latent frame.
    small = sum(2 * (s.stop - s.start) * (12 + 2 + GRID[0]) * FEATURES for _, s in layout.accompanied)
    assert traced - small <= counted <= traced


@pytest.mark.parametrize("split", [{"tensor": 2}, {"sequence": 2}])
def test_devices_share_it(weights, split) -> None:
    layout = layout_of("video", "audio")
    tokens, mesh = tokens_of(layout), mesh_lib.build(MeshSpec(data=1, fsdp=2, **split), jax.devices()[:4])

    def total(weights, tokens):
        found = condition_encoder.encode(weights, tokens, layout, BITS, np.dtype("float32"))
        return sum((project_in(x, kernel) ** 2).sum() for _, x, kernel in found)

    wanted = jax.jit(jax.value_and_grad(total))(weights, tokens)
    with jax.set_mesh(mesh):
        placed = jax.device_put(weights, mesh_lib.Rules().shardings(mesh, axes(DECLARED)))
        found = jax.jit(jax.value_and_grad(total))(placed, jax.device_put(tokens, mesh_lib.batch_sharding(mesh)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=0.1), found, wanted)
