"""The record of a run as it is published: settings, texts that were learned from, hashes, accuracies.

A user's paths, names of files and free text stay private; numbers and the libraries' own words are public.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from grpo_kit.config import MATH
from grpo_kit.config.environments import KNOWN
from grpo_kit.data.recipes import list_recipes
from grpo_kit.publishing.base import HUB_ID
from grpo_kit.publishing.run_facts import METHODS, SECTIONS, Facts
from grpo_kit.rewards.tools.loading import FOLDER as KIT_REWARDS

RECORD = "run.json"
# Texts among the settings that are published: words of TRL's, PEFT's and the kit's own. Others may name a file.
WORDS = {
    "advantage", "draw", "dtype", "engine", "enter", "loss_type", "lr_scheduler_type", "optim", "protocol", "reasoning",
    "target_modules", "thinking_budget", "vllm",
}  # fmt: skip
PLAIN = r"[A-Za-z0-9_.+-]{1,60}"


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


def make_record(facts: Facts) -> dict[str, Any]:
    """The run's record as it is published: stages, settings, prompt, versions, hashes, accuracies."""
    config, stages = facts.config, {}
    for stage, record in facts.records.items():
        environment = record.get("environment", {})
        stages[stage] = {
            "method": METHODS[stage],
            "finished": record["finished"],
            "seconds": facts.seconds.get(stage),
            "steps": record.get("steps"),
            "settings": public_settings(record["settings"]),
            "environment": {key: environment.get(key) for key in ("python", "cpus", "gpu", "packages", "commit")},
        }
    return {
        "base_model": facts.base.name,
        "stages": stages,
        "prompt": {
            "system_prompt": config.data.system_prompt,
            "prompt_suffix": config.data.prompt_suffix,
            "enable_thinking": config.policy.enable_thinking,
        },
        "data": {
            "sources": [
                {key: value for key, value in source._asdict().items() if key != "key" and value is not None}
                for source in facts.sources
            ],
            "rows": facts.manifest["rows"],
            "sha256": facts.manifest["sha256"],
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
            for each in facts.measured
        ],
    }


def list_own_words(facts: Facts) -> dict[str, str]:
    """{where it comes from: the text} of all that the run's author wrote and that the folder makes public."""
    config = facts.config
    words = {"data.system_prompt": config.data.system_prompt, "data.prompt_suffix": config.data.prompt_suffix}
    words["policy.revision"] = facts.base.revision or ""
    words["--base"] = facts.base.name if facts.base.is_named else ""
    words["policy.model"] = "the tokenizer and the chat template of its folder" if facts.base.is_named else ""
    named = {"data.source": [source.hub for source in facts.sources if source.hub == source.name]}
    for stage, record in facts.records.items():
        settings = record["settings"]
        targets = settings.get("lora", {}).get("target_modules") or []
        environments = [*settings.get("environments", {}), *settings.get("mix", {})]
        for key, names in {
            f"{SECTIONS[stage]}.source": [text.hub for text in list_texts(stage, settings) if text.hub],
            "lora.target_modules": [target for target in targets if not re.fullmatch(PLAIN, target)],
            "environments": [name for name in environments if name not in (MATH, *KNOWN)],
            "rewards": _own_rewards(settings),
        }.items():
            named.setdefault(key, []).extend(names)
    return {key: text for key, text in words.items() if text} | {
        key: ", ".join(dict.fromkeys(names)) for key, names in named.items() if names
    }


def unnamed_rewards(settings: Mapping[str, Any]) -> list[str]:
    """Names of the functions that rewarded the training, where others were passed than `reward_funcs` names."""
    used, specs = settings.get("rewards", {}), settings.get("grpo", {}).get("reward_funcs", [])
    named = {spec.rpartition(":")[2] for spec in specs}
    return [] if named <= used.keys() or not used else list(used)


def _own_rewards(settings: Mapping[str, Any]) -> list[str]:
    """Names of the functions that are no rewards of the kit."""
    sections = [settings.get("grpo", {}), *settings.get("environments", {}).values()]
    specs = [spec for section in sections for spec in _public_rewards(section.get("reward_funcs", []))]
    known = {spec.rpartition(":")[2] for spec in specs if spec != "own"}
    return [name for name in settings.get("rewards", {}) if name not in known]
