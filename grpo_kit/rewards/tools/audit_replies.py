"""The replies that an audit writes itself: forms of an answer, labelled cases in such a form, and code."""

import re
from collections.abc import Iterable
from itertools import accumulate

from grpo_kit.rewards.tools.audit_report import Case

# How replies state an answer, and what may stand before it. The first of each is what the kit's own prompts lead to.
ANSWERS = (r"\boxed{%s}", "#### %s", "<answer>%s</answer>", "The answer is %s.", "Answer: %s", "%s")
OPENINGS = ("I count.\n</think>\n", "", "<think>\nI count.\n</think>\n", "<reasoning>\nI count.\n</reasoning>\n")
BOXED = re.compile(r"(?:.*</think>\s*)?(?:The answer is )?\\boxed\{(.*)\}\.?", re.DOTALL)
# For the gold 4. Most of them hold it, which is enough for a reward that only looks for it.
WRONG_ANSWERS = ("5", "14", "45", "4.5", "-4", "not 4", "5 or 4", "3, 4, 5")

MARK = "ran"  # what a canary makes in its folder, if it is executed
CANARY_GOLDS = ("0", r"\frac{x}{2}")  # os.system returns 0; a whole number is often compared without a parser
_CODE = (f"open('{MARK}','w')", f"__import__('os').mkdir('{MARK}')", f'__import__("os").system("touch {MARK}")')
_SCRIPT = f"```python\nimport os\nos.mkdir('{MARK}')\n```"
CANARIES = [
    *(f"{OPENINGS[0]}{answer % code}" for answer in ANSWERS for code in _CODE),
    *_CODE,
    OPENINGS[0] + _SCRIPT,
    f"<answer>{_SCRIPT}</answer>",
    f"!!python/object/apply:os.mkdir [{MARK}]",  # a YAML loader that is not the safe one
]

# Code with a value that only Python sees, also without builtins: no digits, and nothing that mathematics can read.
VALUE_GOLDS = ("17", "18")  # the value, and another one to compare with
_TEXT = repr("k" * int(VALUE_GOLDS[0]))
_VALUES = (
    f"{_TEXT}.__len__()",
    f"[letter for letter in {_TEXT}].__len__()",
    f"(lambda: {'+'.join(['True'] * int(VALUE_GOLDS[0]))})()",
)
_SOLVER = f"""def solve(*inputs):
    try:
        __import__('os').mkdir('{MARK}')
    except:
        pass
    return {_TEXT}.__len__()
main = run = answer = result = solution = solve
solve()"""
_ASSIGNMENT = f"answer = result = solution = output = {_TEXT}.__len__()"
_BLOCKS = ("```python\n%s\n```", "```\n%s\n```", "<code>\n%s\n</code>", "<python>\n%s\n</python>")
_BLOCKS += ("<answer>\n%s\n</answer>", "%s")
VALUE_CANARIES = [
    *(f"{OPENINGS[0]}{answer % code}" for answer in ANSWERS for code in _VALUES),
    *_VALUES,
    *(f"{OPENINGS[0]}{block % code}" for block in _BLOCKS for code in (_SOLVER, _ASSIGNMENT)),
]


def restate_cases(cases: Iterable[Case], answer: str, opening: str) -> list[Case]:
    r"""Cases in another form: those that are nothing but a box after their thinking, and WRONG_ANSWERS.

    Args:
        cases: labelled cases.
        answer: one of ANSWERS.
        opening: what stands before it, one of OPENINGS.

    Example:
        >>> restate_cases([Case("sums", "7", r"3+4</think>\boxed{7}", 1.0)], "#### %s", "")[0]
        Case(kind='in #### ...', gold='7', completion='#### 7', reward=1.0)
    """
    kind = "in bare text" if answer == "%s" else f"in {answer % '...'}"
    contents = [(case, _boxed_answer(case.completion)) for case in cases]
    restated = [
        Case(kind, case.gold, opening + answer % text, case.reward, case.columns) for case, text in contents if text
    ]
    return restated + [Case(kind, "4", opening + answer % wrong, 0.0) for wrong in WRONG_ANSWERS]


def _boxed_answer(completion: str) -> str | None:
    """What stands in the box of a reply that has only this box after its thinking, None for any other reply."""
    match = BOXED.fullmatch(completion)
    if not match or completion.count("boxed") != 1:
        return None
    depths = accumulate((letter == "{") - (letter == "}") for letter in match[1])
    return match[1] if min(depths, default=0) >= 0 else None
