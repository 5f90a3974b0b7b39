"""Servers that break off, lie or change their mind; archives that try to get out; every card's counts."""
import hashlib
import http.server
import io
import json
import os
import stat
import tarfile
import threading
import zipfile

import pandas as pd
import pytest

from avbook import manifest
from avbook.manifest import (
    Card, CardError, ChecksumError, DataFile, DataMissing, Expected, FetchError, UnsafeArchive, card_names,
    data_root, fetch, load_card, load_split, require, verify)

PLAIN = dict(name="tiny", title="A tiny set", task="quality", citation="nobody", licence=None,
             redistribution=None, homepage=None, how_to_get="Make it yourself.")
CONTENT = bytes(range(256))*4000    # a megabyte


def sha256(content): return hashlib.sha256(content).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    "A host whose manners a test sets on the server; `asked` notes the Range of each request."
    def log_message(self, *_): "Say nothing."

    def do_GET(self):
        host = self.server
        asked = self.headers.get("Range")
        host.asked.append(asked)
        start = int(asked.split("=")[1].rstrip("-")) if asked and host.knows_range else 0
        if self.headers.get("If-Range") not in (None, host.tag): start = 0
        if host.statuses: return self.send_error(host.statuses.pop(0))
        if start >= len(host.content) and start: return self.send_error(416)
        self.send_response(206 if start else 200)
        size = len(host.content)
        self.send_header("Content-Length", str(size - start))
        if start: self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if host.tag: self.send_header("ETag", host.tag)
        for name, value in host.headers.items(): self.send_header(name, value)
        self.end_headers()
        end = host.breaks_at.pop(0) if host.breaks_at else size
        self.wfile.write(host.content[start:end])
        self.close_connection = True


