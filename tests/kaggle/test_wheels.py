"""The offline folder is built from an index of tiny wheels made here, without a network."""

import errno
import json
import os
import subprocess
import sys
import tomllib
import zipfile

import pytest

from grpo_kit.kaggle import wheels
from grpo_kit.runs.files import new_folder

ANY, LINUX, OLD = "py3-none-any", "cp312-cp312-manylinux_2_28_x86_64", "py3-none-manylinux2014_x86_64"


def wheel(folder, name, version, requires=(), tag=ANY):
    stem = f"{name.replace('-', '_')}-{version}"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {r}\n" for r in requires
    )
    with zipfile.ZipFile(folder / f"{stem}-{tag}.whl", "w") as archive:
        archive.writestr(f"{stem}.dist-info/METADATA", metadata)
        archive.writestr(f"{stem}.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A small project in place of the kit, and an index with its requirements, including torch and its libraries."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    (tmp_path / "uv.toml").write_text(f"no-index = true\nfind-links = [{json.dumps(str(folder))}]\n")
    monkeypatch.setenv("UV_CONFIG_FILE", str(tmp_path / "uv.toml"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    for version in ("2.9.0", "2.10.0", "2.13.0"):
        wheel(folder, "torch", version, ["nvidia-cublas-cu12", "graphs"], OLD)
    wheel(folder, "nvidia-cublas-cu12", "12.0", (), OLD)
    wheel(folder, "graphs", "1.0")
    for version in ("2.0.2", "2.4.0"):
        wheel(folder, "numpy", version, (), OLD)
    wheel(folder, "fast", "1.0", ["torch>=2.3", "numpy>=1.26", "common>=2"], "cp312-cp312-manylinux_2_24_x86_64")
    wheel(folder, "fast", "1.0", [], "cp311-cp311-manylinux_2_24_x86_64")
    wheel(folder, "common", "2.1")
    wheel(folder, "common", "2.5", ["late; python_version >= '3.12'", "early; python_version < '3.12'"])
    for version in ("0.3", "1.0"):
        wheel(folder, "late", version)
    wheel(folder, "early", "1.0")
    root = tmp_path / "project"
    (root / "grpo_kit").mkdir(parents=True)
    (root / "data").mkdir()
    (root / "grpo_kit/__init__.py").write_text('"""."""\n')
    (root / "requirements.txt").write_text("# why\ntorch>=2.10\nfast==1.0  # because\n")
    (root / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "grpo-kit"\nversion = "0.1"\n[tool.setuptools]\npackages = ["grpo_kit"]\n'
    )
    monkeypatch.setattr(wheels, "ROOT", root)
    return folder


def build(tmp_path, python="3.12", platform="manylinux_2_28_x86_64", have=wheels.IMAGE):
    return wheels.build_wheels(tmp_path / "out", python, platform, dict(have), "ada", lambda line: None)


def stems(paths):
    return sorted("-".join(path.name.split("-")[:2]) for path in paths)


@pytest.mark.slow
def test_the_folder_holds_what_is_needed_and_no_torch(index, tmp_path):
    before = sorted(path for path in wheels.ROOT.rglob("*"))
    (tmp_path / "out").symlink_to("disk")  # it is followed
    paths = build(tmp_path)
    assert (tmp_path / "out").is_symlink() and (tmp_path / "disk" / wheels.CELL_FILE).is_file()
    assert stems(paths) == ["common-2.5", "fast-1.0", "grpo_kit-0.1", "late-1.0"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [path.name for path in paths] + [wheels.CELL_FILE, wheels.METADATA_FILE]
    )
    metadata = json.loads((tmp_path / "out" / wheels.METADATA_FILE).read_text())
    assert metadata == {
        "id": "ada/grpo-kit-wheels-cp312",
        "title": "grpo kit wheels cp312",
        "licenses": [{"name": "other"}],
    }
    assert sorted(path for path in wheels.ROOT.rglob("*")) == before  # building wrote nothing into the source


@pytest.mark.slow
def test_another_python_gets_its_own_wheels(index, tmp_path):
    (index / "fast-1.0-cp312-cp312-manylinux_2_24_x86_64.whl").unlink()
    wheel(index, "fast", "1.0", ["common"], "cp311-cp311-manylinux_2_24_x86_64")
    assert stems(build(tmp_path, "3.11")) == ["common-2.5", "early-1.0", "fast-1.0", "grpo_kit-0.1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "brought"),
    [
        ({}, ["common==2.5", "fast==1.0", "late==1.0"]),
        ({"common": "2.1"}, ["fast==1.0"]),
        ({"common": "1.9", "late": "0.3"}, ["common==2.5", "fast==1.0"]),  # too old; its requirement is there
        ({"torch": "2.13.0+cu128"}, ["common==2.5", "fast==1.0", "late==1.0"]),
        ({"common": "2.3+local"}, ["common==2.5", "fast==1.0", "late==1.0"]),  # a version that the index does not have
    ],
)
def test_a_package_of_the_image_that_fits_is_not_downloaded(index, tmp_path, image, brought):
    assert wheels.resolve("3.12", "manylinux_2_28_x86_64", wheels.IMAGE | image, tmp_path) == brought


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "error", "says"),
    [
        (
            {"platform": "manylinux2014_x86_64"},
            RuntimeError,
            "uv found no wheels for Python 3.12 on manylinux2014_x86_64: .*fast.*later --platform",
        ),
        ({"platform": "linux_x86_64"}, ValueError, "manylinux2014_x86_64 or manylinux_2_28"),
        ({"platform": "win_amd64"}, ValueError, "manylinux2014_x86_64 or manylinux_2_28"),
        ({"have": wheels.IMAGE | {"torch": "2.9.0"}}, RuntimeError, "torch>=2.10.*torch==2.9.0.*--have"),
    ],
)
def test_unmet_requirements_raise_and_leave_no_folder(index, tmp_path, other, error, says):
    with pytest.raises(error, match=says) as caught:
        build(tmp_path, **other)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_without_the_kits_source_building_raises(index, tmp_path):
    (wheels.ROOT / "pyproject.toml").unlink()
    with pytest.raises(FileNotFoundError, match="in a clone of the kit"):
        build(tmp_path)


@pytest.mark.slow
def test_versions_are_chosen_around_the_images_numpy(index, tmp_path):
    wheel(index, "fast", "1.0", ["numpy<2.1"], "cp312-cp312-manylinux_2_24_x86_64")
    assert wheels.resolve("3.12", "manylinux_2_28_x86_64", wheels.IMAGE, tmp_path) == ["fast==1.0"]
    with pytest.raises(RuntimeError, match="uv found no wheels.*numpy==2.4.0"):
        wheels.resolve("3.12", "manylinux_2_28_x86_64", wheels.IMAGE | {"numpy": "2.4.0"}, tmp_path)


def test_without_uv_building_raises(index, tmp_path, monkeypatch):
    monkeypatch.setattr(wheels, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="uv, which is not installed. Run `pip install uv`"):
        build(tmp_path)


LINES = """\
common==2.5        # via fast, late, -r requirements.txt
fast==1.0          # via -r requirements.txt
graphs==1.0        # via torch
late==1.0          # via common
links==3.0         # via graphs, torch
numpy==2.0.2       # via fast, -c image.txt
nvidia-cublas-cu12==12.0  # via torch
torch==2.10.0      # via fast, -c image.txt, -r requirements.txt
"""


@pytest.mark.parametrize(
    ("image", "brought"),
    [
        ({}, ["common==2.5", "fast==1.0", "late==1.0"]),
        ({"common": "2.5"}, ["fast==1.0"]),  # its own requirements are left out too
        ({"common": "2.1"}, ["common==2.5", "fast==1.0", "late==1.0"]),
        ({"late": "1.0"}, ["common==2.5", "fast==1.0"]),
        ({"fast": "1.0"}, ["common==2.5", "late==1.0"]),  # the kit needs common too
    ],
)
def test_packages_of_the_image_and_their_requirements_are_left_out(image, brought):
    assert wheels._not_in_image(LINES, image) == brought


def test_torch_and_its_companions_are_never_included():
    names = ["torch", "numpy", "pillow", "triton", "nvidia-cublas-cu12", "torchao", "scipy"]
    assert [name for name in names if not wheels.comes_from_image(name)] == ["torchao", "scipy"]


@pytest.mark.parametrize(
    ("platform", "name"),
    [
        ("manylinux2014_x86_64", "x86_64-manylinux_2_17"),
        ("manylinux_2_24_x86_64", "x86_64-manylinux_2_17"),
        ("manylinux_2_28_aarch64", "aarch64-manylinux_2_28"),
        ("manylinux_2_35_x86_64", "x86_64-manylinux_2_35"),
        ("manylinux_2_50_x86_64", "x86_64-manylinux_2_40"),
    ],
)
def test_the_platform_is_translated_for_uv(platform, name, tmp_path):
    assert wheels._uv_platform(platform) == name
    (tmp_path / "none.txt").touch()
    command = [sys.executable, "-m", "uv", "pip", "compile", "-q", "--offline", "--python-platform", name]
    subprocess.run([*command, str(tmp_path / "none.txt")], check=True)


def test_a_freeze_is_read_and_completed(tmp_path):
    lines = ["# comment", "torch==2.11.0+cu128", "PyYAML==6.0.2", "mine @ file:///x/y.whl", "-e git+https://x#egg=z"]
    (tmp_path / "freeze.txt").write_text("\n".join([*lines, "bad==!!", "scipy==1.15.3 ", ""]))
    versions = wheels.read_freeze_file(tmp_path / "freeze.txt")
    assert versions == wheels.IMAGE | {"torch": "2.11.0+cu128", "pyyaml": "6.0.2", "scipy": "1.15.3"}


@pytest.mark.parametrize("text", ["", "torch", "torch>=2", "{}"])
def test_a_freeze_without_a_version_is_refused(tmp_path, text):
    (tmp_path / "freeze.txt").write_text(text)
    with pytest.raises(ValueError, match="pip freeze"):
        wheels.read_freeze_file(tmp_path / "freeze.txt")
    (tmp_path / "freeze.txt").write_bytes(b"\xff\xfe" + text.encode("utf-16-le"))
    with pytest.raises(ValueError, match="pip freeze"):
        wheels.read_freeze_file(tmp_path / "freeze.txt")


def test_a_folder_with_other_files_and_a_file_are_not_replaced(index, tmp_path):
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(NotADirectoryError, match="out is a file.*--out"):
        build(tmp_path)
    assert out.read_text() == "mine"
    out.unlink()
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="would be replaced, but it holds mine.txt.*--out"):
        build(tmp_path)
    assert (out / "mine.txt").read_text() == "mine"


