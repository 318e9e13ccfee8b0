"""The bundle for NeMo-RL and NeMo-Gym: its files, rows, manifest, the script that starts it, and what its README says.

Neither is installed here. `test_nemo_overlay.py` holds the overlays to NeMo-RL's keys.
"""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from grpo_kit import config
from grpo_kit.cli.main import app
from grpo_kit.data.preparation import prepare
from grpo_kit.data.splits import SPLITS
from grpo_kit.environments.gym_rows import read_gym_row
from grpo_kit.environments.office import make_tasks as make_requests
from grpo_kit.handoff import export, nemo_gym, nemo_rl
from grpo_kit.rewards.tools.loading import load_reward
from grpo_kit.runs.files import write_lines
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.training import train
from tests.helpers.nemo_rl import read_overlay


@pytest.fixture(scope="module")
def bundle(trained, tmp_path_factory):
    chosen, run = trained
    return export.export_run(chosen, run, "nemo-rl", tmp_path_factory.mktemp("nemo") / "b", merge=True)


def test_the_bundle_has_an_overlay_for_each_kind_and_version(bundle):
    names = {path.name for path in (bundle / "nemo_rl").iterdir()}
    assert names == {
        "grpo_v06.yaml", "grpo_v08.yaml", "gym_v06.yaml", "gym_v08.yaml", "megatron.yaml", "run.sh", "prompt.txt",
        "train.jsonl", "val.jsonl",
    }  # fmt: skip
    for kind, above in (("gym_v06", "grpo_v06.yaml"), ("gym_v08", "grpo_v08.yaml")):
        assert read_overlay(bundle / f"nemo_rl/{kind}.yaml")["defaults"] == above
    for place in ("model", "base", "adapter"):
        assert (bundle / place).is_dir()
    assert "A fresh LoRA on the merged model." in (bundle / "nemo_rl/megatron.yaml").read_text()
    assert "NOT here" not in (bundle / "nemo_rl/grpo_v06.yaml").read_text()


@pytest.mark.slow
def test_without_a_merged_model_all_say_so_and_name_the_command_that_writes_it(trained, tmp_path, monkeypatch):
    chosen, run = trained
    command = f"grpo-kit handoff --run {run.name} --to nemo-rl --merge --out {tmp_path}/b-merged"
    with pytest.warns(UserWarning, match="model/ is missing, from which every overlay starts") as warned:
        folder = export.export_run(chosen, run, "nemo-rl", tmp_path / "b")
    assert str(warned[0].message).endswith(command)
    for name in ("grpo_v06", "grpo_v08", "megatron"):  # out_proj keeps v0.8 from continuing the adapter
        assert "model/ is NOT here" in (folder / f"nemo_rl/{name}.yaml").read_text().partition("defaults:")[0]
    start = (folder / "README.md").read_text().partition("## Start\n")[2]
    assert start.startswith("**model/ is missing, from which every overlay starts.") and f"\n    {command}\n" in start
    assert f"Write it into a new folder: \"'{command}'" in (folder / "nemo_rl/run.sh").read_text()
    monkeypatch.setenv("GRPO_KIT_ROOT", str(run.root))
    assert CliRunner().invoke(app, shlex.split(command)[1:]).exit_code == 0  # the command works
    assert (tmp_path / "b-merged/model/model.safetensors").is_file()


def test_the_readme_says_for_what_it_is_and_what_was_run(bundle):
    text = " ".join((bundle / "README.md").read_text().split())
    assert "NeMo-RL v0.6, v0.7, main of August 2026 and v0.8" in text and "8 GPUs of one node" in text
    assert "Run by us, on a CPU: the configuration loader" in text and "Not run: a training with NeMo-RL" in text
    assert "run.sh grpo" in text and "run.sh gym" in text and "Megatron, 2 nodes of 8 GPUs" in text
    assert "append `cluster.gpus_per_node=1`" in text  # the embedded policy
    assert "out_proj is not trained further" in text and "does not fit the base" in text
    assert "A new LoRA is trained on the merged model, so both are added up. grpo-kit package" in text
    assert "restore_from" not in text and "model/ is missing" not in text


