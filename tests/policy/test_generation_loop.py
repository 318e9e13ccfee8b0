"""The same tokens as transformers' own loop, from fewer rows: prompts read once, finished sequences gone."""

import copy
import types

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LogitsProcessorList, Qwen3Config, StoppingCriteriaList, TextStreamer

from grpo_kit import config
from grpo_kit.adapters import lora
from grpo_kit.data.preparation import prepare
from grpo_kit.nemotron.decoding import one_token
from grpo_kit.planning.model_size import Alive
from grpo_kit.policy import episodes, generation_loop
from grpo_kit.policy.load import load_policy, load_tokenizer
from grpo_kit.runs.run import find_run
from grpo_kit.training import train
from grpo_kit.training.grpo import worst_step
from tests.helpers.experts import load_tiered
from tests.helpers.memory import raise_at
from tests.helpers.settings import SMALL

QUESTIONS = [f"What is {n} + {n % 7 + 20}?" for n in range(40, 48)]


def ask(tokenizer, which):
    """Left-padded ids and mask of questions by number; 8 is one that is longer than the others."""
    turns = [[{"role": "user", "content": "And tell me: what is 90 - 12?" if i == 8 else QUESTIONS[i]}] for i in which]
    return tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=True, padding=True, return_tensors="pt"
    )


def theirs(model, seed=1, **settings):
    torch.manual_seed(seed)
    return type(model).generate(model, **settings)


def ours(model, seed=1, **settings):
    torch.manual_seed(seed)
    return model.generate(**settings)


class Rows:
    """Rows of the batch at each forward call, and positions of the logits where it was transformers' own.

    `decoded` counts the calls of the decoder.
    """

    def __init__(self):
        self.batch, self.positions, self.decoded = [], [], 0
        self.plain = generation_loop._forward, one_token.Decoder.step
        generation_loop._forward, one_token.Decoder.step = self.forward, lambda *args: self.step(*args)

    def forward(self, model, input_ids, inputs, **step):
        hook = model.register_forward_hook(lambda module, args, out: self.positions.append(out.logits.shape[1]))
        self.batch.append(len(input_ids))
        result = self.plain[0](model, input_ids, inputs, **step)
        hook.remove()
        return result

    def step(self, decoder, tokens):
        self.decoded += 1
        self.batch.append(len(tokens))
        return self.plain[1](decoder, tokens)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        generation_loop._forward, one_token.Decoder.step = self.plain


class EndsAfter:
    """A stopping criterion by row: row i ends when it has drawn `lengths[i]` tokens."""

    def __init__(self, prompt, lengths):
        self.prompt, self.lengths = prompt, torch.tensor(lengths)

    def __call__(self, input_ids, scores, **kwargs):
        assert len(input_ids) == len(self.lengths)  # the whole batch, or it would be other rows' lengths
        return input_ids.shape[1] - self.prompt >= self.lengths


# Every row of the tables: what is asked of `generate` beside the prompts.
GREEDY = [
    {},
    {"max_new_tokens": 1},
    {"max_new_tokens": 2, "min_new_tokens": 2},
    {"eos_token_id": [11, 16 + ord("=") - ord("!")]},  # a second end, which comes early
    {"eos_token_id": None},
    {"min_new_tokens": 38},
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 2},
    {"encoder_repetition_penalty": 1.5},  # a processor that holds the prompts, row by row
    {"suppress_tokens": [11]},
    {"pad_token_id": 7},
]


@pytest.mark.slow
@pytest.mark.parametrize("which", [[0], [0, 0, 0, 0], [8, 0, 1, 0, 8, 8, 2, 0], [3, 8, 1]])
@pytest.mark.parametrize("settings", GREEDY, ids=str)
def test_greedy_tokens_equal_transformers_own(tiny_policy, settings, which):
    model, tokenizer = tiny_policy
    settings = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0} | settings
    inputs = ask(tokenizer, which)
    assert torch.equal(ours(model, **inputs, **settings), theirs(model, **inputs, **settings))
    assert model.last_sampling.prompts == len(set(which)) and model.last_sampling.rows == len(which)


