"""Lists the packages of requirements.txt that Python lacks, as pip arguments with their versions.

    python local/missing_packages.py requirements.txt requirements-lock.txt

Prints one `name==version` a line: nothing if all are there in versions that requirements.txt
accepts. Runs before anything is installed, so it needs nothing but Python and pip.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement


def read_requirements(path: str) -> list[Requirement]:
    """Returns the lines of a requirements file that are neither empty nor comments."""
    text = re.sub(r"(?m)(^|\s)#.*$", "", Path(path).read_text())
    return [Requirement(line) for line in text.splitlines() if line.strip()]


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def is_satisfied(requirement: Requirement) -> bool:
    """Returns whether the package is installed in an accepted version."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return False
    return requirement.specifier.contains(version, prereleases=True)


def missing_packages(requirements: str, lock: str) -> list[str]:
    """Returns the lock's pins for all requirements that are not satisfied."""
    pins = {_key(pin.name): str(pin) for pin in read_requirements(lock)}
    missing = [r for r in read_requirements(requirements) if not is_satisfied(r)]
    return [pins.get(_key(r.name), str(r)) for r in missing]


if __name__ == "__main__":
    print("\n".join(missing_packages(*sys.argv[1:3])))