INSTALLED = {  # what NeMo-RL's grpo_math_1B.yaml has in each version
    "v06": "policy:\n  dtensor_cfg:\n    enabled: true\n    lora_cfg:\n      dim: 8\n  megatron_cfg:\n",
    "v08": "policy:\n  automodel_cfg:\n    enabled: true\n    lora_cfg:\n      dim: 8\n  megatron_cfg:\n",
    "v05": "policy:\n  dtensor_cfg:\n    enabled: true\n  megatron_cfg:\n    lora_cfg: {}\n",
}


@pytest.fixture
def start(bundle, tmp_path):
    """Runs run.sh beside an installation of NeMo-RL whose `uv` prints its arguments."""
    home, out = tmp_path / "nemo", tmp_path / "b"
    shutil.copytree(bundle, out)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/uv").write_text('#!/bin/sh\necho "$PWD" "$@"\n')
    (tmp_path / "bin/uv").chmod(0o755)

    def run(installed, *arguments):
        if installed:
            (home / "examples/configs").mkdir(parents=True, exist_ok=True)
            (home / "examples/configs/grpo_math_1B.yaml").write_text(INSTALLED[installed])
        for path in (out / "nemo_rl").glob("*.*"):
            if path.suffix in (".sh", ".yaml"):
                path.write_text(path.read_text().replace(str(bundle), str(out)).replace("/opt/nemo-rl", str(home)))
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        words = ["sh", str(out / "nemo_rl/run.sh"), *arguments]
        return subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PATH": path}, check=False)

    run.home, run.out = home, out
    return run


@pytest.mark.parametrize(
    ("installed", "arguments", "script", "overlay", "passed"),
    [
        ("v06", [], "run_grpo.py", "grpo_v06", ""),
        ("v06", ["grpo", "cluster.gpus_per_node=1"], "run_grpo.py", "grpo_v06", " cluster.gpus_per_node=1"),
        ("v06", ["cluster.gpus_per_node=1"], "run_grpo.py", "grpo_v06", " cluster.gpus_per_node=1"),
        ("v06", ["gym"], "nemo_gym/run_grpo_nemo_gym.py", "gym_v06", ""),
        ("v06", ["megatron"], "run_grpo.py", "megatron", ""),
        ("v08", ["grpo"], "run_grpo.py", "grpo_v08", ""),
        ("v08", ["gym", "a=b c"], "nemo_gym/run_grpo_nemo_gym.py", "gym_v08", " a=b c"),
        ("v08", ["megatron"], "run_grpo.py", "megatron", ""),
    ],
)
def test_the_script_starts_the_overlay_of_the_version_that_is_installed(
    start, installed, arguments, script, overlay, passed
):
    done = start(installed, *arguments)
    assert done.stderr == "" and done.returncode == 0
    expected = f"{start.home} run examples/{script} --config {start.out}/nemo_rl/{overlay}.yaml{passed}\n"
    assert done.stdout == expected


@pytest.mark.parametrize(
    ("installed", "missing", "said"),
    [
        (None, "", "grpo_math_1B.yaml does not exist. Start this inside NVIDIA's image"),
        ("v05", "", "has no LoRA for GRPO; it is older than v0.6. Use v0.6, v0.7 or v0.8."),
        ("v06", "model", "/model does not exist. Write it into a new folder: grpo-kit handoff --run small"),
        ("v06", "nemo_rl/gym_v06.yaml", "gym_v06.yaml does not exist; README.md says which kinds this run has"),
    ],
)
def test_the_script_says_why_it_does_not_start(start, installed, missing, said):
    if missing:
        path = start.out / missing
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = start(installed, "gym")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("run.sh: ") and said in done.stderr


TRAPS = [
    {"problem": "How many sides has a hexagon?", "answer": 6},  # an integer
    {"problem": "What is $\\frac{1}{2} + \\frac{1}{3}$?", "answer": "$\\frac{5}{6}$"},  # in dollar signs
    {"problem": "Name the set {x : x^2 = 1}, as {} or {0}.", "answer": "\\(\\{-1, 1\\}\\)"},  # braces, \( \)
    {"problem": "A book costs 5 dollars and a pen 2. Both?", "answer": "$7"},  # a price
    {"problem": "Halve one.", "answer": 0.5},
]
SYSTEM = "You are {careful}."
SUFFIX = "\nPut it in `\\boxed{}`, as `\\boxed{your answer}`."


