"""The offline folder, from an index of tiny wheels made here: nothing is asked of the network."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from grpo_kit.kaggle import wheel_closure, wheels

ANY, LINUX = "py3-none-any", "cp312-cp312-manylinux_2_28_x86_64"


def wheel(folder, name, version, requires=(), tag=ANY):
    stem = f"{name.replace('-', '_')}-{version}"
    told = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {r}\n" for r in requires
    )
    with zipfile.ZipFile(folder / f"{stem}-{tag}.whl", "w") as archive:
        archive.writestr(f"{stem}.dist-info/METADATA", told)
        archive.writestr(f"{stem}.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A small project in place of the kit, and an index that has what it needs, torch and its libraries among it."""
    there = tmp_path / "index"
    there.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(there))
    wheel(there, "torch", "2.13.0", ["nvidia-cublas-cu12"], LINUX)
    wheel(there, "nvidia-cublas-cu12", "12.0", (), LINUX)
    wheel(there, "numpy", "2.4.0", (), LINUX)
    wheel(there, "fast", "1.0", ["torch>=2.3", "numpy>=1.26", "common>=2"], "cp312-cp312-manylinux_2_24_x86_64")
    wheel(there, "fast", "1.0", [], "cp311-cp311-manylinux_2_24_x86_64")
    wheel(there, "common", "2.5", ["late; python_version >= '3.12'", "early; python_version < '3.12'"])
    wheel(there, "late", "1.0")
    wheel(there, "early", "1.0")
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
    return there


def build(tmp_path, python="3.12", platform="manylinux_2_28_x86_64", have=wheel_closure.IMAGE):
    return wheels.build(tmp_path / "out", python, platform, dict(have), "ada", lambda line: None)


def stems(found):
    return sorted("-".join(path.name.split("-")[:2]) for path in found)


def test_the_folder_holds_what_is_needed_and_no_torch(index, tmp_path):
    before = sorted(path for path in wheels.ROOT.rglob("*"))
    found = build(tmp_path)
    assert stems(found) == ["common-2.5", "fast-1.0", "grpo_kit-0.1", "late-1.0"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [path.name for path in found] + [wheels.CELL, wheels.METADATA]
    )
    told = json.loads((tmp_path / "out" / wheels.METADATA).read_text())
    assert told == {
        "id": "ada/grpo-kit-wheels-cp312",
        "title": "grpo kit wheels cp312",
        "licenses": [{"name": "other"}],
    }
    assert sorted(path for path in wheels.ROOT.rglob("*")) == before  # building wrote nothing into the source


def test_another_python_gets_its_own_wheels(index, tmp_path):
    (index / "fast-1.0-cp312-cp312-manylinux_2_24_x86_64.whl").unlink()
    wheel(index, "fast", "1.0", ["common"], "cp311-cp311-manylinux_2_24_x86_64")
    assert stems(build(tmp_path, "3.11")) == ["common-2.5", "early-1.0", "fast-1.0", "grpo_kit-0.1"]


def test_what_the_image_has_is_left_to_it(index, tmp_path):
    assert stems(build(tmp_path, have=wheel_closure.IMAGE | {"common": "2.1"})) == ["fast-1.0", "grpo_kit-0.1"]


def test_what_the_image_has_too_old_is_brought(index, tmp_path):
    found = build(tmp_path, have=wheel_closure.IMAGE | {"common": "1.9", "late": "0.3"})
    assert stems(found) == ["common-2.5", "fast-1.0", "grpo_kit-0.1"]