@pytest.fixture
def host(monkeypatch):
    monkeypatch.setattr(manifest.time, "sleep", lambda _: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.content, server.tag, server.knows_range = CONTENT, '"v1"', True
    server.asked, server.breaks_at, server.statuses, server.headers = [], [], [], {}
    server.url = f"http://127.0.0.1:{server.server_port}/film.bin"
    threading.Thread(target=server.serve_forever, args=(.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def card_of(host, content=CONTENT, **line):
    line = dict(path="film.bin", url=host.url, sha256=sha256(content)) | line
    return Card(**PLAIN, files=[DataFile(**line)])


def names_below(folder): return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))


def test_a_whole_download(host, tmp_path):
    assert fetch(card_of(host, bytes=len(CONTENT)), tmp_path, progress=False) == {"film.bin": sha256(CONTENT)}
    assert (tmp_path/"film.bin").read_bytes() == CONTENT and names_below(tmp_path) == ["film.bin"]
    assert fetch(card_of(host), tmp_path, progress=False) and len(host.asked) == 1    # not asked for again


def test_a_broken_download_goes_on_within_one_call(host, tmp_path):
    host.breaks_at = [300_000, 700_000]
    fetch(card_of(host), tmp_path, progress=False)
    first, second, third = host.asked
    assert first is None and 0 < int(second[6:-1]) <= 300_000 < int(third[6:-1]) <= 700_000
    assert (tmp_path/"film.bin").read_bytes() == CONTENT


def test_a_broken_download_goes_on_in_the_next_call(host, tmp_path):
    host.breaks_at = [300_000]
    with pytest.raises(FetchError, match="fetch it again"):
        fetch(card_of(host), tmp_path, n_tries=1, progress=False)
    assert names_below(tmp_path) == [".film.bin.partial", ".film.bin.partial.json"]    # none by its own name
    fetch(card_of(host), tmp_path, progress=False)
    assert host.asked[1] != host.asked[0] and names_below(tmp_path) == ["film.bin"]
    assert (tmp_path/"film.bin").read_bytes() == CONTENT


def test_a_server_that_does_not_know_range_is_begun_again(host, tmp_path):
    host.knows_range, host.breaks_at = False, [300_000]
    fetch(card_of(host), tmp_path, progress=False)
    assert host.asked[1] is not None and (tmp_path/"film.bin").read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_begun_again(host, tmp_path):
    host.breaks_at = [300_000]
    with pytest.raises(FetchError): fetch(card_of(host), tmp_path, n_tries=1, progress=False)
    host.content, host.tag = CONTENT[::-1], '"v2"'
    fetch(card_of(host, CONTENT[::-1]), tmp_path, progress=False)
    assert (tmp_path/"film.bin").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("tag", [None, 'W/"v1"'])
def test_halves_of_two_versions_are_never_put_together(host, tmp_path, tag):
    "Without a mark of the version, what has no checksum begins again; what has one is found out."
    host.tag, host.breaks_at = tag, [300_000]
    unknown = card_of(host, sha256=None)
    with pytest.raises(FetchError):
        fetch(unknown, tmp_path/"a", accept_unknown=True, n_tries=1, progress=False)
    host.content = CONTENT[::-1]
    fetch(unknown, tmp_path/"a", accept_unknown=True, progress=False)
    assert host.asked[1] is None and (tmp_path/"a/film.bin").read_bytes() == CONTENT[::-1]

    host.content, host.breaks_at = CONTENT, [300_000]
    known = card_of(host, CONTENT[::-1])
    with pytest.raises(FetchError): fetch(known, tmp_path/"b", n_tries=1, progress=False)
    host.content = CONTENT[::-1]
    with pytest.raises(ChecksumError, match="thrown away"): fetch(known, tmp_path/"b", progress=False)
    fetch(known, tmp_path/"b", progress=False)    # the bad halves are gone, the next call begins anew


def test_a_complete_partial_file_is_not_asked_for_again(host, tmp_path):
    "Killed after the last byte and before the file got its name."
    (tmp_path/".film.bin.partial").write_bytes(CONTENT)
    said = dict(url=host.url, mark='"v1"', n_bytes=len(CONTENT))
    (tmp_path/".film.bin.partial.json").write_text(json.dumps(said))
    fetch(card_of(host), tmp_path, progress=False)
    assert host.asked == [] and (tmp_path/"film.bin").read_bytes() == CONTENT


def test_a_partial_file_that_is_too_long_is_begun_again(host, tmp_path):
    (tmp_path/".film.bin.partial").write_bytes(CONTENT + b"more")
    (tmp_path/".film.bin.partial.json").write_text(json.dumps(dict(url=host.url, mark='"v1"', n_bytes=None)))
    fetch(card_of(host), tmp_path, progress=False)
    assert (tmp_path/"film.bin").read_bytes() == CONTENT and host.asked[-1] is None


def test_a_wrong_checksum_is_an_error_and_leaves_nothing(host, tmp_path):
    with pytest.raises(ChecksumError, match=r"tiny: film.bin from \S+ has sha256 \w{64}, the card says 0+"):
        fetch(card_of(host, sha256="0"*64), tmp_path, progress=False)
    assert names_below(tmp_path) == []


def test_a_wrong_length_is_an_error_before_anything_is_loaded(host, tmp_path):
    with pytest.raises(ChecksumError, match="offers 1024000 bytes, the card says 7"):
        fetch(card_of(host, bytes=7), tmp_path, progress=False)
    assert names_below(tmp_path) == []


def test_what_lies_there_is_checked_and_never_overwritten(host, tmp_path):
    (tmp_path/"film.bin").write_bytes(b"mine")
    with pytest.raises(ChecksumError, match="move it away"): fetch(card_of(host), tmp_path, progress=False)
    assert (tmp_path/"film.bin").read_bytes() == b"mine" and host.asked == []


def test_no_known_checksum_must_be_accepted_and_is_reported(host, tmp_path, caplog):
    unknown = card_of(host, sha256=None)
    with pytest.raises(ChecksumError, match="card tiny knows no sha256 of film.bin"):
        fetch(unknown, tmp_path, progress=False)
    assert host.asked == []
    assert fetch(unknown, tmp_path, accept_unknown=True, progress=False) == {"film.bin": sha256(CONTENT)}
    assert sha256(CONTENT) in caplog.text


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(host, tmp_path):
    host.statuses = [503, 429]
    fetch(card_of(host), tmp_path/"busy", progress=False)
    assert len(host.asked) == 3
    host.statuses = [404]
    with pytest.raises(FetchError, match="404.*Make it yourself"):
        fetch(card_of(host), tmp_path/"gone", progress=False)
    assert len(host.asked) == 4


class Liar(http.server.BaseHTTPRequestHandler):
    "Answers by the path that is asked for."
    answers = dict(
        bad_length=(200, {"Content-Length": "many"}, b"film"), negative=(200, {"Content-Length": "-5"}, b"film"),
        nothing=(200, {"Content-Length": "0"}, b""), no_content=(204, {}, b""), choices=(300, {}, b""),
        part=(206, {"Content-Range": "bytes 0-3/100", "Content-Length": "4"}, b"film"),
        loop=(302, {"Location": "/loop"}, b""), local=(302, {"Location": "file:///etc/hosts"}, b""),
        bad_chunks=(200, {"Transfer-Encoding": "chunked"}, b"zz\r\nfilm"))

    def log_message(self, *_): "Say nothing."

    def do_GET(self):
        self.close_connection = True
        if self.path == "/endless": return self.send_for_ever()
        status, headers, content = self.answers[self.path.strip("/")]
        self.send_response(status)
        for name, value in headers.items(): self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def send_for_ever(self):
        self.send_response(200)
        self.end_headers()
        try:
            while True: self.wfile.write(bytes(1 << 16))
        except ConnectionError: return


@pytest.fixture
def liar(monkeypatch):
    monkeypatch.setattr(manifest.time, "sleep", lambda _: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Liar)
    threading.Thread(target=server.serve_forever, args=(.01,), daemon=True).start()
    yield lambda name, **line: Card(**PLAIN, files=[
        DataFile(path="film.bin", url=f"http://127.0.0.1:{server.server_port}/{name}", **line)])
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name, error, says", [
    ("nothing", ChecksumError, "is empty"), ("no_content", FetchError, "answers 204 and no file"),
    ("choices", FetchError, "answers 300 and no file"), ("part", FetchError, "cannot go on from byte 0"),
    ("loop", FetchError, "30 redirects"), ("local", FetchError, "file:///etc/hosts"),
    ("bad_chunks", FetchError, "did not come through")])
