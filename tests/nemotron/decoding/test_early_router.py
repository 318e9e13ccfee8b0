"""A layer's choice guessed one MoE layer early: what is guessed, how much is copied ahead; no result depends on it."""

import copy
import ctypes
import itertools
from types import SimpleNamespace

import pytest
import torch

from grpo_kit.nemotron import expert_kernel, experts, nf4
from grpo_kit.nemotron.decoding import early_router
from tests.helpers.experts import IDS, load_tiered

SHAPE = experts.ExpertShape(64, 64)


def run_experts(hidden, index, weights, table, up, out, loras=()):
    """Stands in for the kernel: reads an expert's bytes at its address in `table`."""
    for i, j in itertools.product(*map(range, index.shape)):
        if address := int(table[index[i, j]]):
            shape = experts.ExpertShape(up[1], up[0])
            data = torch.frombuffer((ctypes.c_uint8 * shape.nbytes).from_address(address), dtype=torch.uint8)
            first, second = (nf4.dequantise_matrix(m, torch.empty(m.shape)) for m in shape.views(data))
            out[i, j] = weights[i, j] * (second @ (first @ hidden[i]).relu().square())


@pytest.fixture(autouse=True)
def kernel(monkeypatch):
    monkeypatch.setattr(expert_kernel, "is_usable", lambda *_: True)
    monkeypatch.setattr(expert_kernel, "run_experts", run_experts)


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_blocks(on_host, slots=4, latent=None):
    """MoE blocks of 8 experts that share a bench and are connected; `on_host`: for each the experts on the host."""
    bench, blocks = experts.Workbench(SHAPE, torch.device("cpu"), torch.float32, slots), []
    for number, numbers in enumerate(on_host):
        layer = experts.TieredExperts(SHAPE, 8, lambda x: x.relu().square(), bench)
        layer.place(numbers)
        for e in range(8):
            seed = 100 * number + 2 * e
            layer.write_expert(e, draw(64, 64, seed=seed) / 8, draw(64, 64, seed=seed + 1) / 8)
        gate = torch.nn.Linear(64, 8)
        gate.weight.data, gate.e_score_correction_bias, gate.top_k = draw(8, 64, seed=number), torch.arange(8) / 40, 3
        mixer = SimpleNamespace(experts=layer, gate=gate, fc1_latent_proj=latent or torch.nn.Identity())
        norm = SimpleNamespace(weight=1.5 + draw(64, seed=50 + number).tanh())
        blocks.append(SimpleNamespace(norm=norm, mixer=mixer))
    for block, following in itertools.pairwise(blocks):
        early_router.connect(block, following)
    return blocks


def choose(block, x):
    """The router's choice for rows x that have passed the block's norm."""
    return ((x @ block.mixer.gate.weight.T).sigmoid() + block.mixer.gate.e_score_correction_bias).topk(3).indices


def test_the_guess_is_what_the_router_would_choose_if_the_residual_stayed():
    first, second = make_blocks([[7], [7]])
    residual = torch.nn.functional.normalize(draw(50, 64, seed=1)) * 8
    guess = first.mixer.experts.following.guess(residual * first.norm.weight)
    assert torch.equal(guess, choose(second, residual * second.norm.weight))
    assert not torch.equal(guess, choose(second, residual * first.norm.weight))  # the norms differ


def test_a_guess_in_float16_names_nearly_the_same():
    first, _ = make_blocks([[7], [7]])
    x = draw(50, 64, seed=1)
    exact, rounded = (first.mixer.experts.following.guess(rows) for rows in (x, x.half()))
    assert (exact.sort().values == rounded.sort().values).float().mean() > 0.97


def decode(blocks, steps=6, rows=2):
    """Outputs of all layers in all steps; each layer's router sees what its own norm gives of the same residual."""
    outputs = []
    for step in range(steps):
        residual = draw(rows, 64, seed=900 + step)
        for block in blocks:
            x = residual * block.norm.weight
            weights = draw(rows, 3, seed=step)
            with torch.inference_mode():
                outputs.append(block.mixer.experts.decode(x, choose(block, x), weights))
            residual = residual + 0.02 * outputs[-1].clamp(-5, 5)
    return outputs


HOSTS = [[0, 1, 2, 3], [2, 3, 4, 5, 6, 7], [], list(range(8))]


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 2, 5, 40])
def test_no_bit_depends_on_a_guess_be_it_right_or_wrong(slots, monkeypatch):
    at_hand = decode(make_blocks([[], [], [], []]))
    blocks = make_blocks(HOSTS, slots)
    guessed = decode(blocks)
    wrong = make_blocks(HOSTS, slots)
    monkeypatch.setattr(
        early_router.EarlyRouter, "guess", lambda _, x: draw(len(x), 8, seed=int(x[0, 0] * 99)).topk(3)[1]
    )
    for ours, theirs, mistaken in zip(guessed, at_hand, decode(wrong), strict=True):
        assert torch.equal(ours, theirs) and torch.equal(mistaken, theirs)
    ahead, right = blocks[0].mixer.experts.bench.ahead
    assert ahead and right > 0.7 * ahead  # the residual hardly changes here
    assert wrong[0].mixer.experts.bench.ahead[1] < 0.7 * wrong[0].mixer.experts.bench.ahead[0]


