"""HTML of a report: small builders, and the style sheet `page.css`.  All text that enters a page is escaped here."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from poet.evaluation.report import tables

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8").strip()

# A page that asks for nothing: no script, no address of any kind but data inside it.
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"

MIME = {".gif": "image/gif", ".png": "image/png", ".mp4": "video/mp4", ".wav": "audio/wav"}


def document(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """A whole page; `sections` are (heading, HTML), listed at its top."""
    anchors = [heading.lower().replace(" ", "-") for heading, _ in sections]
    links = "".join(f'<a href="#{text(a)}">{text(h)}</a>' for a, (h, _) in zip(anchors, sections))
    body = "".join(
        f'<section id="{text(a)}"><h2>{text(h)}</h2>{content}</section>\n' for a, (h, content) in zip(anchors, sections)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body><main>"
        f"<h1>{text(title)}</h1>{lead}<nav>{links}</nav>\n{body}</main></body></html>\n"
    )


def text(value: object) -> str:
    """Escaped for content and for quoted attributes."""
    return html.escape(str(value), quote=True)


def paragraph(words: str, kind: str = "") -> str:
    """`kind` is a class of the style sheet: soft, missing."""
    return f'<p class="{kind}">{text(words)}</p>' if kind else f"<p>{text(words)}</p>"


def soft(words: str) -> str:
    """An explanation, in a softer colour."""
    return paragraph(words, "soft")


def missing(what: str) -> str:
    """A note in place of an absent part, with the reason."""
    return paragraph(what, "missing")


def bullets(lines: Iterable[str]) -> str:
    return f'<ul class="plain">{"".join(f"<li>{text(line)}</li>" for line in lines)}</ul>'


def tiles(values: Sequence[tuple[str, str]]) -> str:
    """Figures at the head of a page: (number, a sentence that says what it means)."""
    cards = (f'<div class="tile"><b>{text(n)}</b><span>{text(w)}</span></div>' for n, w in values)
    return f'<div class="tiles">{"".join(cards)}</div>'


def table(rows: Sequence[tables.Row], caption: str = "") -> str:
    """The cells of `tables.cells` as a table that scrolls when it is wide."""
    found = tables.cells(rows)
    classes = ['class="number"' if n else "" for n in found.numeric]
    head = "".join(f"<th scope=col {c}>{text(t)}</th>" for c, t in zip(classes, found.titles))
    lines = ("<tr>" + "".join(f"<td {c}>{text(v)}</td>" for c, v in zip(classes, row)) + "</tr>" for row in found.rows)
    name = f"<caption>{text(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{name}<thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def media(path: Path, alt: str) -> str:
    """A GIF, PNG, MP4 or WAV inside the page; a missing file is named.

    What may sound has controls, and is silent until it is asked.
    """
    mime = MIME.get(path.suffix.lower())
    if mime is None or not path.is_file():
        return missing(f"{path.name} is missing")
    data = f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode()}"
    if mime.startswith("video/"):
        shown = "autoplay loop muted playsinline controls"
        return f'<video src="{data}" aria-label="{text(alt)}" {shown}></video>'
    if mime.startswith("audio/"):
        return f'<audio src="{data}" aria-label="{text(alt)}" controls></audio>'
    return f'<img src="{data}" alt="{text(alt)}">'


def card(path: Path, caption: str, alt: str) -> str:
    """One clip over its caption."""
    shown = media(path, alt)
    return f'<figure class="card">{shown}<figcaption>{text(caption)}</figcaption></figure>'


def strip(path: Path, label: str, alt: str) -> str:
    """A wide row of frames that scrolls sideways."""
    return f'<div class="strip"><span>{text(label)}</span>{media(path, alt)}</div>'


def picture(path: Path, caption: str, alt: str) -> str:
    """One picture at its own size over its caption."""
    return f'<figure class="picture">{media(path, alt)}<figcaption>{text(caption)}</figcaption></figure>'


def row(heading: str, content: str) -> str:
    return f'<div class="row">{paragraph(heading)}{content}</div>'


def group(items: Iterable[str]) -> str:
    """Clips that belong together, side by side."""
    return f'<div class="group">{"".join(items)}</div>'


def charts(figures: Iterable[str]) -> str:
    """Charts side by side where there is room."""
    return f'<div class="charts">{"".join(figures)}</div>'


def details(summary: str, body: str) -> str:
    return f"<details><summary>{text(summary)}</summary><pre>{text(body)}</pre></details>"