def test_a_hostile_answer_is_no_file(liar, tmp_path, name, error, says):
    with pytest.raises(error, match=says):
        fetch(liar(name), tmp_path, accept_unknown=True, n_tries=2, progress=False)
    assert not (tmp_path/"film.bin").exists()


@pytest.mark.parametrize("name", ["bad_length", "negative"])
def test_a_length_that_is_no_number_is_not_believed(liar, tmp_path, name):
    fetch(liar(name, sha256=sha256(b"film")), tmp_path, progress=False)
    assert (tmp_path/"film.bin").read_bytes() == b"film"


def test_a_stream_without_end_is_cut_at_the_cards_length(liar, tmp_path):
    with pytest.raises(ChecksumError, match="the card says 100000: it was thrown away"):
        fetch(liar("endless", bytes=100_000), tmp_path, accept_unknown=True, progress=False)
    assert names_below(tmp_path) == []


@pytest.mark.parametrize("content, says", [
    (None, "cannot be read"), ("", "cannot be read"), ("video,n_frames\na,3\n", "has no column fps, fold_1")])
def test_a_list_that_cannot_be_used_is_named(tmp_path, content, says):
    card = PLAIN | dict(split_list="list.csv", folds={"fold_1": {"train": 1}})
    (tmp_path/"tiny.yaml").write_text(json.dumps(card))
    if content is not None: (tmp_path/"list.csv").write_text(content)
    with pytest.raises(CardError, match=f"list.csv {says}"): load_split(load_card(tmp_path/"tiny.yaml"))


def test_a_web_page_is_not_taken_for_the_file(host, tmp_path):
    host.headers = {"Content-Type": "text/html; charset=utf-8"}
    with pytest.raises(FetchError, match="answers with a web page"):
        fetch(card_of(host, sha256=None), tmp_path, accept_unknown=True, progress=False)


def test_bytes_are_taken_as_they_are_stored(host, tmp_path):
    "Some servers call a .tar.gz an encoding of a .tar: what is checked and kept is the compressed file."
    host.headers = {"Content-Encoding": "gzip"}
    fetch(card_of(host), tmp_path, progress=False)
    assert (tmp_path/"film.bin").read_bytes() == CONTENT


def test_what_must_be_got_by_hand_is_named_after_the_rest_is_fetched(host, tmp_path):
    both = Card(**PLAIN, files=[*card_of(host).files, DataFile(path="by_hand.csv")])
    with pytest.raises(DataMissing, match="by_hand.csv is missing: get it by hand. Make it yourself"):
        fetch(both, tmp_path, progress=False)
    assert (tmp_path/"film.bin").exists()


# Archives

def zip_of(*members):
    "Bytes of a zip of (name, mode) members."
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, "content")
    return out.getvalue()


