"""documents_qa: where an answer is read, what equals it, which documents a reply names, and what it copies."""

import builtins
import socket

import pytest

from grpo_kit.rewards.documents_qa import (
    DOCUMENTS_REASONS,
    _longest_run,
    documents_qa_reward,
    documents_qa_verdict,
    final_answer,
)

PAGES = [{"title": "Oslo", "text": "Oslo is the capital of Norway."}, {"title": "Rome", "text": "Rome lies in Italy."},
         {"title": "Paris, Texas", "text": "A film by Wim Wenders."}]  # fmt: skip


def judge(reply, answer, documents=PAGES, **row):
    verdict = documents_qa_verdict(reply, answer, documents, **row)
    return verdict.reward, verdict.reason


READ = [  # reply, reward for the answer "New York", what the row is about
    ('{"answer": "New York"}', 1, "an object"),
    ('Well.\n```json\n{"answer": "New York", "why": {"a": 1}}\n```\nDone.', 1, "an object in a fence"),
    ('{"answer": "Rome"} no, {"answer": "New York"}', 1, "the last object"),
    ('{"answer": "New York"} no, {"answer": "Rome"}', 0, "the last object"),
    ('{"answer": "Rome", "why": {"answer": "New York"}}', 0, "the outer object"),
    ('{"answer": "New York or Rome"}', 0, "two answers in one"),
    ('{"answer": ["New York"]}', 0, "a list is no answer"),
    ('{"answer": null} New York', 0, "nor is null"),
    ('{"reply": "New York"}', 0, "an object without an answer"),
    (r"So \boxed{New York}.", 1, "a box"),
    (r"So $\boxed{\text{New York}}$", 1, "a box with a text"),
    (r"\boxed{Rome} no, \boxed{New York}", 1, "the last box"),
    (r"\boxed{New York", 0, "a box that is cut"),
    (r"Answer: New York. Or \boxed{Rome}", 0, "a box is read before a line"),
    ("I looked.\nAnswer: New York", 1, "a line"),
    ("**Answer:** New York.", 1, "a line in bold"),
    ("Answer: Rome\nAnswer: New York", 1, "the last line"),
    ("Answer: New York\nBecause it is.", 1, "only the rest of the line"),
    ("Answer: New York or Rome", 0, "a hedge"),
    ("Answer: New York. Or Rome", 0, "a hedge"),
    ("So the answer is New York. It is in document 2.", 1, "a sentence"),
    ("The answer is not New York.", 0, "a denial"),
    ("New York", 1, "nothing but the answer"),
    (" the new york!\n", 1, "nothing but the answer, as SQuAD reads it"),
    ("It is New York", 0, "a sentence that says no more"),
    ("I think\nNew York", 0, "two lines"),
    ("", 0, "nothing"),
    ("<think>Answer: New York", 0, "an open thought"),
    ("Answer: New York</think>", 0, "an answer in the thought"),
    ("Answer: New York</think>Answer: Rome", 0, "an answer that was given up"),
    ("so</think>Answer: New York<|im_end|>", 1, "the end of the turn"),
    ("Answer: New York [1]", 1, "a document behind it, which nobody asked for"),
    ("The answer is New York (Document 2) [1, 3].", 1, "several"),
    ("Answer: New York (Rome)", 1, "a title in brackets"),
    ("Answer: New York (USA)", 0, "brackets that name no document"),
]  # fmt: skip

# Answer, reply, equal for us, equal by SQuAD's and HotpotQA's official normalisation (run), what the row is about.
EQUAL = [
    ("The Beatles", "beatles", 1, 1, "case and article"),
    ("U.S.", "us", 1, 1, "points"),
    ("well-known", "well known", 0, 0, "a hyphen joins"),
    ("O'Neill", "ONeill", 1, 1, "an apostrophe"),
    ("1,000", "1000", 1, 1, "a comma in a number"),
    ("$5", "5", 1, 1, "a currency"),
    ("July 4, 1776", "july 4 1776", 1, 1, "a date"),
    ("Barack Obama", "Obama", 0, 0, "part of a name"),
    ("Beyoncé", "Beyonce", 0, 0, "an accent"),
    ("Beyonce\u0301", "Beyoncé", 1, 0, "an accent in two characters"),
    ("“Hamlet”", "Hamlet", 1, 0, "other quotes"),
    ("1990-1995", "1990–1995", 1, 0, "another dash"),
    ("3.5", "35", 0, 1, "the point of a number"),
    ("-5", "5", 0, 1, "a sign"),
    ("−5", "-5", 1, 0, "another minus"),
    ("C#", "C", 0, 1, "a language"),
    ("C++", "C#", 0, 1, "two languages"),
    ("O-", "O+", 0, 1, "blood groups"),
    ("vitamin A", "vitamin", 0, 1, "an A that is no article"),
    ("A", "The", 0, 1, "articles only"),
    ("!", "?", 0, 1, "punctuation only"),
    ("yes", '{"answer": true}', 1, 0, "a bool"),
    ("no", '{"answer": false}', 1, 0, "a bool"),
    ("7", '{"answer": 7}', 1, 1, "a number"),
    ("7", '{"answer": 7.0}', 0, 0, "which is written otherwise"),
]  # fmt: skip

