"""A Dask cluster does what processes do: the same results and reasons, whoever dies, and few items on their way."""

import os
import signal
import stat
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from heads import cohort

import metavoxel as mv
from metavoxel.errors import MetavoxelError
from metavoxel.prepare import cluster as clusters
from metavoxel.prepare.cluster import over_dask, over_slurm, slurm_cluster
from metavoxel.prepare.run import prepare_cohort
from metavoxel.prepare.scan import prepare_scan
from metavoxel.prepare.task import PRIVATE, Settings

distributed = pytest.importorskip("distributed")
dask = pytest.importorskip("dask")


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes; an item that kills two workers is given up."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as local,
    ):
        yield local


def trouble(item: tuple[int, Path]) -> None:
    """Item 3 kills its worker at the first visit, item 6 at every one."""
    number, folder = item
    if number == 1:
        raise MetavoxelError("one; mend it")
    if number == 2:
        raise KeyError("two")
    first = folder / f"{number}.begun"
    if number == 6 or (number == 3 and not first.exists()):
        first.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / f"{number}.done").write_text(str(os.getpid()))


class Counted(list):
    """Items that tell how many of them were taken."""

    taken = 0

    def __iter__(self):
        for item in super().__iter__():
            self.taken += 1
            yield item


@pytest.fixture
def threads():
    """Two workers in this process: quick, and nothing can die."""
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", processes=False) as local:
        yield local.scheduler_address


def test_reasons_are_those_of_processes_and_few_items_are_on_their_way(threads, tmp_path):
    items = Counted((i, tmp_path) for i in (0, 1, 2, *range(10, 27)))
    reasons, ahead = {}, 0
    for position, reason in over_dask(trouble, items, address=threads):
        reasons[position] = reason
        ahead = max(ahead, items.taken - len(reasons))
    assert reasons == dict.fromkeys(range(20)) | {1: "one; mend it", 2: "KeyError: 'two'"}
    assert ahead <= 3  # one a worker, and the one that has just ended


def test_leaving_early_takes_the_rest_back(threads, tmp_path):
    for _ in over_dask(trouble, [(i, tmp_path) for i in range(10, 40)], address=threads):
        break
    time.sleep(0.5)
    assert len(list(tmp_path.glob("*.done"))) <= 4


@pytest.mark.slow
def test_deaths_cost_nothing_but_the_item_that_kills(cluster, tmp_path):
    items = [(i, tmp_path) for i in range(30)]
    reasons = dict(over_dask(trouble, items, address=cluster.scheduler_address))
    assert reasons[1] == "one; mend it" and reasons[2] == "KeyError: 'two'"
    assert "workers died one after another" in reasons[6] and "look at this scan alone" in reasons[6]
    assert {i for i, reason in reasons.items() if reason is None} == set(range(30)) - {1, 2, 6}
    assert len(list(tmp_path.glob("*.done"))) == 27 and (tmp_path / "3.begun").exists()


