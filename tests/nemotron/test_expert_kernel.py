"""The kernel, run on a CPU that emulates a GPU, gives what the dequantised matrices give; and it compiles for GPUs."""

import inspect

import peft
import pytest
import torch

from grpo_kit import config
from grpo_kit.nemotron import expert_kernel, expert_lora, experts, nf4
from grpo_kit.nemotron.expert_lora import ExpertLora
from grpo_kit.nemotron.placement.placing import install_tiered_experts
from grpo_kit.policy.load import load_policy
from tests.helpers import emulated_cuda
from tests.helpers.experts import load_with_expert_lora

REAL, TINY = (1856, 2688), (64, 128)
CPU = torch.device("cpu")
KERNELS = {
    expert_kernel.UP[torch.float16]: "up_half",
    expert_kernel.UP[torch.float32]: "up_float",
    expert_kernel.DOWN: "down",
    expert_kernel.LOW_RANK[torch.float16]: "low_rank_half",
    expert_kernel.LOW_RANK[torch.float32]: "low_rank_float",
}
INT, FLOAT = torch.int64, torch.float32
ARGUMENTS = {  # types of a kernel's tensors behind x; without LoRA both of its tensors are empty
    "product": [[INT, INT, FLOAT, FLOAT, FLOAT, INT, kind, FLOAT] for kind in (INT, FLOAT)],
    "low_rank": [[INT, INT, INT, FLOAT]],
}
KERNEL_ERROR = 1e-5  # of the largest value; seen: 5e-7, and any of WRONG below is off by more than 1e-4


class Emulated(emulated_cuda.Emulated):
    def __init__(self, library, descending=False):
        super().__init__(library, KERNELS, check_types, descending)


def check_types(kernel, args):
    kinds = [arg.dtype for arg in args[1:] if isinstance(arg, torch.Tensor)]
    assert kinds in ARGUMENTS[kernel.partition("<")[0]]
    assert args[0].dtype == (torch.float16 if "short" in kernel else torch.float32)


def build(folder, source=None):
    return emulated_cuda.build(folder, source or expert_kernel.SOURCE.read_text(), KERNELS)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("emulated"))


@pytest.fixture
def emulated(library, monkeypatch):
    kernel = Emulated(library)
    monkeypatch.setattr(expert_kernel, "compile_kernel", kernel)
    return kernel


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def packed(up, count, seed=0):
    """`count` experts' bytes, one behind the other as a tier keeps them."""
    rows = [
        torch.cat([nf4.pack_matrix(0.02 * draw(*s, seed=seed + 2 * e + i)) for i, s in enumerate((up, up[::-1]))])
        for e in range(count)
    ]
    return torch.stack(rows)


def matrices(row, up):
    geometry = experts.ExpertShape(up[1], up[0])
    return [nf4.dequantise_matrix(m, torch.empty(m.shape)) for m in geometry.views(row)]


def expected(x, index, weights, rows, up, loras=None):
    """(tokens, k, hidden) in float64 from the dequantised matrices, merged with their LoRA."""
    out = torch.empty((*index.shape, up[1]), dtype=torch.float64)
    for expert in index.unique().tolist():
        merged = [m.double() for m in matrices(rows[expert], up)]
        for matrix, pairs in zip(merged, loras or []):
            if pairs[expert]:
                matrix += pairs[expert].b.double() @ pairs[expert].a.double() * pairs[expert].scale
        output = (x.double() @ merged[0].T).relu().square() @ merged[1].T
        out[index == expert] = (weights.double()[..., None] * output[:, None])[index == expert]
    return out


def addresses(rows):
    return torch.tensor([row.data_ptr() for row in rows])


def off(ours, truth):
    return ((ours - truth).abs().max() / truth.abs().max()).item()


