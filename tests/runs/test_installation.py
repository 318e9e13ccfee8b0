"""The install cell and what follows pip, beside packages as the images of Colab and Kaggle have them."""

import importlib
import os
import subprocess
import sys
import types
import venv
from pathlib import Path

import pytest

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.runs import installation
from grpo_kit.runs.run import find_run
from tests.helpers.processes import start
from tests.helpers.settings import ROOT

WHEEL = "grpo_kit-0.2.0-py3-none-any.whl"


def install(folder, name, version, files=()):
    """A package in `folder`, with the metadata that pip would leave."""
    package, info = folder / name, folder / f"{name}-{version}.dist-info"
    package.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{name}-*.dist-info"):
        for path in old.iterdir():
            path.unlink()
        old.rmdir()
    info.mkdir()
    (package / "__init__.py").write_text(f"__version__ = {version!r}\n")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "INSTALLER").write_text("pip\n")
    (info / "RECORD").write_text(f"{name}/__init__.py,,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n")


# The cell


@pytest.fixture
def cell(monkeypatch, tmp_path):
    """Runs the cell where `grpo_kit` is missing, in tmp_path/notebooks; returns what pip would be called with."""
    text = installation.read_install_cell("ada/kit")
    text = text.replace("/content/drive", f"{tmp_path}/drive").replace("/kaggle/input", f"{tmp_path}/input")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    answer, finished = subprocess.CompletedProcess([], 0, "", ""), []
    modes: list[str] = []
    kernel = {"get_ipython": lambda: types.SimpleNamespace(InteractiveTB=types.SimpleNamespace(set_mode=modes.append))}
    monkeypatch.setattr(installation, "finish_installation", finished.append)

    def run(missing=True, owner=True, error=""):
        calls = []
        answer.returncode, answer.stderr = int(bool(error)), error
        with monkeypatch.context() as patch:
            patch.setattr(importlib.util, "find_spec", lambda name: None if missing else object())
            patch.setattr(subprocess, "run", lambda words, **_: calls.append(words) or answer)
            code = text if owner else text.replace('RELEASE = "https://', 'RELEASE = "" and "')
            exec(compile(code, "install", "exec"), kernel)
        assert modes[-1] == "Minimal"
        return [[*words[4:]] for words in calls if words[:4] == [sys.executable, "-m", "pip", "install"]]

    run.kernel, run.finished = kernel, finished
    return run


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    return str(path)


@pytest.mark.slow
def test_the_kit_comes_from_the_nearest_place_that_has_it(cell, tmp_path):
    address = f"https://github.com/ada/kit/releases/download/v{installation.grpo_kit.__version__}/{WHEEL}"
    assert cell()[0][1] == address.replace("0.2.0", installation.grpo_kit.__version__)
    touch(tmp_path / "grpo_kit/__init__.py")
    assert cell()[0][1] == ".."
    kaggle = touch(tmp_path / f"input/datasets/ada/kit/{WHEEL}")
    assert cell()[0][1] == kaggle
    folder = touch(tmp_path / f"drive/MyDrive/grpo-kit/{WHEEL}")
    assert cell()[0][1] == folder
    drive = touch(tmp_path / f"drive/MyDrive/{WHEEL}")
    assert cell()[0][1] == drive
    for name in (WHEEL, WHEEL.replace("0.2.0", "0.10.0"), WHEEL.replace("0.2.0", "0.9.1"), "grpo_kit-1 (1).whl"):
        touch(tmp_path / "notebooks" / name)
    assert cell()[0][1] == WHEEL.replace("0.2.0", "0.10.0")


@pytest.mark.slow
def test_without_the_kit_anywhere_the_cell_says_what_to_upload(cell):
    with pytest.raises(FileNotFoundError, match="beside this notebook, on Drive or in .*input. Run `make wheel`"):
        cell(owner=False)


@pytest.mark.slow
def test_a_folder_of_wheels_needs_no_internet(cell, tmp_path):
    own = touch(tmp_path / f"input/wheels/{WHEEL}")
    other = touch(tmp_path / "input/wheels/trl-1.16.0-py3-none-any.whl")
    assert "--no-index" not in cell()[0]
    touch(tmp_path / "input/wheels/install_cell.py")  # what `grpo-kit wheels` writes
    assert cell() == [["-q", "--no-index", "--no-deps", own, other]]


def test_pip_keeps_the_images_torch_and_a_package_without_a_name_does_no_harm(cell, monkeypatch, tmp_path):
    site = tmp_path / "site"
    for name, version in (("Torch", "2.10.0+cu128"), ("numpy", "2.0.2"), ("Pillow", "11.3.0"), ("pandas", "2.2.2")):
        install(site, name, version)
    hidden = tmp_path / "hidden"  # /usr/lib/python3/dist-packages, behind /usr/local/lib
    install(hidden, "numpy", "1.21.5")
    (site / "~ransformers-5.0.dist-info").mkdir()
    (site / "half.egg-info").mkdir()
    (site / "nameless-1.0.dist-info").mkdir()
    (site / "nameless-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nVersion: 1.0\n")
    monkeypatch.setattr(sys, "path", [str(site), str(hidden)])
    assert cell()[0][2:] == ["torch==2.10.0+cu128", "numpy==2.0.2", "pillow==11.3.0"]
    assert cell.finished[-1]["pandas"] == "2.2.2" and None not in cell.finished[-1]
    install(site, "pandas", "2.3.0")
    cell()  # run again, the cell still compares with what this session began with
    assert cell.finished[-1]["pandas"] == "2.2.2"
    monkeypatch.delitem(sys.modules, "pandas", raising=False)  # another test of this process may have imported it
    assert installation.find_stale_imports({"pandas": "1.0"}) == []


