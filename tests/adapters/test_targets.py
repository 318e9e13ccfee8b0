"""Target modules in the spellings that people use, and which modules they mean."""

import json

import pytest
from typer.testing import CliRunner

from grpo_kit import config
from grpo_kit.adapters.lora import add_lora, describe_lora
from grpo_kit.adapters.targets import resolve_targets
from grpo_kit.cli.main import app
from grpo_kit.config import Lora
from grpo_kit.config.lora import split_targets
from grpo_kit.policy.load import load_policy
from grpo_kit.training.trl_settings import make_trl_config

LINEARS = [f"model.layers.{i}.mixer.{leaf}" for i in (0, 1) for leaf in ("q_proj", "v_proj", "shared_experts.up_proj")]
EXPERTS = [f"model.layers.{i}.mixer.experts.{e}.up_proj" for i in (0, 1) for e in (0, 1)]


@pytest.mark.parametrize(
    ("targets", "endings"),
    [
        (["q_proj", "up_proj"], ["q_proj", "up_proj"]),  # names stay as they are: routed experts too
        (["all-linear"], ["q_proj", "shared_experts.up_proj", "v_proj"]),
        (["q_proj", "all-linear"], ["q_proj", "shared_experts.up_proj", "v_proj"]),
        ([".*[qv]_proj"], ["q_proj", "v_proj"]),
        (["q_proj|v_proj"], ["q_proj", "v_proj"]),  # matches no whole name, but endings
        ([r".*\.1\..*q_proj"], ["layers.1.mixer.q_proj"]),
        ([r"(?!.*\.1\.).*q_proj"], ["layers.0.mixer.q_proj"]),
        ([r".*experts\.\d+\.up_proj"], ["0.up_proj", "1.up_proj"]),
        (["norm"], ["norm"]),
    ],
)
def test_a_target_means_the_modules_that_its_writer_expects(targets, endings):
    assert resolve_targets(targets, LINEARS, EXPERTS, ["model.norm"]) == endings


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("q_projj", r"names 'q_projj', which matches nothing.*it has q_proj, up_proj, v_proj\..*mean q_proj\?"),
        ("all_linear", "Did you mean all-linear"),
        ("norm.*", "matches nothing in this model"),  # an expression means only what can have a LoRA
        ("(q|v", "is not a regular expression"),
    ],
)
def test_a_target_that_means_nothing_is_named_with_the_choices(target, message):
    with pytest.raises(ValueError, match=message):
        resolve_targets([target], LINEARS, EXPERTS, ["model.norm"])


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("all-linear", ["all-linear"]),
        ("q_proj", ["q_proj"]),
        ("q_proj, v_proj,", ["q_proj", "v_proj"]),
        ("[q_proj,v_proj]", ["q_proj", "v_proj"]),
        (".*[qv]_proj{1,1}", [".*[qv]_proj{1,1}"]),
    ],
)
def test_one_text_stands_for_a_list(text, targets):
    settings = config.load_config("tiny", f"lora.target_modules={text}")
    assert settings.lora.target_modules == targets
    assert config.keep_finished_settings(settings, [], [f"lora.target_modules={text}"]).lora.target_modules == targets
    assert text[0] == "[" or split_targets(text) == targets


@pytest.mark.parametrize(
    ("targets", "line"),
    [
        (["all-linear"], "LoRA touches 4 of 4 layers and 10 of 11 linear modules; it trains 45,248 parameters beside"),
        (["q_proj"], "LoRA touches 1 of 4 layers and 1 of 11 linear modules; it trains 4,096 parameters beside"),
    ],
)
def test_the_share_of_layers_and_parameters_is_said_in_one_line(targets, line):
    model = add_lora(load_policy(config.Policy())[0], Lora(target_modules=targets), seed=0)
    total = sum(value.numel() for name, value in model.named_parameters() if "lora_" not in name)
    assert describe_lora(model).startswith(line) and f"the model's {total:,} (" in describe_lora(model)


def test_all_linear_of_a_4_bit_policy_leaves_the_routed_experts_out(tmp_path):
    model = load_policy(config.Policy(load_in_4bit=True))[0]
    text = describe_lora(add_lora(model, Lora(target_modules=["all-linear"]), seed=0))
    assert text.startswith("LoRA touches 4 of 4 layers and 10 of 11") and "beside the model's 534,116" in text
    names = config.load_config("tiny", "lora.target_modules=all-linear")
    assert not make_trl_config(names, tmp_path).ddp_find_unused_parameters


SHORT = [
    "data.limit=60", "data.test_size=8", "data.val_size=4", "grpo.max_steps=2", "grpo.num_generations=4",
    "grpo.per_device_train_batch_size=8", "grpo.resample_budget=0", "grpo.mask_truncated_completions=false",
    "evaluation.batch_size=8",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "saved", "in_4bit"),
    [
        ("all-linear", {"q_proj", "in_proj", "shared_experts.up_proj"}, False),
        ("all-linear", {"q_proj", "in_proj", "shared_experts.up_proj"}, True),
        (".*[qkvo]_proj", {"q_proj", "k_proj", "v_proj", "o_proj"}, False),
        (".*[qkvo]_proj", {"q_proj", "k_proj", "v_proj", "o_proj"}, True),
        (r".*experts\.\d+\.(up|down)_proj", {"experts.0.up_proj", "experts.7.down_proj"}, True),
    ],
)
def test_what_follows_a_training_takes_its_targets(tmp_path, monkeypatch, target, saved, in_4bit):
    monkeypatch.setenv("GRPO_KIT_ROOT", str(tmp_path / "runs"))

    def call(*words):
        result = CliRunner().invoke(app, [*map(str, words), "--run", "r"])
        assert result.exit_code == 0, result.output + repr(result.exception)
        return " ".join(result.output.split())

    four = f"policy.load_in_4bit={str(in_4bit).lower()}"
    call("data", "-c", "tiny", *SHORT, f"lora.target_modules={target}", four)
    call("train")
    names = json.loads((tmp_path / "runs/r/adapter/adapter_config.json").read_text())["target_modules"]
    assert all(any(name.endswith(ending) or ending.endswith(name) for name in names) for ending in saved), names
    assert target not in names
    call("evaluate")
    call("package", "--out", tmp_path / "x.zip")
    assert "gap 0)" in call("check", tmp_path / "x.zip")  # logits of the trained policy and of the zip
    for engine in ("trl", "verl", "nemo-rl"):
        call("handoff", "--to", engine)
        files = (tmp_path / f"runs/r/handoff/{engine}").rglob("*")
        settings = "".join(path.read_text() for path in files if path.suffix in (".yaml", ".py", ".sh"))
        carried = {"trl": [], "nemo-rl": set(names) - {"out_proj"}}.get(engine, names)  # NeMo-RL cannot train out_proj
        assert target not in settings and all(name in settings for name in carried), engine
    call("handoff", "--to", "trl", "--merge", "--out", tmp_path / "merged")
    assert (tmp_path / "merged/model/model.safetensors").is_file()
