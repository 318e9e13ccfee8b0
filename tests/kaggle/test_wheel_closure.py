"""What has to be brought along, given what the image has."""

import pytest

from grpo_kit.kaggle.wheel_closure import IMAGE, Package, environment, is_images, read_have, walk

LINUX = environment("3.12", "x86_64")


def resolved(**packages):
    return {
        name.replace("_", "-"): Package(name.replace("_", "-"), *(said if isinstance(said, tuple) else (said,)))
        for name, said in packages.items()
    }


def names(roots, packages, have, target=LINUX):
    needed, unmet = walk(roots, packages, have, target)
    return [package.name for package in needed], unmet


@pytest.mark.parametrize(
    ("what", "roots", "packages", "have", "needed", "unmet"),
    [
        ("everything, the image being empty", ["a>=1"], {"a": ("1", ("b",)), "b": "2"}, {}, ["a", "b"], []),
        ("nothing that fits is brought", ["a>=1"], {"a": ("2", ("b",)), "b": "2"}, {"a": "1"}, [], []),
        ("a misfit is, with what it needs", ["a>=2"], {"a": ("2", ("b",)), "b": "2"}, {"a": "1"}, ["a", "b"], []),
        ("what another one needs newer is brought for both", ["b", "a"], {"a": ("1", ("b>=2",)), "b": "2"}, {"b": "1"}, ["a", "b"], []),
        ("torch never is", ["a"], {"a": ("1", ("torch>=2",))}, {"torch": "2.10.0"}, ["a"], []),
        ("a local label is the version it labels", ["torch==2.10.0"], {}, {"torch": "2.10.0+cu128"}, [], []),
        ("an older torch than needed is said", ["a"], {"a": ("1", ("torch>=2.11",))}, {"torch": "2.10.0"}, ["a"], ["torch>=2.11"]),
        ("what pip passed over is named", ["a"], {"a": ("1", ("b; python_version >= '3.12'",))}, {}, ["a"], ["b"]),
        ("what only another Python needs is not", ["a"], {"a": ("1", ("b; python_version < '3.12'",)), "b": "1"}, {}, ["a"], []),
        ("nor another system", ["a; sys_platform == 'darwin'"], {"a": "1"}, {}, [], []),
        ("an extra only when asked for", ["a"], {"a": ("1", ("b; extra == 'x'",)), "b": "1"}, {}, ["a"], []),
        ("and then it is", ["a[x]"], {"a": ("1", ("b; extra == 'x'",)), "b": "1"}, {}, ["a", "b"], []),
        ("an extra asked for by another", ["c"], {"c": ("1", ("a[x]",)), "a": ("1", ("b; extra == 'x'",)), "b": "1"}, {}, ["a", "b", "c"], []),
        ("a circle ends", ["a"], {"a": ("1", ("b",)), "b": ("1", ("a",))}, {}, ["a", "b"], []),
        ("names are one however they are spelt", ["A_b.C"], {"a_b_c": "1"}, {}, ["a-b-c"], []),
        ("a pre-release that is there fits", ["a>=1"], {}, {"a": "2.0rc1"}, [], []),
        ("a requirement that is none is named", ["a"], {"a": ("1", ("b (>=1,<",))}, {}, ["a"], ["b (>=1,<"]),
    ],
)  # fmt: skip
def test_walk(what, roots, packages, have, needed, unmet):
    assert names(roots, resolved(**packages), have) == (needed, unmet)


@pytest.mark.parametrize(
    ("name", "images"),
    [("torch", True), ("numpy", True), ("pillow", True), ("triton", True), ("nvidia-cublas-cu12", True), ("torchao", False), ("scipy", False)],
)  # fmt: skip
def test_what_is_always_the_images(name, images):
    assert is_images(name) is images


def test_a_freeze_is_read_and_completed():
    text = "# comment\ntorch==2.11.0+cu128\nPyYAML==6.0.2\nmine @ file:///x/y.whl\n-e git+https://x#egg=z\nbad==!!\nscipy==1.15.3 \n"
    found = read_have(text)
    assert found == IMAGE | {"torch": "2.11.0+cu128", "pyyaml": "6.0.2", "scipy": "1.15.3"}


@pytest.mark.parametrize("text", ["", "torch", "torch>=2", "{}"])
def test_a_list_without_a_version_is_refused(text):
    with pytest.raises(ValueError, match="pip freeze"):
        read_have(text)
