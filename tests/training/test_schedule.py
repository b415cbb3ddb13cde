from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poet.specs import UserError
from poet.training.schedule import GroupSchedule

# Decimals as a person writes them, some of them zero.
SHARES = st.dictionaries(
    st.sampled_from("abcdefgh"),
    st.integers(0, 1000).map(lambda n: n / 1000),
    min_size=1,
).filter(lambda shares: any(shares.values()))


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
    with pytest.raises(UserError, match="group shares"):
        GroupSchedule(shares)
