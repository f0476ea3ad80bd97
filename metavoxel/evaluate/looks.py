"""Do drawn scans look like real ones, and are they copies of the training people's? Every figure stands beside what real
scans of other people score."""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import fisher_exact

from metavoxel.data.table import IDENTIFIERS
from metavoxel.errors import MetavoxelError
from metavoxel.evaluate.copies import Audit, Fold, audit, audit_folds
from metavoxel.evaluate.features import WHOLE, Extractor
from metavoxel.evaluate.figures import OURS, Figure, Findings
from metavoxel.evaluate.scores import SD_95, holm
from metavoxel.evaluate.two_sample import LEAST_SCANS, all_distances, likeness, told_apart
from metavoxel.loading import Progress
from metavoxel.page import Picture, Section, Table
from metavoxel.pictures import CAPTION, in_words, mosaic

SECTION, COPIES = "images", "copies"
REAL = "real scans"
"""Who is told as the floor: real scans of other people in the generated ones' place."""
SHOWN = 4
SHOWN_FIGURES = ("fid", "kid", "mmd", "mmd_p", "precision", "recall", "density", "coverage", "wasserstein", "ms_ssim")
TOLD_P, LEAST_P = 0.05, 0.01
NORMAL_QUARTILES = 1.349
"""How far apart they are, in sds."""
FAR = 5.0
MOST_VOXELS = 1 << 17
"""So that the features of thousands of scans fit into memory."""

See = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Scans (n, *shape) -> features (m, d) of each plane, or of the whole under one name; figures are means over them."""


@dataclass(frozen=True)
class Space:
    """What scans are compared by.

    measures: a few figures of each scan rather than all of it, each in a unit of its own: they are compared in sds of the
    real scans, and two people who share them need not be alike. networks: that `see`, one a fold.
    """

    see: See
    measures: bool = False
    networks: Sequence[Extractor] = ()

    @property
    def record(self) -> list[dict[str, str]]:
        """Whose figures these are."""
        return [{"name": one.name, "checksum": one.checksum, "remark": one.remark} for one in self.networks]

    def scale(self, real: Mapping[str, np.ndarray]) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
        """Puts features into the unit that they are compared in, which the real scans' tell."""
        return _in_sds(real) if self.measures else dict