@pytest.mark.slow
def test_an_installed_kit_is_left_and_a_failing_pip_is_one_sentence(cell, capsys):
    assert cell(missing=False) == [] and len(cell.finished) == 1
    with pytest.raises(
        RuntimeError, match=r"pip could not install the kit\. Check the network; .+ settings\. ERROR: No"
    ):
        cell(error="ERROR: No matching distribution\n")
    assert capsys.readouterr() == ("", "")


# After pip


@pytest.mark.slow
def test_a_package_that_another_one_hides_did_not_change(monkeypatch, tmp_path):
    install(tmp_path / "first", "some_lib", "2.0")
    install(tmp_path / "hidden", "some_lib", "1.0")
    for folder in ("hidden", "first"):
        monkeypatch.syspath_prepend(tmp_path / folder)
    monkeypatch.setitem(sys.modules, "some_lib", importlib.import_module("some_lib"))
    assert installation.find_stale_imports({"some_lib": "2.0"}) == []
    assert installation.find_stale_imports({"some_lib": "1.0"}) == ["some_lib 1.0 by 2.0"]  # pip hid the loaded one


@pytest.mark.slow
def test_a_package_that_was_imported_and_replaced_asks_for_a_restart(monkeypatch, tmp_path):
    for name in ("kept_lib", "replaced_lib", "unused_lib"):
        install(tmp_path, name, "18.1.0")
    monkeypatch.syspath_prepend(tmp_path)
    before = {"kept_lib": "18.1.0", "replaced_lib": "18.1.0", "unused_lib": "18.1.0"}
    for name in ("kept_lib", "replaced_lib"):
        monkeypatch.setitem(sys.modules, name, importlib.import_module(name))
    installation.finish_installation(before)  # nothing changed: silent
    install(tmp_path, "unused_lib", "26.0.1")
    install(tmp_path, "new_lib", "1.0")
    installation.finish_installation(before)  # changed or new, and not imported: no restart
    install(tmp_path, "replaced_lib", "26.0.1")
    with pytest.raises(RuntimeError) as caught:
        installation.finish_installation(before)
    assert str(caught.value) == (
        "pip replaced replaced_lib 18.1.0 by 26.0.1, which this session had already imported. Choose Runtime, Restart "
        "session (on Kaggle: Run, Restart), then Run all."
    )


# torchao


@pytest.mark.parametrize(
    ("version", "refused"), [("0.10.0", True), ("0.15.9", True), ("0.16.0", False), ("1.0", False)]
)
def test_the_kit_refuses_the_torchao_that_peft_refuses(monkeypatch, tmp_path, version, refused):
    from peft.import_utils import is_torchao_available

    install(tmp_path, "torchao", version)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        is_torchao_available.__wrapped__()
        refused_by_peft = False
    except ImportError:
        refused_by_peft = True
    assert bool(installation.describe_old_torchao()) == refused_by_peft == refused


@pytest.mark.slow
def test_env_and_train_name_an_old_torchao_and_the_remedy_before_anything_is_loaded(tmp_path):
    small = ["data.limit=100", "data.test_size=10", "data.val_size=5", "grpo.max_steps=1"]
    prepare(config.load_config(["tiny"], small), find_run("r", tmp_path / "runs"))
    install(tmp_path / "site", "torchao", "0.10.0")
    env = os.environ | {"PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}", "GRPO_KIT_ROOT": str(tmp_path / "runs")}
    checked = start(["-W", "ignore", "-m", "grpo_kit", "env"], env | {"COLUMNS": "200"}, tmp_path)
    printed, _ = checked.communicate(timeout=120)
    assert checked.returncode == 1 and "torchao" in printed and "pip uninstall -y torchao" in printed
    # A model folder that does not exist would be named if the policy were loaded first. This start is a fresh one: what
    # the libraries do with torchao when they are imported counts too.
    words = [sys.executable, "-W", "ignore", "-m", "grpo_kit", "train", "--run", "r", "policy.model=no-such-model"]
    train = subprocess.run([*words, *small], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert train.returncode == 1 and "Traceback" not in train.stderr
    assert train.stderr == (
        "error: PEFT cannot make a LoRA beside torchao 0.10.0; it takes 0.16 or later, or none. Run `pip uninstall -y "
        "torchao` (the kit does not use it), or `pip install --no-deps --upgrade 'torchao>=0.16'`.\n"
    )


@pytest.mark.slow
def test_after_an_install_an_old_torchao_is_removed_and_a_newer_one_kept(tmp_path):
    venv.create(tmp_path / "venv", symlinks=True)
    [site] = (tmp_path / "venv/lib").glob("python3*/site-packages")
    packages = Path(importlib.util.find_spec("packaging").origin).parents[1]
    (site / "tests.pth").write_text(str(packages))  # pip and packaging
    python = tmp_path / "venv/bin/python"
    code = "from grpo_kit.runs.installation import finish_installation; finish_installation({})"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    for version, printed in (("0.16.0", ""), ("0.10.0", "torchao 0.10.0 is removed: PEFT refuses versions below 0.16")):
        install(site, "torchao", version)
        done = subprocess.run([python, "-c", code], env=env, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(printed)
        assert (site / "torchao/__init__.py").exists() == (not printed)
