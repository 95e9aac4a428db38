"""Set-up of the environment: what local/setup_env.sh does on machines in different states.

A tiny wheel stands for the real packages, so that nothing is downloaded.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="the default environment's")


def make_wheel(folder: Path, version: str) -> None:
    info = f"tiny-{version}.dist-info"
    files = {
        "tiny.py": f"VERSION = '{version}'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"tiny-{version}-py3-none-any.whl", "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)


def make_program(path: Path, content: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{content}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys._base_executable, "-m", "venv", str(folder)], check=True)
    return folder


def make_recipe(folder: Path, template: Path, version: str = "1.0") -> Path:
    (folder / "local").mkdir(parents=True)
    for name in ("setup_env.sh", "missing_packages.py"):
        shutil.copy(ROOT / "local" / name, folder / "local" / name)
    (folder / "requirements.txt").write_text("tiny>=1.0  # the only one\n")
    (folder / "requirements-lock.txt").write_text(f"tiny=={version}\n")
    make_wheel(folder / "wheels", version)
    # Copies an environment instead of making each anew, which takes seconds.
    copy = f'if [ "$1 $2" = "-m venv" ]; then cp -R "{template}/." "$3"; exit; fi'
    make_program(folder / "bin/python3", f'{copy}\nexec "{sys._base_executable}" "$@"')
    return folder


def set_up(recipe: Path, then: str = "true", **environment: str) -> subprocess.CompletedProcess:
    """Sources setup_env.sh as demo.sh does, from another folder."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "VIRTUAL", "CONDA"))}
    path = f"{recipe}/bin:{os.defpath}:/usr/bin"
    offline = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    links = {"PIP_FIND_LINKS": (recipe / "wheels").as_uri()}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'. "{recipe}/local/setup_env.sh"; {then}'],
        env={**keep, **offline, **links, "PATH": path, **environment},
        capture_output=True, text=True, cwd="/",
    )  # fmt: skip


WHICH = "python -c 'import sys, tiny; print(sys.prefix, tiny.VERSION)'"


def test_first_run_installs_second_does_not_and_a_changed_lock_does(tmp_path, template):
    recipe = make_recipe(tmp_path / "with space", template)
    # The newer Python has another name.
    (recipe / "bin/python3").rename(recipe / "bin/python3.13")
    make_program(recipe / "bin/python3", "echo 3.9")
    first = set_up(recipe, WHICH)
    assert first.stdout.split()[-1:] == ["1.0"], first.stderr
    assert str(recipe / ".venv") in first.stdout and "installing 1 packages" in first.stderr
    shutil.rmtree(recipe / "wheels")
    second = set_up(recipe, WHICH)
    assert (second.returncode, second.stdout, second.stderr) == (0, first.stdout, "")
    make_wheel(recipe / "wheels", "1.1")
    (recipe / "requirements-lock.txt").write_text("tiny==1.1\n")
    third = set_up(recipe, WHICH)
    assert third.stdout.split()[-1:] == ["1.1"], third.stderr


def test_interrupted_installation_is_made_good_by_the_next_run(tmp_path, template):
    recipe = make_recipe(tmp_path / "recipe", template)
    # A pip that is killed half-way, with the package's files in part and its metadata there.
    half = "*/site-packages/tiny.py"
    (recipe / "wheels/hook").mkdir()
    (recipe / "wheels/hook/sitecustomize.py").write_text(
        "import atexit, os, pathlib, signal, sys\n"
        "if 'install' in sys.argv:\n"
        "    def kill():\n"
        "        for path in pathlib.Path(sys.prefix, 'lib').glob('*/site-packages/tiny.py'):\n"
        "            path.unlink()\n"
        "            os.kill(os.getppid(), signal.SIGKILL)\n"
        "    atexit.register(kill)\n"
    )
    killed = set_up(recipe, PYTHONPATH=str(recipe / "wheels/hook"))
    assert killed.returncode == -9
    assert not list((recipe / ".venv/lib").glob(half))
    again = set_up(recipe, WHICH)
    assert again.stdout.split()[-1:] == ["1.0"], again.stderr
    assert not (recipe / ".venv/unfinished").exists()


