"""The page in a real Chromium: every tab is clicked through; nothing asks another host.

Run by `make test-app`; needs gradio, selenium, and Debian's chromium and chromium-driver.
`EVATOK_SCREENSHOTS=DIR` keeps a picture of each tab.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from video.writing import write_video

pytestmark = pytest.mark.slow
WAIT = 90  # seconds for a result
Square = Callable[[int, int, int, int], np.ndarray]


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    """The page's address, served as a reader serves it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "evatok", "app", "--port", "0", "--device", "cpu"],
        cwd=root,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    told = next(line for line in process.stderr if line.startswith("evatok: "))
    assert "http://" in told, told
    yield told.split()[1]
    process.terminate()
    _, rest = process.communicate(timeout=WAIT)
    assert "Traceback" not in rest, rest


@pytest.fixture(scope="module")
def driver(url: str) -> Iterator[Any]:
    webdriver = importlib.import_module("selenium.webdriver")
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1360,1000"):
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium") or "chromium"
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver") or "chromedriver")
    browser = webdriver.Chrome(options=options, service=service)
    browser.get(url)
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, square: Square) -> Path:
    """A video of two tiles, and two folders of three."""
    root = tmp_path_factory.mktemp("videos")
    write_video(root / "wide.mp4", square(40, 64, 112, 0), 15)
    for side in ("real", "fake"):
        for number in range(3):
            path = root / side / f"{number}.mp4"
            path.parent.mkdir(exist_ok=True)
            write_video(path, square(16, 64, 64, number + 5 * (side == "fake")), 15)
    return root


class Page:
    """The page as a reader sees it."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def until(self, what: Callable[[], Any]) -> Any:
        """Wait for something true, and return it."""
        wait = importlib.import_module("selenium.webdriver.support.ui").WebDriverWait
        errors = importlib.import_module("selenium.common.exceptions")
        ignored = [errors.StaleElementReferenceException, errors.ElementClickInterceptedException]
        return wait(self.browser, WAIT, ignored_exceptions=ignored).until(lambda _: what())

    def all(self, selector: str) -> list[Any]:
        """Elements on show, and inputs of files, which are never on show."""
        found = self.browser.find_elements("css selector", selector)
        return [one for one in found if one.is_displayed() or "file" in selector]

    def click(self, selector: str) -> None:
        def press() -> bool:
            self.all(selector)[0].click()
            return True

        self.until(lambda: self.all(selector))
        self.until(press)

    def tab(self, name: str) -> None:
        def press() -> bool:
            tabs = [one for one in self.all("button[role=tab]") if one.text == name]
            if tabs:
                tabs[0].click()
            return bool(tabs) and tabs[0].get_attribute("aria-selected") == "true"

        self.until(press)

    def upload(self, path: Path, place: int = 0) -> None:
        """Give a file or folder to an upload of the tab on show."""
        tab = self.until(lambda: self.all("div[role=tabpanel]"))[0]
        field = self.until(lambda: tab.find_elements("css selector", "input[type=file]"))[place]
        before = len(tab.find_elements("css selector", "tr.file"))
        field.send_keys(str(path))
        self.until(lambda: len(tab.find_elements("css selector", "tr.file")) > before)

    def text(self, selector: str) -> str:
        return " ".join(one.text for one in self.all(selector))

    def error(self, told: str) -> None:
        """Wait for a line that tells this."""
        self.until(lambda: told in self.text("[role=alert]"))

    def picture(self, name: str) -> None:
        folder = os.environ.get("EVATOK_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.browser.save_screenshot(str(Path(folder) / f"{name}.png"))


@pytest.fixture
def page(driver: Any) -> Page:
    return Page(driver)


def test_reconstruct(page: Page, videos: Path, tmp_path: Path) -> None:
    page.tab("Reconstruct")
    page.click("#run-reconstruct")
    page.error("upload a video first")
    page.upload(videos / "wide.mp4")
    page.click("#run-reconstruct")
    page.until(lambda: "bits per pixel" in page.text("#told-reconstruct"))
    told = page.text("#told-reconstruct")
    assert "112 × 64" in told and "dB PSNR" in told and "40\nframes" in told
    shown = page.until(lambda: [v for v in page.all("video") if _loaded(page, v)])
    page.until(lambda: len([v for v in page.all("video") if _loaded(page, v)]) == 2)
    assert shown and len(page.all(".evatok-chart svg")) == 2  # time, and space
    before = _decibels(told)
    field = page.until(lambda: page.all("#refine input[type=number]"))[0]
    field.send_keys("\b\b10\t")
    page.click("#run-reconstruct")
    page.until(lambda: _decibels(page.text("#told-reconstruct") or told) > before)
    page.picture("reconstruct")


def _decibels(told: str) -> float:
    return float(re.findall(r"([\d.]+)\s+dB PSNR", told)[0])


def _loaded(page: Page, video: Any) -> bool:
    return page.browser.execute_script("return arguments[0].videoWidth", video) == 112


def test_sample(page: Page) -> None:
    page.tab("Sample")
    page.click("#run-sample")
    page.error("choose a class or write a text")
    page.until(lambda: page.all("#text textarea"))[0].send_keys("a bright clip of Frogger")
    page.until(lambda: page.all("#lengths textarea, #lengths input"))[0].send_keys("16,8,8,5")
    page.click("#run-sample")
    page.error("each is one of")
    field = page.all("#lengths textarea, #lengths input")[0]
    field.send_keys("\b4")
    page.click("#run-sample")
    page.until(lambda: page.text("#told-sample").count("36 tokens") == 4)
    assert len(page.all("#told-sample img")) == 4
    page.picture("sample")


def test_predict(page: Page, videos: Path) -> None:
    page.tab("Predict")
    page.upload(videos / "wide.mp4")
    page.click("#run-predict")
    page.until(lambda: "11 generated" in page.text("#told-predict"))
    assert len(page.all("#told-predict img")) == 2 and "dB" in page.text("#told-predict")
    page.picture("predict")


def test_compare(page: Page, videos: Path) -> None:
    page.tab("Compare")
    page.click("#run-compare")
    page.error("the first folder has 0 videos")
    page.upload(videos / "real")
    page.upload(videos / "fake", 1)
    page.click("#run-compare")
    page.until(lambda: "FVD[nano]" in page.text("#told-compare"))
    assert "3 and 3" in page.text("#told-compare")
    page.picture("compare")


def test_nothing_asked_another_host(page: Page, url: str) -> None:
    """Of all that the browser asked for since the page was opened."""
    hosts = set()
    for entry in page.browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            address = urlsplit(message["params"]["request"]["url"])
            if address.scheme in ("http", "https", "ws", "wss"):
                hosts.add(address.hostname)
    assert hosts == {urlsplit(url).hostname}
