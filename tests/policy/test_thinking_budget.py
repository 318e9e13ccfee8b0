"""Forced budgets: which tokens are forced, by every loop that samples, and what stays as it is."""

import random

import pytest
import torch
from transformers import TextStreamer
from trl import chat_template_utils

from grpo_kit import config
from grpo_kit.policy import continuous_batch, episodes, generation_loop
from grpo_kit.policy.chat import build_messages, encode_prompt
from grpo_kit.policy.generate import TransformersEngine
from grpo_kit.policy.load import load_tokenizer
from grpo_kit.policy.thinking_budget import (
    Closing,
    Limits,
    count_thinking,
    find_closing,
    find_forced,
    forced_token,
    is_open,
    make_limits,
    read_closing,
    require_room,
)
from grpo_kit.rewards.token_budget import thinking_tokens

OPEN, CLOSE, LINE, END = 12, 13, 214, 11
CLOSING = Closing([LINE, CLOSE, LINE], OPEN, CLOSE)
QUESTIONS = [f"What is {n} + {n % 7 + 20}?" for n in range(40, 52)]


@pytest.fixture(scope="module")
def prompts(tiny_policy):
    return [encode_prompt(tiny_policy[1], build_messages(text), True) for text in QUESTIONS]


def sample(policy, prompts, budgets, seed=3, length=40, batch_size=64, temperature=1.0, **told):
    settings = config.Evaluation(max_completion_length=length, batch_size=batch_size, temperature=temperature)
    engine = TransformersEngine(*policy, settings)
    return engine.sample_ids(prompts, [length] * len(prompts), seed, budgets=budgets, **told)


def test_a_thought_is_closed_as_the_template_closes_it():
    tokenizer = load_tokenizer(config.Policy())
    assert read_closing(tokenizer) == CLOSING
    for name in ("nano", "super"):
        tokenizer.chat_template = getattr(chat_template_utils, f"nemotron_3_{name}_chat_template")
        assert read_closing(tokenizer) == CLOSING


@pytest.mark.parametrize("name", ["qwen3_chat_template", "llama3_chat_template"])
def test_a_template_that_opens_no_thought_is_refused(name):
    tokenizer = load_tokenizer(config.Policy())
    tokenizer.chat_template = getattr(chat_template_utils, name)
    assert find_closing(tokenizer) is None and make_limits(tokenizer, [[OPEN]], [None]) is None
    with pytest.raises(ValueError, match="does not open <think> in the prompt.*policy.thinking_budget out"):
        make_limits(tokenizer, [[OPEN]], [8])


def test_which_tokens_are_forced():
    shut = [LINE, CLOSE, LINE]
    cases = [
        ([7, 7], 3, "", "a thought within its budget"),
        ([7, 7, 7], 3, "", "a thought that has just used it up"),
        ([7, 7, 7, *shut, 8, END], 3, "   xxx", "cut"),
        ([7, 7, LINE, CLOSE, LINE, 8], 3, "   xx", "its own line break is taken"),
        ([LINE, LINE, LINE, CLOSE, LINE, 8], 3, "   xx", "and no more than one"),
        ([7, LINE, CLOSE, LINE, 8, 8], 3, "", "closed before"),
        ([CLOSE, 8, 8, 8, 8], 3, "", "closed at once"),
        ([7, *shut, 8], 1, " xxx", "a budget of one token"),
        ([7, 7, 7, LINE, CLOSE], 3, "   xx", "cut where the room ends"),
        ([7, 7, 7, LINE], 3, "   x", "and before the thought is closed"),
        ([7, END], 3, "", "ended in the middle of its thought"),
        ([7, 7, 7, *shut, 8], None, "", "no budget"),
        ([7, 7], 10**9, "", "a budget beyond everything"),
        ([], 1, "", "nothing"),
    ]
    for reply, budget, due, note in cases:
        forced = find_forced(CLOSING, [1, OPEN, LINE], reply, budget)
        assert forced == [x == "x" for x in due.ljust(len(reply))], note
        for length, token in enumerate(reply):  # the same, asked token by token
            expected = token if forced[length] else None
            assert forced_token(CLOSING, reply[:length], budget) == expected, note
    assert not any(find_forced(CLOSING, [1, OPEN, CLOSE], [7] * 9, 3))  # a prompt that has closed its thought
    assert not any(find_forced(CLOSING, [1, 2], [7] * 9, 3))


