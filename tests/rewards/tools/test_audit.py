"""The audit: what it finds in good, lazy, frozen and raising rewards; none of them can hang it."""

import ast
import contextlib
import io
import json
import os
import re
import subprocess
import sys

import pytest
import sympy.parsing.sympy_parser
from rich.console import Console

from grpo_kit.rewards.tools import audit
from grpo_kit.rewards.tools.audit import CANARIES, VALUE_CANARIES, audit_reward
from grpo_kit.rewards.tools.audit_cases import SAMPLE, load_cases
from grpo_kit.rewards.tools.audit_report import Case, print_report
from grpo_kit.rewards.tools.loading import load_reward

CASES = [
    Case("easy", "4", r"</think>\boxed{4}", 1.0),
    Case("easy", "4", r"</think>\boxed{5}", 0.0),
    Case("gold", "", r"</think>\boxed{5}", None),
    Case("bomb", "4", "FREEZE", 0.0),
    Case("bomb", "4", "EXIT", 0.0),
    Case("bomb", "4", "DIE", 0.0),
    Case("easy", "7", r"</think>\boxed{7}", 1.0),
]


def boxed_reward(completions, answer, **kwargs):
    """Right on the easy cases, None for an empty gold, and helpless against the bombs."""
    text = completions[0][0]["content"]
    if "FREEZE" in text:
        9**9 ** len("nine digit")  # holds the interpreter lock
    if "EXIT" in text:
        raise SystemExit(3)
    if "DIE" in text:
        os._exit(1)
    return [None if not gold else float(rf"\boxed{{{gold}}}" in text) for gold in answer]


def generous_reward(completions, **kwargs):
    return [1.0] * len(completions)


@pytest.mark.slow
def test_a_frozen_interpreter_an_exit_and_a_death_are_counted_and_the_audit_goes_on():
    report = audit_reward(boxed_reward, CASES, seconds=1.0)
    total, easy = report.row(), report.row("easy")
    assert (total.cases, total.hangs, total.exceptions) == (7, 1, 2)
    assert (total.wrong_paid, total.right_refused, total.slowest) == (0, 0, 1.0)
    assert total.accuracy == pytest.approx(4 / 7) and easy.accuracy == 1.0
    assert [row.kind for row in report.rows] == ["easy", "gold", "bomb"]
    frozen, left, died = report.trials[3:6]
    assert frozen.hung == {"main", "worker"}
    assert [line.partition(":")[0] for line in report.findings()] == ["bomb"]
    assert report.verdict == (
        "Verdict: it pays no wrong answer, but it hangs on 1 of 7 cases and raises an exception in 2 of 7."
    )
    assert left.errors.keys() == {"main", "worker"} and all("ended the program (3)" in e for e in left.errors.values())
    assert died.errors == {"main": "the process died", "worker": "the process died"}


@pytest.mark.slow
def test_a_file_whose_import_hangs_is_counted_too(tmp_path, monkeypatch):
    path = tmp_path / "slow.py"
    path.write_text(
        f"import os, time\nif os.getpid() != {os.getpid()}:\n    time.sleep(600)\n"
        "def slow_reward(completions, **kwargs):\n    return [1.0] * len(completions)\n"
    )
    monkeypatch.setattr(audit, "STARTING", 0.5)
    report = audit.audit_reward(str(path), CASES[:1], seconds=1.0)
    assert report.trials[0].hung == {"main", "worker"} and report.row().accuracy == 0.0


@pytest.mark.slow
def test_a_generous_reward_pays_the_wrong_ones_and_the_unusable_gold():
    total = audit_reward(generous_reward, CASES).row()
    assert (total.wrong_paid, total.right_refused, total.hangs) == (5, 0, 0)
    assert total.accuracy == pytest.approx(2 / 7)


@pytest.mark.slow
def test_a_reward_defined_on_the_spot_and_one_for_strings_are_understood():
    def strings_only(completions, answer, **kwargs):
        return [float(completion.endswith(rf"\boxed{{{gold}}}")) for completion, gold in zip(completions, answer)]

    def silent_on_messages(completions, answer, **kwargs):
        return [float(rf"\boxed{{{gold}}}" in completion) for completion, gold in zip(completions, answer)]

    for reward in (strings_only, silent_on_messages):
        assert audit_reward(reward, CASES[:2]).row().accuracy == 1.0