def tar_of(*members):
    "Bytes of a tar.gz of (name, type) members; links lead to `fine.txt` inside or to /etc."
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "fine.txt" if name == "inner_link" else "/etc"
            info.size = 7 if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(b"content"))
    return out.getvalue()


ZIP, TAR = [("fine.txt", stat.S_IFREG | 0o644)], [("fine.txt", tarfile.REGTYPE)]
EVIL = {
    "zip up": zip_of(*ZIP, ("../out.txt", 0)),
    "zip deep up": zip_of(*ZIP, ("a/../../out.txt", 0)),
    "zip absolute": zip_of(*ZIP, ("/out.txt", 0)),
    "zip backslash": zip_of(*ZIP, ("..\\out.txt", 0)),
    "zip drive": zip_of(*ZIP, ("C:\\out.txt", 0)),
    "zip link": zip_of(*ZIP, ("link", stat.S_IFLNK | 0o777)),
    "zip device": zip_of(*ZIP, ("device", stat.S_IFCHR | 0o644)),
    "tar up": tar_of(*TAR, ("../out.txt", tarfile.REGTYPE)),
    "tar absolute": tar_of(*TAR, ("/out.txt", tarfile.REGTYPE)),
    "tar link": tar_of(*TAR, ("link", tarfile.SYMTYPE)),
    "tar inner link": tar_of(*TAR, ("inner_link", tarfile.SYMTYPE)),
    "tar hard link": tar_of(*TAR, ("link", tarfile.LNKTYPE)),
    "tar device": tar_of(*TAR, ("device", tarfile.CHRTYPE)),
    "tar pipe": tar_of(*TAR, ("pipe", tarfile.FIFOTYPE)),
}


@pytest.mark.parametrize("how", EVIL)
def test_an_archive_that_leads_out_is_refused_and_leaves_nothing(tmp_path, how):
    root = tmp_path/"set"
    root.mkdir()
    (root/"archive.bin").write_bytes(EVIL[how])
    card = Card(**PLAIN, files=[DataFile(path="archive.bin", sha256=sha256(EVIL[how]), unpack_to="content")])
    with pytest.raises(UnsafeArchive, match=r"archive.bin holds \S+, which"):
        fetch(card, root, progress=False)
    assert names_below(tmp_path) == ["set/archive.bin"] and not (root/"content").exists()


GOOD = {"zip": zip_of(*ZIP, ("a/b.txt", 0)), "tar.gz": tar_of(*TAR, ("a/b.txt", tarfile.REGTYPE))}


@pytest.mark.parametrize("content", GOOD.values(), ids=GOOD)
def test_an_archive_is_unpacked_whole_and_may_then_be_deleted(tmp_path, content):
    (tmp_path/"archive.bin").write_bytes(content)
    card = Card(**PLAIN, files=[DataFile(path="archive.bin", sha256=sha256(content), unpack_to="content")])
    assert [problem.path for problem in verify(card, tmp_path)] == ["content"]    # there, but not unpacked
    fetch(card, tmp_path, progress=False)
    assert (tmp_path/"content/a/b.txt").read_text() == "content" and verify(card, tmp_path) == []
    (tmp_path/"archive.bin").unlink()
    assert verify(card, tmp_path) == [] and fetch(card, tmp_path, progress=False)
    (tmp_path/"content/a/b.txt").write_text("longer content")
    assert "was unpacked with 2 of 14" in str(verify(card, tmp_path)[0])
    newer = card.model_copy(update=dict(files=[card.files[0].model_copy(update=dict(sha256="0"*64))]))
    assert "comes from an archive with sha256" in str(verify(newer, tmp_path)[0])


BROKEN = {"cut zip": zip_of(*ZIP)[:-30], "cut tar.gz": tar_of(*TAR)[:-60], "a page": b"<html>", "empty": b"",
          "tar.gz without its sum": tar_of(*TAR)[:-8],
          "tar.gz with a wrong sum": tar_of(*TAR)[:-8] + bytes(8)}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_archive_is_named(tmp_path, content):
    (tmp_path/"archive.bin").write_bytes(content)
    card = Card(**PLAIN, files=[DataFile(path="archive.bin", unpack_to="content")])
    with pytest.raises(ValueError, match="archive.bin is not an archive that can be unpacked"):
        fetch(card, tmp_path, progress=False)
    assert names_below(tmp_path) == ["archive.bin"]