@pytest.fixture(scope="module")
def trapped(trained, tmp_path_factory):
    """The small run on difficult rows: a system turn comes first, and braces surround the problem."""
    chosen, run = trained
    folder = tmp_path_factory.mktemp("traps")
    path = folder / "traps.jsonl"
    extra = [
        {"problem": f"Count the letters of word number {n * 37} in the {n}th book.", "answer": str(n)}
        for n in range(20)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*TRAPS, *extra]))
    shutil.copytree(run.path, folder / "runs" / run.name)
    copied = find_run(run.name, folder / "runs")
    data = replace(
        chosen.data, source=str(path), system_prompt=SYSTEM, prompt_suffix=SUFFIX, limit=None, val_size=2, test_size=2,
    )  # fmt: skip
    chosen = replace(chosen, data=data, run=replace(chosen.run, force=True))
    prepare(chosen, copied, load_reward("math_answer.py:math_reward"))
    return export.export_run(chosen, copied, "nemo-rl", folder / "b"), copied


EXPECTED = {0: "6", 1: "\\frac{5}{6}", 2: "\\{-1, 1\\}", 3: "$7", 4: "0.5"}


def test_difficult_answers_are_exported_correctly_as_plain_rows(trapped):
    folder, run = trapped
    prompt = (folder / "nemo_rl/prompt.txt").read_text()
    rows = [json.loads(line) for s in ("train", "val") for line in (folder / f"nemo_rl/{s}.jsonl").open()]
    ours = [row for s in ("train", "val") for row in read_lines(run.data_file(s))]
    golds = {row["input"]: row["output"] for row in rows}
    is_exported = [trap["problem"] in golds for trap in TRAPS]
    assert sum(is_exported) >= 3
    for number, trap in enumerate(TRAPS):
        assert golds.get(trap["problem"], EXPECTED[number]) == EXPECTED[number]
    for row, own in zip(rows, ours, strict=True):
        assert set(row) == {"input", "output"} and all(isinstance(value, str) for value in row.values())
        system, user = own["prompt"]
        # One user turn there: the system text opens it, and the rest is what the policy was asked here.
        assert prompt.format(row["input"]) == f"{system['content']}\n\n{user['content']}"
    assert "\\boxed{your answer}" in prompt.format("x") and "\\\\boxed" not in prompt


GYM_ROW = {
    "type": "object",
    "required": ["question", "expected_answer", "responses_create_params", "agent_ref"],
    "properties": {
        "question": {"type": "string", "minLength": 1},
        "expected_answer": {"type": "string", "minLength": 1},
        "agent_ref": {
            "type": "object",
            "required": ["type", "name"],
            "properties": {
                "type": {"const": "responses_api_agents"},
                "name": {"const": "math_with_judge_simple_agent"},
            },
            "additionalProperties": False,
        },
        "responses_create_params": {
            "type": "object",
            "required": ["input"],
            "additionalProperties": False,
            "properties": {
                "tools": {"type": "array"},
                "parallel_tool_calls": {"type": "boolean"},
                "temperature": {"type": "number"},
                "top_p": {"type": "number"},
                "max_output_tokens": {"type": "integer"},
                "input": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["role", "content"],
                        "additionalProperties": False,
                        "properties": {
                            "role": {"enum": ["system", "user", "assistant", "developer"]},
                            "content": {"type": "string"},
                        },
                    },
                },
            },
        },
    },
}
PATH = {"type": "string", "pattern": "^(/.*/data.jsonl)?$"}  # absolute, or empty
MANIFEST = {
    "type": "object",
    "required": ["train", "val", "test", "mode", "source_splits", "run_hash"],
    "additionalProperties": False,
    "properties": {
        "train": PATH | {"minLength": 1}, "val": PATH, "test": PATH, "mode": {"const": "resolve"},
        "source_splits": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "run_hash": {"type": "string", "pattern": "^[0-9a-f]{16}(_epoch)?$"},
    },
}  # fmt: skip


@pytest.mark.slow
def test_gym_rows_and_manifest_are_what_gym_reads(trapped, bundle):
    for folder in (trapped[0], bundle):
        manifest = json.loads((folder / "manifest.json").read_text())
        jsonschema.validate(manifest, MANIFEST)
        for split in ("train", "val", "test"):
            assert Path(manifest[split]) == folder / split / "data.jsonl"
            for line in Path(manifest[split]).read_text().splitlines():
                jsonschema.validate(json.loads(line), GYM_ROW)


