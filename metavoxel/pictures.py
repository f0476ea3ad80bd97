"""Pictures as PNG: mosaics of scans for `metavoxel sample`, and the figures of the demo's report.

Figures are made without pyplot, so that nothing global changes in a caller's matplotlib. Blue is the model, orange the
exact posterior, grey what is true or a baseline.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from metavoxel.data.conform import to_ras
from metavoxel.data.volume import Volume
from metavoxel.errors import MetavoxelError
from metavoxel.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from metavoxel.counterfactual import Counterfactuals
    from metavoxel.inpaint import Inpainting

MODEL, EXACT, TRUTH = "#1f5fa8", "#d9741a", "#8a939e"
WOMEN, MEN = "#8e4a9e", "#1d8a7a"
CAPTION = 42
"""Letters in a line over a tile."""
MOSAIC = 12
"""Draws that a mosaic shows at most."""
GAP_MM = 6.0
AGE_BIN = 3
"""Years, in histograms of one person's age."""


def save_mosaic(path: Path, images: np.ndarray, facts: pd.DataFrame, spacing: Sequence[float]) -> None:
    """Writes a PNG of the first MOSAIC draws, each with its facts.

    images: (n, *shape) in 2-D or 3-D, axes right, anterior, superior. facts: n rows, `draw` and any scalars.
    spacing: mm. 3-D draws are shown as sagittal, coronal and axial slices through the middle, in neurological
    convention: the picture's left is the person's left.
    """
    if images.ndim not in (3, 4) or len(images) == 0 or len(images) != len(facts):
        raise MetavoxelError(
            f"{path}: a mosaic takes (n, *shape) images in 2-D or 3-D and n rows of facts; got images "
            f"{images.shape} and {len(facts)} rows"
        )
    shown = min(len(images), MOSAIC)
    captions = [_caption(record) for record in facts.iloc[:shown].to_dict("records")]
    notes = [f"{shown} of {len(images)} draws"] if shown < len(images) else []
    if images.ndim == 4:
        notes.append("left of the picture = left of the person (neurological convention)")
    notes.append(" x ".join(f"{mm:g}" for mm in spacing[: images.ndim - 1]) + " mm")
    png = mosaic(images[:shown], captions, spacing, note="; ".join(notes))
    _save(png, path)


def save_completions(path: Path, filled: "Inpainting") -> None:
    """Writes a PNG: the scan, its hole, the first completions and their spread, cut through the middle of the hole."""
    hole = filled.hole
    shown = min(len(filled), MOSAIC)
    made = [filled.completion(draw).array for draw in range(shown)]
    images = [filled.scan.array, np.where(hole, 0, filled.scan.array), *made]
    facts = filled.draws.frame().iloc[:shown].to_dict("records")
    captions = ["the scan", "what is known", *(_caption(record) for record in facts)]
    if len(filled) > 1:
        spread = filled.std().array
        times = np.percentile(filled.scan.array, 99.5) / max(float(spread.max()), 1e-6)
        images.append(spread * times)
        captions.append(f"standard deviation of the completions, x {times:.2g}")
    turned = [to_ras(image, filled.scan.affine)[0] for image in (*images, hole)]
    centre = [round(float(c)) for c in np.argwhere(turned[-1]).mean(0)]
    png = mosaic(np.stack(turned[:-1]), captions, _ras_spacing(filled.scan), at=centre)
    _save(png, path)


def save_series(path: Path, made: "Counterfactuals") -> None:
    """Writes a PNG: the scan as it is, then under each change (at most MOSAIC), cut through the middle."""
    shown = min(len(made), MOSAIC)
    volumes = [made.scan, *(made.volume(number) for number in range(shown))]
    captions = ["as it is: " + _caption(made.own), *(_caption(change) for change in made.changes[:shown])]
    turned = np.stack([to_ras(volume.array, volume.affine)[0] for volume in volumes])
    png = mosaic(turned, captions, _ras_spacing(made.scan), columns=min(len(turned), 4))
    _save(png, path)


def _save(png: bytes, path: Path) -> None:
    with atomic_write(path, "wb") as file:
        file.write(png)


def _ras_spacing(scan: Volume) -> list[float]:
    return np.linalg.norm(to_ras(scan.array, scan.affine)[1][:3, :3], axis=0).tolist()


