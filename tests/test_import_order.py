"""Who may import whom: one order of folders, no circle between files, one home for each heavy library.

The last tests read every Python file of the repository, and the code in its strings, for names that do not exist.
"""

import ast
import contextlib
import functools
import graphlib
import re
import subprocess
import symtable
import sys
import textwrap
from pathlib import Path

import pytest

from tests.helpers.settings import ROOT

# A file imports only from its own folder and from folders before it. Imports inside functions count too.
ORDER = [
    "config", "rewards", "environments", "runs", "nemotron", "adapters", "policy", "data", "planning", "submission",
    "display", "evaluation", "kaggle", "training", "tuning", "handoff", "publishing",
    "notebook", "cli",
]  # fmt: skip
# Each of these libraries is imported in one place only.
OWNERS = {
    "trl": "training/",
    "peft": "adapters/",
    "bitsandbytes": "nemotron/",
    "kaggle": "kaggle/",
    "kagglesdk": "kaggle/",
    "vllm": "policy/vllm_engine.py",
    "optuna": "tuning/",
    "gguf": "publishing/llama_cpp/gguf_lora.py",
}
PACKAGE = ROOT / "grpo_kit"
FACE = {"grpo_kit/__init__.py", "grpo_kit/__main__.py"}  # the public names and the entry point may import anything


@functools.cache
def imports() -> dict[str, frozenset[str]]:
    """{path of a file: dotted names that it imports}, as written anywhere in the file."""
    names = {}
    for path in PACKAGE.rglob("*.py"):
        dotted = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                dotted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are written in full"
                dotted |= {f"{node.module}.{alias.name}" for alias in node.names}
        names[path.relative_to(ROOT).as_posix()] = frozenset(dotted)
    return names


def module_file(dotted: str) -> str | None:
    """The file that `grpo_kit.a.b.name` is imported from: a module `name`, or the module that defines it."""
    parts = dotted.split(".")
    for words in (parts, parts[:-1]):
        path = Path(*words)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if (ROOT / file).is_file():
                return file.as_posix()
    return None


def imported_files(path: str) -> set[str]:
    files = {module_file(name) for name in imports()[path] if name.split(".")[0] == "grpo_kit"}
    return {file for file in files if file} - {path}


def folder(path: str) -> str:
    return path.split("/")[1].removesuffix(".py")


def test_every_folder_is_in_the_order():
    assert {folder(path) for path in imports() if path not in FACE} == set(ORDER)


def test_no_file_imports_from_a_folder_above_its_own():
    rank = {name: number for number, name in enumerate(ORDER)}
    upward = [
        f"{path} imports {imported}"
        for path in imports()
        if path not in FACE
        for imported in imported_files(path) - FACE
        if rank[folder(imported)] > rank[folder(path)]
    ]
    assert upward == []


def test_imports_form_no_circle():
    arrows = {path: imported_files(path) - FACE for path in imports() if path not in FACE}
    list(graphlib.TopologicalSorter(arrows).static_order())  # raises CycleError, which names the files


def test_a_folder_has_at_most_15_modules_and_the_package_6():
    flat = [path for path in imports() if path.count("/") == 1 and path not in FACE]
    assert len(flat) <= 6
    for name in ORDER:
        modules = [
            p for p in imports() if p.startswith(f"grpo_kit/{name}/") and p.count("/") == 2 and "__init__" not in p
        ]
        assert len(modules) <= 15, name


def test_a_file_has_no_more_lines_than_contributing_says():
    most = int(re.search(r"tells one story in at most (\d+) lines", (ROOT / "CONTRIBUTING.md").read_text())[1])
    is_reward = re.compile(r"grpo_kit/rewards/\w+\.py").fullmatch  # a file to copy stays one file
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in imports() if not is_reward(path)}
    assert {path: length for path, length in lengths.items() if length > most} == {}


@pytest.mark.parametrize("library", OWNERS)
def test_a_heavy_library_is_imported_by_its_owner_only(library):
    users = {path for path, names in imports().items() if any(name.split(".")[0] == library for name in names)}
    users -= {
        path for path in users if path.startswith("grpo_kit/rewards/") and "/tools/" not in path
    }  # rewards are files to copy
    assert [path for path in users if not path.startswith(f"grpo_kit/{OWNERS[library]}")] == []


def test_the_package_does_not_import_rewards():
    for path, names in imports().items():
        rewards = [name for name in names if name.startswith("grpo_kit.rewards.") and ".tools" not in name]
        assert rewards == [], path


def test_rewards_do_not_import_the_package():
    for path, names in imports().items():
        if path.startswith("grpo_kit/rewards/") and "/tools/" not in path:
            assert not any(name.startswith("grpo_kit") for name in names), path