SUPPORT = [  # reply, reward, reason, for the answer "Oslo" and supporting [1, 3]
    ('{"answer": "Oslo", "supporting": [1, 3]}', 1, "right"),
    ('{"answer": "Oslo", "documents": ["Oslo", "paris, texas"]}', 1, "right"),
    ('{"answer": "Oslo", "sources": ["Document 3", "1"]}', 1, "right"),
    ('{"answer": "Oslo", "supporting_facts": [["Oslo", 0], ["Paris, Texas", 0], ["Oslo", 1]]}', 1, "right"),
    ('{"answer": "Oslo", "documents": [1, 2, 3]}', 0, "wrong_document"),
    ('{"answer": "Oslo", "documents": [1]}', 0, "wrong_document"),
    ('{"answer": "Oslo", "documents": 1}', 0, "wrong_document"),
    ('{"answer": "Oslo", "documents": [1, 3, "Berlin"]}', 0, "wrong_document"),
    ('{"answer": "Oslo", "documents": [1, 3, {}]}', 0, "wrong_document"),
    ('{"answer": "Oslo", "documents": []} [1] [3]', 0, "uncited"),
    ('{"answer": "Oslo"} [1] [3]', 1, "right"),
    ('{"answer": "Oslo"}', 0, "uncited"),
    ("Answer: Oslo [1] [3]", 1, "right"),
    ("Answer: Oslo [3, 1]", 1, "right"),
    ("Answer: Oslo [Oslo; Paris, Texas]", 0, "wrong_document"),
    ("Answer: Oslo [Oslo] [Paris, Texas]", 1, "right"),
    ("Answer: Oslo (Document 1) [3]", 1, "right"),
    ("By documents 1 and 3 it is Oslo.\nAnswer: Oslo", 1, "right"),
    ("By documents 1, 2 and 3 it is Oslo.\nAnswer: Oslo", 0, "wrong_document"),
    ("Not by document 2.\nAnswer: Oslo [1] [3]", 0, "wrong_document"),
    ("Answer: Oslo [1] [3] [4]", 0, "wrong_document"),
    ("Answer: Oslo [1]", 0, "wrong_document"),
    ("Answer: Oslo", 0, "uncited"),
    ("[1] [3]</think>Answer: Oslo", 0, "uncited"),
    ("Answer: Rome [1] [3]", 0, "wrong"),
]  # fmt: skip


@pytest.mark.parametrize(("reply", "due", "note"), READ)
def test_the_answer_that_a_reply_commits_to_is_read(reply, due, note):
    assert judge(reply, "New York")[0] == due, note


@pytest.mark.parametrize(("answer", "reply", "due", "official", "note"), EQUAL)
def test_answers_are_equal_as_in_squad_but_for_signs_that_matter(answer, reply, due, official, note):
    assert judge(reply, answer)[0] == due, note


@pytest.mark.parametrize(("reply", "due", "reason"), SUPPORT)
def test_the_right_documents_must_be_named_and_no_others(reply, due, reason):
    assert judge(reply, "Oslo", supporting=[1, 3]) == (due, reason)
    assert judge(reply, "Oslo", supporting=["Oslo", ["Paris, Texas", 4]]) == (due, reason)


def test_several_answers_are_as_good():
    for row in ({"answer": ["NYC", "New York"]}, {"answer": "NYC", "aliases": ["New York", None, ""]}):
        rewards = [judge(reply, **row)[0] for reply in ("nyc", "New York", "York")]
        assert rewards == [1, 1, 0]


