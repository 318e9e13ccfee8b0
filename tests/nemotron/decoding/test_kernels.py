"""The kernels, run on a CPU that emulates a GPU, give what mamba.py and router.py give; and they compile for GPUs."""

import pytest
import torch

from grpo_kit.nemotron import expert_kernel
from grpo_kit.nemotron.decoding import kernels, mamba, router
from grpo_kit.nemotron.decoding.kernels import Sizes
from grpo_kit.nemotron.decoding.mamba import MambaState, MambaWeights
from tests.helpers import emulated_cuda

CPU = torch.device("cpu")
PUBLISHED = {"30B": Sizes(8, 8, 64, 128), "4B": Sizes(8, 12, 80, 128)}
SMALL = Sizes(2, 3, 8, 20)
NORMS = {  # types of residual, update and weight
    "norm_float": ("float", "float", "float"),
    "norm_half": ("float", "Half", "Half"),
    "norm_half_of_float": ("float", "float", "Half"),
    "norm_bfloat": ("Bfloat", "Bfloat", "Bfloat"),
    "norm_bfloat_of_float": ("float", "Bfloat", "Bfloat"),
}
ROUNDED = {"rounded_half": ("Half", "float", "Half"), "rounded_bfloat": ("Bfloat", "float", "Bfloat")}
KERNELS = {f"update_mamba<{name}>": f"mamba_{name.lower()}" for name in kernels.NAMES.values()}
KERNELS |= {f"add_norm<{', '.join(types)}>": name for name, types in (NORMS | ROUNDED).items()}
KERNELS |= {"choose": "choose"}
TYPES = {name: dtype for dtype, name in kernels.NAMES.items()}
KERNEL_ERROR = 1e-5  # of the largest value, in float32


def check_types(kernel, args):
    kinds, f32 = [arg.dtype for arg in args if isinstance(arg, torch.Tensor)], torch.float32
    if kernel == "choose":
        assert kinds == [f32, f32, f32, torch.int64, f32]
    elif kernel.startswith("update"):
        kind = TYPES[kernel.partition("<")[2][:-1]]
        assert kinds == [kind, kind, f32, kind, kind, f32, f32, f32, kind, kind]
    else:
        residual, update, weight = (TYPES[name] for name in kernel.partition("<")[2][:-1].split(", "))
        assert kinds == [residual, update, weight, weight]


FLOAT = {kernel: name for kernel, name in KERNELS.items() if name in ("mamba_float", "norm_float", "choose")}


def build(folder, source, which=FLOAT):
    return emulated_cuda.build(folder, source, which)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("emulated"), kernels.SOURCE.read_text(), KERNELS)


def use(library, monkeypatch, descending=False):
    emulated = emulated_cuda.Emulated(library, KERNELS, check_types, descending)
    monkeypatch.setattr(expert_kernel, "compile_kernel", emulated)
    return emulated


@pytest.fixture
def emulated(library, monkeypatch):
    return use(library, monkeypatch)


