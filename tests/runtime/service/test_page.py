"""The page in a real browser: generating, editing, comparing, cancelling, errors, a reload, a phone, the keyboard."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from runtime.service.settings import ServiceSettings
from tests.helpers.browser import find, find_all, screenshot
from tests.helpers.fake_generators import FakeEngines, Gate, fake_generator
from tests.helpers.running_services import RunningService, running_service, until

FINISHED = "figure button:enabled img"
SETTINGS = ServiceSettings(max_images=6, max_partial_images=3)


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with running_service({"owls": fake_generator()}, SETTINGS) as running:
        until(lambda: running.service.ready)
        yield running


@pytest.fixture
def page(browser: Chrome, service: RunningService) -> Iterator[Chrome]:
    """The page, freshly opened; its console must stay free of errors."""
    open_page(browser, service)
    browser.get_log("browser")
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def open_page(browser: Chrome, service: RunningService, settings: str = "") -> None:
    browser.set_window_size(1280, 900)
    browser.get("about:blank")
    browser.get(f"{service.url}/{settings}")
    find_all(browser, "#class-names option", 3)


def fill(browser: Chrome, **values: Any) -> None:
    for name, value in values.items():
        field = browser.find_element(By.CSS_SELECTOR, f"#settings [name={name}]")
        if field.tag_name == "select":
            Select(field).select_by_value(value)
        else:
            field.clear()
            field.send_keys(str(value))


def draw(browser: Chrome) -> None:
    browser.find_element(By.CSS_SELECTOR, "#settings [type=submit]").click()


def pixels(image: Any) -> NDArray[np.uint8]:
    content = base64.b64decode(image.get_attribute("src").partition("base64,")[2])
    return np.asarray(Image.open(io.BytesIO(content)))


def alone(label: int, seed: int, index: int, **settings: Any) -> NDArray[np.uint8]:
    with fake_generator() as generator:
        images = generator.generate([label], seed=seed, index=[index], **settings).images
    assert images is not None
    return images[0, ..., 0]


def test_the_images_are_those_of_the_generator(page: Chrome) -> None:
    fill(page, prompt="dog", count=3, seed=7)
    draw(page)
    for number, image in enumerate(find_all(page, FINISHED, 3)):
        assert np.array_equal(pixels(image), alone(1, 7, number, preset="exact"))
        assert image.get_attribute("alt") == f"dog, seed 7, image {number}"
    until(lambda: page.find_element(By.ID, "status").text == "Done.")
    screenshot(page, "page-generated")


def test_a_class_without_a_name_is_shown_by_its_number(browser: Chrome) -> None:
    with running_service({"owls": fake_generator(class_names=())}, SETTINGS) as service:
        until(lambda: service.service.ready)
        browser.get("about:blank")
        browser.get(f"{service.url}/")
        until(lambda: "3 classes" in browser.find_element(By.ID, "about").text)
        fill(browser, prompt="1", count=1, seed=7)
        draw(browser)
        (image,) = find_all(browser, FINISHED, 1)
        assert image.get_attribute("alt") == "class 1, seed 7, image 0"


def test_nothing_comes_from_outside(page: Chrome, service: RunningService) -> None:
    loaded = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert loaded
    assert all(address.startswith((f"{service.url}/", "data:")) for address in loaded)


def test_an_image_is_enlarged_repeated_and_varied(page: Chrome) -> None:
    fill(page, prompt="cat", count=2, seed=5)
    draw(page)
    find_all(page, FINISHED, 2)[1].click()
    shown = find(page, "#viewer[open] #viewer-image")
    assert np.array_equal(pixels(shown), alone(0, 5, 1, preset="exact"))
    assert page.find_element(By.ID, "download").get_attribute("download") == "cat-seed-5-image-1.png"
    page.find_element(By.ID, "repeat").click()
    repeated = find_all(page, FINISHED, 3)[0]  # the newest request stands first
    assert np.array_equal(pixels(repeated), alone(0, 5, 1, preset="exact"))
    repeated.click()
    page.find_element(By.ID, "vary").click()
    varied = find_all(page, FINISHED, 5)[:2]
    assert all(image.get_attribute("alt").startswith("cat, seed ") for image in varied)
    assert not any(image.get_attribute("alt").startswith("cat, seed 5,") for image in varied)


def test_what_is_painted_is_drawn_again(page: Chrome) -> None:
    fill(page, prompt="cat", count=1, seed=5)
    draw(page)
    find_all(page, FINISHED, 1)[0].click()
    page.find_element(By.ID, "edit").click()
    canvas = find(page, "#mask")
    box = canvas.size
    stroke = ActionChains(page).move_to_element_with_offset(canvas, -box["width"] // 2 + 5, -box["height"] // 2 + 5)
    stroke.click_and_hold().move_by_offset(box["width"] - 10, 0).release().perform()
    screenshot(page, "page-mask")
    prompt = page.find_element(By.CSS_SELECTOR, "#edit-form [name=prompt]")
    prompt.clear()
    prompt.send_keys("owl")
    page.find_element(By.CSS_SELECTOR, "#edit-form [type=submit]").click()
    edited, original = (pixels(image) for image in find_all(page, FINISHED, 2))
    assert np.array_equal(edited[8:], original[8:])  # the stroke crosses the first row of tokens only
    assert not np.array_equal(edited[:4], original[:4])


def test_the_mask_can_be_painted_with_the_keyboard(page: Chrome) -> None:
    fill(page, prompt="cat", count=1, seed=5)
    draw(page)
    find_all(page, FINISHED, 1)[0].click()
    edit = page.find_element(By.ID, "edit")
    edit.send_keys(Keys.ENTER)
    assert page.switch_to.active_element.get_attribute("id") == "mask"
    page.find_element(By.CSS_SELECTOR, "#edit-form [type=submit]").click()  # an empty mask is not sent
    assert page.find_element(By.ID, "viewer").get_attribute("open")
    page.switch_to.active_element.send_keys(Keys.ARROW_DOWN * 12 + " ")  # from the middle down
    page.find_element(By.CSS_SELECTOR, "#edit-form [type=submit]").send_keys(Keys.ENTER)
    edited, original = (pixels(image) for image in find_all(page, FINISHED, 2))
    assert np.array_equal(edited[:8], original[:8])
    assert not np.array_equal(edited[8:], original[8:])


def test_a_mask_has_the_size_of_an_image_that_is_not_square(page: Chrome) -> None:
    """Both corners are reached by key, and the pixels there are transparent: those are drawn again."""
    found = page.execute_async_script(
        """
        const done = arguments[0];
        (async () => {
          const { Mask } = await import("/static/mask.js");
          const mask = new Mask(document.createElement("canvas"));
          mask.reset({ width: 64, height: 32 });
          const press = (key) => mask.canvas.dispatchEvent(new KeyboardEvent("keydown", { key }));
          for (const [x, y] of [["ArrowRight", "ArrowDown"], ["ArrowLeft", "ArrowUp"]]) {
            for (let step = 0; step < 64; step += 1) {
              press(x);
              press(y);
            }
            press(" ");
          }
          const image = await createImageBitmap(await mask.blob());
          const canvas = new OffscreenCanvas(image.width, image.height);
          const context = canvas.getContext("2d");
          context.drawImage(image, 0, 0);
          const alpha = (x, y) => context.getImageData(x, y, 1, 1).data[3];
          done([image.width, image.height, alpha(0, 0), alpha(63, 31), alpha(63, 0), alpha(0, 31)]);
        })();
        """
    )
    assert found == [64, 32, 0, 0, 255, 255]


def test_two_presets_are_compared_with_the_same_seed(page: Chrome) -> None:
    fill(page, prompt="owl", count=2, seed=3, preset="exact", other="fast")
    draw(page)
    images = [pixels(image) for image in find_all(page, ".compared " + FINISHED, 4)]
    assert np.array_equal(images[1], alone(2, 3, 1, preset="exact"))
    assert np.array_equal(images[3], alone(2, 3, 1, preset="fast"))
    headings = [heading.text for heading in page.find_elements(By.CSS_SELECTOR, ".compared h2")]
    assert [heading.partition(" · ")[0] for heading in headings] == ["owl, exact", "owl, fast"]
    assert all(heading.endswith(" s") for heading in headings)
    screenshot(page, "page-compared")


def test_a_mistake_is_told_and_the_page_goes_on(page: Chrome) -> None:
    fill(page, prompt="goose", count=1)
    draw(page)
    until(lambda: "goose" in page.find_element(By.ID, "error").text)
    assert page.find_element(By.ID, "error").get_attribute("role") == "alert"
    screenshot(page, "page-error")
    assert page.find_elements(By.CSS_SELECTOR, "figure") == []
    page.get_log("browser")  # the browser itself logs the status of the refusal
    fill(page, prompt="dog", count=1)
    draw(page)
    find_all(page, FINISHED, 1)
    assert not page.find_element(By.ID, "error").is_displayed()


@pytest.fixture
def held(browser: Chrome) -> Iterator[tuple[RunningService, Gate]]:
    """A service behind a gate, and its page in the browser."""
    gate, engines = Gate(), FakeEngines()
    with running_service({"owls": fake_generator(engines)}, SETTINGS) as service:
        until(lambda: service.service.ready)
        engines.before_pass = gate
        open_page(browser, service)
        yield service, gate


def is_idle(service: RunningService) -> bool:
    return service.figures()["mar_requests_in_progress"] == 0


def test_images_appear_while_they_are_drawn_and_can_be_cancelled(
    browser: Chrome, held: tuple[RunningService, Gate]
) -> None:
    service, gate = held
    fill(browser, prompt="dog", count=1)
    draw(browser)
    gate.let(8)
    partial = find(browser, "figure button:disabled img[src]")
    assert pixels(partial).shape == (16, 16)
    assert find(browser, "progress").get_attribute("value")
    screenshot(browser, "page-partial")
    browser.find_element(By.ID, "cancel").click()
    find_all(browser, "figure", 0)
    gate.open()
    until(lambda: is_idle(service))
    assert not browser.find_element(By.ID, "error").is_displayed()


def test_a_reload_ends_the_request_and_keeps_the_settings(browser: Chrome, held: tuple[RunningService, Gate]) -> None:
    service, gate = held
    fill(browser, prompt="dog", count=2, seed=9, preset="turbo")
    draw(browser)
    gate.wait_until_reached()
    browser.refresh()
    gate.open()
    find_all(browser, "#class-names option", 3)
    values = {name: find(browser, f"#settings [name={name}]") for name in ("prompt", "count", "seed", "preset")}
    until(lambda: values["prompt"].get_attribute("value") == "dog")
    found = {name: field.get_attribute("value") for name, field in values.items()}
    assert found == {"prompt": "dog", "count": "2", "seed": "9", "preset": "turbo"}
    until(lambda: is_idle(service))
    draw(browser)
    assert np.array_equal(pixels(find_all(browser, FINISHED, 2)[1]), alone(1, 9, 1, preset="turbo"))


def test_a_key_is_asked_for_where_the_service_wants_one(browser: Chrome) -> None:
    settings = ServiceSettings(api_keys=("a-secret-of-the-test",))
    with running_service({"owls": fake_generator()}, settings) as service:
        browser.get(f"{service.url}/")
        key = find(browser, "#key:not([hidden]) input")
        key.send_keys("a-secret-of-the-test" + Keys.TAB)
        find_all(browser, "#class-names option", 3)
        assert not browser.find_element(By.ID, "error").is_displayed()
        fill(browser, prompt="dog", count=1)
        draw(browser)
        find_all(browser, FINISHED, 1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_on_a_phone(page: Chrome, scheme: str) -> None:
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        fill(page, prompt="dog", count=4, seed=1)
        draw(page)
        find_all(page, FINISHED, 4)
        assert page.execute_script("return document.documentElement.scrollWidth") <= 360
        background = page.execute_script("return getComputedStyle(document.querySelector('#cancel')).backgroundColor")
        lightness = sum(int(value) for value in background[4:-1].split(",")[:3]) / 3
        assert (lightness > 128) == (scheme == "light")
        screenshot(page, f"page-phone-{scheme}")
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
