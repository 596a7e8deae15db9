"""Every package and data file of the tree is listed in pyproject.toml, and nothing that is not there."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="tomllib came with Python 3.11")

ROOT = Path(__file__).resolve().parents[1]
TOPS = ("fvlight", "zoo", "conf")


@pytest.fixture(scope="module")
def setuptools_table() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return table["tool"]["setuptools"]


def folders() -> Iterator[Path]:
    """Every folder that ships, caches aside."""
    for top in TOPS:
        yield ROOT / top
        for path in sorted((ROOT / top).rglob("*")):
            if path.is_dir() and "__pycache__" not in path.parts:
                yield path


def package_name(folder: Path) -> str:
    """The name that a folder of the tree is imported by: `zoo/` is `fvlight.zoo`."""
    parts = folder.relative_to(ROOT).parts
    return ".".join(parts if parts[0] == "fvlight" else ("fvlight", *parts))


def package_folder(name: str, package_dir: dict[str, str]) -> Path:
    """Where setuptools looks for a package: the longest listed prefix, then the rest of the name."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        prefix = ".".join(parts[:cut])
        if prefix in package_dir:
            return ROOT.joinpath(package_dir[prefix], *parts[cut:])
    return ROOT.joinpath(*parts)


def test_every_folder_with_python_files_is_a_listed_package(setuptools_table: dict[str, Any]) -> None:
    found = {package_name(folder) for folder in folders() if any(folder.glob("*.py"))}
    assert found - set(setuptools_table["packages"]) == set()


def test_every_listed_package_has_its_folder_and_init(setuptools_table: dict[str, Any]) -> None:
    missing = [
        name
        for name in setuptools_table["packages"]
        if not (package_folder(name, setuptools_table["package-dir"]) / "__init__.py").is_file()
    ]
    assert missing == []


def test_every_data_file_is_package_data(setuptools_table: dict[str, Any]) -> None:
    covered: set[Path] = set()
    for name, patterns in setuptools_table["package-data"].items():
        base = package_folder(name, setuptools_table["package-dir"])
        for pattern in patterns:
            covered |= {base / hit for hit in glob.glob(pattern, root_dir=base, recursive=True)}
    data = {
        path
        for folder in folders()
        for path in folder.iterdir()
        if path.is_file() and path.suffix not in (".py", ".pyc", ".md") and not path.name.startswith(".")
    }
    assert data - covered == set()


def test_no_config_has_an_extension_that_hydra_does_not_read() -> None:
    # Hydra reads `.yaml`; a `.yml` would be missing from a group with no word of why.
    assert sorted((ROOT / "conf").rglob("*.yml")) == []


def test_the_version_is_the_packages() -> None:
    import fvlight

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert fvlight.__version__ == project["version"]
