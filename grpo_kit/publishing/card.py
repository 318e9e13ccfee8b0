"""The README of a published adapter: metadata as the Hub reads them, and what the run's own files say, in sections."""

from typing import Any

import grpo_kit
from grpo_kit.config import MATH
from grpo_kit.data.recipes import GENERATED, list_recipes, load_recipe
from grpo_kit.publishing import loading, sections
from grpo_kit.publishing.base import Base
from grpo_kit.publishing.escaping import inline
from grpo_kit.publishing.public_record import RECORD, list_texts
from grpo_kit.publishing.run_facts import METHODS, UNKNOWN, Facts, Source, split_by_set

TASK = "text-generation"
CURVES = "curves.png"
PICTURE = f"![the curves of the training]({CURVES})"


def render_card(facts: Facts) -> str:
    """The text of README.md."""
    methods = ", then ".join(METHODS[stage] for stage in facts.records)
    packages = facts.records[facts.last].get("environment", {}).get("packages") or {}
    kit = f"grpo-kit {inline(packages.get('grpo-kit') or grpo_kit.__version__)}"
    base = f"[{inline(facts.base.name)}](https://huggingface.co/{facts.base.name})"
    if facts.base.is_embedded:
        base = f"`{facts.base.name}`, the policy of half a million parameters that is embedded in grpo-kit"
    figures = f"Every figure here was measured by the run itself, and its record is in `{RECORD}`."
    if not facts.measured:
        figures = f"No accuracy was measured. What stands here is from the run's own record, `{RECORD}`."
    parts = [
        f"# {inline(facts.repo.partition('/')[2])}",
        f"A LoRA adapter of {base}, trained by {methods} with {kit}. {figures}",
    ]
    if facts.base.is_embedded:
        parts.append(
            "**A preview.** The Hub does not have this base, so the adapter cannot be published; it only serves to try "
            "the workflow."
        )
    parts += [
        "## Results",
        *sections.describe_results(facts),
        "## Curves",
        PICTURE,
        *sections.describe_samples(facts),
        "## Load it",
        *loading.describe_loading(facts),
        "## Training",
        *sections.describe_training(facts),
        "## Data",
        *sections.describe_data(facts),
        "## Limits",
        "\n".join(f"- {sentence}" for sentence in _limits(facts)),
        "## Licence",
        _licence(facts.base),
    ]
    return f"---\n{make_metadata(facts).to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def make_metadata(facts: Facts) -> Any:
    """The metadata as `huggingface_hub.ModelCardData`; a model-index only where the adapter was measured.

    Those of a preview name no base, which the Hub could not link, and have no model-index.
    """
    from huggingface_hub import ModelCardData

    tags = ["lora", "grpo-kit", *(METHODS[stage].lower() for stage in facts.records)]
    tags += ["nemotron_h"] if facts.is_nemotron else []
    tags += ["math"] if MATH in facts.manifest.get("environments", [MATH]) else []
    texts = [text for stage, record in facts.records.items() for text in list_texts(stage, record["settings"])]
    hub = [source.hub for source in facts.sources] + [text.hub for text in texts]
    of_the_kit = {*GENERATED, *list_recipes(environment=None)}
    is_known = {source.name for source in facts.sources} <= of_the_kit and not any(t.hub or t.is_own for t in texts)
    is_linked = not facts.base.is_embedded
    results = _list_results(facts) if is_linked else []
    return ModelCardData(
        base_model=facts.base.name if is_linked else None,
        base_model_relation="adapter" if is_linked else None,
        library_name="peft",
        pipeline_tag=TASK,
        **facts.base.licence,
        datasets=list(dict.fromkeys(filter(None, hub))) or None,
        language="en" if is_known else None,
        tags=tags,
        metrics=["accuracy"] if results else None,
        model_name=facts.repo.partition("/")[2] if results else None,
        eval_results=results or None,
    )


def _list_results(facts: Facts) -> list[Any]:
    """The accuracy of the published adapter on each evaluation set, as `huggingface_hub.EvalResult`."""
    from huggingface_hub import EvalResult

    if (measured := facts.trained) is None:
        return []
    sampling, results = measured.report["sampling"], []
    for name, part in split_by_set(measured.report).items():
        arguments = {key: sampling[key] for key in ("num_generations", "temperature", "max_completion_length")}
        results.append(
            EvalResult(
                task_type=TASK,
                metric_type="accuracy",
                metric_name=f"pass@1 {measured.label}",
                metric_value=round(part["pass@1"], 4),
                metric_args={"n": part["n"], "ci95": [round(edge, 4) for edge in part["ci95"]], **arguments},
                **_describe_set(name, facts.sources),
            )
        )
    return results


def _describe_set(name: str, sources: list[Source]) -> dict[str, Any]:
    if name == "test":
        names, hubs = [" ".join(source.name.split()) for source in sources], {source.hub for source in sources}
        (hub,) = hubs if len(hubs) == 1 else (None,)
        about = f"held-out problems of {', '.join(names)}"
        return {"dataset_name": about, "dataset_type": hub or "held-out", "dataset_split": "held out by grpo-kit"}
    if name not in list_recipes(environment=None):
        return {"dataset_name": name, "dataset_type": "own"}
    recipe = load_recipe(name)
    more = {"dataset_config": recipe.subset, "dataset_split": recipe.split}
    return {"dataset_name": name, "dataset_type": recipe.hub or name, **more}


def _limits(facts: Facts) -> list[str]:
    policy = facts.config.policy
    held_out = "Other tasks were not measured."
    if facts.trained is None:
        held_out = "The adapter was not measured on any task."
    elif "test" in split_by_set(facts.trained.report):
        held_out = f"The problems of the test split come from the sources of the training. {held_out}"
    place = "trained and measured" if facts.trained else "trained"
    sentences = [
        f"Measured over NF4 only: the adapter was {place} on the base in 4 bit (NF4, {policy.dtype}), not on the base "
        "in 16 bit or in another format."
        if policy.load_in_4bit
        else f"The adapter was {place} on the base in {policy.dtype}, not on a quantised one.",
        held_out,
        "One training with one seed." + " The intervals are over problems, not over trainings." * bool(facts.measured),
    ]
    if facts.base.is_named:
        sentences.append(f"The run had its base in a local folder; its author names it {facts.base.name}.")
    if unknown := [source.name for source in facts.sources if source.licence == UNKNOWN]:
        sentences.append(f"The licence of {inline(', '.join(unknown))} is not known to the kit.")
    if unchecked := list(facts.manifest.get("not_checked", {})):
        sentences.append(
            f"The training rows were not compared with {inline(', '.join(unchecked))}, which were not available."
        )
    if out := [METHODS[stage] for stage, record in facts.records.items() if record.get("out_of_time")]:
        sentences.append(f"The time of the session ended before the last step of {' and '.join(out)}.")
    return sentences


def _licence(base: Base) -> str:
    name = base.licence.get("license_name", base.licence["license"])
    link = base.licence.get("license_link")
    terms = f"[{name}]({link})" if link else name
    return f"The adapter stands under the terms of its base: {terms}. The data sets have terms of their own."