@pytest.mark.slow
def test_an_exception_is_lower_than_any_reward_when_the_form_is_chosen():
    def messages_only(completions, answer, **kwargs):
        """-2 for a miss, as some rewards pay; no trial call is a hit."""
        return [3.0 if turns[-1]["content"] == f"({gold})" else -2.0 for turns, gold in zip(completions, answer)]

    def strings_only(completions, answer, **kwargs):
        return [3.0 if text.strip() == f"({gold})" else -2.0 for text, gold in zip(completions, answer)]

    cases = [Case("a", "4", "(4)", 1.0), Case("a", "4", "(5)", 0.0)]
    for reward in (messages_only, strings_only):
        row = audit_reward(reward, cases).row()
        assert (row.accuracy, row.exceptions) == (1.0, 0)


def evaluating(completions, answer, **kwargs):
    """What a careless grader does: it evaluates what stands in the box."""
    rewards = []
    for text, gold in zip((turns[0]["content"] for turns in completions), answer):
        try:
            rewards.append(float(str(eval(re.search(r"\\boxed{(.*)}", text)[1])) == gold))
        except Exception:
            rewards.append(0.0)
    return rewards


def parsing(completions, answer, **kwargs):
    """sympy's parse_expr is eval."""
    rewards = []
    for turns, gold in zip(completions, answer):
        answer = turns[0]["content"].partition("The answer is")[2].strip(" .")
        try:
            rewards.append(float(sympy.parsing.sympy_parser.parse_expr(answer) == sympy.Integer(gold)))
        except Exception:
            rewards.append(0.0)
    return rewards


def running(completions, **kwargs):
    """It runs the code block, in another process."""
    for turns in completions:
        if block := re.search(r"```python\n(.*?)```", turns[0]["content"], re.DOTALL):
            subprocess.run([sys.executable, "-I", "-S", "-c", block[1]], check=False)
    return [0.0] * len(completions)


def reading(completions, answer, **kwargs):
    """It reads a reply as a literal, which runs nothing."""
    with contextlib.suppress(Exception):
        return [float(ast.literal_eval(completions[0][0]["content"]) == answer)]
    return [0.0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reward", "form"),
    [(evaluating, r"\boxed{"), (parsing, "The answer is"), (running, "```python"), (reading, None)],
)
def test_a_canary_shows_a_reward_that_executes_replies(reward, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = audit_reward(reward, CASES[:2])
    assert [form in trial.case.completion for trial in report.ran] == [True] * len(report.ran)
    assert bool(report.ran) == bool(form) and not list(tmp_path.iterdir())
    assert len(report.canaries) == 2 * len(CANARIES) + 2 * len(VALUE_CANARIES)
    if form:
        assert "it runs text of replies as code" in report.harm and report.findings()[0].startswith("executed: reply")
        assert "Verdict: do not train with it, because it runs text of replies as code" in report.verdict


def judge(pattern, run):
    """A reward that compares what `run` makes of the text between two marks with the gold."""

    def reward(completions, answer, **kwargs):
        rewards = []
        for turns, gold in zip(completions, answer):
            found = re.search(pattern, turns[0]["content"], re.DOTALL)
            try:
                rewards.append(float(bool(found) and float(run(found[1])) == float(gold)))
            except Exception:
                rewards.append(0.0)
        return rewards

    return reward


def evaluate_bare(text):
    return eval(text, {"__builtins__": {}})


def call_solve(text, builtins=None):
    names = {} if builtins is None else {"__builtins__": builtins}
    exec(text, names)
    return names["solve"]()


def read_answer(text):
    names = {"__builtins__": {}}
    exec(text, names)
    return names["answer"]


EVALUATING = [
    (r"<answer>(.*)</answer>", evaluate_bare), (r"\\boxed{(.*)}", evaluate_bare), (r"#### (.*)", evaluate_bare),
    (r"The answer is (.*?)\.", evaluate_bare), (r"Answer: (.*)", evaluate_bare), (r"</think>\n(.*)", evaluate_bare),
    (r"<code>(.*)</code>", call_solve), (r"```python\n(.*)```", call_solve), (r"<answer>(.*)</answer>", call_solve),
    (r"<code>(.*)</code>", lambda text: call_solve(text, {})), (r"<code>(.*)</code>", exec),
    (r"<code>(.*)</code>", read_answer), (r"```\n(.*)```", read_answer), (r"<python>(.*)</python>", read_answer),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "run"), EVALUATING)
