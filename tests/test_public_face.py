"""The public names of `grpo_kit`: few, loaded when used, documented; and notebooks that use nothing else."""

import ast
import importlib
import inspect
import re
import subprocess
import sys

import pytest

import grpo_kit
from grpo_kit import notebook
from tests.helpers.settings import ROOT

SOURCE = ast.parse((ROOT / "grpo_kit/__init__.py").read_text(encoding="utf-8"))
SECTIONS = ("Args", "Returns", "Raises", "Example")

each_name = pytest.mark.parametrize("name", grpo_kit.__all__)


def names_for_editors() -> dict[str, tuple[str, str]]:
    """{public name: (module, name there)} as the TYPE_CHECKING block imports them."""
    block = next(node for node in SOURCE.body if isinstance(node, ast.If))
    imported = ((node.module, alias) for node in block.body for alias in node.names)
    return {alias.asname or alias.name: (module, alias.name) for module, alias in imported}


def test_there_are_12_to_16_public_names_and_editors_see_the_same_ones():
    assert 12 <= len(grpo_kit.__all__) <= 16 and sorted(grpo_kit.__all__) == list(grpo_kit.__all__)
    assert set(names_for_editors()) == set(grpo_kit.__all__) <= set(dir(grpo_kit))


@each_name
def test_a_public_name_is_the_object_that_editors_show(name):
    module, attribute = names_for_editors()[name]
    public = getattr(grpo_kit, name)
    assert public is getattr(importlib.import_module(module), attribute)
    assert public.__module__.startswith("grpo_kit.") and callable(public)


def test_a_name_that_does_not_exist_raises():
    with pytest.raises(AttributeError, match="module 'grpo_kit' has no attribute 'trian'"):
        grpo_kit.trian  # noqa: B018 (the lookup itself raises)
    with pytest.raises(ImportError, match="cannot import name 'trian'"):
        from grpo_kit import trian  # noqa: F401 (the import itself raises)


def test_importing_the_package_loads_one_of_its_modules_and_no_library():
    code = (
        "import sys; before = set(sys.modules); import grpo_kit; dir(grpo_kit); new = set(sys.modules) - before;"
        "print(*sorted(name for name in new if name.split('.')[0] not in sys.stdlib_module_names), len(new))"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert printed[:-1] == ["grpo_kit"]
    assert int(printed[-1]) < 20


def sections(docstring: str) -> dict[str, str]:
    """{heading: text} of a docstring in Google style; the opening lines are under ""."""
    blocks = re.split(r"^([A-Z]\w+):\n", inspect.cleandoc(docstring), flags=re.MULTILINE)
    return {"": blocks[0]} | dict(zip(blocks[1::2], blocks[2::2]))


def assert_documented(function, headings):
    parts = sections(function.__doc__)
    assert parts[""].strip() and set(headings) <= set(parts), set(headings) - set(parts)
    described = set(re.findall(r"^    \*{0,2}(\w+)(?: \([^)]*\))?:", parts["Args"], flags=re.MULTILINE))
    parameters = [name for name in inspect.signature(function).parameters if name != "self"]
    assert described == set(parameters), "Args names every parameter, and no other"
    assert all(parts[heading].strip() for heading in headings)


@each_name
def test_a_public_name_documents_arguments_result_errors_and_an_example(name):
    public = getattr(grpo_kit, name)
    if inspect.isclass(public):
        assert_documented(public, ("Args", "Example"))
        assert_documented(public.during, ("Args", "Returns", "Raises"))
    else:
        assert_documented(public, SECTIONS)


def modules_used(source: str) -> set[str]:
    """The modules that a notebook's source imports from; a name of `grpo_kit` that is not public is marked."""
    used = set()
    for node in ast.walk(ast.parse(re.sub(r"^( *)%.*$", r"\1pass", source, flags=re.MULTILINE))):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            public = {alias.name for alias in node.names} <= {*grpo_kit.__all__, "notebook"}
            used.add(node.module if node.module != "grpo_kit" or public else "grpo_kit, a name that is not public")
    return used


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks/src").glob("*.py")), ids=lambda path: path.stem)
def test_a_notebook_uses_public_names_and_grpo_kit_notebook_only(path):
    kit_modules = {name for name in modules_used(path.read_text(encoding="utf-8")) if name.split(".")[0] == "grpo_kit"}
    assert kit_modules == {"grpo_kit"}


def test_every_helper_of_the_notebooks_is_used_by_one():
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "notebooks/src").glob("*.py"))
    assert set(re.findall(r"\bnotebook\.(\w+)", text)) == set(notebook.__all__)


def test_the_check_on_notebooks_can_fail():
    assert modules_used("from grpo_kit import train, notebook\n%time\nimport os") == {"grpo_kit", "os"}
    assert modules_used("from grpo_kit import data") == {"grpo_kit, a name that is not public"}
    assert modules_used("import grpo_kit.data.sources") == {"grpo_kit.data.sources"}


@pytest.mark.slow
def test_the_example_of_the_package_runs_as_it_is_printed(tmp_path):
    example = re.search(r"```python\n(.+?)```", grpo_kit.__doc__, flags=re.DOTALL)[1]
    assert len(example.splitlines()) <= 12
    printed = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert "60" in printed[0] and "The outputs equal the trained policy's" in printed[-1]
    assert (tmp_path / "submission/submission.zip").is_file()
