"""A decoder as a GPU runs it, on a CPU: emulated kernels and stand-ins for CUDA's graphs, against the one without."""

import gc
import weakref

import pytest
import torch
from transformers import DynamicCache, StoppingCriteriaList

from grpo_kit import config
from grpo_kit.nemotron import expert_kernel
from grpo_kit.nemotron.decoding import graph, kernels, one_token
from grpo_kit.nemotron.placement.tiered_layers import find_tiered_layers
from grpo_kit.policy.load import load_policy
from tests.helpers import emulated_cuda, fake_graphs

FLOAT = {"update_mamba<float>": "mamba", "add_norm<float, float, float>": "norm", "choose": "choose"}
HALF = {
    "update_mamba<Half>": "half",
    "add_norm<float, Half, Half>": "norm_of_half",
    "add_norm<float, float, Half>": "norm_of_float",
}
KERNELS = FLOAT | HALF
PROMPTS = torch.randint(16, 272, (2, 9), generator=torch.Generator().manual_seed(0)).repeat_interleave(3, 0)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return emulated_cuda.build(tmp_path_factory.mktemp("emulated"), kernels.SOURCE.read_text(), KERNELS)


@pytest.fixture
def graphs(monkeypatch):
    monkeypatch.setattr(graph, "is_possible", lambda device: True)
    return fake_graphs.install(monkeypatch)


@pytest.fixture
def launches(library, monkeypatch):
    emulated = emulated_cuda.Emulated(library, KERNELS, lambda *_: None)
    monkeypatch.setattr(expert_kernel, "compile_kernel", fake_graphs.recording(emulated))
    monkeypatch.setattr(kernels, "is_usable", lambda *_: True)
    return emulated.launches


def load(**settings):
    model, _ = load_policy(config.Policy(**settings))
    return model.eval()


class End:
    """Rows end at these lengths, as at an end token."""

    eos_token_id = 11

    def __init__(self, lengths):
        self.lengths = torch.tensor(lengths)

    def __call__(self, ids, scores):
        return ids.shape[1] >= self.lengths


def sample(model, lengths=(23,) * 6):
    """(tokens, log-probabilities) of prompts of 9 tokens, of which the rows end at these lengths."""
    torch.manual_seed(0)
    model.keep_logps = True
    tokens = model.generate(
        PROMPTS, attention_mask=torch.ones_like(PROMPTS), do_sample=True, min_new_tokens=29, max_new_tokens=30,
        pad_token_id=0, stopping_criteria=StoppingCriteriaList([End(lengths)]),
    )  # fmt: skip
    return tokens, model.last_sampling.logps


