"""A folder of wheels for a kernel without internet: what the kit needs, for the kernel's Python, around the image's torch.

Torch, numpy, pillow and NVIDIA's libraries are the image's: a torch brought along breaks what was built against the one
there. pip is shown empty stand-ins of the image's versions, so that it resolves around them and downloads none.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

from grpo_kit.config.checks import require
from grpo_kit.kaggle import wheel_closure
from grpo_kit.runs.files import new_folder, write_text

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ("pyproject.toml", "requirements.txt", "README.md", "LICENSE", "grpo_kit", "data")
CELL, METADATA = "install_cell.py", "dataset-metadata.json"
INSTALL_CELL = """\
# Install grpo_kit and what it needs from the wheels that are mounted. No internet is used, and the image's torch stays.
import importlib.util
import subprocess
import sys
from pathlib import Path

own = sorted(Path("/kaggle/input").glob("**/grpo_kit-*.whl"))
if own:
    folder = str(own[-1].parent)
    files = sorted(map(str, own[-1].parent.glob("*.whl")))
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--find-links", folder]
    subprocess.run([*pip, *files], check=True)
    importlib.invalidate_caches()
elif importlib.util.find_spec("grpo_kit") is None:
    raise FileNotFoundError("No grpo_kit wheel lies under /kaggle/input. Mount the dataset that `grpo-kit wheels` made.")
"""


def build(
    out: Path, python: str, platform: str, have: dict[str, str], owner: str, show: Callable[[str], None]
) -> list[Path]:
    """Fill `out` with the wheels, the install cell and the dataset's metadata; returns the wheels.

    `python`: such as 3.12. `platform`: a wheel tag such as manylinux_2_28_x86_64; older ones it includes are taken too.
    `have`: {canonical name: version} of the image. Raises ValueError for what no set of wheels can meet, RuntimeError when
    pip fails, FileNotFoundError where the kit's own source is not at hand.
    """
    require(re.fullmatch(r"3\.\d+", python) is not None, f"--python is {python!r}; it is written 3.12. Write it so.")
    platforms = expand(platform)
    if not (ROOT / "pyproject.toml").is_file():
        raise FileNotFoundError(f"{ROOT} holds no pyproject.toml to build grpo_kit's own wheel from. Run it in a clone of the kit.")  # fmt: skip
    target = wheel_closure.environment(python, platform.split("_", 1)[1].removeprefix("2_").lstrip("0123456789_"))
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    roots = [text for line in lines if (text := line.partition("#")[0].strip())]
    where = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    where += [word for name in platforms for word in ("--platform", name)]
    with new_folder(out) as folder, tempfile.TemporaryDirectory() as temporary:
        aside = Path(temporary)
        asked, wanted, unmet = list(roots), [], list(roots)
        for _ in range(3):  # again when the other Python needs something that this one does not
            show("resolving")
            wanted, unmet = wheel_closure.walk(roots, _resolve(asked, where, have, aside), have, target)
            if not unmet or set(unmet) <= set(asked):
                break
            asked += unmet
        require(
            not unmet,
            f"Nothing meets {', '.join(unmet[:4])} for Python {python} on {platform} with what the image has. Name a later --platform, "
            "or the image's packages with --have.",
        )
        show(f"downloading {len(wanted)} wheels")
        pins = [f"{package.name}=={package.version}" for package in wanted]
        if pins:
            _pip("download", "-q", "--no-deps", *where, "-d", str(folder), *pins)
        show("building grpo_kit's own wheel")
        _own_wheel(folder, aside)
        found = verify(folder, python, platforms, {package.name: package.version for package in wanted})
        name = dataset(python)
        told = {"id": f"{owner}/{name}", "title": name.replace("-", " "), "licenses": [{"name": "other"}]}
        write_text(folder / METADATA, json.dumps(told, indent=2) + "\n")
        write_text(folder / CELL, INSTALL_CELL)
    return [out / path.name for path in found]


def dataset(python: str = "3.12") -> str:
    """The name (slug) of the dataset that the wheels for this Python make."""
    return f"grpo-kit-wheels-cp{python.replace('.', '')}"


def expand(platform: str) -> list[str]:
    """The platform tags that a machine of `platform` takes, newest first.

    >>> expand("manylinux2014_x86_64")
    ['manylinux_2_17_x86_64', 'manylinux2014_x86_64']

    Raises ValueError for a tag that is not a manylinux one from glibc 2.17 on.
    """
    match = re.fullmatch(r"manylinux(?:2014|_2_(\d+))_(x86_64|aarch64)", platform)
    newest = int(match[1] or 17) if match else 0
    require(
        17 <= newest < 60,
        f"--platform is {platform!r}; it is written manylinux2014_x86_64 or manylinux_2_28_x86_64. Write it so.",
    )
    machine = match[2] if match else ""
    return [f"manylinux_2_{n}_{machine}" for n in range(newest, 16, -1)] + [f"manylinux2014_{machine}"]


def verify(folder: Path, python: str, platforms: list[str], wanted: dict[str, str]) -> list[Path]:
    """The wheels in `folder`. Raises ValueError when one is the image's own, does not fit, or is missing."""
    major, minor = map(int, python.split("."))
    fits: set[Tag] = set(cpython_tags((major, minor), platforms=platforms))
    fits |= set(compatible_tags((major, minor), f"cp{major}{minor}", platforms))
    there, found = {}, sorted(folder.glob("*.whl"))
    for path in found:
        name, version, _, tags = parse_wheel_filename(path.name)
        require(not wheel_closure.is_images(name), f"{path.name} is the image's own and must not be brought along.")
        require(bool(tags & fits), f"{path.name} does not fit Python {python} on {platforms[0]}.")
        there[str(name)] = version
    expected = {name: Version(version) for name, version in wanted.items()}
    own = there.pop("grpo-kit", None)
    require(
        own is not None and there == expected, f"{folder} holds {sorted(there)}, not {sorted(expected)} and grpo-kit."
    )
    return found


