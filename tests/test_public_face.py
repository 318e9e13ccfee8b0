"""The public names of `grpo_kit`: few, loaded when used, documented; and notebooks that use nothing else."""

import ast
import builtins
import doctest
import functools
import importlib
import inspect
import os
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest

import grpo_kit
from grpo_kit import notebook
from tests.helpers.processes import start as start_python
from tests.helpers.settings import ROOT

SOURCE = ast.parse((ROOT / "grpo_kit/__init__.py").read_text(encoding="utf-8"))
SECTIONS = ("Args", "Returns", "Raises", "Example")

each_name = pytest.mark.parametrize("name", grpo_kit.__all__)


def names_for_editors() -> dict[str, tuple[str, str]]:
    """{public name: (module, name there)} as the TYPE_CHECKING block imports them."""
    block = next(node for node in SOURCE.body if isinstance(node, ast.If))
    imported = ((node.module, alias) for node in block.body for alias in node.names)
    return {alias.asname or alias.name: (module, alias.name) for module, alias in imported}


def test_there_are_12_to_18_public_names_and_editors_see_the_same_ones():
    assert 12 <= len(grpo_kit.__all__) <= 18 and sorted(grpo_kit.__all__) == list(grpo_kit.__all__)
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


GROWING = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, GROWING),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, None),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, None),  # the older name
        ({"PYTORCH_ALLOC_CONF": ""}, None),  # switched off
    ],
)
@pytest.mark.parametrize("torch_first", [False, True])
def test_reserved_gpu_memory_can_grow_unless_the_user_decided_otherwise(given, kept, torch_first):
    env = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name} | given
    first = "import torch; " * torch_first  # no GPU has been used yet
    read = "torch._C._accelerator_getAllocatorSettings()"  # what PyTorch itself has read
    names = "{name: value for name, value in os.environ.items() if 'ALLOC_CONF' in name}"
    child = start_python(["-c", f"{first}import grpo_kit, os, torch; print([{names}, {read}])"], env=env)
    output, _ = child.communicate(timeout=60)
    kept = given if kept is None else kept
    assert ast.literal_eval(output) == [kept, *kept.values()], output


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


def test_the_help_of_the_package_starts_with_every_name_and_what_it_does():
    listed = re.findall(r"^    (\w+) +(\S.*\.)$", grpo_kit.__doc__, flags=re.MULTILINE)
    assert sorted(name for name, _ in listed) == grpo_kit.__all__
    text = pydoc.plain(pydoc.render_doc(grpo_kit))
    assert len(text.splitlines()) < 700, "one class that inherits from a library's fills pages"
    assert all(line.partition(" ")[0] in text[:2000] for _, line in listed)


def example_of(name: str) -> str:
    examples = doctest.DocTestParser().get_examples(getattr(grpo_kit, name).__doc__)
    return "".join(example.source for example in examples)


def undefined_names(code: str) -> set[str]:
    """Names that the code reads and does not define; a notebook has `display`."""
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)]
    aliases = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    stored = {node.id for node in nodes if isinstance(node.ctx, ast.Store)}
    return {node.id for node in nodes} - stored - aliases - set(dir(builtins)) - {"display"}


