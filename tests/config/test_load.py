"""Bad configurations are refused in one sentence with value, rule and remedy; good ones resolve."""

from dataclasses import FrozenInstanceError, asdict

import pytest
from omegaconf import OmegaConf

from grpo_kit import config

PRESETS = ["24gb", "80gb", "deepscaler", "t4", "t4-4b", "t4x2", "tiny", "tiny-environments", "tiny-office"]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_resolves_to_every_key(preset):
    settings = config.load_config([preset])
    assert settings.run.name == preset
    assert set(OmegaConf.create(config.to_yaml(settings))) == {
        "policy",
        "lora",
        "data",
        "grpo",
        "evaluation",
        "screening",
        "sft",
        "dpo",
        "environments",
        "judge",
        "run",
    }


def test_presets_are_the_files():
    assert config.preset_names() == PRESETS


@pytest.mark.parametrize("preset", ["t4-4b", "t4", "t4x2"])
def test_the_t4_presets_use_float16_with_a_loss_scaler(preset):
    settings = config.load_config([preset])
    assert settings.policy.dtype == "float16" and settings.grpo.fp16 and not settings.grpo.bf16


def test_layers_merge_left_to_right(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("grpo: {max_steps: 7, learning_rate: 2.0e-5}\n")
    settings = config.load_config(["tiny", str(mine)], ["grpo.max_steps=9"])
    assert (settings.grpo.max_steps, settings.grpo.learning_rate, settings.policy.model) == (9, 2e-5, "tiny")


def test_the_written_configuration_reads_back_the_same(tmp_path):
    settings = config.load_config(["t4"], ["grpo.epsilon_high=0.28", "data.system_prompt='a: b # c'", "run.force=true"])
    (tmp_path / "c.yaml").write_text(config.to_yaml(settings))
    again = config.load_config([str(tmp_path / "c.yaml")])
    assert not again.run.force  # meant for one command
    assert {**asdict(again), "run": 0} == {**asdict(settings), "run": 0}


def test_a_configuration_cannot_be_changed_later():
    with pytest.raises(FrozenInstanceError):
        config.load_config(["tiny"]).grpo.max_steps = 5


@pytest.mark.parametrize(
    ("overrides", "value", "remedy"),
    [
        (["grpo.num_generation=3"], "grpo.num_generation", "Did you mean grpo.num_generations?"),  # a typo
        (["num_generations=3"], "num_generations", "Did you mean grpo.num_generations?"),  # section forgotten
        (["grpo.r=3"], "grpo.r", "Did you mean lora.r?"),  # wrong section
        (["zzz.qqq=3"], "zzz", "--dry-run"),  # nothing like it
        (["grpo=5"], "grpo", "grpo.max_steps="),  # a section is not a value
        (["data.columns=null"], "data.columns", "data.columns.prompt="),  # nor can it be removed
        (["grpo.num_generations"], "'grpo.num_generations'", "key=value"),  # no equals sign
        (["=3"], "'=3'", "key=value"),  # no key
        (["grpo.num_generations=abc"], "grpo.num_generations is 'abc'; it must be a whole number", "=8'"),
        (["grpo.max_steps=1.5"], "grpo.max_steps is 1.5; it must be a whole number", "Write 'grpo.max_steps="),
        (["data.source=null"], "data.source is None; it must be a text", "Write 'data.source="),  # required
        (["grpo.reward_funcs=a.py"], "'a.py'; it must be a list of texts", "Write 'grpo.reward_funcs=[math_answer.py"),
        (["grpo.reward_weights=[1,x]"], "[1, 'x']; it must be a list of numbers", "=[1.0,0.1]'"),
        (["policy.load_in_4bit=maybe"], "'maybe'; it must be true or false", "=true'"),
        (["data.limit=x"], "'x'; it must be a whole number", "=10'"),  # None by default
        (["grpo.stages=[{max_completion_length: x}]"], "Value 'x'", "Correct the"),
        (["grpo.reward_funcs=[a"], "'grpo.reward_funcs=[a' cannot be read", "Close every bracket"),
        (["grpo.lr=3"], "grpo.lr", "Did you mean grpo.learning_rate?"),  # another trainer's name
        (["train.lr=3"], "train.lr is not a key", "Did you mean grpo.learning_rate?"),  # and its section
        (["grpo.batch_size=3"], "grpo.batch_size", "Did you mean grpo.per_device_train_batch_size?"),
        (["lora.temprature=3"], "lora.temprature", "Did you mean grpo.temperature?"),  # the last part decides
        (["evaluation.num_samples=3"], "evaluation.num_samples", "Did you mean evaluation.num_generations?"),  # its own
        (["evaluation.max_tokens=3"], "evaluation.max_tokens", "Did you mean evaluation.max_completion_length?"),
        (["evaluation.max_length=3"], "evaluation.max_length", "Did you mean evaluation.max_completion_length?"),
        (["evaluation.limit=3"], "evaluation.limit", "Did you mean evaluation.num_problems?"),
        (["eval.num_generations=3"], "eval.num_generations", "Did you mean evaluation.num_generations?"),
        (["evaluatoin.num_samples=3"], "evaluatoin.num_samples", "Did you mean evaluation.num_generations?"),
        (["evaluation.nosuch=1"], "evaluation.nosuch", "--dry-run"),  # nothing like it there, and little elsewhere
        (["evaluation.seed=1"], "evaluation.seed", "Did you mean run.seed?"),  # evaluation.sets is less like it
        (["evaluation.lr=3"], "evaluation.lr", "Did you mean grpo.learning_rate?"),  # nothing to learn there
        (["screening.num_samples=3"], "screening.num_samples", "Did you mean screening.num_generations?"),
        (["sft.lr=3"], "sft.lr", "Did you mean sft.learning_rate?"),
        (["sft.batch_size=3"], "sft.batch_size", "Did you mean sft.per_device_train_batch_size?"),
        (["dpo.kl_coef=3"], "dpo.kl_coef", "Did you mean dpo.beta?"),
        (["judge.model_name=a"], "judge.model_name", "Did you mean judge.model?"),
        (["num_samples=3"], "num_samples", "Did you mean grpo.num_generations?"),
        (["training.num_generations=3"], "training.num_generations", "Did you mean grpo.num_generations?"),
        (["evaluation.temprature=3"], "evaluation.temprature", "Did you mean evaluation.temperature?"),
        (["grpo.num_generations=1"], "is 1;", "2 or more"),  # a group of one
        (["grpo.num_generations=7"], "is 7", "multiple of 7"),  # 64 completions hold no whole number of groups of 7
        (["grpo.max_steps=0"], "is 0;", "1 or more"),
        (["grpo.max_completion_length=0"], "is 0;", "1 or more"),
        (["grpo.learning_rate=0"], "is 0.0;", "above 0"),
        (["grpo.temperature=0"], "is 0.0;", "1.0"),  # a greedy group is eight times the same
        (["grpo.reward_weights=[1.0]"], "1 entries", "same length"),
        (["grpo.reward_funcs=[]", "grpo.reward_weights=[]"], "empty", "FILE.py:function"),
        (["grpo.fp16=true", "grpo.bf16=true"], "both true", "false"),
        (["lora.r=33"], "is 33;", "32 or less"),  # more than the scorer loads
        (["lora.r=0"], "is 0;", "1 or more"),
        (["lora.target_modules=[]"], "empty", "at least one"),
        (["lora.target_modules=(unclosed"], "(unclosed", "not a regular expression"),
        (["policy.dtype=fp16"], "'fp16'", "Did you mean float16?"),
        (["data.test_size=0"], "is 0;", "1 or more"),
        (["data.val_size=-1"], "is -1;", "0 or more"),
        (["data.limit=0"], "is 0;", "1 or more"),
        (["evaluation.num_problems=0"], "is 0;", "1 or more"),
        (["evaluation.batch_size=0"], "is 0;", "1 or more"),
        (["evaluation.temperature=-1"], "is -1.0;", "0 (greedy)"),
    ],
)
def test_a_bad_override_is_one_sentence_with_value_and_remedy(overrides, value, remedy):
    with pytest.raises(ValueError) as error:
        config.load_config(["tiny"], overrides)
    message = str(error.value)
    assert value in message and remedy in message and "\n" not in message


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="'tinny' is neither .* Did you mean tiny?"):
        config.load_config(["tinny"])