def draw_mamba(sizes, rows, dtype=torch.float32, bias=True, seed=0):
    """(random in_proj results, states, weights) of a mixer."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    heads, inner = sizes.groups * sizes.heads, sizes.groups * sizes.heads * sizes.head_dim
    channels = inner + 2 * sizes.groups * sizes.state
    weights = MambaWeights(
        draw(channels, 4), draw(channels) if bias else None, draw(heads).float(), -draw(heads).float().exp(),
        draw(heads).float(), draw(inner), 1e-5, inner // sizes.groups,
    )  # fmt: skip
    state = MambaState(draw(rows, channels, 4), draw(rows, heads, sizes.head_dim, sizes.state).float())
    return draw(rows, inner + channels + heads), state, weights


def in_float32(values):
    return type(values)(*(value.float() if isinstance(value, torch.Tensor) else value for value in values))


def off(ours, truth):
    return ((ours.float() - truth).abs().max() / truth.abs().max()).item()


def check_update(sizes, rows, dtype=torch.float32, bias=True, steps=2):
    _, state, weights = draw_mamba(sizes, rows, dtype, bias)
    theirs = MambaState(*(value.float().clone() for value in state))
    for step in range(steps):
        projected = draw_mamba(sizes, rows, dtype, seed=1 + step)[0]
        ours = kernels.update_mamba(projected, state, weights)
        expected = mamba.update_mamba(projected.float(), theirs, in_float32(weights))
        assert ours.dtype == dtype
        assert off(ours, expected) <= KERNEL_ERROR + (0 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps)
        assert off(state.ssm, theirs.ssm) <= KERNEL_ERROR and torch.equal(state.conv.float(), theirs.conv)


@pytest.mark.parametrize("dtype", kernels.NAMES)
@pytest.mark.parametrize(
    "sizes, rows",
    [
        (SMALL, 3),  # fewer quads of state than lanes
        (Sizes(1, 1, 4, 4), 1),
        (Sizes(2, 6, 16, 16), 2),  # the embedded policy
        (Sizes(1, 5, 12, 132), 2),  # one quad more than lanes
        (Sizes(3, 33, 16, 8), 1),  # more values in a group than threads
    ],
)
def test_the_update_is_that_of_mamba_py(emulated, sizes, rows, dtype):
    check_update(sizes, rows, dtype)
    assert emulated.launches == [KERNELS[f"update_mamba<{kernels.NAMES[dtype]}>"]] * 2


def test_a_convolution_needs_no_bias(emulated):
    check_update(SMALL, 2, bias=False)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("model", PUBLISHED)
def test_the_published_sizes(emulated, model, dtype):
    check_update(PUBLISHED[model], 2, dtype, steps=1)


def test_rows_of_a_larger_state_are_taken_where_they_lie(emulated):
    projected, state, weights = draw_mamba(SMALL, 5)
    before = state.ssm.clone()
    kernels.update_mamba(projected[:2], MambaState(state.conv[:2], state.ssm[:2]), weights)
    assert torch.equal(state.ssm[2:], before[2:]) and not (state.ssm[:2] == before[:2]).any()


def test_time_steps_of_any_size_stay_finite_and_a_nan_stays_in_its_row(emulated):
    projected, state, weights = draw_mamba(SMALL, 4)
    projected[0] *= 1e4
    projected[1] *= -1e4
    projected[2, 5] = torch.nan  # of a gate: the row's first group
    theirs = MambaState(*(value.clone() for value in state))
    ours, expected = kernels.update_mamba(projected, state, weights), mamba.update_mamba(projected, theirs, weights)
    assert torch.equal(ours.isnan(), expected.isnan()) and ours[[0, 1, 3]].isfinite().all()
    assert off(ours[[0, 1, 3]], expected[[0, 1, 3]]) <= KERNEL_ERROR
    assert ours[2].isnan().sum() == 24


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("hidden", [8, 515, 2688])
def test_sum_and_norm_are_those_of_mamba_py(emulated, name, hidden):
    generator = torch.Generator().manual_seed(0)
    kinds = [TYPES[kind] for kind in NORMS[name]]
    residual, update, weight = (
        torch.randn(shape, generator=generator).to(kind) for shape, kind in zip([(3, hidden)] * 2 + [(hidden,)], kinds)
    )
    theirs = residual.clone()
    ours, expected = kernels.add_norm(residual, update, weight, 1e-5), mamba.add_norm(theirs, update, weight, 1e-5)
    assert torch.equal(residual, theirs) and ours.dtype == weight.dtype
    assert off(ours, expected.float()) <= KERNEL_ERROR + (0 if name == "norm_float" else torch.finfo(weight.dtype).eps)
    # Without an update the same sum is normalised again.
    assert torch.equal(kernels.add_norm(residual, None, weight, 1e-5), ours) and torch.equal(residual, theirs)
    assert emulated.launches[0] == name


def test_large_sums_pass_where_float16_squares_would_not(emulated):
    ours = kernels.add_norm(torch.full((1, 64), 3e4), torch.full((1, 64), 1e4).half(), torch.ones(64).half(), 0.0)
    assert ours.tolist() == [[1.0] * 64]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_rounding_is_that_of_pytorch(emulated, kind):
    values = [
        1,
        -2.5,
        65504,
        65519.9,
        65520,
        1e9,
        2**-14,
        2**-24,
        2**-25,
        3e-8,
        1e-3,
        2049,
        257,
        -259,
        3e38,
        -0.0,
        1e-40,
    ]
    sums = torch.tensor([[*values, torch.inf, torch.nan]])
    residual = torch.zeros_like(sums, dtype=kind)
    kernels.add_norm(residual, sums, torch.ones(sums.shape[1], dtype=kind), 1.0)
    torch.testing.assert_close(residual, sums.to(kind), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("experts, k", [(128, 6), (8, 2), (8, 8), (33, 1), (512, 22), (1, 1)])
def test_the_choice_is_that_of_router_py(emulated, experts, k):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(5, experts, generator=generator)
    # Published corrections are about 64 with small differences.
    bias = 64 + 0.2 * torch.randn(experts, generator=generator)
    ones = torch.full((k, 1), 0.4)
    (index, weights), (theirs, expected) = kernels.choose(logits, bias, ones), router.choose(logits, bias, ones)
    assert index.dtype == torch.int64 and torch.equal(index.sort().values, theirs.sort().values)
    order, other = index.argsort(), theirs.argsort()
    torch.testing.assert_close(weights.gather(1, order), expected.gather(1, other), rtol=1e-5, atol=1e-6)
    assert emulated.launches == ["choose"]


def test_of_equal_experts_the_first_are_chosen_and_a_nan_names_none_that_is_not_there(emulated):
    logits = torch.zeros(4, 40)
    logits[1, 7], logits[2], logits[3, [0, 39]] = torch.nan, torch.nan, torch.inf
    index, weights = kernels.choose(logits, torch.zeros(40), torch.ones(3, 1))
    assert index.tolist() == [[0, 1, 2], [7, 0, 1], [0, 1, 2], [0, 39, 1]]
    torch.testing.assert_close(weights[[0, 3]], torch.tensor([[1 / 3] * 3, [0.4, 0.4, 0.2]]))
    assert weights[1:3].isnan().all()


def test_the_order_in_which_threads_run_changes_nothing(library, monkeypatch):
    both = []
    for descending in (False, True):
        use(library, monkeypatch, descending)
        projected, state, weights = draw_mamba(SMALL, 2)
        both.append((kernels.update_mamba(projected, state, weights), *state))
    assert all(torch.equal(*pair) for pair in zip(*both))


# --- believed only after they were compared ---


@pytest.mark.parametrize("dtype", kernels.NAMES)
def test_the_kernels_agree_with_mamba_py(emulated, dtype):
    assert kernels.find_disagreement(CPU, SMALL, 4, dtype) == ""


WRONG = {
    "the next group's B": ("inner + group * size + i", "inner + (group ^ 1) * size + i"),
    "the newest input forgotten": ("last.at[k + 1] : input[channel]", "last.at[k + 1] : last.at[k]"),
    "no softplus": ("softplus(widen(dt", "(widen(dt"),
    "the state not written": ("state[(first + r) * quads + quad] = value[r];", ""),
    "the connection past the state forgotten": ("total + d[first_head + head] * x[first + r]", "total"),
    "no gate": ("x[i] *= silu(widen(gate[i]));", ""),
    "the norm of another size": ("parts) / mine", "parts) / inner"),
    "the residual not written": ("residual[start + i] = sum = narrow", "sum = narrow"),
    "the choice without the correction": ("sigmoid(row[expert]) + bias[expert]", "sigmoid(row[expert])"),
    "the choice's weights not divided": ("score / (total * ones[0])", "score"),
    "the update twice": ("widen(sum) + widen(update", "widen(sum) + 2 * widen(update"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_kernel_is_found_out_and_not_used(what, tmp_path, monkeypatch):
    source = kernels.SOURCE.read_text()
    assert source.count(WRONG[what][0]) == 1
    use(build(tmp_path, source.replace(*WRONG[what])), monkeypatch)
    assert "off by" in kernels.find_disagreement(CPU, SMALL, 4, torch.float32)


BARRIERS = {  # each barrier of update_mamba, by the line before it
    "behind the convolution": "    }\n    __syncthreads();\n\n    const int lane",
    "behind the state space": "    }\n    __syncthreads();\n\n    float squares",
    "between the parts of a sum": "= value;\n    __syncthreads();",
}


@pytest.mark.slow
@pytest.mark.parametrize("which", BARRIERS)
def test_the_emulation_notices_a_missing_barrier(which, tmp_path, monkeypatch):
    source, line = kernels.SOURCE.read_text(), BARRIERS[which]
    assert source.count(line) == 1
    broken = build(tmp_path, source.replace(line, line.replace("    __syncthreads();", "")))
    projected, state, weights = draw_mamba(Sizes(1, 40, 4, 8), 1)
    expected = mamba.update_mamba(projected, MambaState(*(value.clone() for value in state)), weights)
    errors = []
    for descending in (False, True):
        use(broken, monkeypatch, descending)
        errors.append(off(kernels.update_mamba(projected, MambaState(*(v.clone() for v in state)), weights), expected))
    assert not max(errors, key=lambda error: error if error == error else 2) <= 1e-3


@pytest.mark.parametrize(
    "sizes, width, dtype, reason",
    [
        (SMALL, 3, torch.float32, "width 4"),
        (Sizes(2, 3, 8, 18), 4, torch.float32, "in fours"),
        (Sizes(2, 3, 6, 16), 4, torch.float32, "in fours"),
        (SMALL, 4, torch.float64, "float32, float16 and bfloat16"),
        (Sizes(1, 128, 96, 128), 4, torch.float16, "128 heads does not fit into 48064 bytes"),
    ],
)
def test_what_the_kernels_cannot_do_is_said(sizes, width, dtype, reason):
    assert reason in kernels.find_disagreement(CPU, sizes, width, dtype)


def test_without_a_gpu_they_are_not_used_and_nobody_is_warned(recwarn):
    _, state, weights = draw_mamba(SMALL, 1)
    assert not kernels.is_usable(state, weights) and not recwarn.list


class OnGpu(torch.Tensor):
    """A tensor that says that it lies on a GPU."""

    device = torch.device("cuda", 7)


def on_gpu(state):
    return MambaState(*(value.as_subclass(OnGpu) for value in state))


def test_where_they_cannot_be_compiled_there_is_one_warning_and_no_use():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here, on which they compile")
    _, state, weights = draw_mamba(SMALL, 1, torch.float16)
    kernels._is_usable.cache_clear()
    with pytest.warns(UserWarning, match="in many small operations on cuda:7, which is slower but correct") as caught:
        assert [kernels.is_usable(on_gpu(state), weights) for _ in range(3)] == [False] * 3
    assert len(caught) == 1


def test_mixed_types_are_left_to_pytorch(recwarn, monkeypatch):
    monkeypatch.setattr(kernels, "_is_usable", lambda *_: True)
    _, state, weights = draw_mamba(SMALL, 1, torch.float16)
    assert kernels.is_usable(on_gpu(state), weights)
    assert not kernels.is_usable(on_gpu(state), in_float32(weights))
    assert not kernels.is_usable(on_gpu(state._replace(ssm=state.ssm.half())), weights)


# --- they compile for the GPUs they are meant for ---


@pytest.mark.slow
def test_nvcc_compiles_them_without_spills(tmp_path):
    source = kernels.SOURCE.read_text()
    assert emulated_cuda.count_kernels_without_spills(tmp_path, source, KERNELS) == len(KERNELS)


@pytest.mark.parametrize("capability", ["75", "80", "90"])
@pytest.mark.parametrize("name", KERNELS)
def test_pytorch_compiles_them_by_nvrtc_without_a_gpu_or_headers(name, capability, monkeypatch):
    assert emulated_cuda.compile_by_nvrtc(monkeypatch, capability, name, kernels.SOURCE)[:4] == b"\x7fELF"
