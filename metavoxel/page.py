"""A small builder of self-contained HTML pages: sections, each with a conclusion, pictures and a table."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from metavoxel.files import atomic_write

STYLE = """
:root { --ink: #1c2430; --quiet: #5c6673; --line: #e2e6eb; --accent: #1f5fa8; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 17px/1.6 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 1080px; margin: 0 auto; padding: 48px 24px 72px; }
h1 { font-size: 36px; line-height: 1.2; letter-spacing: -.02em; margin: 0 0 12px; }
h2 { font-size: 24px; line-height: 1.3; letter-spacing: -.01em; margin: 0 0 8px; }
p { margin: 0 0 14px; max-width: 74ch; }
.lead { font-size: 19px; color: var(--quiet); }
section { border-top: 1px solid var(--line); margin-top: 40px; padding-top: 32px; }
.conclusion { font-size: 18px; }
.note, figcaption { color: var(--quiet); font-size: 14.5px; line-height: 1.5; }
.pictures { display: grid; gap: 20px 24px; margin: 20px 0 12px; align-items: start; }
.one { grid-template-columns: minmax(0, 1fr); }
.two { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.one figure { max-width: 760px; }
.four { grid-template-columns: repeat(4, minmax(0, 1fr)); }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; }
figcaption { margin-top: 6px; }
.scroll { overflow-x: auto; margin: 20px 0 12px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; min-width: 60%; }
th, td { padding: 8px 12px 8px 0; text-align: right; white-space: nowrap; vertical-align: baseline; font-size: 15px;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; white-space: normal; }
th:last-child, td:last-child { white-space: normal; }
thead th { color: var(--quiet); font-weight: 600; font-size: 14.5px; border-bottom: 2px solid var(--line); }
footer { border-top: 1px solid var(--line); margin-top: 48px; padding-top: 20px; }
@media (max-width: 720px) {
  body { font-size: 16px; } main { padding: 28px 16px 48px; } h1 { font-size: 28px; } h2 { font-size: 21px; }
  .two { grid-template-columns: minmax(0, 1fr); } .four { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  th, td { padding-right: 14px; font-size: 15px; } table { min-width: 100%; }
}
@media print { section { break-inside: avoid; } }
"""
_COLUMNS = {1: "one", 2: "two", 4: "four"}


@dataclass(frozen=True)
class Picture:
    png: bytes
    alt: str
    """What it shows, for those who cannot see it."""
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """Cells as they are to be read; the first column names the row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """conclusion: one plain sentence that says what to take away. columns: pictures side by side (1, 2 or 4)."""

    title: str
    conclusion: str
    pictures: Sequence[Picture] = ()
    table: Table | None = None
    note: str = ""
    columns: int = 2


@dataclass(frozen=True)
class Report:
    """A page; all its text is plain and is escaped here."""

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]
    footer: Sequence[str] = field(default_factory=tuple)

    def html(self) -> str:
        body = [f"<h1>{escape(self.title)}</h1>", *(_paragraph(text, "lead") for text in self.lead)]
        body += [_section(section) for section in self.sections]
        if self.footer:
            body.append(f"<footer>{''.join(_paragraph(text, 'note') for text in self.footer)}</footer>")
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style></head>\n"
            "<body><main>\n" + "\n".join(body) + "\n</main></body></html>\n"
        )

    def save(self, path: Path) -> None:
        """Written whole or not at all. Raises MetavoxelError when it cannot be."""
        with atomic_write(path) as file:
            file.write(self.html())


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>", _paragraph(section.conclusion, "conclusion")]
    if section.table:
        parts.append(_table(section.table))
    if section.pictures:
        figures = "".join(_figure(picture) for picture in section.pictures)
        parts.append(f'<div class="pictures {_COLUMNS[section.columns]}">{figures}</div>')
    if section.note:
        parts.append(_paragraph(section.note, "note"))
    return "<section>" + "\n".join(parts) + "</section>"


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    return f'<figure><img alt="{escape(picture.alt)}" src="data:image/png;base64,{data}">{caption}</figure>\n'


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _paragraph(text: str, kind: str) -> str:
    return f'<p class="{kind}">{escape(text)}</p>'