def test_one_source_and_one_override_need_no_list(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("grpo: {max_steps: 3}")
    expected = config.load_config(["tiny"], ["grpo.max_steps=3"])
    assert config.load_config("tiny", "grpo.max_steps=3") == expected
    assert config.load_config(path) == config.load_config([path]) == config.load_config([str(path)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3,), r'sources is 3; it must be a text or a list of texts. Write sources=\["tiny"\].'),
        ((config.Policy(),), "sources is of type Policy; it must be"),
        ((["tiny", None],), "An item of sources is None; it must be a text."),
        (("tiny", {"grpo.max_steps": 3}), r"overrides is {.*: 3}; .* Write overrides=\["),
    ],
)
def test_arguments_of_another_type_are_refused_in_one_sentence(arguments, message):
    with pytest.raises(TypeError, match=message):
        config.load_config(*arguments)


def test_a_missing_yaml_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml does not exist"):
        config.load_config(["nowhere.yaml"])


@pytest.mark.parametrize(
    "text",
    [
        "grpo: [unclosed",  # not YAML
        "- a\n- b\n",  # a list
        "",  # nothing
        "grpo: {max_step: 3}\n",  # a typo inside a file
        "\x00",  # not even text
    ],
)
def test_a_bad_yaml_file_is_one_sentence(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    if text == "":
        assert config.load_config([str(path)]).grpo == config.Grpo()  # an empty file changes nothing
        return
    with pytest.raises(ValueError) as error:
        config.load_config([str(path)])
    assert "\n" not in str(error.value)


def test_an_override_may_hold_spaces_equals_and_slashes():
    assert config.load_config(["tiny"], ["data.source=/a b/c=d.jsonl"]).data.source == "/a b/c=d.jsonl"


def test_the_placement_of_weights_does_not_change_a_policys_identity():
    placed, plain = config.Policy(experts_on_host=0.3, experts_overflow="cuda:1", nf4_folder="/a"), config.Policy()
    assert placed.identity() == plain.identity() != config.Policy(load_in_4bit=True).identity()


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_of_experts_outside_0_to_1_is_refused(share):
    with pytest.raises(ValueError, match=f"experts_on_host is {share}"):
        config.load_config(["tiny"], [f"policy.experts_on_host={share}"])


def test_keep_finished_settings_keeps_the_settings_of_finished_stages():
    made = {"data": asdict(config.Data(source="mine.jsonl", test_size=9)), "seed": 1}
    settled = config.keep_finished_settings(config.load_config(["tiny"], ["grpo.max_steps=5"]), [made])
    assert (settled.data.source, settled.data.test_size, settled.grpo.max_steps) == ("mine.jsonl", 9, 5)


def test_keep_finished_settings_lets_an_explicit_override_through_so_that_the_stage_can_object():
    made = {"data": asdict(config.Data(source="mine.jsonl"))}
    settings = config.load_config(["tiny"], ["data.source=other.jsonl"])
    assert config.keep_finished_settings(settings, [made], ["data.source=other.jsonl"]).data.source == "other.jsonl"


@pytest.mark.parametrize("where", ["cpu", "cuda", "cuda:0", "cuda:2", "disk", ""])
def test_experts_overflow_to_the_host_or_to_the_second_gpu(where):
    with pytest.raises(ValueError, match=f"experts_overflow is '{where}'; it must be one of host, cuda:1"):
        config.Policy(experts_overflow=where)
    assert config.Policy(experts_overflow="cuda:1").experts_overflow == "cuda:1"


REFERENCES = [
    "${oc.env:KAGGLE_KEY}", "x${oc.env:KAGGLE_KEY,none}", "${oc.decode:${oc.env:KAGGLE_KEY}}", "${oc.create:[1]}",
    "${oc.select:run.seed}", "${run.name}", "${.seed}", "\\\\${oc.env:KAGGLE_KEY}",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("key", ["data.source", "run.report_to", "grpo.max_steps"])
def test_a_reference_is_refused_before_it_is_resolved(reference, key, tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLE_KEY", "secret")
    section, name = key.split(".")
    value = f"['{reference}']" if key == "run.report_to" else f"'{reference}'"
    file = tmp_path / "mine.yaml"
    file.write_text(f"{section}: {{{name}: {value}}}\n")
    calls = [
        lambda: config.load_config(str(file)),
        lambda: config.load_config("tiny", f"{key}={value}"),
        lambda: config.keep_finished_settings(config.load_config("tiny"), [], [f"{key}={value}"]),
        lambda: config.keep_finished_settings(config.load_config("tiny"), [{section: {name: reference}}]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=rf"^{key} is .*must not refer .*Write the value itself") as error:
            call()
        assert "secret" not in str(error.value)


@pytest.mark.parametrize("text", ["data.mix={math:3}", "data.mix.math=many"])
def test_a_share_that_is_no_number_says_how_shares_are_written(text):
    with pytest.raises(
        ValueError, match=r"data\.mix has no number for math; .* Write 'data\.mix=\{math: 1\}', with a space"
    ):
        config.load_config("tiny", text)
    assert config.load_config("tiny", "data.mix={math: 3, json: 0.5}").data.mix == {"math": 3.0, "json": 0.5}


@pytest.mark.parametrize("text", ["environments=[a]", "environments=3", "environments=null"])
def test_environments_that_are_no_sections_say_how_one_is_written(text):
    with pytest.raises(ValueError, match=r"Write 'environments\.NAME\.reward_funcs=\[FILE\.py:function\]'"):
        config.load_config("tiny", text)


FUNCS = r"environments\.count\.reward_funcs is .* must be a list of texts\. Write 'environments\.count\.reward_funcs="


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("environments.count=a.py", r"environments\.count is a\.py; it is a section .*count\.reward_funcs=\[FILE\.py:"),
        ("environments.count=[a.py]", "it is a section with the keys of one environment"),
        ("environments.count=", "it is a section with the keys of one environment"),
        ("environments.count.reward_func=[a.py]", r"not a key .* Did you mean environments\.count\.reward_funcs\?"),
        ("environments.count.reward_funcs=a.py", FUNCS),
        ("environments={count: {reward_funcs: {a: b}}}", FUNCS),
        ("environments.count.reward_weights=1", r"must be a list of numbers\. Write '.*weights=\[1\.0\]'"),
        ("grpo.reward_funcs={a: b}", r"grpo\.reward_funcs is \{'a': 'b'\}; it must be a list of texts"),
        ("data.paths.gsm8k=[a]", r"data\.paths\.gsm8k is \['a'\]; it must be a text"),
        ("data.mix={math: [3]}", "data.mix has no number for math"),
        ("data.mix=[math]", r"data\.mix is \['math'\]; it must be a mapping"),
    ],
)
def test_a_value_of_another_shape_is_named_with_its_key_and_a_right_one(text, words):
    with pytest.raises(ValueError, match=words):
        config.load_config("tiny", text)


def test_another_trainers_division_by_the_batch_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="the environment with the widest rewards would shrink the others"):
        config.load_config("tiny", "grpo.scale_rewards=batch")


def test_one_key_of_an_environment_can_be_set_alone():
    loaded = config.load_config("tiny", "environments.documents.reward_weights=[0.5]")
    assert loaded.rewards_of("documents").reward_funcs == ["documents_qa.py:documents_qa_reward"]
    assert loaded.rewards_of("documents").reward_weights == [0.5]
    first, second = "environments.own.reward_funcs=[a.py:f]", "environments.own.reward_weights=[2]"
    again = config.keep_finished_settings(config.load_config("tiny", first), [], [second])
    assert again.rewards_of("own") == config.Environment(["a.py:f"], [2.0])
    both = config.load_config("tiny", [first, second])
    assert both.environments == again.environments


@pytest.mark.parametrize("name", ["Math", "a b", "1"])
def test_the_name_of_an_environment_is_a_plain_one(name):
    with pytest.raises(ValueError, match="named by at most 40 letters"):
        config.load_config("tiny", f"environments={{'{name}': {{reward_funcs: [a.py]}}}}")


def test_aliases_that_stand_for_too_much_are_refused_without_a_way_to_lift_the_limit(tmp_path):
    path = tmp_path / "bomb.yaml"
    lines = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    path.write_text("\n".join(["a0: &a0 [x, x]", *lines]))
    with pytest.raises(ValueError, match=r"its aliases \(\*name\) stand for more values.*Correct it\.$") as error:
        config.load_config([str(path)])
    assert "omegaconf" not in str(error.value).lower()