def mosaic(
    images: np.ndarray, captions: Sequence[str], spacing: Sequence[float], *, note: str = "", planes: str = "sca",
    columns: int | None = None, window: tuple[float, float] | None = None, width: float | None = None,
    size: float = 11, at: Sequence[int] | None = None,
) -> bytes:  # fmt: skip
    """A PNG of images (n, *shape), one tile each.

    planes: which slices of a 3-D image, of s(agittal), c(oronal), a(xial). at: the voxel that they pass through, by
    default the middle. window: intensities that are black and white; default: 0 and the brightest but 0.5 %.
    columns, width (inches): by the number and shape of the tiles.
    size: of the captions, points.
    """
    tiles = [_tile(image, spacing, planes, at) for image in images]
    wide = max(tile[0] for tile in tiles)
    high = max(tile[1] for tile in tiles)
    columns = columns or min(len(tiles), max(1, round(5.0 * high / wide)) if len(tiles) > 3 else len(tiles))
    rows = -(-len(tiles) // columns)
    width = width or min(11.0, 3.6 * columns)
    cell = width / columns
    lines = max((caption.count("\n") + 1 for caption in captions if caption), default=0)
    text, below = 0.02 * size * lines + 0.08 * (lines > 0), 0.3 if note else 0.05
    height = rows * (cell * high / wide + text) + below
    finite = images[np.isfinite(images)]
    low, top = window or (0.0, float(np.percentile(finite, 99.5)) if finite.size else 1.0)
    figure = canvas(width, height, constrained=False)
    figure.set_facecolor("white")
    for number, ((own_wide, own_high, slices), caption) in enumerate(zip(tiles, captions)):
        row, column = divmod(number, columns)
        bottom = 1 - (row + 1) * (height - below) / rows / height
        ax = figure.add_axes((column / columns, bottom, 0.985 / columns, (cell * high / wide) / height))
        ax.set(xlim=(0, own_wide), ylim=(0, own_high), xticks=[], yticks=[], facecolor="black")
        for plane, left, (w, h) in slices:
            ax.imshow(plane.T, cmap="gray", vmin=low, vmax=max(top, low + 1e-6), origin="lower",
                      extent=(left, left + w, 0, h), interpolation="bicubic")  # fmt: skip
        ax.set(xlim=(0, own_wide), ylim=(0, own_high), aspect="equal")
        ax.set_title(caption, fontsize=size, pad=3, linespacing=1.25)
        for spine in ax.spines.values():
            spine.set_visible(False)
    if note:
        figure.text(0.005, 0.06 / height, note, fontsize=9, color="#5c6673", va="bottom")
    return png_of(figure)


_Slice = tuple[np.ndarray, float, tuple[float, float]]


def _tile(
    image: np.ndarray, spacing: Sequence[float], planes: str, at: Sequence[int] | None
) -> tuple[float, float, list[_Slice]]:
    """Width and height of one image's tile in mm, and its slices: pixels, left edge and size in mm."""
    size = [n * float(mm) for n, mm in zip(image.shape, spacing)]
    if image.ndim == 2:
        return size[0], size[1], [(image, 0.0, (size[0], size[1]))]
    x, y, z = at or (n // 2 for n in image.shape)
    cuts = {"s": (image[x], (1, 2)), "c": (image[:, y], (0, 2)), "a": (image[:, :, z], (0, 1))}
    slices, left = [], 0.0
    for letter in planes:
        pixels, (across, up) = cuts[letter]
        slices.append((pixels, left, (size[across], size[up])))
        left += size[across] + GAP_MM
    return left - GAP_MM, max(height for _, _, (_, height) in slices), slices


def in_words(facts: Mapping[Any, object]) -> str:
    """"age 56.31, sex F"."""
    return ", ".join(f"{name} {f'{x:.4g}' if isinstance(x, float) else x}" for name, x in facts.items())


def _caption(record: Mapping[Any, object]) -> str:
    """A draw's facts in at most three lines."""
    scalars = {name: value for name, value in record.items() if name != "draw"}
    lines = textwrap.wrap(in_words(scalars) or f"draw {record.get('draw', '')}".strip(), CAPTION)
    return "\n".join([*lines[:2], lines[2] + " ..." if len(lines) > 3 else lines[2]] if len(lines) > 2 else lines)


def predicted_age(truth: np.ndarray, table: pd.DataFrame, title: str, colour: str, limits: tuple[float, float]) -> bytes:
    """Answers against true ages (n,), with 90 % intervals. table: age_mean, age_q05, age_q95."""
    figure = canvas(5.0, 4.8)
    ax = axes_of(figure, title, "true age (years)", "answered age (years)")
    ax.plot(limits, limits, color=TRUTH, lw=1)
    low, high = table["age_q05"].to_numpy(), table["age_q95"].to_numpy()
    inside = (low <= truth) & (truth <= high)
    ax.vlines(truth[inside], low[inside], high[inside], color=colour, alpha=0.22, lw=1.4)
    ax.vlines(truth[~inside], low[~inside], high[~inside], color="#c0392b", alpha=0.6, lw=1.4)
    ax.scatter(truth, table["age_mean"], s=13, color=colour, lw=0, zorder=3)
    pad = (limits[1] - limits[0]) * 0.06
    ax.set(xlim=(limits[0] - pad, limits[1] + pad), ylim=(limits[0] - 2 * pad, limits[1] + 2 * pad))
    held = f"90 % intervals hold {100 * inside.mean():.0f} %"
    ax.text(0.03, 0.96, held, transform=ax.transAxes, va="top", fontsize=12)
    ax.text(0.97, 0.04, "red: true age outside", transform=ax.transAxes, ha="right", fontsize=11, color="#c0392b")
    return png_of(figure)


def sex_against_exact(male: np.ndarray, model: np.ndarray, exact: np.ndarray) -> bytes:
    """p(M) of the model against the exact one, (n,) each; male: (n,) bool, who is a man."""
    figure = canvas(5.0, 4.8)
    ax = axes_of(figure, "Person by person", "exact probability of a man", "model's probability of a man")
    ax.plot((0, 1), (0, 1), color=TRUTH, lw=1)
    for who, colour, label in ((~male, WOMEN, "women"), (male, MEN, "men")):
        ax.scatter(exact[who], model[who], s=18, color=colour, alpha=0.75, lw=0, label=label)
    ax.legend(frameon=False, fontsize=12, loc="upper left", handletextpad=0.1)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    return png_of(figure)


def reliability(bins: pd.DataFrame) -> bytes:
    """bins: who (model or exact), said (mean probability), share (of men), low, high (90 % interval of the share)."""
    figure = canvas(5.0, 4.8)
    ax = axes_of(figure, "Said and seen", "said: probability of a man", "seen: share of men")
    ax.plot((0, 1), (0, 1), color=TRUTH, lw=1)
    for who, colour, shift in (("model", MODEL, -0.008), ("exact", EXACT, 0.008)):
        part = bins[bins["who"] == who]
        ax.vlines(part["said"] + shift, part["low"], part["high"], color=colour, alpha=0.5, lw=2)
        ax.plot(part["said"] + shift, part["share"], "o-", color=colour, ms=7, lw=1.2, label=who)
    ax.legend(frameon=False, fontsize=12, loc="upper left")
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    return png_of(figure)


def age_and_sex(
    age: np.ndarray, male: np.ndarray, edges: np.ndarray, density: np.ndarray, limits: tuple[float, float]
) -> bytes:
    """Drawn ages (n,) by sex beside the law's density of age (per year, between `edges`), shared half and half."""
    figure = canvas(5.0, 4.0)
    ax = axes_of(figure, "Ages and sexes drawn together", "age (years)", "share of draws per 5 years (%)")
    bins = np.arange(limits[0] - 15, limits[1] + 20, 5)
    for who, colour, sex in ((~male, WOMEN, "F"), (male, MEN, "M")):
        share = np.histogram(age[who], bins)[0] / len(age) * 100
        ax.stairs(share, bins, color=colour, fill=True, alpha=0.25)
        ax.stairs(share, bins, color=colour, lw=1.8, label=f"{sex} {100 * who.mean():.0f} %")
    ax.stairs(density / 2 * 500, edges, color=EXACT, lw=2, label="exact, each sex")
    ax.set_ylim(0, ax.get_ylim()[1] * 1.35)
    ax.legend(frameon=False, fontsize=11.5, ncols=3, loc="upper center", handlelength=1.2, columnspacing=1.2)
    return png_of(figure)


def ventricles_by_age(
    scans: tuple[np.ndarray, np.ndarray], generated: Mapping[str, tuple[np.ndarray, np.ndarray]], band: pd.DataFrame
) -> bytes:
    """Ventricle size (% of the head) against age (years): `scans`, and brains `generated` in several ways.

    Pairs of arrays (n,). band: age, low, high: where 90 % of the law lies.
    """
    figure = canvas(5.0, 4.0)
    ax = axes_of(figure, "Ventricles against age", "age (years)", "ventricles (% of intracranial volume)")
    ax.fill_between(band["age"], band["low"], band["high"], color=EXACT, alpha=0.15, lw=0, label="law, 90 %")
    ax.scatter(*scans, s=9, color=TRUTH, alpha=0.6, lw=0, label="phantom scans")
    for (label, points), colour, marker in zip(generated.items(), (MODEL, WOMEN), "oD"):
        ax.scatter(*points, s=32, color=colour, marker=marker, edgecolor="white", lw=0.6, label=label, zorder=3)
    ax.set_ylim(0, max(6.5, float(band["high"].max()) * 1.35))
    ax.legend(frameon=False, fontsize=11, loc="upper left", ncols=2, handletextpad=0.2, columnspacing=0.8)
    return png_of(figure)


def age_densities(
    title: str, age: np.ndarray, edges: np.ndarray, density: np.ndarray, true_age: float, top: float,
    limits: tuple[float, float],
) -> bytes:  # fmt: skip
    """One question's draws of age (n,) as a histogram, and the exact density (per year) between `edges`."""
    figure = canvas(5.0, 3.2)
    ax = axes_of(figure, title, "age (years)", "% per year")
    bins = np.arange(limits[0] - 15, limits[1] + 18, AGE_BIN)
    share = np.histogram(age, bins)[0] / len(age) / AGE_BIN * 100
    ax.stairs(share, bins, fill=True, color=MODEL, alpha=0.35, label="model's draws")
    ax.stairs(density * 100, edges, color=EXACT, lw=2.2, label="exact")
    ax.axvline(true_age, color=TRUTH, lw=1.4, ls="--", label="true age")
    ax.set(ylim=(0, top * 100), xlim=(limits[0] - 12, limits[1] + 12))
    legend = ax.legend(fontsize=11, ncols=3, loc="upper center", handlelength=1.2, columnspacing=1.0)
    legend.get_frame().set(linewidth=0, alpha=1)  # over the line of the true age
    return png_of(figure)


def seconds_per_answer(seconds: Mapping[str, float]) -> bytes:
    """Horizontal bars on a log scale."""
    figure = canvas(7.0, 0.52 * len(seconds) + 1.0)
    ax = axes_of(figure, "", "seconds per answer", "")
    values = list(seconds.values())
    ax.barh(range(len(values)), values, color=MODEL, height=0.6)
    ax.set_xscale("log")
    ax.set(yticks=range(len(values)), yticklabels=list(seconds), xlim=(min(values) / 3, max(values) * 8))
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    for number, value in enumerate(values):
        ax.text(value * 1.15, number, duration(value), va="center", fontsize=12)
    return png_of(figure)


def duration(seconds: float) -> str:
    """12 ms, 1.2 s."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.2g} ms"
    return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"


def canvas(width: float, height: float, constrained: bool = True) -> "Figure":
    from matplotlib.figure import Figure  # a second to import: only when there is something to draw

    return Figure(figsize=(width, height), layout="constrained" if constrained else None)


def axes_of(figure: "Figure", title: str, x: str, y: str) -> "Axes":
    ax = figure.add_subplot()
    ax.set_title(title, fontsize=14, loc="left", fontweight="bold")
    ax.set_xlabel(x, fontsize=12.5)
    ax.set_ylabel(y, fontsize=12.5)
    ax.tick_params(labelsize=12, length=0)
    ax.grid(color="#e9ecf0", lw=0.8)
    ax.set_axisbelow(True)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#c3c9d1")
    return ax


def png_of(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
