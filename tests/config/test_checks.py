"""Checks of single settings: the valid values pass, and every other one is refused with the rule and the remedy."""

import pytest

from grpo_kit.config import keep_finished_settings, load_config
from grpo_kit.config.checks import SCHEDULES, parse_duration, require_one_of


@pytest.mark.parametrize(
    ("text", "seconds"), [("3h30m", 12600), ("45m", 2700), ("90s", 90), ("1d", 86400), ("1.5h", 5400), ("1h1m1s", 3661)]
)
def test_durations_are_parsed_to_seconds(text, seconds):
    assert parse_duration("run.time_limit", text) == seconds


@pytest.mark.parametrize("text", ["", "3", "3 h", "h", "3h30", "-1h", "3x", "1h,30m", "0h", "0.0h0s"])
def test_an_invalid_duration_is_refused(text):
    with pytest.raises(ValueError, match=r"^run.time_limit is '.*above 0.* like 3h30m"):
        parse_duration("run.time_limit", text)


def test_a_run_with_an_invalid_time_limit_is_refused_when_it_is_loaded():
    assert load_config(["tiny"], ["run.time_limit=3h30m"]).run.time_limit == "3h30m"
    with pytest.raises(ValueError, match="run.time_limit is '0h'"):
        load_config(["tiny"], ["run.time_limit=0h"])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("grpo.max_grad_norm=inf", "inf"),
        ("grpo.epsilon_high=.inf", "inf"),
        ("dpo.sft_loss_weight=inf", "inf"),
        ("grpo.temperature=inf", "inf"),
        ("screening.sigma=.inf", "inf"),
        ("grpo.reward_weights=[1.0,nan]", "nan"),
        ("grpo.stages=[{steps: 3, epsilon_high: .inf}]", "inf"),
    ],
)
def test_a_number_that_is_not_finite_is_refused(setting, value):
    name = setting.split("=")[0] + ".epsilon_high" * ("stages" in setting)
    with pytest.raises(ValueError, match=rf"^{name} is {value}; a setting must be a finite number\. Set {name} to "):
        load_config(["tiny"], [setting])


@pytest.mark.parametrize("section", ["sft", "grpo", "dpo"])
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("lr_scheduler_type=foo", "is 'foo'; it must be one of linear, cosine, "),
        ("lr_scheduler_type=cosin", "is 'cosin'; .* Did you mean cosine"),
        ("lr_scheduler_type=warmup_stable_decay", "is 'warmup_stable_decay'; "),  # needs a number of steps beside it
        ("warmup_steps=-3", "is -3; .* Set {key} to 0 or more"),
        ("max_grad_norm=-1", "is -1.0; it bounds a norm"),
    ],
)
def test_every_stage_refuses_a_schedule_that_cannot_be(section, setting, words):
    key = f"{section}.{setting.split('=')[0]}"
    with pytest.raises(ValueError, match=f"^{key} {words.format(key=key)}"):
        load_config(["tiny"], [f"{section}.{setting}"])


def test_the_schedules_are_those_of_transformers_that_need_nothing_beside_them():
    from torch.nn import Parameter
    from torch.optim import SGD
    from transformers import SchedulerType, get_scheduler

    measured = {"reduce_lr_on_plateau", "greedy"}
    configured = {"cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay"}
    assert set(SCHEDULES) | measured | configured == {kind.value for kind in SchedulerType}
    for kind in SCHEDULES:
        get_scheduler(kind, SGD([Parameter()], lr=1.0), num_warmup_steps=1, num_training_steps=9).step()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("grpo.top_p=1.5", "tokens are drawn from the likeliest .* and to 1 for all"),
        ("grpo.top_p=0", "tokens are drawn"),
        ("grpo.top_k=-1", "0 means all tokens"),
        ("evaluation.top_p=-1", "tokens are drawn"),
        ("evaluation.top_p=1.01", "tokens are drawn"),
        ("evaluation.top_k=-5", "0 means all tokens, so it needs at least 0"),
        ("evaluation.temperature=-0.5", r"0 \(greedy\) is the least\. Set it to 0 or more"),
        ("grpo.beta=-0.1", "it is the weight of the KL"),
        ("grpo.epsilon=-0.2", "a ratio is clipped so far from 1.* Set {key} to 0 or more"),
        ("grpo.epsilon_high=-0.2", "a ratio is clipped"),
        ("grpo.num_iterations=0", "a batch is learnt from at least once"),
        ("lora.lora_alpha=0", "the update is scaled by it, and 0 trains nothing"),
        ("lora.lora_alpha=-32", "the update is scaled"),
        ("lora.lora_dropout=1", "it is the share of inputs that a step leaves out"),
        ("lora.lora_dropout=-0.1", "it is the share"),
        ("run.seed=-1", "random numbers start from a whole number of 32 bits"),
        ("run.seed=4294967296", "random numbers start .* from 0 to 4294967295"),
    ],
)
def test_a_number_that_nothing_can_be_done_with_is_refused_before_anything_is_loaded(setting, words):
    key = setting.split("=")[0]
    with pytest.raises(ValueError, match=rf"^{key} is -?[\d.]+; {words.format(key=key)}"):
        load_config(["tiny"], [setting])


