"""Any source is prepared: columns are found, golds extracted, splits disjoint, bad files named with their line."""

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from grpo_kit import config
from grpo_kit.data import cleaning, hub, preparation, recipes, sources, splits
from grpo_kit.data.preparation import prepare as prepare_preparation
from grpo_kit.data.splits import SPLITS
from grpo_kit.data.steps.pipeline import Pipeline
from grpo_kit.nemotron import tiny
from grpo_kit.rewards.tools.loading import fingerprint, load_reward
from grpo_kit.runs import records
from grpo_kit.runs import run as run_module
from grpo_kit.runs.files import hash_of, write_lines
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from tests.helpers import counter_world
from tests.helpers.acting import WORLD

SIZES = ["data.val_size=1", "data.test_size=2"]
MINE = "\n".join(f'{{"problem": "Halve {n * n} {word}.", "answer": "{n}"}}' for n, word in enumerate("abcdefgh", 3))


def prepare(tmp_path, source, *overrides, name="r"):
    settings = config.load_config(["tiny"], [f"data.source={source}", *SIZES, *overrides])
    run = find_run(name, tmp_path / "runs")
    return prepare_preparation(settings, run), run


def rows_of(run):
    return [row for split in SPLITS for row in read_lines(run.data_file(split))]


def write(tmp_path, name, text):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.slow
def test_tiny_sums_become_three_disjoint_splits(tmp_path):
    manifest, run = prepare(tmp_path, "tiny-sums", "data.limit=500", "data.test_size=100", "data.val_size=50")
    assert manifest["rows"] == {"train": 350, "val": 50, "test": 100}
    assert len({cleaning.normalise_text(row["prompt"][-1]["content"]) for row in rows_of(run)}) == 500
    for split in SPLITS:
        assert manifest["sha256"][split] == hash_of(run.data_file(split))


def test_the_progress_counts_all_steps_and_ends(tmp_path):
    chosen = config.load_config(["tiny"], [f"data.source={write(tmp_path, 'a.jsonl', MINE)}", *SIZES])
    calls = []
    prepare_preparation(chosen, find_run("r", tmp_path / "runs"), progress=lambda *call: calls.append(call))
    assert calls[0] == (0, 7, "reading") and calls[-2:] == [(6, 7, "writing"), (7, 7, "done")]
    assert calls == sorted(calls)


@pytest.mark.slow
def test_the_same_inputs_and_seed_give_the_same_bytes(tmp_path):
    first, _ = prepare(tmp_path, "tiny-sums", "data.limit=50", name="a")
    second, _ = prepare(tmp_path, "tiny-sums", "data.limit=50", name="b")
    other, _ = prepare(tmp_path, "tiny-sums", "data.limit=50", "run.seed=1", name="c")
    assert first["sha256"] == second["sha256"] != other["sha256"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gsm8k.jsonl", '{"question": "p1", "answer": "so <<1+1=2>>2\\n#### 2"}\n'
                        '{"question": "p2", "answer": "#### 3"}\n'),
        ("math.jsonl", '{"problem": "p1", "answer": "2", "type": "x"}\n{"problem": "p2", "answer": 3}\n'),
        # an empty line, no last newline
        ("nemo.jsonl", '{"input": "p1", "output": "2"}\n\n{"input": "p2", "output": "3"}'),
        ("bom.csv", "\ufeffid,prompt,answer\r\n7,p1,2\r\n8,p2,3\r\n"),  # Excel's byte-order mark and line ends
        ("chat.jsonl", '{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "p1"}], '
                       '"answer": "2"}\n'
                       '{"prompt": [{"role": "user", "content": "p2"}], "answer": "3"}'),
        ("array.json", '[{"problem": "p1", "answer": "2"}, {"problem": "p2", "answer": "3"}]'),
    ],
)  # fmt: skip
def test_usual_columns_are_found(tmp_path, name, text):
    source = sources.locate_source(str(write(tmp_path, name, text)), config.Data())
    assert [row[1:3] for row in sources.read_source(source, config.Data(), 0)] == [("p1", "2"), ("p2", "3")]