def test_the_host_waits_in_layers_with_experts_on_the_host_only(monkeypatch):
    blocks, waited = make_blocks([[], [7], [], [0]]), []
    inner = experts.TieredExperts.start_reading_choice
    monkeypatch.setattr(
        experts.TieredExperts, "start_reading_choice", lambda self, *a: waited.append(self) or inner(self, *a)
    )
    for block in blocks:
        block.mixer.experts.counting = True
    decode(blocks, steps=2)
    assert [int(block.mixer.experts.hits.sum()) for block in blocks] == [2 * 2 * 3] * 4  # counted all the same
    assert waited == 2 * [blocks[1].mixer.experts, blocks[3].mixer.experts]


def test_what_was_copied_ahead_is_not_copied_again():
    first, second = make_blocks([[0], list(range(8))], slots=8)
    router, bench = first.mixer.experts.following, first.mixer.experts.bench
    router.most = 8
    x = draw(1, 64, seed=3)
    index = choose(second, x * second.norm.weight)
    with torch.inference_mode():
        first.mixer.experts.decode(x * first.norm.weight, torch.tensor([[1, 2, 3]]), torch.ones(1, 3))
        assert bench.bytes_brought == 3 * SHAPE.nbytes and sorted(router.expected) == sorted(index[0].tolist())
        second.mixer.experts.decode(x * second.norm.weight, index, torch.ones(1, 3))
    assert bench.bytes_brought == 3 * SHAPE.nbytes and bench.ahead == [3, 3]


def test_copied_ahead_is_what_most_tokens_and_their_first_choices_name():
    first, second = make_blocks([[0], [1, 3, 4, 5]])
    first.mixer.experts.following.copy_ahead([5, 1, 0, 3, 5, 0, 4, 1])
    assert first.mixer.experts.following.expected == [5, 1]  # of 4 slots half at first; 0 is at hand
    assert [second.mixer.experts.bench.is_held(second.mixer.experts.rows[e]) for e in (5, 1, 3)] == [True, True, False]


@pytest.mark.parametrize(
    ("most", "expected", "arrived", "then"),
    [
        (2, [1, 2], [1, 2], 3),
        (2, [1, 2], [1], 1),
        (3, [1, 2, 3], [], 1),  # one is always tried
        (4, [1, 2, 3, 4], [1, 2, 3, 4], 4),  # no more than there are slots
        (3, [1], [1], 3),  # fewer were guessed than might have been
        (3, [], [], 3),
    ],
)
def test_as_many_are_copied_ahead_as_arrived_in_time(most, expected, arrived, then, monkeypatch):
    first, second = make_blocks([[0], list(range(8))])
    router, rows = first.mixer.experts.following, second.mixer.experts.rows
    router.most, router.expected = most, expected
    in_time = [rows[e].data_ptr() for e in arrived]
    monkeypatch.setattr(experts.Workbench, "has_arrived", lambda _, row: row.data_ptr() in in_time)
    router.compare([2, 6, 2])
    assert (router.most, router.expected) == (then, [])
    assert first.mixer.experts.bench.ahead[1] == (2 in expected)


def test_nothing_is_guessed_where_it_is_of_no_use():
    first, second = make_blocks([[0], []])
    assert first.mixer.experts.following.guess(draw(1, 64, seed=1)) is None  # nothing to copy
    assert second.mixer.experts.following is None and first.mixer.experts.guessed_by is None
    first, second = make_blocks([[0], [0]], latent=torch.nn.Linear(64, 32))  # the router reads something else
    assert first.mixer.experts.following is None and second.mixer.experts.guessed_by is None


def test_the_layers_of_a_model_are_connected_in_their_order_and_a_copy_to_its_own():
    model, (first, second) = load_tiered(0.5)
    router = first.following
    assert router.experts is second and second.guessed_by is router and second.following is None
    assert router.gate is model.model.layers[3].mixer.gate and router.norm is model.model.layers[1].norm
    assert not any("following" in name for name, _ in model.named_modules())
    twin = copy.deepcopy(model).model.layers[1].mixer.experts.following
    assert twin is not router and twin.experts is not second


@pytest.mark.slow
def test_a_model_decodes_the_same_with_and_without_guesses():
    logits = []
    for share, connected in ((0.0, True), (0.75, True), (0.75, False)):
        model, layers = load_tiered(share)
        if not connected:
            layers[0].following = layers[1].guessed_by = None
        with torch.inference_mode():
            cache = model(IDS[:, :30], use_cache=True).past_key_values
            steps = [model(ids, past_key_values=cache, use_cache=True).logits for ids in IDS[:, 30:34].split(1, dim=1)]
        logits.append(torch.cat(steps, 1))
        assert bool(layers[0].bench.ahead[0]) is (share > 0 and connected)
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[1], logits[2])
