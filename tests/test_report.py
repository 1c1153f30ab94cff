"""``firstlight report``: its pages over real, simulated and damaged runs, and in a browser."""

import html
import json
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pyarrow.parquet as pq
import pytest
from browser import Browser, find_browser
from simulated_runs import Cell, runs_of, with_effects, write_runs
from sklearn.metrics import accuracy_score, recall_score

from firstlight import cli
from firstlight.callbacks import (
    FisherTraceMonitor,
    GradualUnfreezing,
    PerClassMonitor,
    PriorCorrection,
    SharpnessMonitor,
)
from firstlight.compare import compare
from firstlight.datamodules import DigitsDataModule
from firstlight.lightning_modules import ImageClassifier
from firstlight.report import LARGEST, report
from firstlight.runfolder import RunFolder, RunFolderError

STRENGTHS = [0.0, 0.1, 0.3]
CELL = Cell(30, 40, 0.7, 0.10)
HOSTILE = [
    "<script>document.title='owned'</script>",
    '"><img src=http://example.org/x.png onerror=alert(1)>',
    "costs $5 or $\\frac{1}$",
    "bell\x07 and\nline",
    "猫",
    "a" * 200,
    "{{ 7 * 7 }}",
]


def arms(strengths=STRENGTHS):
    return [{"arm": f"jitter {s:g}", "factor": "jitter", "strength": s} for s in strengths]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A real run on long-tailed digits, a few seconds: fit and test in one folder."""
    root = tmp_path_factory.mktemp("run")
    L.seed_everything(0, verbose=False)
    data = DigitsDataModule(imbalance_factor=10, img_size=8, batch_size=64, num_workers=0)
    early = {"every_n_train_steps": 3, "probe_size": 32, "batch_norm": "warm"}
    trainer = L.Trainer(
        max_epochs=4, accelerator="cpu", logger=False, default_root_dir=root,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        callbacks=[PerClassMonitor(), FisherTraceMonitor(**early), SharpnessMonitor(**early),
                   GradualUnfreezing(interval=4), PriorCorrection()],
    )  # fmt: skip
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}}
    model = ImageClassifier("resnet20_cifar", optimizer=optimizer)
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    return root / "firstlight"


@pytest.fixture
def copied(run, tmp_path):
    """The run, to be damaged."""
    return shutil.copytree(run, tmp_path / "copy")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Run folders of three arms of three."""
    generator = np.random.default_rng(0)
    before = CELL.chances(generator)
    after, _ = with_effects(CELL, before, 0.25, 3, generator)
    chances = [before + (after - before) * s / 0.3 for s in STRENGTHS]
    root = tmp_path_factory.mktemp("simulated")
    return write_runs(root, runs_of(CELL, chances, 3, generator), arms(), generator)


@pytest.fixture(scope="module")
def comparison(simulated, tmp_path_factory):
    return compare(simulated, out=tmp_path_factory.mktemp("out") / "effects", draws=50)


def described_study(root, simulated):
    """A study's folder, as ``firstlight study`` leaves it; one run has failed."""
    runs = []
    for number, path in enumerate(simulated):
        told, name = RunFolder.open(path).run, f"r{number}"
        shutil.copytree(path, root / "runs" / name)
        runs.append({"id": name, "arm": told["arm"], "strength": told["strength"],
                     "seed": told["seed"], "status": "finished", "folder": f"runs/{name}",
                     "error": None})  # fmt: skip
    failed = {"exit": -9, "lines": ["killed", "<b>by the kernel</b>"]}
    runs.append({"id": "r9", "arm": "jitter 0.3", "strength": 0.3, "seed": 9, "status": "failed",
                 "folder": "runs/r9", "error": failed})  # fmt: skip
    described = {"schema_version": 1, "name": "jitter", "status": "finished", "factor": "jitter",
                 "split": "test", "seeds": [0, 1, 2], "runs": runs, "comparison": None,
                 "arms": [{"arm": arm["arm"]} for arm in reversed(arms())],
                 "omissions": ["r9 failed, and is not in the comparison"]}  # fmt: skip
    (root / "study.json").write_text(json.dumps(described))
    return root


def change_study(study, **changes):
    file = study / "study.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture(scope="module")
