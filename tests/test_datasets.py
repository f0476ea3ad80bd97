"""Downloads: gone on with where they broke off, checked, refused without a licence, and said in one line when offline."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pytest

from metavoxel.data import datasets, download
from metavoxel.data.download import Remote, fetch
from metavoxel.errors import MetavoxelError

BIG = np.random.default_rng(0).bytes(300_000)
STORE = {
    "ds000007/dataset_description.json": json.dumps({"Name": "Seven", "License": "CC0"}).encode(),
    "ds000007/participants.tsv": b"participant_id\tage\nsub-01\t30\n",
    "ds000007/sub-01/anat/sub-01_T1w.nii.gz": BIG,
    "ds000007/sub-01/anat/sub-01_T1w.json": b"{}",
    "ds000007/sub-01/anat/sub-01_FLAIR.nii.gz": BIG[:5000],
    "ds000007/sub-01/func/sub-01_bold.nii.gz": BIG,
    "ds000007/derivatives/x/sub-01/anat/sub-01_T1w.nii.gz": BIG,
}


class Store(BaseHTTPRequestHandler):
    """An S3 bucket that breaks off: the next `breaks` answers end after `piece` bytes."""

    files: dict[str, bytes]
    breaks: int
    piece = 40_000
    asked: list[tuple[str, str]]
    ranges = True

    def do_GET(self) -> None:
        split = urlsplit(self.path)
        key = unquote(split.path.lstrip("/"))
        type(self).asked.append((key, self.headers.get("Range", "")))
        if not key:
            return self.listing({name: values[0] for name, values in parse_qs(split.query).items()})
        if key not in self.files:
            return self.send_error(404)
        content, start = self.files[key], 0
        same = self.headers.get("If-Range", tag(content)) == tag(content)
        if self.ranges and same and (asked := self.headers.get("Range")):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content) > 0:
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if type(self).breaks and len(body) > self.piece:
            type(self).breaks -= 1
            body = body[: self.piece]
            self.close_connection = True
        self.wfile.write(body)

    def listing(self, query: dict[str, str]) -> None:
        """Three keys a page."""
        keys = sorted(key for key in self.files if key.startswith(query["prefix"]))
        start = int(query.get("continuation-token", 0))
        entries = "".join(
            f"<Contents><Key>{k}</Key><Size>{len(self.files[k])}</Size><ETag>{tag(self.files[k])}</ETag></Contents>"
            for k in keys[start : start + 3]
        )
        more = f"<NextContinuationToken>{start + 3}</NextContinuationToken>" if start + 3 < len(keys) else ""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f'<ListBucketResult xmlns="http://s3/">{entries}{more}</ListBucketResult>'.encode())

    def log_message(self, *arguments: object) -> None: ...


def tag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Store]]:
    class Own(Store):
        files, breaks, asked = dict(STORE), 0, []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(datasets, "OPENNEURO", url)
    monkeypatch.setattr(datasets, "IXI", f"{url}/IXI")
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    yield Own
    server.shutdown()
    server.server_close()


def remote(content: bytes = BIG, **changes: object) -> Remote:
    known = {"size": len(content), "md5": hashlib.md5(content).hexdigest(), "tag": hashlib.md5(content).hexdigest()}
    return Remote(f"{datasets.OPENNEURO}/ds000007/sub-01/anat/sub-01_T1w.nii.gz", "a/b.nii.gz", **{**known, **changes})


def test_a_broken_download_is_gone_on_with(store, tmp_path):
    store.breaks, seen = 3, []
    path = fetch(remote(), tmp_path, seen.append)
    assert path.read_bytes() == BIG and [p.name for p in path.parent.iterdir()] == ["b.nii.gz"]
    assert [asked for _, asked in store.asked] == ["", "bytes=40000-", "bytes=80000-", "bytes=120000-"]
    assert seen == sorted(seen) and seen[-1] == len(BIG)
    fetch(remote(), tmp_path)
    assert len(store.asked) == 4  # what is there whole is not asked for again


def test_the_next_run_goes_on_too(store, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    store.breaks = 1

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(remote(), tmp_path, stop)
    assert not (tmp_path / "a/b.nii.gz").exists()
    fetch(remote(), tmp_path)
    assert store.asked[1][1].startswith("bytes=") and (tmp_path / "a/b.nii.gz").read_bytes() == BIG


def test_a_host_without_ranges_and_one_whose_file_has_changed(store, tmp_path):
    store.ranges, store.breaks = False, 1
    assert fetch(remote(), tmp_path / "one").read_bytes() == BIG
    store.ranges, store.breaks = True, 1
    store.files["ds000007/sub-01/anat/sub-01_T1w.nii.gz"] = BIG[::-1]
    with pytest.raises(MetavoxelError, match="what came is not what was promised"):
        fetch(remote(), tmp_path / "two")
    assert not list((tmp_path / "two").rglob("*.*"))
    assert fetch(remote(size=None, md5=None, tag=None), tmp_path / "two").read_bytes() == BIG[::-1]


def test_a_whole_part_of_unknown_length_is_taken(store, tmp_path):
    unknown = remote(size=None, tag=None)
    part = tmp_path / f"a/.b.nii.gz.{hashlib.sha256(repr(unknown).encode()).hexdigest()[:8]}.part"
    part.parent.mkdir()
    part.write_bytes(BIG)
    assert fetch(unknown, tmp_path).read_bytes() == BIG and not part.exists()


def test_what_cannot_be_fetched(store, tmp_path, monkeypatch):
    with pytest.raises(MetavoxelError, match="answers 404"):
        fetch(Remote(f"{datasets.OPENNEURO}/none", "x"), tmp_path)
    with pytest.raises(MetavoxelError, match="outside of"):
        fetch(Remote(f"{datasets.OPENNEURO}/none", "../x"), tmp_path)
    store.breaks, store.piece = 99, 0
    with pytest.raises(download.Unreachable, match=r"broke off at 0\.0 MB"):
        fetch(remote(), tmp_path)
    monkeypatch.setattr("pathlib.Path.open", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(MetavoxelError, match="disk full"):
        fetch(remote(), tmp_path / "full")


def test_the_licence_comes_first(run, refused, store, tmp_path):
    out = tmp_path / "seven"
    said = refused("datasets", "ds000007", "-o", out)
    assert "nothing is downloaded yet; read its licence, CC0, and add --accept-licence" in said and not out.exists()
    store.breaks = 2
    status, said = run("datasets", "ds000007", "-o", out, "--accept-licence")
    assert status == 0 and "Seven; licence: CC0; https://openneuro.org/datasets/ds000007" in said
    wanted = [k.removeprefix("ds000007/") for k in STORE if "func" not in k and "derivatives" not in k]
    there = {path.relative_to(out).as_posix() for path in out.rglob("*.*") if path.is_file()}
    assert there == {*wanted, "download.json"}
    record = json.loads((out / "download.json").read_text())
    assert record["License"] == "CC0" and len(record["Files"]) == 5
    assert run("datasets", "ds000007", "-o", tmp_path / "one", "--images", "FLAIR", "--accept-licence")[0] == 0
    assert [p.name for p in (tmp_path / "one").rglob("*.nii.gz")] == ["sub-01_FLAIR.nii.gz"]
    assert "no anatomical scans of T2w" in refused("datasets", "ds000007", "-o", out, "--images", "T2w", "--accept-licence")


def test_ixi_is_checked_and_unpacked(run, store, tmp_path, monkeypatch):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("IXI002-Guys-0828-T1.nii.gz", "../IXI012-HH-1211-T1.nii.gz", "readme.sh"):
            member = tarfile.TarInfo(name)
            member.size = 2000
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    store.files |= {"IXI/IXI.xls": b"table", "IXI/IXI-T1.tar": buffer.getvalue()}
    monkeypatch.setattr(datasets, "TABLE_MD5", hashlib.md5(b"table").hexdigest())
    monkeypatch.setitem(datasets.IXI_MD5, "T1", hashlib.md5(buffer.getvalue()).hexdigest())
    status, said = run("datasets", "ixi", "-o", tmp_path / "ixi", "--accept-licence")
    assert status == 0 and "CC BY-SA 3.0" in said and "--pattern 'IXI-T1/{participant_id}-T1.nii.gz'" in said, said
    names = sorted(p.name for p in (tmp_path / "ixi/IXI-T1").iterdir())
    assert names == ["IXI002-Guys-0828-T1.nii.gz", "IXI012-HH-1211-T1.nii.gz"]


def test_the_list_and_wrong_names(run, refused, capsys):
    from metavoxel.cli import app

    app(["datasets"], standalone_mode=False)
    listed = capsys.readouterr().out
    assert "ixi" in listed and "CC BY-SA 3.0" in listed and "ds002748" in listed
    assert "no such data set" in refused("datasets", "adni")


def test_offline_says_where_to_get_it(refused, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "OPENNEURO", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets, "IXI", "http://127.0.0.1:9")
    for name, page in (("ds002748", "https://openneuro.org/datasets/ds002748"), ("ixi", "https://brain-development.org")):
        said = refused("datasets", name, "-o", tmp_path / name, "--accept-licence")
        assert "127.0.0.1:9 cannot be reached" in said and "get it by hand from" in said and page in said