def test_each_turn_has_the_budget_and_what_stands_between_is_not_forced():
    first, result, second = [7, 7, LINE, CLOSE, LINE, 8, END], [50, OPEN, LINE], [7, 7, 7, LINE, CLOSE, LINE, 8]
    own = [1] * 7 + [0] * 3 + [1] * 7
    forced = find_forced(CLOSING, [1, OPEN, LINE], first + result + second, 2, own)
    assert "".join(" x"[each] for each in forced) == "  xxx       xxx  "  # behind two tokens of each
    without = find_forced(CLOSING, [1, OPEN, CLOSE], first + [50, OPEN, CLOSE] + second, 2, own)
    assert not any(without)  # no turn thinks


def test_a_template_without_a_line_break_forces_the_tag_alone():
    closing = Closing([CLOSE], OPEN, CLOSE)
    assert closing.cut([7, 7], 2) == [CLOSE] and closing.cut([LINE, LINE], 2) == [CLOSE]
    assert count_thinking(closing, [7, 7, CLOSE, 8], True) == 2


def test_thinking_is_counted_as_the_reward_counts_it():
    rng = random.Random(0)
    for _ in range(3000):
        reply = rng.choices([7, OPEN, CLOSE, LINE], [4, 1, 2, 2], k=rng.randrange(9))
        opened = rng.random() < 0.5
        paid = thinking_tokens(reply, OPEN, CLOSE, opened)
        counted = count_thinking(CLOSING, reply, opened)
        assert counted == paid if paid is not None else counted >= 0, (reply, opened)
    assert count_thinking(CLOSING, [7] * 9, True) == 9  # cut while it thinks


def test_room_for_an_answer_is_required():
    tokenizer = load_tokenizer(config.Policy())
    for budgets in ([None], [], [36], [None, 5]):
        require_room(tokenizer, budgets, 40, "grpo.max_completion_length")
    for budget in (37, 40, 10**9):
        with pytest.raises(ValueError, match=f"is {budget} tokens and grpo.max_completion_length is 40.*takes 3 more"):
            require_room(tokenizer, [None, budget], 40, "grpo.max_completion_length")


def same_and_cut(base, replies, budget):
    """How many replies were within the budget and stayed as they are, and how many were cut."""
    same = cut = 0
    for before, after in zip(base, replies, strict=True):
        place = before.index(CLOSE) if CLOSE in before else len(before)
        if place <= budget:
            assert after == before
            same += 1
        else:
            assert after[:budget] == before[:budget]
            forced = find_forced(CLOSING, [OPEN], after, budget)
            assert CLOSING.cut(after, budget) == [token for token, f in zip(after, forced) if f]
            cut += 1
    return same, cut


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_a_thought_within_the_budget_stays_token_for_token_and_a_longer_one_is_cut(tiny_policy, prompts, temperature):
    base = sample(tiny_policy, prompts, None, temperature=temperature)
    assert sample(tiny_policy, prompts, [None] * 12, temperature=temperature) == base
    found = {b: same_and_cut(base, sample(tiny_policy, prompts, [b] * 12, temperature=temperature), b) for b in (6, 14)}
    assert found[6] == (0, 12) and sum(found[14]) == 12 and found[14][0] > 0
    mixed = sample(tiny_policy, prompts, [6, None, 400] * 4, temperature=temperature)
    assert mixed[1::3] == base[1::3] and mixed[2::3] == base[2::3]
    assert same_and_cut(base[::3], mixed[::3], 6) == (0, 4)


@pytest.mark.parametrize("budget", [1, 36])
def test_every_reply_answers(tiny_policy, prompts, budget):
    for ids in sample(tiny_policy, prompts, [budget] * 12, length=48):
        reply = tiny_policy[1].decode(ids)
        assert "\n</think>\n" in reply and reply.endswith("<|im_end|>") and reply.count("</think>") == 1


def test_without_room_a_cut_thought_ends_where_the_room_ends(tiny_policy, prompts):
    base = sample(tiny_policy, prompts, None, length=8)
    assert [sample(tiny_policy, prompts, [b] * 12, length=8) == base for b in (8, 9, 1000)] == [True] * 3
    for ids in sample(tiny_policy, prompts, [6] * 12, length=8):
        assert ids[6:] in ([LINE, CLOSE], [CLOSE, LINE]) and len(ids) == 8


def test_a_prompt_that_does_not_think_is_left_alone(tiny_policy, prompts):
    quiet = [encode_prompt(tiny_policy[1], build_messages(text), False) for text in QUESTIONS]
    assert sample(tiny_policy, quiet, [2] * 12) == sample(tiny_policy, quiet, None)
    assert make_limits(tiny_policy[1], [*quiet[:2], prompts[0]], [2, None, 2]).budgets == [None, None, 2]


def batch_of(tokenizer, prompts):
    return tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")


