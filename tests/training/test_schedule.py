from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poet.spec import DataSpec, Experiment, TrainSpec, UserError, config
from poet.tasks.resolved import Resolved
from poet.training.schedule import GroupSchedule, PhasedSchedule, check_all_trained

# Decimals as a person writes them, some of them zero.
SHARES = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 1000).map(lambda n: n / 1000), min_size=1).filter(
    lambda shares: any(shares.values())
)


@settings(max_examples=60, deadline=None)
@given(SHARES, st.integers(0, 5))
def test_every_prefix_is_within_one_step_of_its_shares(shares: dict[str, float], seed: int) -> None:
    schedule = GroupSchedule(shares, seed)
    exact = {name: Fraction(str(share)) for name, share in shares.items()}
    total = sum(exact.values())
    counts: Counter[str] = Counter()
    for step in range(400):
        counts[schedule(step)] += 1
        for name, share in exact.items():
            assert abs(counts[name] - share / total * (step + 1)) < 1
    assert not any(counts[name] for name, share in shares.items() if not share)


@settings(max_examples=50, deadline=None)
@given(SHARES, st.integers(0, 2**32), st.lists(st.integers(0, 3000), min_size=1, max_size=20))
def test_the_group_of_a_step_does_not_depend_on_what_was_asked_before(
    shares: dict[str, float], seed: int, steps: list[int]
) -> None:
    shared = GroupSchedule(shares, seed)
    reordered = dict(reversed(shares.items()))
    assert [shared(s) for s in steps] == [GroupSchedule(reordered, seed)(s) for s in steps]


def test_shares_are_relative_and_far_steps_cost_one_period() -> None:
    small, large = GroupSchedule({"a": 0.75, "b": 0.25}), GroupSchedule({"a": 3, "b": 1})
    assert [small(s) for s in range(50)] == [large(s) for s in range(50)]
    assert small(10**12) == small(0) and len(small._chosen) <= 50


def test_the_seed_orders_equal_shares() -> None:
    shares = dict.fromkeys("abcd", 1.0)
    first = {GroupSchedule(shares, seed)(0) for seed in range(40)}
    assert first == set("abcd")


@pytest.mark.parametrize("shares", [{}, {"a": 0.0}, {"a": -1.0, "b": 2.0}, {"a": float("nan")}])
def test_unusable_shares_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(UserError, match="group weights"):
        GroupSchedule(shares)


MIXTURE = Experiment(
    data=DataSpec(
        mixture_rates={"text_to_image": 0.1, "text_to_video": 0.3, "image_to_video": 0.3, "unconditional": 0.2},
        image_fractions=((0.25, 0.9), (1.0, 0.1)),
    ),
    train=TrainSpec(steps=2000),
)


def test_images_come_first_and_videos_later_as_in_the_paper() -> None:
    """VideoPoet §5.1, in every window of 100 steps; within videos the tasks' rates decide."""
    schedule = PhasedSchedule(Resolved(MIXTURE).phases, seed=3)
    chosen = [schedule(step) for step in range(2000)]
    for start in range(0, 2000, 100):
        window = Counter(chosen[start : start + 100])
        images = 90 if start < 500 else 10
        assert abs(window["text-to-image"] - images) <= 2
        assert abs(window["text-to-video"] - (100 - images) * 0.75) <= 2
        assert abs(window["video"] - (100 - images) * 0.25) <= 2
    fresh = PhasedSchedule(Resolved(MIXTURE).phases, seed=3)
    assert [fresh(step) for step in (1999, 500, 499, 0)] == [chosen[s] for s in (1999, 500, 499, 0)]


def test_without_phases_the_rates_decide_and_phases_need_what_they_ask_for() -> None:
    plain = MIXTURE.replace(data=MIXTURE.data.replace(image_fractions=()))
    assert Resolved(plain).phases == [
        (2000, {"text-to-image": Fraction(1, 10), "text-to-video": Fraction(3, 5), "video": Fraction(1, 5)})
    ]
    silent = MIXTURE.data.replace(mixture_rates={"text_to_video": 1.0})
    with pytest.raises(UserError, match="0.9 of a phase to images, which no task"):
        _ = Resolved(MIXTURE.replace(data=silent)).phases


@pytest.mark.parametrize(
    ("rates", "shares", "steps", "missing"),
    [
        ({"unconditional": 1.0, "text_to_image": 0.001}, (), 100, "text_to_image"),  # A group.
        ({"text_to_video": 1.0, "image_to_video": 0.001}, (), 3, "image_to_video"),  # Within a group.
        ({"unconditional": 1.0, "text_to_image": 1.0}, ((1.0, 0.0),), 100, "text_to_image"),
        ({"unconditional": 1.0, "text_to_image": 1.0}, ((0.001, 0.5), (1.0, 1.0)), 100, "unconditional"),
    ],
)
def test_tasks_that_a_run_never_trains_are_named(rates, shares, steps, missing) -> None:
    """Before, they were left out without a word."""
    run = MIXTURE.replace(data=DataSpec(mixture_rates=rates, image_fractions=shares, batch=4))
    run = run.replace(train=TrainSpec(steps=steps))
    with pytest.raises(UserError, match=f"the {steps} steps.* take no example of {missing}: set TRAIN"):
        check_all_trained(Resolved(run), PhasedSchedule(Resolved(run).phases))


def test_runs_that_train_every_task_pass() -> None:
    check_all_trained(Resolved(MIXTURE), PhasedSchedule(Resolved(MIXTURE).phases))
    for name in ("quickstart", "pretrain", "adapt_300m", "visual_head"):
        run = config.load([f"gin/experiments/{name}.gin"])
        check_all_trained(Resolved(run), PhasedSchedule(Resolved(run).phases, run.data.seed))


@pytest.mark.parametrize("shares", [((0.5, 0.9),), ((0.5, 0.9), (0.25, 0.1), (1.0, 0.1)), ((1.0, 1.2),)])
def test_phases_that_do_not_cover_a_run_are_refused(shares) -> None:
    with pytest.raises(UserError, match="DATA.image_fractions"):
        DataSpec(image_fractions=shares)
