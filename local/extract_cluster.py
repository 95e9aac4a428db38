"""The clusters of Dask that compute shards: on this machine, under SLURM, or one that is there.

Whoever can speak to a scheduler or worker of Dask can run programs as its user. So every cluster
speaks TLS with certificates on both sides; one that does not must be asked for.

Each function here is a context, which gives a client, and what to call now and then so that lost
workers come back.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from xlsr_transducer.core.errors import UserError, interrupts_held_back
from xlsr_transducer.core.options import did_you_mean

if TYPE_CHECKING:
    from distributed import Client
    from distributed.security import Security


Connected = Iterator[tuple["Client", Callable[[], None]]]
INSTALL = "pip install distributed cryptography"
_TLS_FILES = {"ca": "ca.pem", "cert": "cert.pem", "key": "key.pem"}
_CONFIG = {
    "distributed.scheduler.http.routes": [],  # no pages: they could be seen by others
    "distributed.worker.http.routes": [],
    "distributed.scheduler.allowed-failures": 2,  # so many workers may die of a shard
    "distributed.admin.low-level-log-length": 100,  # messages in memory, each with a shard
}
_NO_PAGES = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
_KINDS = {str: "a text", int: "a whole number", list: "a list of texts"}
# Keys of SLURMCluster that make sense here, and what they must be.
_SLURM_KEYS: dict[str, type] = {
    "queue": str,
    "account": str,
    "cores": int,
    "memory": str,
    "walltime": str,
    "processes": int,
    "interface": str,
    "job_cpu": int,
    "job_mem": str,
    "job_extra_directives": list,
    "job_script_prologue": list,
    "job_directives_skip": list,
    "worker_extra_args": list,
    "local_directory": str,
    "log_directory": str,
    "shared_temp_directory": str,
    "death_timeout": int,
    "python": str,
    "job_name": str,
}


def prepare_dask() -> None:
    """Configures Dask for this process. Raises UserError if it is missing."""
    try:
        import cryptography  # noqa: F401  makes the certificates
        import dask
        import distributed  # noqa: F401
    except ImportError as e:
        raise UserError(
            f"{e.name or e} is missing, which workers need: {INSTALL}, or give --single-process"
        ) from e
    dask.config.set(_CONFIG)
    for name in ("asyncio", *logging.root.manager.loggerDict):
        if name.split(".")[0] in ("distributed", "tornado", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # it is told in our words


@contextlib.contextmanager
def local_cluster(num_jobs: int) -> Connected:
    """Processes of one thread on this machine, which no other user can speak to."""
    from distributed import LocalCluster
    from distributed.security import Security

    # The threads that start here, and the processes that these start, never get Ctrl-C: this
    # process ends them. The tracker comes first, as its start lets Ctrl-C into its thread.
    resource_tracker.ensure_running()
    with interrupts_held_back():
        cluster = LocalCluster(
            n_workers=0,
            threads_per_worker=1,
            host="127.0.0.1",
            security=Security.temporary(),
            memory_limit=None,
            silence_logs=logging.CRITICAL,
            scheduler_kwargs=_NO_PAGES,
        )
    with _client_of(cluster, _kill_workers) as client:
        cluster.scale(num_jobs)
        yield client, lambda: cluster.scale(num_jobs)


@contextlib.contextmanager
def slurm_cluster(options: dict[str, Any], num_jobs: int, folder: Path) -> Connected:
    """Workers in jobs of SLURM, which this process submits, and cancels at the end.

    Args:
      options: of ``slurm_options``.
      num_jobs: workers.
      folder: that all machines share, for the certificates and the logs of the jobs.
    """
    with interrupts_held_back():
        cluster = make_slurm_cluster(options, folder)
    with _client_of(cluster, lambda cluster: None) as client:
        cluster.scale(num_jobs)
        logging.info("jobs for %d workers are submitted to SLURM", num_jobs)
        yield client, lambda: cluster.scale(num_jobs)


def make_slurm_cluster(settings: dict[str, Any], folder: Path) -> Any:
    """Returns dask-jobqueue's ``SLURMCluster``, without jobs yet.

    Raises:
      UserError: dask-jobqueue is missing, or takes the settings for wrong.
    """
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as e:
        raise UserError("--slurm needs dask-jobqueue: pip install dask-jobqueue") from e
    from distributed.security import Security

    root = Path(__file__).resolve().parents[1]
    defaults = {
        "processes": settings["cores"],
        "shared_temp_directory": str(folder),
        "log_directory": str(folder / "slurm"),
        "job_name": "xlsr-features",
    }
    prologue = [
        f"export PYTHONPATH={shlex.quote(str(root))} OMP_NUM_THREADS=1",
        "export DASK_DISTRIBUTED__WORKER__HTTP__ROUTES='[]'",
    ]
    settings = {**defaults, **settings}
    settings["job_script_prologue"] = prologue + settings.get("job_script_prologue", [])
    try:
        return SLURMCluster(
            **settings,
            security=Security.temporary(),
            silence_logs=logging.CRITICAL,
            scheduler_options=_NO_PAGES,
        )
    except (ValueError, OSError) as e:
        raise UserError(f"--slurm: dask-jobqueue refuses the options ({e})") from e


def slurm_options(path: Path) -> dict[str, Any]:
    """Reads options of ``SLURMCluster`` from a YAML file, under their names there.

    Raises:
      UserError: an unknown key, a wrong value, or one that is missing.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as e:
        raise UserError(f"--slurm {path}: cannot be read ({e})") from e
    if not isinstance(values, dict):
        raise UserError(f"--slurm {path}: must hold lines such as 'cores: 1'")
    for key, value in values.items():
        if key not in _SLURM_KEYS:
            meant = did_you_mean(str(key), _SLURM_KEYS)
            raise UserError(f"--slurm {path}: unknown key {key}{meant}")
        kind = _SLURM_KEYS[key]
        wrong = not isinstance(value, kind) or isinstance(value, bool)
        if wrong or (kind is list and not all(isinstance(item, str) for item in value)):
            raise UserError(f"--slurm {path}: {key}: must be {_KINDS[kind]}, not {value!r}")
    for key in ("cores", "memory"):
        if key not in values:
            raise UserError(f"--slurm {path}: {key} is missing")
    if values["cores"] < 1 or values.get("processes", values["cores"]) != values["cores"]:
        raise UserError(
            f"--slurm {path}: cores: must be at least 1, and processes the same, as a worker has "
            "one thread"
        )
    return values


