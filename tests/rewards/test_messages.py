"""Rewards read every form in which TRL hands them a reply: text, one message, split messages, several turns."""

import re
from functools import partial
from pathlib import Path

import pytest
from trl import chat_template_utils

from grpo_kit import config
from grpo_kit.policy.load import load_tokenizer
from grpo_kit.rewards import math_answer
from grpo_kit.rewards.arithmetic_steps import arithmetic_steps_reward
from grpo_kit.rewards.brevity import cosine, kimi
from grpo_kit.rewards.challenge import challenge_reward
from grpo_kit.rewards.choice import choice_reward
from grpo_kit.rewards.choice import final_answer as chosen_option
from grpo_kit.rewards.combine import Part, combine
from grpo_kit.rewards.documents_qa import documents_qa_reward
from grpo_kit.rewards.instructions import instructions_reward
from grpo_kit.rewards.math_answer import math_reward
from grpo_kit.rewards.reasoning_format import reasoning_format_reward

FOLDER = Path(math_answer.__file__).parent
RIGHT, WRONG = r"6*7=42</think>\boxed{42}", r"6*7=41</think>\boxed{41}"
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 7}}}
QUESTION = [{"role": "system", "content": "Think."}, {"role": "user", "content": "What is 6 times 7?"}]


def turn(content, role="assistant", **keys):
    return {"role": role, "content": content, **keys}


FORMS = [  # completion, is it right when the prompt opened <think> and when not, what the row is about
    (RIGHT, 1, 1, "text"),
    ([turn(RIGHT)], 1, 1, "one message with inline thinking"),
    ([turn(r"\boxed{42}", reasoning_content="6*7=42")], 1, 1, "thinking that TRL took off"),
    ([turn(r"\boxed{42}", thinking="6*7=42")], 1, 1, "the same under the name that some templates use"),
    ([turn(r"6*7=42 \boxed{42}", reasoning_content="")], 1, 1, "an empty thought that was closed"),
    ([turn("the answer", reasoning_content=r"\boxed{42}")], 0, 0, "an answer inside the thinking"),
    ([turn(r"6*7=42 \boxed{42}")], 0, 1, "a thought that was not closed lands in content whole"),
    ([turn(r"6*7=42 \boxed{42}", reasoning_content=None)], 0, 1, "as it does where a table has filled the key in"),
    ([turn(r"\boxed{42}<think>so", reasoning_content="a")], 0, 0, "thinking that was opened again"),
    (turn(r"\boxed{42}", reasoning_content="6*7=42"), 1, 1, "a message outside a list"),
    ([turn([{"type": "text", "text": r"\boxed{42}"}], reasoning_content="6*7=42")], 1, 1, "content in blocks"),
    ([turn("", tool_calls=[CALL]), turn("42", "tool"), turn(RIGHT)], 1, 1, "the last turn of several"),
    ([turn(WRONG), turn("No.", "user"), turn(RIGHT)], 1, 1, "a user in between"),
    ([turn(RIGHT), turn("No.", "user"), turn(WRONG)], 0, 0, "a right answer that was given up"),
    ([turn(RIGHT), turn("41", "tool")], 1, 1, "an episode that ends with a tool's result"),
    ([turn("", tool_calls=[CALL], reasoning_content="a"), turn(RIGHT, "tool")], 0, 0, "a tool's right answer"),
    ([turn(None, tool_calls=[CALL])], 0, 0, "nothing but a call"),
    ([turn(RIGHT, "user")], 0, 0, "no turn of the assistant"),
    ([], 0, 0, "no turn at all"),
    (None, 0, 0, "no completion"),
]  # fmt: skip


def always(completions, **columns):
    return [1.0] * len(completions)


