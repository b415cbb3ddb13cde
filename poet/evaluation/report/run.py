"""`report.html` of a run: one file that shows what was done and what came out.

Everything is read from files that the commands wrote.  A part whose file is absent is said to be
missing, with the command that writes it; nothing is computed or made up here.
"""

from __future__ import annotations

from pathlib import Path

from poet.evaluation.report import artifacts, headlines, page, sections
from poet.media import replacing
from poet.runs.run import Run
from poet.spec import UserError

TITLE = "poet: a quickstart run"
LEAD = (
    "A frozen tokenizer encodes clips, a language model samples codes, and the tokenizer decodes them. "
    "Every number and picture below comes from the files of the run."
)
# Where `launch/quickstart.sh` lets each command write.
PARTS = {
    "stages": "stages.json",  # Or a folder `stages`, with one JSON object per file.
    "shipped": "first",  # By `poet eval --metric=examples` for the shipped weights,
    "shipped_scores": "shipped_scores.json",  # and their `scores.json`.
    "store": "store",
    "evaluation": "eval",
    "export_check": "export_check.json",  # A GIF of that name beside it.
}


def places(workdir: Path) -> dict[str, Path]:
    """The paths of the parts; missing parts have no file."""
    lm, tokenizer = Run(workdir / "lm"), Run(workdir / "tokenizer")
    found = {name: workdir / place for name, place in PARTS.items()}
    found |= {"metrics": lm.metrics, "spec": lm.spec_file, "tokenizer_metrics": tokenizer.metrics}
    return found if found["stages"].exists() else found | {"stages": workdir / "stages"}


def check_workdir(workdir: Path) -> None:
    """Raises UserError for a folder that has no part of a quickstart run: it is somebody else's."""
    if workdir.is_dir() and not any(place.exists() for place in places(workdir).values()):
        raise UserError(f"{workdir} has no files of a quickstart run: give its work dir")


def write_report(workdir: Path) -> Path:
    """Writes WORKDIR/report.html and returns its path.

    Raises:
      UserError: no such folder, or a part that is there but damaged.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise UserError(f"{workdir} is not a folder: give the work dir of a quickstart run")
    html = render(workdir)
    with replacing(workdir / "report.html") as file:
        file.write_text(html, encoding="utf-8")
    return workdir / "report.html"


def render(workdir: Path) -> str:
    """The page as text."""
    place = places(workdir)
    shipped, evaluation = (artifacts.read_evaluation(place[name]) for name in ("shipped", "evaluation"))
    manifest = artifacts.read_json(place["store"] / "manifest.json")
    conditions = sections.conditions(evaluation) or page.missing(
        "No condition gain: `poet eval` measures it where EVAL.gain_clips is above 0."
    )
    # Heading, content, and the text if there is none.
    parts = [
        (
            "Clips",
            sections.clips(shipped, evaluation),
            "No clips: `poet eval --metric=examples` with EVAL.examples = True samples them.",
        ),
        ("Conditions", conditions + sections.shipped_conditions(artifacts.read_json(place["shipped_scores"])), ""),
        ("Evaluation", sections.evaluations(evaluation), "No evaluation: `poet eval` writes eval.json."),
        (
            "Frame prediction",
            sections.predictions(evaluation),
            "No frame prediction: `poet eval` with EVAL.source writes it.",
        ),
        (
            "Training",
            sections.training(place["metrics"], evaluation, manifest),
            "No training curves: `poet train` writes metrics.jsonl.",
        ),
        (
            "Tokenizer training",
            sections.tokenizer_training(place["tokenizer_metrics"]),
            "No tokenizer was trained here: `poet tokenizer-train` does it.",
        ),
        (
            "Reconstructions",
            sections.reconstructions(evaluation),
            "No reconstructions: `poet eval` with EVAL.source writes them.",
        ),
        ("Data", sections.data(manifest, evaluation), "No token store: `poet tokenize` writes it."),
        ("Export", sections.export(place["export_check"]), "No export check: `poet export --check FILE` writes it."),
        (
            "Stages",
            sections.stages(artifacts.read_stages(place["stages"])),
            "No record of stages: launch/quickstart.sh writes it.",
        ),
        ("Spec", sections.spec(place["spec"]), "No spec.json: `poet train` writes it."),
    ]
    shown = [(heading, content or page.missing(absent)) for heading, content, absent in parts]
    return page.document(TITLE, page.soft(LEAD) + page.tiles(figures(workdir)), shown)


def figures(workdir: Path) -> list[headlines.Figure]:
    """The numbers of the page's head, (number, what it means), as far as they exist."""
    place = places(workdir)
    return headlines.figures(
        artifacts.read_stages(place["stages"]),
        place["tokenizer_metrics"],
        artifacts.read_evaluation(place["evaluation"]),
    )
