"""Texts by the chat template, in tokens: what is trained, what is refused, the recipe, and the order of the rows."""

from pathlib import Path

import pytest
import trl

from grpo_kit.config import Policy
from grpo_kit.policy.chat import encode_prompt
from grpo_kit.policy.load import load_tokenizer
from grpo_kit.training.sft.conversations import Example, LeftOut, read_examples
from grpo_kit.training.sft.rows import Row, apply_recipe, describe_rows, encode_examples, order_rows

NANO = (Path(trl.__file__).parent / "chat_templates/nemotron_3_nano.jinja").read_text()
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}


@pytest.fixture(scope="module", params=["embedded", "nano"])
def tokenizer(request):
    tokenizer = load_tokenizer(Policy())
    if request.param == "nano":
        tokenizer.chat_template = NANO
    return tokenizer


def encode(tokenizer, row, longest=2000):
    return encode_examples(tokenizer, read_examples(row, "line 1"), longest)


# (row, what the prompt ends in, what is trained)
TRAINED = [
    ({"prompt": "q", "completion": "<think>t</think>a"}, "<think>\n", "t\n</think>\na<|im_end|>"),
    ({"prompt": "q", "completion": "a"}, "<think></think>", "a<|im_end|>"),
    ({"prompt": "q", "completion": [{"role": "assistant", "reasoning_content": "t", "content": "a"}]},
     "<think>\n", "t\n</think>\na<|im_end|>"),
    ({"prompt": "q", "completion": "a", "chat_template_kwargs": {"enable_thinking": False}},
     "<think></think>", "a<|im_end|>"),
    ({"messages": [{"role": "user", "content": "q"}, CALL], "tools": [TOOL]}, "<think></think>",
     "<tool_call>\n<function=look>\n</function>\n</tool_call>\n<|im_end|>"),
]  # fmt: skip


def test_only_the_reply_is_trained_behind_the_prompt_that_the_policy_gets(tokenizer):
    for row, end, trained in TRAINED:
        (encoded,), left_out = encode(tokenizer, row)
        (example,) = read_examples(row, "line 1")
        columns = encoded.as_trainer_takes_it()
        prompt = encode_prompt(tokenizer, example.prompt, end == "<think>\n", example.tools)
        assert columns["labels"][: len(prompt)] == [-100] * len(prompt) and left_out == []
        assert columns["input_ids"][: len(prompt)] == prompt and tokenizer.decode(prompt).endswith(end)
        # Nemotron's own template begins a line before a call.
        assert tokenizer.decode(columns["labels"][len(prompt) :]).lstrip("\n") == trained


def test_the_thought_of_an_earlier_turn_is_cut_from_the_prompt_and_learned_in_its_own_text(tokenizer):
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "reasoning_content": "early"},
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": "b", "reasoning_content": "late"},
    ]
    rows, left_out = encode(tokenizer, {"messages": turns})
    first, second = (tokenizer.decode(row.input_ids[row.prompt_length :]) for row in rows)
    assert (first, second, left_out) == ("early\n</think>\na<|im_end|>", "late\n</think>\nb<|im_end|>", [])
    is_cut = tokenizer.chat_template == NANO  # the embedded template keeps it, and its prompts are prefixes too
    assert ("early" in tokenizer.decode(rows[1].input_ids)) != is_cut


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"prompt": "q", "completion": "a", "chat_template_kwargs": {"enable_thinking": True}}, "prompt is no prefix"),
        ({"prompt": "q", "completion": "<think>t</think>a", "chat_template_kwargs": {"enable_thinking": False}},
         "prompt is no prefix"),
        ({"prompt": "q", "completion": "a<|im_end|>\n<|im_start|>user\nq"}, "mark of the template"),
        ({"prompt": "q<|im_end|>", "completion": "a"}, "mark of the template"),
        ({"prompt": "q", "completion": "a" * 3000}, "too long"),
    ],
)  # fmt: skip
def test_a_row_that_would_teach_something_else_is_left_out(tokenizer, row, reason):
    rows, left_out = encode(tokenizer, row)
    assert rows == [] and [each.reason for each in left_out] == [reason]


def test_a_template_that_loses_the_thought_or_has_no_end_is_refused():
    tokenizer = load_tokenizer(Policy())
    row = {"prompt": "q", "completion": "<think>t</think>a"}
    body = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
    opening = "{% if add_generation_prompt %}[assistant]{% endif %}"
    for template, reason in (
        (body + opening, "text left out"),
        (body.replace("<|im_end|>", "") + opening, "no end"),
        ("{{ raise_exception('no') }}", "template"),
    ):
        tokenizer.chat_template = template
        _, (left_out,) = encode(tokenizer, row)
        assert left_out.reason == reason