def test_gym_keeps_the_system_turn_and_strips_the_gold(trapped):
    folder, run = trapped
    lines = [line for s in SPLITS for line in (folder / s / "data.jsonl").read_text().splitlines()]
    rows = {row["question"]: row for row in map(json.loads, lines)}
    for number, trap in enumerate(TRAPS):
        row = rows[trap["problem"]]
        assert row["expected_answer"] == EXPECTED[number]
        assert row["responses_create_params"]["input"] == [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": trap["problem"] + SUFFIX},
        ]


@pytest.mark.parametrize("answer", [6, "6", "$6$", "\\(6\\)", " $6$ "])
def test_every_kind_of_gold_becomes_bare_text(answer):
    row = {
        "id": "x",
        "question": "q",
        "answer": answer,
        "prompt": [{"role": "user", "content": "q", "enable_thinking": False}],
    }
    assert nemo_rl.make_math_row(row) == {"input": "q", "output": "6"}
    jsonschema.validate(nemo_gym.make_gym_row(row), GYM_ROW)


def test_a_row_of_the_office_becomes_one_of_gyms_form_with_its_tools():
    task = make_requests(1, seed=7)[0]
    row = {"id": "o", "environment": "office", "prompt": task.prompt, **task.columns}
    written = nemo_gym.make_gym_row(row)
    assert (
        len(written["responses_create_params"]["tools"]) == 6 and written["agent_ref"]["name"] == "office_simple_agent"
    )
    assert read_gym_row(written, "office") == task


@pytest.mark.slow
def test_rows_that_state_a_token_budget_keep_their_prompts(trained, tmp_path):
    chosen, run = trained
    shutil.copytree(run.path, tmp_path / "runs" / run.name)
    copied = find_run(run.name, tmp_path / "runs")
    data = replace(chosen.data, prompt_suffix=" Box {it}.", budgeted=0.5, token_budgets=[16])
    chosen = replace(chosen, data=data, run=replace(chosen.run, force=True))
    prepare(chosen, copied)
    folder = export.export_run(chosen, copied, "nemo-rl", tmp_path / "b")
    prompt, rows = (folder / "nemo_rl/prompt.txt").read_text(), read_lines(folder / "nemo_rl/train.jsonl")
    prompts = [prompt.format(row["input"]) for row in rows]
    assert prompts == [row["prompt"][-1]["content"] for row in read_lines(copied.data_file("train"))]
    assert any(text.endswith("Think for at most 16 tokens.") for text in prompts) and any(
        text.endswith("{it}.") for text in prompts
    )


@pytest.mark.slow
def test_without_validation_rows_the_manifest_has_none(trained, tmp_path):
    chosen, run = trained
    shutil.copytree(run.path, tmp_path / "runs" / run.name)
    copied = find_run(run.name, tmp_path / "runs")
    chosen = replace(chosen, data=replace(chosen.data, val_size=0), run=replace(chosen.run, force=True))
    prepare(chosen, copied)
    folder = export.export_run(chosen, copied, "nemo-rl", tmp_path / "b")
    overlay, gym = (read_overlay(folder / f"nemo_rl/{kind}_v06.yaml") for kind in ("grpo", "gym"))
    assert overlay["data"]["validation"] is None and overlay["grpo"]["val_period"] == 0
    assert overlay["checkpointing"]["metric_name"] is None
    assert gym["data"]["validation"] is None and gym["checkpointing"]["metric_name"] is None
    manifest = json.loads((folder / "manifest.json").read_text())
    jsonschema.validate(manifest, MANIFEST)
    assert manifest["val"] == ""


@pytest.mark.slow
def test_a_screened_run_exports_the_kept_rows_easy_ones_first(trained, tmp_path):
    chosen, run = trained
    shutil.copytree(run.path, tmp_path / "runs" / run.name)
    copied = find_run(run.name, tmp_path / "runs")
    rows = [row | {"pass_rate": n % 10 / 10} for n, row in enumerate(read_lines(copied.data_file("train"))[:40])]
    write_lines(copied.screened, rows)
    copied.record_stage(
        "screen", {"screening": {"sigma": 0.0}}, [copied.manifest], [copied.screened], 1.0, config.to_yaml(chosen)
    )
    strict = config.keep_finished_settings(chosen, [], ["screening.sigma=0"])
    folder = export.export_run(strict, copied, "nemo-rl", tmp_path / "b")
    assert read_overlay(folder / "nemo_rl/grpo_v06.yaml")["data"]["shuffle"] is False
    rates = {row["question"]: row["pass_rate"] for row in rows}
    handed = [rates[row["input"]] for row in read_lines(folder / "nemo_rl/train.jsonl")]
    assert len(handed) == 40 and handed == sorted(handed, reverse=True)


