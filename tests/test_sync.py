"""The package, the README and the clean state are what the notebooks give."""
import filecmp
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    "A copy of the checkout in which the notebooks were cleaned and exported once more."
    copy = tmp_path_factory.mktemp("sync")/"avbook"
    ignored = shutil.ignore_patterns(".venv", "_artifacts", ".git", "__pycache__", ".ipynb_checkpoints", "_proc")
    shutil.copytree(ROOT, copy, ignore=ignored)
    env = os.environ | {"PYTHONPATH": str(copy)}
    for command in ("nbdev_clean", "nbdev_export"): subprocess.run([BIN/command], cwd=copy, env=env, check=True)
    return copy


def changed(rebuilt, folder, pattern):
    "Files under `folder` that differ between the checkout and its rebuilt copy."
    names = {path.relative_to(base) for base in (ROOT, rebuilt) for path in (base/folder).rglob(pattern)
             if not {".ipynb_checkpoints", "__pycache__"} & set(path.parts)}
    return sorted(str(name) for name in names if not ((ROOT/name).exists() and (rebuilt/name).exists()
                  and filecmp.cmp(ROOT/name, rebuilt/name, shallow=False)))


def test_the_package_is_what_the_notebooks_export(rebuilt): assert changed(rebuilt, "avbook", "*.py") == []
def test_the_notebooks_are_clean(rebuilt): assert changed(rebuilt, "nbs", "*.ipynb") == []


def test_the_readme_is_the_index_notebook():
    command = [BIN/"jupyter", "nbconvert", "--to", "markdown", "--no-input", "--stdout", "--log-level", "ERROR"]
    made = subprocess.run([*command, ROOT/"nbs"/"index.ipynb"], capture_output=True, text=True, check=True).stdout
    made = re.sub(r"\]\((pictures|[0-9]_)", r"](nbs/\1", made)
    assert made.strip() == (ROOT/"README.md").read_text().strip(), "run `make readme`"


def test_every_pin_has_one_place():
    "Packages that are pinned outside the constraints list carry the same version there."
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)$", (ROOT/"constraints.txt").read_text(), re.M))
    assert len(pins) > 100
    for name in ("environment.yml", "pyproject.toml", "Makefile"):
        for package, version in re.findall(r"([\w-]+)==([\w.]+)", (ROOT/name).read_text()):
            assert pins[package] == version, f"{name}: {package}=={version}, constraints.txt has {pins[package]}"
