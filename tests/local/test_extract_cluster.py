"""Extraction by a Dask cluster: the same bytes for any number of workers, which may be killed; who
may speak to it; jobs of SLURM."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import socket
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from local import extract_cluster, extract_workers
from local.extract_cluster import make_slurm_cluster, prepare_dask, slurm_options, tls_security
from local.extract_features import check_dask
from tests.support.noise_corpus import extract, write_split
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.feature_info import FeatureInfo

distributed = pytest.importorskip("distributed")


class Cluster:
    """A scheduler with certificates in files, as a user's own, and its workers."""

    def __init__(self, folder: Path):
        from distributed import LocalCluster
        from distributed.security import Security

        made = Security.temporary()
        parts = {"ca": made.tls_ca_file, "cert": made.tls_client_cert, "key": made.tls_client_key}
        for name, content in parts.items():
            (folder / f"{name}.pem").write_text(content)
        prepare_dask()
        self.cluster = LocalCluster(
            n_workers=0, threads_per_worker=1, host="127.0.0.1", memory_limit=None,
            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
            security=made, silence_logs=50,
        )  # fmt: skip
        self.address = self.cluster.scheduler_address
        self.jobs = ("--dask", self.address, "--dask-tls", str(folder))

    def scale(self, workers: int) -> None:
        self.cluster.scale(workers)
        with self.client() as client:
            client.wait_for_workers(workers)

    def client(self) -> distributed.Client:
        security = self.cluster.security
        return distributed.Client(self.address, security=security, set_as_default=False)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("tls"))
    yield cluster
    cluster.cluster.close()