@pytest.mark.slow
def test_the_install_cell_installs_from_the_mount_without_a_network(index, tmp_path):
    build(tmp_path)
    mount = tmp_path / "kaggle/input/datasets/ada/grpo-kit-wheels-cp312"
    mount.parent.mkdir(parents=True)
    (tmp_path / "out").rename(mount)
    for path in mount.glob("fast-*"):  # a Python 3.12 wheel, which this Python may not be
        path.unlink()
    cell = (mount / wheels.CELL_FILE).read_text().replace("/kaggle/input", str(tmp_path / "kaggle/input"))
    head, _, _ = cell.partition("from grpo_kit.runs.installation")  # the project that is built here has no such module
    environ = {"PIP_TARGET": str(tmp_path / "site"), "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    script = "from unittest.mock import Mock\nget_ipython = Mock()\n"
    script += head.replace('importlib.util.find_spec("grpo_kit") is None', "True")
    subprocess.run([sys.executable, "-c", script], check=True, env=environ, cwd=tmp_path)
    assert {path.name.split("-")[0] for path in (tmp_path / "site").glob("*.dist-info")} == {
        "common",
        "late",
        "grpo_kit",
    }


def test_every_folder_of_the_package_is_in_the_wheel():
    project = tomllib.loads((wheels.ROOT / "pyproject.toml").read_text())
    folders = {path.parent for path in (wheels.ROOT / "grpo_kit").rglob("*") if path.suffix in (".py", ".safetensors")}
    named = {".".join(folder.relative_to(wheels.ROOT).parts) for folder in folders}
    listed = set(project["tool"]["setuptools"]["packages"])
    assert named - listed == set() and listed - named <= {"grpo_kit.recipes", "grpo_kit.config.presets"}


@pytest.mark.slow
def test_the_kits_own_wheel_holds_its_presets_recipes_and_tiny_policy(tmp_path):
    wheel = wheels.build_own_wheel(tmp_path / "dist")
    assert wheel.parent == tmp_path / "dist" and wheel.stat().st_size < 4 * 2**20
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "config/presets/tiny.yaml", "nemotron/tiny_policy/model.safetensors", "kaggle/kernel.py",
        "nemotron/tiny_environments_policy/model.safetensors", "nemotron/tiny_office_policy/model.safetensors",
        "nemotron/nemotron_3_nano.json", "handoff/keys.yaml", "handoff/train.py.txt", "runs/install_cell.py.txt",
    ):  # fmt: skip
        assert f"grpo_kit/{name}" in names
    assert any(name.startswith("grpo_kit/recipes/") for name in names)
    assert not (wheels.ROOT / "build").exists()


def test_a_full_disk_is_not_taken_for_a_missing_wheel(tmp_path, monkeypatch):
    """pip prints a traceback below its only line of an error, which says "Exception:"."""
    printed = "ERROR: Exception:\nTraceback (most recent call last):\nOSError: [Errno 28] No space left on device\n"
    failed = subprocess.CompletedProcess([], 2, "", printed)
    monkeypatch.setattr(wheels.subprocess, "run", lambda *words, **options: failed)
    with pytest.raises(OSError) as caught, new_folder(tmp_path / "wheels"):
        wheels._run_pip("download", "six")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "wheels"))
