"""More prompts than the batch holds: each gets the completion that it gets alone, and the batch stays full."""

import copy
import functools

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from grpo_kit import config
from grpo_kit.nemotron.decoding import one_token
from grpo_kit.policy import continuous_batch, generate
from grpo_kit.policy.chat import encode_prompt
from grpo_kit.runs import interrupts
from tests.helpers.experts import load_tiered
from tests.helpers.memory import raise_at

QUESTIONS = [f"What is {n} + {n % 7 + 20}?" for n in range(40, 48)] + ["And tell me: what is 90 - 12?", "What is 1?"]
ENDS = [2, 11]
LIMITS = [5, 40, 9, 22, 1, 40, 13, 3, 40, 17]  # greedy completions have 27 tokens, so these end at different steps


@pytest.fixture(scope="module")
def prompts(tiny_policy):
    return [encode_prompt(tiny_policy[1], [{"role": "user", "content": text}], True) for text in QUESTIONS]


@pytest.fixture(scope="module")
def alone(tiny_policy, prompts):
    return [greedy(tiny_policy[0], [prompt], together=1)[0] for prompt in prompts]


def greedy(model, prompts, together, limits=None, **options):
    limits = limits or [40] * len(prompts)
    return continuous_batch.sample_rows(model, prompts, limits, ENDS, 0, together, do_sample=False, **options)


def drawn(model, prompts, together, seed, **settings):
    torch.manual_seed(seed)
    settings = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0} | settings
    return continuous_batch.sample_rows(model, prompts, [40] * len(prompts), ENDS, 0, together, **settings)


@pytest.fixture
def rows(monkeypatch):
    """Rows of the batch at each decoding step."""
    seen, step = [], one_token.Decoder.step
    monkeypatch.setattr(one_token.Decoder, "step", lambda self, tokens: seen.append(len(tokens)) or step(self, tokens))
    return seen


@pytest.mark.slow
def test_alone_a_prompt_gets_what_transformers_gives_it(tiny_policy, prompts, alone):
    model = tiny_policy[0]
    for prompt, ids in list(zip(prompts, alone))[-3:]:
        theirs = type(model).generate(
            model, torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False,
            max_new_tokens=40, eos_token_id=ENDS, pad_token_id=0,
        )  # fmt: skip
        assert theirs[0, len(prompt) :].tolist() == ids


@pytest.mark.slow
@pytest.mark.parametrize("together", [2, 4, 9, 10, 64])
def test_a_completion_does_not_depend_on_who_shares_the_batch(tiny_policy, prompts, alone, together):
    expected = [ids[:limit] for ids, limit in zip(alone, LIMITS)]
    assert greedy(tiny_policy[0], prompts, together, LIMITS) == expected
    assert greedy(tiny_policy[0], prompts[::-1], together, LIMITS[::-1]) == expected[::-1]


@pytest.mark.slow
def test_the_batch_stays_full_until_no_prompt_waits(tiny_policy, prompts, rows):
    finished = []
    greedy(tiny_policy[0], prompts * 3, 4, LIMITS * 3, on_finish=finished.append)
    assert finished == sorted(finished) and finished[-1] == 30 and len(finished) > 15
    full = rows[:-27]  # no row takes more steps than that, so until then some prompt waited
    assert len(full) > 60 and set(full) == {4}


def test_prompts_are_read_when_a_quarter_of_the_batch_is_free(tiny_policy, prompts, rows):
    limits = [3, 5, 7, 9, 11, 13, 15, 17, 19, 21]
    greedy(tiny_policy[0], prompts, 8, limits)
    # one row ends with its 3rd token, the next with its 5th: then two are read; nothing waits any more
    assert rows[:5] == [8, 8, 7, 7, 8]


def test_equal_prompts_are_read_once(tiny_policy, prompts, monkeypatch):
    model, read = tiny_policy[0], []
    forward = type(model).forward

    @functools.wraps(forward)  # transformers looks at the signature
    def spy(self, input_ids, **inputs):
        read.append(len(input_ids))
        return forward(self, input_ids, **inputs)

    monkeypatch.setattr(type(model), "forward", spy)
    completions = greedy(model, [prompts[0]] * 3 + [prompts[9]] + [prompts[0]] * 2, 4)
    assert read[:1] == [2] and len(set(map(tuple, completions))) == 2