UNUSABLE = [  # answer, documents, supporting, what the row is about
    (None, PAGES, None, "no answer"), ("", PAGES, None, "no answer"), (" ", PAGES, None, "a blank answer"),
    ([], PAGES, None, "no answer"), ([None], PAGES, None, "no answer"), ("Oslo", None, None, "no documents"),
    ("Oslo", [], None, "no documents"), ("Oslo", "Oslo is in Norway", None, "a text for the list"),
    ("Oslo", PAGES, [4], "no such document"), ("Oslo", PAGES, [0], "numbers begin at 1"),
    ("Oslo", PAGES, ["Bern"], "no such title"), ("Oslo", [*PAGES, PAGES[0]], ["Oslo"], "a title of two documents"),
    ("Oslo", ["a", "b"], ["a"], "a text is no title"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "documents", "supporting", "note"), UNUSABLE)
def test_a_row_that_cannot_be_judged_earns_none(answer, documents, supporting, note):
    assert documents_qa_reward(["Oslo"], [answer], [documents], supporting=[supporting]) == [None], note


def test_rows_of_other_rewards_are_left_out():
    assert documents_qa_reward(["Oslo"] * 2, ["Oslo"] * 2) == [None, None]
    assert documents_qa_reward(["Oslo"] * 2, None, [PAGES] * 2) == [None, None]
    assert documents_qa_reward(["Oslo"] * 2, ["Oslo"] * 2, [PAGES, None], supporting=[[], None]) == [1.0, None]


def test_a_title_that_is_a_number_names_its_document():
    films = [{"title": "1917", "text": "A war film."}, {"title": "2", "text": "x"}, {"title": None, "text": "y"}]
    assert judge("Answer: war [1917]", "war", films, supporting=["1917"]) == (1, "right")
    assert judge("Answer: war [2]", "war", films, supporting=[2]) == (1, "right")
    assert judge("Answer: war [1]", "war", films, supporting=["1917"]) == (1, "right")


F1 = [  # answer, reply, F1
    ("Paris, France", "Paris", 2 / 3), ("Paris", "Paris in France", 1 / 2), ("x y", "y x", 1.0), ("x x", "x", 2 / 3),
    ("yes", "yes it is", 0.0), ("no", "yes", 0.0), ("Rome", "Oslo", 0.0), ("Rome", "rome", 1.0),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "reply", "f1"), F1)
def test_partial_credit_is_the_f1_of_the_words(answer, reply, f1):
    assert documents_qa_verdict(reply, answer, PAGES).f1 == pytest.approx(f1)
    assert documents_qa_reward([reply], [answer], [PAGES], partial_credit=True) == [pytest.approx(f1)]
    assert documents_qa_reward([reply], [answer], [PAGES]) == [float(reply == "rome")]


def test_partial_credit_is_not_paid_for_the_wrong_document():
    rewards = documents_qa_reward(
        ["Answer: Oslo [2]", "Answer: Oslo now [1]"],
        ["Oslo"] * 2,
        [PAGES] * 2,
        supporting=[[1]] * 2,
        partial_credit=True,
    )
    assert rewards == [0.0, pytest.approx(2 / 3)]


COPIES = [  # words, pages, the longest run that they share
    ("a b c d", ["x b c y"], 2), ("a b c d", ["a b", "c d"], 2), ("a b a b c", ["b a b c"], 4), ("", ["a"], 0),
    ("a", [], 0), ("a a a a", ["a a b a a a"], 3), ("a b c", ["c b a"], 1), ("x", ["y"], 0),
    ("a b a c a b a d", ["c a b a c a b"], 6), ("a b b", ["b b b"], 2),
]  # fmt: skip


@pytest.mark.parametrize(("words", "pages", "run"), COPIES)
def test_the_longest_shared_run(words, pages, run):
    assert _longest_run(words.split(), [page.split() for page in pages]) == run


def test_copying_is_logged_and_costs_its_share():
    logged = {}
    pages = [["Oslo is the capital of Norway.", "Rome."]] * 4
    thoughts = [
        "OSLO is the capital, of Norway",
        "It is Norway whose capital I know",
        "Oslo is the capital: so it is Oslo",
        "",
    ]
    replies = [f"{thought}</think>Oslo" for thought in thoughts]
    columns = {"log_metric": logged.__setitem__}
    assert documents_qa_reward(replies, ["Oslo"] * 4, pages, **columns) == [1.0] * 4
    assert logged["documents_qa/copied"] == pytest.approx((1 + 1 / 7 + 1 / 2 + 0) / 4)
    assert documents_qa_reward(replies, ["Oslo"] * 4, pages, copying_cost=0.5) == pytest.approx(
        [0.5, 1 - 1 / 14, 0.75, 1]
    )
    assert documents_qa_reward(replies[:1], ["Rome"], pages[:1], copying_cost=1.0) == [0.0]
    chinese = documents_qa_reward(
        ["首都是奥斯陆</think>奥斯陆"], ["奥斯陆"], [["挪威的首都是奥斯陆。"]], copying_cost=0.5
    )
    assert chinese == [0.5]


