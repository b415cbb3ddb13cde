"""HTML of a report: a style sheet and small builders.  All text that enters a page is escaped here."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from poet.evaluation.report import tables

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #d9dee5; --card: #f6f7f9;
  --page: #ffffff; --link: #2057b8; --c0: #2563eb; --c1: #d9480f; --c2: #0f8a5f; --c3: #9333ea;
  --c4: #b08900; --c5: #c2255c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b4; --line: #333c48;
  --card: #1b2129; --page: #12161c; --link: #8ab4ff; --c0: #6ea8fe; --c1: #ff9f66; --c2: #4fd1a1;
  --c3: #c79bff; --c4: #e6c55a; --c5: #ff85b0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.25rem; margin: 44px 0 8px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 22px 0 6px; }
p { margin: 6px 0 12px; max-width: 75ch; overflow-wrap: anywhere; }
.soft, figcaption, .missing { color: var(--soft); }
.missing { border-left: 3px solid var(--line); padding-left: 10px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 12px 0; font-size: .92rem; }
a { color: var(--link); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 12px;
  margin: 16px 0; padding: 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 14px; }
.tile b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .88rem; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .92rem; margin: 4px 0 12px;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 6px 0; }
th, td { padding: 5px 16px 5px 0; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 500; white-space: nowrap; }
td:not(:last-child) { white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
figure { margin: 0; }
figcaption { font-size: .88rem; padding-top: 4px; overflow-wrap: anywhere; }
.card audio { width: 100%; max-width: 256px; }
.card img, .card video { width: 100%; max-width: 256px; border-radius: 8px; display: block;
  image-rendering: auto; background: var(--card); }
.picture img { max-width: 100%; height: auto; display: block; border-radius: 4px; }
.row { margin: 0 0 18px; }
.row p { margin: 0 0 4px; font-size: .92rem; }
.strip { overflow-x: auto; margin: 0 0 2px; }
.strip img { height: 72px; width: auto; max-width: none; display: block; border-radius: 4px; }
.strip span { position: sticky; left: 0; font-size: .8rem; color: var(--soft); }
.group { display: grid; grid-template-columns: repeat(auto-fill, minmax(110px, 192px)); gap: 10px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr));
  gap: 20px; }
.chart svg { width: 100%; height: auto; display: block; }
.chart { max-width: 640px; }
.chart text { fill: var(--soft); font-size: 14px; }
.grid { stroke: var(--line); fill: none; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.level { stroke: var(--soft); stroke-dasharray: 6 5; stroke-width: 1.4; fill: none; }
.series-0 { --c: var(--c0); } .series-1 { --c: var(--c1); } .series-2 { --c: var(--c2); }
.series-3 { --c: var(--c3); } .series-4 { --c: var(--c4); } .series-5 { --c: var(--c5); }
.line { stroke: var(--c); } circle, .bar { fill: var(--c); }
.whisker { stroke: var(--soft); stroke-width: 1.6; fill: none; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 16px; padding: 0; margin: 4px 0; }
.key { display: inline-block; width: 18px; border-top: 3px solid var(--c); margin-right: 6px;
  vertical-align: middle; }
.key.level { border-top: 2px dashed var(--soft); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px;
  overflow-x: auto; font-size: .82rem; line-height: 1.4; max-height: 480px; }
summary { cursor: pointer; }
ul.plain { padding-left: 1.1em; margin: 4px 0 12px; }
""".strip()

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
