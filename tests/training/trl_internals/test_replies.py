"""TRL reads replies with thinking and tool calls as the kit does, and rows with tools are paid."""

import types

import datasets
import pytest
import trl
from trl import chat_template_utils

from grpo_kit import config
from grpo_kit.policy import tool_calls
from grpo_kit.policy.chat import (
    THINKING_SWITCH,
    build_messages,
    render_prompt,
    template_conversations,
    template_opens_thinking,
)
from grpo_kit.policy.load import load_policy, load_tokenizer
from grpo_kit.rewards.math_answer import math_reward
from grpo_kit.training.trl_internals.grpo import OpenGRPOTrainer
from grpo_kit.training.trl_internals.replies import set_response_template


@pytest.fixture
def tokenizer():
    """The embedded policy's with Nemotron's chat template, which takes tools."""
    tokenizer = load_tokenizer(config.Policy())
    tokenizer.chat_template = chat_template_utils.nemotron_3_nano_chat_template
    return tokenizer


def thinking_rows(*settings):
    return [{"prompt": build_messages("6*7?"), "answer": "42", "enable_thinking": setting} for setting in settings]


def test_replies_are_read_where_the_switch_hides_the_template_from_trl(tokenizer):
    template_conversations(tokenizer, thinking_rows(False), True)
    with pytest.raises(ValueError, match="Unrecognized chat template"):
        chat_template_utils.add_response_schema(tokenizer)
    extended = tokenizer.chat_template
    set_response_template(tokenizer)
    assert tokenizer.response_template == chat_template_utils.nemotron_3_template
    assert tokenizer.chat_template == extended and THINKING_SWITCH in extended
    assert chat_template_utils.is_chat_template_prefix_preserving(tokenizer)


def test_lightnings_template_has_the_same_switch_and_reads_replies_alike(tokenizer):
    tokenizer.chat_template = chat_template_utils.nemotron_3_5_lightning_chat_template
    texts = [render_prompt(tokenizer, build_messages("6*7?"), thinking) for thinking in (True, False)]
    assert [text.rpartition("assistant\n")[2] for text in texts] == ["<think>\n", "<think></think>"]
    assert [template_opens_thinking(tokenizer, thinking) for thinking in (True, False)] == [True, False]
    rows = template_conversations(tokenizer, thinking_rows(False, True), True)
    assert [render_prompt(tokenizer, turns, True).endswith("<think></think>") for turns in rows] == [True, False]
    set_response_template(tokenizer)
    assert tokenizer.response_template == chat_template_utils.nemotron_3_template
    assert chat_template_utils.is_chat_template_prefix_preserving(tokenizer)


def test_the_response_template_follows_the_chat_template(tokenizer):
    cases = [
        (load_tokenizer(config.Policy()).chat_template, chat_template_utils.nemotron_3_template),  # the embedded one
        (chat_template_utils.qwen3_chat_template, chat_template_utils.qwen3_template),
        (THINKING_SWITCH + chat_template_utils.qwen3_chat_template, chat_template_utils.qwen3_template),
    ]
    for tokenizer.chat_template, expected in cases:
        tokenizer.response_template = None
        set_response_template(tokenizer)
        assert tokenizer.response_template == expected
    tokenizer.response_template = own = {"fields": {}}
    set_response_template(tokenizer)
    assert tokenizer.response_template is own
    tokenizer.response_template, tokenizer.chat_template = None, "{{ messages[0].content }}"
    with pytest.raises(ValueError, match=r"does not know how to read tool calls.*Set tokenizer\.response_template"):
        set_response_template(tokenizer)


def add(a: int, b: int) -> str:
    """Add two numbers.

    Args:
        a: the first.
        b: the second.
    """
    return str(a + b)


CALL = (
    "<tool_call>\n<function=add>\n<parameter=a>\n40\n</parameter>\n<parameter=b>\n2\n</parameter>\n"
    "</function>\n</tool_call>"
)


@pytest.mark.slow
def test_rows_with_tools_keep_their_own_thinking_and_are_paid(tokenizer, tmp_path):
    """Rows with thinking on, off, and as the run says; each calls a tool, is told 42, and answers 42."""
    rows = thinking_rows(True, False, None)
    conversations = template_conversations(tokenizer, rows, True)
    columns = [
        {"prompt": turns, "answer": "42", "prompt_opened_think": i != 1} for i, turns in enumerate(conversations)
    ]
    model, _ = load_policy(config.Policy())
    seen = []

    def watching_reward(completions, **batch):
        seen.append(completions)
        return math_reward(completions, **batch)

    args = trl.GRPOConfig(
        str(tmp_path), max_steps=1, num_generations=2, per_device_train_batch_size=6, max_completion_length=400,
        bf16=False, use_cpu=True, report_to="none", save_strategy="no", chat_template_kwargs={"enable_thinking": True},
    )  # fmt: skip
    trainer = OpenGRPOTrainer(
        model=model, reward_funcs=[watching_reward], args=args, train_dataset=datasets.Dataset.from_list(columns),
        processing_class=tokenizer, tools=[add],
    )  # fmt: skip
    prompts = []

    def generate(prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        texts = [tokenizer.decode(ids) for ids in prompt_ids]
        prompts.append(texts)
        thoughts = ["I add.\n</think>\n" if text.endswith("<think>\n") else "" for text in texts]
        answers = [r"\boxed{42}" if "<tool_response>" in text else CALL for text in texts]
        replies = [f"{thought}{answer}<|im_end|>" for thought, answer in zip(thoughts, answers, strict=True)]
        return [tokenizer.encode(reply, add_special_tokens=False) for reply in replies], None

    trainer._generate_single_turn = generate
    batch = trainer.sample_batch([row for row in columns for _ in range(2)])
    first, second = prompts
    for texts in (first, second):
        assert [text.endswith("<think></think>") for text in texts] == [False, False, True, True, False, False]
    assert all("<tool_response>\n42\n</tool_response>" in text for text in second)
    assert [[turn["role"] for turn in turns] for turns in seen[0]] == [["assistant", "tool", "assistant"]] * 6
    assert trainer.reward_table.flatten().tolist() == [1.0] * 6 and len(batch["advantages"]) == 6


@pytest.mark.parametrize("name", ["embedded", "nemotron_3_nano", "nemotron_3_5_lightning"])
def test_results_stand_between_two_turns_as_trl_puts_them_there(name):
    """Training takes TRL's tokens, evaluation the kit's."""
    tokenizer = load_tokenizer(config.Policy())
    if name != "embedded":
        tokenizer.chat_template = getattr(chat_template_utils, f"{name}_chat_template")
    results = [{"role": "tool", "name": "add", "content": text} for text in ("42", "é <b>")]
    for thinking in (True, False):
        trainer = types.SimpleNamespace(
            processing_class=tokenizer, _tokenizer=tokenizer, chat_template=None, _is_vlm=False,
            chat_template_kwargs={"enable_thinking": thinking},
        )  # fmt: skip
        theirs = trl.GRPOTrainer._get_tool_suffix_ids(trainer, results)
        assert tool_calls.encode_results(tokenizer, results, thinking) == theirs