def test_the_share_of_each_reason_is_logged():
    logged = {}
    replies = ["Answer: Oslo [1]", "Answer: Oslo [2]", "Answer: Rome", "Oslo"]
    supporting = [[1], [1], None, [9]]
    documents_qa_reward(replies, ["Oslo"] * 4, [PAGES] * 4, supporting=supporting, log_metric=logged.__setitem__)
    assert set(logged) == {f"documents_qa/{name}" for name in (*DOCUMENTS_REASONS, "f1", "copied")}
    assert {name.removeprefix("documents_qa/"): value for name, value in logged.items() if value} == {
        "right": 0.25, "wrong_document": 0.25, "wrong": 0.25, "unusable": 0.25, "f1": pytest.approx(2 / 3),
    }  # fmt: skip


def test_a_callers_mistake_raises():
    with pytest.raises(ValueError, match="2 completions and 1 values of answer; each .* needs its own. Pass"):
        documents_qa_reward(["a", "b"], ["a"], [PAGES] * 2)
    for cost in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"copying_cost is {cost}; .* Set it between"):
            documents_qa_reward(["a"], ["a"], [PAGES], copying_cost=cost)


def test_votes_spell_equal_answers_alike():
    replies = [
        "Answer: the New York.",
        '{"answer": "new york"}',
        r"\boxed{New York}",
        "The answer is New York",
        "<think>x",
        "",
    ]
    assert [final_answer(reply) for reply in replies] == ["new york"] * 4 + [None, None]
    assert [final_answer("x" * length) for length in (200, 201)] == ["x" * 200, None]  # a longer one is no short answer


HOSTILE = [
    "{" * 1_000_000, '{"a":' * 200_000, '[{"answer":' * 90_000, '{"answer": "Oslo"}' * 50_000, '{"answer":"' * 90_000,
    "\\boxed{" * 140_000, "\\boxed{Oslo" + " " * 1_000_000 + "}", "answer is " * 100_000, "answer:\n" * 100_000,
    "[1]" * 330_000, "[1, " * 250_000, "documents 1, 2 " * 60_000, "Answer: x" + " [1]" * 250_000,
    "Answer: " + "(" * 1_000_000, "." * 1_000_000, "Answer: " + " " * 1_000_000 + "x", "</think>" * 120_000,
    "<think>" * 120_000, " " * 1_000_000, "\n" * 1_000_000, "x" * 1_000_000, "答" * 1_000_000,
    "a b " * 250_000 + "</think>Oslo?", "Oslo is the capital " * 50_000 + "</think>Rome", "Answer: \u202eolsO\u202c",
    "\u202eAnswer: olsO", "Answer: \ud800", '{"answer": "\\ud800"}', "Answer: \0", '{"answer": 1e999}',
    '{"answer": NaN}', '{"answer": ' + "1" * 5000 + "}", '{"answer": {"answer": {}}}', "[" + "9" * 250 + "] Answer: x",
    "Document " + "9" * 1000, "documents" + " 1" * 1000, '{"answer": "x", "documents": ' + "[" * 900 + "]" * 900 + "}",
    "Answer: [" * 100_000, "Answer: [[[1]]]]", "Answer: ²", "document ²", "[²]", "[١]", "Answer: ()[]{}", "\\boxed{}",
    "[]",
]  # fmt: skip


@pytest.mark.slow
def test_hostile_replies_neither_raise_nor_read_a_file(monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError(f"opened {arguments}")

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(builtins, "eval", refuse)
    count = len(HOSTILE)
    pages = [[{"title": "[Oslo]", "text": "Oslo is the capital of Norway. " * 100}, "b", None, 5]] * count
    logged = {}
    columns = {"supporting": [[1]] * count, "copying_cost": 0.5, "log_metric": logged.__setitem__}
    assert documents_qa_reward(HOSTILE, ["Oslo"] * count, pages, **columns) == [0.0] * count
    assert [final_answer(reply) for reply in HOSTILE[-2:]] == [None, "[]"]
