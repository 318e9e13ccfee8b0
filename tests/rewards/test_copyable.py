"""Each reward file, pasted alone or with others: the same rewards in an empty namespace and in a fresh Python.

The fresh Python runs with -I -S, so that nothing but the standard library can be imported; for a file that needs
packages a folder is added that holds these and no more.
"""

import ast
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import re
import subprocess
import symtable
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

REWARDS = Path(__file__).resolve().parents[2] / "grpo_kit" / "rewards"
MATH_VERIFY = ("math_verify", "latex2sympy2_extended", "sympy", "mpmath", "antlr4")
JSON_SCHEMA = ("jsonschema", "jsonschema_specifications", "referencing", "rpds", "attr", "attrs", "typing_extensions")
PACKAGES = {"math_answer": MATH_VERIFY, "structured_output": JSON_SCHEMA}

# How to get the reward from the file's namespace, the texts it is called on, and its due.
CALLS = {
    "math_answer": (  # decided by the values at points, refused, and decided by math-verify
        "math_reward",
        [r"</think>\boxed{\sqrt{16}}", r"\boxed{9^{9^9}}", r"\boxed{8/\sqrt{2}\sqrt{2}}"],
        [1.0, 0.0, 1.0],
    ),
    "challenge": (
        "challenge_reward",
        [r"</think>\boxed{4}", r"\boxed{4.03}", "5"],
        [1.0, 1.0, 0.0],
    ),
    "reasoning_format": ("reasoning_format_reward", ["3+1=4</think>4", "so 4"], [1.0, 0.0]),
    "arithmetic_steps": ("arithmetic_steps_reward", ["3+1=4\n#### 4", "3+2=4\n#### 4"], [1.0, 0.0]),
    "instructions": ("instructions_reward", ["Tea, or 4", "4", ""], [0.0, 1.0, 0.0]),
    "choice": ("choice_reward", [r"\boxed{4}", r"\boxed{A}", r"\boxed{B}"], [1.0, 0.0, 1.0]),
    "structured_output": (
        "structured_output_reward",
        ['{"n": 4}', "n: 4", '{"n": 4, "n": 4}'],
        [1.0, 0.0, 0.0],
    ),
    "code_tests": ("code_tests_reward", ["```python\nprint(4)\n```", "```python\nprint(5)\n```"], [1.0, 0.0]),
    "documents_qa": ("documents_qa_reward", ["Answer: 4 [1]", "4 or 3"], [1.0, 0.0]),
    "no_calls": ("no_calls_reward", ["4", "<tool_call>\n<function=add>"], [1.0, 0.0]),
    "end_state": ("end_state_reward", ["4", ""], [None, None]),
    "judge": (  # its judge prefers short answers
        "lambda answer, **columns: (setattr(judge_reward, 'compare', lambda pairs: [Comparison(3, 3, "
        "2 if len(first) < len(second) else 5) for _, first, second in pairs]), judge_reward(**columns))[1]",
        ["4", "It is 4"],
        [5.25, 1.25],
    ),
    "brevity": (
        "cosine(4, lambda completions, **_: [1.0, 0.0, None])",
        ["a", "b", "c"],
        [0.75, -0.75, None],
    ),
    "token_budget": ("token_budget_reward", ["a", "b"], [1.0, None]),
    "combine": (
        "combine(lambda completions, **_: [1.0, 0.0, None], "
        "x=Part(lambda completions, **_: [1.0] * len(completions), 0.5))",
        ["a", "b", "c"],
        [1.5, 0.5, None],
    ),
}


