"""The training notebook in JupyterLab in a real browser: its board, its completions, its stop button.

Covered: Debian's Chromium, headless, "Run all" on the tiny policy: on the notebook as it is to its end, and on one that
is set to run for long until the button is pressed. Not covered: Colab's and Kaggle's own front ends.

With GRPO_KIT_PICTURES=FOLDER the screenshots are kept there, and the notebook has the sizes of its preset: `board.png`
and `completions.png` are those of `notes/images`.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.display.report import save_report
from grpo_kit.evaluation import evaluate
from grpo_kit.runs.files import write_text
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from tests.helpers import processes

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,1500",
]  # fmt: skip
PICTURES = os.environ.get("GRPO_KIT_PICTURES")
STEPS = 30 if PICTURES else 12
# Far more steps than are taken: the run ends because the button is pressed.
SETTINGS = ["data.test_size=60", "data.val_size=20", "grpo.max_steps=500", "grpo.per_device_train_batch_size=32"]

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="Chromium and its driver are not installed; Debian has chromium and chromium-driver",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, math_reward):
    """A working folder as notebook 2 leaves it, with notebook 3 for STEPS steps, and as `long.ipynb` for many."""
    import nbformat  # it builds a grammar, which takes seconds

    folder = tmp_path_factory.mktemp("lab")
    chosen, run = config.load_config(["tiny"], SETTINGS), find_run("long", folder / "runs")
    prepare(config.load_config(["tiny"]) if PICTURES else chosen, find_run("tiny", folder / "runs"), math_reward)
    prepare(chosen, run)
    evaluate.measure(chosen, run, "before", math_reward)
    for name, settings in (("03_training", f"grpo.max_steps={STEPS}"), ("long", " ".join(SETTINGS[2:]))):
        notebook = nbformat.read(ROOT / "notebooks/03_training.ipynb", as_version=4)
        form = next(cell for cell in notebook.cells if 'overrides = ""' in cell.source)
        form.source = form.source.replace('overrides = ""', f"overrides = {settings!r}")
        form.source = form.source.replace('run_name = ""', f"run_name = {run.name if name == run.name else ''!r}")
        nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder


@pytest.fixture
def pictures(tmp_path):
    """Where screenshots go."""
    return Path(PICTURES or tmp_path)


# Every cell stays in the page, also those that are scrolled away; and nothing is asked of the network.
LAB = {
    "notebook-extension/tracker": {"windowingMode": "none", "scrollPastEnd": False},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
}


@pytest.fixture(scope="module")
def server(folder):
    """The address of a JupyterLab on loopback whose kernels see this checkout."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR", "JUPYTERLAB_SETTINGS_DIR")
    own = {name: str(folder / ".own" / name) for name in places}
    for name, settings in LAB.items():
        path = Path(own["JUPYTERLAB_SETTINGS_DIR"]) / "@jupyterlab" / f"{name}.jupyterlab-settings"
        write_text(path, json.dumps(settings))
    # Kernels are forks with the libraries imported.
    words = [sys.executable, processes.__file__, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": words, "display_name": "Python 3", "language": "python"}
    write_text(Path(own["JUPYTER_DATA_DIR"]) / "kernels/python3/kernel.json", json.dumps(spec))
    if processes.ADDRESS not in os.environ:
        processes.start_server()
    env = os.environ | own | {"PYTHONPATH": str(ROOT), "GRPO_KIT_ROOT": str(folder / "runs"), "HF_HUB_OFFLINE": "1"}
    for name in ("MPLBACKEND", "COV_CORE_SOURCE", "KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG"):
        env.pop(name, None)
    command = [
        sys.executable, "-m", "jupyterlab", "--allow-root", "--no-browser", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}",
        "--LabApp.expose_app_in_browser=True",
    ]  # fmt: skip
    with (folder / "lab.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        wait(180, lambda: answers(f"http://127.0.0.1:{port}/api"), lambda: (folder / "lab.log").read_text())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def answers(address):
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Chromium, with methods that read and click elements of the page."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield Page(driver)
    driver.quit()


class Page:
    def __init__(self, driver):
        self.driver, self.script = driver, driver.execute_script

    def text(self, css):
        return self.script("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent).join(' ')", css)

    def click(self, css):
        self.script("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", css)
        self.with_element(css, lambda element: element.click())

    def with_element(self, css, act):
        """What `act` returns for the element; the board may replace an element between finding it and using it."""
        from selenium.common.exceptions import StaleElementReferenceException

        for _ in range(20):
            try:
                return act(self.driver.find_element("css selector", css))
            except StaleElementReferenceException:
                time.sleep(0.1)
        raise AssertionError(f"{css} was replaced again and again")

    def steps(self):
        """The step that the board shows."""
        return int((re.findall(r"step(\d+) of \d+", self.text(SHOWN)) or [0])[0])

    def run_all(self, server, name, log):
        """Open a notebook, wait for its kernel, and run all its cells."""
        self.driver.get(f"{server}/lab/tree/{name}")
        wait(90, lambda: self.script(READY, name), log.read_text)
        self.script("window.jupyterapp.commands.execute('notebook:run-all-cells')")  # not awaited

    def look_at(self, css, path, height=10_000):
        """A screenshot of the element, of at most this height in pixels."""
        self.script("document.querySelector(arguments[0]).scrollIntoView({block: 'start'})", css)
        assert self.with_element(css, lambda element: element.screenshot(str(path)))
        picture = Image.open(path)
        picture.crop((0, 0, picture.width, min(picture.height, height))).save(path)
        assert path.stat().st_size > 10_000


SHOWN = ".jp-OutputArea"
BOARD = ".jp-OutputArea .jupyter-widgets"
READY = """
const panel = window.jupyterapp?.shell.currentWidget, kernel = panel?.sessionContext?.session?.kernel;
return panel?.context?.path == arguments[0] && kernel?.connectionStatus == 'connected' && kernel.status == 'idle'
    && panel.content.widgets.length > 20
"""


def wait(seconds, holds, otherwise=lambda: ""):
    """Calls `holds` until it returns something true, and returns that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := holds():
            return value
        time.sleep(0.3)
    raise AssertionError(f"not within {seconds} s: {otherwise()[-3000:]}")


@pytest.mark.slow
def test_the_board_updates_and_reacts_to_clicks_in_a_real_browser(folder, server, page, pictures):
    run, output = find_run("long", folder / "runs"), lambda: page.text(".jp-OutputArea-output")
    page.run_all(server, "long.ipynb", folder / "lab.log")

    # It moves while the training runs.
    first = wait(400, page.steps, output)
    wait(400, lambda: page.steps() > first + 1, output)
    chart = "const chart = document.querySelector('.jp-OutputArea img.charts'); return chart."
    assert page.script(chart + "getBoundingClientRect().width") > 600
    wait(20, lambda: page.script(chart + "naturalWidth") > 0)  # the browser could read the image
    for title in ("Reward", "Held-out accuracy", "Groups with a gradient", "Completion length"):
        assert title in page.script(chart + "alt")

    # Completions are read while the training runs: another group is another prompt, thinking is folded until asked for.
    page.script("window.before = document.querySelector('.completion').parentNode.textContent")
    page.script(
        "const s = document.querySelector('.jp-OutputArea select'); s.selectedIndex = 1;"
        "s.dispatchEvent(new Event('change', {bubbles: true}))"
    )
    wait(
        20, lambda: page.script("return document.querySelector('.completion').parentNode.textContent != window.before")
    )
    assert "math_reward" in page.text(".completion")
    edges = page.script("return [...document.querySelectorAll('.completion')].map(e => e.style.borderLeftColor)")
    assert len(edges) == 8 and set(edges) <= {"rgb(0, 114, 178)", "rgb(213, 94, 0)", "rgb(238, 238, 238)"}
    page.click(".completion summary")

    page.look_at(".jp-OutputArea :has(> .completion)", pictures / "completions.png")

    # What is read stays in place, thinking unfolded, while steps are taken.
    shown = page.text(":has(> .completion)")
    reading = page.steps()
    wait(400, lambda: page.steps() > reading + 1, output)
    assert page.text(":has(> .completion)") == shown
    assert page.script("return document.querySelector('.completion details').open")

    # The button ends the run with what it has, and the cells after it go on.
    page.click(".jp-OutputArea .jupyter-button:not([disabled])")
    wait(400, lambda: "stopped and saved" in output(), output)
    wait(400, lambda: "The page is" in output(), output)
    taken = len(read_lines(run.metrics))
    assert first < taken < 500 and page.steps() == taken
    assert run.page.is_file() and "train" in run.stages()
    assert (run.adapter / "adapter_model.safetensors").stat().st_size > 10_000


@pytest.mark.slow
def test_run_all_on_the_notebook_trains_the_tiny_policy_to_its_end(folder, server, page, pictures):
    run, output = find_run("tiny", folder / "runs"), lambda: page.text(".jp-OutputArea-output")
    page.run_all(server, "03_training.ipynb", folder / "lab.log")
    wait(400, lambda: page.steps() >= 3, output)
    page.click(".jp-OutputArea .jupyter-widgets.widget-toggle-button")  # follow the newest step
    wait(400, lambda: f"step  {STEPS} · What is" in output(), output)  # what the last cell prints
    wait(20, lambda: page.steps() == STEPS, output)
    assert "run tiny finished" in output() and re.search(rf"{STEPS} steps in \d+ s\.", output())
    assert page.script("return document.querySelectorAll('.jp-OutputArea-output[data-mime-type*=error]').length") == 0
    assert {"before", "train"} <= run.stages().keys() and len(read_lines(run.metrics)) == STEPS
    # Charts are drawn less often than figures; in the end both are of the last step.
    page.look_at(BOARD, pictures / "board.png", 989)  # the first completions are enough


@pytest.mark.slow
def test_the_report_is_readable_on_a_phone(trained, page, pictures):
    save_report(trained[1])
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    page.driver.get(trained[1].page.absolute().as_uri())
    page.script("document.querySelectorAll('details').forEach(e => e.open = true)")
    widths = page.script(
        "return [innerWidth, document.documentElement.scrollWidth, "
        "...[...document.querySelectorAll('img')].map(e => e.getBoundingClientRect().width)]"
    )
    assert widths[:2] == [390, 390] and len(widths) == 9 and min(widths[2:]) > 300
    page.driver.save_screenshot(str(pictures / "phone.png"))
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
