"""The ablation ladder of tokenizer training: one recipe, a loss more on each rung, one table.

    python tests/benchmarks/tokenizer_ladder.py --source=DATA/freedoom_av/1.0.0 --out=LADDER

Every rung trains the same experiment file for equal steps from the same seed through `poet
tokenizer-train`, and is scored by `poet tokenizer-eval` on the same clips.  Other arguments
`--gin.NAME.field=value` hold for all rungs.  Run again, it goes on where it stopped.

The perceptual rungs are trained on a part of the network that LPIPS-HED is measured with, so that
their gain there is partly one of training on the measure; PSNR and SSIM are not touched by that.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence

from poet.evaluation.report.tables import format_table
from poet.evaluation.tokenizers import RESULT_FILE

EXPERIMENT = "gin/experiments/tokenizer_64.gin"
# Columns of the table: of the scores, then of the code statistics.
CODES = ("usage_of_reachable", "bit_balance", "entropy_bits")


def rungs(perceptual: str, adversarial_weight: float) -> dict[str, list[str]]:
    """Name -> bindings of TOKENIZER_TRAIN; from the second on, the entropy term is the file's."""
    bare = {"entropy_weight": 0.0, "perceptual": "", "adversarial_weight": 0.0}
    entropy = {name: bare[name] for name in ("perceptual", "adversarial_weight")}
    seen = entropy | {"perceptual": perceptual}
    ladder = {
        "reconstruction": bare,
        "entropy": entropy,
        "perceptual": seen,
        "gan": seen | {"adversarial_weight": adversarial_weight},
    }
    return {
        name: [f"--gin.TOKENIZER_TRAIN.{field}={value!r}" for field, value in fields.items()]
        for name, fields in ladder.items()
    }


def poet(command: str, *arguments: str) -> None:
    """Runs a command line of the project; its output is shown."""
    subprocess.run([sys.executable, "-m", "poet.cli", command, *arguments], check=True)


def climb(args: argparse.Namespace, shared: Sequence[str]) -> list[dict]:
    """Trains and scores every rung -> a row for each rung and set."""
    common = [f"--gin_file={args.gin_file}", *shared, f"--gin.EVAL.source={args.source}"]
    rows = []
    for name, bindings in rungs(args.perceptual, args.adversarial_weight).items():
        work, scores = args.out / name, args.out / name / "scores"
        poet(
            "tokenizer-train",
            *common,
            *bindings,
            f"--workdir={work}",
            f"--gin.TRAIN.steps={args.steps}",
            f"--gin.TRAIN.seed={args.seed}",
            f"--gin.TOKENIZER_TRAIN.source={args.source}",
        )
        poet(
            "tokenizer-eval",
            *common,
            f"--tokenizer={(work / 'tokenizer').resolve()}",
            f"--out={scores}",
            "--codec=none",
            f"--gin.EVAL.clips={args.clips}",
        )
        found = json.loads((scores / RESULT_FILE).read_text())["metrics"]
        sets = [row["set"] for row in found["codes"]["rows"]]
        for score, used in zip(found["renderings"]["rows"], found["codes"]["rows"], strict=True):
            codes = {key: used[key] for key in CODES}
            shown = {k: v for k, v in score.items() if k not in ("set", "codec", "bits_per_pixel")}
            rows.append({"set": score["set"], "rung": name, **shown, **codes})
    return sorted(rows, key=lambda row: sets.index(row["set"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--source", required=True, help="TFDS folder or folder of clips: trains and scores")
    add("--out", required=True, type=pathlib.Path, help="a work dir of each rung, ladder.json")
    add("--gin_file", default=EXPERIMENT)
    add("--steps", type=int, default=3000, help="of each rung")
    add("--seed", type=int, default=0)
    add("--clips", type=int, default=32, help="clips of each set that are scored")
    add("--perceptual", default="vgg_hed2", help="network of the perceptual rungs")
    add("--adversarial_weight", type=float, default=0.1, help="of the last rung (0.1 in the paper)")
    args, shared = parser.parse_known_args()
    unknown = [argument for argument in shared if not argument.startswith("--gin.")]
    if unknown:
        parser.error(f"unknown: {' '.join(unknown)}; others must be --gin.NAME.field=value")
    args.out.mkdir(parents=True, exist_ok=True)
    rows = climb(args, shared)
    (args.out / "ladder.json").write_text(json.dumps(rows, indent=2) + "\n")
    print(format_table(rows, f"{args.gin_file}, {args.steps} steps a rung, seed {args.seed}"))


if __name__ == "__main__":
    main()