def test_parquet_is_read(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(
        pyarrow.table({"problem": list("abcd"), "answer": list("1234")}), tmp_path / "x.parquet"
    )
    manifest, run = prepare(tmp_path, tmp_path / "x.parquet")
    assert manifest["rows"] == {"train": 1, "val": 1, "test": 2}
    assert sorted(row["answer"] for row in rows_of(run)) == list("1234")


def test_columns_can_be_named(tmp_path):
    path = write(tmp_path, "x.csv", "q,a\n" + "".join(f"p{i},{i}\n" for i in range(5)))
    _, run = prepare(tmp_path, path, "data.columns.prompt=q", "data.columns.answer=a")
    assert len(rows_of(run)) == 5


def test_answers_of_a_csv_stay_text(tmp_path):
    path = write(tmp_path, "x.csv", 'prompt,answer\np1,0011\np2,1e2\np3,}\np4,"a,\nb"\np5,NA\np6,####\n')
    manifest, run = prepare(tmp_path, path)
    assert sorted(row["answer"] for row in rows_of(run)) == ["####", "0011", "1e2", "NA", "a,\nb"]
    assert manifest["dropped"] == {"unusable gold": 1}  # no box can hold the lone brace


def test_prompt_suffix_and_system_prompt_are_added(tmp_path):
    _, run = prepare(tmp_path, "tiny-sums", "data.limit=5", 'data.prompt_suffix=" Think!"', "data.system_prompt=S")
    for row in rows_of(run):
        assert [turn["role"] for turn in row["prompt"]] == ["system", "user"]
        assert row["prompt"][1]["content"].endswith("? Think!")


def test_unusable_rows_are_dropped_and_counted(tmp_path):
    lines = [{"prompt": f"p{i}", "answer": "1"} for i in range(4)]
    lines += [
        {"prompt": " P1 ", "answer": "1"},
        {"prompt": "", "answer": "1"},
        {"prompt": "p9"},
        {"prompt": "p8", "answer": " "},
    ]
    manifest, _ = prepare(tmp_path, write(tmp_path, "x.jsonl", "\n".join(map(json.dumps, lines))))
    assert manifest["dropped"] == {"repeated problem": 1, "no problem": 1, "no answer": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "x.csv",
            "prompt,result\na,b\n",
            r"the columns prompt, result, but none of answer, .*data\.columns\.answer=",
        ),
        ("x.csv", "title,answer\na,b\n", r"none of prompt, problem.*data\.columns\.prompt="),
        ("x.csv", "", "holds 0 rows"),  # empty
        ("x.csv", "prompt,answer\n", "holds 0 rows"),  # header only
        ("x.jsonl", "", "holds 0 rows"),
        ("x.jsonl", '{"prompt": "a", "answer": "1"}\n{"prompt": "a"', r"line 2 is not JSON"),  # cut off
        ("x.jsonl", '{"prompt": "a", "answer": "1"}\n[1]', r"line 2 is '\[1\]'; a row must be an object"),
        ("x.jsonl", "<!DOCTYPE html>\n<html>", r"line 1 begins a web page"),  # an error page saved as data
        ("x.csv", "prompt,answer\na,b\nc\n", r"line 3 has 1 fields"),
        ("x.csv", "prompt,answer\na,b,c\n", r"line 2 has 3 fields"),
        ("x.csv", 'prompt,answer\n"a,b\n', r"the row after line 1 is not CSV"),  # a quote that never closes
        ("x.csv", b"prompt,answer\n\xff\xfe,1\n", r"line 2 is not UTF-8 \(byte 1 of the line is 0xff"),
        ("x.parquet", b"PAR1 not really", "not readable as Parquet"),
        ("x.txt", "prompt", r"not one of \.jsonl, \.json, \.csv, \.tsv, \.parquet"),
        ("x.jsonl", '{"prompt": "", "answer": ""}\n', r"no usable row.*1 with no problem"),
        ("x.jsonl", '{"prompt": "a", "answer": "1"}\n' * 9, r"1 usable rows.*leave none to train on"),
    ],
)
def test_a_bad_file_is_named_in_one_sentence_and_nothing_is_written(tmp_path, name, text, message):
    path = write(tmp_path, name, text)
    with pytest.raises(ValueError, match=message) as error:
        prepare(tmp_path, path)
    assert "\n" not in str(error.value) and not (tmp_path / "runs").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv is not an existing file"):
        prepare(tmp_path, tmp_path / "none.csv")


def test_a_hub_set_that_is_not_available_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="'nobody/nothing'.*the Hub did not give it"):
        prepare(tmp_path, "nobody/nothing")