def test_numbers_at_the_ends_of_their_ranges_are_taken():
    ends = ["grpo.top_p=1", "grpo.top_k=0", "evaluation.temperature=0", "grpo.beta=0", "grpo.epsilon=0"]
    ends += ["grpo.epsilon_high=null", "lora.lora_dropout=0", "lora.lora_alpha=1", "run.seed=4294967295"]
    assert load_config(["tiny"], [*ends, "grpo.stages=[{steps: 3}]"]).run.seed == 2**32 - 1
    for stage, words in (
        ("epsilon_high: -1", "epsilon_high in grpo.stages is -1.0; a ratio"),
        ("steps: -5", "steps in grpo.stages is -5; a stage takes a step"),
    ):
        with pytest.raises(ValueError, match=f"^{words}"):
            load_config(["tiny"], [f"grpo.stages=[{{{stage}}}]"])


@pytest.mark.parametrize(
    "key",
    ["policy.experts_on_host", "data.budgeted", "data.pass_rate", "grpo.learning_rate", "grpo.beta",
     "lora.lora_dropout", "evaluation.top_p"],
)  # fmt: skip
def test_a_number_with_a_range_of_its_own_is_refused_by_that(key):
    with pytest.raises(ValueError, match=rf"^{key} is "):
        load_config(["tiny"], [f"{key}=nan" if key != "data.pass_rate" else f"{key}=[nan,nan]"])


def test_settings_of_an_old_record_that_are_not_finite_are_refused_and_large_ones_are_not():
    with pytest.raises(ValueError, match="grpo.max_grad_norm is inf; "):
        keep_finished_settings(load_config(["tiny"]), [{"grpo": {"max_grad_norm": float("inf")}}])
    assert load_config(["tiny"], ["grpo.epsilon_high=1e9"]).grpo.epsilon_high == 1e9


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "off", "''", "9" * 10, "512 tokens", "[512]"])
def test_a_budget_of_thinking_is_a_number_of_tokens_or_the_rows_own(value):
    with pytest.raises(ValueError, match="policy.thinking_budget"):
        load_config(["tiny"], [f"policy.thinking_budget={value}"])


def test_the_budget_of_a_row():
    budgets = {
        value: load_config(["tiny"], [f"policy.thinking_budget={value}"]).policy for value in (512, "row", "null")
    }
    row = {"token_budget": 64}
    assert {value: policy.budget_of(row) for value, policy in budgets.items()} == {512: 512, "row": 64, "null": None}
    assert [budgets["row"].budget_of(other) for other in (None, {}, {"token_budget": None})] == [None] * 3
    for wrong in (0, "64", 1.5, True, [64]):
        with pytest.raises(ValueError, match="A row's token_budget is.*Correct the row"):
            budgets["row"].budget_of({"token_budget": wrong})
        assert budgets[512].budget_of({"token_budget": wrong}) == 512


def test_vllm_is_not_asked_to_cut_thoughts_in_training():
    with pytest.raises(ValueError, match="grpo.vllm is 'server' and policy.thinking_budget 64.*Leave one of them out"):
        load_config(["tiny"], ["grpo.vllm=server", "policy.thinking_budget=64"])


def test_an_environment_may_have_no_share_but_not_all_of_them():
    assert load_config(["tiny"], ["data.mix={math: 1, structured: 0}"]).data.mix == {"math": 1, "structured": 0}
    for mix, name in (("{math: 1, structured: -1}", "structured"), ("{math: 0, structured: 0}", "math")):
        with pytest.raises(ValueError, match=rf"^data.mix.{name} is .*; a share is above 0, or 0 for an environment"):
            load_config(["tiny"], [f"data.mix={mix}"])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("sft.source=' '", "sft.source is empty; there is nothing to learn from"),
        ("sft.reasoning=none", "sft.reasoning is 'none'"),
        ("sft.packing=true", "sft.packing is true; packed rows run into each other in Mamba's layers"),
        ("sft.limit=0", "sft.limit is 0; at least one row is needed"),
        ("sft.max_length=1", "sft.max_length is 1; a row has a prompt and a completion"),
        ("sft.completions_per_prompt=0", "sft.completions_per_prompt is 0; a prompt gives at least one text"),
        ("sft.max_steps=0", "sft.max_steps is 0; training takes at least one step"),
        ("sft.learning_rate=0", "sft.learning_rate is 0.0; it must be above 0"),
        ("sft.num_train_epochs=3", "sft.num_train_epochs is not a key of the configuration"),
    ],
)
def test_a_setting_of_sft_that_cannot_work_is_refused(setting, words):
    with pytest.raises(ValueError, match=words):
        load_config(["tiny"], [setting])


@pytest.mark.parametrize("value", [None, 5, ["train"], {"train": 1}])
def test_a_choice_that_is_no_text_is_refused_like_any_other(value):
    with pytest.raises(ValueError) as raised:
        require_one_of("stage", value, ("sft", "train"))
    assert str(raised.value) == f"stage is {value!r}; it must be one of sft, train."
