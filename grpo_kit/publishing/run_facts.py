"""What a run's own files say about it, reduced to what may be public: no path, no name of a user's file, no free text.

Everything comes from `run.json`, `data/manifest.json` and `evaluation/*.json`. What is not recorded is left out;
nothing is estimated.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from grpo_kit.data.recipes import GENERATED, list_recipes, load_recipe
from grpo_kit.evaluation import intervals
from grpo_kit.publishing.base import HUB_ID
from grpo_kit.rewards.tools.loading import FOLDER as KIT_REWARDS
from grpo_kit.runs.files import list_differences
from grpo_kit.runs.reading import read_json
from grpo_kit.runs.run import Run
from grpo_kit.runs.trained import MEASURED

METHODS = {"sft": "SFT", "train": "GRPO", "prefer": "DPO"}
SECTIONS = {"sft": "sft", "train": "grpo", "prefer": "dpo"}  # of the settings of a stage
UNKNOWN = "unstated"  # a licence
# Texts among the settings that are published: words of TRL's, PEFT's and the kit's own. Others may name a file.
WORDS = {
    "advantage", "draw", "dtype", "engine", "enter", "loss_type", "lr_scheduler_type", "optim", "protocol", "reasoning",
    "target_modules", "thinking_budget", "vllm",
}  # fmt: skip
PLAIN = r"[A-Za-z0-9_.+-]{1,60}"


class Source(NamedTuple):
    """Where rows came from.

    Attributes:
        name: as the public may read it; a user's own file is only numbered.
        licence: a short name, or `unstated`.
        hub: the id of the data set on the Hub, None for none.
        rows: number of rows read, None where it is not recorded.
        digests: the sha256 of each file that was read, or of the rows where they have no file.
        key: the name in the run's rows, never published.
    """

    name: str
    licence: str
    hub: str | None
    rows: int | None
    digests: list[str]
    key: str


class Measured(NamedTuple):
    """A measurement of the untrained policy, or of what a stage made of it.

    Attributes:
        stage: the stage that trains, "" for the untrained policy.
        report: what `evaluation/*.json` holds, its problems included.
        change: the comparison with the untrained policy (`intervals.compare_scores`), None where it cannot be made.
    """

    stage: str
    report: dict[str, Any]
    change: dict[str, Any] | None

    @property
    def label(self) -> str:
        """`before training`, `after GRPO`."""
        return f"after {METHODS[self.stage]}" if self.stage else "before training"


def read_sources(run: Run) -> list[Source]:
    """The sources of the run's problems.

    Raises:
        ValueError: the data was prepared again since the run was trained.
    """
    records = run.stages()
    name = run.manifest.relative_to(run.path).as_posix()
    now = records.get("data", {}).get("wrote", {}).get(name)
    for stage in run.trained_stages():
        if records[stage]["read"].get(name, now) != now:
            raise ValueError(
                f"The data of run {run.name!r} was prepared again after stage {stage!r} had trained on other rows, so "
                "the card would describe rows that the policy never saw. Train again with --force (run.force=true)."
            )
    run.require_stage("data", "grpo-kit data")
    found = []
    for entry in read_json(run.manifest).get("sources", []):
        recipe, own = entry["recipe"], sum(source.name.startswith("own file") for source in found)
        hub = recipe.get("hub") if re.fullmatch(HUB_ID, str(recipe.get("hub"))) else None
        is_known = entry["name"] in GENERATED or entry["name"] in list_recipes(environment=None)
        digests = [digest for digest in entry.get("files", {}).values() if digest]
        found.append(
            Source(
                entry["name"] if is_known or hub == entry["name"] else f"own file {own + 1}",
                recipe.get("licence", UNKNOWN),
                hub,
                entry.get("rows"),
                digests or [digest for digest in [entry.get("rows_sha256")] if digest],
                entry["name"],
            )
        )
    return found


def read_measurements(run: Run) -> list[Measured]:
    """The measurements that hold for the adapters as they are, the untrained policy's first.

    One of an adapter that was trained again since is left out. A difference is only given between measurements with the
    same settings on the same rows.

    Raises:
        FileNotFoundError: a file of a measurement is gone.
        ValueError: it is damaged.
    """
    records, found = run.stages(), []
    manifest = run.manifest.relative_to(run.path).as_posix()
    for stage, name in [("", "before"), *((stage, MEASURED[stage]) for stage in run.trained_stages())]:
        if name not in records:
            continue
        read = records[name]["read"]
        if stage:
            adapter = run.stage_files(stage).adapter.relative_to(run.path).as_posix()
            if read.get(adapter) != records[stage]["wrote"].get(adapter):
                continue
        if read.get(manifest) != records["data"]["wrote"].get(manifest):
            continue
        run.require_stage(name, "grpo-kit evaluate")
        report, change = read_json(run.evaluation / f"{name}.json"), None
        same = not list_differences(records.get("before", {}).get("settings"), records[name]["settings"])
        if stage and same and found and not found[0].stage:
            scores = ({each["id"]: each["score"] for each in r["problems"]} for r in (found[0].report, report))
            change = intervals.compare_scores(*scores, names=("before training", f"after {METHODS[stage]}"))
        found.append(Measured(stage, report, change))
    return found


class Example(NamedTuple):
    """A held-out problem and what the policy wrote before and after training; `before` is None where it is unknown."""

    title: str
    problem: str
    answer: str
    before: str | None
    after: str


def choose_examples(measured: list[Measured], sources: list[Source]) -> list[Example]:
    """The first problem of each kind: gained, lost and still wrong; without a measurement before, right and wrong.

    Only problems whose licence is known are shown, in the order of the evaluation.
    """
    if not measured or not measured[-1].stage:
        return []
    licences = {source.key: source.licence for source in sources}
    before = {} if measured[0].stage else {each["id"]: each for each in measured[0].report["problems"]}
    kinds = {
        (0.0, 1.0): "Wrong before, right after",
        (1.0, 0.0): "Right before, wrong after",
        (0.0, 0.0): "Still wrong",
        (None, 1.0): "Right",
        (None, 0.0): "Wrong",
    }
    found: dict[str, Example] = {}
    for problem in measured[-1].report["problems"]:
        earlier = before.get(problem["id"], {})
        if before and earlier.get("score") is None:
            continue
        title = kinds.get((earlier.get("score"), problem["score"]))
        known = _licence_of(problem, licences) != UNKNOWN and problem["completions"]
        if known and title and title not in found:
            texts = (side["completions"][0] if side else None for side in (earlier, problem))
            found[title] = Example(title, problem["prompt"], str(problem.get("answer", "")), *texts)
    return [found[title] for title in kinds.values() if title in found]


def _licence_of(problem: Mapping[str, Any], licences: Mapping[str, str]) -> str:
    if (name := problem.get("set")) not in (None, "test"):
        return load_recipe(name).licence if name in list_recipes(True, environment=None) else UNKNOWN
    if "source" in problem:
        return licences.get(problem["source"], UNKNOWN)
    return next(iter(licences.values())) if len(licences) == 1 else UNKNOWN


def public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a stage without those that may name a file, an address or a person.

    Numbers, truth values and the words of WORDS stay. Of rewards, the kit's own stay by name.

    Example:
        >>> public_settings({"max_steps": 5, "source": "/home/ada/x.jsonl", "optim": "adamw_torch"})
        {'max_steps': 5, 'optim': 'adamw_torch'}
    """
    public: dict[str, Any] = {}
    for key, value in settings.items():
        if key in ("reward_funcs", "verifier") and (names := _public_rewards(value)):
            public[key] = names
        elif key == "rewards" and isinstance(value, Mapping):
            public[key] = {name: digest for name, digest in value.items() if re.fullmatch("[0-9a-f]{64}", str(digest))}
        elif key == "sets" and isinstance(value, list):
            known = ["test", *list_recipes(environment=None)]
            public[key] = [name if name in known else "own" for name in value]
        elif value is None or isinstance(value, bool | int | float):
            public[key] = value
        elif isinstance(value, str):
            if key in WORDS and re.fullmatch(PLAIN, value):
                public[key] = value
        elif isinstance(value, Mapping):
            if inner := public_settings(value):
                public[key] = inner
        elif isinstance(value, list):
            items = [item for part in value for item in public_settings({key: part}).values()]
            if len(items) == len(value):
                public[key] = items
    return public


