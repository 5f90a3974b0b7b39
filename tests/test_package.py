"""What whoever imports avbook gets: names without waiting, names that editors know, and a wheel with all that is needed."""
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from avbook.lazy import stub_text
from avbook.manifest import ChecksumError
from avbook.pretrained import check_files, find_weights, model_card, pretrained_names

PAPERS = "saliency", "classification", "quality"
HEAVY = "IPython jupyter_core jupyter_client ipykernel ipywidgets nbformat papermill dask matplotlib accelerate".split()


def loaded_by(line):
    "Modules that a line of Python leaves loaded, in a fresh process."
    asked = [sys.executable, "-c", f"import sys; {line}; print(*sys.modules)"]
    return {*subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()}


def test_importing_the_papers_loads_nothing():
    found = loaded_by("import avbook.saliency, avbook.classification, avbook.quality")
    assert not found & {*HEAVY, "torch", "pandas", "av", "decord", "librosa"}


@pytest.mark.parametrize("line", [
    "from avbook.saliency import AVRSP, predict_video, predict_files",
    "from avbook.classification import build_model, tag, tag_files",
    "from avbook.quality import score_video, score_files",
    "import avbook.commands"], ids=lambda line: line.split()[1])
def test_asking_a_network_needs_nothing_that_draws_trains_or_runs_notebooks(line):
    assert not loaded_by(line) & {*HEAVY}


@pytest.mark.parametrize("paper", PAPERS)
def test_editors_see_every_name(root, paper):
    homes = __import__(f"avbook.{paper}", fromlist=["HOMES"]).HOMES
    stub = (root/"avbook"/paper/"__init__.pyi").read_text()
    assert stub == stub_text(f"avbook.{paper}", homes), f"run nbs/?_{paper}/?7_package.ipynb: the stub is old"


@pytest.mark.parametrize("paper", PAPERS)
def test_whole_modules_are_fetched_late_too(paper):
    module = __import__(f"avbook.{paper}", fromlist=["HOMES"])
    assert module.metrics.__name__ == f"avbook.{paper}.metrics"
    with pytest.raises(AttributeError, match="has no 'nonsense'; it has published"): module.nonsense  # noqa: B018


def test_weights_come_along_and_say_what_they_are(caplog):
    assert [*pretrained_names()] == sorted(PAPERS)
    for name in PAPERS:
        card = model_card(name)
        assert card.name == name and card.limits and card.licence == "Apache-2.0" and len(card.key) == 64
        assert all(score.value <= score.ceiling or score.what.startswith("RMSE") for score in card.metrics)
        path = find_weights("pretrained", "avrsp", name)
        assert check_files(path.parent) == card and card.warning in caplog.text


@pytest.mark.parametrize("damage", ["cut", "one bit", "missing"])
def test_damaged_weights_are_refused(tmp_path, damage):
    shutil.copytree(find_weights("pretrained", "vqa", "quality").parent, tmp_path/"quality")
    weights = tmp_path/"quality"/"weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    if damage == "missing": weights.unlink()
    else: weights.write_bytes(content if damage == "one bit" else content[:-100])
    with pytest.raises(ChecksumError, match="weights.safetensors"): check_files(tmp_path/"quality")


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory):
    "A wheel of this checkout, built without a network."
    place = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("avbook", "data_manifests"): shutil.copytree(root/name, place/"source"/name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"): shutil.copy(root/name, place/"source"/name)
    build = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", place]
    done = subprocess.run(build, cwd=place/"source", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(place.glob("*.whl"))


def test_the_wheel_holds_all_that_is_needed(root, wheel):
    with zipfile.ZipFile(wheel) as file:
        held, size = {*file.namelist()}, {each.filename: each.file_size for each in file.infolist()}
    of_checkout = {str(path.relative_to(root)) for path in (root/"avbook").rglob("*") if path.is_file()
                   and "__pycache__" not in path.parts}
    cards = {f"avbook/{path.relative_to(root)}" for path in (root/"data_manifests").rglob("*")
             if path.suffix in (".yaml", ".csv")}
    assert of_checkout | cards <= held, sorted((of_checkout | cards) - held)
    assert {"avbook/py.typed", "avbook/saliency/__init__.pyi", "avbook/weights/saliency/card.md"} <= held
    assert not [name for name in held if name.startswith(("nbs/", "tests/", "_artifacts/"))]
    assert sum(each for name, each in size.items() if "/weights/" in name) < 8e6


def test_from_the_wheel_alone(wheel, tmp_path):
    "Unpacked where there is no checkout: cards are found, and what needs the checkout says so in a sentence."
    with zipfile.ZipFile(wheel) as file: file.extractall(tmp_path/"site")
    def answer(code):
        asked = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path/'site')!r}); {code}"]
        return subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True)
    found = answer("import avbook; from avbook.manifest import card_names; from avbook.pretrained import pretrained_names;"
                   "print(avbook.__file__, len(card_names()), *pretrained_names())")
    place, n_cards, *names = found.stdout.split()
    assert Path(place).is_relative_to(tmp_path) and int(n_cards) > 10 and names == sorted(PAPERS), found.stderr
    for words in (["workbook"], ["run", "18_train"], ["site"]):
        said = answer(f"from avbook.commands import app; app({words!r})")
        assert said.returncode and len(said.stderr.strip().splitlines()[-1]) < 200, said.stderr
        assert "Traceback" not in said.stderr, said.stderr


@pytest.mark.parametrize("words", [["workbook"], ["site"], ["run", "18_baselines"]], ids=lambda words: words[0])
def test_without_what_runs_notebooks_a_sentence_says_what_to_install(root, words, tmp_path):
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in ("nbformat", "papermill", "nbclient", "sphinx"))
    asked = [sys.executable, "-c", f"import sys; {blocked}; from avbook.commands import app; app({words!r})"]
    said = subprocess.run(asked, cwd=root, capture_output=True, text=True,
                          env=dict(os.environ, AVBOOK_ARTIFACTS=str(tmp_path)))
    assert said.returncode == 1 and "install avbook[workbook]" in said.stderr and "Traceback" not in said.stderr, said.stderr
