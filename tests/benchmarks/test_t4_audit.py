"""The audit finds all that a T4 cannot run, and the kit does none of it when it loads, samples and trains in 4 bit."""

import sys
import types

import pytest
import torch

from benchmarks import t4_audit
from grpo_kit import config
from grpo_kit.adapters import lora
from grpo_kit.nemotron import convert, nf4_checkpoint, tiny
from grpo_kit.nemotron.placement.tiered_layers import find_tiered_layers
from grpo_kit.planning import memory
from grpo_kit.policy.load import load_policy

STACK = (8, 64, 128)  # the embedded policy's routed experts: how many, intermediate, hidden
IDS = torch.randint(16, 272, (3, 40), generator=torch.Generator().manual_seed(0))


def multiply_groups(rows, matrices, ends):
    return torch.nn.functional.grouped_mm(rows, matrices, offs=torch.tensor(ends, dtype=torch.int32))


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda: torch.ones(3).to(torch.bfloat16), "met a bf16 tensor"),
        (lambda: torch.ones(3).bfloat16().sum(), "met a bf16 tensor"),
        (lambda: torch.zeros(8, 64, 128, dtype=torch.float16), "a layer's experts side by side"),
        (lambda: torch.zeros(8, 128, 64), "a layer's experts side by side"),
        (lambda: torch.zeros(64, 8, 128).transpose(0, 1).contiguous(), "a layer's experts side by side"),
        (lambda: torch.zeros(8 * 64, 128) + 1, "a layer's experts side by side"),
        (lambda: multiply_groups(torch.zeros(16, 32), torch.zeros(2, 32, 16), [8, 16]), "grouped_mm"),
    ],
)  # fmt: skip
def test_what_a_t4_lacks_is_noticed(work, message):
    with pytest.raises(RuntimeError, match=message), t4_audit.audit(STACK):
        work()


def test_the_fused_experts_are_noticed_in_use_and_when_they_are_loaded():
    model, _ = load_policy(config.Policy())
    with pytest.raises(RuntimeError, match="side by side|grouped_mm"), t4_audit.audit(STACK):
        model(IDS)
    with pytest.raises(ValueError, match="side by side"), t4_audit.audit(STACK):  # a file that cannot be loaded
        load_policy(config.Policy())


def test_it_is_noticed_in_the_backward_pass_too():
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    y.register_hook(lambda grad: grad.bfloat16().float())
    with pytest.raises(RuntimeError, match="bf16"), t4_audit.audit(STACK):
        y.sum().backward()


def test_a_triton_kernel_is_refused_and_triton_is_left_as_it_was(monkeypatch):
    class JITFunction:
        def run(self):
            return "ran"

    jit = types.ModuleType("triton.runtime.jit")
    jit.JITFunction = JITFunction
    monkeypatch.setattr(t4_audit.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "triton", types.ModuleType("triton"))
    monkeypatch.setitem(sys.modules, "triton.runtime", types.ModuleType("triton.runtime"))
    monkeypatch.setitem(sys.modules, "triton.runtime.jit", jit)
    with t4_audit.audit(STACK), pytest.raises(RuntimeError, match="is a Triton kernel"):
        JITFunction().run()
    assert JITFunction().run() == "ran"


@pytest.fixture(scope="module")
def nf4_folder(tmp_path_factory):
    """The embedded policy, published as others publish, converted under the audit."""
    with t4_audit.audit(STACK) as audit:
        folder = convert.convert_to_nf4(tiny.FOLDER, tmp_path_factory.mktemp("nf4") / "out", "float16")
    assert audit.seen > 50
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "targets", [["in_proj", "out_proj", "shared_experts.up_proj"], ["q_proj", "up_proj", "down_proj"]]
)
def test_loading_sampling_and_training_in_4_bit_and_float16_stay_within_a_t4(nf4_folder, targets):
    with t4_audit.audit(STACK) as audit:
        model = nf4_checkpoint.load_nf4_model(nf4_folder, "cpu", experts_on_host=0.5)
        model = lora.add_lora(model, config.Lora(r=4, target_modules=targets), seed=1)
        model.generate(IDS, max_new_tokens=8, pad_token_id=0)
        model.train().gradient_checkpointing_enable()
        model(input_ids=IDS, labels=IDS).loss.backward()
    assert audit.seen > 1000 and len(find_tiered_layers(model)) == 2
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora_B" in n and ".experts." not in n)


@pytest.mark.slow
def test_a_whole_grpo_step_in_4_bit_stays_within_a_t4(tmp_path, nf4_folder, monkeypatch):
    """TRL's own casts included, after which it would hold bf16; sampled, paid, trained, stepped."""
    monkeypatch.setattr(memory, "TILE_TOKENS", 500)  # 512 tokens have the shape of this policy's experts in one axis
    from grpo_kit.data.preparation import prepare
    from grpo_kit.runs.reading import read_lines
    from grpo_kit.runs.run import find_run
    from grpo_kit.training import train
    from tests.helpers.settings import SMALL

    chosen = config.load_config(
        ["tiny"],
        [*SMALL, f"policy.model={nf4_folder}", "policy.load_in_4bit=true", "policy.dtype=float16",
         "policy.experts_on_host=0.5", "grpo.max_steps=2", "grpo.gradient_checkpointing=true"],
    )  # fmt: skip
    run = find_run("r", tmp_path / "runs")
    prepare(chosen, run)
    trainer = train.make_trainer(
        chosen, run, [lambda completions, **_: [float(len(c[0]["content"])) for c in completions]] * 2
    )
    with t4_audit.audit(STACK) as audit:
        trainer.train()
    assert audit.seen > 10_000
    last = read_lines(run.metrics)[-1]
    assert last["step"] == 2 and 0 < last["host_share"] < 1
