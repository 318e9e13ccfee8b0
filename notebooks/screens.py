"""Makes `notes/images/NN_name_1280.png` and `NN_name_390.png`: a notebook's main result on a desktop and on a phone.

`python notebooks/gallery.py --pictures` calls it with the gallery that it has written. It needs Chromium and its driver
(Debian has `chromium` and `chromium-driver`). `notes/gallery.md` shows the pictures.
"""

import base64
import io
import shutil
from pathlib import Path
from typing import Any

from pictures import reduce_colors
from PIL import Image

WIDTHS = (1280, 390)  # pixels
# What the first and the last cell of a notebook's main result call; the picture ends below what should be seen there.
MAIN = {
    "00_quickstart": ("board.during(", "compare(run)"),
    "01_setup": ("show_plan(load_config", "show_plan(load_config"),
    "02_data": ("show_difficulty(", "show_difficulty("),
    "03_training": ("board.during(", "board.during("),
    "04_submit": ("show_comparison(", "show_curves("),
    "05_tuning": ("show_trials(", "show_trials("),
    "06_environments": ("show_environments(compare(run", "show_environments(compare(run"),
    "08_stages": ("show_stages(", "show_stages("),
}
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files",
]  # fmt: skip
# The top of the first cell and the bottom of the second one, or of the text below it, in pixels of the page.
SPAN = """
const cells = [...document.querySelectorAll('.jp-Cell')];
const code = cell => cell.matches('.jp-CodeCell') ? cell.querySelector('.jp-InputArea')?.textContent ?? '' : '';
const [first, last] = [...arguments].map(text => cells.findIndex(cell => code(cell).includes(text)));
if (first < 0 || last < first) return null;
const end = cells[last + 1].textContent.trim().startsWith('You should see') ? cells[last + 1] : cells[last];
return [cells[first].getBoundingClientRect().top + scrollY, end.getBoundingClientRect().bottom + scrollY];
"""


def find_browser() -> tuple[str, str] | None:
    """The paths of Chromium and of its driver; None if one is missing."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


def open_browser(profile: Path) -> Any:
    """A headless Chromium as selenium's driver; `profile` is a folder for its files.

    Raises:
        FileNotFoundError: Chromium or its driver is missing.
    """
    from selenium import webdriver

    if not (found := find_browser()):
        raise FileNotFoundError("Chromium or chromedriver is missing; Debian has chromium and chromium-driver.")
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(found[1]))


def open_page(driver: Any, page: Path, width: int) -> int:
    """Open a page on a screen of this width; the width that the page takes, which is larger if it scrolls sideways."""
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    driver.get(page.absolute().as_uri())
    return driver.execute_script("return document.documentElement.scrollWidth")


def write_screens(gallery: Path, target: Path, profile: Path) -> None:
    """Write both pictures of each page of a gallery.

    Args:
        gallery: the folder that `write_gallery` has written.
        target: the folder for the pictures.
        profile: a folder for the browser's files.

    Raises:
        FileNotFoundError: Chromium or its driver is missing.
        ValueError: a page has no cell that calls what `MAIN` names.
    """
    driver = open_browser(profile)
    try:
        for name, (first, last) in MAIN.items():
            for width in WIDTHS:
                open_page(driver, gallery / f"{name}.html", width)
                span = driver.execute_script(SPAN, first, last)
                if span is None:
                    raise ValueError(f"{name} has no cell with {first!r}, followed by one with {last!r}; see MAIN.")
                clip = {"x": 0, "y": span[0] - 8, "width": width, "height": span[1] - span[0] + 12, "scale": 1}
                shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
                picture = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
                reduce_colors(picture).save(target / f"{name}_{width}.png", optimize=True)
    finally:
        driver.quit()
