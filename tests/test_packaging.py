"""What an installation holds: every folder with code, and the files that code reads from beside itself."""

import fnmatch
import re
import subprocess
import sys
import tomllib

import pytest

import grpo_kit
from tests.helpers.settings import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
DATA = SETUPTOOLS["package-data"]
# One file of each kind that the code reads from inside the package; without it that part fails in an installed kit.
READ_BY_CODE = [
    "config/presets/tiny.yaml", "handoff/keys.yaml", "nemotron/decoding/kernels.cu", "nemotron/expert_kernel.cu",
    "nemotron/nemotron_3_nano.json", "nemotron/tiny_policy/model.safetensors", "recipes/gsm8k.yaml",
    "rewards/math_answer.py",
]  # fmt: skip


def folder_of(package):
    """The folder of a package in this checkout; one is mapped to a folder outside `grpo_kit`."""
    return ROOT / SETUPTOOLS["package-dir"].get(package, package.replace(".", "/"))


def test_the_package_list_equals_the_folders_on_disk():
    with_code = {path.parent for path in (ROOT / "grpo_kit").rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in with_code}
    assert sorted(SETUPTOOLS["packages"]) == sorted(names | set(DATA))
    assert all(folder_of(package).is_dir() for package in SETUPTOOLS["packages"])


@pytest.mark.parametrize("package", DATA)
def test_every_pattern_of_package_data_matches_a_file(package):
    for pattern in DATA[package]:
        assert [path for path in folder_of(package).glob(pattern) if path.is_file()], pattern


def test_every_file_in_the_package_is_code_or_package_data():
    for path in (ROOT / "grpo_kit").rglob("*"):
        package = ".".join(path.parent.relative_to(ROOT).parts)
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            assert any(fnmatch.fnmatch(path.name, pattern) for pattern in DATA.get(package, ())), path


def test_the_version_is_written_in_one_place():
    assert PROJECT["project"]["dynamic"] == ["version", "dependencies"]
    assert SETUPTOOLS["dynamic"]["version"] == {"attr": "grpo_kit.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", grpo_kit.__version__)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Names of the files that setuptools would put into a wheel, relative to `grpo_kit/`; nothing is downloaded."""
    pytest.importorskip("setuptools", minversion="77")  # what pyproject.toml asks for; pip would download it
    folder = tmp_path_factory.mktemp("build")
    code = (
        f"from setuptools import setup; setup(script_args=['-q', 'build_py', '--build-lib', {str(folder / 'lib')!r}])"
    )
    # Run on a copy of what is needed, so that no build folder or metadata is left in the checkout.
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt", "grpo_kit", "data"):
        (folder / name).symlink_to(ROOT / name)
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)
    root = folder / "lib" / "grpo_kit"
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", READ_BY_CODE)
def test_a_wheel_holds_what_the_code_reads(installed, name):
    assert name in installed


def test_a_wheel_holds_every_file_of_the_package_and_nothing_else(installed):
    def names(folder):
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}

    recipes = {f"recipes/{name}" for name in names(folder_of("grpo_kit.recipes"))}
    assert installed == {name for name in names(ROOT / "grpo_kit") if not name.endswith(".pyc")} | recipes
