"""The card is read back by the Hub's own classes, says what was measured and nothing else, and no text can break it."""

import ast
import re
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard

from grpo_kit.config import Policy
from grpo_kit.nemotron.base_models import LIGHTNING, PUBLISHED
from grpo_kit.publishing.base import find_base
from grpo_kit.publishing.card import CURVES, make_metadata, render_card
from grpo_kit.publishing.folder import NAMES, read_modules
from grpo_kit.publishing.run_facts import Example, Measured, Source, collect_facts
from tests.helpers.settings import ROOT

HEADINGS = ["Results", "Curves", "Samples", "Load it", "Training", "Data", "Limits", "Licence"]
HOSTILE = "```\n---\nlicense: mit\n---\n</details><script>alert(1)</script>\n````\n# free\n| a | b |"


@pytest.fixture(scope="module")
def facts(trained):
    """The facts of the small run, as if its base were the 30B."""
    config, run = trained
    base = find_base(Policy(model=PUBLISHED, revision="main"))
    return collect_facts(config, run, "ada/sums", base, read_modules(run.adapter))


def section(card, name):
    return card.split(f"\n## {name}\n")[1].split("\n## ")[0]


def without_blocks(text):
    """The text without its fenced blocks, as CommonMark reads them."""
    kept, fence = [], None
    for line in text.split("\n"):
        if fence:
            fence = None if re.fullmatch(f"{fence}`*", line) else fence
        elif match := re.match("`{3,}", line):
            fence = match[0]
        else:
            kept.append(line)
    assert fence is None
    return "\n".join(kept)


def test_the_hubs_own_classes_read_the_metadata_back(facts):
    report = facts.measured[1].report
    data = ModelCard(render_card(facts)).data
    assert (data.base_model, data.base_model_relation, data.library_name) == (PUBLISHED, "adapter", "peft")
    assert (data.license, data.license_name, data.pipeline_tag) == (
        "other", "nvidia-nemotron-open-model-license", "text-generation",
    )  # fmt: skip
    assert data.tags == ["lora", "grpo-kit", "grpo", "nemotron_h", "math"] and data.language == "en"
    assert data.get("datasets") is None  # the kit made them
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", round(report["pass@1"], 4))
    assert result.metric_name == "pass@1 after GRPO" and result.metric_args["n"] == report["n"] == 60
    assert result.metric_args["ci95"] == [round(edge, 4) for edge in report["ci95"]]


def test_the_card_has_the_figures_of_the_run(facts):
    card = render_card(facts)
    assert re.findall("^## (.*)$", card, re.MULTILINE)[:2] == ["Results", "Curves"]
    for each in facts.measured:
        (low, high), label = each.report["ci95"], each.label
        row = f"| {label} | {each.report['pass@1']:.3f} | {low:.3f} to {high:.3f} |"
        assert row in section(card, "Results")
    assert facts.measured[1].change["words"] in card and "| 60 |" in card
    assert f"`{facts.manifest['sha256']['train'][:16]}`" in section(card, "Data") and "cc0-1.0" in card
    assert "`max_steps` | `4`" in section(card, "Training")


def test_a_small_change_is_not_written_as_none(facts):
    change = facts.measured[1].change | {"difference": 0.0002, "difference_ci95": [0.00003, 0.037]}
    card = render_card(facts._replace(measured=[facts.measured[0], facts.measured[1]._replace(change=change)]))
    assert "| +0.02 points | +0.003 to +3.7 |" in section(card, "Results")


def test_a_run_without_a_measurement_says_so_and_has_no_index(facts):
    card = render_card(facts._replace(measured=[], examples=[]))
    assert "was not measured, neither before nor after" in card and "model-index" not in card
    assert not re.search(r"0\.\d\d\d", section(card, "Results")) and "metrics" not in ModelCard(card).data.to_dict()
    card = render_card(facts._replace(measured=facts.measured[:1], examples=[]))
    assert "the one after GRPO, was **not measured**" in card and "model-index" not in card
    only_after = [facts.measured[1]._replace(change=None)]
    card = render_card(facts._replace(measured=only_after))
    assert "there is no difference to show" in card and len(ModelCard(card).data.eval_results) == 1