def _resolve(roots: list[str], where: list[str], have: dict[str, str], aside: Path) -> dict[str, wheel_closure.Package]:
    """What pip would install, around stand-ins of the image's own packages; nothing is downloaded but metadata."""
    stand_ins, report = aside / "stand-ins", aside / "report.json"
    shutil.rmtree(stand_ins, ignore_errors=True)
    stand_ins.mkdir()
    pinned = [_stand_in(stand_ins, name, version) for name, version in have.items() if wheel_closure.is_images(name)]
    (aside / "pinned.txt").write_text("\n".join(pinned) + "\n")
    _pip(
        "install", "-q", "--dry-run", "--ignore-installed", "--target", str(aside / "nowhere"), *where, "--find-links",
        str(stand_ins), "-c", str(aside / "pinned.txt"), "--report", str(report), *roots,
    )  # fmt: skip
    told: list[dict[str, Any]] = [entry["metadata"] for entry in json.loads(report.read_text())["install"]]
    packages = [
        wheel_closure.Package(canonicalize_name(one["name"]), one["version"], tuple(one.get("requires_dist", ())))
        for one in told
    ]
    return {package.name: package for package in packages}


def _stand_in(folder: Path, name: str, version: str) -> str:
    """An empty wheel of the image's version; its local label makes it the one that the returned pin means."""
    local = version if "+" in version else f"{version}+image"
    stem = f"{name.replace('-', '_')}-{local}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {local}\n")
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")
    return f"{name}=={local}"


def _own_wheel(folder: Path, aside: Path) -> None:
    """Build from a copy: building writes into the source."""
    source = aside / "source"
    for name in SOURCE:
        one = ROOT / name
        if one.is_dir():
            shutil.copytree(one, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        elif one.is_file():
            source.mkdir(exist_ok=True)
            shutil.copy(one, source)
    here = [found.version for found in distributions(name="setuptools")]
    tools = ["--no-build-isolation"] if here and Version(here[0]) >= Version("77") else []  # else pip downloads it
    _pip("wheel", "-q", "--no-deps", *tools, "-w", str(folder), str(source))


def _pip(*words: str) -> None:
    environ = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1")
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, env=environ)
    if done.returncode:
        said = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = re.sub(r" \(from versions: [^)]*\)", "", " ".join(said) or done.stderr.strip()[-300:])[:400]
        raise RuntimeError(
            f"pip {words[0]} failed: {reason.rstrip('.')}. Where wheels are missing, name a later --platform or another --python; where "
            "versions disagree, take the package out of --have."
        )
