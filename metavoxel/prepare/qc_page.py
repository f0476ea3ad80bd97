"""One page with a picture of every scan, flagged ones first: opens anywhere, holds everything it shows."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from metavoxel.files import atomic_write

MOST_PICTURES = 2000  # the page stays under about 100 MB; the first ones are the flagged ones
SHOWN = {
    "brain_volume_ml": ("brain", "ml", 0),
    "template_overlap": ("template overlap", "", 2),
    "registration_score": ("registration", "", 2),
    "signal_to_noise": ("signal to noise", "", 0),
    "cut_cm2": ("cut", "cm²", 1),
    "outlier_score": ("outlier", "", 1),
}
"""Column -> its words, unit and decimals."""

STYLE = """
:root { --ink: #1c2430; --quiet: #5c6673; --line: #e2e6eb; --flag: #b4400f; --flagged: #fff6f1; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
header { padding: 32px 24px 16px; max-width: 1400px; margin: 0 auto; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -.02em; }
p { margin: 0 0 8px; max-width: 90ch; color: var(--quiet); }
.bar { display: flex; flex-wrap: wrap; gap: 8px 20px; align-items: center; margin-top: 16px; }
select, input { font: inherit; padding: 4px 8px; border: 1px solid var(--line); border-radius: 6px; background: #fff; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(400px, 1fr)); gap: 16px; padding: 8px 24px 64px;
  max-width: 1400px; margin: 0 auto; }
article { border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
article.flagged { border-color: var(--flag); background: var(--flagged); }
article[hidden] { display: none; }
img { display: block; width: 100%; height: auto; background: #000; }
.text { padding: 10px 14px 12px; }
h2 { font-size: 15px; margin: 0; overflow-wrap: anywhere; }
ul { margin: 4px 0 0; padding-left: 18px; color: var(--flag); }
dl { display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 6px 0 0; font-size: 13px; font-variant-numeric: tabular-nums; }
dl div { display: flex; gap: 5px; } dt { color: var(--quiet); } dd { margin: 0; }
.brain { color: #c26a00; } .template { color: #2c6fd1; }
@media (max-width: 480px) { main { grid-template-columns: minmax(0, 1fr); } }
"""
SCRIPT = """
const page = document.querySelector('main'), cards = [...page.children];
const by = document.querySelector('#by'), find = document.querySelector('#find'), only = document.querySelector('#only');
function show() {
  const [key, way] = by.value.split(' ');
  const value = card => key === 'name' ? card.dataset.name : Number(card.dataset[key]);
  const compare = (a, b) => (a > b) - (a < b);
  cards.sort((a, b) => (way === 'down' ? -1 : 1) * compare(value(a), value(b)) || compare(a.dataset.name, b.dataset.name));
  for (const card of cards) {
    card.hidden = !card.dataset.name.includes(find.value) || (only.checked && card.dataset.flagged === '0');
    page.append(card);
  }
}
for (const control of [by, find, only]) control.addEventListener('input', show);
"""


def write_page(path: Path, table: pd.DataFrame, pictures: Mapping[str, Path]) -> None:
    """table: qc.tsv's rows, flagged first. pictures: a row's `file` -> its JPEG."""
    flagged = int((table["flagged"] == "yes").sum())
    choices = [("flagged down", "flagged first"), ("name up", "name")]
    for name, (words, _, _) in SHOWN.items():
        key = name.replace("_", "")
        choices += [(f"{key} up", f"{words}, lowest first"), (f"{key} down", f"{words}, highest first")]
    options = "".join(f'<option value="{value}">{escape(words)}</option>' for value, words in choices)
    left = "" if len(table) <= MOST_PICTURES else f" Pictures are shown of the first {MOST_PICTURES} only."
    with atomic_write(path) as file:
        file.write(
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>Quality of {len(table)} prepared scans</title>\n<style>{STYLE}</style></head>\n<body><header>"
            f"<h1>{len(table)} prepared scans, {flagged} to look at</h1>\n"
            '<p>Each scan as aligned with the template, before stripping: <b class="brain">orange</b> outlines its own '
            'brain, <b class="template">blue</b> the template. Sizes differ between people; the outlines should share '
            "their shape and place, and orange should follow the brain.</p>\n"
            f"<p>Nothing is left out by a flag. Leave scans out of training with metavoxel train --exclude.{left}</p>\n"
            f'<div class="bar"><label>Sort by <select id="by">{options}</select></label>'
            '<label>Find <input id="find" type="search" placeholder="sub-01"></label>'
            '<label><input id="only" type="checkbox"> flagged only</label></div></header>\n<main>\n'
        )
        for position, row in enumerate(table.to_dict("records")):
            file.write(_card(row, pictures[row["file"]] if position < MOST_PICTURES else None))
        file.write(f"</main>\n<script>{SCRIPT}</script></body></html>\n")


def _card(row: Mapping[Any, Any], picture: Path | None) -> str:
    name = " ".join(str(row[key]) for key in ("participant_id", "session_id", "scan") if row[key] != "n/a")
    flagged = row["flagged"] == "yes"
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in str(row["reasons"]).split("; ")) if flagged else ""
    data = "".join(f' data-{key.replace("_", "")}="{row[key]}"' for key in SHOWN)
    facts = "".join(
        f"<div><dt>{escape(words)}</dt><dd>{row[key]:.{decimals}f} {unit}</dd></div>"
        for key, (words, unit, decimals) in SHOWN.items()
    )
    image = ""
    if picture is not None:
        content = base64.b64encode(picture.read_bytes()).decode("ascii")
        alt = f"{name}: sagittal, coronal and axial slices with outlines"
        image = f'<img loading="lazy" alt="{escape(alt)}" src="data:image/jpeg;base64,{content}">'
    data += f' data-name="{escape(name)}" data-flagged="{int(flagged)}"'
    return (
        f'<article class="{"flagged" if flagged else "fine"}"{data}>'
        f'{image}<div class="text"><h2>{escape(name)}</h2>{f"<ul>{reasons}</ul>" if reasons else ""}<dl>{facts}</dl>'
        "</div></article>\n"
    )
