"""Work shared out to a Dask cluster, one that runs or one of SLURM jobs: workers may come late, leave and die.

The extra `cluster` brings Dask. Workers see the same files as we do, and have this version of metavoxel.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from metavoxel.errors import MetavoxelError
from metavoxel.files import atomic_write, make_folder
from metavoxel.prepare.workers import attempt
from metavoxel.progress import say
from metavoxel.version import __version__

WAIT_S = 30
START_S = 600  # within which a SLURM job must find us: on a busy node, from a slow disk, Python takes minutes to start
MEMORY = "4GB"  # of a SLURM job; a scan of 1 mm takes less than half
DIED = "its workers died one after another, probably for want of memory; give them more, or look at this scan alone"
SBATCH = {"partition": "queue", "account": "account", "time": "walltime", "mem": "memory"}
"""Directives of sbatch that dask-jobqueue has a word of its own for."""


def over_dask(work: Callable[[Any], None], items: Sequence[Any], *, address: str) -> Iterator[tuple[int, str | None]]:
    """`workers.share_out`, on the workers of the scheduler at `address`.

    Raises MetavoxelError when nothing answers there, there is no worker, or the workers are not fit for this.
    """
    distributed = _distributed()
    try:
        client = distributed.Client(address, timeout=WAIT_S)
    except (OSError, ValueError) as error:
        raise MetavoxelError(f"--dask {address}: no scheduler answers there; start one with: dask scheduler") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=WAIT_S)
        except TimeoutError as error:
            fix = f"start some with: dask worker {address} --nthreads 1"
            raise MetavoxelError(f"--dask {address}: the scheduler has no workers; {fix}") from error
        _check_fit(client, address)
        yield from _over(client, work, items)


def over_slurm(
    work: Callable[[Any], None], items: Sequence[Any], *, jobs: int, sbatch: str, folder: Path
) -> Iterator[tuple[int, str | None]]:
    """`workers.share_out`, on SLURM jobs of one core each, ended with the work. `folder`: for their script and logs.

    sbatch: directives as in "partition=short,time=04:00:00,mem=4G". Raises MetavoxelError when sbatch is not there, or
    will not take the script.
    """
    distributed = _distributed()
    with slurm_cluster(sbatch, folder) as cluster:
        _check_script(folder / "job.sh", cluster.job_script())
        count = min(jobs, len(items))
        cluster.scale(jobs=count)
        say(f"SLURM jobs submitted: {count}. Nothing happens before one starts (squeue --me); their logs: {folder}")
        with distributed.Client(cluster) as client:
            yield from _over(client, work, items)


def slurm_cluster(sbatch: str, folder: Path) -> Any:
    """dask-jobqueue's cluster, no job of which is submitted yet."""
    _distributed()
    from dask_jobqueue import SLURMCluster

    own: dict[str, Any] = {"memory": MEMORY, "log_directory": str(make_folder(folder))}
    others = []
    for directive in filter(None, (part.strip() for part in sbatch.split(","))):
        name, equals, value = directive.lstrip("-").partition("=")
        if not name or (equals and not value):
            raise MetavoxelError(f"--sbatch {sbatch}: write directives as in partition=short,time=04:00:00,mem=4G")
        if name in SBATCH:
            own[SBATCH[name]] = value
        else:
            others.append(f"--{name}{equals}{value}")
    return SLURMCluster(
        cores=1, processes=1, job_name="metavoxel", job_extra_directives=others, death_timeout=START_S,
        scheduler_options={"dashboard_address": ":0"}, **own,
    )  # fmt: skip


def _over(client: Any, work: Callable[[Any], None], items: Sequence[Any]) -> Iterator[tuple[int, str | None]]:
    """(position, None or the reason of its failure) in the order of ending. Dask gives a dead worker's items to others, and
    blames its death on all that it had: those that it gives up are tried once more at the end, each alone."""
    suspects = []
    for position, reason in _flow(client, work, enumerate(items)):
        if reason == DIED:
            suspects.append(position)
        else:
            yield position, reason
    for position in suspects:
        yield from _flow(client, work, [(position, items[position])])


def _flow(
    client: Any, work: Callable[[Any], None], numbered: Iterable[tuple[int, Any]]
) -> Iterator[tuple[int, str | None]]:
    """The same, with no more items on their way than workers: memory is the same for any cohort."""
    left = iter(numbered)
    flying: dict[Any, int] = {}
    ended = _distributed().as_completed(loop=client.loop)

    def fill() -> None:
        free = max(1, len(client.nthreads())) - len(flying)
        for position, item in islice(left, max(0, free)):
            future = client.submit(attempt, work, item, pure=False)
            flying[future] = position
            ended.add(future)

    try:
        fill()
        for future in ended:
            position, reason = flying.pop(future), _reason(future)
            fill()
            yield position, reason
    finally:
        client.cancel(list(flying))


def _reason(future: Any) -> str | None:
    if future.status == "finished":
        return future.result()
    if future.status != "error":
        raise MetavoxelError("the Dask scheduler is gone; start again: finished scans are kept")
    error = future.exception()
    if isinstance(error, _distributed().KilledWorker):
        return DIED
    return f"{type(error).__name__}: {error}".replace("\n", " ")


def _check_fit(client: Any, address: str) -> None:
    """Sums depend on the number of threads, and results on the version: refuse workers that would mix either."""
    if crowded := [worker for worker, threads in client.nthreads().items() if threads > 1]:
        fix = "start workers with --nthreads 1 (--nworkers N for N of them)"
        raise MetavoxelError(f"--dask {address}: {len(crowded)} workers have several threads, e.g. {crowded[0]}; {fix}")
    try:
        versions = client.run(_version)
    except ModuleNotFoundError as error:
        raise MetavoxelError(f"--dask {address}: the workers have no metavoxel ({error}); install it there") from error
    for worker, version in versions.items():
        if version != __version__:
            fix = f"this is {__version__}; install the same"
            raise MetavoxelError(f"--dask {address}: {worker} has metavoxel {version}, {fix}")


def _version() -> str:
    return __version__


def _check_script(path: Path, script: str) -> None:
    """Keep the script of the jobs, and let sbatch look at it: Dask would wait for ever for jobs that it refuses."""
    if shutil.which("sbatch") is None:
        raise MetavoxelError("--slurm: there is no sbatch on PATH; run this where SLURM jobs are submitted, or use --dask")
    with atomic_write(path) as file:
        file.write(script)
    tried = subprocess.run(["sbatch", "--test-only", str(path)], capture_output=True, text=True, check=False)
    if tried.returncode:
        last = (tried.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise MetavoxelError(f"--slurm: sbatch refuses {path} ({last}); correct --sbatch")


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise MetavoxelError("--dask and --slurm need Dask; pip install 'metavoxel[cluster]'") from error
    return distributed