@pytest.mark.parametrize("sampling", [{}, {"top_k": 5, "top_p": 0.9}, {"min_p": 0.05}, {"do_sample": False}], ids=str)
def test_transformers_own_loop_forces_the_same_tokens(tiny_policy, prompts, sampling, monkeypatch):
    model, tokenizer = tiny_policy
    settings = {"do_sample": True, "top_k": 0, "max_new_tokens": 40, "eos_token_id": [END], "pad_token_id": 0}
    limits, replies = Limits(CLOSING, [None, 6, 13, 1, 400] * 2 + [9, 9]), []
    for own in (True, False):
        if not own:
            monkeypatch.setattr(generation_loop, "can_decode", lambda *_: False)
        torch.manual_seed(5)
        with generation_loop.row_limits(model, [40] * 12, limits):
            replies.append(model.generate(**batch_of(tokenizer, prompts), **settings | sampling))
        assert (model.last_sampling is not None) is own and model.thinking_limits is None
    assert torch.equal(*replies)
    width = max(map(len, prompts))
    rows = [row[width:].tolist() for row in replies[0]]
    assert all(CLOSING.cut(rows[i], 6)[-2:] == rows[i][6:9][-2:] or CLOSE in rows[i][:9] for i in (1, 6))


def test_a_reply_that_is_shown_while_it_is_written_is_the_same(tiny_policy, prompts):
    model, tokenizer = tiny_policy
    plain = sample(tiny_policy, prompts[:1], [6])
    assert sample(tiny_policy, prompts[:1], [6], streamer=TextStreamer(tokenizer, skip_prompt=True)) == plain


def test_a_full_batch_forces_the_same_tokens(tiny_policy, prompts):
    model, budgets = tiny_policy[0], [None, 6, 13, 1, 400, 8] * 2
    limits = Limits(CLOSING, budgets)
    told = {"do_sample": False, "thinking": limits}
    together = continuous_batch.sample_rows(model, prompts, [40] * 12, [END], 0, 4, **told)
    for prompt, budget, ids in zip(prompts, budgets, together, strict=True):
        assert sample(tiny_policy, [prompt], [budget], temperature=0.0) == [ids]
    drawn = sample(tiny_policy, prompts, [6] * 12, batch_size=4)
    assert all(ids[6:8] == [LINE, CLOSE] or ids[5:7] == [LINE, CLOSE] for ids in drawn)
    far = sample(tiny_policy, prompts, [37] * 12, batch_size=4)  # no thought is as long as that
    assert far == sample(tiny_policy, prompts, None, batch_size=4)


def test_log_probs_of_forced_tokens_are_zero_and_the_others_are_the_policys_own(tiny_policy, prompts):
    model, tokenizer = tiny_policy
    inputs = batch_of(tokenizer, prompts)
    model.keep_logps = True
    try:
        torch.manual_seed(5)
        with generation_loop.row_limits(model, [40] * 12, Limits(CLOSING, [6] * 12)):
            ids = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=40, pad_token_id=0)
    finally:
        model.keep_logps = False
    width, kept = inputs["input_ids"].shape[1], model.last_sampling.logps
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(ids[:, width:])], 1)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits[:, width - 1 : -1]
    true = logits.log_softmax(-1).gather(2, ids[:, width:, None])[..., 0]
    compared = 0
    for row, reply in enumerate(ids[:, width:].tolist()):
        reply = reply[: reply.index(END) + 1] if END in reply else reply
        forced = torch.tensor(find_forced(CLOSING, prompts[row], reply, 6))
        mine = kept[row, : len(reply)]
        assert forced.any() and (mine[forced] == 0).all() and (true[row, : len(reply)][forced] < -0.1).any()
        assert torch.allclose(mine[~forced], true[row, : len(reply)][~forced], atol=1e-4)
        compared += int((~forced).sum())
    assert compared > 100


def test_completions_of_rows_have_their_budgets_on_any_number_of_portions(tiny_policy):
    conversations, settings = [build_messages(text) for text in QUESTIONS], config.Evaluation(max_completion_length=40)
    samples = episodes.sample_completions(*tiny_policy, conversations, settings, 1, budgets=[None, 7] * 6)
    plain = episodes.sample_completions(*tiny_policy, conversations, settings, 1)
    assert samples[::2] == plain[::2]
    assert all(len(each.text.partition("</think>")[0].strip()) <= 7 for each in samples[1::2])


def test_whether_a_thought_is_open_is_read_from_the_last_tag():
    cases = {(): False, (OPEN,): True, (OPEN, CLOSE): False, (CLOSE, 7, OPEN, LINE): True, (OPEN, 7, CLOSE, 9): False}
    assert {ids: is_open(CLOSING, ids) for ids in cases} == cases
