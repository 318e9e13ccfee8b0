"""The notebooks on an imitation of Colab and of Kaggle: their modules, folders and environment variables, no network.

A kernel starts with a `sitecustomize` that makes the kit use a folder as the root of the machine and refuses every
connection that leaves it. Each notebook runs on a fresh machine: on Colab only Google Drive is kept, on Kaggle only
what is mounted as a read-only input. Not covered: the images' own versions of Python and its packages.
"""

import hashlib
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.helpers.kernels import NAMES, code_cells, execute_in_order, kernel_environment, printed_text
from tests.helpers.processes import start

CHAIN = NAMES[1:5]
SECRET = "KGAT_not_to_be_seen"
SITE = """
import inspect, os, pathlib, socket
from grpo_kit import notebook
from grpo_kit.data import sources
from grpo_kit.runs import places, run

ROOT = pathlib.Path(os.environ["MACHINE"])
for module in (places, run, sources, notebook):  # a parameter `filesystem` gets this root as its default
    for _, function in inspect.getmembers(module, inspect.isfunction):
        if function.__defaults__:
            function.__defaults__ = tuple(ROOT if v == pathlib.Path("/") else v for v in function.__defaults__)

def note(address):
    with (pathlib.Path(os.environ["HOME"]) / "connections.txt").open("a") as file:
        print(address, file=file)
    raise OSError("there is no network here")

def connect(self, address):
    if self.family != socket.AF_UNIX and address[0] not in LOCAL:
        note(address)
    return inner(self, address)

def getaddrinfo(host, *words, **options):
    return look(host, *words, **options) if host in LOCAL else note(host)

LOCAL = (None, "", "127.0.0.1", "localhost", "::1", "0.0.0.0")
inner, socket.socket.connect = socket.socket.connect, connect
look, socket.getaddrinfo = socket.getaddrinfo, getaddrinfo
"""
# The part of the real modules that the kit uses, with the real names and exceptions.
COLAB = {
    "google/colab/__init__.py": "",
    "google/colab/drive.py": """
import os, pathlib

def mount(mountpoint, force_remount=False, timeout_ms=120000, readonly=False):
    pathlib.Path(mountpoint).mkdir(parents=True)
    (pathlib.Path(mountpoint) / "MyDrive").symlink_to(os.environ["DRIVE"])
""",
    "google/colab/userdata.py": f"""
class SecretNotFoundError(Exception): pass

def get(key):
    if key != "KAGGLE_API_TOKEN":
        raise SecretNotFoundError(key)
    return "{SECRET}"
""",
}
KAGGLE = {
    "kaggle_secrets.py": f"""
class BackendError(Exception): pass

class UserSecretsClient:
    def get_secret(self, label):
        if label != "HF_TOKEN":
            raise BackendError(label)
        return "{SECRET}"
"""
}


def install(folder, modules):
    for name, text in {"sitecustomize.py": SITE, **modules}.items():
        path = folder / "modules" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "home").mkdir()


def run_on_colab(folder):
    """The executed notebooks; the machine is deleted before each."""
    machine, drive = folder / "machine", folder / "drive"
    install(folder, COLAB)
    drive.mkdir()

    def prepare_machine(name):
        shutil.rmtree(machine, ignore_errors=True)
        (machine / "content").mkdir(parents=True)

    variables = {"MACHINE": machine, "DRIVE": drive, "HOME": folder / "home", "COLAB_RELEASE_TAG": "release-colab"}
    return execute_in_order(
        machine / "content", lambda name: kernel_environment(folder / "modules", **variables), CHAIN, prepare_machine
    )