def _public_rewards(value: Any) -> list[str]:
    """The kit's own rewards by their names, others as `own`; empty for what is no list of rewards."""
    specs = [value] if isinstance(value, str) else value
    if not isinstance(specs, list) or not all(isinstance(spec, str) and ":" in spec for spec in specs):
        return []
    files = {spec: spec.partition(":")[0] for spec in specs}
    return [
        spec if Path(name).name == name and (KIT_REWARDS / name).is_file() else "own" for spec, name in files.items()
    ]


class Text(NamedTuple):
    """Something that the stage `sft` or `prefer` learned from: in words that name no file, and its id on the Hub."""

    words: str
    hub: str | None = None
    is_own: bool = False  # the author's


def list_texts(stage: str, settings: Mapping[str, Any]) -> list[Text]:
    """What the stage `sft` or `prefer` learned from; nothing for GRPO, which learns from the run's problems."""
    source = str(settings.get(SECTIONS[stage], {}).get("source", ""))
    if stage == "train":
        return []
    if stage == "prefer" and source == "completions":
        return [Text("pairs of the policy's own completions during GRPO, judged by their rewards")]
    if stage == "prefer":
        return [Text("pairs of the author's own file", is_own=True)]
    texts = []
    for item in filter(None, (part.strip() for part in source.split(","))):
        if item == "traces":
            texts.append(Text("traces of the kit's solvers for the run's own problems"))
        elif item.startswith("run:"):
            texts.append(Text("right completions of another run of the author", is_own=True))
        elif re.fullmatch(HUB_ID, item) and not Path(item).suffix:
            texts.append(Text(f"`{item}` on the Hub", item))
        else:
            texts.append(Text("the author's own file", is_own=True))
    return texts