CHOICES = {
    "each once": [[0, 1]],
    "the same for all: two blocks and one row over": [[1], [1], [1], [1], [1]],
    "repeats apart and side by side": [[0, 1], [1, 2], [2, 1], [0, 2]],
    "more pairs than a warp has lanes": [[e % 3, (e + 1) % 3] for e in range(20)],
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("up", [TINY, (192, 64), (64, 1088), (1088, 192)])
@pytest.mark.parametrize("choice", CHOICES)
def test_it_says_what_the_dequantised_matrices_say(emulated, up, choice, dtype):
    index, rows = torch.tensor(CHOICES[choice]), packed(up, 3)
    x, weights = draw(len(index), up[1]).to(dtype), draw(*index.shape, seed=1)
    out = torch.full((*index.shape, up[1]), torch.nan)
    expert_kernel.run_experts(x, index, weights, addresses(rows), up, out)
    assert off(out, expected(x, index, weights, rows, up)) <= KERNEL_ERROR
    assert emulated.launches == ["up_half" if dtype == torch.float16 else "up_float", "down"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_published_sizes(emulated, dtype):
    index, rows = torch.tensor([[1, 0], [0, 0]]), packed(REAL, 2)
    x, weights = draw(2, REAL[1]).to(dtype), draw(2, 2, seed=1)
    out = torch.full((2, 2, REAL[1]), torch.nan)
    expert_kernel.run_experts(x, index, weights, addresses(rows), REAL, out)
    assert off(out, expected(x, index, weights, rows, REAL)) <= KERNEL_ERROR


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(64, 64), (7, 320), (97, 192)])  # 192: rows begin within a nested scale's 256 blocks
def test_every_value_is_decoded_bit_for_bit(emulated, shape):
    """Rows of the identity pick columns; `down` with weights of one gives them as they are."""
    data = nf4.pack_matrix(draw(*shape))
    columns, table = torch.eye(shape[1]), torch.tensor([data.data_ptr()])
    index, out = torch.zeros((shape[1], 1), dtype=torch.int64), torch.full((shape[1], shape[0]), torch.nan)
    no_lora, ones = expert_kernel._no_lora(CPU), torch.ones(shape[1], 1)
    expert_kernel._launch(expert_kernel.DOWN, columns, index, ones, table, shape, 0, no_lora, out)
    assert torch.equal(out.T, nf4.dequantise_matrix(nf4.unpack_matrix(data, shape), torch.empty(shape)))


def test_what_is_not_in_the_table_is_left_alone(emulated):
    index, rows, out = torch.tensor([[0, 1], [1, 0]]), packed(TINY, 2), torch.full((2, 2, 128), 7.0)
    x, weights, table = draw(2, 128), torch.ones(2, 2), addresses(rows)
    expert_kernel.run_experts(x, index, weights, table * torch.tensor([0, 1]), TINY, out)
    assert (out[index == 0] == 7).all() and (out[index == 1] != 7).all()
    expert_kernel.run_experts(x, index, weights, table * torch.tensor([1, 0]), TINY, out)
    assert off(out, expected(x, index, weights, rows, TINY)) <= KERNEL_ERROR


# --- with LoRA ---


def draw_loras(up, ranks, scale=0.5):
    """The up and the down matrices' LoRAs, (rank of up, rank of down) for each expert; 0: none."""
    return [
        [
            ExpertLora(0.1 * draw(r, shape[1], seed=50 + e), 0.1 * draw(shape[0], r, seed=60 + e), scale) if r else None
            for e, r in enumerate(matrix)
        ]
        for shape, matrix in zip((up, up[::-1]), zip(*ranks))
    ]


