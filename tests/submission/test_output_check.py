"""A zip without the trained adapter is detected: its outputs on a fresh base are compared with those that the trained
policy gave."""

import json
import zipfile
from dataclasses import replace

import pytest
from safetensors.torch import load, save

from grpo_kit import config
from grpo_kit.adapters.findings import fatal
from grpo_kit.submission import inspect_zip, output_check, package
from tests.helpers.submission_cases import WARNING
from tests.helpers.submissions import ALL, CONFIG, TENSORS, submission


@pytest.fixture
def packed(trained, tmp_path):
    chosen, run = trained
    return chosen.policy, run.probe, package.package_adapter(chosen, run, tmp_path / "submission.zip")


def repack_zip(path, config_change=None, tensors=None):
    """The zip with its config and tensors changed by functions."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if config_change:
        members[CONFIG] = json.dumps(config_change(json.loads(members[CONFIG]))).encode()
    if tensors:
        members[TENSORS] = save(tensors(load(members[TENSORS])))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def zip_tensors(path):
    with zipfile.ZipFile(path) as archive:
        return load(archive.read(TENSORS))


def codes(findings, *severities):
    return [finding.code for finding in findings if not severities or finding.severity in severities]


def scale_tensors(part, factor):
    return lambda tensors: {key: value * factor if part in key else value for key, value in tensors.items()}


def test_the_trained_adapter_passes_every_check(packed):
    policy, probe, path = packed
    before = sorted(path.parent.iterdir())
    findings = output_check.check_submission(path, policy, probe)
    assert codes(findings, "ok") == ["archive", "tensors", "values", "outputs-moved", "outputs-equal"], findings
    assert codes(findings, "warning", "fatal") == ["base-tiny"] and sorted(path.parent.iterdir()) == before


@pytest.mark.slow
def test_what_the_scorer_drops_is_left_out_of_the_proof_and_its_effect_is_named(tmp_path):
    """An adapter on q_proj and shared experts answers like q_proj's alone, and its warning says by how much."""
    shared = ["shared_experts.up_proj", "shared_experts.down_proj"]
    path = submission(tmp_path / "a.zip", {"target_modules": ["q_proj", *shared]})
    findings = {finding.code: finding for finding in output_check.check_submission(path)}
    alone = submission(tmp_path / "b.zip", {"target_modules": ["q_proj"]})
    repack_zip(alone, tensors=lambda t: {k: v for k, v in zip_tensors(path).items() if k in t})
    (moved,) = [f for f in output_check.check_submission(alone) if f.code == "outputs-moved"]
    assert findings["outputs-moved"].what == moved.what and "outputs-dropped" in findings
    assert findings["outputs-dropped"].severity == "warning" and "largest logit gap" in findings["outputs-dropped"].what
    only = submission(tmp_path / "c.zip", {"target_modules": shared})
    assert codes(output_check.check_submission(only), "fatal") == ["nothing-used"]


@pytest.mark.slow
def test_a_zip_with_or_without_what_the_scorer_drops_is_proved_to_be_the_trained_policy(tmp_path):
    """`package --only-used` leaves out pairs that a run trained: the scorer answers the same with both zips."""
    from grpo_kit.policy.load import load_policy

    shared = ["shared_experts.up_proj", "shared_experts.down_proj"]
    whole = submission(tmp_path / "whole.zip", {"target_modules": ["q_proj", *shared]})
    values = zip_tensors(whole)
    model, tokenizer = load_policy(config.Policy())
    model, probe = output_check._attach_submission(model, whole), tmp_path / "probe.safetensors"
    before = {name: value.clone() for name, value in model.named_parameters() if "lora_" in name}
    output_check.write_probe(model, tokenizer, [[{"role": "user", "content": "What is 2 + 3?"}]], True, probe)
    assert all(value.equal(before[name]) for name, value in model.named_parameters() if name in before)
    used = submission(tmp_path / "used.zip", {"target_modules": ["q_proj"]})
    repack_zip(used, tensors=lambda tensors: {key: values[key] for key in tensors})
    for path in (whole, used):
        assert codes(output_check.check_submission(path, config.Policy(), probe))[-1] == "outputs-equal"
    changed = {}
    for path, part in ((whole, "shared_experts"), (used, "q_proj")):
        repack_zip(path, tensors=scale_tensors(part, 2))
        (wrong,) = fatal(output_check.check_submission(path, config.Policy(), probe))
        assert wrong.code == "outputs-differ"
        changed[part] = float(wrong.what.partition("training changed ")[2].rstrip(")."))
    logits = load(probe.read_bytes())
    base = output_check._last_logits(load_policy(config.Policy())[0], logits)
    for part, key in (("shared_experts", "trained"), ("q_proj", "scored")):  # of the run, not of the zip
        assert changed[part] == pytest.approx((logits[key] - base).abs().max().item(), rel=0.05)
    assert changed["shared_experts"] > 1.5 * changed["q_proj"]


