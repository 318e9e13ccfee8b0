"""Facts of a card from a run's own files: where its rows came from, what was measured, problems to show.

Everything comes from `run.json`, `data/manifest.json` and `evaluation/*.json`. What is not recorded is left out;
nothing is estimated.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from grpo_kit.config import RunConfig
from grpo_kit.data.recipes import GENERATED, list_recipes, load_recipe
from grpo_kit.evaluation.changes import compare_scores
from grpo_kit.publishing.base import HUB_ID, Base
from grpo_kit.runs.files import list_differences
from grpo_kit.runs.reading import read_json, read_lines
from grpo_kit.runs.run import Run
from grpo_kit.runs.trained import MEASURED

METHODS = {"sft": "SFT", "train": "GRPO", "prefer": "DPO"}
SECTIONS = {"sft": "sft", "train": "grpo", "prefer": "dpo"}  # of the settings of a stage
UNKNOWN = "unstated"  # a licence


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
        change: the comparison with the untrained policy (`changes.compare_scores`), None where it cannot be made.
    """

    stage: str
    report: dict[str, Any]
    change: dict[str, Any] | None

    @property
    def label(self) -> str:
        """`before training`, `after GRPO`."""
        return name_measurement(self.stage)


def name_measurement(stage: str) -> str:
    """What a measurement after a stage that trains is called; "" is the untrained policy.

    Example:
        >>> name_measurement(""), name_measurement("train")
        ('before training', 'after GRPO')
    """
    return f"after {METHODS[stage]}" if stage else "before training"


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


def list_measurements(run: Run) -> list[tuple[str, str, str]]:
    """The recorded measurements, the untrained policy's first.

    Returns:
        (the stage that trains, the measurement's name, why it does not hold any more or "") of each.
    """
    records, found = run.stages(), []
    manifest = run.manifest.relative_to(run.path).as_posix()
    for stage, name in [("", "before"), *((stage, MEASURED[stage]) for stage in run.trained_stages())]:
        if name not in records:
            continue
        read, reason = records[name]["read"], ""
        adapter = run.stage_files(stage).adapter.relative_to(run.path).as_posix() if stage else None
        if stage and read.get(adapter) != records[stage]["wrote"].get(adapter):
            reason = "the adapter was trained again since"
        elif read.get(manifest) != records["data"]["wrote"].get(manifest):
            reason = "the rows were prepared again since"
        found.append((stage, name, reason))
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
    for stage, name, outdated in list_measurements(run):
        if outdated:
            continue
        run.require_stage(name, "grpo-kit evaluate")
        report, change = read_json(run.evaluation / f"{name}.json"), None
        same = not list_differences(records.get("before", {}).get("settings"), records[name]["settings"])
        if stage and same and found and not found[0].stage:
            scores = ({each["id"]: each["score"] for each in r["problems"]} for r in (found[0].report, report))
            change = compare_scores(*scores, names=("before training", f"after {METHODS[stage]}"))
        found.append(Measured(stage, report, change))
    return found


def split_by_set(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{set: its accuracy, `ci95` and `n`} of a measurement; a user's own sets are only numbered."""
    of_set = {each["set"]: each.get("environment") for each in report["problems"] if each.get("set")}
    by = report.get("by", {})
    if len(of_set) < 2:
        parts = dict.fromkeys(of_set or report["sampling"]["sets"][:1], report)
    elif "set" in by:
        parts = by["set"]
    else:  # each set is one environment, so the report has these figures once
        parts = {name: by["environment"][environment] for name, environment in of_set.items()}
    known, own = ("test", *list_recipes(environment=None)), [name for name in parts if name != "test"]
    own = [name for name in own if name not in known]
    return {name if name in known else f"own set {own.index(name) + 1}": part for name, part in parts.items()}


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


class Facts(NamedTuple):
    """Everything that a card says.

    Attributes:
        repo: USER/REPO.
        config: the run's configuration, as `require_recorded` has checked it.
        base: the model that the adapter belongs to.
        records: {stage: its record in `run.json`} of the stages that trained, in their order.
        modules: names of the modules that have a LoRA pair, with the shapes of A and B.
        sources, measured: from `read_sources` and `read_measurements`.
        examples: of the published adapter, from `choose_examples`.
        manifest: `data/manifest.json`.
        seconds: {stage: seconds from its first step to its last one}, where they are known.
    """

    repo: str
    config: RunConfig
    base: Base
    records: dict[str, dict[str, Any]]
    modules: Mapping[str, Sequence[tuple[int, ...]]]
    sources: list[Source]
    measured: list[Measured]
    examples: list[Example]
    manifest: dict[str, Any]
    seconds: dict[str, float]

    @property
    def is_nemotron(self) -> bool:
        """Whether the adapter belongs to a Nemotron-H, whose layers are mixers."""
        return any(".mixer." in name for name in self.modules)

    @property
    def trained(self) -> Measured | None:
        """The measurement of the published adapter, None where there is none."""
        return next((each for each in self.measured if each.stage == self.last), None)

    @property
    def last(self) -> str:
        """The stage that made the published adapter."""
        return list(self.records)[-1]


def collect_facts(
    config: RunConfig, run: Run, repo: str, base: Base, modules: Mapping[str, Sequence[tuple[int, ...]]]
) -> Facts:
    """Read everything that a card says.

    Args:
        config: the run's configuration.
        run: a trained run.
        repo, base, modules: as `Facts` has them.

    Raises:
        FileNotFoundError, ValueError: as `require_recorded`, `read_sources` and `read_measurements`.
    """
    require_recorded(config, run)
    stages = run.stages()
    records = {stage: stages[stage] for stage in run.trained_stages()}
    sources, measured = read_sources(run), read_measurements(run)
    seconds = {stage: _training_seconds(run, stage, record) for stage, record in records.items()}
    is_measured = measured and measured[-1].stage == list(records)[-1]
    return Facts(
        repo,
        config,
        base,
        records,
        modules,
        sources,
        measured,
        choose_examples(measured, sources) if is_measured else [],
        read_json(run.manifest),
        {stage: each for stage, each in seconds.items() if each is not None},
    )


def require_recorded(config: RunConfig, run: Run) -> None:
    """Raise ValueError where a setting is not the one that the run was made with.

    What was measured, and how, is read from the records alone, so `config.evaluation` does not matter.
    """
    stages, now = run.stages(), asdict(config)
    for stage in ("data", *run.trained_stages()):
        settings = stages.get(stage, {}).get("settings", {})
        for name in ("data", "policy", "lora", SECTIONS.get(stage)):
            recorded, present = settings.get(name) or {}, now.get(name, {})
            shared = recorded.keys() & present.keys()  # versions differ in the settings that they have
            sides = ({name: {key: side[key] for key in present if key in shared}} for side in (recorded, present))
            if differences := list_differences(*sides):
                raise ValueError(
                    f"{differences[0]}: a card describes run {run.name!r} as stage {stage!r} was made. Leave this "
                    "setting out."
                )


def _training_seconds(run: Run, stage: str, record: Mapping[str, Any]) -> float | None:
    """Seconds from the first step of a stage to its last one, over all sessions; None where they are not known."""
    rows = read_lines(run.stage_files(stage).metrics, interrupted=True)
    return next((row["seconds"] for row in rows if row["step"] == record.get("steps")), None)