def run_page(run, tmp_path_factory):
    return report([run], tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture(scope="module")
def comparison_page(comparison, tmp_path_factory):
    return report([comparison], tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture(scope="module")
def study_page(simulated, tmp_path_factory):
    return report([described_study(tmp_path_factory.mktemp("study"), simulated)])


@pytest.fixture
def study(simulated, tmp_path):
    return described_study(tmp_path / "study", simulated)


def words(page):
    """What a reader reads of a page."""
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page.read_text(encoding="utf-8"), flags=re.S)
    return " ".join(html.unescape(text).replace("\xa0", " ").split())


def figures(page):
    return re.findall(r'<figure id="([^"]+)"', page.read_text(encoding="utf-8"))


# ------------------------------------------------------------------ what the page says


def test_the_finding_is_the_evaluation(run, run_page):
    """scikit-learn's accuracy and recall on the table of predictions."""
    folder = RunFolder.open(run)
    table = folder.read_last("predictions", "test", ["target", "pred"])
    target, pred = (table[key].to_numpy() for key in ("target", "pred"))
    names = folder.read("classes")["name"].to_pylist()
    recall = recall_score(target, pred, average=None)
    worst = int(recall.argmin())
    right, of = ((pred == target) & (target == worst)).sum(), (target == worst).sum()
    said = words(run_page)
    assert f"{100 * accuracy_score(target, pred):.1f} % of {len(target)} test images are" in said
    assert f"{right} of {of} of the worst class, {names[worst]}" in said
    assert f"mean over classes {100 * recall.mean():.1f} %" in said
    wrong = (pred != target).sum()
    assert f"{wrong} images are classified wrongly" in said


def test_a_run_has_all_its_figures_also_as_files(run_page):
    names, folder = figures(run_page), run_page.with_suffix("")
    assert set(names) == {"per_class-test", "confusions-test", "before_after-prior_corrected-test",
                          "training_curves", "early_training"}  # fmt: skip
    for name in names:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        ET.parse(folder / f"{name}.svg")
    said = words(run_page)
    assert "Prior correction, on test data: the mean over classes goes from" in said
    assert "interval 4" in said and "layer3" in said  # the thaws, and why
    assert "model_name: resnet20_cifar" in said and "versions" in said and "torch" in said
    assert run_page.read_text().count("data:image/png;base64,") >= 4
    assert not list(run_page.parent.rglob("*.tmp"))


def test_before_and_after_are_those_of_the_prior(run, run_page):
    """The corrected evaluation is PerClassMonitor's own, which saw the corrected logits."""
    said = words(run_page)
    rows = RunFolder.open(run).read("per_class").to_pylist()
    means = {}
    for split in ("test", "test/prior_corrected", "test/prior_uncorrected"):
        of_split = [row for row in rows if row["split"] == split]
        means[split] = 100 * np.mean([row["correct"] / row["n"] for row in of_split])
    assert means["test"] == pytest.approx(means["test/prior_corrected"])
    before, after = means["test/prior_uncorrected"], means["test"]
    assert f"the mean over classes goes from {before:.1f} to {after:.1f} %" in said


def test_without_a_new_head_the_epochs_are_compared(copied):
    for part in (copied / "per_class").glob("*prior*"):
        part.unlink()
    said = words(report([copied]))
    assert "the first and the last evaluation of the training are compared" in said
    assert "Training, on val: the mean over classes goes from" in said


def test_a_comparison_has_all_its_figures(comparison, comparison_page):
    names, said = figures(comparison_page), words(comparison_page)
    line, arm = "line_over_jitter_0_to_0.3", "jitter_0.3_against_jitter_0"
    assert set(names) == {line, f"{line}-evidence", f"{line}-by_accuracy", "accuracy_by_strength",
                          "worst_by_strength", f"{arm}-confusions", f"{arm}-receiving", arm,
                          "jitter_0.1_against_jitter_0"}  # fmt: skip
    assert {file.stem for file in comparison_page.with_suffix("").glob("*.svg")} == set(names)
    table = pq.ParquetFile(comparison / "class_effects.parquet").read().to_pylist()
    of_line = [row for row in table if row["comparison"].startswith("line")]
    effects = [row["effect"] for row in of_line]
    sure = [row["effect"] for row in of_line if row["q"] < 0.05 and abs(row["effect"]) >= 0.02]
    lose, gain = sum(e < 0 for e in sure), sum(e > 0 for e in sure)
    assert lose >= 3 and gain >= 3
    assert f"{lose} of 30 classes lose and {gain} gain more than seeds explain" in said
    assert "on this test set: would other seeds say the same of these images?" in said
    assert f"at worst class {int(np.argmin(effects))} by {100 * min(effects):+.1f}" in said


def test_a_study_lists_its_runs_and_is_compared(study_page):
    said, root = words(study_page), study_page.parent
    assert (root / "class_effects" / "summary.json").exists() and study_page.name == "report.html"
    assert "1 of 10 runs are not finished, and left out: r9" in said
    assert "r9 failed, and is not in the comparison" in said
    assert "r9 ended with -9" in said and "<b>by the kernel</b>" in said
    assert "of 30 classes lose" in said
    assert said.count("finished") >= 9
    assert "jitter 0 against jitter 0.3" in said  # the study's first arm is compared with


@pytest.mark.slow
def test_a_study_s_own_comparison_is_taken(study, comparison):
    shutil.copytree(comparison, study / "mine")
    change_study(study, comparison="mine")
    report([study])
    assert not (study / "class_effects").exists()


def test_a_study_that_cannot_be_compared_yet_says_why(study):
    described = json.loads((study / "study.json").read_text())
    for number, one in enumerate(described["runs"]):
        one["status"] = "finished" if number == 0 else "waiting"
    change_study(study, status="running", runs=described["runs"])
    said = words(report([study]))
    assert "This study has not ended (its status is running)" in said
    assert "the arms are not compared: a comparison needs two arms or more, got 1 run(s)" in said


@pytest.mark.slow
def test_several_runs_are_compared_first(simulated, monkeypatch, capsys, tmp_path):
    paths = [str(shutil.copytree(path, tmp_path / path.name)) for path in simulated[:4:3]]
    monkeypatch.setattr(sys, "argv", ["firstlight", "report", *paths])
    cli.main()
    (page,) = tmp_path.rglob("report.html")
    assert "jitter 0.1 against jitter 0" in words(page)
    assert "The page:" in capsys.readouterr().out


# ------------------------------------------------------------------ what is missing or damaged


def test_what_was_not_recorded_is_said(simulated, tmp_path):
    """Predictions alone, as some other program may write them."""
    said = words(report([simulated[0]], tmp_path / "page.html"))
    assert "This run recorded no evaluation of its classes" in said
    assert "this run recorded no Fisher trace: add FisherTraceMonitor" in said
    assert "this run recorded no sharpness: add SharpnessMonitor" in said
    assert "this run recorded neither loss nor accuracy over training" in said
    assert "no config.yaml is in the run folder" in said
    assert "no event was recorded" in said


def test_a_run_still_going_says_so(tmp_path):
    folder = RunFolder.create(tmp_path / "going", status="running", run_id="x")
    said = words(report([folder.path]))
    assert "This run has not ended (its status is running)" in said
    counts = {"class": range(3), "n": [4, 4, 4], "correct": [4, 2, 1], "pred_count": [6, 3, 3]}
    folder.write("per_class", counts, step=7, split="val")
    said = words(report([folder.path]))
    assert "58.3 % of 12 validation images are right, 1 of 4 of the worst class, 2" in said
    assert "nothing is shown before and after: one evaluation of one set was recorded" in said
    assert "no predictions of val were recorded" in said
    assert "no example images are in the run folder" in said


@pytest.mark.parametrize("table", ["predictions", "fisher_trace", "per_class", "events"])
def test_a_truncated_part_is_named_and_the_rest_shown(copied, table):
    ends = "*-test.parquet" if table == "predictions" else "*.parquet"
    part = sorted((copied / table).glob(ends))[-1]
    part.write_bytes(part.read_bytes()[:-20])
    said = words(report([copied]))
    assert "Some files of this run cannot be read; they are named at the end" in said
    assert f"{table}/{part.name} cannot be read" in said
    left = {"predictions": {"training_curves", "early_training"}, "per_class": set(),
            "fisher_trace": {"confusions-test"}, "events": {"confusions-test"}}  # fmt: skip
    assert left[table] <= set(figures(copied / "report.html"))
    assert "model_name: resnet20_cifar" in said


def test_nan_predictions_are_no_obstacle(copied):
    for part in (copied / "predictions").glob("*-test.parquet"):
        table = pq.ParquetFile(part).read()
        bad = {name: np.full(table.num_rows, np.nan, np.float32) for name in ("p_true", "p_pred")}
        for name, values in bad.items():
            at = table.column_names.index(name)
            table = table.set_column(at, table.schema.field(name), [values])
        pq.write_table(table, part)
    page = report([copied])
    assert "confusions-test" in figures(page) and "nan" not in words(page).lower().split()


def test_a_diverged_run_says_where(tmp_path):
    folder = RunFolder.create(tmp_path / "run", status="failed")
    for step, loss in ((10, 2.0), (20, 1.0), (30, np.nan)):
        columns = {"key": ["train/loss", "val/loss", "val/top1"], "value": [loss, loss, 0.1]}
        folder.write("scalars", columns, step=step, split="train")
    said = words(report([folder.path]))
    assert "This run did not end by itself (its status is failed)" in said
    assert "the validation loss is no number at the end" in said


def test_refuses_what_is_no_run(simulated, comparison, tmp_path):
    with pytest.raises(RunFolderError, match=r"no run, study or comparison.*There are runs below"):
        report([simulated[0].parent.parent])
    with pytest.raises(RunFolderError, match="there is no such folder"):
        report([tmp_path / "nowhere"])
    copy = shutil.copytree(comparison, tmp_path / "copy")
    file = copy / "class_effects.parquet"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(RunFolderError, match=r"class_effects\.parquet cannot be read"):
        report([copy])
    (copy / "summary.json").write_text("{")
    with pytest.raises(RunFolderError, match="not a comparison's summary"):
        report([copy])
    (copy / "study.json").write_text('{"runs": 3}')
    with pytest.raises(RunFolderError, match="not a study's description"):
        report([copy])
    with pytest.raises(RunFolderError, match="is no run folder"):
        report([simulated[0], tmp_path])
    assert not list(tmp_path.rglob("report.html"))


def test_the_command_line_says_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["firstlight", "report", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"firstlight report: .* is no run, study or comp"):
        cli.main()


def test_runs_of_the_first_schema_are_read(tmp_path):
    copy = shutil.copytree(Path(__file__).parent / "data" / "runfolder-v1", tmp_path / "old")
    assert report([copy]).exists()


def test_one_run_an_arm_says_that_it_is_little(simulated, tmp_path):
    out = compare([simulated[0], simulated[6]], out=tmp_path / "out", draws=50)
    said = words(report([out]))
    assert "1 run(s) in an arm: no q-values" in said
    assert "no effects against their p-values, since too few runs an arm give no q-values" in said
    assert "leave the band that chance alone gives" in said


# ------------------------------------------------------------------ hostile and large data


@pytest.fixture
def hostile(tmp_path):
    """Two runs whose classes, arms, events and configuration try to leave their place."""
    generator = np.random.default_rng(1)
    cell = Cell(len(HOSTILE), 20, 0.6, 0.2)
    told = [{"arm": f"</title>{one}", "factor": "<i>$x$", "strength": float(len(one))}
            for one in HOSTILE[:2]]  # fmt: skip
    runs = runs_of(cell, [cell.chances(generator) for _ in told], 3, generator)
    paths = write_runs(tmp_path / "runs", runs, told, generator)
    for path, row in zip(paths, runs.correct, strict=True):
        folder = RunFolder.open(path)
        folder.write("classes", {"class": range(cell.classes), "name": HOSTILE})
        correct = np.bincount(runs.targets, row, cell.classes).astype(int)
        folder.write("per_class", {"class": range(cell.classes), "n": 20, "correct": correct},
                     step=1000, split="test")  # fmt: skip
        reason = {"kind": ["thaw"], "block": HOSTILE[:1], "reason": HOSTILE[1:2]}
        folder.write("events", reason, step=3, split="thaw")
        columns = {"key": "val/loss", "value": 1.0}
        folder.write("scalars", columns, step=1000, split="val")
        (path / "config.yaml").write_text(f"a: {HOSTILE[1]}\n</pre><script>1</script>\n")
    return paths


def test_names_from_data_stay_text(hostile, tmp_path):
    pages = [report([hostile[0]]), report([compare(hostile, out=tmp_path / "o", draws=10)])]
    for page in pages:
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
    monkeypatch.setattr("firstlight.report.LARGEST", 1000)
    with pytest.raises(ValueError, match="MiB: remove some of the images"):
        report([copied])
    assert not (copied / "report.html").exists()


def test_heavy_images_are_left_out_and_counted(copied):
    (copied / "examples" / "3_999.png").write_bytes(b"\x89PNG" + bytes(1 << 20))
    (copied / "examples" / "note_1.png").write_bytes(b"<svg onload=alert(1)>")
    assert "2 example images are not shown" in words(report([copied]))


# ------------------------------------------------------------------ in a browser


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


@pytest.fixture
def hostile_page(hostile):
    return report([hostile[0]])


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