@pytest.fixture(scope="module")
def deepscaler(trained, tmp_path_factory):
    """The small run exported with the training settings of the preset, which has stages."""
    chosen, run = trained
    other = replace(chosen, grpo=config.load_config(["deepscaler"]).grpo)
    return export.export_run(other, run, "nemo-rl", tmp_path_factory.mktemp("deepscaler") / "b", merge=True)


def test_each_stage_has_its_overlays_and_the_readme_says_how_to_go_on(deepscaler):
    stages = ("stage1_8K", "stage2_16K", "stage3_24K")
    names = {path.name for path in (deepscaler / "nemo_rl").glob("*.yaml")}
    kinds = [f"{kind}_{version}" for kind in ("grpo", "gym") for version in ("v06", "v08")]
    assert names == {f"{kind}_{stage}.yaml" for kind in kinds for stage in stages}  # Megatron has no stages
    gym = read_overlay(deepscaler / "nemo_rl/gym_v06_stage2_16K.yaml")
    assert gym["defaults"] == "grpo_v06_stage2_16K.yaml"
    text, results = (deepscaler / "README.md").read_text(), deepscaler / "results"
    first, second = (f"{results}/stage1_8K/step_240/policy/weights", f"{results}/stage2_16K/step_290/policy/weights")
    for weights, began in ((first, deepscaler / "model"), (second, f"{first}/hf")):
        assert f"merge_stage.py {began} {weights}/model {weights}/hf" in text
    back = re.search(r"^    grpo-kit package (.+) policy.model=tiny$", text, re.M)[1]
    assert back.split("--adapter ")[1:] == [
        f"{deepscaler}/adapter ", f"{results}/stage1_8K/step_240 ", f"{results}/stage2_16K/step_290 ",
        f"{results}/stage3_24K/step_50",
    ]  # fmt: skip
    assert "v0.8 continues the first stage's: give the run's and the last one there." in text
    assert "run.sh grpo stage2_16K" in text and "There is no overlay for Megatron" in text
    assert "policy.train_global_batch_size=64" in text  # as in the recipe, not as in this run
    script = (deepscaler / "nemo_rl/run.sh").read_text()
    assert 'stages="stage1_8K stage2_16K stage3_24K" stage=stage1_8K' in script


def test_the_merge_script_between_stages_adds_the_adapter_to_the_base(deepscaler, tmp_path, monkeypatch):
    """The script merges the embedded policy and an adapter into a model."""
    script, out = deepscaler / "nemo_rl/merge_stage.py", tmp_path / "hf"
    monkeypatch.setattr(sys, "argv", [str(part) for part in (script, deepscaler / "base", deepscaler / "adapter", out)])
    runpy.run_path(str(script))
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (deepscaler / "model", out))
    name = "backbone.layers.2.mixer.q_proj.weight"
    assert (mine[name].float() - theirs[name].float()).abs().max() < 0.02 and (out / "tokenizer.json").is_file()
    assert (out / "config.json").read_text() == (deepscaler / "base" / "config.json").read_text()


