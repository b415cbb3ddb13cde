"""`report.html` of a run: one file that shows what was done and what came out.

Everything is read from files that the commands wrote.  A part whose file is absent is said to be
missing, with the command that writes it; nothing is computed or made up here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from poet.evaluation.report import artifacts, headlines, page, sections
from poet.media import replacing
from poet.spec import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """Where a report's parts lie; a path that is None or does not exist is a missing part.

    Attributes:
      title: heading of the page.
      stages: `stages.json` (a list of {name, seconds, status, note}) or a folder with one JSON object
        per file.
      shipped: folder that `poet eval --metric=examples` wrote for the weights that ship.
      shipped_scores: their `scores.json`.
      metrics: `metrics.jsonl` of the language model.
      tokenizer_metrics: `metrics.jsonl` of a tokenizer training, its pictures in `samples` beside it.
      store: token store with its `manifest.json`.
      spec: `spec.json`.
      evaluation: folder that `poet eval` wrote for the model that was trained.
      export_check: JSON object saying how the exported artefacts compare, a GIF of that name beside it.
    """

    title: str = "poet: a quickstart run"
    stages: Path | None = None
    shipped: Path | None = None
    shipped_scores: Path | None = None
    metrics: Path | None = None
    tokenizer_metrics: Path | None = None
    store: Path | None = None
    spec: Path | None = None
    evaluation: Path | None = None
    export_check: Path | None = None

    @classmethod
    def from_workdir(cls, workdir: Path) -> ReportInputs:
        """The places where `launch/quickstart.sh` lets each command write."""
        stages = workdir / "stages.json"
        return cls(
            stages=stages if stages.exists() else workdir / "stages",
            shipped=workdir / "first",
            shipped_scores=workdir / "shipped_scores.json",
            metrics=workdir / "lm" / "metrics.jsonl",
            tokenizer_metrics=workdir / "tokenizer" / "metrics.jsonl",
            store=workdir / "store",
            spec=workdir / "lm" / "spec.json",
            evaluation=workdir / "eval",
            export_check=workdir / "export_check.json",
        )


def check_workdir(workdir: Path) -> None:
    """Raises UserError for a folder that has no part of a quickstart run: it is somebody else's."""
    parts = vars(ReportInputs.from_workdir(workdir)).values()
    if workdir.is_dir() and not any(isinstance(part, Path) and part.exists() for part in parts):
        raise UserError(f"{workdir} holds nothing of a quickstart run: give its work dir")


def write_report(
    workdir: Path, out: str = "report.html", inputs: ReportInputs | None = None
) -> Path:
    """Writes WORKDIR/`out` and returns its path.

    Raises:
      UserError: no such folder, or a part that is there but damaged.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise UserError(f"{workdir} is not a folder: give the work dir of a quickstart run")
    html = render(inputs or ReportInputs.from_workdir(workdir))
    with replacing(workdir / out) as file:
        file.write_text(html, encoding="utf-8")
    return workdir / out


def render(inputs: ReportInputs) -> str:
    """The page as text."""
    shipped = artifacts.read_evaluation(inputs.shipped)
    evaluation = artifacts.read_evaluation(inputs.evaluation)
    manifest = artifacts.read_manifest(inputs.store)
    lead = page.paragraph(
        "A frozen tokenizer turns clips into codes, a language model draws codes, and the tokenizer turns "
        "them into clips again. Every number and picture below was read from what the run wrote.",
        "soft",
    )
    parts = [
        ("Clips", headlines.clips(shipped, evaluation)),
        ("Conditions", sections.conditions(evaluation)
            + headlines.shipped_conditions(artifacts.read_json(inputs.shipped_scores))),
        ("Evaluation", sections.evaluations({"this run": evaluation})),
        ("Frame prediction", sections.predictions(evaluation)),
        ("Training", sections.training(inputs.metrics, evaluation, manifest)),
        ("Tokenizer training", headlines.tokenizer_training(inputs.tokenizer_metrics)),
        ("Reconstructions", sections.reconstructions(evaluation)),
        ("Data", sections.data(manifest, evaluation)),
        ("Export", sections.export(inputs.export_check)),
        ("Stages", sections.stages(artifacts.read_stages(inputs.stages))),
        ("Spec", sections.spec(inputs.spec)),
    ]
    return page.document(inputs.title, lead + page.tiles(figures(inputs)), parts)


def figures(inputs: ReportInputs) -> list[headlines.Figure]:
    """The numbers of the page's head, (number, what it means), as far as they exist."""
    return headlines.figures(
        artifacts.read_stages(inputs.stages),
        inputs.tokenizer_metrics,
        artifacts.read_evaluation(inputs.evaluation),
    )
