"""A page of headings, sentences, tables and pictures, as Markdown and as one HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.92em; }
th, td { border: 1px solid #ccc; padding: 0.25rem 0.6rem; text-align: left; }
th { background: #f2f2f2; }
img { max-width: 100%; }
.pass { color: #1b7837; font-weight: 600; } .fail { color: #b2182b; font-weight: 600; }
.undecided, .not-measured { color: #8a5a00; font-weight: 600; }
.verdict { padding: 0.8rem 1rem; border-left: 5px solid #8a5a00; background: #f7f7f7; }
"""

MARKED = ("pass", "fail", "undecided", "not measured")
"""Cells with these texts are coloured in HTML."""


@dataclass(frozen=True)
class Table:
    """Rows of texts under a header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A PNG file and what it shows."""

    path: Path
    caption: str


@dataclass
class Section:
    """A heading and what stands under it, in order: sentences, tables, pictures."""

    title: str
    content: list[str | Table | Picture] = field(default_factory=list)


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """Pictures are linked by their names: the page lies beside them."""
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for item in section.content:
            if isinstance(item, Table):
                lines += [_line(item.header), _line(["---"] * len(item.header))]
                lines += [_line([cell.replace("|", "\\|") for cell in row]) for row in item.rows]
            elif isinstance(item, Picture):
                lines.append(f"![{item.caption}]({item.path.name})")
            else:
                lines.append(item)
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def to_html(title: str, sections: Sequence[Section]) -> str:
    """One file that holds its pictures."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for number, section in enumerate(sections):
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        for item in section.content:
            if isinstance(item, Table):
                parts.append(_html_table(item))
            elif isinstance(item, Picture):
                data = base64.b64encode(item.path.read_bytes()).decode()
                caption = html.escape(item.caption)
                parts.append(f'<p><img alt="{caption}" src="data:image/png;base64,{data}"></p>')
            else:
                kind = ' class="verdict"' if number == 0 else ""
                parts.append(f"<p{kind}>{html.escape(item)}</p>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
    rows = []
    for row in table.rows:
        cells = []
        for cell in row:
            mark = f' class="{cell.replace(" ", "-")}"' if cell in MARKED else ""
            cells.append(f"<td{mark}>{html.escape(cell)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"