# Rewards that pay 1.0 for right forms and 0.0 for the others; columns that they take.
OPTIONS = ["41", "42"]
JUDGES = {
    "math": (math_reward, {"answer": ["42"]}),
    "choice": (choice_reward, {"answer": ["B"], "options": [OPTIONS]}),
    "documents": (documents_qa_reward, {"answer": ["42"], "documents": [["6*7=42"]]}),
    "instructions": (
        instructions_reward,
        {"instruction_id_list": [["keywords:existence"]], "kwargs": [[{"keywords": ["42"]}]]},
    ),
    "steps": (arithmetic_steps_reward, {"answer": ["42"], "prompts": [QUESTION]}),
    "annotated steps": (arithmetic_steps_reward, {"answer": ["<<6*7=42>>\n#### 42"], "prompts": [QUESTION]}),
    "combine": (combine(math_reward, style=Part(always, 0.0)), {"answer": ["42"]}),
}


def pay(reward, completion, opened, **columns):
    (paid,) = reward(completions=[completion], prompt_opened_think=[opened], completion_ids=[[1]], **columns)
    return paid


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize(("completion", "opened", "unopened", "note"), FORMS)
def test_the_answer_of_the_last_assistant_turn_is_judged(judge, completion, opened, unopened, note):
    reward, columns = JUDGES[judge]
    for flag, due in ((True, opened), (False, unopened)):
        earns_steps = "6*7=42" in str(completion) or "steps" not in judge
        assert pay(reward, completion, flag, **columns) == (due if earns_steps else 0), note


@pytest.mark.parametrize(("completion", "opened", "unopened", "note"), FORMS)
def test_votes_are_read_from_the_same_turn(completion, opened, unopened, note):
    for flag, due in ((True, opened), (False, unopened)):
        assert (math_answer.final_answer(completion, prompt_opened_think=flag) == "42") == bool(due), note
        assert (chosen_option(completion, options=OPTIONS, prompt_opened_think=flag) == "B") == bool(due), note


@pytest.mark.parametrize("make", [partial(cosine, 10), kimi])
@pytest.mark.parametrize(("completion", "opened", "unopened", "note"), FORMS)
def test_lengths_follow_the_verdict_on_the_same_turn(make, completion, opened, unopened, note):
    seen = []
    reward = make(lambda **batch: seen.append(math_reward(**batch)) or seen[-1])
    for flag in (True, False):
        pay(reward, completion, flag, answer=["42"], prompts=["q"])
    assert seen == [[float(opened)], [float(unopened)]], note


def test_the_challenges_scorer_reads_the_last_turn_with_its_thinking():
    for completion, opened, _, note in FORMS:
        unfinished = note.startswith(("a thought", "as it does", "an answer inside", "thinking that was opened again"))
        assert challenge_reward([completion], ["42"]) == [float(bool(opened) or unfinished)], note


# Replies of a policy, the tokens after the prompt. What reasoning_format pays when the prompt opened <think>.
REPLIES = [
    (RIGHT + "<|im_end|>", True, 1, "thinking and an answer"),
    (WRONG + "<|im_end|>", False, 1, "a wrong answer"),
    ("6*7=42\n</think>\n\n\\boxed{42}\n<|im_end|>", True, 1, "blank lines between them"),
    ("6*7=42 \\boxed{42}<|im_end|>", False, 0, "never closed"),
    ("6*7=42 \\boxed{42}", False, 0, "cut"),
    ("<think>6*7=42</think>\\boxed{42}<|im_end|>", True, 0, "opened twice"),
    ("6*7=42</think>\\boxed{42}<think>41<|im_end|>", False, 0, "opened again"),
    ("6*7=42 \\boxed{42}</think>\\boxed{41}<|im_end|>", False, 1, "another answer after the thinking"),
    ("6*7=42</think><|im_end|>", False, 0, "no answer"),
    ("<|im_end|>", False, 0, "nothing"),
    ("6*7=42</think>\\boxed{42}<tool_call>\n<function=add>\n</function>\n</tool_call>\n<|im_end|>", True, 1, "a call"),
    ("6*7=42<tool_call>\n<function=add>\n</function>\n</tool_call>42<|im_end|>", False, 0, "a call in a thought"),
]  # fmt: skip


