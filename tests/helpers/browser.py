"""Debian's Chromium without a screen, for tests of pages; `make browser` installs it."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.helpers.fake_generators import WAIT
from tests.helpers.running_services import until

SCREENSHOTS = pathlib.Path("out/screenshots")
"""The folder in which tests keep what they saw."""

_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # for root, as in containers
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1280,900",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A browser with an empty profile. Tests fail where it is not installed."""
    driver = shutil.which("chromedriver")
    assert driver, "chromedriver is not installed; run `make browser`"
    options = ChromeOptions()
    for argument in (*_ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with Chrome(options, ChromeService(driver)) as chrome:
        yield chrome


def find(browser: Chrome, selector: str) -> WebElement:
    """Return the element of a CSS selector, once it is there."""
    return WebDriverWait(browser, WAIT, 0.02).until(lambda _: browser.find_element(By.CSS_SELECTOR, selector))


def find_all(browser: Chrome, selector: str, count: int) -> list[WebElement]:
    """Return the elements of a CSS selector, once there are as many as expected."""
    until(lambda: len(browser.find_elements(By.CSS_SELECTOR, selector)) == count)
    found: list[WebElement] = browser.find_elements(By.CSS_SELECTOR, selector)
    return found


def screenshot(browser: Chrome, name: str) -> None:
    """Keep what the browser shows in the folder of screenshots."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    assert browser.save_screenshot(str(SCREENSHOTS / f"{name}.png"))