def test_a_share_is_said_once_and_one_pair_is_not_said_to_be_many(tmp_path):
    path = submission(tmp_path / "a.zip", {"target_modules": ["q_proj", "shared_experts.up_proj"]})
    said = [f"{finding.what} {finding.scorer}" for finding in inspect_zip.inspect_submission(path)]
    assert sum("LoRA parameters (" in sentence and "drops" in sentence for sentence in said) == 1, said
    one = submission(tmp_path / "b.zip", {"target_modules": ["q_proj"]})
    said = " ".join(finding.what for finding in inspect_zip.inspect_submission(one))
    assert "The LoRA pair is non-zero and finite." in said and "All 1" not in said


def test_a_copy_as_scored_has_zeros_in_place_of_what_is_dropped(tmp_path):
    for name, targets, used in (("a", ["q_proj", "shared_experts.up_proj"], "uses 1,024 of "), ("b", ["q_proj"], "")):
        (tmp_path / name / "copy").mkdir(parents=True)
        path = submission(tmp_path / f"{name}.zip", {"target_modules": targets})
        inspect_zip.unpack_adapter(path, tmp_path / name)
        assert used in (sentence := output_check.copy_as_scored(tmp_path / name, tmp_path / name / "copy"))
        assert bool(sentence) == bool(used) == (tmp_path / name / "copy" / CONFIG).is_file()
    copy = load((tmp_path / "a" / "copy" / TENSORS).read_bytes())
    zero = {key for key, tensor in copy.items() if not tensor.any()}
    assert zero == {key for key in copy if "shared_experts" in key and "lora_B" in key} != set()


def test_without_a_run_a_zip_is_compared_only_with_its_base(packed):
    findings = output_check.check_submission(packed[2])
    assert codes(findings)[-2:] == ["outputs-moved", "not-compared"] and not fatal(findings)


@pytest.mark.parametrize("factor", [0.5, 2.0, -1.0])
def test_an_adapter_other_than_the_trained_one_is_detected(packed, factor):
    policy, probe, path = packed
    findings = output_check.check_submission(repack_zip(path, tensors=scale_tensors("lora_B", factor)), policy, probe)
    assert codes(findings, "fatal") == ["outputs-differ"]


def test_another_lora_alpha_is_detected(packed):
    policy, probe, path = packed
    assert "outputs-differ" in codes(
        output_check.check_submission(repack_zip(path, lambda c: c | {"lora_alpha": 8}), policy, probe), "fatal"
    )


@pytest.mark.slow
def test_an_adapter_that_barely_changes_the_outputs_counts_as_unmoved(packed):
    policy, probe, path = packed
    findings = output_check.check_submission(repack_zip(path, tensors=scale_tensors("lora_B", 1e-6)), policy, probe)
    assert codes(findings, "fatal") == ["outputs-unmoved", "outputs-differ"]


@pytest.mark.parametrize(
    ("config_change", "tensors", "code"),
    [
        (None, scale_tensors("q_proj.lora_B", 0), "dead-pairs"),  # one pair never moved
        (None, scale_tensors("lora_B", 0), "dead-all"),  # an adapter that does nothing
        (None, scale_tensors("v_proj.lora_B", float("nan")), "not-finite"),
        (lambda c: c | {"r": 8}, None, "shape-rank"),
        (None, lambda t: dict(list(t.items())[2:]), "tensors-missing"),
    ],
)
def test_a_zip_with_a_fatal_finding_is_not_loaded(packed, config_change, tensors, code, monkeypatch):
    policy, probe, path = packed
    monkeypatch.setattr(output_check, "_compare_outputs", None)
    assert code in codes(
        output_check.check_submission(repack_zip(path, config_change, tensors), policy, probe), "fatal"
    )


@pytest.mark.parametrize(
    "prefix",
    ["base_model.model.backbone.layers.", "base_model.model.model.layers."],
)
def test_both_prefixes_of_keys_give_the_same_outputs(packed, prefix):
    policy, probe, path = packed

    def rename_keys(tensors):
        return {prefix + key.partition(".layers.")[2]: value for key, value in tensors.items()}

    repack_zip(path, tensors=rename_keys)
    assert codes(output_check.check_submission(path, policy, probe), "ok")[-1] == "outputs-equal"


