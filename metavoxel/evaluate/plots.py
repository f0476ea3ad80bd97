"""The report's pictures as PNG. Blue is the model, orange the limit or the law, grey what is true."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binom

from metavoxel.evaluate.calibration import BINS, LEAST_EXPECTED, Reliability
from metavoxel.evaluate.figures import EXACT, OURS
from metavoxel.pictures import EXACT as LIMIT
from metavoxel.pictures import MEN, MODEL, TRUTH, WOMEN, axes_of, canvas, png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (MODEL, WOMEN, MEN, LIMIT, "#7a5c2e", "#4f8a3c")


def ranks(title: str, places: Mapping[str, np.ndarray]) -> bytes:
    """A panel for each set of given facts: (people,) where the truth stands among its draws, 0 to 1."""
    figure, panels = _panels(title, list(places), "rank of the truth", "people")
    for own, ax in zip(places.values(), panels):
        bins = max(2, min(BINS, len(own) // LEAST_EXPECTED))
        low, high = binom.ppf([0.025, 0.975], len(own), 1 / bins)
        ax.axhspan(low, high, color="0.9", lw=0)
        ax.stairs(np.histogram(own, bins, (0, 1))[0], np.linspace(0, 1, bins + 1), fill=True, color=MODEL, alpha=0.7)
        ax.set(xlim=(0, 1), ylim=(0, None), xticks=(0, 0.5, 1))
        ax.locator_params("y", integer=True)
    return png_of(figure)


def reliability(title: str, levels: Mapping[str, Sequence[tuple[str, Reliability]]]) -> bytes:
    """A panel for each set of given facts; of each level the probability told against the share of people, and the dots'
    area is the share of people."""
    figure, panels = _panels(title, list(levels), "probability told", "share of people")
    for own, ax in zip(levels.values(), panels):
        ax.plot((0, 1), (0, 1), color=TRUTH, lw=1)
        for (level, (told, found, share)), colour in zip(own, COLOURS):
            ax.plot(told, found, color=colour, lw=1)
            ax.scatter(told, found, s=20 + 400 * share, color=colour, alpha=0.7, lw=0, label=level)
        ax.legend(frameon=False, fontsize=11.5, loc="upper left")
        ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    return png_of(figure)


def curves(title: str, x: str, y: str, points: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> bytes:
    """Scatters (n,) against (n,) with their straight lines; the first is grey, what is real."""
    figure = canvas(5.0, 3.8)
    ax = axes_of(figure, title, x, y)
    for (label, (at, value)), colour in zip(points.items(), (TRUTH, MODEL, *COLOURS[1:])):
        ax.scatter(at, value, s=14, color=colour, alpha=0.5, lw=0, label=label)
        if len(at) > 2 and np.ptp(at) > 0:
            ends = np.array([at.min(), at.max()])
            ax.plot(ends, np.polyval(np.polyfit(at, value, 1), ends), color=colour, lw=2)
    ax.legend(frameon=False, fontsize=11.5, loc="upper left")
    return png_of(figure)


def groups(title: str, x: str, bars: Sequence[tuple[str, float, float, float]], middle: float) -> bytes:
    """Horizontal dots with intervals, a group each: name, value, low, high; a line at everybody's value."""
    figure = canvas(7.0, 0.42 * len(bars) + 1.1)
    ax = axes_of(figure, title, x, "")
    ax.axvline(middle, color=TRUTH, lw=1.2)
    for row, (_, value, low, high) in enumerate(bars):
        ax.plot((low, high), (row, row), color=MODEL, alpha=0.45, lw=3)
        ax.plot(value, row, "o", color=MODEL, ms=7)
    ax.set(yticks=range(len(bars)), yticklabels=[name for name, *_ in bars], ylim=(len(bars) - 0.5, -0.5))
    return png_of(figure)


def answers(title: str, x: str, blocks: Mapping[str, Sequence[tuple[str, float, float, float]]], middle: float) -> bytes:
    """Horizontal dots with intervals, a block of them under each heading: who answers, value, low, high; a line at the
    constant's value, `middle`. Baselines are grey."""
    rows = [row for heading, own in blocks.items() for row in ((heading, None), *((who, ends) for who, *ends in own))]
    figure = canvas(8.0, 0.3 * len(rows) + 1.1)
    ax = axes_of(figure, title, x, "")
    ax.axvline(middle, color=TRUTH, lw=1.2)
    for row, (words, ends) in enumerate(rows):
        if ends is None:
            ax.text(0.01, row, words, transform=ax.get_yaxis_transform(), va="center", fontsize=12, fontweight="bold")
            continue
        value, *interval = ends
        colour = {OURS: MODEL, EXACT: LIMIT}.get(words, TRUTH)
        ax.plot(interval, (row, row), color=colour, alpha=0.45, lw=3)
        ax.plot(value, row, "o", color=colour, ms=6)
    ax.set(yticks=range(len(rows)), yticklabels=["" if ends is None else words for words, ends in rows],
           ylim=(len(rows) - 0.5, -0.7))  # fmt: skip
    return png_of(figure)


def _panels(title: str, names: Sequence[str], x: str, y: str) -> tuple["Figure", list["Axes"]]:
    """A figure with axes for each name, two in a row."""
    rows = -(-len(names) // 2)
    figure = canvas(6.6, 2.7 * rows + 0.4)
    figure.suptitle(title, fontsize=14, fontweight="bold", x=0.01, ha="left")
    parts = figure.subfigures(rows, min(len(names), 2), squeeze=False).flat
    return figure, [axes_of(part, name, x, y) for part, name in zip(parts, names)]
