"""A folder of wheels for a Kaggle kernel without internet: the kit and what it needs, without torch.

`uv pip compile` chooses the versions for the kernel's Python and platform, around the versions of torch, numpy and
pillow that the kernel's image has: another torch would break packages that were built against the image's torch. `pip
download` fetches the wheels that the image does not have.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from grpo_kit.config.checks import require
from grpo_kit.runs.files import follow_link, new_folder, require_folder, write_text
from grpo_kit.runs.installation import find_version, read_install_cell

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ("pyproject.toml", "requirements.txt", "README.md", "LICENSE", "grpo_kit", "data")
# These packages always come from the image, because its other packages are built against them. The versions apply
# unless --have gives others. They are the oldest that an image may have, so that the wheels also suit later images.
IMAGE = {
    "torch": "2.10.0",
    "torchvision": "0.25.0",
    "torchaudio": "2.10.0",
    "triton": "3.6.0",
    "numpy": "2.0.2",
    "pillow": "11.3.0",
}
CELL_FILE, METADATA_FILE = "install_cell.py", "dataset-metadata.json"


def build_wheels(
    out: Path, python: str, platform: str, image: Mapping[str, str], owner: str, show: Callable[[str], None]
) -> list[Path]:
    """Fill a folder with the wheels, the install cell and the metadata of a Kaggle dataset.

    Args:
        out: the folder; it appears when everything is in it.
        python: the kernel's Python, such as 3.12.
        platform: the newest wheel tag that the kernel takes, such as manylinux_2_28_x86_64; older tags are taken too.
        image: {canonical name: version} of the packages that the image has. A package whose version meets the
            requirements is left to the image.
        owner: the Kaggle user name.
        show: called with a few words on what is being done.

    Returns:
        The wheels.

    Raises:
        ValueError: `python` or `platform` is not written as above, or `out` holds other files, which would be lost.
        RuntimeError: uv is not installed, no set of wheels meets the requirements, or pip fails.
        FileNotFoundError: the source of the kit is not here.

    Example:
        >>> build_wheels(Path("wheels"), "3.12", "manylinux_2_28_x86_64", IMAGE, "ada", print)  # doctest: +SKIP
    """
    require(re.fullmatch(r"3\.\d+", python) is not None, f"--python is {python!r}; write it like 3.12.")
    platforms = expand_platform(platform)
    if not (ROOT / "pyproject.toml").is_file():
        raise FileNotFoundError(f"{ROOT} has no pyproject.toml to build grpo_kit from. Run this in a clone of the kit.")
    require_folder(out, "Name another path with --out.")
    own = (METADATA_FILE, CELL_FILE)
    for path in out.glob("*"):
        require(
            path.suffix == ".whl" or path.name in own,
            f"{out} would be replaced, but it holds {path.name}, which `grpo-kit wheels` did not write. Name a new "
            "folder with --out.",
        )
    with new_folder(follow_link(out)) as folder, tempfile.TemporaryDirectory() as temporary:
        show("resolving")
        pins = resolve(python, platform, image, Path(temporary))
        show(f"downloading {len(pins)} wheels")
        if pins:
            target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
            target += [word for name in platforms for word in ("--platform", name)]
            _run_pip("download", "-q", "--no-deps", *target, "-d", str(folder), *pins)
        show("building grpo_kit's own wheel")
        build_own_wheel(folder)
        name = dataset_name(python)
        metadata = {"id": f"{owner}/{name}", "title": name.replace("-", " "), "licenses": [{"name": "other"}]}
        write_text(folder / METADATA_FILE, json.dumps(metadata, indent=2) + "\n")
        write_text(folder / CELL_FILE, read_install_cell() + "\n")
        files = sorted(folder.glob("*.whl"))
    return [out / path.name for path in files]


def dataset_name(python: str = "3.12") -> str:
    """The name (slug) of the Kaggle dataset that holds the wheels for this Python."""
    return f"grpo-kit-wheels-cp{python.replace('.', '')}"


def expand_platform(platform: str) -> list[str]:
    """The platform tags of wheels that run where those of `platform` do, newest first.

    >>> expand_platform("manylinux2014_x86_64")
    ['manylinux_2_17_x86_64', 'manylinux2014_x86_64']

    Raises:
        ValueError: it is not a manylinux tag from glibc 2.17 on.
    """
    match = re.fullmatch(r"manylinux(?:2014|_2_(\d+))_(x86_64|aarch64)", platform)
    newest = int(match[1] or 17) if match else 0
    require(
        17 <= newest < 60,
        f"--platform is {platform!r}; write it like manylinux2014_x86_64 or manylinux_2_28_x86_64.",
    )
    machine = match[2] if match else ""
    return [f"manylinux_2_{n}_{machine}" for n in range(newest, 16, -1)] + [f"manylinux2014_{machine}"]


def read_freeze_file(path: Path) -> dict[str, str]:
    """The packages of an image, from a file with what `pip freeze` prints in it.

    Args:
        path: a file of lines `name==version`; other lines are ignored.

    Returns:
        {canonical name: version}, with `IMAGE` for the names that the file does not have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no line has a version.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; --have takes a file with what `pip freeze` prints in the image."
        )
    versions = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;]+)", line.strip())
        if match:
            try:
                versions[canonicalize_name(match[1])] = str(Version(match[2]))
            except InvalidVersion:
                continue
    require(
        bool(versions), "--have has no line name==version. Give it a file with what `pip freeze` prints in the image."
    )
    return IMAGE | versions