@pytest.mark.slow
def test_light_modules_load_no_heavy_library():
    code = """
import importlib, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
    heavy = {"torch", "transformers", "trl", "peft", "datasets", "pandas", "matplotlib"} & set(sys.modules)
    if heavy:
        sys.exit(f"{module} loads {heavy}")
"""
    light = ("", ".config", ".runs.run", ".data", ".policy.chat", ".data.puzzles", ".cli.main")
    command = [sys.executable, "-c", code, *(f"grpo_kit{name}" for name in light)]
    assert subprocess.run(command, capture_output=True, text=True).stderr == ""


def test_every_requirement_has_a_reason_above_it_and_nothing_else_is_imported():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    requirements = [line for line in lines if not line.startswith("#")]
    assert all(
        lines[lines.index(line) - 1].startswith("# ") and lines[lines.index(line) - 1].endswith(".")
        for line in requirements
    )
    indirect = re.findall(r"\w+", "\n".join(lines).partition("# Imported as well")[2])
    allowed = (
        {re.split(r"[=<>]", line)[0].replace("-", "_") for line in requirements}
        | set(indirect)
        | set(sys.stdlib_module_names)
    )
    # Colab and Kaggle bring their own modules, every notebook kernel brings ipykernel, a torch that can use Triton
    # brings it, and vLLM, gguf and trackers are optional.
    allowed |= {"grpo_kit", "gguf", "google", "ipykernel", "kaggle_secrets", "triton", "vllm", "wandb"}
    libraries = {name.split(".")[0] for names in imports().values() for name in names}
    assert libraries - allowed == set()


@pytest.mark.slow
def test_no_code_evaluates_text():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            assert called not in ("eval", "exec", "parse_expr", "__import__"), f"{path}:{node.lineno}"


@functools.cache
def names_in(module: str) -> frozenset[str] | None:
    """The names that can be imported from a module of ours, its submodules too; None if there is no such module."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if module == "" or not (path.is_dir() or file.is_file()):
        return None
    symbols = symtable.symtable(file.read_text() if file.is_file() else "", str(file), "exec").get_symbols()
    names = {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}
    return frozenset(names | {child.stem for child in path.glob("*")} | {"__doc__", "__file__", "__name__"})


def exists(dotted: str) -> bool:
    module, _, name = dotted.rpartition(".")
    return names_in(dotted) is not None or name in (names_in(module) or ())


def stale_names(code: str) -> list[str]:
    """What the code, or code in its strings, takes from a module of `grpo_kit` or `tests` that does not have it.

    A variable must not have the name of a module that the same file imports.
    """
    tree, modules, used = ast.parse(code), {}, []  # modules: {name in the code: the module that it stands for}
    for node in ast.walk(tree):
        for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else []:
            dotted = f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
            package = dotted.split(".")[0]
            if package in ("grpo_kit", "tests"):
                used.append(dotted)
                is_named = isinstance(node, ast.ImportFrom) or alias.asname  # `import a.b` makes the name `a`
                modules |= {alias.asname or alias.name: dotted} if is_named else {package: package}

    def dotted_name(node: ast.AST) -> str:
        if isinstance(node, ast.Attribute):
            return (module := dotted_name(node.value)) and f"{module}.{node.attr}"
        return modules.get(node.id, "") if isinstance(node, ast.Name) else ""

    stale = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and names_in(dotted_name(node.value)):
            used.append(dotted_name(node))
        if isinstance(node, ast.Constant | ast.JoinedStr):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in parts)
            if "import" in text and re.search(r"\b(grpo_kit|tests)\b", text):
                with contextlib.suppress(SyntaxError):  # a sentence, not code
                    stale += stale_names(textwrap.dedent(text))
    return stale + [dotted for dotted in used if not exists(dotted)]


@pytest.mark.slow
def test_every_name_that_is_taken_from_a_module_exists():
    folders = [ROOT / name for name in ("grpo_kit", "tests", "benchmarks", "notebooks", "scripts")]
    paths = [path for folder in folders for path in folder.rglob("*.py")]
    stale = {path.relative_to(ROOT).as_posix(): stale_names(path.read_text()) for path in paths}
    # One test imports and reads a misspelt name on purpose, so this one is seen to find both.
    assert stale.pop("tests/test_public_face.py") == ["grpo_kit.trian", "grpo_kit.trian"]
    assert {path: names for path, names in stale.items() if names} == {}


def test_stale_names_are_found_in_functions_chains_and_strings():
    code = """
        import KIT.config as settings
        def train():
            import KIT.data.preparation, KIT.helpers
            from KIT import config, workspace
            KIT.data.preparation.prepare(settings.load_config, settings.lost.name, config.Policy.lost)
            settings.new = 1
            "from KIT.config import Policies: a sentence"
            return "-c", f"from KIT.config import Policies, Policy; print({train})"
    """
    stale = stale_names(textwrap.dedent(code).replace("KIT", "grpo_kit"))
    assert sorted(stale) == [
        "grpo_kit.config.Policies",
        "grpo_kit.config.lost",
        "grpo_kit.helpers",
        "grpo_kit.workspace",
    ]