@each_name
def test_the_example_of_a_public_name_can_be_copied_into_an_empty_notebook(name):
    """It imports public names only, defines what it uses, and calls with arguments that the signatures accept."""
    code = example_of(name)
    tree = ast.parse(code)
    imported = {node.module: node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert set(imported) == {"grpo_kit"} and name in {alias.name for alias in imported["grpo_kit"].names}
    assert {alias.name for alias in imported["grpo_kit"].names} <= set(grpo_kit.__all__)
    assert undefined_names(code) == set()
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    for call in calls:
        if call.func.id in grpo_kit.__all__:
            keywords = {keyword.arg: None for keyword in call.keywords}
            inspect.signature(getattr(grpo_kit, call.func.id)).bind(*call.args, **keywords)
    assert name in {call.func.id for call in calls}


def test_the_check_on_examples_can_fail():
    assert undefined_names("from grpo_kit import train\ntrain(config, run, [1])") == {"config", "run"}


@pytest.mark.parametrize(
    "call",
    [
        'package(config, run, out="out.zip", adapters="nowhere")', 'package(config, run, None, Path("nowhere"))',
        'check("nowhere.zip")', 'check(Path("nowhere.zip"), config.policy, "probe")', 'submit("nowhere.zip")',
        'load_config("nowhere.yaml")', 'load_config(Path("nowhere.yaml"))', 'open_run("nowhere.yaml")',
        'load_reward(Path("nowhere.py"))', 'audit_reward(Path("nowhere.py"))',
        'audit_reward("math_answer.py", Path("nowhere.jsonl"))', 'train(config, run, "nowhere.py")',
        'train(config, run, [Path("nowhere.py"), "math_answer.py"])', 'measure(config, run, "before", "nowhere.py")',
        'prepare_data(config, run, Path("nowhere.py"))', 'screen(config, run, "nowhere.py")',
    ],
)  # fmt: skip
def test_a_path_may_be_a_text_or_a_path_and_a_single_item_needs_no_list(opened, call):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        call_public(call, *opened)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("check(3)", "path is 3; it must be a path."),
        ('check("a.zip", config)', "policy is of type RunConfig; it must be the policy section of a configuration."),
        ("submit(None)", "path is None; it must be a path."),
        ("package(run, config)", "config is of type Run; it must be the configuration that open_run returns. Write"),
        ("package(config, run, out=3)", "out is 3; it must be a path."),
        ("package(config, run, adapters=3)", "adapters is 3; it must be a text or a list of texts. Write adapters="),
        ("open_run(config)", "sources is of type RunConfig; it must be a text or a list of texts."),
        ("open_run(name=3)", "name is 3; it must be the name of a run."),
        ('train(config, "first", [])', "run is 'first'; it must be the run that open_run returns. Write config, run ="),
        ("train(config, run, 3)", "reward_funcs is 3; it must be a reward function or the path of its file."),
        ("train(config, run, [functools.partial(print), 3])", "reward_funcs is 3; it must be a reward function or the"),
        ('prepare_data("tiny", run)', "config is 'tiny'; it must be the configuration that open_run returns."),
        ("prepare_data(config, run, 3)", "verifier is 3; it must be a reward function or the path of its file."),
        ("measure(config, run, 'before', [print])", "verifier is [<built-in function print>]; it must be a reward"),
        ("screen(config, None)", "run is None; it must be the run that open_run returns."),
        ('compare("first")', "run is 'first'; it must be the run that open_run returns."),
        ('Board("first")', "run is 'first'; it must be the run that open_run returns."),
        ('plan("tiny")', "config is 'tiny'; it must be a configuration. Write load_config("),
        ("plan(config, 3)", "device is 3; it must be the name of a machine."),
        (
            'load_policy("tiny")',
            "policy is 'tiny'; it must be the policy section of a configuration. Write load_config",
        ),
        ("load_reward(print)", "spec is of type builtin_function_or_method; it must be the path of a reward file."),
        ("tune(config, run, 3)", "axes is 3; it must be a text or a list of texts. Write axes="),
        ("audit_reward(3)", "reward is 3; it must be a reward function or the path of its file."),
        ('audit_reward("math_answer.py", 3)', "cases is 3; it must be a list of cases or the path of a JSON Lines"),
    ],
)
def test_an_argument_of_another_type_is_one_sentence_with_its_name_value_and_remedy(opened, call, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}") as error:
        call_public(call, *opened)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            'open_run(stage="fly")',
            "stage is 'fly'; it must be one of data, sft, screen, train, prefer",
        ),
        ('train(config, run, "math_answer.py")', "The argument reward_funcs has 1 of the 2 rewards"),
        ('audit_reward("math_answer.py", {"gold": "4"})', "Case 1 is not a case: it has no 'reward'. A case is a dict"),
        ('tune(config, run, "lora.r=8")', "lora.r=8 has one value, so there is nothing to search."),
    ],
)
def test_a_value_that_cannot_be_used_is_one_sentence(opened, call, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call_public(call, *opened)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """The configuration and the run of small data."""
    sizes = ["data.limit=20", "data.val_size=2", "data.test_size=6"]
    folder = tmp_path_factory.mktemp("runs")
    config, run = grpo_kit.open_run("tiny", [*sizes, f"run.root={folder}"], name="first")
    grpo_kit.prepare_data(config, run)
    return config, run


def call_public(call: str, config: object, run: object) -> object:
    names = {name: getattr(grpo_kit, name) for name in grpo_kit.__all__}
    return eval(call, names | {"config": config, "run": run, "Path": Path, "functools": functools})


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
    child = start_python(["-W", "ignore", "-c", example], {**os.environ, "PYTHONPATH": str(ROOT)}, tmp_path)
    printed = child.communicate(timeout=300)[0].splitlines()
    assert child.returncode == 0 and "60" in printed[0] and "The outputs equal the trained policy's" in printed[-1]
    assert (tmp_path / "submission/submission.zip").is_file()