@dataclass(frozen=True)
class Gallery:
    """Scans of one image variable on the model's grid, (n, *shape), and the tables' rows that they belong to.

    `made` for the facts of the first rows of the test, `real` of the test, `training` of training people (None: unknown).
    """

    name: str
    spacing: Sequence[float]
    made: np.ndarray
    made_rows: pd.DataFrame
    real: np.ndarray
    real_rows: pd.DataFrame
    training: np.ndarray | None
    training_rows: pd.DataFrame | None

    @property
    def enough(self) -> bool:
        return min(len(self.made), len(self.real) // (1 if self.training is not None else 2)) >= LEAST_SCANS


@dataclass(frozen=True)
class Looked:
    """What `look` found. audits: of copies, in each space that has one row a scan. left_out: sentences."""

    figures: list[Figure] = field(default_factory=list)
    audits: dict[str, Audit] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def as_voxels(scans: np.ndarray) -> dict[str, np.ndarray]:
    """The scans themselves (n, *shape) as features: on a fine grid, means over blocks of voxels."""
    side = 1
    while np.prod([-(-length // side) for length in scans.shape[1:]]) > MOST_VOXELS:
        side += 1
    pool = (F.avg_pool2d, F.avg_pool3d)[scans.ndim - 3]

    def means(scan: np.ndarray) -> np.ndarray:
        return pool(torch.from_numpy(scan)[None], side, ceil_mode=True).flatten().numpy()

    return {WHOLE: np.stack([means(np.asarray(scan, np.float32)) for scan in scans])}


def look(
    gallery: Gallery, spaces: Mapping[str, Space], seed: int, others: Mapping[str, np.ndarray], progress: Progress
) -> Looked:
    """Each distance in each space of features, metric "SPACE: fid", and the search for copies, metric "SPACE: ratio"; a
    space at a time, so that the features of one are in memory. The floor is training people against the test's, or one half
    of the test, at random, against the other. others: who -> scans (n, *shape) that other models drew.

    A space in which scans cannot be compared is left out, with the reason.
    """
    rng, looked = np.random.default_rng(seed), Looked()
    real, other = gallery.real, gallery.training
    if other is None:  # halves at random: people may lie ordered by fold, and so by site
        halves = np.array_split(rng.permutation(len(real)), 2)
        real, other = (real[np.sort(half)] for half in halves)
    floor = np.sort(rng.permutation(len(other))[: len(gallery.made)])
    compared = _Compared(gallery, real, other, floor, others)
    progress(0, len(spaces))
    for number, (name, space) in enumerate(spaces.items(), start=1):
        try:
            seen = _see(space, compared)
            looked.figures.extend([*_figures(name, seen, compared, seed, with_likeness=space.see is as_voxels)])
            if seen.training is not None and gallery.training_rows is not None:
                of_training, of_real = (rows["participant_id"] for rows in (gallery.training_rows, gallery.real_rows))
                made, held_out = seen.sets[OURS][WHOLE], seen.real[WHOLE]
                looked.audits[name] = audit(made, seen.training, held_out, of_training, of_real, seed)
        except MetavoxelError as error:
            looked.left_out.append(f"Looks of {gallery.name} by {name}: {error}.")
        progress(number, len(spaces))
    looked.figures.extend(copy_figures(gallery.name, looked.audits))
    return looked


def copies_of_folds(gallery: Gallery, spaces: Mapping[str, Space], folds: Sequence[Fold], seed: int) -> dict[str, Audit]:
    """`copies.audit_folds` in each space that has one row a scan, by each fold's own network where it has one; folds:
    rows of the gallery's drawn and real scans."""
    people, found = gallery.real_rows["participant_id"].to_numpy(), {}
    made, real = np.asarray(gallery.made), np.asarray(gallery.real)
    for name, space in spaces.items():
        if len(space.networks) == len(folds):
            seen = [(network.features(made[fold.made])[WHOLE], network.features(real)[WHOLE])
                    for network, fold in zip(space.networks, folds)]  # fmt: skip
        elif WHOLE in space.see(real[:1]):  # by one scan: all take networks minutes
            scale = space.scale(raw := space.see(real))
            ours, theirs = scale(space.see(made))[WHOLE], scale(raw)[WHOLE]
            seen = [(ours[fold.made], theirs) for fold in folds]
        else:
            continue
        found[name] = audit_folds(seen, people, folds, seed)
    return found


@dataclass(frozen=True)
class _Compared:
    """The real scans, other people's, which of these are the floor, and what other models drew."""

    gallery: Gallery
    real: np.ndarray
    other: np.ndarray
    floor: np.ndarray
    others: Mapping[str, np.ndarray]

    @property
    def sets(self) -> dict[str, np.ndarray]:
        return {OURS: self.gallery.made, REAL: self.other[self.floor], **self.others}


@dataclass(frozen=True)
class _Seen:
    """Features by plane: of the real scans, and of who is compared with them. training (m, d): of all training scans, where
    copies can be looked for."""

    real: Mapping[str, np.ndarray]
    sets: Mapping[str, Mapping[str, np.ndarray]]
    training: np.ndarray | None


def _see(space: Space, compared: _Compared) -> _Seen:
    """Each scan once: of thousands, a pass through a network takes minutes."""
    raw = space.see(np.asarray(compared.real))
    scale = space.scale(raw)
    sets, training = compared.sets, None
    if compared.gallery.training is not None and WHOLE in raw:
        training = scale(space.see(np.asarray(compared.other)))[WHOLE]
        del sets[REAL]
    seen = {who: scale(space.see(np.asarray(scans))) for who, scans in sets.items()}
    if training is not None:
        seen[REAL] = {WHOLE: training[compared.floor]}
    return _Seen(scale(raw), seen, training)


def _in_sds(real: Mapping[str, np.ndarray]) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """Puts measures in sds from the middle of the real ones, by quartiles, and never farther than FAR: a real scan in which
    no brain was found is not to blow up the unit, and such drawn ones are not to be all that a distance is about."""
    low, middle, high = np.quantile(real[WHOLE], (0.25, 0.5, 0.75), axis=0)
    unit = np.where(high > low, (high - low) / NORMAL_QUARTILES, 1.0)
    return lambda seen: {plane: ((x - middle) / unit).clip(-FAR, FAR) for plane, x in seen.items()}


def _figures(name: str, seen: _Seen, compared: _Compared, seed: int, with_likeness: bool) -> Iterator[Figure]:
    each = {plane: len(features) // len(compared.real) for plane, features in seen.real.items()}
    planes = [all_distances({who: own[plane] for who, own in seen.sets.items()}, real, seed, each[plane])
              for plane, real in seen.real.items()]  # fmt: skip
    scans = compared.sets
    for who, own in seen.sets.items():
        found = {metric: float(np.mean([plane[who][metric] for plane in planes])) for metric in planes[0][who]}
        # one test of all planes together, with a row a scan
        ours, real = (np.hstack([_by_scan(x[plane], rows) for plane, rows in each.items()]) for x in (own, seen.real))
        found["mmd_p"] = told_apart(ours, real, seed)
        if with_likeness:
            found["ms_ssim"], found["ms_ssim_error"] = likeness(list(scans[who]), seed=seed)
        for metric, value in found.items():
            chance = SD_95 * found.get(f"{metric}_error", np.nan)
            low, high = (None, None) if np.isnan(chance) else (value - chance, value + chance)
            metric = f"{name}: {metric}"
            yield Figure(SECTION, compared.gallery.name, metric, value, who, low=low, high=high, n=len(compared.floor))


def _by_scan(features: np.ndarray, each: int) -> np.ndarray:
    """(scans each, d) -> (scans, d), means over a scan's rows."""
    return features.reshape(-1, each, features.shape[-1]).mean(1)


def copy_figures(name: str, found: Mapping[str, Audit]) -> Iterator[Figure]:
    """metric "SPACE: ratio" and so on, see `copies.Audit`."""
    for space, one in found.items():
        for metric, value in one.figures.items():
            yield Figure(COPIES, name, f"{space}: {metric}", value)


def images_section(findings: Findings, gallery: Gallery, spaces: Mapping[str, Space], names: Sequence[str]) -> Section:
    """How near drawn scans come to real ones, in every space of features. names: of the facts that were asked for."""
    own = {name: space for name, space in spaces.items() if _of(findings, gallery, name, "mmd") is not None}
    told = dict.fromkeys(figure.who for figure in findings.figures if figure.section == SECTION)
    others = [who for who in told if who not in (OURS, REAL)]
    rows = []
    for space in own:
        for metric in SHOWN_FIGURES:
            cells = [_shown(findings, gallery, space, metric, who) for who in (OURS, *others, REAL)]
            if cells[0]:
                rows.append((f"{space}: {metric.replace('_', '-')}", *cells))
    used = _of(findings, gallery, next(iter(own)), "mmd")
    assert used is not None
    return Section(
        f"Do drawn {gallery.name} scans look real?",
        " ".join([_told(findings, gallery, own), *(_beside(findings, gallery, own, who) for who in others)]),
        _beside_real(gallery, names),
        Table((f"{used.n} scans each", "drawn", *others, "real (floor)"), rows), columns=1,
        note=" ".join([
            "Floor: real scans of other people in the drawn ones' place; no figure is zero for so few, and FID least of "
            "all, so it means something beside its floor only. ±: standard errors, by leaving out a tenth of the scans at "
            "a time. mmd-p: how often sets mixed at random are as far apart; scans are told apart where it is below .05, "
            "corrected for as many spaces (Holm). Anatomy: in sds of the real scans.",
            *dict.fromkeys(network.remark for space in own.values() for network in space.networks),
        ]),
    )  # fmt: skip


def _beside_real(gallery: Gallery, names: Sequence[str]) -> list[Picture]:
    """A few drawn scans, each beside that of the person for whose facts it was drawn; not everybody has one."""
    keys = [key for key in IDENTIFIERS if key in gallery.made_rows and key in gallery.real_rows]
    parts = [rows[keys].assign(**{whose: range(len(rows))}) for whose, rows in
             (("made", gallery.made_rows), ("real", gallery.real_rows))]  # fmt: skip
    both = parts[0].merge(parts[1], on=keys).drop_duplicates("made")[:SHOWN]
    if both.empty:
        return []
    pairs = [scan for made, real in zip(both["made"], both["real"]) for scan in (gallery.made[made], gallery.real[real])]
    asked = [f"drawn: {_in_words(row, names)}" for row in gallery.made_rows.iloc[both["made"]].to_dict("records")]
    captions = [words for caption in asked for words in (textwrap.fill(caption, CAPTION), "the person who is so")]
    png = mosaic(np.stack(pairs).astype(np.float32), captions, gallery.spacing, columns=2, window=(0, 1))
    return [Picture(png, f"Drawn {gallery.name} scans beside the real ones of the same facts")]


def _of(findings: Findings, gallery: Gallery, space: str, metric: str, who: str = OURS) -> Figure | None:
    return findings.value(SECTION, gallery.name, f"{space}: {metric}", who=who)


def _shown(findings: Findings, gallery: Gallery, space: str, metric: str, who: str) -> str:
    """With its error, where it has one; empty where there is no such figure."""
    figure, error = (_of(findings, gallery, space, name, who) for name in (metric, f"{metric}_error"))
    return "" if figure is None else f"{figure.value:.3g}" + (f" ± {error.value:.1g}" if error else "")


def _told(findings: Findings, gallery: Gallery, spaces: Iterable[str]) -> str:
    """By what drawn scans are told from real ones, and whether real ones of other people are, too."""
    apart = {}
    for who in (OURS, REAL):
        found = {space: figure.value for space in spaces if (figure := _of(findings, gallery, space, "mmd_p", who))}
        apart[who] = [space for space, p in zip(found, holm(list(found.values()))) if p < TOLD_P]
    others = [space for space in spaces if space not in apart[OURS]]
    if not apart[OURS]:
        words = f"Drawn {gallery.name} scans are not told from real ones beyond chance, by {_listed(others)}"
    else:
        words = f"Drawn {gallery.name} scans are told from real ones by {_listed(apart[OURS])}"
        words += f", not by {_listed(others)}" if others else ""
    return words + (f"; so are real scans of other people by {_listed(apart[REAL])}." if apart[REAL] else ".")


def _beside(findings: Findings, gallery: Gallery, spaces: Iterable[str], who: str) -> str:
    """Whether ours are nearer to real scans than those of another model: by mmd, with errors taken as independent."""
    found: dict[str, list[str]] = {}
    for space in spaces:
        figures = [_of(findings, gallery, space, metric, one) for one in (OURS, who) for metric in ("mmd", "mmd_error")]
        if None not in figures:
            ours, own, theirs, other = (figure.value for figure in figures if figure)
            sure = abs(ours - theirs) > SD_95 * np.hypot(own, other)
            verdict = ("nearer" if ours < theirs else "farther") if sure else "as near, within errors,"
            found.setdefault(verdict, []).append(space)
    said = "; ".join(f"{verdict} by {_listed(named)}" for verdict, named in found.items())
    return f"Beside those of {who} they are {said}."


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _in_words(row: Mapping[Any, Any], names: Sequence[str]) -> str:
    return in_words({name: row[name] for name in names if not pd.isna(row[name])})


def copies_section(gallery: Gallery, found: Mapping[str, Audit], spaces: Mapping[str, Space]) -> Section:
    """Whether drawn scans are nearer to training people than to people never seen."""
    rows = []
    for space, one in found.items():
        f = one.figures
        rows.append((space, f"{f['ratio']:.3f}", f"{f['nearer_training']:.1%} ({f['nearer_training_expected']:.1%})",
                     f"{f['nearer_training_p']:.2g}", f"{f['authenticity']:.1%} ({f['authenticity_floor']:.1%})",
                     f"{f['membership_auc']:.3f}", f"{f['near_copies']:.1%} ({f['near_copies_floor']:.1%})"))  # fmt: skip
    header = ("by", "distance ratio", "nearer to training", "p", "authentic", "membership AUC", "near copies")
    least = holm([one.figures["nearer_training_p"] for one in found.values()]).min()
    whole = {space: one for space, one in found.items() if not spaces[space].measures}
    near, likely = _counted(gallery, whole)
    if least < LEAST_P:
        verdict = "Drawn scans are nearer to training people than chance allows"
    else:
        verdict = "Some drawn scans are copies of training people" if likely else (
            "Nothing says that drawn scans copy training people")  # fmt: skip
    return Section(
        f"Are drawn {gallery.name} scans copies?", f"{verdict}; {near}.", _near(gallery, whole),
        Table(header, rows), columns=1,
        note="In brackets: what is expected if training made no difference, or what people held out score in the drawn "
        f"scans' place. A near copy is nearer than {next(iter(found.values())).threshold.basis}; by a few measures alone "
        "nobody is called one. The smallest p counts, corrected for as many spaces. Membership AUC: how well the nearest "
        "drawn scan tells who was in training; .5 is not at all.",
    )  # fmt: skip


def _counted(gallery: Gallery, found: Mapping[str, Audit]) -> tuple[str, bool]:
    """How many drawn scans are near copies in any space, in words; whether more than of people held out, beyond chance."""
    made = len(set().union(*(one.near["made"] for one in found.values())))
    held = len(set().union(*(one.held_out_near for one in found.values())))
    n, m = len(gallery.made), len(gallery.real)
    more = bool(fisher_exact([[made, n - made], [held, m - held]], "greater").pvalue < LEAST_P)
    if not made:
        return "no near copy was found", more
    counted = "1 near copy was" if made == 1 else f"{made} near copies were"
    than = "no more" if made / n <= held / m else "more" if more else "within chance no more"
    return f"{counted} found ({made / n:.1%}), {than} than among real people ({held / m:.1%})", more


def _near(gallery: Gallery, found: Mapping[str, Audit]) -> list[Picture]:
    """The nearest copies beside whom they copy; no picture without any."""
    found = {space: one for space, one in found.items() if len(one.near)}
    if not found or gallery.training is None:
        return []
    near = pd.concat([one.near for one in found.values()]).drop_duplicates(["made", "training"])[:SHOWN]
    pairs: list[Any] = []
    for pair in near.to_dict("records"):
        pairs += [gallery.made[int(pair["made"])], gallery.training[int(pair["training"])]]
    captions = ["drawn", "a training person"] * len(near)
    png = mosaic(np.stack(pairs).astype(np.float32), captions, gallery.spacing, columns=2, window=(0, 1))
    return [Picture(png, "Near copies beside the training scans")]