def test_code_that_runs_without_builtins_or_in_a_block_is_noticed(pattern, run):
    report = audit_reward(judge(pattern, run), CASES[:2])
    assert report.ran and "it runs text of replies as code" in report.harm


@pytest.mark.slow
@pytest.mark.parametrize("reward", [generous_reward, judge(r"(\d+)", float), judge(r"(.*)", len)])
def test_a_reward_that_runs_nothing_is_not_said_to(reward):
    assert audit_reward(reward, CASES[:2]).ran == []


@pytest.mark.slow
def test_canaries_that_hang_or_kill_end_early():
    def dies(completions, **kwargs):
        if "ran" in completions[0][0]["content"]:
            os._exit(1)
        return [1.0]

    report = audit_reward(dies, CASES[:1])
    assert len(report.canaries) == 3 and report.row().accuracy == 1.0 and not report.harm


def answers_in(pattern, text_only=False, paid=1.0):
    def reward(completions, answer, **kwargs):
        texts = completions if text_only else [turns[0]["content"] for turns in completions]
        return [paid if re.search(pattern.replace("GOLD", gold), text) else 0.0 for text, gold in zip(texts, answer)]

    return reward


WANTED = [  # the pattern that a reward looks for, the forms that it is said to want
    (r"#### GOLD$", [r"'#### 4' after 'I count.\n</think>'"]),
    (r"<answer>GOLD</answer>", [r"'<answer>4</answer>' after 'I count.\n</think>'"]),
    (r"The answer is GOLD", [r"'The answer is 4.' after 'I count.\n</think>'"]),
    (r"^GOLD$", ["'4' with nothing before it"]),
    (r"^(?!.*think).*: GOLD", ["'Answer: 4' with nothing before it"]),
    (r"</reasoning>\n<answer>GOLD<", [r"'<answer>4</answer>' after '<reasoning>\nI count.\n</reasoning>'"]),
    (r"^<think>(.|\n)*#### GOLD", [r"'#### 4' after '<think>\nI count.\n</think>'"]),
    (r"nothing", []),
    (r"boxed\{GOLD\}", None),
]


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "forms"), WANTED)
@pytest.mark.parametrize("text_only", [False, True])
def test_a_reward_that_pays_no_box_is_told_what_it_wants(pattern, forms, text_only):
    report = audit_reward(answers_in(pattern, text_only), [*CASES[:2], Case("hard", "4", r"</think>\boxed{4}", 1.0)])
    assert report.wanted == forms
    if forms is not None:
        wants = f"pays the reference answer 4 as {forms[0]}" if forms else "Nor does it pay any other form"
        assert "It pays no right answer in a box." in str(report) and wants in str(report)


FORMS = [r"<answer>(.*)</answer>", r"#### (.*)", r"The answer is (.*)\.", r"Answer: (.*)", r"^([^\\]*)$"]