def test_several_stages_and_sets_are_listed(facts):
    records = {stage: facts.records["train"] | {"settings": {}} for stage in ("sft", "train", "prefer")}
    report = facts.measured[1].report
    part = {key: report[key] for key in ("pass@1", "ci95", "n")}
    by_set, by_environment = {"test": part, "math500": part, "ada.csv": part}, {"a|b": part, "c": part}
    problems = [{"set": name} for name in by_set]
    several = report | {"problems": problems, "by": {"set": by_set, "environment": by_environment}}
    measured = [facts.measured[0], Measured("sft", report, None), Measured("prefer", several, facts.measured[1].change)]
    card = render_card(facts._replace(records=records, measured=measured))
    data = ModelCard(card).data
    assert "trained by SFT, then GRPO, then DPO" in card and {"sft", "grpo", "dpo"} <= set(data.tags)
    assert [result.dataset_type for result in data.eval_results] == ["held-out", "HuggingFaceH4/MATH-500", "own"]
    assert {result.metric_name for result in data.eval_results} == {"pass@1 after DPO"} and "ada.csv" not in card
    assert [result.dataset_name for result in data.eval_results][1:] == ["math500", "own set 1"]
    assert "Measured before training with 1 sample of each problem of the test split at temperature 1" in card
    assert "after DPO with 1 sample of each problem of the test split and math500 and own set 1 at" in card
    assert "| problems | pass@1 after DPO | 95 % interval | problems |" in card and "| own set 1 |" in card
    assert "| after SFT |" in card and r"a\|b" in card


def test_no_text_of_a_problem_or_a_completion_breaks_the_card(facts):
    config = replace(facts.config, data=replace(facts.config.data, system_prompt=HOSTILE, prompt_suffix=HOSTILE))
    source = Source(f"own {HOSTILE}", HOSTILE, None, 1, ["0a"], "x")
    examples = [Example("Still wrong", HOSTILE, HOSTILE, HOSTILE, HOSTILE)]
    card = render_card(facts._replace(examples=examples, config=config, sources=[source]))
    plain = ModelCard(render_card(facts)).data.to_dict() | {"language": None}
    found = ModelCard(card).data.to_dict()
    assert {key: found.get(key) for key in plain if key != "model-index"} == {
        key: value for key, value in plain.items() if key != "model-index"
    }
    outside = without_blocks(card.split("\n---\n", 1)[1])
    assert re.findall("^## (.*)$", outside, re.MULTILINE) == HEADINGS
    assert "<script" not in outside and "<details" not in outside and "# free" not in outside.split("\n")
    assert len(card) < 60_000
    many = [Example("Still wrong", "x" * 10**6, "1", "y" * 10**6, "z" * 10**6)]
    assert len(render_card(facts._replace(examples=many))) < 60_000


def test_a_run_in_4_bit_says_that_it_was_measured_over_nf4_only(facts):
    config = replace(facts.config, policy=Policy(model=PUBLISHED, load_in_4bit=True, dtype="float16"))
    assert "Measured over NF4 only" in section(render_card(facts._replace(config=config)), "Limits")
    assert "NF4" not in section(render_card(facts), "Limits")


def test_loading_names_the_base_its_revision_and_what_vllm_drops(facts):
    card = section(render_card(facts), "Load it")
    assert f"model=\"{PUBLISHED}\", revision='main'" in card and "load_in_4bit=True" in card
    assert "--enable-lora --max-lora-rank 32 --lora-modules sums=ada/sums" in card
    assert "_check_lora_target_modules_mamba" in card and "vLLM 0.17.1 uses all" in card
    for code in re.findall("```python\n(.*?)```", card, re.DOTALL):
        ast.parse(code)
    shared = {
        "backbone.layers.1.mixer.shared_experts.up_proj": [(4, 8), (8, 4)],
        "backbone.layers.2.mixer.q_proj": [(4, 8)],
    }
    card = section(render_card(facts._replace(modules=shared)), "Load it")
    assert "uses 32 of 96 LoRA parameters: it drops those on shared experts" in card and "_check_lora" not in card
    routed = {"backbone.layers.1.mixer.experts.0.up_proj": [(4, 8), (8, 4)]}
    card = section(render_card(facts._replace(modules=routed)), "Load it")
    assert "PEFT alone has no place for them" in card and "PeftModel" not in card
    other = section(render_card(facts._replace(modules={"model.layers.0.self_attn.q_proj": [(4, 8)]})), "Load it")
    assert "vLLM 0.17.1" not in other


def test_limits_name_what_is_not_known(facts):
    source = Source("own file 1", "unstated", None, 3, ["0a"], "x")
    records = {"train": facts.records["train"] | {"out_of_time": True}}
    manifest = facts.manifest | {"not_checked": {"math500": "the Hub cannot be reached"}}
    card = render_card(facts._replace(sources=[source], records=records, manifest=manifest))
    limits = section(card, "Limits")
    assert "licence of own file 1 is not known" in limits and "not compared with math500" in limits
    assert "the licence of the held-out problems" in section(
        render_card(facts._replace(sources=[source], examples=[])), "Samples"
    )
    assert "ended before the last step of GRPO" in limits and "language" not in ModelCard(card).data.to_dict()