def test_a_folder_of_ones_own_is_not_replaced(tmp_path):
    "Somebody who has the frames already puts them where they belong; no archive, no receipt."
    (tmp_path/"content").mkdir()
    (tmp_path/"content/mine.txt").write_text("mine")
    line = DataFile(path="archive.zip", url="http://127.0.0.1:9/archive.zip", unpack_to="content")
    card = Card(**PLAIN, files=[line])
    assert fetch(card, tmp_path, progress=False) == {"archive.zip": None}
    assert verify(card, tmp_path) == [] and (tmp_path/"content/mine.txt").read_text() == "mine"


# Verify and require

def test_verify_names_everything_at_once(tmp_path):
    for name in ("cut", "flipped", "unreadable"): (tmp_path/name).write_bytes(b"content")
    os.mkdir(tmp_path/"folder")
    card = Card(**PLAIN, expected=[Expected(glob="*.mp4", n=2)], files=[
        DataFile(path="lost", url="http://127.0.0.1:9/lost"), DataFile(path="cut", bytes=8),
        DataFile(path="flipped", bytes=7, sha256="0"*64), DataFile(path="folder", sha256="0"*64)])
    wrong = {problem.path: problem.wrong for problem in verify(card, tmp_path)}
    assert list(wrong) == ["lost", "cut", "flipped", "folder", "*.mp4"]
    assert wrong["lost"] == "is missing: fetch it from http://127.0.0.1:9/lost"
    assert wrong["cut"] == "has 7 bytes, the card says 8" and wrong["folder"] == "is not a file"


def test_verify_counts_the_listed_videos(tmp_path):
    diem = load_card("diem")
    videos = load_split(diem).video
    for pattern in diem.items:
        for video in videos: (tmp_path/pattern.replace("{video}", video)).mkdir(parents=True)
    assert verify(diem, tmp_path) == [] and require(diem, tmp_path) == tmp_path
    for video in videos[:2]: (tmp_path/f"annotations/DIEM/{video}/maps").rmdir()
    missing = [problem.path for problem in verify(diem, tmp_path)]
    assert missing == [f"annotations/DIEM/{video}/maps" for video in videos[:2]]
    assert require(diem, tmp_path) == tmp_path    # two videos fewer: whoever reads them counts
    for video in videos[2:]: (tmp_path/f"annotations/DIEM/{video}/maps").rmdir()
    with pytest.raises(DataMissing, match="data_manifests/diem.yaml.*missing for all 81"):
        require(diem, tmp_path)


def test_data_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("AVBOOK_DATA", str(tmp_path))
    assert data_root("kvq") == tmp_path/"kvq"
    with pytest.raises(DataMissing, match="there is no folder"): require("kvq")
    (tmp_path/"kvq").mkdir()
    assert "is empty" in str(verify("kvq")[0])
    monkeypatch.delenv("AVBOOK_DATA")
    with pytest.raises(DataMissing, match="AVBOOK_DATA is not set"): data_root("kvq")


# Cards

def card_file(folder, **changes):
    path = folder/"tiny.yaml"
    fields = {key: value for key, value in (PLAIN | changes).items() if value != "left out"}
    path.write_text(json.dumps(fields))
    return path


@pytest.mark.parametrize("changes, said", [
    (dict(titel="x"), "titel is not a field: did you mean title"),
    (dict(licence="left out"), "licence is missing"),
    (dict(task="gaze"), "task is 'gaze': Input should be 'saliency', 'classification' or 'quality'"),
    (dict(redistribution="yes"), "redistribution is 'yes'"),
    (dict(counts=dict(videos="many")), "counts.videos is 'many'"),
    (dict(files=[dict(path="a", sha="0")]), "files.0.sha is not a field: did you mean sha256"),
    (dict(files=[dict(path="a", sha256="abc")]), "files.0.sha256 is 'abc'"),
    (dict(files=[dict(path="a", bytes=-1)]), "files.0.bytes is -1"),
    (dict(files=[dict(path="../a")]), "files.0.path is '../a': must be a relative path"),
    (dict(files=[dict(path="a"), dict(path="a")]), "a is named twice"),
    (dict(files=[dict(path="a.zip", unpack_to="b"), dict(path="b/c")]), "b/c lies in b"),
    (dict(homepage="www.example.org"), "homepage is 'www.example.org'"),
    (dict(name="huge"), "name is huge, unlike the file's"),
])
def test_a_bad_card_names_itself_and_the_field(tmp_path, changes, said):
    with pytest.raises(CardError) as error: load_card(card_file(tmp_path, **changes))
    assert said in str(error.value) and "tiny.yaml" in str(error.value) and "\n" not in str(error.value)


