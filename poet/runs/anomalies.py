"""What is unusual in the log of a training: spikes of losses and gradients, slow steps, waits for data."""

from __future__ import annotations

import collections
import dataclasses
import statistics
from collections.abc import Callable, Mapping

# Lines that a usual value is of, and how many there must be before it means anything.
_RECENT, _LEAST = 50, 10
# A loss is unusual beyond so many standard deviations, estimated by the median absolute deviation, and beyond this
# fraction of the median, as a loss that hardly moves has next to no deviation.
_DEVIATIONS, _FRACTION = 6.0, 0.1
_NORMAL = 1.4826
# How often the usual gradient norm, which fraction of the usual speed, and which share of the time for data.
_NORM_TIMES, _SLOW, _WAIT = 5.0, 0.5, 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alert:
    """An unusual value: of which metric at which step, and a sentence about it."""

    step: int
    metric: str
    text: str


class Watch:
    """Takes the lines of a training's log in order, and says what is unusual in each.

    What goes on is said once; a value must have been usual in between to be said again.  Unusual values do not
    change what is usual, unless they stay for half of the lines that it is of.
    """

    def __init__(self) -> None:
        self._recent: dict[str, collections.deque[float]] = {}
        self._raised: set[str] = set()

    def take(self, step: int, scalars: Mapping[str, float]) -> list[Alert]:
        """Alerts of one line; `scalars` are its numbers, by name in the log."""
        found = []
        for name, value in scalars.items():
            rule = _rule(name)
            if rule is None:
                continue
            recent = self._recent.setdefault(name, collections.deque(maxlen=_RECENT))
            text = rule(value, recent)
            if text and name not in self._raised:
                found.append(Alert(step=step, metric=name, text=f"{name} is {value:.4g}{text}"))
            (self._raised.add if text else self._raised.discard)(name)
            recent.append(value)
        return found


Rule = Callable[[float, "collections.deque[float]"], str]


def _rule(name: str) -> Rule | None:
    """What is unusual for a metric; None: nothing is."""
    last = name.split("/")[-1]
    if name == "loss":
        return _spike
    return {"grad_norm": _many_times, "steps_per_s": _slow, "data_wait": _waits}.get(last)


def _spike(value: float, recent: collections.deque[float]) -> str:
    if len(recent) < _LEAST:
        return ""
    usual = statistics.median(recent)
    deviation = _NORMAL * statistics.median(abs(each - usual) for each in recent)
    limit = usual + max(_DEVIATIONS * deviation, _FRACTION * abs(usual))
    return f", usually {usual:.4g} and at most {limit:.4g}" if value > limit else ""


def _many_times(value: float, recent: collections.deque[float]) -> str:
    usual = statistics.median(recent) if len(recent) >= _LEAST else value
    return f", {value / usual:.0f} times the usual {usual:.4g}" if 0 < usual < value / _NORM_TIMES else ""


def _slow(value: float, recent: collections.deque[float]) -> str:
    usual = statistics.median(recent) if len(recent) >= _LEAST else value
    return f", usually {usual:.4g}" if value < _SLOW * usual else ""


def _waits(value: float, recent: collections.deque[float]) -> str:
    enough = len(recent) >= _LEAST
    return f": steps wait for batches for {100 * value:.0f} % of the time" if value > _WAIT and enough else ""