SAMPLED = [
    {},
    {"temperature": 0.7, "top_k": 5},
    {"top_p": 0.9, "min_p": 0.02},
    {"typical_p": 0.9, "epsilon_cutoff": 1e-3},
    {"num_return_sequences": 5},
    {"repetition_penalty": 1.2, "min_new_tokens": 12},
]


@pytest.mark.slow
@pytest.mark.parametrize("settings", SAMPLED, ids=str)
def test_the_same_seed_draws_what_transformers_draws_with_duplicates_and_early_ends(tiny_policy, settings):
    model, tokenizer = tiny_policy
    settings = {"max_new_tokens": 36, "do_sample": True, "top_k": 0, "pad_token_id": 0} | settings
    inputs = ask(tokenizer, [0, 8, 0, 1, 1, 0, 0, 2, 8, 0])
    drawn = ours(model, **inputs, **settings)
    assert torch.equal(drawn, theirs(model, **inputs, **settings))
    seen = model.last_sampling
    assert seen.prompts == 4 and seen.row_steps < seen.row_steps_of_all
    assert not torch.equal(drawn, ours(model, seed=2, **inputs, **settings))


@pytest.mark.slow
def test_rows_of_one_prompt_are_drawn_independently_from_its_distribution(tiny_policy):
    model, tokenizer = tiny_policy
    rows = 4000
    inputs = ask(tokenizer, [0] * rows)
    first = ours(model, **inputs, max_new_tokens=2, do_sample=True, top_k=0, temperature=2.0)[:, -2:]
    with torch.inference_mode():
        expected = rows * (model(inputs["input_ids"][:1]).logits[0, -1] / 2.0).softmax(-1)
    counts = torch.bincount(first[:, 0], minlength=len(expected))
    often = expected >= 5
    observed = torch.cat([counts[often], counts[~often].sum()[None]])
    expected_counts = torch.cat([expected[often], expected[~often].sum()[None]])
    freedom = len(expected_counts) - 1
    chi2 = ((observed - expected_counts) ** 2 / expected_counts).sum().item()
    assert freedom >= 5 and chi2 < freedom + 4 * (2 * freedom) ** 0.5
    assert model.last_sampling.prompts == 1
    neighbours = (first[:-1, 0] == first[1:, 0]).float().mean().item()  # equal as often as two independent draws
    assert neighbours == pytest.approx(((expected / rows) ** 2).sum().item(), abs=0.04)


TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def random_model(kind):
    """A causal model without Mamba; `sliding` has a window shorter than the prompt, in one layer of two."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model_config = {
        "llama": LlamaConfig(**TINY, num_hidden_layers=2),
        "qwen3": Qwen3Config(**TINY, num_hidden_layers=2, head_dim=8),
        "sliding": Qwen3Config(
            **TINY, num_hidden_layers=2, head_dim=8, use_sliding_window=True, sliding_window=4,
            layer_types=["sliding_attention", "full_attention"],
        ),
    }[kind]  # fmt: skip
    return generation_loop.install_loop(
        AutoModelForCausalLM.from_config(model_config, attn_implementation="eager").eval()
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen3", "sliding"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_models_with_attention_alone(kind, do_sample):
    model = random_model(kind)
    ids = torch.randint(3, 64, (3, 9))[[0, 1, 0, 2, 2, 0]]
    mask = torch.ones_like(ids)
    mask[2, :4] = 0  # the tokens of rows 0 and 5, but another prompt
    mask[3:5, :2] = 0
    settings = {"max_new_tokens": 24, "do_sample": do_sample, "eos_token_id": list(range(40, 48)), "pad_token_id": 0}
    drawn = ours(model, input_ids=ids, attention_mask=mask, **settings)
    assert torch.equal(drawn, theirs(model, input_ids=ids, attention_mask=mask, **settings))
    seen = model.last_sampling
    assert seen.prompts == 4 and (not do_sample or seen.row_steps < seen.row_steps_of_all)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"dtype": "float16"}, {"load_in_4bit": True, "experts_on_host": 0.5}], ids=str)
def test_half_precision_and_4_bit(settings):
    model, tokenizer = load_policy(config.Policy(**settings))
    inputs = ask(tokenizer, [0, 8, 0, 1])
    drawn = {}
    for name, run in (("ours", ours), ("theirs", theirs)):
        drawn[name] = run(model, **inputs, max_new_tokens=24, do_sample=False, pad_token_id=0)[
            :, inputs["input_ids"].shape[1] :
        ]
    if settings.get("load_in_4bit"):
        assert torch.equal(drawn["ours"], drawn["theirs"])
    else:  # rounding to 16 bit depends on the batch, and may flip a near tie
        assert (drawn["ours"] == drawn["theirs"]).float().mean() > 0.9


@pytest.mark.slow
def test_the_prompt_is_read_once_and_the_finished_leave(tiny_policy):
    """Eight groups of eight, as TRL asks: the model sees 8 rows, then 64, then fewer and fewer."""
    model, tokenizer = tiny_policy
    inputs = ask(tokenizer, [i // 8 for i in range(64)])
    with Rows() as seen:
        drawn = ours(model, **inputs, max_new_tokens=40, do_sample=True, pad_token_id=0)
    assert seen.batch[:2] == [8, 64] and seen.batch[1:] == sorted(seen.batch[1:], reverse=True) and seen.batch[-1] < 32
    assert set(seen.positions) == {1}  # no logits but the last position's
    completions = drawn[:, inputs["input_ids"].shape[1] :]
    tokens = (completions == 11).int().cumsum(1).clamp(max=1).logical_not().sum().item() + (completions == 11).any(
        1
    ).sum().item()
    steps = completions.shape[1] - 1
    assert model.last_sampling == generation_loop.SamplingStats(64, 8, tokens, sum(seen.batch[1:]), 64 * steps)


def test_a_row_is_left_when_its_idle_steps_have_cost_what_leaving_costs(tiny_policy):
    model, tokenizer = tiny_policy
    inputs = ask(tokenizer, [0] * 8)
    ends = StoppingCriteriaList([EndsAfter(inputs["input_ids"].shape[1], [4, 2, 3, 1, 5, 8, 7, 6])])
    settings = {
        "max_new_tokens": 12,
        "do_sample": True,
        "stopping_criteria": ends,
        "pad_token_id": 0,
        "suppress_tokens": [11],
    }
    with Rows() as seen:
        drawn = ours(model, **inputs, **settings)
    # Going on after each step: 7, 6, 5, 4, 3, 2, 1 rows. Idle so far: 1, then 1 + 2, then 1 + 2 + 3 >= 5 that stay.
    assert seen.batch == [1, 8, 8, 5, 5, 3, 3, 1]
    assert model.last_sampling.tokens == sum(range(1, 9)) == (drawn[:, inputs["input_ids"].shape[1] :] != 0).sum()
    assert torch.equal(drawn, theirs(model, **inputs, **settings))


def test_the_states_of_rows_that_left_are_freed(tiny_policy, monkeypatch):
    """`generate` holds the cache to the end of the call, so the decoder takes its tensors out of it."""
    model, tokenizer = tiny_policy
    inputs, seen, step = ask(tokenizer, [0] * 64), [], one_token.Decoder.step
    ends = StoppingCriteriaList([EndsAfter(inputs["input_ids"].shape[1], [2] * 60 + [4] * 4)])
    held = Alive([*model.parameters(), *model.buffers()])
    monkeypatch.setattr(
        one_token.Decoder, "step", lambda self, tokens: seen.append((len(tokens), held.now)) or step(self, tokens)
    )
    with held:
        ours(model, **inputs, max_new_tokens=5, do_sample=False, stopping_criteria=ends, pad_token_id=0)
    (full, of_64), *_, (few, of_4) = seen
    assert (full, few) == (64, 4) and of_4 < of_64 / 8


def test_half_of_the_rows_leave_at_once(tiny_policy):
    model, tokenizer = tiny_policy
    inputs = ask(tokenizer, [0, 1] * 4)
    ends = StoppingCriteriaList([EndsAfter(inputs["input_ids"].shape[1], [2, 4] * 4)])
    with Rows() as seen:
        ours(model, **inputs, max_new_tokens=9, stopping_criteria=ends, pad_token_id=0, suppress_tokens=[11])
    assert seen.batch == [2, 8, 4, 4]


def test_without_an_end_token_a_finished_row_goes_on_as_in_transformers(tiny_policy):
    model, tokenizer = tiny_policy
    inputs = ask(tokenizer, [0, 0, 1])
    ends = StoppingCriteriaList([EndsAfter(inputs["input_ids"].shape[1], [2, 4, 6])])
    settings = {
        "max_new_tokens": 9,
        "do_sample": True,
        "eos_token_id": None,
        "stopping_criteria": ends,
        "pad_token_id": 0,
    }
    model.generation_config.eos_token_id, kept = None, model.generation_config.eos_token_id
    try:
        drawn = ours(model, **inputs, **settings)
        assert torch.equal(drawn, theirs(model, **inputs, **settings))
    finally:
        model.generation_config.eos_token_id = kept
    assert model.last_sampling.row_steps == model.last_sampling.row_steps_of_all == 15


@pytest.mark.slow
def test_processors_and_constraints_meet_every_row_in_its_place(tiny_policy):
    model, tokenizer = tiny_policy
    inputs = ask(tokenizer, [0, 8, 0, 0, 1, 8])
    shapes = []

    def by_row(input_ids, scores):  # forbids in each row what another may say, and counts on its place in the batch
        shapes.append(tuple(scores.shape[:1]) + tuple(input_ids.shape[:1]))
        scores[torch.arange(6), torch.arange(6) + 40] = -float("inf")
        return scores

    settings = {
        "max_new_tokens": 30, "do_sample": True, "pad_token_id": 0, "logits_processor": LogitsProcessorList([by_row]),
        "prefix_allowed_tokens_fn": lambda row, ids: [11, *range(16 + row, 272)],
    }  # fmt: skip
    assert torch.equal(ours(model, **inputs, **settings), theirs(model, **inputs, **settings))
    assert set(shapes) == {(6, 6)} and model.last_sampling.row_steps < model.last_sampling.row_steps_of_all


# What is left to transformers, which must answer as if we were not there.
LEFT = {
    "beams": {"num_beams": 2, "do_sample": False},
    "a dictionary": {"return_dict_in_generate": True, "output_scores": True},
    "a static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "prefill in chunks": {"prefill_chunk_size": 16},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
    "stop strings": {"stop_strings": ["="]},
    "a loop of the caller's": {"custom_generate": lambda model, input_ids, **_: input_ids + 1},
}


@pytest.mark.parametrize("what", LEFT)
def test_what_is_not_plain_sampling_is_left_to_transformers(what):
    model = random_model("llama")
    settings = {"input_ids": torch.arange(20, 28).repeat(1 if what == "prompt lookup" else 2, 1), "do_sample": True}
    settings |= {"max_new_tokens": 6, "eos_token_id": 3, "pad_token_id": 0} | LEFT[what]
    if what == "stop strings":
        settings["tokenizer"] = load_tokenizer(config.Policy())
    model.last_sampling = "of an earlier call"
    drawn, expected = ours(model, **settings), theirs(model, **settings)
    assert model.last_sampling is None
    if what == "a dictionary":
        assert len(drawn.scores) == len(expected.scores) == drawn.sequences.shape[1] - 8
        drawn, expected = drawn.sequences, expected.sequences
    assert torch.equal(drawn, expected)


def test_the_callers_cache_embeddings_and_streamer_are_left_to_transformers(capsys):
    model = random_model("llama")
    ids = torch.arange(20, 28).repeat(2, 1)
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    expected = theirs(model, input_ids=ids, **settings)
    cache = DynamicCache(config=model.config)
    assert torch.equal(ours(model, input_ids=ids, past_key_values=cache, **settings), expected)
    assert cache.get_seq_length() == 11 and len(cache.layers[0].keys) == 2  # as the caller may count on
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(ours(model, inputs_embeds=embedded, **settings), expected[:, 8:])
    assert model.last_sampling is None
    one = ours(model, inputs=ids[:1], streamer=TextStreamer(load_tokenizer(config.Policy())), **settings)
    assert torch.equal(one, expected[:1]) and model.last_sampling is None
    assert len(capsys.readouterr().out.strip("\n")) >= 1


def test_caches_and_inputs_that_cannot_be_taken_row_by_row_are_left_to_transformers():
    model, ids = random_model("llama"), torch.ones(2, 3, dtype=torch.long)
    inputs = {"past_key_values": DynamicCache(config=model.config), "use_cache": True, "attention_mask": ids}
    prepared = copy.deepcopy(model.generation_config)
    prepared._pad_token_tensor = torch.tensor(0)  # as `generate` leaves it
    assert generation_loop.can_decode(model, ids, prepared, inputs)
    for other in (torch.ones(2, 3, 4), torch.ones(3), ["a", "b"]):
        assert not generation_loop.can_decode(model, ids, prepared, inputs | {"pictures": other})
    inputs["past_key_values"].offloading = True  # set by hand: to make such a cache takes a GPU
    assert not generation_loop.can_decode(model, ids, prepared, inputs)


def test_inputs_and_configuration_may_come_by_position():
    model = random_model("llama")
    ids = torch.arange(20, 28).repeat(2, 1)
    settings = copy.deepcopy(model.generation_config)
    settings.update(max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(model.generate(ids, settings), theirs(model, inputs=ids, generation_config=settings))
    assert model.last_sampling.prompts == 1
    model.generate(ids, settings, LogitsProcessorList())
    assert model.last_sampling is None


def test_a_wrong_argument_is_refused_as_by_transformers():
    with pytest.raises(ValueError, match="not_an_argument"):
        random_model("llama").generate(torch.ones(1, 2, dtype=torch.long), not_an_argument=1)


def test_transformers_still_has_the_private_names():
    """When this fails, transformers has moved one of them: the loop is not used until `PRIVATE_NAMES` follows."""
    model = random_model("llama")
    ours(model, input_ids=torch.arange(20, 28)[None], max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert model.last_sampling is not None
    for name in generation_loop.PRIVATE_NAMES[generation_loop.GenerationMixin]:
        assert callable(getattr(generation_loop.GenerationMixin, name))


@pytest.mark.parametrize("missing", ["_optimize_model_for_decode", "_pad_token_tensor"])
def test_without_a_private_name_transformers_loop_runs(monkeypatch, missing):
    names = {
        owner: tuple(f"{n}_moved" if n == missing else n for n in names)
        for owner, names in generation_loop.PRIVATE_NAMES.items()
    }
    monkeypatch.setattr(generation_loop, "PRIVATE_NAMES", names)
    model, ids = random_model("llama"), torch.arange(20, 28).repeat(2, 1)
    settings = {"input_ids": ids, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(ours(model, **settings), theirs(model, **settings)) and model.last_sampling is None


@pytest.mark.parametrize("kind", ["nemotron", "sliding"])
def test_every_tensor_of_every_kind_of_cache_layer_follows_its_row(tiny_policy, kind):
    """Notices when transformers keeps something by row in its cache that `reorder_cache` does not carry."""
    model = tiny_policy[0] if kind == "nemotron" else random_model(kind)
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(torch.randint(20, 60, (3, 7)), past_key_values=cache, use_cache=True)
    before = [tensors_of(layer) for layer in cache.layers]
    assert sum(map(len, before)) == 4  # nemotron: conv, state, keys, values; sliding: two of keys and values
    at = torch.tensor([2, 0, 0, 1])
    inputs = generation_loop.take_rows({"past_key_values": cache, "attention_mask": torch.arange(3)[:, None]}, at)
    assert inputs["attention_mask"].flatten().tolist() == at.tolist()
    for layer, old in zip(cache.layers, before, strict=True):
        assert all(torch.equal(value, old[name][at]) for name, value in tensors_of(layer).items())


def tensors_of(layer):
    tensors = {}
    for name, value in vars(layer).items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        tensors |= {(name, key): part for key, part in parts if isinstance(part, torch.Tensor) and part.ndim}
    return tensors


@pytest.mark.slow
def test_one_synchronisation_a_step_as_in_transformers(monkeypatch):
    """Counted are the calls by which Python waits for a tensor's value; the model here makes none itself."""
    model, counts = random_model("llama"), {}
    for name in ("item", "tolist", "__bool__", "__int__", "cpu", "nonzero", "numpy"):
        plain = getattr(torch.Tensor, name)

        def counting(self, *args, _name=name, _plain=plain, **kwargs):
            counts[_name] = counts.get(_name, 0) + 1
            return _plain(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counting)
    ids = torch.randint(3, 64, (2, 8))[[0, 1, 0, 1]]
    waits = {}
    for run in (ours, theirs):
        for new in (10, 30):
            counts.clear()
            run(
                model,
                input_ids=ids,
                max_new_tokens=new,
                do_sample=True,
                eos_token_id=3,
                suppress_tokens=[3],
                pad_token_id=0,
            )
            waits[run.__name__, new] = sum(counts.values())
    assert waits["ours", 30] - waits["ours", 10] == waits["theirs", 30] - waits["theirs", 10] == 20
    assert waits["ours", 10] - waits["theirs", 10] == 1  # and one more a call, to compare the prompts


