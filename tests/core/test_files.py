"""Files are written whole or not at all, and one process at a time holds a lock."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys

import pytest

from local import plot_trainings
from local.demo import make_corpus as make_demo_corpus
from local.extract_shard import Shard, extract_shard
from xlsr_transducer.align import write_alignments
from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.files import locked, replacing, write_bytes, write_text
from xlsr_transducer.core.logs import LogFile, save_settings
from xlsr_transducer.model.feature_info import FeatureInfo
from xlsr_transducer.recognition.scoring import write_results
from xlsr_transducer.training.metrics import append_history, plot_history


def test_a_file_gets_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as [temporary]:
        temporary.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"
    assert os.listdir(path.parent) == ["a.txt"]


def test_after_an_error_the_old_file_is_still_there(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as [temporary]:
        temporary.write_text("new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(UserError, match=r"a\.txt: could not be written \(No space left"):
        with replacing(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_folder_that_cannot_be_made_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/a\.txt: could not be written"):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_an_input_that_is_missing_is_not_said_to_be_unwritable(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a.txt"):
        open(tmp_path / "input.txt")


def test_a_lock_is_held_by_one_process_at_a_time(tmp_path):
    path = tmp_path / ".lock"
    program = (
        "import sys; from pathlib import Path; from xlsr_transducer.core.files import locked\n"
        "with locked(Path(sys.argv[1]), 'in use'): print('got it')"
    )

    def try_elsewhere() -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", program, str(path)]
        return subprocess.run(command, capture_output=True, text=True)

    with locked(path, "in use"):
        assert "UserError: in use" in try_elsewhere().stderr
    assert try_elsewhere().stdout == "got it\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_errors_of_disks_are_one_line_and_status_2(number, capsys):
    def main(argv):
        raise OSError(number, os.strerror(number), "exp/log.txt")

    with pytest.raises(SystemExit) as caught:
        run_command(main, [])
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: {os.strerror(number)}: exp/log.txt\n"


def test_other_errors_of_the_system_keep_their_traceback():
    def main(argv):
        raise OSError(errno.ECONNREFUSED, "refused")

    with pytest.raises(OSError, match="refused"):
        run_command(main, [])


def test_a_log_file_on_a_full_disk_is_given_up_with_one_warning(capfd, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [logging.StreamHandler(), LogFile("/dev/full")])
    for number in range(3):
        logging.warning(f"line {number}")
    printed = capfd.readouterr().err
    assert [line for line in printed.splitlines() if line.startswith("line")] == [
        "line 0", "line 1", "line 2",
    ]  # fmt: skip
    assert printed.count("/dev/full: cannot be written any more (No space left") == 1
    assert "Logging error" not in printed and "Traceback" not in printed


WRITERS = {
    "alignments": lambda f: write_alignments(f, "test", []),
    "demo corpus": lambda f: make_demo_corpus.main([f"--out-dir={f}", "--num-train=1"]),
    "features.json": lambda f: FeatureInfo("x", "0", "frontend", "cumulative", 512).save(f),
    "history": lambda f: append_history(f / "history.json", {"epoch": 1}),
    "curves": lambda f: plot_history([], f / "curves.png"),
    "picture of trainings": lambda f: plot_trainings.plot({}, f / "x.png"),
    "results": lambda f: write_results(f, "test", "x", []),
    "settings": lambda f: save_settings(f, {}),
    "shard": lambda f: extract_shard(Shard("train", ()), f, list, 10.0, print),
    "bytes": lambda f: write_bytes(f / "x", b""),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_names_what_it_cannot_write(name, tmp_path):
    (tmp_path / "file").write_text("")  # where a folder should be: so that root fails, too
    with pytest.raises(UserError, match=r"/file/.*: could not be written \(Not a directory\)"):
        WRITERS[name](tmp_path / "file" / "folder")