def test_a_regular_expression_for_targets_is_not_evaluated_and_a_folder_in_the_zip_is_read(packed):
    policy, probe, path = packed
    repack_zip(path, lambda c: c | {"target_modules": "(a+)+$"})
    with zipfile.ZipFile(path) as archive:
        members = {f"adapter/{name}": archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    findings = output_check.check_submission(path, policy, probe)
    assert {"nested", "targets-regex", "outputs-equal"} <= set(codes(findings)), findings


@pytest.mark.slow
def test_an_adapter_of_routed_experts_alone_moves_the_outputs(tmp_path):
    """The outputs move in both forms in which the experts can be kept, and by nearly the same amount."""
    from grpo_kit.policy.load import load_policy

    change = {"target_modules": [f"experts.{i}.{name}_proj" for i in range(8) for name in ("up", "down")]}
    path = submission(tmp_path / "a.zip", change, lambda tensors: {key: value * 0.2 for key, value in tensors.items()})
    assert "outputs-moved" in codes(output_check.check_submission(path), "ok")
    prompts = output_check._default_prompts(load_policy(config.Policy())[1], True)
    config_change = []
    for load_in_4bit in (False, True):
        model = load_policy(config.Policy(load_in_4bit=load_in_4bit))[0]
        base = output_check._last_logits(model, prompts)
        config_change.append(output_check._last_logits(output_check._attach_submission(model, path), prompts) - base)
    assert (config_change[0] - config_change[1]).abs().max() < 0.2 * config_change[
        0
    ].abs().max()  # 4 bit rounds the weights


@pytest.mark.slow
def test_a_rank_pattern_is_scaled_as_the_scorer_scales_it(tmp_path):
    """The scale is lora_alpha / r for every module, whatever its own rank, so the same pairs padded with zeros give the
    same logits."""
    import numpy as np

    from grpo_kit.policy.load import load_policy

    def padded(values):
        return {
            key: np.concatenate([v, np.zeros_like(v)], 0 if "lora_A" in key else 1) if "q_proj" in key else v
            for key, v in values.items()
        }

    low = submission(tmp_path / "a.zip", {"target_modules": ["q_proj", "o_proj"], "rank_pattern": {"q_proj": 2}})
    change = {"target_modules": ["q_proj", "o_proj"], "rank_pattern": {"q_proj": 2}}
    full = submission(tmp_path / "b.zip", change, edit=padded, config_only={"rank_pattern": {}})
    prompts, config_change = None, []
    for path in (low, full):
        model, tokenizer = load_policy(config.Policy())
        prompts = prompts or output_check._default_prompts(tokenizer, True)
        config_change.append(output_check._last_logits(output_check._attach_submission(model, path), prompts))
    assert (config_change[0] - config_change[1]).abs().max() < 1e-4


def test_without_the_weights_of_the_base_only_the_files_are_checked_and_a_finding_says_so(tmp_path):
    from grpo_kit.nemotron import base_models

    change = {"base_model_name_or_path": base_models.PUBLISHED, "target_modules": ["q_proj"], "r": 1}
    path = submission(tmp_path / "a.zip", change, base=base_models.PUBLISHED)
    for policy in (None, config.Policy(model=base_models.PUBLISHED)):
        findings = output_check.check_submission(path, policy)
        assert codes(findings)[-1] == "not-loaded" and not fatal(findings), findings
        assert "policy.model=" in findings[-1].remedy
    wrong = output_check.check_submission(path, config.Policy())
    assert codes(wrong, "fatal")[0] == "wrong-base"


def test_an_adapter_with_a_lora_on_embeddings_is_not_compared_and_a_finding_says_so(tmp_path):
    path = submission(tmp_path / "a.zip", **WARNING["LoRA on embeddings"][0])
    (*_, last) = findings = output_check.check_submission(path)
    assert not fatal(findings) and "embeddings" in codes(findings, "warning")
    assert last.code == "not-loaded" and "LoRA on the embeddings" in last.what


def test_an_adapter_without_prefixes_or_with_multi_token_prediction_gives_the_same_outputs(tmp_path):
    prefix, key = "base_model.model.", "mtp.layers.2.mixer.q_proj.lora_{}.weight"
    changes = {
        "as packed": None,
        "no prefix": lambda tensors: {key.removeprefix(prefix): value for key, value in tensors.items()},
        "mtp": lambda tensors: tensors | {key.format(half): value for half, value in zip("AB", tensors.values())},
    }
    changed = [
        finding.what
        for name, edit in changes.items()
        for finding in output_check.check_submission(
            submission(tmp_path / f"{name}.zip", {"target_modules": ["q_proj"]}, edit)
        )
        if finding.code == "outputs-moved"
    ]
    assert len(changed) == 3 and len(set(changed)) == 1


def test_a_base_in_a_local_folder_is_loaded(tmp_path):
    from grpo_kit.nemotron import tiny

    path = submission(tmp_path / "a.zip", {"target_modules": ALL})
    findings = output_check.check_submission(path, config.Policy(model=str(tiny.FOLDER)))
    assert "outputs-moved" in codes(findings, "ok")


def test_a_missing_zip_or_base_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.zip is not a file"):
        output_check.check_submission(tmp_path / "none.zip")
    with pytest.raises(FileNotFoundError, match="not a known base model"):
        output_check.check_submission(submission(tmp_path / "a.zip"), replace(config.Policy(), model="no/such"))