@pytest.mark.slow
@pytest.mark.parametrize("pattern", FORMS)
def test_a_reward_that_pays_no_box_gets_labelled_cases_in_its_own_form(pattern):
    def in_match(completions, answer, **kwargs):
        found = [re.search(pattern, turns[0]["content"]) for turns in completions]
        return [float(bool(match) and gold in match[1]) for match, gold in zip(found, answer)]

    def equals(completions, answer, **kwargs):
        found = [re.search(pattern, turns[0]["content"].replace("I count.\n</think>\n", "")) for turns in completions]
        return [float(bool(match) and gold == match[1]) for match, gold in zip(found, answer)]

    report = audit_reward(in_match, [*CASES[:2], Case("sets", "5", r"</think>\boxed{5, 6}", 0.0)])
    assert report.wanted and "wrong answers" in report.harm
    paid = [trial.case.completion for trial in report.trials if trial.paid_wrong]
    assert all(any(wrong in completion for completion in paid) for wrong in ("5, 6", "14", "5 or 4"))
    report = audit_reward(equals)
    in_form = [trial for trial in report.trials if trial.case.kind.startswith("in ")]
    assert report.wanted and not report.harm
    assert sum(trial.case.reward == 1.0 for trial in in_form) > 30 < sum(trial.case.reward == 0.0 for trial in in_form)


@pytest.mark.slow
def test_a_reward_of_another_scale_is_said_to_have_it():
    report = audit_reward(answers_in("#### GOLD", paid=0.5), CASES[:2])
    assert report.wanted == [r"'#### 4' after 'I count.\n</think>' (for 0.5, and only more than 0.5 counts as paid)"]


def column_reward(completions, goal, **kwargs):
    return [1.0]


def key_reward(completions, **kwargs):
    return kwargs["goal"]


def single_reward(completion, answer):
    return 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["answer", "solution", "ground_truth", "label", "target"])
def test_the_reference_answer_goes_to_every_usual_name(name):
    names = {}
    body = f"return [float(gold in turns[0]['content']) for turns, gold in zip(completions, {name})]"
    exec(f"def reward(completions, {name}, **kwargs): {body}", names)
    assert audit_reward(names["reward"], CASES[:2]).row().accuracy == 1.0


@pytest.mark.parametrize(
    ("reward", "reason"),
    [
        (len, "len cannot be audited.*missing a required argument: 'obj'"),
        (max, "max cannot be audited.*TypeError.*Let it take"),
        (dict, "dict cannot be audited.*which is not a list. Return a list"),
        (print, "print cannot be audited.*unexpected keyword"),
        (lambda: 1.0, "cannot be audited.*unexpected keyword"),
        (lambda completions, **kwargs: None, "cannot be audited.*returned nothing"),
        (column_reward, "missing a required argument: 'goal'.*as answer, .*, label, target, and no other.*Name the"),
        (key_reward, "key_reward cannot be audited.*KeyError: 'goal'. Let it take.*as answer, solution, .*Name the"),
        (single_reward, "single_reward takes one `completion`. TRL passes many at once.*Let it take these lists"),
    ],
)
def test_what_is_no_reward_is_refused_with_its_own_error(reward, reason):
    with pytest.raises(ValueError, match=reason) as raised:
        audit_reward(reward, CASES[:2])
    assert raised.value.__cause__ is None  # or the command line would take it for a fault of its own