def trl_keywords(texts: list[str]) -> dict:
    """Every keyword that GRPOTrainer passes (TRL 1.16), and the columns of a rich dataset."""
    n = len(texts)
    return {
        "prompts": [[{"role": "user", "content": "I have 3 and 1 more. How many?"}]] * n,
        "completions": [[{"role": "assistant", "content": text}] for text in texts],
        "completion_ids": [[1, 2]] * n,
        "answer": ["4"] * n,
        "options": [["3", "4"]] * n,
        "documents": [["3 and 1 are 4"]] * n,
        "tests": ['{"kind": "stdin", "inputs": ["3 1"], "outputs": ["4"]}'] * n,
        "schema_str": ['{"properties": {"n": {"type": "integer"}}}'] * n,
        "solution": ["4"] * n,
        "instruction_id_list": [["punctuation:no_comma", "keywords:existence"]] * n,
        "kwargs": [[None, {"keywords": ["4"]}]] * n,
        "difficulty": [0.5] * n,
        "think_ids": [1, 2],
        "token_budget": [None if i % 2 else 4 for i in range(n)],
        "trainer_state": None,
        "environments": [None] * n,
    }


# What a notebook does with a cell, then what TRL does with the function. No file, no __file__.
PROGRAM = """
import json, sys
job = json.load(sys.stdin)
sys.path += job["path"]
namespace = {"__name__": "__main__"}
exec(compile(job["source"], "<cell>", "exec"), namespace)
reward = eval(job["reward"], namespace)
silent = lambda name, value: None
print(json.dumps(reward(**job["keywords"], log_extra=silent, log_metric=silent)))
sys.exit(0 if callable(reward) and reward.__name__ else 1)
"""


def in_empty_namespace(source: str, reward: str, texts: list[str]) -> list:
    namespace: dict = {}
    exec(compile(source, "<cell>", "exec"), namespace)
    function = eval(reward, namespace)
    logged: list = []
    rewards = function(
        **trl_keywords(texts),
        log_extra=lambda column, values: logged.append((column, len(values))),
        log_metric=lambda name, value: logged.append((name, float(value))),
    )
    end_children(namespace)
    return rewards


def end_children(namespace: dict) -> None:
    for name in ("_stop_child", "_end_program_servers"):  # math_answer's and code_tests'
        namespace.get(name, int)()


def in_fresh_python(source: str, reward: str, texts: list[str], tmp_path: Path, packages: tuple = ()) -> list:
    for package in packages:
        spec = importlib.util.find_spec(package)
        path = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
        (tmp_path / path.name).symlink_to(path)
    for name in ("math-verify", "latex2sympy2_extended", "antlr4-python3-runtime") if packages is MATH_VERIFY else ():
        info = Path(importlib.metadata.distribution(name)._path)  # their versions are read at import
        (tmp_path / info.name).symlink_to(info)
    job = {
        "source": source,
        "reward": reward,
        "keywords": trl_keywords(texts),
        "path": [str(tmp_path)],
    }
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PROGRAM],
        input=json.dumps(job), capture_output=True, text=True, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    if done.returncode:
        raise AssertionError(done.stderr[-2000:])
    return json.loads(done.stdout)


def check(source: str, reward: str, texts: list[str], expected: list, tmp_path: Path, packages: tuple = ()) -> None:
    assert in_empty_namespace(source, reward, texts) == pytest.approx(expected)
    assert in_fresh_python(source, reward, texts, tmp_path, packages) == pytest.approx(expected)


def test_every_reward_file_is_in_the_table():
    assert {path.stem for path in REWARDS.glob("[a-z]*.py")} == set(CALLS)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_a_pasted_file_pays_the_same_called_as_trl_calls_it(name, tmp_path):
    reward, texts, expected = CALLS[name]
    source = (REWARDS / f"{name}.py").read_text(encoding="utf-8")
    check(source, reward, texts, expected, tmp_path, PACKAGES.get(name, ()))


@pytest.mark.parametrize("name", CALLS)
def test_a_file_mentions_neither_the_package_nor_its_own_path(name):
    source = (REWARDS / f"{name}.py").read_text(encoding="utf-8")
    assert "grpo_kit" not in source and "__file__" not in source and "inspect" not in source
    top = [
        line
        for line in re.split(r"\n_(?:WORKER|PROGRAM_SERVER) =", source)[0].splitlines()
        if line.startswith(("import ", "from "))
    ]
    assert {line.split()[1].split(".")[0] for line in top} <= sys.stdlib_module_names