def test_a_split_list_must_agree_with_its_card(tmp_path):
    path = card_file(tmp_path, split_list="list.csv", folds=dict(fold_1=dict(train=2, test=1)))
    def listed(*parts):
        rows = [dict(video=f"{n:03}", n_frames=9, fps=25., fold_1=part) for n, part in enumerate(parts)]
        pd.DataFrame(rows).to_csv(tmp_path/"list.csv", index=False)
    listed("train", "", "train", "test")
    assert list(load_split(load_card(path)).video) == ["000", "002", "003"]
    listed("train", "test", "test")
    with pytest.raises(CardError, match="fold_1 holds .*, the card says"): load_split(load_card(path))


COUNTS = dict(
    dhf1k=[(600, 100)], diem=[(64, 17)], avad=[(30, 15)]*3, coutrot1=[(40, 20)]*3, coutrot2=[(10, 5)]*3,
    etmd=[(8, 4)]*3, summe=[(17, 8), (17, 7), (16, 8)])
HELD_OUT = dict(dhf1k="validation")


@pytest.mark.parametrize("name", COUNTS)
def test_folds_have_their_size_and_parts_share_nothing(name):
    card = load_card(name)
    splits = [load_split(card, fold) for fold in card.folds]
    held_out = HELD_OUT.get(name, "test")
    parts = [[set(split.video[split.part == part]) for part in ("train", held_out)] for split in splits]
    assert [tuple(map(len, fold)) for fold in parts] == COUNTS[name]
    assert all(not train & test for train, test in parts)
    assert all((split.n_frames > 0).all() and split.fps.between(10, 60).all() for split in splits)


def test_the_folds_quirks_are_as_the_notes_say():
    tested = {name: pd.concat([split[split.part == "test"].video for split in
                               (load_split(name, fold) for fold in load_card(name).folds)]).value_counts()
              for name in ("avad", "coutrot1", "coutrot2", "etmd", "summe")}
    assert sorted(tested["avad"][tested["avad"] > 1].index) == ["V26_Piano2", "V39_Guitar4", "V3_Speech3"]
    assert [len(tested[name]) for name in tested] == [42, 60, 15, 12, 23]
    assert not {"St_Maarten_Landing", "Scuba"} & set(tested["summe"].index)
    listed = [set(load_split("summe", fold).video) for fold in ("fold_1", "fold_2", "fold_3")]
    assert listed[0] - listed[1] == {"St_Maarten_Landing"} and listed[0] - listed[2] == {"Scuba"}


def test_every_card_can_be_read_and_says_how_its_data_is_got():
    wanted = {*COUNTS, "avimos", "kvq", "konvid_1k", "live_vqc", "youtube_ugc", "lsvq",
              *(f"youtube8m_{year}_{level}" for year in (2017, 2018) for level in ("video", "frame"))}
    assert wanted <= set(card_names())
    cards = [load_card(name) for name in card_names()]
    assert all(len(card.how_to_get) > 20 and card.citation for card in cards)
    classes = {card.name: card.counts["classes"] for card in cards if card.name.startswith("youtube8m")}
    assert {count for name, count in classes.items() if "2017" in name} == {4716}
    assert {count for name, count in classes.items() if "2018" in name} == {3862}
    assert load_card("kvq").folds["official"] == dict(train=2926, validation=420, test=854)


FOLD_LISTS = dict(dhf1k="DHF1K", diem="DIEM", avad="AVAD", coutrot1="Coutrot_db1", coutrot2="Coutrot_db2",
                  etmd="ETMD_av", summe="SumMe")


def published(path):
    lines = [line.split() for line in path.read_text().splitlines() if line]
    return {(video, int(n_frames), round(float(fps), 6)) for video, n_frames, fps in lines}


@pytest.mark.parametrize("name", FOLD_LISTS)
def test_splits_are_the_published_lists(name, samples):
    for fold in load_card(name).folds:
        split = load_split(name, fold)
        number = "" if name == "diem" else f"_{fold[-1]}"
        for part in ("train", "test"):
            listed = published(samples/"fold_lists"/f"{FOLD_LISTS[name]}_list_{part}{number}_fps.txt")
            ours = split[split.part == ("train" if part == "train" else HELD_OUT.get(name, "test"))]
            assert set(zip(ours.video, ours.n_frames, ours.fps, strict=True)) == listed
