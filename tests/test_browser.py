"""What a reader sees: the notebooks that look inside in a real JupyterLab, the site with no network, both in a browser.

Skipped where there is no Playwright (pip install avbook[browser]) or no Chromium (on the path, or Playwright's own).
"""
import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from avbook.repro import artifacts_folder
from avbook.scenes import SceneSpec, render_scene
from avbook.video import write_video

playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright here: pip install avbook[browser]")
EXPLORE = ["1_saliency/19_explore.ipynb", "2_classification/29_explore.ipynb", "3_quality/39_explore.ipynb"]
PICTURES = """async () => Promise.all([...document.querySelectorAll("img.widget-image")].map(async image =>
    [...new Uint8Array(await (await fetch(image.src)).arrayBuffer())].reduce((sum, byte) => (31*sum + byte) | 0, 7)))"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        try: opened = started.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        except playwright.Error as problem: pytest.skip(f"no Chromium here: {str(problem).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory, root):
    "A JupyterLab over copies of the three notebooks; its address."
    folder, runtime = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("runtime")
    for name in EXPLORE:
        (folder/name).parent.mkdir()
        shutil.copy(root/"nbs"/name, folder/name)
    settings = runtime/"settings"/"@jupyterlab"/"notebook-extension"/"tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}')   # else what is not in view is not in the page
    environ = dict(os.environ, JUPYTER_RUNTIME_DIR=str(runtime), JUPYTERLAB_SETTINGS_DIR=str(runtime/"settings"))
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--port=0", "--IdentityProvider.token=",
               f"--notebook-dir={folder}", "--LabApp.news_url=None",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with open(folder/"server.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environ)
    try:
        deadline = time.monotonic() + 60
        while not (told := [*runtime.glob("jpserver-*.json")]) and time.monotonic() < deadline: time.sleep(.5)
        assert told, (folder/"server.log").read_text()
        yield json.loads(told[0].read_text())["url"]
    finally: server.terminate(); server.wait()


def listening(page):
    "What goes wrong in a page, as it is told."
    told = []
    page.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("requestfailed", lambda request: None if request.url.startswith("blob:") else told.append(f"failed: {request.url}"))
    return told


def until(page, is_so, seconds, what):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"{what} took more than {seconds} s"
        page.wait_for_timeout(300)


def run_all(page, address):
    page.goto(address)
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
    until(page, lambda: page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').count(), 60, "the kernel")
    prompts = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(each => each.textContent)"
    while not any(set(prompt) & set("*0123456789") for prompt in page.evaluate(prompts)):   # it listens only after a while
        page.wait_for_timeout(1000)
        page.click("text=Run >> nth=0")
        page.wait_for_timeout(500)
        page.click("text=Run All Cells >> nth=0")
        page.wait_for_timeout(1500)
    until(page, lambda: all(set(prompt) & set("0123456789") for prompt in page.evaluate(prompts)), 240, "running all cells")


def move(page, control):
    "A good way along a slider; the last or the first choice of a list."
    control.scroll_into_view_if_needed()
    if control.evaluate("each => each.tagName") == "SELECT":
        last = control.locator("option").count() - 1
        control.select_option(index=last if control.evaluate("each => each.selectedIndex") != last else 0)
    else:
        control.focus()
        is_at_end = float(control.get_attribute("aria-valuenow")) >= float(control.get_attribute("aria-valuemax"))
        for _ in range(2): page.keyboard.press("PageDown" if is_at_end else "PageUp")


def follows(page, act):
    "Do it, and see that a picture has changed."
    before = page.evaluate(PICTURES)
    act()
    until(page, lambda: page.evaluate(PICTURES) not in ([], before), 60, "a new picture")
    page.wait_for_timeout(500)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    "A rendered scene as a film."
    spec = SceneSpec(seed=3, n_frames=50)
    scene = render_scene(spec)
    path = tmp_path_factory.mktemp("clip")/"own.mp4"
    write_video(path, scene.frames, spec.fps, scene.waveform, spec.sample_rate)
    return path


@pytest.mark.parametrize("name", EXPLORE)
def test_a_widget_follows_in_jupyterlab(name, lab, browser, clip):
    page = browser.new_context(viewport=dict(width=1500, height=1800)).new_page()
    told = listening(page)
    run_all(page, f"{lab}lab/tree/{name}?reset")
    failed = page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()
    assert not failed, failed[0]
    drawn = page.locator(".jp-OutputArea-output:has(img.widget-image)")
    controls = [*drawn.locator(".widget-slider .noUi-handle").all(), *drawn.locator(".widget-dropdown select").all()]
    assert len(controls) >= 2
    for control in controls: follows(page, lambda control=control: move(page, control))
    with page.expect_file_chooser() as asked: page.locator("button:has-text('your clip')").first.click()
    follows(page, lambda: asked.value.set_files(clip))
    alerts = [each for each in page.locator("p[role=alert]").all_inner_texts() if "No clip yet" not in each]
    assert not alerts, alerts[0]
    assert not told, told
    page.context.close()


def test_the_site_asks_no_network(browser):
    "The site as `make workbook` or `make site` left it."
    site = artifacts_folder("workbook")
    pages = [path for path in sorted(site.rglob("*.html")) if "runs" not in path.relative_to(site).parts]
    if not pages: pytest.skip("there is no site here: make site")
    context = browser.new_context(offline=True)
    for path in pages:
        page = context.new_page()
        told, asked = listening(page), []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_timeout(300)
        assert not told, (path, told)
        assert all(url.startswith(("file:", "data:", "blob:")) for url in asked), path
        page.close()
    context.close()