# Texts that reach the parts of the files that another file's names could take the place of.
SHARED_TEXTS = [
    "3+1=4\n#### 4", r"so 3+1=4</think>\boxed{4}", "3+2=5. The answer is 4", r"\boxed{B}", "I choose option B.",
    "The answer is not B.", r"\boxed{A} or \boxed{B}", r"\boxed{3} or \boxed{4}", r"It is not \boxed{4}", "<<3+1=4>> 4",
    '{"n": 4}', "<think>3+1=4</think>4",
    "```python\nprint(4)\n```", "Three and one is four: 3 + 1 = 4, (3+1)*1=4 <answer>4.0</answer>", r"\boxed{4", "",
    "<tool_call>\n<function=add>",
]  # fmt: skip
EVERY_OTHER = "lambda completions, **_: [float(i % 2) for i, _ in enumerate(completions)]"
SHARED_CALLS = {name: reward for name, (reward, _, _) in CALLS.items()} | {
    "brevity": f"cosine(4, {EVERY_OTHER})",
    "combine": f"combine({EVERY_OTHER}, x=Part({EVERY_OTHER}, 0.5))",
}


def global_names(source: str) -> tuple[dict[str, str], set[str]]:
    """({name that the file defines: what it stands for}, every name that its code looks up outside its functions)."""
    defined: dict[str, str] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            defined |= {alias.asname or alias.name.split(".")[0]: f"{module}{alias.name}" for alias in node.names}
            continue
        text = ast.unparse(node) + "  # may change" * (not isinstance(node, ast.FunctionDef | ast.ClassDef))
        symbols = symtable.symtable(ast.unparse(node), "", "exec").get_symbols()
        defined |= {symbol.get_name(): text for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}
    used, tables = set(defined), [symtable.symtable(source, "", "exec")]
    for table in tables:
        used |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global() or table is tables[0]}
        tables += table.get_children()
    return defined, used


def can_meet(one: str, other: str) -> bool:
    """Whether, pasted together, a name of one file can mean something else in the other.

    The same import, function or class means the same in both. A value does not: both would change one object.
    """
    (own, used), (others, others_used) = global_names(one), global_names(other)
    differ = [name for name in own.keys() | others if own.get(name) != others.get(name) or "# may" in own[name]]
    return any((name in own and name in others_used) or (name in others and name in used) for name in differ)


STEMS = sorted(CALLS)
SOURCES = {stem: (REWARDS / f"{stem}.py").read_text(encoding="utf-8") for stem in STEMS}
ORDERS = [STEMS, STEMS[::-1], STEMS[3:] + STEMS[:3], STEMS[::2] + STEMS[1::2]]
# In the orders above each file comes before and behind each other one. Alone, a pair shows what a third file would
# hide by defining the name again; of files that share no name there is nothing to hide.
ORDERS += [pair for pair in itertools.permutations(STEMS, 2) if can_meet(*(SOURCES[stem] for stem in pair))]


@functools.cache
def compiled(name: str):
    return compile(SOURCES[name], f"<{name}>", "exec")


def paste(names: tuple[str, ...]) -> dict[str, list]:
    """The rewards that each file pays after all of them were pasted into one namespace in this order."""
    namespace: dict = {"__name__": "__main__"}
    for name in names:
        exec(compiled(name), namespace)
    worlds = [SimpleNamespace(get_reward=lambda: 1.0), *[None] * (len(SHARED_TEXTS) - 1)]  # end_state asks them
    keywords = trl_keywords(SHARED_TEXTS) | {"prompt_opened_think": False, "environments": worlds}
    try:
        return {name: eval(SHARED_CALLS[name], namespace)(**keywords) for name in names}
    finally:
        end_children(namespace)


@functools.cache
def paste_alone(name: str) -> list:
    return paste((name,))[name]


