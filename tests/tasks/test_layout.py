"""Vocabulary ranges, token counts and the properties of layouts (spec A1, A6, A7, A8)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poet.spec import (
    AudioTokenizerSpec,
    ClipSpec,
    ConditioningSpec,
    DataSpec,
    Experiment,
    TextSpec,
    UserError,
    VideoTokenizerSpec,
    VocabularySpec,
)
from poet.spec.vocabulary import Special, Vocabulary
from poet.tasks.layout import Format, build_layout
from poet.tasks.registry import TASKS, task_layout
from poet.tasks.resolved import Resolved

SQUARE, PORTRAIT = (128, 128), (224, 128)


def experiment(size: tuple[int, int] = SQUARE, frames: int = 17) -> Experiment:
    clip = ClipSpec(frames=frames, height=size[0], width=size[1])
    return Experiment(
        clip=clip,
        audio_tokenizer=AudioTokenizerSpec(path="trained"),
        text=TextSpec(pieces="spiece.model"),
        data=DataSpec(mixture_rates={name: 1.0 for name in TASKS}),
    )


@pytest.mark.parametrize(
    "frames, square, portrait", [(1, 256, 448), (5, 512, 896), (9, 768, 1344), (17, 1280, 2240), (41, 2816, 4928)]
)
def test_latent_token_counts(frames: int, square: int, portrait: int) -> None:
    grid = VideoTokenizerSpec().grid
    assert np.prod(grid(frames, *SQUARE)) == square
    assert np.prod(grid(frames, *PORTRAIT)) == portrait


def test_vocabulary_has_the_papers_ranges() -> None:
    v = Vocabulary()
    assert [(r.low, r.size) for r in v.tables.values()] == [
        (0, 256),
        (256, 262_144),
        (262_400, 4_096),
        (266_496, 33_504),
    ]
    assert v.size == 300_000


@given(bits=st.integers(1, 18), levels=st.integers(1, 12), codes=st.integers(1, 2048), pieces=st.integers(1, 1000))
def test_vocabulary_ranges_tile_the_id_space(bits: int, levels: int, codes: int, pieces: int) -> None:
    v = Vocabulary(VocabularySpec(visual_bits=bits, audio_levels=levels, audio_codes=codes, text_pieces=pieces))
    ranges = [v.tables["special"], v.visual, *(v.audio(i) for i in range(levels)), v.text]
    edges = [edge for r in ranges for edge in (r.low, r.high)]
    assert edges[0] == 0 and edges[-1] == v.size
    assert all(a == b for a, b in zip(edges[1:-1:2], edges[2::2]))
    assert all(int(s) < v.visual.low for s in Special)


@pytest.mark.parametrize(
    "name, square, portrait",
    [
        ("text_to_video", 1352, 2313),
        ("image_to_video", 1352, 2313),
        ("unconditional", 1286, 2247),
        ("frame_prediction", 1286, 2247),
        ("text_to_image", 326, 519),
        ("inpainting", 2568, 4489),
        ("frame_interpolation", 2568, 4489),
        ("outpainting", 2634, 4555),
        ("stylization", 2634, 4555),
        ("video_to_audio", 1712, 2672),
        ("audio_to_video", 1712, 2673),
        ("text_to_audio", 496, 496),
        ("text_to_video_with_audio", 1778, 2739),
        ("audio_video_continuation", 1712, 2673),
    ],
)
def test_sequence_lengths_of_the_paper(name: str, square: int, portrait: int) -> None:
    given = ConditioningSpec(sound_place="output")
    assert Resolved(experiment(SQUARE).replace(conditioning=given)).layouts[name].length == square
    assert Resolved(experiment(PORTRAIT).replace(conditioning=given)).layouts[name].length == portrait


def test_conditioning_sound_stands_before_the_generated_picture() -> None:
    layout = Resolved(experiment()).layouts["audio_video_continuation"]
    # Of 9 frames, 1.125 s: 56 frames of 20 ms at 4 levels, between two boundary tokens.
    assert layout.length == 1712 + 4 * 56 + 2 and layout.streams["opening_audio_in"] == 4 * 56
    last = max(s.stop for s in layout.spans if s.segment.stream == "opening_audio_in")
    assert last < layout.prefix_length
    assert "opening_audio_in" not in Resolved(experiment()).layouts["text_to_video_with_audio"].streams


@pytest.mark.parametrize(
    "condition, output, text, length",
    [
        (("video",), ("video",), False, 2568),
        (("video",), ("video",), True, 2634),
        (("video",), ("audio",), False, 1712),
        (("audio",), ("video",), False, 1712),
        ((), ("video", "audio"), True, 1778),
    ],
)
def test_lengths_of_conditioned_tasks(condition, output, text, length) -> None:
    layout = build_layout(
        task_token=Special.TASK_VIDEO,
        text=text,
        condition=condition,
        output=output,
        fmt=Format(video=(5, 16, 16), audio_frames=106, text_length=64),
        vocabulary=Vocabulary(),
    )
    assert layout.length == length


ALL_LAYOUTS = [
    build_layout(
        task_token=Special.TASK_VIDEO,
        text=text,
        condition=condition,
        output=output,
        fmt=Format(video=grid, audio_frames=7, text_length=5, portrait=portrait),
        vocabulary=Vocabulary(),
    )
    for text in (False, True)
    for condition in ((), ("video",), ("image", "audio"))
    for output in (("image",), ("video",), ("audio",), ("video", "audio"))
    for grid, portrait in (((2, 3, 2), False), ((3, 4, 2), True))
]


@settings(max_examples=60, deadline=None)
@given(layout=st.sampled_from(ALL_LAYOUTS), seed=st.integers(0, 2**32 - 1), batch=st.integers(1, 3))
def test_parse_inverts_assemble(layout, seed: int, batch: int) -> None:
    rng = np.random.default_rng(seed)
    streams = {name: np.empty((batch, size), np.int32) for name, size in layout.streams.items()}
    for s in (span.segment for span in layout.spans if not span.segment.forced):
        part = slice(s.part, s.part + s.length)
        streams[s.stream][:, part] = rng.integers(0, s.ids.size, (batch, s.length))
    tokens = layout.assemble(streams)
    assert tokens.dtype == np.int32 and tokens.shape == (batch, layout.length)
    parsed = layout.parse(tokens)
    assert parsed.keys() == streams.keys()
    for name in streams:
        np.testing.assert_array_equal(parsed[name], streams[name])


@pytest.mark.parametrize("layout", ALL_LAYOUTS[::5])
def test_parse_refuses_an_illegal_id_anywhere(layout) -> None:
    zeros = {name: np.zeros(size, np.int32) for name, size in layout.streams.items()}
    tokens = layout.assemble(zeros)
    for span in layout.spans:
        for bad in (span.segment.ids.low - 1, span.segment.ids.high):
            spoiled = tokens.copy()
            spoiled[span.start] = bad
            with pytest.raises(UserError, match="outside"):
                layout.parse(spoiled)


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_loss_positions(layout) -> None:
    """A8, entry by entry from the words of the paper."""
    p = layout.prefix_length
    predicted = [q for s in layout.loss_spans for q in range(s.start, s.stop)]
    assert min(predicted) > p, "the first boundary of the output is forced"
    assert len(predicted) == layout.loss_length == len(set(predicted))
    forced = {q for s in layout.spans if s.segment.forced for q in range(s.start, s.stop)}
    assert set(range(p, layout.length)) == set(predicted) | {q for q in forced if q >= p}


@pytest.mark.parametrize("frames", [17, 41])
@pytest.mark.parametrize("size", [SQUARE, PORTRAIT])
def test_text_to_image_opens_text_to_video(size: tuple[int, int], frames: int) -> None:
    table = Resolved(experiment(size, frames)).layouts
    image, video = table["text_to_image"], table["text_to_video"]
    codes = np.arange(video.streams["video"], dtype=np.int32)
    source = np.array([3], np.int32)
    whole = video.assemble({"video": codes, "source": source})
    opening = image.assemble({"image": codes[: image.streams["image"]], "source": source})
    np.testing.assert_array_equal(whole[: opening.size], opening)
    np.testing.assert_array_equal(image.positions(), video.positions()[: opening.size])
    names = [s.stream for s in image.segments]
    assert "eov_o" not in names and "eos" not in names


def places(layout, stream: str) -> np.ndarray:
    """Rotary positions of all segments of a stream."""
    positions = layout.positions()
    return np.concatenate([positions[s.start : s.stop] for s in layout.spans if s.segment.stream == stream])


def test_a_condition_stands_where_its_clip_is_drawn() -> None:
    layout = Resolved(experiment()).layouts["inpainting"]
    grid = np.indices((5, 16, 16)).reshape(3, -1).T
    np.testing.assert_array_equal(places(layout, "video"), grid)
    np.testing.assert_array_equal(places(layout, "video_in"), grid)


def test_sound_has_the_time_of_its_picture_in_prefix_and_output() -> None:
    table, run = Resolved(experiment()).layouts, experiment()
    hop_s = run.audio_tokenizer.hop / run.audio_tokenizer.sample_rate_hz
    # The middle of audio frame i, and of latent frame k: 4 video frames, the last of them frame 4 k.
    middle_s = (np.arange(106) + 0.5) * hop_s
    latents_s = np.array([(4 * k + 1 - 2) / run.clip.rate_hz for k in range(3)])
    for name, stream in (("video_to_audio", "audio"), ("audio_to_video", "audio_in")):
        levels = places(table[name], stream).reshape(4, 106, 3)
        expected = (middle_s - latents_s[1]) / (latents_s[2] - latents_s[1]) + 1
        np.testing.assert_allclose(levels[0, :, 0], expected)
        assert (levels[:, :, 0] == levels[0, :, 0]).all()
        assert len({tuple(row) for level in levels for row in level[:, 1:]}) == 4, "a row for each level"
    opening = places(table["audio_video_continuation"], "opening_audio_in").reshape(4, -1, 3)
    drawn = places(table["audio_video_continuation"], "audio").reshape(4, -1, 3)
    np.testing.assert_array_equal(opening, drawn[:, : opening.shape[1]])


@pytest.mark.parametrize("name", sorted(TASKS))
def test_no_two_output_positions_share_a_place(name) -> None:
    layout = Resolved(experiment()).layouts[name]
    drawn = layout.positions()[layout.prefix_length :]
    assert len({tuple(row) for row in drawn.tolist()}) == len(drawn)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_aligned_conditions_are_the_pictures_that_show_the_same_place(name) -> None:
    layout = Resolved(experiment()).layouts[name]
    pictures = np.concatenate([np.full(s.length, bool(s.frame)) for s in layout.segments])
    given, expected = {}, {}
    for position, place in enumerate(map(tuple, layout.positions().tolist())):
        if pictures[position] and position < layout.prefix_length:
            given.setdefault(place, position)
        elif pictures[position] and place in given:
            expected[position] = given[place]
    pairs = [zip(range(output.start, output.stop), range(c.start, c.stop)) for c, output in layout.aligned]
    assert {position: source for pair in pairs for position, source in pair} == expected


def test_tasks_from_picture_to_picture_have_aligned_conditions() -> None:
    table = Resolved(experiment()).layouts
    assert {name for name, layout in table.items() if layout.aligned} == {
        "image_to_video_bidirectional",
        "frame_prediction_bidirectional",
        "frame_interpolation",
        "inpainting",
        "outpainting",
        "stylization",
    }


def test_sound_is_accompanied_by_the_picture_that_is_its_condition() -> None:
    table = Resolved(experiment()).layouts
    found = {name: layout.accompanied for name, layout in table.items() if layout.accompanied}
    assert found.keys() == {"video_to_audio"}
    for picture, sound in found["video_to_audio"]:
        assert (picture.segment.stream, sound.segment.stream) == ("video_in", "audio")
    assert [sound for _, sound in found["video_to_audio"]] == list(table["video_to_audio"].loss_spans)


def test_separate_positions_never_collide_across_segments() -> None:
    layout = Resolved(experiment()).layouts["text_to_video"]
    span, positions = layout.loss_spans[0], layout.positions(shared=False)
    grid = positions[span.start : span.stop].reshape(5, 16, 16, 3)
    t, h, w = np.indices((5, 16, 16))
    np.testing.assert_array_equal(grid - grid[0, 0, 0], np.stack([t, h, w], -1))
    after, before = positions[span.stop :], positions[: span.start]
    assert after.min() > grid.max() and before.max() < grid.min()


def test_known_frames_and_text_dropout_need_no_layout_of_their_own() -> None:
    table = Resolved(experiment()).layouts
    assert table["image_to_video"] == table["text_to_video"]
    assert table["frame_prediction"] == table["unconditional"]
    assert len({hash(layout) for layout in table.values()}) == len(set(table.values())) == 13


def test_groups_hold_each_task_once_and_train_equal_tokens() -> None:
    e = experiment()
    table = Resolved(e).groups
    assert sorted(n for _, rates in table.values() for n in rates) == sorted(TASKS)
    for layout, rates in table.values():
        assert all(task_layout(TASKS[n], Resolved(e).format, Vocabulary()) == layout for n in rates)
    names = ("text_to_image", "text_to_video", "text_to_video_with_audio")
    batches = Resolved(e.replace(data=DataSpec(mixture_rates=dict.fromkeys(names, 1.0)))).batches
    assert batches["text-to-image"] == 5 * batches["text-to-video"]


@given(batch=st.integers(1, 64), step=st.integers(1, 16))
@settings(deadline=None, max_examples=20)
def test_batches_are_multiples_of_what_a_mesh_asks_for(batch: int, step: int) -> None:
    """And as near to the longest group's tokens from below as such multiples come."""
    e = experiment()
    e = e.replace(data=e.data.replace(batch=batch * step, batch_multiple=step))
    table, batches = Resolved(e).groups, Resolved(e).batches
    most = max(layout.length for layout, _ in table.values()) * batch * step
    for name, (layout, _) in table.items():
        assert batches[name] % step == 0
        assert batches[name] * layout.length <= most < (batches[name] + step) * layout.length


def test_a_missing_stream_is_named() -> None:
    layout = Resolved(experiment()).layouts["text_to_video"]
    with pytest.raises(UserError, match="missing.*video"):
        layout.assemble({"source": np.zeros(1, np.int32)})


def test_unknown_task_lists_near_names() -> None:
    with pytest.raises(UserError, match="text_to_video"):
        _ = Resolved(Experiment(data=DataSpec(mixture_rates={"text_to_vido": 1.0}))).layouts