def make_record(run: Run, base: str, sources: list[Source], measured: list[Measured]) -> dict[str, Any]:
    """The run's record as it is published: stages, settings, versions, hashes, accuracies.

    Args:
        run: the run.
        base: the base's id on the Hub.
        sources, measured: from `read_sources` and `read_measurements`.
    """
    stages = {}
    for stage in run.trained_stages():
        record = run.stages()[stage]
        environment = record.get("environment", {})
        stages[stage] = {
            "method": METHODS[stage],
            "finished": record["finished"],
            "seconds": record["seconds"],
            "steps": record.get("steps"),
            "settings": public_settings(record["settings"]),
            "environment": {key: environment.get(key) for key in ("python", "cpus", "gpu", "packages", "commit")},
        }
    manifest = read_json(run.manifest)
    return {
        "base_model": base,
        "stages": stages,
        "data": {
            "sources": [
                {key: value for key, value in source._asdict().items() if key != "key" and value is not None}
                for source in sources
            ],
            "rows": manifest["rows"],
            "sha256": manifest["sha256"],
        },
        "measurements": [
            {"measured": each.label}
            | {
                key: each.report[key]
                for key in ("pass@1", "ci95", "n", "mean_tokens", "truncated")
                if key in each.report
            }
            | {"sampling": public_settings(each.report["sampling"])}
            | (
                {"difference": each.change["difference"], "difference_ci95": each.change["difference_ci95"]}
                if each.change
                else {}
            )
            for each in measured
        ],
    }