@pytest.mark.slow
def test_a_second_call_writes_nothing_and_force_writes_again(tmp_path):
    _, run = prepare(tmp_path, "tiny-sums", "data.limit=50")
    before = run.manifest.stat().st_mtime_ns
    prepare(tmp_path, "tiny-sums", "data.limit=50")
    assert run.manifest.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"data\.limit was 50, now 60"):
        prepare(tmp_path, "tiny-sums", "data.limit=60")
    manifest, _ = prepare(tmp_path, "tiny-sums", "data.limit=60", "run.force=true")
    assert manifest["rows"]["train"] == 57


def test_an_interrupted_preparation_leaves_the_old_data_unchanged(tmp_path, monkeypatch):
    _, run = prepare(tmp_path, "tiny-sums", "data.limit=50")
    old = hash_of(run.manifest.parent)
    real = write_lines

    def stopped(path, rows):
        if "test" in path.parts:
            raise KeyboardInterrupt
        real(path, rows)

    monkeypatch.setattr(splits, "write_lines", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, "tiny-sums", "data.limit=60", "run.force=true")
    assert hash_of(run.manifest.parent) == old


@pytest.mark.slow
def test_the_challenges_rows_leading_zeros_and_braces_survive(tmp_path, shared_data):
    path, verifier = shared_data / "nemotron_challenge/train.csv", "evaluation.verifier=challenge.py"
    manifest, run = prepare(tmp_path, path, "data.decontaminate=[]", verifier)
    assert manifest["dropped"] == {}
    golds = [row["answer"] for row in rows_of(run)]
    assert len(golds) == 9500 and sum("}" in g for g in golds) == 94
    assert sum(len(g) == 8 and set(g) <= set("01") and g[0] == "0" for g in golds) == 902


def test_the_shipped_sample_has_200_rows_with_numbers_for_golds(tmp_path):
    from tests.helpers.settings import SAMPLE

    manifest, run = prepare(tmp_path, SAMPLE)
    assert sum(manifest["rows"].values()) == 200
    assert all(row["answer"].replace(",", "").lstrip("-").isdigit() for row in rows_of(run))


HENS = (
    "A farmer has {} hens and sells half of all the eggs that they lay in a week at the market in town for three "
    "dollars a dozen. What does he earn?"
)
EIGHT = [
    {"problem": f"How many {word} are there in a box of {n} and another of {n + 1}?", "answer": f"{2 * n + 1}"}
    for n, word in enumerate(["apples", "books", "cars", "dogs", "eggs", "forks", "goats", "hats"], start=20)
]


def eight(tmp_path, *more):
    return write(tmp_path, "eight.jsonl", "".join(json.dumps(row) + "\n" for row in [*EIGHT, *more]))


def test_a_row_has_what_trl_nemo_rl_and_nemo_gym_read(tmp_path):
    _, run = prepare(tmp_path, eight(tmp_path), 'data.prompt_suffix=" Go!"')
    row = next(row for row in rows_of(run) if "apples" in row["input"])
    assert row == {
        "id": row["id"], "environment": "math",
        "prompt": [{"role": "user", "content": EIGHT[0]["problem"] + " Go!"}], "answer": "41",
        "source": "eight.jsonl", "pass_rate": None, "input": EIGHT[0]["problem"], "output": "41",
        "question": EIGHT[0]["problem"], "expected_answer": "41",
        "responses_create_params": {"input": [{"role": "user", "content": EIGHT[0]["problem"] + " Go!"}]},
        "agent_ref": {"type": "responses_api_agents", "name": "math_with_judge_simple_agent"},
    }  # fmt: skip


def test_a_manifest_has_the_six_keys_and_the_lineage(tmp_path):
    path = eight(tmp_path, {"problem": "", "answer": "1"})
    manifest, run = prepare(tmp_path, path)
    assert {key: manifest[key] for key in ("train", "val", "test", "mode", "source_splits")} == {
        "train": "train/data.jsonl", "val": "val/data.jsonl", "test": "test/data.jsonl", "mode": "resolve",
        "source_splits": ["train"],
    }  # fmt: skip
    assert len(manifest["run_hash"]) == 16
    (source,) = manifest["sources"]
    assert source["files"] == {"eight.jsonl": hash_of(path)} and source["rows"] == 9
    assert {"python", "grpo-kit", "numpy", "pyarrow", "datasets"} == set(manifest["versions"])
    assert manifest["read"] == 9 and manifest["funnel"] == [
        {"reason": "no problem", "dropped": 1, "left": 8,
         "examples": [{"from": "eight.jsonl, line 9", "problem": "", "answer": "1", "why": "there is nothing to ask"}]}
    ]  # fmt: skip
    assert read_lines(run.manifest.parent / "dropped.jsonl") == [
        {
            "source": "eight.jsonl",
            "line": 9,
            "reason": "no problem",
            "why": "there is nothing to ask",
            "problem": "",
            "answer": "1",
        }
    ]


