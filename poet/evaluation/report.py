"""`report.html` of a run: one file that shows what was done and what came out.

Everything is read from files that the commands wrote.  A part whose file is absent is said to be
missing, with the command that writes it; nothing is computed or made up here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from poet.evaluation import artifacts, page, sections
from poet.media import replacing
from poet.specs import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """Where a report's parts lie; a path that is None or does not exist is a missing part.

    Attributes:
      title: heading of the page.
      stages: `stages.json` (a list of {name, seconds, status, note}) or a folder with one JSON object
        per file.
      metrics: `metrics.jsonl` of the language model.
      tokenizer_metrics: `metrics.jsonl` of a tokenizer training.
      store: token store with its `manifest.json`.
      spec: `spec.json`.
      evaluation: folder that `poet eval` wrote.
      generated: folder that `poet generate` wrote.
      export_check: JSON object saying how the exported artefacts compare.
      longer_evaluation, longer_generated, longer_metrics: of a checkpoint of the same experiment that
        was trained for longer.
    """

    title: str = "poet: a quickstart run"
    stages: Path | None = None
    metrics: Path | None = None
    tokenizer_metrics: Path | None = None
    store: Path | None = None
    spec: Path | None = None
    evaluation: Path | None = None
    generated: Path | None = None
    export_check: Path | None = None
    longer_evaluation: Path | None = None
    longer_generated: Path | None = None
    longer_metrics: Path | None = None

    @classmethod
    def from_workdir(cls, workdir: Path) -> ReportInputs:
        """The places where `launch/quickstart.sh` lets each command write."""
        stages = workdir / "stages.json"
        return cls(
            stages=stages if stages.exists() else workdir / "stages",
            metrics=workdir / "lm" / "metrics.jsonl",
            tokenizer_metrics=workdir / "tokenizer" / "metrics.jsonl",
            store=workdir / "store",
            spec=workdir / "lm" / "spec.json",
            evaluation=workdir / "eval",
            generated=workdir / "generated",
            export_check=workdir / "export_check.json",
            longer_evaluation=workdir / "eval_trained",
            longer_generated=workdir / "generated_trained",
            longer_metrics=workdir / "trained_metrics.jsonl",
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
    evaluation = artifacts.read_evaluation(inputs.evaluation)
    longer = artifacts.read_evaluation(inputs.longer_evaluation)
    manifest = artifacts.read_manifest(inputs.store)
    stages = artifacts.read_stages(inputs.stages)
    lead = page.paragraph(
        "Raw clips were turned into codes by a frozen tokenizer, a language model was trained on the "
        "codes, and clips were generated from it. Every number and picture below was read from what "
        "the run wrote.",
        "soft",
    )
    parts = [
        ("Stages", sections.stages(stages)),
        ("Data", sections.data(manifest, evaluation)),
        ("Training", sections.training(inputs.metrics, evaluation, manifest)),
        ("Evaluation", sections.evaluations({"this run": evaluation})),
        ("Reconstructions", sections.reconstructions(evaluation)),
        ("Frame prediction", sections.predictions(evaluation)),
        ("Generated clips", sections.generated(inputs.generated, "this run")),
        (
            "Trained for longer",
            sections.longer(evaluation, longer, inputs.longer_generated, inputs.longer_metrics),
        ),
        ("Tokenizer training", sections.tokenizer_training(inputs.tokenizer_metrics)),
        ("Export", sections.export(inputs.export_check)),
        ("Spec", sections.spec(inputs.spec)),
    ]
    figures = page.tiles(sections.figures(stages, manifest, evaluation))
    return page.document(inputs.title, lead + figures, parts)
