"""The audit's page in a browser: a reviewer judges by keys and clicks, saves the verdicts, and they are read back."""

import json
import shutil
from pathlib import Path

import pytest

from cal_cli.inspection.review import Design, Review, read_verdicts
from tests.cal import cal

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
AUDIT = ["data-audit", "data.n=60", "data.text_only_share=0", "noise.ratio=0.3", "review=20", "page_samples=40"]


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """The folder of an audit of which it is known what is wrong."""
    folder = tmp_path_factory.mktemp("page")
    cal(*AUDIT, folder=folder)
    (output,) = folder.glob("runs/data-audit/*")
    return folder, output


@pytest.fixture
def page(audited):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page()
        errors = []
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.goto((audited[1] / "audit.html").as_uri())
        yield opened
        assert errors == []
        browser.close()


def save(page, folder) -> Path:
    with page.expect_download() as download:
        page.click("button[name=save]")
    download.value.save_as(folder / "verdicts.json")
    return folder / "verdicts.json"


def test_a_review_is_saved_and_changes_the_audit(audited, page):
    import pandas as pd

    folder, output = audited
    before = pd.read_parquet(output / "audit.parquet").set_index("index")
    assert page.locator("article:visible").count() == 20 and page.locator(".judge:visible").count() == 0
    page.click("button[name=judge]")
    for number in range(20):
        place = int(page.locator("article.current").get_attribute("data-index"))
        if number == 3:
            page.keyboard.press("u")
        elif number == 4:
            page.locator("article.current button", has_text="wrong" if before["is_noise"][place] else "right").click()
        else:
            page.keyboard.press("w" if before["is_noise"][place] else "r")
        if number == 10:
            page.reload()  # the browser keeps the verdicts
            assert page.locator("output[name=judged]").inner_text() == "11 of 20 judged"
            page.click("button[name=judge]")
    saved = save(page, folder)
    design, verdicts = read_verdicts(saved)
    assert design == Design("contradiction", 60, 20, 0)
    assert [one["index"] for one in verdicts] == before[before["turn"] >= 0].sort_values("turn").index.tolist()
    assert [one["verdict"] for one in verdicts].count("unsure") == 1

    told = cal(*AUDIT, f"verdicts={saved}", folder=folder).stdout
    table = pd.read_parquet(output / "audit.parquet").set_index("index")
    review = json.loads((output / "audit.json").read_text())["review"]
    wrong = [one["index"] for one in verdicts if one["verdict"] == "wrong"]
    assert (review["judged"], review["wrong"], review["unsure"]) == (19, len(wrong), 1) and "Judged: 19" in told
    expected = Review(Design("contradiction", 60, 20, 0).assign(before.sort_values("rank").index.to_numpy()), {
        one["index"]: one["verdict"] for one in verdicts
    }).estimate_total()  # fmt: skip
    assert review["total"] == expected and expected["ci95"][0] <= 18 <= expected["ci95"][1]
    assert table["dropped"][wrong].all() and (table["p_mismatch"][wrong] == 1).all()
    right = [one["index"] for one in verdicts if one["verdict"] == "right"]
    assert not table["dropped"][right].any() and (table["p_mismatch"][right] == 0).all()

    refused = cal(*AUDIT, f"verdicts={saved}", "data.n=50", folder=folder, check=False)
    assert refused.returncode == 2 and "of an audit of other data" in refused.stderr
    refused = cal(*AUDIT, "precision=0.9", folder=folder, check=False)
    assert refused.returncode == 2 and "verdicts=verdicts.json" in refused.stderr


def test_going_back_changes_a_verdict(audited, page):
    page.click("button[name=judge]")
    first = page.locator("article.current").get_attribute("data-index")
    page.keyboard.press("r")
    assert page.locator("article.current").get_attribute("data-index") != first
    page.keyboard.press("z")
    assert page.locator("article.current").get_attribute("data-index") == first
    page.keyboard.press("w")
    _, verdicts = read_verdicts(save(page, audited[0]))
    assert {one["index"]: one["verdict"] for one in verdicts}[int(first)] == "wrong"


def test_the_worst_are_shown_in_their_order_after_a_review(audited, page):
    page.click("button[name=judge]")
    page.select_option("select[name=kind]", "all")
    ranks = [int(text) for text in page.locator("article:visible .id b").all_inner_texts()]
    assert ranks == sorted(ranks) and ranks[0] == 1
    page.fill("input[name=text]", "no such words")
    assert page.locator("article:visible").count() == 0