@pytest.fixture(scope="module", params=["embedded", "nano", "super"])
def tokenizer(request):
    """The embedded policy's with its own chat template and with Nemotron's, and TRL's response template."""
    tokenizer = load_tokenizer(config.Policy())
    if request.param != "embedded":
        tokenizer.chat_template = getattr(chat_template_utils, f"nemotron_3_{request.param}_chat_template")
    tokenizer.response_template = chat_template_utils.nemotron_3_template
    return tokenizer


def as_trl_makes_it(tokenizer, reply, think):
    """The completion that GRPOTrainer hands to rewards; `_generate` of TRL 1.16 parses the tokens this way."""
    conversation = {"conversation": QUESTION, "add_generation_prompt": True, "return_dict": False}
    prompt = tokenizer.apply_chat_template(**conversation, tokenize=True, enable_thinking=think)
    ids = tokenizer.encode(reply, add_special_tokens=False)
    return [chat_template_utils.parse_response(tokenizer, ids, prefix=prompt)]


@pytest.mark.parametrize(("reply", "right", "shape", "note"), REPLIES)
def test_what_trl_makes_of_a_reply_earns_what_its_text_earns(tokenizer, reply, right, shape, note):
    completion = as_trl_makes_it(tokenizer, reply, think=True)
    assert "</think>" not in completion[0]["content"]
    several = [turn("", tool_calls=[CALL], reasoning_content="I add."), turn("41", "tool", name="add"), *completion]
    for form in (reply, completion, several):
        for name, (reward, columns) in JUDGES.items():
            assert pay(reward, form, True, **columns) == float(right), (note, name)
        assert reasoning_format_reward([form]) == [float(shape)], note


@pytest.mark.parametrize(("reply", "right"), [("6*7=42 \\boxed{42}<|im_end|>", 1), ("\\boxed{41}<|im_end|>", 0)])
def test_a_row_without_thinking_is_judged_whole(tokenizer, reply, right):
    completion = as_trl_makes_it(tokenizer, reply, think=False)
    for name, (reward, columns) in JUDGES.items():
        assert pay(reward, completion, False, **columns) == right, name
    assert reasoning_format_reward([completion], prompt_opened_think=[False], enable_thinking=[False]) == [1.0]
    thought = as_trl_makes_it(tokenizer, RIGHT, think=False)
    assert reasoning_format_reward([thought], prompt_opened_think=[False], enable_thinking=[False]) == [0.0]


def test_a_model_that_opens_its_thinking_itself_keeps_its_shape():
    tokenizer = load_tokenizer(config.Policy())
    tokenizer.chat_template = chat_template_utils.qwen3_chat_template
    chat_template_utils.add_response_schema(tokenizer)
    shapes = {"<think>6*7=42</think>42": 1.0, "<think>6</think>42": 0.0, "6*7=42": 0.0}
    for reply, shape in shapes.items():
        completion = as_trl_makes_it(tokenizer, reply + "<|im_end|>", think=True)
        assert reasoning_format_reward([completion], prompt_opened_think=False) == [shape], completion


def test_every_file_reads_messages_with_the_same_function():
    texts = {
        path.stem: re.findall(r"^def _join_contents.*?(?=\n\n\n|\Z)", path.read_text(encoding="utf-8"), re.M | re.S)
        for path in sorted(FOLDER.glob("[a-z]*.py"))
    }
    readers = {name: text[0].rstrip() for name, text in texts.items() if text}
    assert set(readers) == set(texts) - {
        "brevity",
        "combine",
        "end_state",
        "no_calls",
        "token_budget",
    }  # which read no reply themselves, or also what TRL has split off as a call
    assert len(set(readers.values())) == 1