def test_hub_sets_and_the_licence_of_the_base_are_linked(facts):
    source = Source("gsm8k", "mit", "openai/gsm8k", 7473, ["0a" * 32], "gsm8k")
    sft = {"settings": {"sft": {"source": "org/texts,org/texts,mine.jsonl"}}}
    records = {"sft": facts.records["train"] | sft, **facts.records}
    base = find_base(Policy(model=LIGHTNING))._replace(is_named=True)
    card = render_card(facts._replace(sources=[source], base=base, records=records))
    data = ModelCard(card).data.to_dict()
    assert data["datasets"] == ["openai/gsm8k", "org/texts"] and "language" not in data
    assert f"its author names it {LIGHTNING}" in card and "mine.jsonl" not in card
    assert "[gsm8k](https://huggingface.co/datasets/openai/gsm8k) | mit | 7,473 | `0a0a0a0a0a0a0a0a` |" in card
    assert "[openmdw-1.1](https://openmdw.ai/license/1-1/)" in card


def test_a_preview_names_no_base_that_the_hub_could_link(facts):
    card = render_card(facts._replace(base=find_base(Policy())))
    data = ModelCard(card).data.to_dict()
    assert data.keys().isdisjoint({"base_model", "base_model_relation", "model-index", "metrics"})
    assert "**A preview.**" in card and data["license"] == "apache-2.0"
    load = section(card, "Load it")
    assert "from_pretrained" not in load and "vllm serve" not in load and "snapshot_download" not in load
    assert 'Policy(model="tiny"' in load and 'Path("publish")' in load
    (block,) = re.findall("```python\n(.*?)```", load, re.DOTALL)
    ast.parse(block)


def test_pictures_lie_beside_the_card(facts):
    assert re.findall(r"!\[[^]]*\]\(([^)]*)\)", render_card(facts)) == [CURVES] and CURVES in NAMES


def test_the_language_is_only_that_of_the_kits_own_recipes(facts):
    def language(source, **settings):
        records = {"sft": facts.records["train"] | {"settings": settings}}
        return ModelCard(render_card(facts._replace(sources=[source], records=records, measured=[]))).data.language

    gsm8k = Source("gsm8k", "mit", "openai/gsm8k", 7473, ["0a"], "gsm8k")
    assert language(gsm8k, sft={"source": "traces"}) == "en"
    assert language(gsm8k, sft={"source": "org/deutsch"}) is None
    assert language(gsm8k._replace(name="org/deutsch", hub="org/deutsch")) is None


def test_settings_that_are_no_record_change_nothing(facts):
    other = replace(facts.config.evaluation, max_completion_length=77, temperature=0.0, sets=["math500"])
    assert render_card(facts._replace(config=replace(facts.config, evaluation=other))) == render_card(facts)
    unmeasured = facts._replace(measured=[], examples=[])
    length = facts.records["train"]["settings"]["grpo"]["max_completion_length"]
    assert f"max_new_tokens={length})" in render_card(unmeasured)


def test_a_card_without_measurements_speaks_of_no_figures_that_it_has_not(facts):
    measured, unmeasured = render_card(facts), render_card(facts._replace(measured=[], examples=[]))
    assert "Every figure here was measured by the run itself, and its record is in `run.json`." in measured
    assert "- One training with one seed. The intervals are over problems, not over trainings.\n" in measured
    assert "No accuracy was measured. What stands here is from the run's own record, `run.json`." in unmeasured
    assert "- One training with one seed.\n" in unmeasured
    assert not re.search("figure|[Ii]nterval|pass@1", unmeasured)


def test_the_rewards_are_those_that_judged_the_rows(facts):
    settings = facts.records["train"]["settings"]
    assert r"| `reward_funcs` | math\_reward, &lt;lambda&gt; |" in render_card(facts)  # functions that were passed
    rewards = dict.fromkeys(["math_reward", "reasoning_format_reward", "structured_output_reward"], "0")
    own = {"structured": {"reward_funcs": ["structured_output.py:structured_output_reward"], "reward_weights": [1.0]}}
    named = settings | {"rewards": rewards, "environments": own, "mix": {"math": 1.0, "structured": 2.0}}
    mixed = facts._replace(records={"train": facts.records["train"] | {"settings": named}})
    card = render_card(mixed)
    assert "| `reward_funcs` | `math_answer.py:math_reward, reasoning_format.py:reasoning_format_reward` |" in card
    line = "| `environments.structured.reward_funcs` | `structured_output.py:structured_output_reward` |"
    assert line in card and "| `mix` | `math 1, structured 2` |" in card
    card = render_card(mixed._replace(manifest=facts.manifest | {"environments": ["structured"]}))
    assert line in card and "| `reward_funcs` |" not in card and "math" not in ModelCard(card).data.tags