RANKS = {
    "one rank": [(4, 4), (4, 4), (4, 4)],
    "of different ranks, of more than a warp has lanes, and of one": [(16, 40), (1, 7), (33, 8)],
    "experts without, and with one of the two": [(0, 0), (3, 0), (0, 9)],
    "only on down": [(0, 2), (0, 2), (0, 2)],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("ranks", RANKS)
def test_a_lora_is_added_to_both_products(emulated, ranks, dtype):
    up, rows, index = (192, 64), packed((192, 64), 3), torch.tensor([[0, 1], [1, 2], [2, 1], [0, 2], [1, 0]])
    loras, x, weights = draw_loras(up, RANKS[ranks]), draw(5, 64).to(dtype), draw(5, 2, seed=1)
    tables = [expert_lora.tabulate(pairs, CPU) for pairs in loras]
    out = torch.full((5, 2, 64), torch.nan)
    expert_kernel.run_experts(x, index, weights, addresses(rows), up, out, tables)
    truth = expected(x, index, weights, rows, up, loras)
    assert off(out, truth) <= KERNEL_ERROR and off(expected(x, index, weights, rows, up), truth) > 0.1
    half, first = ("half" if dtype == torch.float16 else "float"), any(r for r, _ in RANKS[ranks])
    assert emulated.launches == [f"low_rank_{half}"] * first + [f"up_{half}", "low_rank_float", "down"]


def test_with_a_lora_too_what_is_not_in_the_table_is_left_alone(emulated):
    index, rows, out = torch.tensor([[0, 1], [1, 0]]), packed(TINY, 2), torch.full((2, 2, 128), 7.0)
    x, weights, loras = draw(2, 128), torch.ones(2, 2), draw_loras(TINY, [(4, 4), (2, 2)])
    tables = [expert_lora.tabulate(pairs, CPU) for pairs in loras]
    for mask in ([0, 1], [1, 0]):
        assert (out[index == 0] == 7).all()
        expert_kernel.run_experts(x, index, weights, addresses(rows) * torch.tensor(mask), TINY, out, tables)
    assert off(out, expected(x, index, weights, rows, TINY, loras)) <= KERNEL_ERROR


@pytest.mark.slow
def test_a_lora_of_the_published_sizes(emulated):
    index, rows, loras = torch.tensor([[1, 0], [0, 0]]), packed(REAL, 2), draw_loras(REAL, [(16, 16), (16, 16)])
    x, weights, out = draw(2, REAL[1]).half(), draw(2, 2, seed=1), torch.full((2, 2, REAL[1]), torch.nan)
    tables = [expert_lora.tabulate(pairs, CPU) for pairs in loras]
    expert_kernel.run_experts(x, index, weights, addresses(rows), REAL, out, tables)
    assert off(out, expected(x, index, weights, rows, REAL, loras)) <= KERNEL_ERROR


def test_a_nan_stays_one_and_large_sums_pass_where_float16_would_not(emulated):
    index, rows = torch.tensor([[0]]), packed(TINY, 1)
    x, weights, out = (1e4 * draw(1, 128)).half(), torch.full((1, 1), 1e-4), torch.empty((1, 1, 128))
    expert_kernel.run_experts(x, index, weights, addresses(rows), TINY, out)
    assert (x.float() @ matrices(rows[0], TINY)[0].T).relu().square().max() > 65504
    assert off(out, expected(x, index, weights, rows, TINY)) <= KERNEL_ERROR
    x[0, 5] = torch.nan
    expert_kernel.run_experts(x, index, weights, addresses(rows), TINY, out)
    assert out.isnan().all()


def test_the_order_in_which_threads_run_changes_nothing(library, monkeypatch):
    index, rows = torch.tensor([[0, 1], [1, 2], [2, 1]]), packed((192, 128), 3)
    both = []
    for descending in (False, True):
        monkeypatch.setattr(expert_kernel, "compile_kernel", Emulated(library, descending))
        out = torch.full((3, 2, 128), torch.nan)
        expert_kernel.run_experts(draw(3, 128), index, torch.ones(3, 2), addresses(rows), (192, 128), out)
        both.append(out)
    assert torch.equal(*both)


# --- the emulation notices what a GPU would not forgive ---

BROKEN = {
    "a barrier that is missing": ("    __syncthreads();\n", "", "nan|differ"),
    "a barrier that some never reach": (
        "    code[threadIdx.x] =", "    if (threadIdx.x == 9) return;\n    code[threadIdx.x] =", "never come"
    ),
    "a load across a boundary": ("data + packed_at", "data + packed_at + 4", "not aligned"),
    "more shared memory than asked for": ("PADDED = 36;", "PADDED = 40;", "more shared memory"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", BROKEN)
def test_the_emulation_notices(what, tmp_path, monkeypatch):
    old, new, reason = BROKEN[what]
    source = expert_kernel.SOURCE.read_text()
    assert old in source
    kernel = build(tmp_path, source.replace(old, new))
    index, rows, both = torch.tensor([[0], [0]]), packed(TINY, 1), []
    try:
        for descending in (False, True):
            monkeypatch.setattr(expert_kernel, "compile_kernel", Emulated(kernel, descending))
            out = torch.empty((2, 1, 128))
            expert_kernel.run_experts(draw(2, 128), index, torch.ones(2, 1), addresses(rows), TINY, out)
            both.append(out)
        outcome = "same" if torch.equal(*both) else "nan" if torch.stack(both).isnan().any() else "differ"
    except AssertionError as error:
        outcome = str(error)
    assert any(word in outcome for word in reason.split("|")), outcome


# --- believed only after it was compared ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_kernel_agrees_with_itself_compared_to_nf4(emulated, dtype):
    assert expert_kernel.find_disagreement(CPU, (192, 128), dtype) == ""


WRONG = {
    "nibbles the other way round": ("4 * (i ^ 1)", "4 * i"),
    "the scale of the next block": ("at / 2)", "at / 2 + 1)"),
    "no second scale's mean": ("__fadd_rn(block, matrix.offset)", "block"),
    "relu without the square": ("positive * positive", "positive"),
    "the second row forgotten": ("const int which = m ? pair.y : pair.x;", "const int which = pair.x;"),
    "the LoRA forgotten": ("lora ? (int)lora->rank : 0", "0"),
    "the LoRA's scale forgotten": ("(float)lora->scale * sum", "sum"),
    "the LoRA of the first row for the second": ("low[(long long)(m ? pair.y : pair.x) * width", "low[pair.x * width"),
    "a LoRA's rank for the width": ("low[(long long)blockIdx.x * width", "low[blockIdx.x * lora->rank"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_kernel_is_found_out_and_not_used(what, tmp_path, monkeypatch):
    source = expert_kernel.SOURCE.read_text()
    assert WRONG[what][0] in source
    monkeypatch.setattr(expert_kernel, "compile_kernel", Emulated(build(tmp_path, source.replace(*WRONG[what]))))
    assert "off by" in expert_kernel.find_disagreement(CPU, (192, 128), torch.float32)


@pytest.mark.parametrize(
    "up, dtype, reason",
    [
        ((96, 128), torch.float16, "whole blocks of 64"),
        ((64, 128), torch.bfloat16, "float16 or float32"),
        ((64, 6400), torch.float16, "do not fit into 48064 bytes"),
    ],
)
def test_what_the_kernel_cannot_do_is_said(up, dtype, reason):
    assert reason in expert_kernel.find_disagreement(CPU, up, dtype)


def test_without_a_gpu_it_is_not_used_and_nobody_is_warned(recwarn):
    assert not expert_kernel.is_usable(CPU, TINY, torch.float32) and not recwarn.list


def test_where_it_cannot_be_compiled_there_is_one_warning_and_no_use():
    """A CUDA device without a driver: as PyTorch for a CPU sees it."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here, on which it compiles")
    device = torch.device("cuda", 7)
    expert_kernel.is_usable.cache_clear()
    with pytest.warns(UserWarning, match="one after the other on cuda:7, which is slower but correct") as caught:
        assert [expert_kernel.is_usable(device, TINY, torch.float16) for _ in range(3)] == [False] * 3
    assert len(caught) == 1


# --- through the experts of a model ---

IDS = torch.randint(16, 272, (3, 12), generator=torch.Generator().manual_seed(0))


def decoded(share, slots=2, steps=5, counting=False):
    """Logits of a prompt and some single tokens after it, as sampling computes them; and the layers."""
    model, _ = load_policy(config.Policy())
    layers = install_tiered_experts(model, share, slots)
    for layer in layers:
        layer.counting = counting
    return sample(model, steps), layers


def sample(model, steps=5):
    cache, logits = None, []
    with torch.inference_mode():
        for ids in (IDS[:, :-steps], *IDS[:, -steps:].split(1, dim=1)):
            out = model(ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits.append(out.logits)
    return torch.cat(logits, 1)


@pytest.mark.slow
@pytest.mark.parametrize("share, slots", [(0.0, 2), (0.5, 2), (1.0, 1), (1.0, 3), (1.0, 16)])
def test_decoding_says_what_one_expert_after_the_other_says(emulated, monkeypatch, share, slots):
    one_by_one, _ = decoded(share, slots)
    assert emulated.launches == []
    monkeypatch.setattr(expert_kernel, "is_usable", lambda *_: True)
    together, _ = decoded(share, slots)
    assert (one_by_one - together).abs().max() <= 2e-4  # seen: 6e-6; logits have a deviation of 3
    assert len(emulated.launches) >= 2 * 2 * 6


@pytest.mark.slow
def test_with_all_at_hand_a_layer_is_two_launches_and_the_host_learns_nothing(emulated, monkeypatch):
    monkeypatch.setattr(expert_kernel, "is_usable", lambda *_: True)
    monkeypatch.setattr(experts.Workbench, "bring_experts", None)
    monkeypatch.setattr(experts.TieredExperts, "start_reading_choice", None)
    decoded(0.0, steps=5)
    assert emulated.launches == ["up_float", "down"] * 2 * 6  # two layers; a prompt of 21 tokens, five times 3


@pytest.mark.slow
def test_hits_are_counted_while_decoding(emulated, monkeypatch):
    _, loop = decoded(0.25, counting=True)
    monkeypatch.setattr(expert_kernel, "is_usable", lambda *_: True)
    _, layers = decoded(0.25, counting=True)
    assert all(torch.equal(a.hits, b.hits) for a, b in zip(loop, layers)) and layers[0].hits.sum() == IDS.numel() * 2


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_decoding_with_a_lora_says_what_one_expert_after_the_other_says(emulated, monkeypatch, share):
    model = load_with_expert_lora(share).eval()
    one_by_one = sample(model)
    monkeypatch.setattr(expert_kernel, "is_usable", lambda *_: True)
    assert (one_by_one - sample(model)).abs().max() <= 2e-4
    assert {"low_rank_float", "up_float", "down"} == set(emulated.launches)
    emulated.launches.clear()
    with model.disable_adapter():
        assert (one_by_one - sample(model)).abs().max() > 0.1 and set(emulated.launches) == {"up_float", "down"}


def layer_for_lora(dtype=torch.float32):
    """A module with four tiered experts that PEFT can adapt."""
    bench = experts.Workbench(experts.ExpertShape(64, 64), CPU, dtype)
    layer = experts.TieredExperts(bench.geometry, 4, lambda x: x.relu().square(), bench)
    layer.place([3])
    for e in range(4):
        layer.write_expert(e, 0.1 * draw(64, 64, seed=e), 0.1 * draw(64, 64, seed=9 + e))
    layer.open_for_lora()
    return torch.nn.ModuleDict({"experts": layer})


def adapt(module, name="default", seed=1, **settings):
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["up_proj", "down_proj"]} | settings
    peft.inject_adapter_in_model(peft.LoraConfig(**settings), module, name)
    for number, (key, value) in enumerate(module.named_parameters()):
        if f".{name}.weight" in key:  # in float32, as PEFT makes them for a model
            value.data = 0.2 * draw(*value.shape, seed=100 * seed + number)


def peft_layers(module):
    return [m for m in module.modules() if isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer)]


def prepare(case):
    """A module with experts whose LoRA is as `case` says; every way that a person can make one with PEFT."""
    module = layer_for_lora(torch.bfloat16 if case == "in a bf16 policy" else torch.float32)
    settings = {
        "experts without a pair": {"target_modules": ["experts.0.up_proj", "experts.3.down_proj"]},
        "only on up": {"target_modules": ["up_proj"]},
        "ranks and alphas by pattern": {"rank_pattern": {"1.up_proj": 9}, "alpha_pattern": {"2.down_proj": 40}},
        "rslora": {"use_rslora": True},
        "dropout, which evaluation ignores": {"lora_dropout": 0.5},
    }.get(case, {})
    adapt(module, **settings)
    layers = peft_layers(module)
    if case == "of two adapters the second":
        adapt(module, "other", seed=2, target_modules=["2.up_proj", "down_proj"], r=7)
        for layer in layers:
            layer.set_adapter("other")
    if case == "disabled":
        for layer in layers:
            layer.enable_adapters(False)
    if case == "bf16 values":
        for value in (p for n, p in module.named_parameters() if "lora_" in n):
            value.data = value.data.bfloat16()
    if case == "values that are not in one piece":
        for value in (p for n, p in module.named_parameters() if "lora_A" in n):
            value.data = value.data.T.contiguous().T
    return module.eval()


CASES = {  # launches of a step: experts on the device, then the one on the host
    "plain": 8, "experts without a pair": 8, "only on up": 6, "ranks and alphas by pattern": 8, "rslora": 8,
    "dropout, which evaluation ignores": 8, "of two adapters the second": 8, "disabled": 4, "bf16 values": 0,
    "values that are not in one piece": 0, "in a bf16 policy": 8,
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_lora_gives_what_one_expert_after_the_other_gives(case, emulated, monkeypatch):
    module = prepare(case)
    index, weights = torch.tensor([[0, 3], [1, 2], [2, 0]]), draw(3, 2, seed=1)
    x = draw(3, 64).to(module["experts"].bench.dtype)
    with torch.inference_mode():
        slow = module["experts"](x, index, weights)
        monkeypatch.setattr(expert_kernel, "is_usable", lambda *_: True)
        fast = module["experts"](x, index, weights)
    assert off(fast, slow) <= (0.02 if x.dtype == torch.bfloat16 else 1e-5 if CASES[case] else 0)
    assert len(emulated.launches) == CASES[case]


def test_a_table_of_loras_follows_their_values_and_their_place(emulated, monkeypatch):
    monkeypatch.setattr(expert_kernel, "is_usable", lambda *_: True)
    module, index, weights, x = prepare("plain"), torch.tensor([[0, 3], [1, 2]]), draw(2, 2, seed=1), draw(2, 64)
    values = [p for n, p in module.named_parameters() if "lora_B" in n]

    def both():
        with torch.inference_mode():
            fast = module["experts"](x, index, weights)
        return off(fast, module["experts"](x, index, weights).detach()), expert_lora._make_table.cache_info().misses

    error, made = both()
    for value in values:
        value.data.mul_(-3)  # as an optimiser does
    again, same = both()
    for value in values:
        value.data = value.data * 5  # as loading does; the old values are freed
    moved, more = both()
    for layer in peft_layers(module):
        layer.scaling["default"] = 0.25
    scaled, most = both()
    assert max(error, again, moved, scaled) <= 1e-5
    assert (same - made, more - made, most - made) == (0, 2, 4)


def test_two_active_adapters_on_one_expert_are_refused():
    module = prepare("plain")
    adapt(module, "other")
    for layer in peft_layers(module):
        layer.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match="default and other are active on the same routed expert"):
        module["experts"](draw(1, 64), torch.tensor([[0]]), torch.ones(1, 1))


def test_the_table_of_slots_is_sent_before_the_copies_that_it_would_wait_for(emulated, monkeypatch):
    monkeypatch.setattr(expert_kernel, "is_usable", lambda *_: True)
    module, asked = layer_for_lora(), []
    for owner, name in ((experts.TieredExperts, "_send_slot_tables"), (experts.Workbench, "_start_copy")):
        inner = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, n=name, f=inner: asked.append(n) or f(*a))
    with torch.inference_mode():
        module["experts"](draw(1, 64), torch.tensor([[0, 3]]), torch.ones(1, 2))
    assert asked == ["_send_slot_tables", "_start_copy"]


@pytest.mark.parametrize("largest", [300, 5000])
def test_in_float16_decoding_says_what_prompt_and_training_say_past_the_range_of_relu2(emulated, monkeypatch, largest):
    index, weights, outputs = torch.tensor([[0, 1], [1, 2], [2, 0]]), draw(3, 2, seed=1), {}
    for dtype in (torch.float32, torch.float16):
        bench = experts.Workbench(experts.ExpertShape(64, 128), CPU, dtype)
        layer = experts.TieredExperts(bench.geometry, 3, lambda x: x.relu().square(), bench)
        layer.place([2])
        for e in range(3):
            layer.write_expert(e, 0.1 * draw(128, 64, seed=e), 0.1 * draw(64, 128, seed=9 + e))
        up = matrices(layer.rows[0], (128, 64))[0]
        x = (draw(3, 64) * largest / (draw(3, 64) @ up.T).max()).half()
        outputs[dtype, "training"] = layer(x.to(dtype), index, weights.clone().requires_grad_()).detach()
        with torch.inference_mode():
            outputs[dtype, "prompt"] = layer(x.to(dtype), index, weights)
            with monkeypatch.context() as patched:
                patched.setattr(expert_kernel, "is_usable", lambda *_: True)
                outputs[dtype, "decoding"] = layer(x.to(dtype), index, weights)
    truth = outputs.pop((torch.float32, "prompt"))
    assert truth.abs().max() > 1e4 and "up_half" in emulated.launches
    for (dtype, when), output in outputs.items():
        assert output.dtype == torch.float32 and off(output, truth) <= (2e-3 if dtype == torch.float16 else 1e-5), when


@pytest.mark.parametrize("reason", ["a gradient is needed", "many tokens", "another activation"])
def test_what_is_no_decoding_goes_one_by_one(emulated, monkeypatch, reason):
    monkeypatch.setattr(expert_kernel, "is_usable", lambda *_: True)
    bench = experts.Workbench(experts.ExpertShape(128, 64), CPU, torch.float32)
    act = torch.nn.functional.silu if reason == "another activation" else lambda x: x.relu().square()
    layer = experts.TieredExperts(bench.geometry, 2, act, bench)
    layer.place()
    layer.write_expert(0, draw(64, 128), draw(128, 64))
    layer.write_expert(1, draw(64, 128), draw(128, 64))
    tokens = experts.MAX_DECODING_TOKENS + 1 if reason == "many tokens" else 3
    with torch.set_grad_enabled(reason == "a gradient is needed"):
        layer(draw(tokens, 128), torch.zeros((tokens, 1), dtype=torch.int64), torch.ones(tokens, 1))
    assert emulated.launches == []


# --- it compiles for the GPUs it is meant for ---


@pytest.mark.slow
def test_nvcc_compiles_it_without_spills(tmp_path):
    source = expert_kernel.SOURCE.read_text()
    assert emulated_cuda.count_kernels_without_spills(tmp_path, source, KERNELS) == len(KERNELS)


@pytest.mark.parametrize("capability", ["75", "80", "90"])
@pytest.mark.parametrize("name", KERNELS)
def test_pytorch_compiles_it_by_nvrtc_without_a_gpu_or_headers(name, capability, monkeypatch):
    assert emulated_cuda.compile_by_nvrtc(monkeypatch, capability, name)[:4] == b"\x7fELF"


def test_the_private_name_of_pytorch_is_where_it_was():
    assert list(inspect.signature(torch.cuda._compile_kernel).parameters)[:2] == ["kernel_source", "kernel_name"]
    launch = inspect.signature(torch.cuda._utils._CudaKernel.__call__)
    assert {"grid", "block", "args", "shared_mem"} <= set(launch.parameters)
