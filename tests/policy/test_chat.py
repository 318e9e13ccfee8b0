"""Prompts are written as the challenge's scorer writes them, rows keep their own settings, completions are split."""

import json

import pytest
from tokenizers import processors

from grpo_kit import config
from grpo_kit.config.protocols import CHALLENGE_SUFFIX
from grpo_kit.policy import chat
from grpo_kit.policy.load import load_tokenizer

QUESTION = chat.build_messages("What is 47 + 38?")


@pytest.fixture
def tokenizer():
    """The embedded policy's; a new one for each test, because tests change its template."""
    return load_tokenizer(config.Policy())


def row(number, **options):
    return {"id": f"r{number}", "prompt": chat.build_messages(f"q{number}"), "answer": "4", **options}


def prompt_ends(tokenizer, rows, enable_thinking):
    """What stands behind `assistant` in the prompt of each row."""
    conversations = chat.template_conversations(tokenizer, rows, enable_thinking)
    return [
        chat.render_prompt(tokenizer, turns, enable_thinking).rpartition("assistant\n")[2] for turns in conversations
    ]


def test_the_challenge_suffix_is_the_scorers_to_the_letter():
    assert CHALLENGE_SUFFIX == "\nPlease put your final answer inside `\\boxed{}`. For example: `\\boxed{your answer}`"


def test_the_large_presets_ask_as_the_scorer_asks():
    for preset in ("t4", "24gb"):
        assert config.load_config([preset]).data.prompt_suffix == CHALLENGE_SUFFIX


def test_a_system_turn_comes_first_and_the_suffix_last():
    assert chat.build_messages("2 + 2?", "\nBe brief.", "You add.") == [
        {"role": "system", "content": "You add."},
        {"role": "user", "content": "2 + 2?\nBe brief."},
    ]


@pytest.mark.parametrize(("enable_thinking", "end"), [(True, "<think>\n"), (False, "<think></think>")])
def test_a_prompt_ends_where_the_reply_begins_and_has_no_token_twice(tokenizer, enable_thinking, end):
    text = chat.render_prompt(tokenizer, QUESTION, enable_thinking)
    assert text.endswith(f"What is 47 + 38?<|im_end|>\n<|im_start|>assistant\n{end}")
    start = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.backend_tokenizer.post_processor = start  # as tokenizers do that begin every text with `<s>`
    assert tokenizer.encode(text)[0] == 1
    assert tokenizer.decode(chat.encode_prompt(tokenizer, QUESTION, enable_thinking)) == text
    assert chat.template_opens_thinking(tokenizer, enable_thinking) is enable_thinking


def test_prompts_are_counted_in_tokens_with_the_template_included(tokenizer):
    prompts = [QUESTION, chat.build_messages("1?")]
    expected = [
        len(chat.render_prompt(tokenizer, prompt, True).encode()) for prompt in prompts
    ]  # a byte is a token ...
    tags = ["<|im_start|>"] * 3 + ["<|im_end|>"] * 2 + ["<think>"]
    expected = [count - sum(map(len, tags)) + len(tags) for count in expected]  # ... and so is a tag
    assert chat.make_token_counter(config.Policy())(prompts) == expected


@pytest.mark.parametrize(
    ("own", "run", "end"),
    [
        (None, True, "<think>\n"),
        (None, False, "<think></think>"),
        (True, True, "<think>\n"),
        (True, False, "<think>\n"),
        (False, True, "<think></think>"),
        (False, False, "<think></think>"),
    ],
)
def test_a_rows_own_setting_goes_before_the_runs(tokenizer, own, run, end):
    rows = [row(0, enable_thinking=own), row(1, enable_thinking=True)]
    assert prompt_ends(tokenizer, rows, run) == [end, "<think>\n"]
    assert chat.prompts_open_thinking(tokenizer, rows, run) == [end == "<think>\n", True]
    assert chat.prompts_open_thinking(tokenizer, [row(0)], run) == [run]


def test_a_system_turn_and_the_rows_themselves_stay_as_they_are(tokenizer):
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "q"}]
    given = {"id": "x", "prompt": turns, "enable_thinking": False}
    before = json.dumps(given)
    (conversation,) = chat.template_conversations(tokenizer, [given], True)
    assert conversation[0] == turns[0] and json.dumps(given) == before


