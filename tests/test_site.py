"""The workbook's site: built small, opened from disk in a browser that has no network."""
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import ipywidgets
import nbformat
import pytest
from ipywidgets.embed import embed_data

from avbook.reference import module_page, reference_pages
from avbook.site import build_site, shown_copy, site_pages

ROOT = Path(__file__).resolve().parent.parent
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
STATE, VIEW = (f"application/vnd.jupyter.widget-{name}+json" for name in ("state", "view"))
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def write_notebook(path, *cells, **metadata):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells), metadata=metadata), path)


def markdown(text): return nbformat.v4.new_markdown_cell(text)


def code(source, **data):
    outputs = [nbformat.v4.new_output("display_data", {name.replace("_", "/"): value for name, value in data.items()})]
    return nbformat.v4.new_code_cell(source, outputs=outputs if data else [])


def write_widgets(path):
    "A notebook with the widgets of an `interact` as they were saved, and one of which nothing was saved."
    slider = ipywidgets.IntSlider(value=3, description="frame")
    seen = ipywidgets.Output(outputs=[
        dict(output_type="stream", name="stdout", text="seen at 3"),
        dict(output_type="display_data", data={"image/png": PIXEL, "text/plain": "a picture"}, metadata={})])
    saved = embed_data(views=[ipywidgets.VBox([slider, seen])])
    shown = nbformat.v4.new_code_cell("look(3)", outputs=[
        nbformat.v4.new_output("display_data", {VIEW: saved["view_specs"][0]})])
    write_notebook(path, markdown("# Explore\n\n> A slider."), shown, widgets={STATE: saved["manager_state"]})


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")/"nbs"
    write_notebook(folder/"index.ipynb", markdown("# A book\n\n> Of two chapters.\n\n[Gates](1_one/15_gates.ipynb)"))
    write_notebook(
        folder/"1_one"/"15_gates.ipynb", markdown("# Gates\n\n> How a gate opens.\n\n$$g=\\sigma(x)$$\n\nand $x\\ge0$."),
        code("#| default_exp reference"), code("#| export\nfrom avbook.video import Clip"),
        code("draw()", image_png=PIXEL, text_plain="a picture"), markdown("## Shut\n\nSee [the slider](19_explore.ipynb)."))
    write_widgets(folder/"1_one"/"19_explore.ipynb")
    write_notebook(folder/"_site"/"no.ipynb", markdown("# Not a page\n\n> Nothing."))
    return folder