def comes_from_image(name: str) -> bool:
    """Whether a package, by its canonical name, always comes from the image: torch and its companions."""
    return name in IMAGE or name == "cuda-toolkit" or name.startswith(("nvidia-", "cuda-bindings", "cuda-pathfinder"))


def resolve(python: str, platform: str, image: Mapping[str, str], folder: Path) -> list[str]:
    """Choose the packages to bring along, for the requirements of the kit.

    Args:
        python, platform, image: as in `build_wheels`.
        folder: for temporary files.

    Returns:
        Pins, `name==version`, of what the image does not have.

    Raises:
        RuntimeError: uv is not installed, or no set of wheels meets the requirements.
    """
    if find_spec("uv") is None:
        raise RuntimeError("`grpo-kit wheels` chooses versions with uv, which is not installed. Run `pip install uv`.")
    public = {name: Version(version).public for name, version in image.items()}  # no index has 2.10.0+cu128
    constraints, pins = folder / "image.txt", folder / "pins.txt"
    constraints.write_text("".join(f"{name}=={public[name]}\n" for name in IMAGE))
    # uv keeps the versions in an output file that is there already, wherever they fit.
    pins.write_text("".join(f"{name}=={public[name]}\n" for name in public if not comes_from_image(name)))
    command = [
        sys.executable, "-m", "uv", "pip", "compile", "-q", str(ROOT / "requirements.txt"),
        "-c", str(constraints), "-o", str(pins), "--no-header", "--annotation-style", "line",
        "--python-version", python, "--python-platform", _uv_platform(platform),
        "--only-binary", ":all:", "--no-python-downloads",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = " ".join(done.stderr.split()).removeprefix("error: ")[:600].rstrip(".")
        raise RuntimeError(
            f"uv found no wheels for Python {python} on {platform}: {reason}. Name a later --platform, or give --have "
            "what `pip freeze` prints in the image. uv reads another index from UV_DEFAULT_INDEX, not from pip's files."
        )
    return _not_in_image(pins.read_text(), public)


def _not_in_image(text: str, image: Mapping[str, str]) -> list[str]:
    """The pins to bring along: the image does not have them, and a package outside the image needs them.

    Args:
        text: lines `name==version  # via PARENTS` of uv.
        image: {canonical name: version}.
    """
    lines = re.findall(r"^(\S+)==(\S+)\s+# via (.+)$", text, re.MULTILINE)
    in_image = {name for name, version, _ in lines if comes_from_image(name) or image.get(name) == version}
    needed = {name: set(parents.split(", ")) for name, _, parents in lines}
    while more := {name for name, parents in needed.items() if parents <= in_image} - in_image:
        in_image |= more  # such as networkx, which only torch needs
    return [f"{name}=={version}" for name, version, _ in lines if name not in in_image]


def _uv_platform(platform: str) -> str:
    """uv's name for a platform, or for the newest older one that uv knows."""
    version, machine = re.findall(r"^manylinux_2_(\d+)_(\w+)$", expand_platform(platform)[0])[0]
    return f"{machine}-manylinux_2_{max(n for n in (17, 28, *range(31, 41)) if n <= int(version))}"


def build_own_wheel(folder: Path) -> Path:
    """Build the kit's own wheel into `folder`, from a copy, since building writes into the source; return its path."""
    setuptools = find_version("setuptools")
    # With a setuptools here that is new enough, pip does not have to download one.
    isolation = ["--no-build-isolation"] if setuptools and Version(setuptools) >= Version("77") else []
    with tempfile.TemporaryDirectory() as temporary:
        source, built = Path(temporary, "source"), Path(temporary, "built")
        source.mkdir()
        for name in SOURCE:
            path = ROOT / name
            if path.is_dir():
                shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
            elif path.is_file():
                shutil.copy(path, source)
        _run_pip("wheel", "-q", "--no-deps", *isolation, "-w", str(built), str(source))
        [wheel] = built.glob("*.whl")
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(wheel, folder))


def _run_pip(*words: str) -> None:
    environ = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1")
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, env=environ)
    if done.returncode:
        if full := re.search(r"\[Errno (28|122|27|30)\]", done.stderr):  # no space, quota, too large, read-only
            raise OSError(number := int(full[1]), os.strerror(number))  # `new_folder` adds the place
        errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = re.sub(r" \(from versions: [^)]*\)", "", " ".join(errors) or done.stderr.strip()[-300:])[:400]
        raise RuntimeError(
            f"pip {words[0]} failed: {reason.rstrip('.')}. Where wheels are missing, use a later --platform or another "
            "--python."
        )