@pytest.mark.parametrize(
    ("other", "meets"),
    [
        ("def shared(x):\n    return sorted(x)", False),  # the same function
        ("def shared(x):\n    return x", True),
        ("import json, os", False),
        ("from simplejson import json", True),
        ("COUNT = []", True),  # the same statement, and one list for both
        ("def sorted(x):\n    return x", True),  # a built-in of the other file
        ("def len(x):\n    return x", False),  # which it does not use
        ("x = [text for text in 'ab']", False),  # x and text are the function's own there
        ("def outer(shared):\n    COUNT = json = sorted = shared", False),
        ("class Own:\n    COUNT = 1", False),
    ],
)
def test_files_can_meet_where_one_looks_up_what_the_other_defines(other, meets):
    one = "import json\nCOUNT = []\ndef shared(x):\n    return sorted(x)\n"
    assert can_meet(one, other) == can_meet(other, one) == meets


@pytest.mark.slow
@pytest.mark.parametrize("names", ORDERS, ids="-".join)
def test_files_pasted_into_one_namespace_pay_what_each_pays_alone(names):
    assert paste(tuple(names)) == {name: paste_alone(name) for name in names}


@pytest.mark.slow
def test_a_name_that_two_files_define_means_the_same_in_both():
    definitions: dict[str, dict[str, str]] = {}
    for stem in STEMS:
        for node in ast.parse((REWARDS / f"{stem}.py").read_text(encoding="utf-8")).body:
            targets = getattr(node, "targets", [getattr(node, "target", node)])
            for name in {getattr(target, "id", getattr(target, "name", None)) for target in targets} - {None}:
                definitions.setdefault(name, {}).setdefault(stem, ast.unparse(node))
    different = {name: list(of) for name, of in definitions.items() if len(set(of.values())) > 1}
    assert different == {"final_answer": ["challenge", "choice", "documents_qa", "math_answer"]}  # no reward calls it
    assert all(len(set(paste_alone(name))) > 1 for name in STEMS)


GOOD = "def r_reward(completions, answer, **kwargs):\n    return [1.0 for _ in completions]\n"
BROKEN = {
    "imports the package": "from grpo_kit.rewards import choice\n" + GOOD,
    "imports a third party at the top": "import sympy\n" + GOOD,
    "reads its own path": "here = __file__\n" + GOOD,
    "takes no other columns": GOOD.replace(", **kwargs", ""),
    "expects strings": GOOD.replace("1.0 for _", "float(c.count('4')) for c"),
    "pays something else": GOOD.replace("1.0", "0.0"),
    "needs a name of another cell": GOOD.replace("1.0", "ONE"),
}


def test_the_check_itself_passes_a_good_file(tmp_path):
    check(GOOD, "r_reward", ["4"], [1.0], tmp_path)


@pytest.mark.parametrize("fault", BROKEN)
def test_a_deliberately_broken_file_fails_the_check(fault, tmp_path):
    with pytest.raises(Exception):  # noqa: B017 (an assertion or a NameError or TypeError)
        check(BROKEN[fault], "r_reward", ["4"], [1.0], tmp_path)


@pytest.mark.slow
def test_math_answer_without_math_verify_still_decides_the_exact_ones(tmp_path):
    source = (REWARDS / "math_answer.py").read_text(encoding="utf-8")
    texts = [r"\boxed{4.0}", r"\boxed{\frac{4}{1}}", r"\boxed{5}"]
    assert in_fresh_python(source, "math_reward", texts, tmp_path) == [1.0, 1.0, 0.0]
    with pytest.raises(AssertionError, match="pip install math-verify"):
        in_fresh_python(source, "math_reward", [r"\boxed{\sqrt{16}}"], tmp_path)


def test_structured_output_without_jsonschema_names_the_remedy(tmp_path):
    source = (REWARDS / "structured_output.py").read_text(encoding="utf-8")
    with pytest.raises(AssertionError, match="pip install jsonschema"):
        in_fresh_python(source, "structured_output_reward", ['{"n": 4}'], tmp_path)