@pytest.mark.slow
def test_stages_without_steps_get_the_steps_that_the_run_took(trained, tmp_path):
    chosen, run = trained
    shutil.copytree(run.path, tmp_path / "runs" / run.name)
    copied = find_run(run.name, tmp_path / "runs")
    write_lines(copied.metrics, [{"step": n, "seconds": 1.0, "stage": int(n > 3)} for n in range(1, 9)])
    stages = [config.Stage(32), config.Stage(40, enter="clipped", beta=0.1), config.Stage(64, enter="plateau")]
    other = replace(chosen, grpo=replace(chosen.grpo, stages=stages, max_steps=12))
    folder = export.export_run(other, copied, "nemo-rl", tmp_path / "b")
    grpo = [read_overlay(path)["grpo"] for path in sorted((folder / "nemo_rl").glob("grpo_v06*"))]
    assert [section["max_num_steps"] for section in grpo] == [3, 5, 4]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A run of math and documents that took one step."""
    folder = tmp_path_factory.mktemp("mixed")
    sizes = ["data.limit=40", "data.test_size=4", "data.val_size=4", "grpo.max_steps=1", "grpo.num_generations=2"]
    batch = ["grpo.per_device_train_batch_size=8", "grpo.resample_budget=0", "grpo.max_completion_length=8"]
    sources = ["data.source=tiny-sums,documents", "data.mix={math: 3, documents: 1}"]
    chosen = config.load_config("tiny", [*sizes, *batch, *sources])
    run = find_run("mixed", folder)
    prepare(chosen, run)
    train.train(chosen, run, chosen.grpo.reward_funcs)
    return chosen, run


@pytest.mark.slow
def test_rows_of_several_environments_go_to_their_own_servers_of_gym(mixed, tmp_path):
    chosen, run = mixed
    with pytest.warns(UserWarning, match="model/ is missing"):
        bundle = export.export_run(chosen, run, "nemo-rl", tmp_path / "b")
    rows = [json.loads(line) for line in (bundle / "train/data.jsonl").read_text().splitlines()]
    agents = [row["agent_ref"]["name"] for row in rows]
    assert [name.partition("_")[0] for name in sorted(agents)] == ["hotpotqa", "math", "math", "math"]
    original = {row["id"]: row for row in read_lines(run.data_file("train"))}
    row = next(row for row in rows if row["agent_ref"]["name"].startswith("hotpotqa"))
    task = read_gym_row(row, "documents")
    assert (
        task.columns["documents"] == original[row["id"]]["documents"] and task.prompt == original[row["id"]]["prompt"]
    )
    overlay = read_overlay(bundle / "nemo_rl/gym_v08.yaml")
    servers = overlay["env"]["nemo_gym"]["config_paths"]
    assert [path.split("/")[1] for path in servers[1:]] == ["math_with_judge", "hotpotqa_qa"]
    assert overlay["data"]["shuffle"] is False
    math = [json.loads(line) for line in (bundle / "nemo_rl/train.jsonl").read_text().splitlines()]
    assert len(math) == 3 and all(row["output"].lstrip("-").isdigit() for row in math)
    readme = (bundle / "README.md").read_text()
    assert "the servers of NeMo-Gym for math, documents" in readme and "the rows of math alone" in readme


@pytest.mark.slow
def test_an_engine_with_one_reward_for_all_rows_refuses_several_environments(mixed, tmp_path):
    for engine in ("trl", "verl"):
        with pytest.raises(ValueError, match=f"documents beside math, and its bundle for {engine} .* nemo-rl"):
            export.export_run(*mixed, engine, tmp_path / engine)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("engine", ["nemo-rl", "verl", "trl"])
def test_no_engine_is_recommended_for_a_run_with_tools(engine, tmp_path):
    nothing, environments, stages = lambda *_: None, lambda: ["math", "documents", "office"], lambda: {"train": {}}
    run = SimpleNamespace(require_stage=nothing, require_trained=nothing, environments=environments, stages=stages)
    with pytest.raises(ValueError, match="'office', which no engine can judge: NeMo-Gym has servers for math, "):
        export._check(run, tmp_path / "bundle", engine)


def test_a_program_goes_to_its_server_and_asserts_have_none():
    tests = '{"kind": "function", "name": "f", "inputs": [[2, [3]]], "outputs": [5], "time_limit_s": 2.0}'
    row = {"id": "a", "environment": "code", "prompt": [{"role": "user", "content": "Add."}], "tests": tests}
    assert nemo_gym.make_gym_row(row) == {
        "id": "a",
        "responses_create_params": {"input": row["prompt"]},
        "verifier_metadata": {
            "unit_tests": {"inputs": ["2\n[3]"], "outputs": ["5"], "fn_name": "f"},
            "options": {"time_limit_s": 2.0},
        },
        "agent_ref": {"type": "responses_api_agents", "name": "code_gen_simple_agent"},
    }
    with pytest.raises(ValueError, match="asserts.*Leave its source out of data.source"):
        nemo_gym.make_gym_row(row | {"tests": '{"kind": "asserts", "code": ["assert f(1)"], "setup": ""}'})
