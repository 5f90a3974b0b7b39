"""Miniature public sets, file by file as published: read, trained on, evaluated; and each known fault put in by hand."""
import json
import logging
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from scipy.io import savemat

from avbook.fit import FitConfig, fit
from avbook.manifest import load_split
from avbook.media import to_fps
from avbook.saliency.evaluation import evaluate
from avbook.saliency.layouts import STAVIS_FOLDERS, clip_problems, read_avimos, read_dhf1k, read_stavis, read_stavis_sets
from avbook.saliency.losses import saliency_loss
from avbook.saliency.metrics import BETTER, PROTOCOLS, average, per_video
from avbook.saliency.model import AVRSP, Design
from avbook.saliency.windows import Film, FixedWindows, TrainingWindows, WindowShape, plan_window
from avbook.video import write_video

N_FRAMES, HEIGHT, WIDTH = 12, 48, 64
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
BELLS = np.stack([np.exp(-((COLUMNS - 12 - 3*time)**2 + (ROWS - 24)**2)/60) for time in range(N_FRAMES)])
FILM = np.repeat(40 + 150*BELLS[..., None], 3, axis=3).astype(np.uint8)
MAPS = np.rint(255*BELLS).astype(np.uint8)
POINTS = [[[24, 12 + 3*time], [24, 12 + 3*time], [20, 10]] for time in range(N_FRAMES)]
SHAPE = WindowShape(size=(32, 48), n_frames=8, n_samples=17_640)


@pytest.fixture(autouse=True)
def silent_log(): logging.getLogger("avbook.saliency.layouts").setLevel(logging.ERROR)   # nearly all videos are left out


def tone(fps, n_frames=N_FRAMES): return np.sin(np.arange(int(22_050*n_frames/fps))/9).astype(np.float32)/2


def write_image(pixels, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)


def looked_at(frame, scale=1):
    looks = np.zeros((HEIGHT*scale, WIDTH*scale), np.uint8)
    for row, column in POINTS[frame]: looks[row*scale, column*scale] = 1
    return looks


def write_stavis(root, video, database="AVAD", fps=25., n_frames=N_FRAMES, n_annotated=N_FRAMES):
    "A video as STAViS laid it out: maps twice the size of the frames."
    annotated, sound = root/"annotations"/database/video, root/"video_audio"/database/video/f"{video}.wav"
    for frame in range(n_frames):
        write_image(FILM[frame % N_FRAMES], root/"video_frames"/database/video/f"img_{frame + 1:05d}.jpg")
    for frame in range(n_annotated):
        write_image(MAPS[frame].repeat(2, 0).repeat(2, 1), annotated/f"maps/eyeMap_{frame + 1:05d}.jpg")
        savemat(annotated/f"fixMap_{frame + 1:05d}.mat", dict(eyeMap=looked_at(frame, 2)))
    sound.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(sound, tone(fps, n_frames), 22_050, subtype="PCM_16")


def write_dhf1k(root, video, is_raw):
    annotated = root/"annotation"/video if is_raw else root/video
    for frame in range(N_FRAMES):
        write_image(MAPS[frame], annotated/f"maps/{frame + 1:04d}.png")
        write_image(255*looked_at(frame), annotated/f"fixation/{frame + 1:04d}.png")
        if not is_raw: write_image(FILM[frame], annotated/f"images/{frame + 1:04d}.png")
    if is_raw:
        written = write_video(root/f"video/{int(video):03d}.mp4", FILM, 30, tone(30), 22_050)
        written.rename(written.with_suffix(".AVI"))


def write_avimos(root, parts):
    for name in {name for names in parts.values() for name in names}:
        write_video(root/f"Videos/{name}.mp4", FILM, 30, tone(30), 22_050)
        write_video(root/f"SaliencyTest/Test/{name}.mp4", MAPS[..., None].repeat(3, 3), 30, crf=0)
        looks = root/f"FixationsTest/Test/{name}/fixations.json"
        looks.parent.mkdir(parents=True)
        looks.write_text(json.dumps(POINTS))
    (root/"TrainTestSplit.json").write_text(json.dumps(parts))


def videos_of(card, fold, part, n_videos=2):
    table = load_split(card, fold)
    return table[table.part == part][:n_videos]