@pytest.mark.slow
def test_different_results_between_threads_fail_the_audit():
    def main_only(completions, answer, **kwargs):
        import signal

        signal.alarm(0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # raises in every thread but the main one
        return [1.0]

    report = audit_reward(main_only, CASES[:1])
    assert report.row().accuracy == 0.0
    assert "ValueError" in report.trials[0].errors["worker"] and report.trials[0].rewards == {"main": 1.0}
    assert report.wanted is None and "differs between the threads in 1 of 1" in report.verdict


@pytest.mark.slow
def test_cases_may_be_dicts_and_must_not_be_empty():
    case = {"kind": "a", "gold": "4", "completion": r"1</think>\boxed{4}", "reward": 1.0}
    assert audit_reward(generous_reward, [case]).row().accuracy == 1.0
    with pytest.raises(ValueError, match="0 cases.*at least 1.*Pass some"):
        audit_reward(generous_reward, [])


def test_both_spellings_of_a_cases_file_are_read(tmp_path):
    path = tmp_path / "cases.jsonl"
    rows = [
        {"kind": "k", "gold": "1", "completion": "c", "reward": 1},
        {"category": "k", "gold": "1", "pred": "c", "reward": 0},
        {"kind": "k", "gold": "1", "pred": "c", "equal": False},
        {"kind": "k", "gold": "", "completion": "c", "reward": None},
    ]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    assert [case.reward for case in load_cases(path)] == [1.0, 0.0, 0.0, None]
    path.write_text('{"gold": "1"}')
    with pytest.raises(ValueError, match="Line 1 of .* has no 'reward'. A case is a dict such as .*'gold'.*'reward'"):
        load_cases(path)


def test_cases_that_are_not_utf8_are_refused(tmp_path):
    (tmp_path / "cases.jsonl").write_bytes(b'{"gold": "caf\xe9"}')
    with pytest.raises(ValueError, match=r"cases.jsonl is not UTF-8 \(its byte 14 is wrong\). Save it"):
        load_cases(tmp_path / "cases.jsonl")


def test_the_kits_sample_is_labelled_and_mixed():
    cases = load_cases()
    assert SAMPLE.is_file() and 60 <= len(cases) <= 120
    assert {case.reward for case in cases} == {0.0, 1.0, None}
    assert len({case.kind for case in cases}) >= 8
    assert len({(case.gold, case.completion) for case in cases}) == len(cases)


@pytest.mark.slow
def test_a_users_file_is_audited_by_path(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def lazy_reward(completions, **kwargs):\n    return [0.0] * len(completions)\ndef helper():\n    pass\n"
    )
    report = audit_reward(str(path))
    assert report.row().wrong_paid == 0 and report.row().right_refused > 30
    assert load_reward(f"{path}:helper").__name__ == "helper"


def test_a_wrong_path_or_name_lists_what_exists(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.py is neither a file here.*existing path"):
        audit_reward(str(tmp_path / "none.py"))
    path = tmp_path / "two.py"
    path.write_text("def a_reward(): pass\ndef b_reward(): pass\n")
    with pytest.raises(ValueError, match="no single function.*a_reward, b_reward.*two.py:function"):
        audit_reward(str(path))
    with pytest.raises(ValueError, match="no function 'c_reward'.*a_reward, b_reward"):
        audit_reward(f"{path}:c_reward")


@pytest.mark.slow
def test_the_table_shows_each_kind_the_total_and_examples():
    out = io.StringIO()
    print_report(audit_reward(generous_reward, CASES[:3]), Console(file=out, width=80, no_color=True))
    text = out.getvalue()
    for word in ("easy", "gold", "all", "33.3%", "50.0%", "paid, wrongly", "3 cases", "Verdict: do not train with it"):
        assert word in text, text


@pytest.mark.slow
def test_the_kits_math_reward_passes_its_own_audit(tmp_path):
    text = (SAMPLE.parent.parent / "grpo_kit/rewards/math_answer.py").read_text()
    path = tmp_path / "math_answer.py"
    path.write_text(text.replace("DEADLINE = 1.0", "DEADLINE = 20.0"))  # for a busy machine
    report = audit_reward(str(path), seconds=30)
    total = report.row()
    assert (total.accuracy, total.wrong_paid, total.hangs, total.exceptions) == (1.0, 0, 0, 0)
    assert report.ran == [] and report.wanted is None and report.verdict.startswith("Verdict: it judges all")


def test_a_case_may_bring_the_columns_that_its_reward_reads(tmp_path):
    def words_reward(completions, words=(None,), **kwargs):  # the audit's own trial calls bring no column
        return [None if n is None else float(len(c[0]["content"].split()) == n) for c, n in zip(completions, words)]

    rows = [
        {"completion": "one two", "reward": 1, "columns": {"words": 2}},
        {"completion": "one", "reward": 0, "columns": {"words": 2}, "gold": "x", "kind": "short"},
        {"completion": "one", "reward": None, "columns": {"words": None}},
    ]
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for cases in (rows, path):
        report = audit_reward(words_reward, cases)
        assert [trial.rewards["main"] for trial in report.trials] == [1.0, 0.0, None] and report.row().accuracy == 1.0
    with pytest.raises(ValueError, match="it has no 'gold'"):
        audit_reward(words_reward, [{"completion": "one", "reward": 1}])
    with pytest.raises(ValueError, match="is not a case"):
        audit_reward(words_reward, [{"completion": "one", "reward": 1, "columns": 7}])