def test_a_deep_copy_samples_from_itself_and_installing_twice_is_once():
    model = generation_loop.install_loop(random_model("llama"))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.copy_(model.lm_head.weight.flip(0))
    ids, settings = torch.tensor([[5, 6, 7]]), {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(other.generate(ids, **settings), theirs(other, inputs=ids, **settings))
    assert not torch.equal(other.generate(ids, **settings), model.generate(ids, **settings))


def test_evaluation_and_a_peft_model_go_through_it():
    model, tokenizer = load_policy(config.Policy())
    model = lora.add_lora(model, config.Lora(target_modules=["in_proj"]), seed=1)
    turns = [[{"role": "user", "content": QUESTIONS[i // 4]}] for i in range(8)]
    with Rows() as seen:
        episodes.sample_completions(
            model, tokenizer, turns, config.Evaluation(max_completion_length=40, batch_size=8), seed=1
        )
    assert seen.batch[:2] == [2, 8] and model.last_sampling.prompts == 2 and model.last_sampling.rows == 8


@pytest.mark.slow
def test_training_goes_through_it(tmp_path, monkeypatch):
    monkeypatch.setattr(worst_step.WorstStepCallback, "on_step_begin", lambda *args, **kwargs: None)
    chosen = config.load_config(
        ["tiny"], [*SMALL, "grpo.max_steps=1", "grpo.per_device_train_batch_size=64", "grpo.num_generations=8"]
    )
    run = find_run("r", tmp_path)
    prepare(chosen, run)

    def pays(completions, **kwargs):
        return [float(len(c[0]["content"])) for c in completions]

    trainer = train.make_trainer(chosen, run, [pays, pays])
    with Rows() as seen:
        trainer.train()
    assert seen.batch[:2] == [8, 64] and seen.batch[-1] < 64
    last = trainer.model.last_sampling
    assert (last.prompts, last.rows, last.row_steps) == (8, 64, sum(seen.batch[1:]))
    assert seen.decoded == len(seen.batch) - 1  # this fails when TRL's own forward pass is not recognised any more


@pytest.mark.slow
def test_a_reply_that_is_being_shown_is_not_begun_again(monkeypatch):
    """The words that a streamer has shown cannot be taken back."""
    model, _ = load_tiered(0.25)
    settings = {"do_sample": True, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}
    shown = types.SimpleNamespace(put=lambda tokens: None, end=lambda: None)
    calls = raise_at(monkeypatch, torch, "multinomial", 3)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA is out of memory while sampling .*evaluation.batch_size"):
        model.generate(torch.full((1, 4), 40), streamer=shown, **settings)
    assert len(calls) == 3
    monkeypatch.undo()
    calls = raise_at(monkeypatch, torch, "multinomial", 3)
    with pytest.warns(UserWarning, match="1 more of the routed experts"):
        model.generate(torch.full((1, 4), 40), **settings)
    assert len(calls) >= 6
