"""The papers' three commands, side by side: one bad file among good ones, Ctrl-C, once more, and what is left on the disk."""
import json
import os
import re
from pathlib import Path

import pytest
from avbook.commands import app
from avbook.scenes import SceneSpec, render_frames
from avbook.video import write_video
from typer.testing import CliRunner

# the command; where its answers go; the function that answers for one file; what is there when all is done
COMMANDS = {
    "saliency predict": ("maps", "avbook.saliency.predict.stream_video", {"0.mp4.saliency", "2.mp4.saliency"}),
    "classification tag": ("tags.json", "avbook.classification.batch.iter_tags", {"tags.json", "tags.json.journal"}),
    "quality score": ("scores.csv", "avbook.quality.batch.score_video", {"scores.csv", "scores.csv.journal"}),
}
each_command = pytest.mark.parametrize("command", COMMANDS)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    "Two films with a file between them that is none."
    folder = tmp_path_factory.mktemp("films")
    for seed in (0, 2): write_video(folder/f"{seed}.mp4", render_frames(SceneSpec(seed=seed, n_frames=20)), 25)
    (folder/"1.mp4").write_text("not a film")
    return folder


def ask(command, *arguments):
    answer = CliRunner().invoke(app, [*command.split(), *map(str, arguments)])
    assert answer.exception is None or isinstance(answer.exception, SystemExit), answer.exception
    return answer


def left_in(folder): return {path.name for path in folder.iterdir()}


def function_at(place):
    "A function by its full name, and the module that it is in."
    module, _, name = place.rpartition(".")
    return __import__(module, fromlist=[name]), name


@each_command
def test_a_bad_file_among_good_ones(command, films, tmp_path):
    out, _, whole = COMMANDS[command]
    into = tmp_path/"new"/out
    answer = ask(command, films, "--out", into)
    assert answer.exit_code == 1 and str(films/"1.mp4") in answer.output and "1 of" in answer.output
    assert "trained on" in answer.output or "rendered clips" in answer.output   # the weights say what they are
    place = into if into.is_dir() else into.parent
    assert left_in(place) == whole


@each_command
def test_stopped_midway_nothing_looks_whole_and_the_same_again_goes_on(command, films, tmp_path, monkeypatch):
    out, place, whole = COMMANDS[command]
    (module, name), asked = function_at(place), []
    truly = getattr(module, name)
    def stopped(path, *given, **options):
        asked.append(Path(path).name)
        if asked.count("2.mp4") == 1 and asked[-1] == "2.mp4": raise KeyboardInterrupt
        return truly(path, *given, **options)
    monkeypatch.setattr(module, name, stopped)
    into = tmp_path/"new"/out
    answer = ask(command, films, "--out", into)
    assert answer.exit_code == 130 and "the same command goes on" in answer.output and "Traceback" not in answer.output
    place = into if command.startswith("saliency") else into.parent
    assert left_in(place) == ({"0.mp4.saliency"} if command.startswith("saliency") else {f"{out}.journal"})
    assert ask(command, films, "--out", into).exit_code == 1 and left_in(place) == whole
    assert asked.count("0.mp4") == 1 and asked.count("2.mp4") == 2


@each_command
def test_what_a_killed_call_left_is_swept_up(command, films, tmp_path):
    out, _, whole = COMMANDS[command]
    into = tmp_path/"new"/out
    place = into if command.startswith("saliency") else into.parent
    place.mkdir(parents=True)
    machine, gone = re.sub(r"\W", "", os.uname().nodename)[:32], 2**22 + 1   # no process has such a number
    target = "0.mp4.saliency" if command.startswith("saliency") else out
    (place/f".{machine}-{gone}-0123abcd.part.{target}").mkdir()
    ask(command, films, "--out", into)
    assert left_in(place) == whole


@each_command
def test_mistakes_are_a_sentence_and_nothing_runs(command, films, tmp_path):
    for mistake, said in [((tmp_path/"none",), "none: "), ((films, "--run", "3f2a"), "3f2a is no file of weights"),
                          ((films, "--run", tmp_path/"none.safetensors"), "there is no such file"),
                          ((films, "--run", tmp_path), "holds 0 files of weights"),
                          ((films, "--format", "xml"), "xml is no format"), ((films, "--nonsense"), "No such option")]:
        answer = ask(command, *mistake, "--out", tmp_path/"out")
        assert answer.exit_code == 2 and said in " ".join(answer.output.split()), answer.output
    assert not (tmp_path/"out").exists()


@each_command
def test_the_same_options_and_an_example(command):
    told = ask(command, "--help").output
    assert f"avbook {command}" in told and "Example" in told
    assert {"--run", "--device", "--out", "--format"} <= {*re.findall(r"--[a-z]+", told)}


def test_weights_of_another_paper_are_refused(films, tmp_path):
    from avbook.pretrained import find_weights
    for command, stem, other in [("saliency predict", "vqa", "quality"), ("quality score", "avrsp", "saliency"),
                                 ("classification tag", "vqa", "quality")]:
        answer = ask(command, films, "--out", tmp_path/"out", "--run", find_weights("pretrained", stem, other))
        assert answer.exit_code == 2 and "Traceback" not in answer.output, answer.output


def test_all_samples(samples, tmp_path):
    "Every real sample gets its labels and its score, or a sentence."
    for command, out in (("classification tag", "t.json"), ("quality score", "s.json")):
        answer = ask(command, samples/"clips", "--out", tmp_path/out)
        rows = [json.loads(line) for line in (tmp_path/out).read_text().splitlines()]
        assert answer.exit_code == 1 and len(rows) >= 12 and "WrongFile.mp4" in answer.output
