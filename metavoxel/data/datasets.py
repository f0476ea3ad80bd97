"""Cohorts that anyone may have, under licences that say so, and the way to get them."""

from __future__ import annotations

import json
import re
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from metavoxel.data.download import Remote, Unreachable, fetch, read_url
from metavoxel.data.volume import is_scan_name, scan_stem
from metavoxel.errors import MetavoxelError
from metavoxel.files import atomic_write, make_folder

OPENNEURO = "https://s3.amazonaws.com/openneuro.org"
IXI = "http://biomedic.doc.ic.ac.uk/brain-development/downloads/IXI"
IXI_MD5 = {
    "T1": "34901a0593b41dd19c1a1f746eac2d58",
    "T2": "e3140d78730ecdd32ba92da48c0a9aaa",
    "PD": "88ecd9d1fa33cb4a2278183b42ffd749",
    "MRA": "29be7d2fee3998f978a55a9bdaf3407e",
}
TABLE_MD5 = "066002afe250e4375d132266fcfceac5"
ABOUT_COHORT = re.compile(
    r"dataset_description\.json|participants\.(tsv|json)|README.*|CHANGES|LICENSE.*|sub-[^/]+/sub-[^/]+_sessions\.tsv"
)
ANATOMICAL = re.compile(r"sub-[^/]+/(ses-[^/]+/)?anat/[^/]+\.(nii|nii\.gz|json)")
Progress = Callable[[int, int], None]
"""(done, total)."""


@dataclass(frozen=True)
class Dataset:
    """A cohort as `metavoxel datasets` lists it."""

    name: str
    people: str
    what: str
    licence: str
    page: str


def _openneuro(accession: str, people: str, what: str, licence: str = "CC0") -> Dataset:
    return Dataset(accession, people, what, licence, f"https://openneuro.org/datasets/{accession}")


CATALOGUE = (
    Dataset("ixi", "about 580", "healthy adults of 20 to 86, three sites; T1, T2, PD, MRA", "CC BY-SA 3.0",
            "https://brain-development.org/ixi-dataset/"),
    _openneuro("ds002748", "72", "depression and controls; T1w"),
    _openneuro("ds003097", "928", "AOMIC ID1000, adults of 19 to 26; T1w"),
    _openneuro("ds002785", "216", "AOMIC PIOP1, students; T1w"),
    _openneuro("ds002790", "226", "AOMIC PIOP2, students; T1w"),
)  # fmt: skip


def find(name: str) -> Dataset:
    """A data set of the catalogue, or any of OpenNeuro by its accession number, whose licence is asked for."""
    listed = next((dataset for dataset in CATALOGUE if dataset.name == name.casefold()), None)
    if listed and listed.name == "ixi":
        return listed
    if not re.fullmatch(r"ds\d{6}", name):
        fix = "metavoxel datasets lists some, and takes any accession number of OpenNeuro, such as ds000001"
        raise MetavoxelError(f"{name}: no such data set; {fix}")
    dataset = listed or _openneuro(name, "", "")
    with _by_hand(dataset, Path(name)):
        about = json.loads(read_url(f"{OPENNEURO}/{name}/dataset_description.json"))
    return _openneuro(name, dataset.people, about.get("Name", dataset.what), about.get("License") or "none stated")


