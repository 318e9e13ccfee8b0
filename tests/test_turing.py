"""The audit notices all that a T4 lacks, and the kit does none of it in loading, sampling or training in 4 bit."""

import sys
import types

import pytest
import torch

from grpo_kit import adapter, checkpoint, config, convert, memory, policy, tiers, tiny, turing

STACK = (8, 64, 128)  # the embedded policy's routed experts: how many, intermediate, hidden
IDS = torch.randint(16, 272, (3, 40), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda: torch.ones(3).to(torch.bfloat16), "met a bf16 tensor"),
        (lambda: torch.ones(3).bfloat16().sum(), "met a bf16 tensor"),
        (lambda: torch.zeros(8, 64, 128, dtype=torch.float16), "a layer's experts side by side"),
        (lambda: torch.zeros(8, 128, 64), "a layer's experts side by side"),
        (lambda: torch.zeros(64, 8, 128).transpose(0, 1).contiguous(), "a layer's experts side by side"),
        (lambda: torch.zeros(8 * 64, 128) + 1, "a layer's experts side by side"),
        (lambda: torch.nn.functional.grouped_mm(torch.zeros(16, 32), torch.zeros(2, 32, 16), offs=torch.tensor([8, 16], dtype=torch.int32)), "grouped_mm"),
    ],
)  # fmt: skip
def test_what_a_t4_lacks_is_noticed(work, said):
    with pytest.raises(RuntimeError, match=said), turing.audit(STACK):
        work()


def test_the_fused_experts_are_noticed_in_use_and_when_they_are_loaded():
    model, _ = policy.load_policy(config.Policy())
    with pytest.raises(RuntimeError, match="side by side|grouped_mm"), turing.audit(STACK):
        model(IDS)
    with pytest.raises(RuntimeError), turing.audit(STACK):
        policy.load_policy(config.Policy())


def test_it_is_noticed_in_the_backward_pass_too():
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    y.register_hook(lambda grad: grad.bfloat16().float())
    with pytest.raises(RuntimeError, match="bf16"), turing.audit(STACK):
        y.sum().backward()


def test_a_triton_kernel_is_refused_and_triton_is_left_as_it_was(monkeypatch):
    class JITFunction:
        def run(self):
            return "ran"

    jit = types.ModuleType("triton.runtime.jit")
    jit.JITFunction = JITFunction
    monkeypatch.setattr(turing.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "triton", types.ModuleType("triton"))
    monkeypatch.setitem(sys.modules, "triton.runtime", types.ModuleType("triton.runtime"))
    monkeypatch.setitem(sys.modules, "triton.runtime.jit", jit)
    with turing.audit(STACK), pytest.raises(RuntimeError, match="is a Triton kernel"):
        JITFunction().run()
    assert JITFunction().run() == "ran"


@pytest.fixture(scope="module")
def nf4_folder(tmp_path_factory):
    """The embedded policy, published as others publish, converted under the audit."""
    with turing.audit(STACK) as audit:
        folder = convert.convert(tiny.FOLDER, tmp_path_factory.mktemp("nf4") / "out", "float16")
    assert audit.seen > 50
    return folder


@pytest.mark.parametrize(
    "targets", [["in_proj", "out_proj", "shared_experts.up_proj"], ["q_proj", "up_proj", "down_proj"]]
)
def test_loading_sampling_and_training_in_4_bit_and_float16_stay_within_a_t4(nf4_folder, targets):
    with turing.audit(STACK) as audit:
        model = checkpoint.load(nf4_folder, "cpu", experts_on_host=0.5)
        model = adapter.add_lora(model, config.Lora(r=4, target_modules=targets), seed=1)
        model.generate(IDS, max_new_tokens=8, pad_token_id=0)
        model.train().gradient_checkpointing_enable()
        model(input_ids=IDS, labels=IDS).loss.backward()
    assert audit.seen > 1000 and len(tiers.tiers_of(model)) == 2
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora_B" in n and ".experts." not in n)


def test_a_whole_grpo_step_in_4_bit_stays_within_a_t4(tmp_path, nf4_folder, monkeypatch):
    """TRL's own casts included, after which it would hold bf16; sampled, paid, trained, stepped."""
    monkeypatch.setattr(memory, "TILE_TOKENS", 500)  # 512 tokens have the shape of this policy's experts in one axis
    from grpo_kit import data, train, workspace
    from tests.conftest import SMALL

    chosen = config.load_config(
        ["tiny"],
        [*SMALL, f"policy.model={nf4_folder}", "policy.load_in_4bit=true", "policy.dtype=float16", "policy.experts_on_host=0.5",
         "grpo.max_steps=2", "grpo.gradient_checkpointing=true"],
    )  # fmt: skip
    run = workspace.open_run("r", tmp_path / "runs")
    data.prepare(chosen, run)
    trainer = train.make_trainer(
        chosen, run, [lambda completions, **_: [float(len(c[0]["content"])) for c in completions]] * 2
    )
    with turing.audit(STACK) as audit:
        trainer.train()
    assert audit.seen > 10_000
    last = workspace.read_lines(run.metrics)[-1]
    assert last["step"] == 2 and 0 < last["host_share"] < 1
