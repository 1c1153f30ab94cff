"""Pages of ``firstlight report`` as a browser shows them; names that try to leave their place."""

import html
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from browser import Browser, find_browser
from report_cases import arms, words
from simulated_runs import Cell, runs_of, write_runs

from firstlight.compare import compare
from firstlight.report.command import LARGEST, report
from firstlight.runfolder import RunFolder

pytestmark = pytest.mark.xdist_group("report")  # one worker makes the runs


def test_names_from_data_stay_text(hostile, hostile_page, tmp_path):
    for page in (hostile_page, report([compare(hostile, out=tmp_path / "o", draws=10)])):
        source = page.read_text(encoding="utf-8")
        assert "<script" not in source and "onerror=alert(1)>" not in source
        assert "{{ 7 * 7 }}" in html.unescape(source) and "猫" in source
        assert not re.findall(r'(?:src|href)="(?!data:image/png;base64,|#)', source)
        assert "<img src=http" not in source
        ET.fromstring(re.sub(r"(?s).*?(<svg.*?</svg>).*", r"\1", source))


@pytest.mark.slow
def test_a_thousand_classes_stay_small(tmp_path):
    generator = np.random.default_rng(0)
    cell = Cell(1000, 10, 0.76, 0.1)
    before = cell.chances(generator)
    runs = runs_of(cell, [before, before, before], 3, generator)
    paths = write_runs(tmp_path / "runs", runs, arms(), generator)
    folder = RunFolder.open(paths[0])
    correct = np.bincount(runs.targets, runs.correct[0], 1000).astype(int)
    for step, share in ((10, 0.5), (1000, 1.0)):
        columns = {"class": range(1000), "n": 10, "correct": (share * correct).astype(int)}
        folder.write("per_class", columns, step=step, split="test")
    for page in (report([folder.path]),
                 report([compare(paths, out=tmp_path / "out", draws=20)])):  # fmt: skip
        assert page.stat().st_size < LARGEST / 2
        assert "1,000 classes" in words(page)


def test_a_page_that_would_be_too_large_is_refused(copied, monkeypatch):
    monkeypatch.setattr("firstlight.report.command.LARGEST", 1000)
    with pytest.raises(ValueError, match="MiB: remove some of the images"):
        report([copied])
    assert not (copied / "report.html").exists()


def test_heavy_images_are_left_out_and_counted(copied):
    (copied / "examples" / "3_999.png").write_bytes(b"\x89PNG" + bytes(1 << 20))
    (copied / "examples" / "note_1.png").write_bytes(b"<svg onload=alert(1)>")
    assert "2 example images are not shown" in words(report([copied]))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    find_browser()
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


SEEN = """(() => {
  document.querySelectorAll("details").forEach(one => one.open = true);
  const box = one => one.getBoundingClientRect();
  const svgs = [...document.querySelectorAll("figure svg")];
  const scrolls = one => one.closest(".scroll, pre") !== null;
  const ids = [...document.querySelectorAll("[id]")].map(one => one.id);
  return {
    svgs: svgs.map(one => [one.closest("figure").id, box(one).width, box(one).height,
                           one.getBBox().width, one.querySelectorAll("path, use, image").length]),
    figures: document.querySelectorAll("figure").length,
    texts: svgs.flatMap(one => [...one.querySelectorAll("text")]
      .map(text => parseFloat(getComputedStyle(text).fontSize)
        * box(one).width / one.viewBox.baseVal.width)),
    images: [...document.images].map(one => [one.complete, one.naturalWidth, box(one).width]),
    wide: [...document.querySelectorAll("body *")].filter(one => !scrolls(one)
      && !one.closest("svg") && box(one).right > innerWidth + 0.5)
      .map(one => one.outerHTML.slice(0, 80)),
    overflow: document.documentElement.scrollWidth - innerWidth,
    twice: ids.filter((id, at) => ids.indexOf(id) !== at),
    scripts: document.scripts.length,
    title: document.title,
    missing: [...document.querySelectorAll("svg use")].filter(one => {
      const at = one.getAttribute("xlink:href") || one.getAttribute("href");
      return !at || !document.getElementById(at.slice(1)); }).length,
  };
})()"""


def look(browser, page, width, dark=False):
    """Open a page and check what holds for every page at every width."""
    browser.open(page, width, dark)
    seen = browser.evaluate(SEEN)
    assert browser.complaints() == []
    assert all(url.startswith(("file:", "data:image/png;base64,")) for url in browser.requested())
    assert len([url for url in browser.requested() if url.startswith("file:")]) == 1
    assert seen["scripts"] == 0 and seen["overflow"] <= 0 and seen["wide"] == []
    assert seen["twice"] == [] and seen["missing"] == 0
    assert len(seen["svgs"]) == seen["figures"] > 0
    for name, across, down, drawn, parts in seen["svgs"]:
        assert min(across, down, drawn) > 100 and parts > 10, name
    assert all(done and natural > 0 and shown > 20 for done, natural, shown in seen["images"])
    assert page.stat().st_size < LARGEST
    return seen


@pytest.mark.parametrize("kind", ["run", "comparison", "study", "hostile"])
def test_pages_in_a_browser(kind, browser, tmp_path, request):
    page = request.getfixturevalue(f"{kind}_page")
    wide, phone = look(browser, page, 1200), look(browser, page, 380)
    assert min(phone["texts"]) > 6, "labels are too small on a phone"
    assert len(wide["images"]) == len(phone["images"])
    assert "owned" not in wide["title"].split()
    if kind == "run":
        assert len(wide["images"]) >= 4
    assert look(browser, page, 1200, dark=True)["svgs"]
    printed = tmp_path / "page.pdf"
    browser.pdf(printed)
    assert printed.read_bytes().startswith(b"%PDF") and printed.stat().st_size > 10_000


def test_the_browser_checks_see_a_broken_page(browser, tmp_path, run_page):
    """Each of them fails on a page that is broken in its way."""
    good = run_page.read_text(encoding="utf-8")
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', good)[0]
    broken = {
        "script": good.replace("</main>", "<script>nothing.there()</script></main>"),
        "network": good.replace(policy, "").replace(
            "</main>", '<img src="http://127.0.0.1:9/x.png"></main>'),
        "overflow": good.replace("</main>", '<div style="width:2000px">x</div></main>'),
        "empty figure": good.replace("<figcaption>", "<svg></svg><figcaption>", 1),
        "no image": good.replace("data:image/png;base64,iVBOR", "data:image/png;base64,AAAA", 1),
    }  # fmt: skip
    assert all(source != good for source in broken.values())
    seen = set()
    for name, source in broken.items():
        page = tmp_path / "broken.html"
        page.write_text(source, encoding="utf-8")
        try:
            look(browser, page, 380)
        except AssertionError:
            seen.add(name)
    assert seen == set(broken)


def test_a_missing_browser_skips_unless_it_is_needed(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("FIRSTLIGHT_NEED_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no browser: none of chromium"):
        find_browser()
    monkeypatch.setenv("FIRSTLIGHT_NEED_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception, match="FIRSTLIGHT_NEED_BROWSER is set"):
        find_browser()