def download(
    dataset: Dataset, out: Path, images: Sequence[str] | None = None, progress: Progress = lambda done, total: None
) -> list[Path]:
    """The data set's table and scans into the folder `out`; returns the files. What is there already is kept.

    images: BIDS suffixes, or IXI's T1, T2, PD, MRA; all anatomical ones (IXI: T1) when None. `progress`: megabytes done,
    and in all. OUT/download.json records where the files come from, their checksums and their licence.
    """
    files: list[Path] = []
    with _by_hand(dataset, out):
        remotes = list(_ixi(images) if dataset.name == "ixi" else _bids(dataset, images))
        total, before = sum(remote.size or 0 for remote in remotes), 0

        def report(here: int) -> None:
            progress((before + here) >> 20, max(total, before + here) >> 20)

        make_folder(out)
        for remote in remotes:
            files.append(fetch(remote, out, report))
            before += files[-1].stat().st_size
    record = {
        "Name": dataset.name, "Description": dataset.what, "License": dataset.licence, "Page": dataset.page,
        "Files": {r.path: {"URL": r.url, "Bytes": f.stat().st_size, "MD5": r.md5} for r, f in zip(remotes, files)},
    }  # fmt: skip
    with atomic_write(out / "download.json") as text:
        text.write(json.dumps(record, indent=2) + "\n")
    for file in files:
        if file.suffix == ".tar":
            _unpack(file)
    return files


def _ixi(images: Sequence[str] | None) -> Iterator[Remote]:
    yield Remote(f"{IXI}/IXI.xls", "IXI.xls", md5=TABLE_MD5)
    for image in images or ["T1"]:
        if image not in IXI_MD5:
            raise MetavoxelError(f"ixi: has no {image!r}; its images are {', '.join(IXI_MD5)}")
        yield Remote(f"{IXI}/IXI-{image}.tar", f"IXI-{image}.tar", md5=IXI_MD5[image])


def _bids(dataset: Dataset, images: Sequence[str] | None) -> Iterator[Remote]:
    """What of an OpenNeuro data set is read here: tables and anatomical scans with their sidecars."""
    scans: set[str] = set()
    for key, size, tag in _listing(f"{dataset.name}/"):
        path = key.removeprefix(f"{dataset.name}/")
        suffix = scan_stem(Path(path)).removesuffix(".json").rpartition("_")[2]
        wanted = ANATOMICAL.fullmatch(path) and (images is None or suffix in images)
        if not wanted and not ABOUT_COHORT.fullmatch(path):
            continue
        if is_scan_name(path):
            scans.add(suffix)
        # The tag of an object that was stored in one piece is its MD5; else it ends in the number of pieces.
        md5 = tag if re.fullmatch(r"[0-9a-f]{32}", tag) else None
        yield Remote(f"{OPENNEURO}/{quote(key)}", path, size, md5, tag)
    if not scans:
        asked = f" of {', '.join(images)}" if images else ""
        raise MetavoxelError(f"{dataset.name}: has no anatomical scans{asked}; look at {dataset.page}")


def _listing(prefix: str) -> Iterator[tuple[str, int, str]]:
    """Key, bytes and tag of every object below a prefix of the store, a page of a thousand at a time."""
    token = ""
    while True:
        tree = ET.fromstring(read_url(f"{OPENNEURO}/?list-type=2&prefix={quote(prefix, safe='')}{token}"))
        for entry in tree.iterfind("{*}Contents"):
            key, size, tag = (entry.findtext(f"{{*}}{name}") or "" for name in ("Key", "Size", "ETag"))
            yield key, int(size), tag.strip('"')
        following = tree.findtext("{*}NextContinuationToken")
        if not following:
            return
        token = f"&continuation-token={quote(following, safe='')}"


def _unpack(archive: Path) -> None:
    """The archive's files into a folder of its name; a file appears there whole."""
    folder = make_folder(archive.with_suffix(""))
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                target = folder / Path(member.name).name
                content = tar.extractfile(member) if member.isfile() and is_scan_name(target) else None
                if content is not None and not target.exists():
                    with atomic_write(target, "wb") as file:
                        file.write(content.read())
    except tarfile.TarError as error:
        raise MetavoxelError(f"{archive}: not a readable archive; remove it and start again") from error


@contextmanager
def _by_hand(dataset: Dataset, out: Path) -> Iterator[None]:
    """Where a host cannot be reached, the error says where the data lie."""
    try:
        yield
    except Unreachable as error:
        fix = f"start again to go on, or get it by hand from {dataset.page} into {out}"
        raise MetavoxelError(f"{error}; {fix}") from error