def contents(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "log"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_workers_nor_on_one_that_is_killed(data, xlsr, cluster):
    expected = contents(extract(data, xlsr, "--cut", "2", "--name", "none"))
    assert sum(name.endswith(".tar") for name in expected) == 3
    for workers in (1, 2, 3):
        cluster.scale(workers)
        folder = extract(data, xlsr, "--cut", "2", "--name", str(workers), jobs=cluster.jobs)
        assert contents(folder) == expected
    write_split(data, "train", [20000] * 60)
    killed = kill_when_there(cluster, data / "features" / "killed" / "records" / "train")
    folder = extract(data, xlsr, "--cut", "3", "--name", "killed", jobs=cluster.jobs)
    killed.join()
    assert contents(folder) == contents(extract(data, xlsr, "--cut", "3", "--name", "whole"))


def kill_when_there(cluster: Cluster, records: Path) -> threading.Thread:
    """Kills a worker when a shard is ready."""

    def kill() -> None:
        while not any(records.glob("*.json")):
            threading.Event().wait(0.01)
        os.kill(next(iter(cluster.cluster.workers.values())).pid, signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


def die_of_one(task: extract_workers.Task, content: bytes, topic: str, key: str) -> None:
    """In the place of the computation of a shard: one of them is more than a worker bears."""
    _, cuts = json.loads(zlib.decompress(content))
    if any(cut["id"] == "train-8" for cut in cuts):
        os.kill(os.getpid(), signal.SIGKILL)
    extract_workers.compute_shard(task, content, topic, key)


@pytest.mark.slow
def test_a_shard_that_kills_workers_is_named(data, xlsr, cluster, monkeypatch):
    cluster.scale(1)
    monkeypatch.setattr(cluster.cluster.scheduler, "allowed_failures", 0)
    monkeypatch.setattr(extract_workers, "compute_shard", die_of_one)
    with pytest.raises(
        UserError, match="train: the 2 utterances from train-8 to train-9: workers"
    ):
        extract(data, xlsr, jobs=cluster.jobs)


@pytest.mark.slow
def test_a_worker_that_lacks_a_shared_disk_or_has_another_checkpoint_says_so(data, xlsr, cluster):
    cluster.scale(1)
    folder = extract(data, xlsr)
    info = dataclasses.replace(FeatureInfo.load(folder), sha256="0" * 64)
    with cluster.client() as client:
        for place, reason in (
            (data / "nowhere", "does not see .*nowhere"),
            (folder, "is another"),
        ):
            task = extract_workers.Task(str(xlsr), info, place, "cpu", 30.0)
            future = client.submit(extract_workers.compute_shard, task, None, "", "")
            with pytest.raises(UserError, match=reason):
                future.result()


def test_a_local_cluster_listens_to_this_machine_alone_and_to_nobody_without_a_certificate():
    prepare_dask()
    before = ports(os.getpid())
    with extract_cluster.local_cluster(0) as (client, _):
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        opened = ports(os.getpid()) - before
        assert opened and {host for host, _ in opened} == {"127.0.0.1"}
        with pytest.raises(OSError):
            distributed.Client(address.replace("tls", "tcp"), timeout=2, set_as_default=False)
    assert ports(os.getpid()) <= before


def ports(pid: int) -> set[tuple[str, int]]:
    """Where a process listens."""
    psutil = pytest.importorskip("psutil")
    found = psutil.Process(pid).net_connections(kind="tcp")
    return {tuple(c.laddr) for c in found if c.status == psutil.CONN_LISTEN}


@pytest.mark.parametrize(
    "address, tls, insecure, reason",
    [
        ("tcp://a:8786", None, False, "Dask runs what it is sent.*--dask-tls.*--dask-insecure 1"),
        ("tcp://a:8786", Path("x"), False, "start the scheduler with TLS"),
        ("tls://a:8786", None, False, "give its certificates"),
        ("tls://a:8786", Path("x"), True, "give its certificates"),
        ("a:8786", None, True, "must be such as tls://HOST:PORT"),
        (None, Path("x"), False, "belong to --dask"),
    ],
)
def test_a_scheduler_without_tls_must_be_asked_for(address, tls, insecure, reason):
    with pytest.raises(UserError, match=reason):
        check_dask(address, tls, insecure)
    check_dask("tcp://a:8786", None, True)


def test_certificates_that_are_missing_or_wrong_are_named(tmp_path):
    with pytest.raises(UserError, match="ca.pem is missing"):
        tls_security(tmp_path)
    for name in ("ca", "cert", "key"):
        (tmp_path / f"{name}.pem").write_text("nothing")
    with pytest.raises(UserError, match="no certificates"):
        tls_security(tmp_path)
    (tmp_path / "names.yaml").write_text("ca: ca.pem\ncertificate: cert.pem\n")
    with pytest.raises(UserError, match="must name the files of ca, cert and key"):
        tls_security(tmp_path / "names.yaml")


def test_without_dask_one_line_says_what_to_install(data, xlsr, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(UserError, match="pip install distributed.*--single-process"):
        extract(data, xlsr, jobs=("--num-jobs", "1"))


def test_ways_to_compute_that_exclude_each_other_are_refused(data, xlsr):
    for jobs in (("--single-process", "--slurm", "x"), ("--single-process", "--num-jobs", "2")):
        with pytest.raises(UserError, match="--single-process"):
            extract(data, xlsr, jobs=jobs)


OPTIONS = """
queue: gpu
account: speech
cores: 2
memory: 16GB
walltime: "12:00:00"
job_extra_directives: ["--gres=gpu:1"]
job_script_prologue: [". /opt/modules.sh"]
"""


def test_the_job_script_of_slurm_has_what_the_options_say(tmp_path):
    """No SLURM runs here: this is the script that dask-jobqueue would submit."""
    pytest.importorskip("dask_jobqueue")
    prepare_dask()
    (tmp_path / "options.yaml").write_text(OPTIONS)
    cluster = make_slurm_cluster(slurm_options(tmp_path / "options.yaml"), tmp_path)
    try:
        lines = cluster.job_script().splitlines()
    finally:
        cluster.close()
    for line in ("-p gpu", "-A speech", "--cpus-per-task=2", "-t 12:00:00", "--gres=gpu:1"):
        assert f"#SBATCH {line}" in lines
    root = Path(__file__).resolve().parents[2]
    assert any(line.startswith(f"export PYTHONPATH={root} ") for line in lines)
    assert lines.index(". /opt/modules.sh") < len(lines) - 1
    command = shlex.split(lines[-1])
    options = dict(zip(command, command[1:]))
    assert options["--nthreads"] == "1" and options["--nworkers"] == "2"
    assert options["--protocol"] == "tls://" and "distributed.cli.dask_worker" in command
    assert socket.gethostname() not in options["--tls-key"]
    assert Path(options["--tls-key"]).parent == tmp_path


@pytest.mark.parametrize(
    "content, reason",
    [
        ("quue: gpu", "unknown key quue; did you mean queue?"),
        ("cores: 1", "memory is missing"),
        ("cores: one\nmemory: 4GB", "cores: must be a whole number, not 'one'"),
        ("cores: 4\nprocesses: 2\nmemory: 4GB", "a worker has one thread"),
        ("job_extra_directives: [1]", "must be a list of texts"),
        ("- cores", "must hold lines"),
        ("a: [", "cannot be read"),
    ],
)
def test_wrong_options_of_slurm_are_named(tmp_path, content, reason):
    (tmp_path / "options.yaml").write_text(content)
    with pytest.raises(UserError, match=reason):
        slurm_options(tmp_path / "options.yaml")