def test_failed_download_is_one_plain_line_and_status_2(tmp_path, template):
    recipe = make_recipe(tmp_path / "recipe", template)
    unreachable = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0"}
    shutil.rmtree(recipe / "wheels")
    failed = set_up(recipe, "echo went on", PIP_FIND_LINKS="", **unreachable)
    errors = [line for line in failed.stderr.splitlines() if "(setup)" not in line]
    assert failed.returncode == 2 and failed.stdout == "" and len(errors) == 1
    assert errors[0].startswith("error: packages could not be installed: a download failed")
    assert "setup.log" in errors[0]


@pytest.mark.parametrize("found", ["3.9", ""])
def test_too_old_or_no_python_is_said_and_nothing_is_made(tmp_path, template, found):
    recipe = make_recipe(tmp_path / "recipe", template)
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        make_program(recipe / "bin" / name, f"echo {found}" if found else "exit 127")
    failed = set_up(recipe, "echo went on")
    assert failed.returncode == 2 and failed.stdout == ""
    assert "Python 3.11 or newer is needed, and" in failed.stderr
    assert ("only 3.9 was found" if found else "none was found") in failed.stderr
    assert not (recipe / ".venv").exists()


def test_active_environment_gets_what_it_lacks_and_keeps_what_it_has(tmp_path, template):
    recipe = make_recipe(tmp_path / "recipe", template)
    mine = tmp_path / "mine"
    shutil.copytree(template, mine, symlinks=True)
    active = {"VIRTUAL_ENV": str(mine), "PATH": f"{mine}/bin:{os.defpath}:/usr/bin"}
    first = set_up(recipe, WHICH, **active)
    assert first.stdout.split() == [str(mine), "1.0"], first.stderr
    assert f"installing into the active environment {mine}: tiny==1.0" in first.stderr
    make_wheel(recipe / "wheels", "2.0")
    (recipe / "requirements-lock.txt").write_text("tiny==2.0\n")
    second = set_up(recipe, WHICH, **active)
    assert (second.stdout, second.stderr) == (first.stdout, "")
    assert not (recipe / ".venv").exists()


def test_lock_satisfies_the_ranges_of_requirements_txt():
    sys.path.insert(0, str(ROOT / "local"))
    try:
        from missing_packages import read_requirements
    finally:
        sys.path.pop(0)
    pins = {p.name.lower().replace("_", "-"): p for p in read_requirements(
        str(ROOT / "requirements-lock.txt"))}  # fmt: skip
    for requirement in read_requirements(str(ROOT / "requirements.txt")):
        pin = pins[requirement.name.lower().replace("_", "-")]
        [specifier] = pin.specifier
        assert specifier.operator == "==" and requirement.specifier.contains(specifier.version)


def test_without_python_3_10_the_k2_tests_are_said_to_be_not_run(tmp_path, template):
    recipe = make_recipe(tmp_path / "recipe", template)
    shutil.copy(ROOT / "test.sh", recipe / "test.sh")
    make_program(recipe / "bin/python3.10", "exit 127")
    path = f"{recipe}/bin:{os.defpath}:/usr/bin"
    result = subprocess.run(
        ["bash", str(recipe / "test.sh"), "--k2"], capture_output=True, text=True,
        env={"PATH": path, "HOME": str(tmp_path), "PYENV_ROOT": str(tmp_path)},
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert "real k2 were not run" in result.stdout
    assert not (recipe / ".venv-k2").exists()


@pytest.mark.parametrize("fails", ["", "--k2", "default"])
def test_continuous_integration_runs_both_environments_and_fails_with_either(tmp_path, fails):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    make_program(
        tmp_path / "test.sh", f'which="${{1:-default}}"; echo $which; [ $which != "{fails}" ]'
    )
    result = subprocess.run([tmp_path / ".ci/run"], capture_output=True, text=True, cwd="/")
    assert (result.stdout.split(), result.returncode) == (["default", "--k2"], int(bool(fails)))