def test_clusters_that_are_not_fit(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(clusters, "WAIT_S", 0.5)
    raw, out = cohort(tmp_path / "bids", 1), tmp_path / "out"
    assert "no scheduler answers there" in refused("prepare", raw, out, "--dask", "tcp://127.0.0.1:9")
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0", processes=False) as local:
        said = refused("prepare", raw, out, "--dask", local.scheduler_address)
        assert "has no workers" in said and "--nthreads 1" in said
    with distributed.LocalCluster(n_workers=1, threads_per_worker=3, dashboard_address=":0", processes=False) as local:
        assert "several threads" in refused("prepare", raw, out, "--dask", local.scheduler_address)
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0", processes=False) as local:
        monkeypatch.setattr(clusters, "__version__", "0.0.0")
        monkeypatch.setattr(clusters, "_version", partial(str, "9.9"))
        assert "has metavoxel 9.9, this is 0.0.0" in refused("prepare", raw, out, "--dask", local.scheduler_address)
    assert "give one of them" in refused("prepare", raw, out, "--dask", "x", "--slurm")


# --- SLURM


def test_the_script_says_what_was_asked(tmp_path):
    with slurm_cluster("partition=short, account=lab,time=02:30:00,--mem=3G,qos=low,exclusive", tmp_path) as made:
        lines = made.job_script().splitlines()
    asked = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    assert {"-p short", "-A lab", "-t 02:30:00", "--mem=3G", "--qos=low", "--exclusive", "--cpus-per-task=1"} <= asked
    assert "--nthreads 1" in lines[-1] and "dask_worker" in lines[-1]
    with pytest.raises(MetavoxelError, match="write directives as in partition=short"):
        slurm_cluster("partition=", tmp_path)


def fake_sbatch(folder: Path, monkeypatch: pytest.MonkeyPatch, test: str = "exit 0") -> None:
    """Programs that do as SLURM's: a job runs in the background, its number is that of its process. The script is read at
    once: it is gone when sbatch has ended."""
    folder.mkdir()
    for name, text in {
        "sbatch": f'if [ "$1" = --test-only ]; then {test}; fi\nscript=$(<"$1")\n'
                  'bash -c "$script" >/dev/null 2>&1 &\necho "Submitted batch job $!"',
        "scancel": 'for job; do pkill -TERM -P "$job"; kill "$job"; done',
    }.items():
        program = folder / name
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_slurm_that_will_not(refused, tmp_path, monkeypatch):
    raw = cohort(tmp_path / "bids", 1)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no sbatch on PATH" in refused("prepare", raw, tmp_path / "out", "--slurm")
    monkeypatch.undo()
    fake_sbatch(tmp_path / "bin", monkeypatch, 'echo "error: invalid partition specified: x" >&2; exit 1')
    said = refused("prepare", raw, tmp_path / "out", "--slurm", "--sbatch", "partition=x")
    assert "invalid partition specified: x" in said and "correct --sbatch" in said


def touch(path: Path) -> None:
    path.touch()


@pytest.mark.slow
def test_jobs_are_submitted_and_ended(tmp_path, monkeypatch, capsys):
    fake_sbatch(tmp_path / "bin", monkeypatch)
    paths = [str(Path(mv.__file__).parents[1]), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    items = [tmp_path / f"{i}.done" for i in range(5)]
    assert sorted(over_slurm(touch, items, jobs=1, sbatch="", folder=tmp_path / "slurm")) == [(i, None) for i in range(5)]
    assert all(item.exists() for item in items)
    said = capsys.readouterr().err
    assert "SLURM jobs submitted: 1." in said and str(tmp_path / "slurm") in said
    assert f"{sys.executable} -m distributed.cli.dask_worker" in (tmp_path / "slurm/job.sh").read_text()


# --- whole cohorts


def dying(task, settings):
    """A scan whose worker is killed once, half-way."""
    first = task.out / PRIVATE / f"{task.participant}.begun"
    if task.participant == "sub-02" and not first.exists():
        first.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    prepare_scan(task, settings)
    first.unlink(missing_ok=True)


@pytest.mark.slow
def test_a_cohort_comes_out_as_from_processes(cluster, tmp_path, monkeypatch):
    raw = cohort(tmp_path / "bids", 4)
    bad = raw / "sub-03/anat/sub-03_T1w.nii.gz"
    bad.write_bytes(bad.read_bytes()[:3000])
    data, settings = mv.read_cohort(raw), Settings(spacing=4.0)
    calm = prepare_cohort(data, tmp_path / "calm", settings)
    monkeypatch.setattr("metavoxel.prepare.run._one", dying)
    over = prepare_cohort(data, tmp_path / "over", settings, share=partial(over_dask, address=cluster.scheduler_address))
    assert len(over.done) == len(calm.done) == 3 and len(over.failed) == 1

    def contents(out: str) -> dict[str, bytes]:
        files = (path for path in sorted((tmp_path / out).rglob("*")) if path.is_file() and path.name != "lock")
        return {path.relative_to(tmp_path / out).as_posix(): path.read_bytes() for path in files}

    assert contents("over") == contents("calm")
