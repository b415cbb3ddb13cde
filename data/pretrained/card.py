"""The tables in the card of a language model, from the scores beside it.

python data/pretrained/card.py data/pretrained/lm_arenas            # prints them
python data/pretrained/card.py data/pretrained/lm_arenas --write    # replaces them in README.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

GAIN = ("task", "condition → output", "nats a token", "nats a clip", "can be copied")
LOSS = ("task", "stream", "loss", "unigram", "accuracy")


def tables(scores: Mapping[str, Any]) -> tuple[str, str]:
    """Markdown of the condition gain and of the likelihood, from the contents of scores.json."""
    gains = [
        (
            task,
            f"{condition} → {stream}",
            _interval(found["nats_per_token"], 3),
            _interval(found["nats_per_clip"], 1),
            _copied(found),
        )
        for task, conditions in scores["condition_gain"].items()
        for condition, streams in conditions.items()
        for stream, found in streams.items()
    ]
    losses = [
        (
            task,
            stream,
            f"{found['loss_nats']:.3f} ± {found['loss_nats_error']:.3f}",
            f"{found['unigram_nats']:.3f}",
            f"{found['accuracy']:.3f}",
        )
        for task, streams in scores["likelihood"].items()
        for stream, found in streams.items()
    ]
    return _table(GAIN, gains), _table(LOSS, losses)


def _interval(found: Mapping[str, float], digits: int) -> str:
    value, low, high = (f"{found[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _copied(found: Mapping[str, Any]) -> str:
    """Of codes that stand at the same place of the condition; '' where fewer than one in a thousand do."""
    copied = found.get("copyable", {"share": 0})
    if copied["share"] < 1e-3:
        return ""
    return f"{copied['share']:.0%}, {copied['nats_per_token']:.2f} nats, right {copied['accuracy']:.0%}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def replaced(page: str, made: tuple[str, ...]) -> str:
    """The page with these tables in the place of those of the same head.  Raises ValueError where one is missing."""
    lines = page.splitlines()
    for table in made:
        head = table.splitlines()[0]
        if head not in lines:
            raise ValueError(f"the card has no table with the head {head}")
        start = lines.index(head)
        stop = next((i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines))
        lines[start:stop] = table.splitlines()
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    made, card = tables(json.loads((options.folder / "scores.json").read_text())), options.folder / "README.md"
    if options.write:
        card.write_text(replaced(card.read_text(), made))
    else:
        print("\n\n".join(made))


if __name__ == "__main__":
    main()