@pytest.mark.slow
def test_every_file_is_the_same_byte_for_byte(tmp_path):
    path = eight(tmp_path, {"problem": "", "answer": "1"})
    _, one = prepare(tmp_path, path, name="one")
    _, other = prepare(tmp_path, path, name="other")
    assert hash_of(one.manifest.parent) == hash_of(other.manifest.parent)


def test_several_sources_come_together_and_a_problem_in_both_is_kept_once(tmp_path):
    sums = write(tmp_path, "a/sums.csv", "prompt,answer\nWhat is 1 + 1?,2\nWhat is 1 + 2?,3\n")
    again = write(tmp_path, "b/sums.csv", "problem,answer\nwhat is 1+1?,2\n")
    manifest, run = prepare(tmp_path, f"{eight(tmp_path)},{sums}, {again}")
    assert manifest["dropped"] == {"repeated problem": 1} and manifest["read"] == 11
    assert {row["source"] for row in rows_of(run)} == {"eight.jsonl", "a/sums.csv"}
    assert manifest["funnel"][0]["examples"][0]["from"] == "b/sums.csv, line 2"
    with pytest.raises(ValueError, match="one source or several different ones"):
        prepare(tmp_path, f"{sums},{sums}")


@pytest.mark.slow
def test_variants_of_one_problem_stay_in_one_split(tmp_path):
    variants = [{"problem": HENS.format(n), "answer": str(n)} for n in (10, 20, 30)]
    for seed in range(4):
        _, run = prepare(tmp_path, eight(tmp_path, *variants), "data.val_size=3", f"run.seed={seed}", name=f"s{seed}")
        homes = {split for split in SPLITS for row in read_lines(run.data_file(split)) if "farmer" in row["input"]}
        assert len(homes) == 1
        assert len(read_lines(run.data_file("test"))) == 2


def test_variants_of_one_template_cannot_fill_a_test_split_and_the_error_says_so(tmp_path):
    rows = [{"problem": HENS.format(n), "answer": str(n)} for n in range(10, 40)]
    with pytest.raises(ValueError, match="only 0 rows for it that are not variants .* Add a source"):
        prepare(tmp_path, write(tmp_path, "x.jsonl", "\n".join(map(json.dumps, rows))))
    assert not (tmp_path / "runs").exists()


def test_golds_that_the_verifier_cannot_use_are_dropped(tmp_path, math_reward):
    settings = config.load_config(
        ["tiny"], [f"data.source={eight(tmp_path, {'problem': 'What is it?', 'answer': '}'})}", *SIZES]
    )
    manifest = prepare_preparation(settings, find_run("r", tmp_path / "runs"), math_reward)
    assert manifest["dropped"] == {"unusable gold": 1}


def test_prompts_that_are_too_long_are_counted_with_the_runs_tokenizer_and_template(tmp_path):
    long = {"problem": "How many? " + "x" * 100, "answer": "1"}
    manifest, _ = prepare(tmp_path, eight(tmp_path, long), "data.max_prompt_tokens=120")
    assert manifest["dropped"] == {"long prompt": 1}
    assert manifest["funnel"][0]["examples"][0]["why"] == "141 tokens"  # a byte each, and 31 of the chat template