@contextlib.contextmanager
def remote_cluster(address: str, security: Security | None) -> Connected:
    """A cluster that is there already, and stays.

    Raises:
      UserError: it cannot be reached.
    """
    with contextlib.ExitStack() as stack:
        yield _connect(stack, address, security), lambda: None


def tls_security(path: Path) -> Security:
    """Reads certificates: of a folder with ca.pem, cert.pem and key.pem, or of a YAML file that
    names them as ca, cert and key.

    Raises:
      UserError: one is missing or no certificate.
    """
    from distributed.security import Security

    names = _TLS_FILES
    if path.is_file():
        try:
            names = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (ValueError, yaml.YAMLError) as e:
            raise UserError(f"--dask-tls {path}: cannot be read ({e})") from e
        if not isinstance(names, dict) or set(names) != set(_TLS_FILES):
            raise UserError(f"--dask-tls {path}: must name the files of ca, cert and key, no more")
    folder = path.parent if path.is_file() else path
    files = {key: folder / str(name) for key, name in names.items()}
    for file in files.values():
        if not file.is_file():
            raise UserError(f"--dask-tls {path}: {file} is missing")
    security = Security(
        require_encryption=True,
        tls_ca_file=str(files["ca"]),
        tls_client_cert=str(files["cert"]),
        tls_client_key=str(files["key"]),
    )
    try:
        security.get_connection_args("client")
    except OSError as e:  # of ssl
        raise UserError(f"--dask-tls {path}: no certificates and key that fit ({e})") from e
    return security


@contextlib.contextmanager
def _client_of(cluster: Any, stop: Callable[[Any], None]) -> Iterator[Client]:
    """A client of a cluster of our own, which ends with the block.

    Args:
      stop: ends workers at once, after an error.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(_close, cluster)
        try:
            yield _connect(stack, cluster, cluster.security)
        except BaseException:
            stop(cluster)
            raise


def _connect(stack: contextlib.ExitStack, address: Any, security: Security | None) -> Client:
    from distributed import Client

    try:
        client = Client(address, security=security, set_as_default=False)
    except (OSError, ValueError, TypeError) as e:
        reason = str(e).splitlines()[0]
        raise UserError(f"--dask {address}: the scheduler cannot be reached ({reason})") from e
    stack.callback(client.close)
    return client


def _close(cluster: Any) -> None:
    with interrupts_held_back(), contextlib.suppress(TimeoutError):
        cluster.close()


def _kill_workers(cluster: Any) -> None:
    """Ends the workers of a local cluster in the middle of their shards."""
    with interrupts_held_back():
        for nanny in list(cluster.workers.values()):
            nanny.auto_restart = False
            if nanny.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(nanny.pid, signal.SIGKILL)