def run_on_kaggle(folder):
    """The executed notebooks; the output of one is mounted for the next, which finds nothing else."""
    machine = folder / "machine"
    install(folder, KAGGLE)
    working, inputs = machine / "kaggle/working", machine / "kaggle/input"
    working.mkdir(parents=True)

    def prepare_machine(name):
        if (working / "runs").exists():
            shutil.rmtree(inputs, ignore_errors=True)
            shutil.copytree(working, inputs / "notebooks/grpo-kit-earlier")
            for path in (inputs, *inputs.rglob("*")):
                path.chmod(path.stat().st_mode & 0o555)
            mounted[name] = hashes(inputs)
        shutil.rmtree(working)
        working.mkdir()

    mounted = {}
    variables = {"MACHINE": machine, "HOME": folder / "home", "KAGGLE_KERNEL_RUN_TYPE": "Batch"}
    notebooks = execute_in_order(
        folder / "here", lambda name: kernel_environment(folder / "modules", **variables), CHAIN, prepare_machine
    )
    assert list(mounted) == ["03_training", "04_submit"] and hashes(inputs) == mounted["04_submit"]
    return notebooks


def hashes(folder):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """{place: (folder, executed notebooks)}; both places run at the same time."""
    runs = {"colab": run_on_colab, "kaggle": run_on_kaggle}
    folders = {place: tmp_path_factory.mktemp(place) for place in runs}
    with ThreadPoolExecutor(2) as executor:
        notebooks = list(executor.map(lambda place: runs[place](folders[place]), runs))
    return {place: (folders[place], executed) for place, executed in zip(runs, notebooks)}


both_places = pytest.mark.parametrize("place", ["colab", "kaggle"])


@both_places
def test_each_notebook_finds_the_stages_of_the_previous_one_on_a_fresh_machine(places, place):
    _, notebooks = places[place]
    stages = ["data", "before", "train", "after", "package"]
    for name, finished in (("01_setup", 0), ("02_data", 0), ("03_training", 1), ("04_submit", 3)):
        text = printed_text(notebooks[name])
        assert re.findall(r"^  (\w+) +done", text, re.MULTILINE) == stages[:finished], name


def test_on_colab_the_run_and_the_zip_are_on_google_drive(places):
    folder, notebooks = places["colab"]
    assert all(
        "Google Drive is mounted: the run is kept when the session ends." in printed_text(notebook)
        for notebook in notebooks.values()
    )
    assert (folder / "drive/grpo-kit/runs/tiny/evaluation/report.json").is_file()
    assert (folder / "drive/grpo-kit/submission/submission.zip").is_file()
    local_files = [p for p in (folder / "machine/content").rglob("*") if p.is_file() and "MyDrive" not in p.parts]
    assert local_files == []  # nothing lies next to the notebooks


def test_on_kaggle_the_zip_is_at_the_top_of_the_output_and_the_inputs_are_unchanged(places):
    folder, _ = places["kaggle"]
    working = folder / "machine/kaggle/working"
    assert sorted(p.name for p in working.iterdir()) == ["runs", "submission.zip"]
    assert (working / "runs/tiny/evaluation/report.json").is_file()
    assert all(path.stat().st_mode & 0o200 for path in working.rglob("*"))


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("colab", "Kaggle       KAGGLE_API_TOKEN in Colab's secrets"),
        ("kaggle", "Hugging Face HF_TOKEN in Kaggle's secrets"),
    ],
)
def test_secrets_are_read_from_the_place_and_written_nowhere(places, place, line):
    folder, notebooks = places[place]
    assert line in printed_text(notebooks["01_setup"])
    assert not [name for name, notebook in notebooks.items() if SECRET in json.dumps(notebook)]
    files = (p for p in folder.rglob("*") if p.is_file() and "modules" not in p.parts)
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize("call", ["create_connection(('192.0.2.1', 80), 2)", "getaddrinfo('example.org', 443)"])
def test_an_imitated_machine_has_no_network(tmp_path, call):
    install(tmp_path, {})
    env = kernel_environment(tmp_path / "modules", MACHINE=tmp_path, HOME=tmp_path / "home")
    output, _ = start(["-c", f"import socket; socket.{call}"], env).communicate(timeout=60)
    assert "there is no network here" in output and (tmp_path / "home/connections.txt").is_file()


@both_places
def test_no_notebook_tries_to_connect_or_prints_an_error(places, place):
    folder, notebooks = places[place]
    assert not (folder / "home/connections.txt").exists()
    errors = [
        o
        for notebook in notebooks.values()
        for cell in code_cells(notebook)
        for o in cell.outputs
        if o.get("name") == "stderr"
    ]
    assert errors == []