@pytest.mark.parametrize(("own", "end"), [(False, "<think></think>"), (True, "<think>\n"), (None, "<think>\n")])
def test_a_rows_setting_holds_behind_turns_that_an_environment_appends(tokenizer, own, end):
    turns = chat.template_conversations(tokenizer, [row(0, enable_thinking=own), row(1, enable_thinking=True)], True)[0]
    assert chat.row_thinking(turns) is own
    turns += [
        {"role": "assistant", "content": "?"},
        {"role": "tool", "content": "4"},
        {"role": "user", "content": "go"},
    ]
    assert chat.render_prompt(tokenizer, turns, True).endswith(f"assistant\n{end}")
    assert chat.row_thinking(turns) is own


def test_a_template_that_sets_a_default_as_the_published_one_does_obeys_rows_too(tokenizer):
    """Nemotron's own template begins by giving `enable_thinking` a default."""
    tokenizer.chat_template = (
        "{%- set enable_thinking = enable_thinking if enable_thinking is defined else True %}"
        "{%- for m in messages %}{{ m.content }}{% endfor %}assistant\n"
        "{{ '<think>\\n' if enable_thinking else '<think></think>' }}"
    )
    rows = [row(0, enable_thinking=False), row(1, enable_thinking=True), row(2, enable_thinking=None)]
    assert prompt_ends(tokenizer, rows, True) == ["<think></think>", "<think>\n", "<think>\n"]


def test_a_template_that_ignores_enable_thinking_is_refused(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match=r"ignores enable_thinking.*data\.no_thinking=0"):
        chat.template_conversations(tokenizer, [row(0, enable_thinking=False)], True)
    chat.template_conversations(tokenizer, [row(0, enable_thinking=True)], True)  # needs nothing of the template


@pytest.mark.parametrize(
    ("completion", "parts"),
    [
        ("a\n</think>\nb", ("a", "b")),
        ("<think>a</think>b", ("a", "b")),  # a model that opens it again
        ("no tag at all", ("no tag at all", "")),  # cut while thinking
        ("a</think>b</think>c", ("a</think>b", "c")),  # the last one counts
        ("", ("", "")),
    ],
)
def test_a_completion_is_split_into_thinking_and_answer(completion, parts):
    assert chat.split_thinking(completion) == parts


def test_a_completions_text_is_read_from_all_of_trls_shapes():
    assert chat.completion_text("x") == chat.completion_text([{"role": "assistant", "content": "x"}]) == "x"
    split = {"role": "assistant", "reasoning_content": "a", "content": "b"}
    assert chat.completion_text([split]) == "a</think>b"
    call = {"role": "assistant", "reasoning_content": "", "content": None, "tool_calls": []}
    assert chat.completion_text([call, {"role": "tool", "content": "4"}, split]) == "</think>\n4\na</think>b"
    blocks = [{"type": "text", "text": "b"}, {"type": "image"}, "c", {"type": "text", "text": None}]
    assert chat.completion_text([split | {"content": blocks}]) == "a</think>bc"
    assert chat.completion_text(split) == "a</think>b" and chat.completion_text(split | {"content": blocks[2:]})
    assert chat.completion_text(None) == chat.completion_text([]) == ""


TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
LOOP = f"{{% for m in messages %}}{TURN}{{% endfor %}}"
OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
REFUSAL = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "needs_system", "message"),
    [
        (None, False, "its tokenizer has no chat template, so no prompt can be written. Name a model that has one"),
        (LOOP, False, "has no generation prompt: a prompt ends before the mark that opens the model's reply. Add"),
        (REFUSAL + LOOP + OPENING, True, r"takes no system turn \(System role not supported\). Leave data"),
        ("{% for m in messages if m.role != 'system' %}" + TURN + "{% endfor %}" + OPENING, True,
         r"takes no system turn \(it leaves the text out\)"),
        ("{% for m in messages %}", False, r"cannot write a question \(.*endfor.*\). Correct the template"),
        ("{{ messages[0].content + 1 }}", False, r"cannot write a question \(can only concatenate"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_write_the_prompts_is_refused(tokenizer, template, needs_system, message):
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=f"policy.model is 'm', and .*{message}"):
        chat.require_chat_template(tokenizer, "m", needs_system)


@pytest.mark.parametrize(
    ("template", "needs_system"),
    [
        (LOOP + OPENING, True),
        (REFUSAL + LOOP + OPENING, False),  # nobody needs the system turn
        ("{% for m in messages %}{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else ' ' + m.content }}"
         "{% endfor %}", False),  # the question's own end opens the reply
        ("{{ messages[0].content }}\n{{ messages[-1].content }}" + OPENING, True),  # merged into the user turn
    ],
)  # fmt: skip
def test_templates_that_write_the_prompts_in_their_own_ways_are_taken(tokenizer, template, needs_system):
    tokenizer.chat_template = template
    chat.require_chat_template(tokenizer, "m", needs_system)