def stavis_parts(root, card, fold="fold_1"):
    for part in ("train", "test"):
        for row in videos_of(card, fold, part).itertuples(): write_stavis(root, row.video, STAVIS_FOLDERS[card], row.fps)
    return [read_stavis(root, card, fold, part, missing="skip") for part in ("train", "test")]


def dhf1k_parts(root, is_raw):
    for video in ("0001", "0002", "0601"): write_dhf1k(root, video, is_raw)
    return [read_dhf1k(root, part, missing="skip") for part in ("train", "validation")]


def avimos_parts(root):
    write_avimos(root, dict(train=["a", "b"], public_test=["c"]))
    return [read_avimos(root, part) for part in ("train", "public_test")]


LAYOUTS = {card: (lambda root, card=card: stavis_parts(root, card)) for card in STAVIS_FOLDERS} | {
    "dhf1k as published": lambda root: dhf1k_parts(root, True), "dhf1k extracted": lambda root: dhf1k_parts(root, False),
    "avimos": avimos_parts}


def tiny():
    torch.manual_seed(0)
    return AVRSP(Design(width=1/8, n_frames=SHAPE.n_frames, size=SHAPE.size, n_samples=SHAPE.buffer, n_blocks=1, momentum=.1))


def loss(network, batch): return saliency_loss(network(batch["frames"], batch["waveform"]), batch["density"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_set_is_read_trained_on_and_evaluated(layout, tmp_path):
    training, testing = LAYOUTS[layout](tmp_path)
    assert (len(training), len(testing) >= 1) == (2, True)
    assert [problem.kind for problem in clip_problems(training) if problem.kind not in ("frame counts differ", "no sound")] == []
    network = tiny()
    before = {name: weights.clone() for name, weights in network.named_parameters()}
    windows = TrainingWindows(training, SHAPE, tmp_path/"cache")
    fit(network, windows, loss, FitConfig(n_steps=1, batch_size=2), tmp_path/"run", progress="off")
    changed = {name.split(".")[0] for name, weights in network.named_parameters() if (weights != before[name]).any()}
    assert {"picture", "decoder", "fusion", "gates"} <= changed and ("sound" in changed or "extracted" in layout)
    protocol = PROTOCOLS["aim2024" if layout == "avimos" else "default"]
    scores = evaluate(network, testing, SHAPE, protocol, stride=4, cache=tmp_path/"cache")
    assert scores.groupby("video").frame.agg(list).tolist() == [[0, 4, 8]]*len(testing)
    assert scores[list(BETTER)].notna().all(axis=None)
    assert list(per_video(scores, protocol).index) == [clip.name for clip in testing]
    perfect = evaluate(Perfect(testing[0]), testing[:1], SHAPE, protocol, stride=4, cache=tmp_path/"cache")
    assert average(perfect, protocol).cc > .9 > average(scores, protocol).cc


class Perfect:
    "Gives each frame's own density, told apart by where its light is: what is scored is the frame that was asked for."
    def __init__(self, clip):
        self.densities = torch.from_numpy(clip.density(range(clip.n_frames), SHAPE.size))
        self.looks = torch.from_numpy(clip.frames(range(clip.n_frames), SHAPE.size)).float()

    def __call__(self, frames, waveform):
        asked = frames[:, :, -1].movedim(1, -1).float()
        return self.densities[(asked[:, None] - self.looks).abs().flatten(2).mean(2).argmin(1)]


def test_stage_two_adds_six_sets_up(tmp_path):
    for card, database in STAVIS_FOLDERS.items():
        write_stavis(tmp_path, videos_of(card, "fold_1", "train").video.iloc[0], database)
    sets = read_stavis_sets(tmp_path, "fold_1", "train", missing="skip")
    assert {card: len(clips) for card, clips in sets.items()} == dict.fromkeys(STAVIS_FOLDERS, 1)
    every = TrainingWindows([clip for clips in sets.values() for clip in clips], SHAPE)
    assert [film.clip.pictures[0].parts[-3] for film in every.films] == list(STAVIS_FOLDERS.values())
    assert all(every[place]["waveform"].any() for place in range(6))   # the last one too


# Each fault that a published set or loader has, and what is said of it

@pytest.fixture
def avad(tmp_path):
    "A root with one whole test video, and a way to read it."
    write_stavis(tmp_path, "V3_Speech3", fps=30_000/1001)
    return tmp_path


def read(root): return read_stavis(root, "avad", "fold_1", "test", missing="skip")[0]
def told(clips, is_deep=True): return [problem.text for problem in clip_problems(clips, is_deep) if "(list" not in problem.text]


def test_a_missing_wav_is_silence_and_a_sentence(avad):
    (avad/"video_audio/AVAD/V3_Speech3/V3_Speech3.wav").unlink()
    clip = read(avad)
    assert [text for text in told([clip]) if "sound" in text] == [f"V3_Speech3: {clip.sound} has no sound: it is read as silent"]
    given = Film(clip, SHAPE).given(plan_window(9, clip.n_frames, 8))
    assert given["waveform"].shape == (17_640,) and not given["waveform"].any()
    assert evaluate(tiny().eval(), [clip], SHAPE, stride=6).cc.notna().all()


def test_the_last_video_of_a_list_has_its_sound(avad):
    "STAViS' loader reads the sound of all videos of a list but its last one."
    for row in videos_of("avad", "fold_1", "train", 3).itertuples(): write_stavis(avad, row.video, fps=row.fps)
    clips = read_stavis(avad, "avad", "fold_1", "train", missing="skip")
    assert len(clips) == 3 and all(Film(clip, SHAPE).given(plan_window(9, 12, 8))["waveform"].any() for clip in clips)


def test_fewer_maps_than_frames_end_the_clip(avad):
    for number in (11, 12): (avad/f"annotations/AVAD/V3_Speech3/maps/eyeMap_{number:05d}.jpg").unlink()
    clip = read(avad)
    assert clip.n_frames == 10
    assert any("pictures 12, densities 10, fixations 12, list 243" in str(each) for each in clip_problems([clip]))
    assert evaluate(tiny().eval(), [clip], SHAPE).frame.max() == 9
    assert max(TrainingWindows([clip], SHAPE)[0]["id"].split()[-1] for _ in range(20)) <= "9"


def test_avads_news_has_a_frame_more_than_maps(tmp_path):
    write_stavis(tmp_path, "V11_News4", fps=25, n_frames=13)
    clip, = read_stavis(tmp_path, "avad", "fold_2", "test", missing="skip")
    assert clip.n_frames == 12 and "pictures 13, densities 12, fixations 12, list 125" in str(clip_problems([clip])[0])
    assert len(Film(clip, SHAPE, tmp_path/"cache").frames([11])) == 1
    assert evaluate(tiny().eval(), [clip], SHAPE, stride=11).frame.tolist() == [0, 11]


def test_an_empty_map_is_not_trained_on_and_not_scored(avad):
    annotated = avad/"annotations/AVAD/V3_Speech3"
    for number in range(9, 13):
        write_image(0*MAPS[0], annotated/f"maps/eyeMap_{number:05d}.jpg")
        savemat(annotated/f"fixMap_{number:05d}.mat", dict(eyeMap=0*looked_at(0)))
    clip = read(avad)
    assert [text for text in told([clip]) if "zero" in text] == [
        "V3_Speech3: densities are all zero in frame 8 (and in 3 more frames)",
        "V3_Speech3: fixations are all zero in frame 8 (and in 3 more frames)"]
    assert {TrainingWindows([clip], SHAPE)[0]["id"] for _ in range(10)} == {"V3_Speech3, frame 7"}
    assert len(FixedWindows([clip], SHAPE, stride=2)) == 1
    scores = evaluate(tiny().eval(), [clip], SHAPE)
    assert scores.set_index("frame")[list(BETTER)].isna().all(axis=1).tolist() == [False]*8 + [True]*4
    assert average(scores).notna().all()
    for path in (annotated/"maps").iterdir(): write_image(0*MAPS[0], path)
    with pytest.raises(ValueError, match="V3_Speech3 has no window that ends in a frame somebody looked at: leave it out"):
        TrainingWindows([clip], SHAPE)[0]


def test_a_frame_cut_off_is_named_when_it_is_met(avad):
    path = avad/"video_frames/AVAD/V3_Speech3/img_00005.jpg"
    path.write_bytes(path.read_bytes()[:200])
    clip = read(avad)
    assert any(text.startswith(f"V3_Speech3: frame 4: {path} does not decode as an image") for text in told([clip]))
    with pytest.raises(ValueError, match="img_00005.jpg does not decode as an image: copy it again") as caught:
        windows, config = TrainingWindows([clip], SHAPE, avad/"cache"), FitConfig(n_steps=1, batch_size=1)
        fit(tiny(), windows, loss, config, avad/"run", progress="off")
    assert "this was sample 0 of epoch 0" in caught.value.__notes__
    assert not list((avad/"cache").glob("V3_Speech3-*[!k]/*"))   # nothing half decoded is left


def test_a_wrong_fold_names_those_that_are(avad):
    with pytest.raises(ValueError, match="card avad has no fold_4, but .'fold_1', 'fold_2', 'fold_3'."):
        read_stavis(avad, "avad", "fold_4")
    with pytest.raises(ValueError, match="fold is 'fold_4', not fold_1, fold_2 or fold_3"): read_stavis_sets(avad, "fold_4")
    with pytest.raises(ValueError, match="no 'Coutrot1' among avad, coutrot1"): read_stavis(avad, "Coutrot1")
    with pytest.raises(ValueError, match="has no part 'validation' but"): read_stavis(avad, "avad", part="validation")


def test_rates_of_the_lists_are_put_right():
    "24.99975 means 25, 29.9997 means 30, 23.99976 means 24; 29.97003 and 23.976024 mean NTSC's."
    rates = {float(rate): clip_rate for card in STAVIS_FOLDERS for rate, clip_rate in rates_of(card)}
    assert rates[24.99975] == 25 and rates[29.9997] == 30 and rates[23.99976] == 24
    assert rates[29.97003] == Fraction(30_000, 1001) and rates[23.976024] == Fraction(24_000, 1001)
    assert all(5 < rate < 61 and abs(float(rate)/listed - 1) < 2e-5 for listed, rate in rates.items())


def rates_of(card): return [(rate, to_fps(float(rate))) for rate in set(load_split(card, "fold_1").fps)]


def test_a_wrong_rate_shows_against_the_sound(avad):
    soundfile.write(avad/"video_audio/AVAD/V3_Speech3/V3_Speech3.wav", tone(10), 22_050)
    assert any("its sound lasts 1.20 s, its frames at 29.970 a second 0.40 s" in text for text in told([read(avad)]))


def test_a_video_that_is_not_whole_is_left_out_or_an_error(avad, caplog):
    write_stavis(avad, "V9_News2")
    shutil.rmtree(avad/"annotations/AVAD/V9_News2/maps")
    with pytest.raises(FileNotFoundError, match=r"14 of 15 videos are not there or not whole: .*V9_News2 \(densities\)"):
        read_stavis(avad, "avad")
    logging.getLogger("avbook.saliency.layouts").setLevel(logging.WARNING)
    with caplog.at_level(logging.WARNING): clips = read_stavis(avad, "avad", missing="skip")
    assert [clip.name for clip in clips] == ["V3_Speech3"] and "left out" in caplog.text


def test_avimos_counts_every_look(tmp_path):
    write_avimos(tmp_path, dict(train=["a"], public_test=["c"]))
    clip, = read_avimos(tmp_path, "train")
    once, each = [evaluate(Perfect(clip), [clip], SHAPE, PROTOCOLS[name], stride=6).nss for name in ("default", "aim2024")]
    assert (each > once).all()   # of three looks, two are at the light
    path = tmp_path/"FixationsTest/Test/c/fixations.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(ValueError, match="fixations.json is not whole as JSON: copy it again"):
        clip_problems(read_avimos(tmp_path, "public_test"))


def test_a_half_copied_film_is_an_error_with_its_name(tmp_path):
    write_dhf1k(tmp_path, "0601", True)
    film = Path(tmp_path/"video/601.AVI")
    film.write_bytes(film.read_bytes()[:1500])
    clip, = read_dhf1k(tmp_path, missing="skip")
    with pytest.raises(ValueError, match="601.AVI"): TrainingWindows([clip], SHAPE)[0]