def check_same(expected, ours, tolerance):
    assert torch.equal(expected[0], ours[0])
    torch.testing.assert_close(expected[1], ours[1], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_replayed_steps_draw_the_same_tokens(graphs, load_in_4bit, monkeypatch):
    model = load(load_in_4bit=load_in_4bit)
    ours = sample(model)
    assert len(graphs) == 3 + 4  # of the trial's layers MEE and of all, ME*E: one more than the works between them
    monkeypatch.undo()
    check_same(sample(model), ours, 0)


def test_rows_that_end_are_recorded_anew(graphs, monkeypatch):
    model, lengths = load(), (14, 19, 14, 14, 25, 25)
    ours = sample(model, lengths)
    assert len(graphs) == 3 + 3 * 4  # of six, three and two rows
    monkeypatch.undo()
    check_same(sample(model, lengths), ours, 0)


def test_the_kernels_draw_the_same_tokens(launches, monkeypatch):
    model = load()
    ours = sample(model)
    # ME*E, at each of 13 steps: one Mamba layer, a norm before each layer and one at the end, two routers.
    assert [launches.count(name) for name in FLOAT.values()] == [13, 5 * 13, 2 * 13]
    monkeypatch.undo()
    check_same(sample(model), ours, 1e-5)


def test_in_float16_the_kernels_take_each_layers_types(launches, monkeypatch):
    model = load(dtype="float16", load_in_4bit=True)
    tokens, logps = sample(model, (12,) * 6)
    # Experts give float32 between 16-bit layers, and the norm at the end is a module with a hook.
    assert [launches.count(name) for name in HALF.values()] == [2, 2 * 3, 2 * 1]
    monkeypatch.undo()
    expected = sample(model, (12,) * 6)
    assert torch.equal(tokens, expected[0])
    torch.testing.assert_close(logps, expected[1], rtol=0, atol=0.02)


def test_captured_kernels_draw_the_same_tokens(launches, graphs, monkeypatch):
    model = load()
    ours = sample(model)
    assert len(graphs) == 7
    monkeypatch.undo()
    check_same(sample(model), ours, 1e-5)


def test_a_second_call_is_recorded_anew_and_sees_changed_weights(graphs, monkeypatch):
    model = load()
    sample(model)
    for value in model.parameters():
        value.data.mul_(1.1)
    before = len(graphs)
    ours = sample(model)
    assert len(graphs) - before == 4  # tried once for a model
    monkeypatch.undo()
    check_same(sample(model), ours, 0)


def test_what_waits_for_the_host_is_found_by_the_trial(graphs, monkeypatch):
    model, expected = load(), sample(load())
    before = len(graphs)

    def wait(self, x, *into):
        assert x.isfinite().all().item()
        return inner(self, x, *into)

    inner = one_token.Mamba.__call__
    monkeypatch.setattr(one_token.Mamba, "__call__", wait)
    with pytest.warns(UserWarning, match="launch their kernels one by one") as seen:
        check_same(expected, sample(model), 0)
    assert len(seen) == 1 and len(graphs) == before + 1
    check_same(expected, sample(model), 0)  # and nobody is warned again


def test_a_prompt_in_the_place_of_a_row_needs_no_new_recording(graphs, monkeypatch):
    model, logits = load(), []
    for with_graphs in (True, False):
        monkeypatch.setattr(graph, "is_possible", lambda device, yes=with_graphs: yes)
        caches = [DynamicCache(config=model.config) for _ in range(2)]
        with torch.inference_mode():
            for ids, cache in zip((PROMPTS[::3], PROMPTS[3:4, :5]), caches):
                model(input_ids=ids, past_key_values=cache, use_cache=True)
            decoder = one_token.make_decoder(model, caches[0], torch.ones(2, 9), 20)
            for number in range(6):
                if number == 3:
                    decoder.put_rows(torch.tensor([0]), caches[1], torch.ones(1, 5), torch.tensor([0]))
                logits.append(decoder.step(torch.tensor([20 + number, 30])).clone())
    assert len(graphs) == 7
    assert torch.equal(torch.stack(logits[:6]), torch.stack(logits[6:]))


def test_a_trial_counts_no_choice(graphs, monkeypatch):
    model = load(load_in_4bit=True)
    layers = list(find_tiered_layers(model).values())
    hits = []
    for tried in (False, True):
        for layer in layers:
            layer.hits, layer.counting = torch.zeros(8, dtype=torch.int64), True
        with monkeypatch.context() as patched:
            if not tried:
                patched.setattr(graph, "is_possible", lambda device: False)
            sample(model)
        hits.append([layer.hits.tolist() for layer in layers])
    assert hits[0] == hits[1] and len(graphs) == 7


def test_a_decoder_is_freed_at_once(graphs, monkeypatch):
    """Its states are the largest thing that a GPU holds beside the weights, and no collection must be waited for."""
    held, make, model = [], one_token.make_decoder, load()

    def remember(*args):
        decoder = make(*args)
        held.extend(weakref.ref(one) for one in (decoder, *decoder.layers))
        return decoder

    monkeypatch.setattr(one_token, "make_decoder", remember)
    gc.disable()
    try:
        sample(model)
        assert [one() for one in held] == [None] * 5
    finally:
        gc.enable()
