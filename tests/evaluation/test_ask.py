"""A question of one's own: who answers, with what adapter, with or without thinking, and what is shown meanwhile."""

from dataclasses import replace

import pytest
import torch

from grpo_kit import config
from grpo_kit.evaluation.ask import ask, load_trained
from grpo_kit.policy.chat import build_messages
from grpo_kit.policy.episodes import sample_completions
from grpo_kit.runs.run import find_run

QUESTION = "What is 47 + 38?"


@pytest.fixture(scope="module")
def both(trained):
    chosen, run = trained
    return *load_trained(chosen, run), chosen


@pytest.mark.slow
def test_the_untrained_policy_answers_without_the_adapter_and_the_trained_one_with_it(both, tiny_policy):
    model, tokenizer, chosen = both
    # Four steps change little, so here the adapter says something else.
    pairs = [value.data for name, value in model.named_parameters() if "lora_B" in name]
    trained_pairs = [pair.clone() for pair in pairs]
    for pair in pairs:
        pair.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
    replies = ask(model, tokenizer, chosen, QUESTION)
    assert list(replies) == ["untrained", "trained"]
    messages = build_messages(QUESTION, chosen.data.prompt_suffix, chosen.data.system_prompt)
    for reply, policy in zip(replies.values(), (tiny_policy[0], model), strict=True):
        settings, seed = chosen.evaluation, chosen.run.seed
        assert reply == sample_completions(policy, tokenizer, [messages], settings, seed, True)[0]
    assert replies["untrained"] != replies["trained"]
    for pair, trained_pair in zip(pairs, trained_pairs, strict=True):
        pair.copy_(trained_pair)  # other tests ask this policy too


@pytest.mark.slow
def test_the_reply_is_shown_while_it_is_written(both):
    model, tokenizer, chosen = both
    shown = []
    replies = ask(model, tokenizer, chosen, QUESTION, show=lambda name, text: shown.append((name, text)))
    for name, reply in replies.items():
        texts = [text for who, text in shown if who == name]
        assert len(texts) > 3 and all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:]))
        assert texts[-1] == reply.text
    assert [name for name, _ in shown] == sorted((name for name, _ in shown), reverse=True)  # untrained, then trained


def test_a_run_without_an_adapter_has_one_policy_to_ask(tmp_path):
    chosen = config.load_config(["tiny"], ["evaluation.max_completion_length=4"])
    model, tokenizer = load_trained(chosen, find_run("new", tmp_path))
    assert list(ask(model, tokenizer, chosen, QUESTION)) == ["untrained"]


def test_thinking_is_switched_for_the_question(tiny_policy, monkeypatch):
    chosen, prompts = config.load_config(["tiny"], ["evaluation.max_completion_length=2"]), []
    monkeypatch.setattr(
        "grpo_kit.policy.generate.TransformersEngine.__call__",
        lambda engine, ids, seed, streamer: prompts.append(engine.tokenizer.decode(ids[0])) or ["a reply"],
    )
    off = replace(chosen, policy=replace(chosen.policy, enable_thinking=False))
    for settings, thinking in ((chosen, None), (chosen, False), (off, None), (off, True)):
        assert ask(*tiny_policy, settings, QUESTION, thinking) == {"untrained": "a reply"}
    assert [prompt.endswith("<think>\n") for prompt in prompts] == [True, False, False, True]


def test_a_thought_is_cut_for_the_question_or_as_the_run_does(tiny_policy):
    chosen = config.load_config(["tiny"], ["evaluation.max_completion_length=40"])
    own, shown = replace(chosen, policy=replace(chosen.policy, thinking_budget="9")), []
    told = {"thinking_budget": 5, "show": lambda name, text: shown.append(text)}
    for settings, more, length in ((chosen, told, 5), (own, told, 5), (own, {}, 9)):
        reply = ask(*tiny_policy, settings, QUESTION, **more)["untrained"]
        assert reply.text.partition("</think>")[0].removesuffix("\n") in ("looks like"[:length], "7+8=15 4+3"[:length])
        assert reply.finished and "boxed{" in reply.text
    assert "</think>" in shown[-1]
    with pytest.raises(ValueError, match="37 tokens and evaluation.max_completion_length is 40"):
        ask(*tiny_policy, chosen, QUESTION, thinking_budget=37)


@pytest.mark.parametrize("question", ["", " \n\t"])
def test_an_empty_question_is_refused_before_anything_is_loaded(question):
    with pytest.raises(ValueError, match="The question is empty"):
        ask(None, None, None, question)


def test_a_number_is_no_question():
    with pytest.raises(TypeError, match="question is 5"):
        ask(None, None, None, 5)
