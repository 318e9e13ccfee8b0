"""Which packages a machine without internet has to be brought, given what its image has.

pip resolves for another Python and platform, but reads the markers of requirements by its own, and knows no image. Here
its answer is walked again from the roots: a package the image has in a fitting version is left to the image, together
with what only it needs, and a requirement that pip passed over is named.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from grpo_kit.config.checks import require

# Never brought along: built against the image's CUDA and against each other. The versions stand in where no list of the
# image's is given; they are the oldest that are likely, so that what is resolved against them suits later ones as well.
IMAGE = {"torch": "2.10.0", "torchvision": "0.25.0", "torchaudio": "2.10.0", "triton": "3.6.0", "numpy": "2.0.2", "pillow": "11.3.0"}  # fmt: skip


@dataclass(frozen=True)
class Package:
    """A resolved package: its canonical name, version, and requirements as its metadata words them."""

    name: str
    version: str
    requires: tuple[str, ...] = ()


def is_images(name: str) -> bool:
    """Whether a package, by canonical name, is always the image's own."""
    return name in IMAGE or name == "cuda-toolkit" or name.startswith(("nvidia-", "cuda-bindings", "cuda-pathfinder"))


def read_have(text: str) -> dict[str, str]:
    """{name: version} of what `pip freeze` says in the image; IMAGE's versions for what it does not name.

    Lines that give no version (`name @ file:...`, options, comments) are passed over. Raises ValueError for a list without one.
    """
    found = {}
    for line in text.splitlines():
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;]+)", line.strip())
        if match:
            try:
                found[canonicalize_name(match[1])] = str(Version(match[2]))
            except InvalidVersion:
                continue
    require(bool(found), "--have names no package as name==version; it takes what `pip freeze` prints in the image.")
    return IMAGE | found


def environment(python: str, machine: str) -> dict[str, str]:
    """What markers are read by: CPython `python` (such as 3.12) on Linux, `machine` such as x86_64."""
    return {
        "implementation_name": "cpython", "implementation_version": f"{python}.0", "os_name": "posix", "platform_machine": machine,
        "platform_release": "", "platform_system": "Linux", "platform_version": "", "python_full_version": f"{python}.0",
        "platform_python_implementation": "CPython", "python_version": python, "sys_platform": "linux",
    }  # fmt: skip


def walk(
    roots: Iterable[str], resolved: Mapping[str, Package], have: Mapping[str, str], target: dict[str, str]
) -> tuple[list[Package], list[str]]:
    """(packages to bring, requirements that nothing meets, without their markers) from the requirements `roots` on.

    A package of the image is kept if every requirement reached fits its version; since those are known only when the walk
    has ended, it begins anew whenever one turns out not to fit.
    """
    brought: set[str] = set()
    while True:
        needed, unmet, misfits = _one_walk(roots, resolved, have, target, brought)
        if not misfits:
            return [resolved[name] for name in sorted(needed)], sorted(set(unmet))
        brought |= misfits


def _one_walk(
    roots: Iterable[str], resolved: Mapping[str, Package], have: Mapping[str, str], target: dict[str, str], brought: set[str]
) -> tuple[set[str], list[str], set[str]]:  # fmt: skip
    needed, unmet, misfits, seen = set(), [], set(), set()
    todo = [(text, "") for text in roots]
    while todo:
        text, extra = todo.pop()
        if (text, extra) in seen:
            continue
        seen.add((text, extra))
        try:
            wish = Requirement(text)
        except InvalidRequirement:
            unmet.append(text)
            continue
        if wish.marker and not wish.marker.evaluate(target | {"extra": extra}):
            continue
        name = canonicalize_name(wish.name)
        if name in have and name not in brought:
            if wish.specifier.contains(have[name], prereleases=True):
                continue
            if is_images(name):
                unmet.append(_bare(wish))
            else:
                misfits.add(name)
            continue
        package = resolved.get(name)
        if package is None or not wish.specifier.contains(package.version, prereleases=True):
            unmet.append(_bare(wish))
            continue
        needed.add(name)
        todo += [(inner, each) for inner in package.requires for each in ("", *wish.extras)]
    return needed, unmet, misfits


def _bare(wish: Requirement) -> str:
    wish.marker = None  # it holds for the target; pip would read it by this Python
    return str(wish)
