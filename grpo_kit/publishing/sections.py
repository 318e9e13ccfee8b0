"""The sections of a card on the run: what was measured, samples, how and on what the adapter was trained."""

from collections.abc import Mapping
from typing import Any

from grpo_kit.config import MATH
from grpo_kit.data.recipes import GENERATED
from grpo_kit.publishing.escaping import code, inline, quote
from grpo_kit.publishing.public_record import RECORD, list_texts, public_settings, unnamed_rewards
from grpo_kit.publishing.run_facts import METHODS, SECTIONS, UNKNOWN, Facts, split_by_set
from grpo_kit.runs.texts import format_change


def describe_results(facts: Facts) -> list[str]:
    if not facts.measured:
        return ["The run was not measured, neither before nor after training, so there is no accuracy to show."]
    lines = [
        "| policy | pass@1 | 95 % interval | change | its 95 % interval | problems | tokens | cut off |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in facts.measured:
        report, change = each.report, each.change
        low, high = report["ci95"]
        cells = [each.label, f"{report['pass@1']:.3f}", f"{low:.3f} to {high:.3f}"]
        cells += ["", ""]
        if change:
            points, *ends = (format_change(100 * each) for each in (change["difference"], *change["difference_ci95"]))
            cells[-2:] = [f"{points} points", " to ".join(ends)]
        cells += [
            f"{report['n']:,}",
            f"{report.get('mean_tokens', 0):.1f}",
            f"{100 * report.get('truncated', 0):.1f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    paragraphs = ["\n".join(lines)]
    if facts.trained is None:
        paragraphs.append(f"The published adapter, the one after {METHODS[facts.last]}, was **not measured**.")
    elif facts.trained.change:
        paragraphs.append(facts.trained.change["words"])
    else:
        paragraphs.append(
            "The untrained policy was not measured with the same settings, so there is no difference to show."
        )
    paragraphs.append(_describe_sampling(facts))
    return [*paragraphs, *_groups(facts)]


def _describe_sampling(facts: Facts) -> str:
    forms = {each.label: _sampling_in_words(each.report) for each in facts.measured}
    form = "; ".join(f"{label} {form}" for label, form in forms.items())
    if len(set(forms.values())) == 1:
        form = forms[facts.measured[0].label]
    return (
        f"pass@1 is the share of right answers over held-out problems. Measured {form}. *Change* compares with "
        "the untrained policy, problem by problem. *Tokens* is the mean length of a completion."
    )


def _sampling_in_words(report: Mapping[str, Any]) -> str:
    sampling, samples = report["sampling"], report["sampling"]["num_generations"]
    thinking = "with" if report.get("prompt", {}).get("enable_thinking") else "without"
    form = "greedy" if not sampling["temperature"] else f"at temperature {sampling['temperature']:g}"
    sets = inline(" and ".join("the test split" if name == "test" else name for name in split_by_set(report)))
    return (
        f"with {samples} {'sample' if samples == 1 else 'samples'} of each problem of {sets} {form}, at most "
        f"{sampling['max_completion_length']:,} tokens, {thinking} thinking, sampled by {inline(sampling['engine'])}"
    )


def _groups(facts: Facts) -> list[str]:
    """Accuracies by set, environment and family, as far as the last measurement has several."""
    paragraphs = []
    report = facts.measured[-1].report
    groups = {kind: report.get("by", {}).get(kind, {}) for kind in ("environment", "family")}
    for kind, named in ({"problems": split_by_set(report)} | groups).items():
        if len(named) > 1:
            lines = [f"| {kind} | pass@1 {facts.measured[-1].label} | 95 % interval | problems |", "|---|---|---|---|"]
            for name, part in named.items():
                low, high = part["ci95"]
                lines.append(f"| {inline(name)} | {part['pass@1']:.3f} | {low:.3f} to {high:.3f} | {part['n']:,} |")
            paragraphs.append("\n".join(lines))
    return paragraphs


def describe_samples(facts: Facts) -> list[str]:
    if not facts.examples:
        is_hidden = facts.trained and any(source.licence == UNKNOWN for source in facts.sources)
        sentence = "None is shown: the kit does not know the licence of the held-out problems."
        return ["## Samples", sentence] if is_hidden else []
    parts = [
        "## Samples",
        "Held-out problems, not picked by hand: in the order of the evaluation, the first of each kind whose data has "
        "a known licence.",
    ]
    for example in facts.examples:
        parts += [f"**{example.title}.** The problem, and its answer:", quote(f"{example.problem}\n\n{example.answer}")]
        if example.before is not None:
            parts += ["Before training:", quote(example.before)]
        parts += ["After training:", quote(example.after)]
    return parts


def describe_training(facts: Facts) -> list[str]:
    parts = []
    for stage, record in facts.records.items():
        settings, environment = record["settings"], record.get("environment", {})
        texts = ", ".join(text.words for text in list_texts(stage, settings))
        steps = f"{record['steps']:,} steps" if record.get("steps") else "trained"
        time = f" in {facts.seconds[stage]:,.0f} s" if stage in facts.seconds else ""
        machine = environment.get("gpu") or f"{environment.get('cpus')} processor cores, no GPU"
        versions = environment.get("packages") or {}
        libraries = ", ".join(
            f"{name} {versions[name]}" for name in ("torch", "transformers", "trl", "peft") if versions.get(name)
        )
        parts.append(
            f"**{METHODS[stage]}**: {steps}{time} on {inline(machine)}{f', from {texts}' if texts else ''}; "
            f"{inline(libraries)}."
        )
        rows = [
            f"| {code(key)} | {code(_value(value))} |"
            for key, value in _list_settings(stage, settings, facts.manifest).items()
            if value not in (None, [], {})
        ]
        parts.append("\n".join(["| setting | value |", "|---|---|", *rows]))
    if facts.seconds:
        parts.append(
            "Seconds run from the first step to the last one, all sessions together, with the measurements in between "
            "and without loading the model."
        )
    return parts


def _list_settings(stage: str, settings: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The public settings of a stage, each under its own name; the rewards are those that judged the rows."""
    public = public_settings(settings)
    chosen = {**public.get("lora", {}), **public.get(SECTIONS[stage], {}), **public.get("precision", {})}
    if stage == "train":
        if MATH not in manifest.get("environments", [MATH]):  # the rewards of `grpo` judge the rows of math
            chosen = {key: value for key, value in chosen.items() if key not in ("reward_funcs", "reward_weights")}
        elif names := unnamed_rewards(settings):
            chosen["reward_funcs"] = names
        for name, own in public.get("environments", {}).items():
            chosen |= {f"environments.{name}.{key}": value for key, value in own.items()}
        chosen["mix"] = public.get("mix")
    return chosen | {"seed": public.get("seed")}


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(item)}" for key, item in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe_data(facts: Facts) -> list[str]:
    lines = ["| source | licence | rows | sha256 |", "|---|---|---|---|"]
    for source in facts.sources:
        link = (
            f"[{inline(source.name)}](https://huggingface.co/datasets/{source.hub})"
            if source.hub
            else inline(source.name)
        )
        about = f"{link} ({GENERATED[source.name]})" if source.name in GENERATED else link
        rows = "" if source.rows is None else f"{source.rows:,}"
        digests = ", ".join(f"`{digest[:16]}`" for digest in source.digests)
        lines.append(f"| {about} | {inline(source.licence)} | {rows} | {digests} |")
    rows = facts.manifest["rows"]
    counts = ", ".join(f"{count:,} for {name}" for name, count in rows.items())
    digests = ", ".join(f"{name} `{digest[:16]}`" for name, digest in facts.manifest["sha256"].items())
    screened = []
    if "screening" in facts.records.get("train", {}).get("settings", {}):
        screened = ["GRPO learned from those training rows that a screening had found neither too easy nor too hard."]
    return [
        "\n".join(lines),
        f"After cleaning and splitting: {counts}. No wording is in two of these splits. sha256 of the rows: {digests}; "
        f"all digits are in `{RECORD}`.",
        *screened,
    ]