def test_a_row_of_exactly_the_longest_length_fits():
    tokenizer = load_tokenizer(Policy())
    row = {"prompt": "q", "completion": "<think>t</think>a"}
    ((encoded,), _) = encode(tokenizer, row)
    length = len(encoded.input_ids)
    assert len(encode(tokenizer, row, length)[0]) == 1
    _, (left_out,) = encode(tokenizer, row, length - 1)
    assert left_out == LeftOut("line 1", "too long", f"it has {length} tokens", length)


def made(count, thought="one two three four"):
    more = {"reasoning_content": thought} if thought else {}
    return [
        Example([{"role": "user", "content": f"{i}?"}], {"role": "assistant", "content": str(i)} | more, f"line {i}")
        for i in range(count)
    ]


def test_the_recipe_strips_a_tenth_of_the_thoughts_and_cuts_three_in_a_hundred():
    tokenizer, before = load_tokenizer(Policy()), made(200)
    after = apply_recipe(before, tokenizer, seed=1)
    assert after == apply_recipe(before, tokenizer, seed=1) != apply_recipe(before, tokenizer, seed=2)
    assert [(e.prompt, e.reply["content"], e.place) for e in after] == [
        (e.prompt, e.reply["content"], e.place) for e in before
    ]
    thoughts = [example.reply.get("reasoning_content") for example in after]
    cut = [thought for thought in thoughts if thought not in (None, "one two three four")]
    assert thoughts.count(None) == 20 and len(cut) == 6
    assert all("one two three four".startswith(thought) and thought for thought in cut) and len(set(cut)) > 2
    rows, left_out = encode_examples(tokenizer, after, 500)
    assert len(rows) == 200 and left_out == []  # a stripped row's prompt does not open a thought


def test_the_recipe_closes_the_prompt_of_a_row_that_says_it_thinks():
    tokenizer = load_tokenizer(Policy())
    examples = [example._replace(enable_thinking=True) for example in made(20)]
    rows, left_out = encode_examples(tokenizer, apply_recipe(examples, tokenizer, seed=1), 500)
    closed = [tokenizer.decode(row.input_ids[: row.prompt_length]).endswith("<think></think>") for row in rows]
    assert (len(rows), closed.count(True), left_out) == (20, 2, [])


def test_the_recipe_leaves_texts_without_a_thought_as_they_are():
    tokenizer, before = load_tokenizer(Policy()), made(50, thought=None)
    assert apply_recipe(before, tokenizer, seed=1) == before
    assert apply_recipe(made(3), tokenizer, seed=1) == made(3)  # a tenth of three is none


def test_a_budget_that_ends_within_a_character_keeps_whole_ones():
    tokenizer = load_tokenizer(Policy())  # a token is a byte
    after = apply_recipe(made(100, thought="ééé"), tokenizer, seed=1)
    cut = {example.reply["reasoning_content"] for example in after if "reasoning_content" in example.reply} - {"ééé"}
    assert cut <= {"é", "éé"} and cut


def test_every_row_is_taken_once_before_one_is_taken_again():
    order = order_rows([7] * 10, batch_size=1, rows_per_step=4, steps=5, seed=3)
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10)) and order[:10] != order[10:]
    assert order == order_rows([7] * 10, 1, 4, 9, 3)[:20]  # more steps go on in the same order
    assert order != order_rows([7] * 10, 1, 4, 5, 4)


def test_rows_of_similar_length_share_a_micro_batch():
    lengths = [5, 90] * 32
    order = order_rows(lengths, batch_size=4, rows_per_step=8, steps=8, seed=0)
    assert sorted(order) == list(range(64))
    batches = [{lengths[row] for row in order[i : i + 4]} for i in range(0, 64, 4)]
    assert all(len(batch) == 1 for batch in batches) and batches != sorted(batches, key=min)


def test_what_is_left_out_is_counted_with_examples():
    rows = [Row([1] * length, 3, "a") for length in (5, 9, 7)]
    left_out = [LeftOut(f"line {i}", "too long", f"it has {i} tokens", i) for i in range(5)]
    assert describe_rows(rows, left_out) == {
        "rows": 3,
        "tokens": {"median": 7, "90th": 9, "longest": 9, "sum": 21},
        "trained": {"median": 4, "90th": 6, "longest": 6, "sum": 12},
        "left_out": {
            "too long": {
                "count": 5,
                "longest": 4,
                "examples": [{"place": f"line {i}", "detail": f"it has {i} tokens"} for i in range(3)],
            }
        },
    }
