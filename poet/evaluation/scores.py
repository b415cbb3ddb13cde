"""`scores.json`: the few numbers of an evaluation that a card quotes, beside the weights that have them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poet.spec import UserError

FORMAT = 1
# Metrics that it is made from.
NEEDS = ("likelihood", "condition_gain")
_LIKELIHOOD = ("loss_nats", "loss_nats_error", "unigram_nats", "accuracy", "tokens")


def check(measured: Any, skipped: Mapping[str, str]) -> None:
    """Raises UserError where a metric that the scores need is not measured."""
    for name in NEEDS:
        if name not in measured or name in skipped:
            why = skipped.get(name, "it is not among the metrics")
            raise UserError(f"--scores needs {name}: {why}")


def record(report: Mapping[str, Any]) -> dict[str, Any]:
    """The record of what `runner.evaluate` returned.

    format, checkpoint (its name), step, split; `networks`: fingerprints of those that it was trained with;
    `likelihood`: task -> stream -> nats per token, its error, the unigram's, accuracy, tokens;
    `condition_gain`: task -> condition -> stream -> clips, and `nats_per_token` and `nats_per_clip`, each
    {value, low, high}, with `copyable` where codes can be copied: their share, nats per token, accuracy.
    """
    rows = {name: report["metrics"][name]["rows"] for name in NEEDS}
    likelihood: dict[str, Any] = {}
    for row in rows["likelihood"]:
        found = {key: row.get(key) for key in _LIKELIHOOD}
        likelihood.setdefault(row["task"], {})[row["stream"]] = found
    gains: dict[str, Any] = {}
    for row in rows["condition_gain"]:
        streams = gains.setdefault(row["task"], {}).setdefault(row["condition"], {})
        streams[row["stream"]] = _gain(row)
    return {
        "format": FORMAT,
        "checkpoint": Path(report["checkpoint"]).name,
        **{key: report[key] for key in ("step", "split", "networks")},
        "likelihood": likelihood,
        "condition_gain": gains,
    }


def _gain(row: Mapping[str, Any]) -> dict[str, Any]:
    bounded = {
        name: {"value": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]}
        for name in ("nats_per_token", "nats_per_clip")
    }
    copied = (
        {}
        if row["copyable"] is None
        else {
            "copyable": {
                "share": row["copyable"],
                "nats_per_token": row["copyable_nats"],
                "accuracy": row["copyable_accuracy"],
            }
        }
    )
    return {**bounded, **copied, "clips": row["clips"]}