@pytest.mark.slow
def test_a_seed_fixes_the_draw(tiny_policy, prompts):
    model = tiny_policy[0]
    first, again, other = (drawn(model, prompts, 3, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(map(tuple, drawn(model, [prompts[0]] * 12, 4, 1)))) > 6


@pytest.mark.slow
def test_the_settings_of_sampling_are_used(tiny_policy, prompts, alone):
    model = tiny_policy[0]
    assert drawn(model, prompts, 3, 1, top_k=1) == alone
    assert drawn(model, prompts, 3, 1, top_p=1e-6) == alone
    assert drawn(model, prompts, 3, 1, temperature=1e-4) == alone


def test_what_needs_the_tokens_of_each_row_is_left_to_batches(tiny_policy, prompts):
    assert drawn(tiny_policy[0], prompts, 3, 1, repetition_penalty=1.5) is None


@pytest.mark.parametrize("setting", [{"num_beams": 3}, {"max_time": 60.0}, {"penalty_alpha": 0.6, "top_k": 4}], ids=str)
def test_a_search_that_the_models_own_settings_ask_for_is_left_to_batches(tiny_policy, prompts, setting, monkeypatch):
    model = tiny_policy[0]
    chosen = copy.deepcopy(model.generation_config)
    chosen.update(**setting)
    monkeypatch.setattr(model, "generation_config", chosen)
    assert greedy(model, prompts, 3) is None


def test_a_trained_prompt_is_left_to_batches(tiny_policy, prompts):
    model = get_peft_model(
        copy.deepcopy(tiny_policy[0]), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    )
    assert greedy(model, prompts, 3) is None


def test_another_model_is_sampled_batch_by_batch(prompts):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=300, **sizes)).eval()
    assert greedy(model, prompts, 3) is None


@pytest.mark.slow
def test_the_engine_samples_what_does_not_fit_a_batch_by_turns(tiny_policy, prompts, alone, monkeypatch):
    settings = config.Evaluation(max_completion_length=40, temperature=0.0, batch_size=3)
    engine, counts = generate.TransformersEngine(*tiny_policy, settings), []
    samples = engine(prompts, 1, on_finish=counts.append)
    assert [sample.tokens for sample in samples] == list(map(len, alone)) and counts == [3, 6, 9, 10]
    counts.clear()
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_sample_batch", lambda *_: pytest.fail("sampled batch by batch"))
        assert engine(prompts, 1) == samples
    monkeypatch.setattr(continuous_batch, "sample_rows", lambda *_, **__: None)
    assert engine(prompts, 1, on_finish=counts.append) == samples and counts == [3, 6, 9, 10]


@pytest.mark.slow
def test_out_of_memory_begins_again_with_the_same_completions(prompts, monkeypatch):
    model, _ = load_tiered(0.0)
    expected = drawn(model, prompts, 3, 1)
    calls = raise_at(monkeypatch, one_token.Decoder, "step", 7)
    with pytest.warns(UserWarning, match="out of memory while sampling"):
        assert drawn(model, prompts, 3, 1) == expected
    assert len(calls) > 14


def test_an_interrupt_ends_it(tiny_policy, prompts, monkeypatch):
    def check():
        raise KeyboardInterrupt

    monkeypatch.setattr(interrupts, "check", check)
    with pytest.raises(KeyboardInterrupt):
        greedy(tiny_policy[0], prompts, 3)


def test_batch_by_batch_a_long_prompt_gets_no_more_steps_than_its_own_limit(tiny_policy, prompts, monkeypatch):
    monkeypatch.setattr(continuous_batch, "sample_rows", lambda *_, **__: None)
    longest, shortest = max(prompts, key=len), min(prompts, key=len)
    room = len(longest) + 2
    settings, limits = config.Evaluation(max_completion_length=9, temperature=0.0, batch_size=1), []
    engine = generate.TransformersEngine(*tiny_policy, settings, max_model_len=room)
    sample = engine._sample_batch
    monkeypatch.setattr(engine, "_sample_batch", lambda *told: limits.append(told[1]) or sample(*told))
    engine([longest, shortest], 1)
    assert limits == [[2], [min(9, room - len(shortest))]]