@pytest.mark.parametrize(
    ("other", "error", "says"),
    [
        (
            {"platform": "manylinux2014_x86_64"},
            RuntimeError,
            "No matching distribution found for fast==1.0.*later --platform",
        ),
        ({"platform": "linux_x86_64"}, ValueError, "manylinux2014_x86_64 or manylinux_2_28"),
        ({"platform": "win_amd64"}, ValueError, "manylinux2014_x86_64 or manylinux_2_28"),
        ({"have": wheel_closure.IMAGE | {"torch": "2.9.0"}}, RuntimeError, "pip install failed.*--have"),
    ],
)
def test_what_cannot_be_met_is_said_and_leaves_no_folder(index, tmp_path, other, error, says):
    with pytest.raises(error, match=says) as caught:
        build(tmp_path, **other)
    assert "from versions" not in str(caught.value)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_without_its_own_source_it_is_said(index, tmp_path):
    (wheels.ROOT / "pyproject.toml").unlink()
    with pytest.raises(FileNotFoundError, match="in a clone of the kit"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("name", "tag", "says"),
    [
        ("torch", LINUX, "image's own"),
        ("nvidia-cudnn-cu12", LINUX, "image's own"),
        ("extra", ANY, "not"),
        ("a", "cp311-cp311-manylinux_2_28_x86_64", "does not fit Python 3.12"),
        ("a", "cp312-cp312-manylinux_2_34_x86_64", "does not fit Python 3.12"),
        ("a", "cp312-cp312-manylinux_2_28_aarch64", "does not fit Python 3.12"),
        ("a", "cp312-cp312-win_amd64", "does not fit Python 3.12"),
    ],
)
def test_what_came_is_looked_at(tmp_path, name, tag, says):
    wheel(tmp_path, "grpo-kit", "0.1")
    wheel(tmp_path, name, "1.0", (), tag)
    with pytest.raises(ValueError, match=says):
        wheels.verify(tmp_path, "3.12", wheels.expand("manylinux_2_28_x86_64"), {"a": "1.0"})


def test_a_missing_or_another_wheel_is_noticed_and_abi3_fits(tmp_path):
    platforms = wheels.expand("manylinux_2_28_x86_64")
    wheel(tmp_path, "a", "1.0", (), "cp39-abi3-manylinux2014_x86_64")
    with pytest.raises(ValueError, match="and grpo-kit"):
        wheels.verify(tmp_path, "3.12", platforms, {"a": "1.0"})
    wheel(tmp_path, "grpo-kit", "0.1")
    assert len(wheels.verify(tmp_path, "3.12", platforms, {"a": "1.0.0"})) == 2
    for wanted in ({"a": "2.0"}, {"a": "1.0", "b": "1.0"}):
        with pytest.raises(ValueError, match="holds"):
            wheels.verify(tmp_path, "3.12", platforms, wanted)


def test_the_install_cell_installs_from_the_mount_and_asks_nobody(index, tmp_path):
    build(tmp_path)
    mount = tmp_path / "kaggle/input/datasets/ada/grpo-kit-wheels-cp312"
    mount.parent.mkdir(parents=True)
    (tmp_path / "out").rename(mount)
    for path in mount.glob("fast-*"):  # a Python 3.12 wheel, which this Python may not be
        path.unlink()
    cell = (mount / wheels.CELL).read_text().replace("/kaggle/input", str(tmp_path / "kaggle/input"))
    assert len(cell.splitlines()) <= 25
    environ = {"PIP_TARGET": str(tmp_path / "site"), "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", cell], check=True, env=environ, cwd=tmp_path)
    assert {path.name.split("-")[0] for path in (tmp_path / "site").glob("*.dist-info")} == {
        "common",
        "late",
        "grpo_kit",
    }


def test_the_install_cell_says_what_to_mount_when_there_is_nothing(tmp_path):
    cell = wheels.INSTALL_CELL.replace("/kaggle/input", str(tmp_path))
    done = subprocess.run([sys.executable, "-S", "-c", cell], capture_output=True, text=True, cwd=tmp_path, env={})
    assert done.returncode == 1 and "Mount the dataset that `grpo-kit wheels` made" in done.stderr


def test_the_kits_own_wheel_holds_its_presets_recipes_and_tiny_policy(tmp_path):
    wheels._own_wheel(tmp_path, tmp_path)
    [made] = tmp_path.glob("grpo_kit-*.whl")
    held = set(zipfile.ZipFile(made).namelist())
    for name in ("presets/tiny.yaml", "tiny_policy/model.safetensors", "kaggle_kernel.py", "nemotron_3_nano.json"):
        assert f"grpo_kit/{name}" in held
    assert any(name.startswith("grpo_kit/recipes/") for name in held)
    root = Path(wheels.__file__).resolve().parents[1]
    assert not (root / "build").exists()