@pytest.fixture(scope="module")
def site(book, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("AVBOOK_ARTIFACTS", str(book.parent/"artifacts"))
    yield build_site(book, []).parent
    patch.undo()


class Links(HTMLParser):
    "What a page points at and what it can be pointed at."
    def __init__(self, path):
        super().__init__()
        self.fetched, self.linked, self.names = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if "id" in found: self.names.add(found["id"])
        if "src" in found: self.fetched.append(found["src"])
        if tag == "link" and "href" in found: self.fetched.append(found["href"])
        if tag == "a" and "href" in found: self.linked.append(found["href"])


def test_sphinx_has_nothing_to_complain_of(site, book):
    assert (book.parent/"artifacts"/"site"/"warnings.txt").read_text() == ""
    assert not list(site.rglob("no.html"))


def test_every_link_leads_somewhere(site):
    pages = {path: Links(path) for path in site.rglob("*.html")}
    assert len(pages) >= 8
    for path, links in pages.items():
        for link in links.fetched + links.linked:
            if re.match(r"https?:|data:|mailto:", link): continue
            name, _, anchor = unquote(link).partition("#")
            target = (path.parent/name.partition("?")[0]).resolve() if name else path
            assert target.exists(), f"{path.name} points at {link}"
            if anchor and target in pages: assert anchor in pages[target].names, f"{path.name} points at {link}"


def test_nothing_is_fetched_from_elsewhere(site):
    for path in site.rglob("*.html"):
        assert not [link for link in Links(path).fetched if re.match(r"(https?:)?//", link)], path.name
    for path in site.rglob("*.css"):
        assert not re.search(r"""(url\(\s*['"]?|@import\s*['"])(https?:)?//""", path.read_text(encoding="utf-8")), path.name


def test_math_search_and_widgets_are_shipped(site):
    for name in ("searchindex.js", "_static/tex-svg.js", "_static/widgets.js", "_static/extension.js",
                 "_static/subtitles.js"):
        assert (site/name).stat().st_size > 100, name
    chapter = (site/"1_one"/"15_gates.html").read_text()
    assert "tex-svg.js" in chapter and "tag_exported" in chapter and "#|" not in chapter
    assert "widgets.js" not in chapter and "widgets.js" in (site/"1_one"/"19_explore.html").read_text()


def test_the_reference_is_made_of_docments(site):
    page = (site/"reference"/"avbook.reference.html").read_text()
    assert 'id="avbook.reference.parameter_rows"' in page and "../1_one/15_gates.html" in page
    text = re.sub("<.*?>", "", page)
    for said in ("a function or a class", "list[tuple[str, str, str, str]]", "what is returned comes last"):
        assert said in text, said


def test_a_second_time_only_what_changed_is_written(site, book):
    before = {path: path.stat().st_mtime_ns for path in site.rglob("*.html")}
    unchanged = site/"1_one"/"15_gates.html"
    assert build_site(book, []).parent == site
    assert unchanged.stat().st_mtime_ns == before[unchanged]
    assert set(before) == set(site.rglob("*.html"))


def test_a_widget_without_its_state_is_left_out(tmp_path):
    shown = nbformat.v4.new_code_cell("look()", outputs=[nbformat.v4.new_output("display_data", {VIEW: dict(model_id="1")})])
    write_notebook(tmp_path/"1_one"/"19_explore.ipynb", markdown("# Explore\n\n> A slider."), shown)
    assert VIEW not in site_pages(tmp_path, [], tmp_path/"runs")["1_one/19_explore.ipynb"]
    assert shown_copy(tmp_path/"1_one"/"19_explore.ipynb", [])[1] is None


def test_every_notebook_and_every_module_has_a_page(tmp_path):
    pages = site_pages(ROOT/"nbs", [], tmp_path)
    notebooks = {path.relative_to(ROOT/"nbs").as_posix() for path in (ROOT/"nbs").rglob("[0-9i]*.ipynb")
                 if not any(part.startswith((".", "_")) for part in path.relative_to(ROOT).parts)}
    assert notebooks <= set(pages)
    modules = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
               for path in (ROOT/"avbook").rglob("*.py")} - {"avbook", "avbook._modidx"}
    assert {name for name in modules if f"reference/{name}.md" not in pages} <= {"avbook.quality"}


def test_a_name_that_is_not_there_stops_the_reference(monkeypatch):
    monkeypatch.setattr("avbook.reference.__all__", ["nothing"])
    with pytest.raises(AttributeError, match="lists nothing in __all__"): module_page("avbook.reference", "x.ipynb")
    with pytest.raises(AttributeError): dict(reference_pages({"avbook.reference": "x.ipynb"}))


def opened(page, folder):
    "A page as a browser without a network makes it, and what it complained of."
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
               "--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND",
               "--enable-logging=stderr", "--v=0", "--virtual-time-budget=10000", f"--user-data-dir={folder}")
    done = subprocess.run([BROWSER, *options, "--dump-dom", page], capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line or "net::ERR" in line]


@pytest.mark.skipif(not BROWSER, reason="there is no Chromium")
@pytest.mark.parametrize("page, shown", [
    ("1_one/15_gates.html", ("<mjx-container", "<svg", "How a gate opens")),
    ("1_one/19_explore.html", ("widget-slider", "seen at 3", "data:image/png;base64")),
    ("search.html?q=gate", ("15_gates.html", "How a gate opens.")),
    ("reference/avbook.reference.html", ("parameter_rows",)),
])
def test_a_browser_shows_it_from_disk_without_a_network(site, tmp_path, page, shown):
    path, _, query = page.partition("?")
    found, complaints = opened(f"{(site/path).as_uri()}{'?' if query else ''}{query}", tmp_path)
    assert complaints == []
    for text in shown: assert text in found, text