def test_screened_rows_and_rows_of_other_kinds_are_mentioned(facts):
    assert "screening" not in render_card(facts) and "asked for an answer without" not in render_card(facts)
    settings = facts.records["train"]["settings"] | {"screening": {"sigma": 0.1}}
    config = replace(facts.config, data=replace(facts.config.data, no_thinking=0.2, budgeted=0.1, token_budgets=[8]))
    card = render_card(
        facts._replace(config=config, records={"train": facts.records["train"] | {"settings": settings}})
    )
    assert "a screening had found neither too easy nor too hard" in section(card, "Data")
    assert "20% of the training rows asked for an answer without thinking, and 10% stated a budget" in card


def test_a_system_prompt_is_quoted_whole(facts):
    text = "\n".join(f"Rule {number}: think." for number in range(700))
    card = render_card(
        facts._replace(config=replace(facts.config, data=replace(facts.config.data, system_prompt=text)))
    )
    assert f"```text\n{text}\n```" in card and "`run.json` has the exact characters" in card


def test_hostile_names_stay_in_their_cells_and_values(facts):
    """The YAML has the same values for a safe loader and for the Hub's classes; each row of a table has its columns."""
    names = [
        "a|b",
        r"c\|d",
        "`e|f`",
        "<!--",
        "---",
        "x: [1",
        "!!python/object:os.system",
        "\u202e\x1b[31m",
        "\x85\u2028",
        "🦄",
        "",
    ]
    part = {key: facts.measured[1].report[key] for key in ("pass@1", "ci95", "n")}
    report = facts.measured[1].report | {"by": {"environment": dict.fromkeys(names, part)}}
    settings = facts.records["train"]["settings"] | {"rewards": dict.fromkeys(names, "0")}
    settings["environments"] = {name: {"reward_funcs": ["/home/ada/r.py:f"]} for name in names}
    environment = {"gpu": "a | b\n```", "packages": {"torch": "2|\n# x", "grpo-kit": "0 | <b>"}}
    sources = [Source(name, name, None, 1, ["0a"], "x") for name in names]
    hostile = facts._replace(
        measured=[facts.measured[0], facts.measured[1]._replace(report=report)],
        records={"train": facts.records["train"] | {"settings": settings, "environment": environment}},
        sources=sources,
        manifest=facts.manifest | {"not_checked": dict.fromkeys(names, "x")},
    )
    card, metadata = render_card(hostile), make_metadata(hostile)
    front, body = re.fullmatch("---\n(.*?)\n---\n\n(.*)", card, re.DOTALL).groups()
    assert yaml.safe_load(front) == metadata.to_dict()
    read = ModelCard(card).data
    assert read.eval_results == metadata.eval_results and read.to_dict() == metadata.to_dict()
    dataset = yaml.safe_load(front)["model-index"][0]["results"][0]["dataset"]["name"]
    assert dataset == f"held-out problems of {', '.join(' '.join(name.split()) for name in names)}"
    tables, columns = 0, 0
    for line in without_blocks(body).split("\n"):
        cells = len(re.split(r"(?<!\\)(?:\\\\)*\|", line)) if line.startswith("|") else 0
        tables += cells > 0 and not columns
        assert not columns or cells in (0, columns), line
        columns = cells
    assert tables == 4 and not re.search("[\x00-\x09\x0b-\x1f\x85\u2028\u202e]|<[!b]", body.replace("<think>", ""))


def test_the_card_in_the_notes_has_todays_form(facts):
    notes = (ROOT / "notes/card_of_the_demo/README.md").read_text(encoding="utf-8")
    fresh = render_card(facts._replace(base=find_base(Policy())))

    def form(card):
        data = ModelCard(card).data.to_dict()
        return re.findall("^(?:## .*|[|] (?:policy|setting|source) .*)$", without_blocks(card), re.MULTILINE), list(
            data
        )

    assert form(notes) == form(fresh)
    assert section(notes, "Load it").replace("nemotron-sums", "sums") == section(fresh, "Load it")