def test_the_tools_of_a_row_belong_to_the_length_of_its_prompt(tmp_path):
    rows = [{"environment": "counter", "prompt": f"Add up to {goal}.", "goal": goal} for goal in range(1, 10)]
    path = write(tmp_path, "counter.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    world = [f"environments.counter.reward_funcs=['{WORLD}:end_reward']", "data.max_prompt_tokens=60"]
    manifest, _ = prepare(tmp_path, path, *world)
    assert manifest["dropped"] == {}
    world.append(f"environments.counter.environment_factory='{WORLD}:Counter'")
    manifest, run = prepare(tmp_path, path, *world, "data.max_prompt_tokens=82", name="acting")
    assert manifest["dropped"] == {}  # 43 of the prompt, 28 of `add(n)` and `look()`, 10 of " It is 0."
    settings = run.stages()["data"]["settings"]
    assert settings["worlds"]["counter"] == fingerprint(counter_world.Counter)
    with pytest.raises(ValueError, match=r"has no usable row \(9 with long prompt: 82 tokens\)"):
        prepare(tmp_path, path, *world, "data.max_prompt_tokens=70", name="longer")


def test_the_same_question_about_another_beginning_is_another_task(tmp_path):
    rows = [{"environment": "counter", "prompt": "Play.", "goal": goal} for goal in (*range(1, 10), 9)]
    path = write(tmp_path, "counter.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    reward = f"environments.counter.reward_funcs=['{WORLD}:end_reward']"
    manifest, run = prepare(tmp_path, path, reward, f"environments.counter.environment_factory='{WORLD}:Counter'")
    assert manifest["dropped"] == {"repeated problem": 1}
    rows = [row for name in SPLITS for row in read_lines(run.data_file(name))]
    assert sorted(row["goal"] for row in rows) == list(range(1, 10)) and len({row["id"] for row in rows}) == 9
    with pytest.raises(ValueError, match="1 usable rows"):  # without a world nothing but the question is asked
        prepare(tmp_path, path, reward, name="plain")


def test_evaluation_problems_are_kept_out_and_both_hits_are_reported(tmp_path):
    held = EIGHT[0]["problem"]
    write(tmp_path, "math/held.jsonl", json.dumps({"problem": held.upper(), "answer": "41"}) + "\n")
    leak = {"problem": "Think of this: " + held + " Say it.", "answer": "41"}
    options = ("data.decontaminate=[math500]", f"data.paths.math500={tmp_path / 'math/held.jsonl'}")
    manifest, run = prepare(tmp_path, eight(tmp_path, leak), *options)
    assert manifest["dropped"] == {"leaked, equal": 1, "leaked, overlap": 1}
    assert manifest["evaluation"] == {"math500": {"problems": 1, "leaked": 1, "equal": 1, "overlap": 2, "kept": 0}}
    assert not [row for row in rows_of(run) if "apples" in row["input"]]


@pytest.mark.slow
def test_missing_evaluation_sets_are_named_and_requested_ones_are_required(tmp_path):
    manifest, _ = prepare(tmp_path, eight(tmp_path))
    assert set(manifest["not_checked"]) == set(recipes.list_recipes(evaluation=True)) and manifest["evaluation"] == {}
    assert "data.paths.aime2024=" in manifest["not_checked"]["aime2024"]
    with pytest.raises(FileNotFoundError, match="'aime2024' has no file on this machine"):
        prepare(tmp_path, eight(tmp_path), "data.decontaminate=[aime2024]", name="other")
    manifest, _ = prepare(tmp_path, eight(tmp_path), "data.decontaminate=[]", name="none")
    assert manifest["not_checked"] == {}


def test_generated_sums_are_not_checked_for_leaks(tmp_path):
    manifest, _ = prepare(tmp_path, "tiny-sums", "data.limit=50")
    assert manifest["evaluation"] == {} == manifest["not_checked"]


def test_an_evaluation_set_is_refused_as_a_source(tmp_path):
    path = write(tmp_path, "x.jsonl", '{"problem": "p", "answer": "1"}\n')
    with pytest.raises(ValueError, match="names aime2024, an evaluation set"):
        prepare(tmp_path, "aime2024", f"data.paths.aime2024={path}")


def test_a_finished_run_does_not_need_its_source(tmp_path):
    path = eight(tmp_path)
    prepare(tmp_path, path)
    path.unlink()
    assert prepare(tmp_path, path)[0]["read"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("step", ["leaks", "duplicates", "write"])
def test_a_killed_preparation_resumes_and_gives_the_same_bytes(tmp_path, monkeypatch, step):
    path = eight(tmp_path, {"problem": EIGHT[0]["problem"].upper(), "answer": "41"})
    write(tmp_path, "held/x.jsonl", json.dumps({"problem": EIGHT[1]["problem"], "answer": "43"}) + "\n")
    options = ("data.decontaminate=[math500]", f"data.paths.math500={tmp_path / 'held/x.jsonl'}")
    _, undisturbed = prepare(tmp_path, path, *options, name="whole")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        at = {"leaks": "drop_leaks", "duplicates": "drop_duplicates"}
        patch.setattr(*((preparation, "write_splits") if step == "write" else (Pipeline, at[step])), killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path, path, *options)
    run = find_run("r", tmp_path / "runs")
    assert not run.manifest.exists()
    finished = {p.stem for p in run.path.rglob("*.jsonl")}
    steps = ["rows-0", "golds", "leaks", "duplicates"]
    assert finished == set(steps[: ["leaks", "duplicates", "write"].index(step) + 2])
    held = sources.locate_source("math500", config.Data(paths={"math500": str(tmp_path / "held/x.jsonl")}))
    real = sources.read_source
    monkeypatch.setattr(
        sources, "read_source", lambda source, *rest: real(held, *rest)
    )  # the source itself is not read again
    _, run = prepare(tmp_path, path, *options)
    assert hash_of(run.manifest.parent) == hash_of(undisturbed.manifest.parent)
    assert sorted(p.name for p in run.path.iterdir()) == ["config.yaml", "data", "run.json"]


def test_each_source_is_located_opened_and_hashed_once(tmp_path, monkeypatch):
    """A local file and a Hub set to train on, a local and a Hub set to keep out: each is opened once."""
    import datasets

    path = eight(tmp_path)
    held = write(tmp_path, "held/x.jsonl", json.dumps({"problem": EIGHT[1]["problem"], "answer": "43"}) + "\n")
    calls = Counter()

    def count(module, function, name_of):
        real = getattr(module, function)

        def counted(*args, **options):
            calls[function, name_of(args)] += 1
            return real(*args, **options)

        monkeypatch.setattr(module, function, counted)

    def load_dataset(name, *_, **__):
        calls["load_dataset", name] += 1
        return iter([{"problem": f"What is the {name} of {word}?", "answer": "1"} for word in ("ant", "bee")])

    count(sources, "locate_source", lambda args: args[0])
    count(sources, "open_table", lambda args: args[0])
    count(preparation, "hash_of", lambda args: args[0])
    for module in (run_module, records):
        count(module, "hash_of", lambda args: args[0])
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "check_hub_reachable", lambda: None)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    options = ("data.decontaminate=[math500,aime2024]", f"data.paths.math500={held}")
    manifest, run = prepare(tmp_path, f"{path},me/mine", *options)
    assert manifest["evaluation"].keys() == {"math500", "aime2024"} and manifest["read"] == 10
    touched = {key: times for key, times in calls.items() if run.path not in Path(key[1]).parents}
    assert touched == {
        **{("locate_source", name): 1 for name in (str(path), "me/mine", "math500", "aime2024")},
        **{(function, file): 1 for function in ("open_table", "hash_of") for file in (path, held)},
        **{("load_dataset", name): 1 for name in ("me/mine", "HuggingFaceH4/aime_2024")},
    }
    calls.clear()
    prepare(tmp_path, f"{path},me/mine", *options)  # the run is done
    touched = {key: times for key, times in calls.items() if run.path not in Path(key[1]).parents}
    assert touched == {("locate_source", str(path)): 1, ("locate_source", "me/mine"): 1, ("hash_of", path): 1}


def test_a_run_of_an_earlier_version_is_recognised_as_done(tmp_path):
    """The settings as version 0.1 wrote them, key by key: a change would make finished runs refuse to resume."""
    path = eight(tmp_path)
    _, run = prepare(tmp_path, path)
    notes = json.loads(run.notes.read_text())
    assert notes["stages"]["data"]["settings"] == {
        "data": {
            "source": str(path), "subset": None, "split": "train", "columns": {"prompt": None, "answer": None},
            "system_prompt": "", "prompt_suffix": "", "limit": None, "max_prompt_tokens": None, "decontaminate": None,
            "no_thinking": 0.0, "budgeted": 0.0, "token_budgets": [], "val_size": 1, "test_size": 2,
        },
        "seed": 3407,
        "verifier": fingerprint(load_reward("math_answer.py")),
    }  # fmt: skip
    assert notes["stages"]["data"]["read"] == {str(path): hash_of(path)}
    settings = json.dumps(notes["stages"]["data"]["settings"] | {"read": [hash_of(path)]}, sort_keys=True)
    assert json.loads(run.manifest.read_text())["run_hash"] == hashlib.sha256(settings.encode()).hexdigest()[:16]


@pytest.mark.slow
def test_partial_results_of_other_settings_are_not_used(tmp_path, monkeypatch):
    path = eight(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "write_splits", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path, path)
    manifest, _ = prepare(tmp_path, path, "data.limit=6")
    assert manifest["read"] == 6
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "write_splits", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path, path, name="q")
    eight(tmp_path, {"problem": "One more?", "answer": "1"})  # the file has changed meanwhile
    assert prepare(tmp_path, path, name="q")[0]["read"] == 9


@pytest.mark.slow
def test_gsm8k_math_and_aime_together_with_planted_leaks(tmp_path, shared_data, monkeypatch, math_reward):
    """Three training sets against four evaluation sets, with four planted leaks and two near misses."""
    monkeypatch.setenv("GRPO_KIT_DATA", str(shared_data))
    held = json.loads((shared_data / "aime/aime2024.jsonl").read_text().splitlines()[0])["problem"]
    other = json.loads((shared_data / "gsm8k/test.jsonl").read_text().splitlines()[0])["question"]
    sentence = held.split(". ")[1]
    assert len(sentence.split()) > 20
    planted = [
        held,  # exact
        other.replace(" ", "\n "),  # white space
        json.loads((shared_data / "math/math500_test.jsonl").read_text().splitlines()[7])["problem"].upper(),  # casing
        f"Tom runs. {sentence}. What is Tom's time?",  # a long sentence
        "A die is thrown. The chance can be written as m/n, where m and n are relatively prime positive integers. "
        "Find m + n.",
        "Ann sells scarves. How much in dollars does she make every day at the market in town?",
    ]
    path = write(tmp_path, "planted.jsonl", "".join(json.dumps({"problem": p, "answer": "7"}) + "\n" for p in planted))
    held_out = "data.decontaminate=[math500,aime2024,aime2025,gsm8k_test]"
    settings = config.load_config(["tiny"], [f"data.source=gsm8k,math,aime_1983_2023,{path}", held_out])
    run = find_run("r", tmp_path / "runs")
    manifest = prepare_preparation(settings, run, math_reward)
    assert manifest["read"] == 7473 + 7474 + 975 + 6
    dropped = read_lines(run.manifest.parent / "dropped.jsonl")
    gone = {row["line"]: row["reason"] for row in dropped if row["source"] == "planted.jsonl"}
    assert gone == {1: "leaked, equal", 2: "leaked, equal", 3: "leaked, equal", 4: "leaked, overlap"}
    assert manifest["dropped"] == {
        "no answer": 4, "figure only": 1, "missing figure": 11, "unusable gold": 1, "leaked, equal": 9,
        "leaked, overlap": 67,
        "repeated problem": 338, "near duplicate": 47,
    }  # fmt: skip
    assert sum(manifest["rows"].values()) + sum(manifest["dropped"].values()) == manifest["read"]
    kept = rows_of(run)
    assert all(row["answer"] and row["prompt"][-1]["content"] for row in kept)
    assert len({row["id"] for row in kept}) == len(kept)


FORMS = {
    "parts.jsonl": lambda q: [{"role": "user", "content": [{"type": "text", "text": q}]}],
    "string.jsonl": lambda q: json.dumps([{"role": "user", "content": q}]),
    "repr.csv": lambda q: str([{"content": q, "role": "user"}]),
    "share.json": lambda q: [{"from": "human", "value": q}],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_messages_in_any_form_are_asked_as_the_question_itself(tmp_path, name):
    questions = {f"What is {i} plus {7 * i}?": str(8 * i) for i in range(1, 31)}
    rows = [{"prompt": FORMS[name](question), "answer": answer} for question, answer in questions.items()]
    if name.endswith("csv"):
        text = "prompt,answer\n" + "".join(f'"{row["prompt"]}",{row["answer"]}\n' for row in rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    manifest, run = prepare(tmp_path, write(tmp_path, name, text))
    assert manifest["dropped"] == {}
    written = {row["prompt"][-1]["content"].removesuffix(config.Data().prompt_suffix): row for row in rows_of(run)}
    assert {question: row["answer"] for question, row in written.items()} == questions


@pytest.mark.slow
def test_a_field_can_be_named_as_the_answer(tmp_path):
    rows = [
        {"prompt": [{"role": "user", "content": f"What is {i} plus {7 * i}?"}],
         "reward_model": {"ground_truth": str(8 * i), "style": "rule"}}
        for i in range(1, 31)
    ]  # fmt: skip
    path = write(tmp_path, "verl.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    _, run = prepare(tmp_path, path, "data.columns.answer=reward_model.ground_truth")
    assert sorted(int(row["answer"]) for row in rows_of(run)) == [8 * i for i in range(1, 31)]
    with pytest.raises(ValueError, match="30 with no answer: reward_model has the fields ground_truth, style, and not"):
        prepare(tmp_path, path, "data.columns.answer=reward_model.gold", name="wrong")


def test_json_lines_named_json_are_read(tmp_path):
    text = "".join(f'{{"problem": "What is {i} plus {7 * i}?", "answer": {8 * i}}}\n' for i in range(1, 31))
    manifest, run = prepare(tmp_path, write(tmp_path, "rows.json", text))
    assert sum(manifest["rows"].values()) == 30 == len({row["answer"] for row in rows_of(run)})


@pytest.mark.slow
def test_a_rows_own_system_turn_is_kept_unless_the_run_has_one(tmp_path):
    rows = [
        {"prompt": [{"role": "system", "content": f"s{i}"}, {"role": "user", "content": f"{i} + 1?"}], "answer": i + 1}
        for i in range(6)
    ]
    path = write(tmp_path, "x.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    _, run = prepare(tmp_path, path)
    assert {(turns[0]["content"], turns[1]["content"][0]) for turns in (row["prompt"] for row in rows_of(run))} == {
        (f"s{i}", str(i)) for i in range(6)
    }
    _, run = prepare(tmp_path, path, "data.system_prompt=S", name="own")
    assert {row["prompt"][0]["content"] for row in rows_of(run)} == {"S"}


def test_rows_that_are_no_text_are_in_the_funnel_and_no_file_holds_infinity(tmp_path):
    good = [{"prompt": f"{i} + 1?", "answer": i + 1, "score": float("inf")} for i in range(6)]
    turns = [{"role": role, "content": "x?"} for role in ("user", "assistant", "user")]
    bad = [
        {"prompt": turns, "answer": 1},
        {"prompt": "a?", "answer": float("nan")},
        {"prompt": "b?", "answer": float("-inf")},
        {"prompt": {"text_en": "c?"}, "answer": 1},
        {"prompt": "d?", "answer": ["1", "2"]},
        {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": 1},
    ]
    path = write(tmp_path, "x.jsonl", "".join(json.dumps(row) + "\n" for row in good + bad))
    manifest, run = prepare(tmp_path, path)
    assert manifest["dropped"] == {"earlier turns": 1, "not finite": 2, "not text": 1, "several answers": 1, "image": 1}
    assert sum(manifest["rows"].values()) == 6

    def refuse(constant):
        raise AssertionError(constant)

    for file in (run.path / "data").rglob("*.json*"):
        for line in [file.read_text()] if file.suffix == ".json" else file.read_text().splitlines():
            json.loads(line, parse_constant=refuse)


@pytest.mark.slow
def test_a_guessed_delimiter_is_in_the_manifest_also_after_an_interruption(tmp_path, monkeypatch):
    path = write(tmp_path, "x.csv", "problem;answer\n" + "".join(f"{i},5 + 1?;{i},5\n" for i in range(6)))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "drop_leaks", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path, path)
    manifest, run = prepare(tmp_path, path)
    note = "x.csv was read with semicolons between its columns, because its header has no commas"
    assert manifest["sources"][0]["notes"] == [note]
    assert {row["answer"] for row in rows_of(run)} == {f"{i},5" for i in range(6)}


def copy_policy(tmp_path, name, template):
    folder = tmp_path / name
    shutil.copytree(tiny.FOLDER, folder)
    (folder / "chat_template.jinja").unlink()
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return folder


NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize("template", ["", NO_SYSTEM])
def test_a_policy_without_a_template_for_the_prompts_is_refused_before_rows_are_read_or_weights_loaded(
    tmp_path, monkeypatch, template
):
    folder = copy_policy(tmp_path, "policy", template)
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(Pipeline, "read", lambda *_: pytest.fail("rows were read"))
    message = "takes no system turn .*Leave data.system_prompt empty" if template else "tokenizer has no chat template"
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, "tiny-sums", f"policy.model={folder}", "data.system_prompt=S", "data.limit=20")
    assert not (tmp_path / "runs").exists()


def test_system_turns_of_the_rows_count_for_the_template_too(tmp_path):
    folder = copy_policy(tmp_path, "policy", NO_SYSTEM)
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "1 + 1?"}]
    path = write(tmp_path, "x.jsonl", json.dumps({"prompt": turns, "answer": 2}) + "\n")
    with pytest.raises(ValueError, match="takes no system turn .*no rows with system turns of their own"):
        prepare(tmp_path, path, f"policy.model={folder}")


def test_data_is_prepared_where_the_policys_tokenizer_is_not_available(tmp_path):
    manifest, _ = prepare(tmp_path, "tiny-sums", "policy.model=nobody/nothing", "data.limit=20")
    assert manifest["rows"]["train"] == 17
