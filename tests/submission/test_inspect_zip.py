"""The check of many kinds of submissions: which findings each must have, and which it must not have."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as torch_save

from grpo_kit.adapters.findings import Finding, Refused, fatal
from grpo_kit.nemotron import base_models
from grpo_kit.submission import inspect_zip
from tests.helpers import engine
from tests.helpers.submission_cases import FATAL, PACKED, SHARED, SOUND, WARNING, add_tensor, remove
from tests.helpers.submissions import ALL, CONFIG, TENSORS, config, submission, tensors

ENGINE = engine.recorded_answers()


def codes(findings, *severities):
    return [finding.code for finding in findings if not severities or finding.severity in severities]


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory, monkeypatch):
    """The folder in which temporary folders are made; it must be empty after the test."""
    import torch._inductor.compile_fx  # noqa: F401 (its import makes a folder in the temporary one)

    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def inspect(path):
    """The findings, after checking what holds for all: printable text, a remedy, and no file left behind."""
    before = sorted(path.parent.iterdir())
    findings = inspect_zip.inspect_submission(path)
    assert sorted(path.parent.iterdir()) == before
    for finding in findings:
        assert (finding.what + finding.scorer + finding.remedy).isprintable(), finding
        assert finding.severity == "ok" or finding.code == "base-tiny" or (finding.scorer and finding.remedy), finding
        assert len(finding.what) < 700
    return findings


def agree_with_engine(name, findings, path):
    """The findings, which must not contradict what vLLM did with that kind of submission."""
    if answer := ENGINE.get(name):
        scratch = path.parent / "scratch"
        scratch.mkdir()
        assert engine.contradictions(findings, path, answer, scratch) == []
    return findings


@pytest.mark.parametrize("name", FATAL)
def test_a_submission_that_would_fail_gets_a_fatal_finding(tmp_path, name):
    options, code = FATAL[name]
    path = submission(tmp_path / "submission.zip", **options)
    findings = agree_with_engine(name, inspect(path), path)
    assert code in codes(findings, "fatal") and fatal(findings), findings


@pytest.mark.parametrize("name", WARNING)
def test_a_submission_that_loads_but_looks_odd_gets_a_warning(tmp_path, name):
    options, code = WARNING[name]
    path = submission(tmp_path / "submission.zip", **options)
    findings = agree_with_engine(name, inspect(path), path)
    assert code in codes(findings, "warning") and not fatal(findings), findings


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_submission_gets_no_warning(tmp_path, name):
    path = submission(tmp_path / "submission.zip", **SOUND[name])
    findings = agree_with_engine(name, inspect(path), path)
    shared = name not in ("attention alone", "two targets")  # these have no shared experts, which the scorer drops
    assert codes(findings) == ["base-tiny", *["partly-used"] * shared, "archive", "tensors", "values"], findings


@pytest.mark.parametrize("name", PACKED)
def test_what_the_packer_writes_is_what_the_engine_applies(tmp_path, name):
    path = engine.write_packed(name, tmp_path)
    findings = agree_with_engine(name, inspect_zip.inspect_submission(path), path)
    assert not fatal(findings) and "loaded" in ENGINE[name]


def test_every_recorded_answer_is_of_a_kind_that_exists():
    """`python benchmarks/scorer_engine.py --record` records again; without vLLM a new kind has no answer."""
    kinds = {*engine.case_options(), *PACKED}
    assert not set(ENGINE) - kinds and len(ENGINE) >= 218


CLAIMS = [  # a kind of submission, what the check would wrongly say, and the contradiction
    ("as packed", Finding("x", "fatal", "A.", "vLLM rejects it: it will fail."), "vLLM loads it: vLLM rejects it"),
    ("as packed", Finding("x", "fatal", "It is odd.", "vLLM ignores it."), "vLLM applies all of it: It is odd."),
    ("as packed", Finding("x", "fatal", "A.", "So the score is the base's."), "vLLM applies pairs: So the score"),
    ("q_proj without A", Finding("x", "warning", "A."), "the check passes it, and vLLM applies"),
    ("rsLoRA on routed experts", Finding("x", "warning", "A."), "the check passes it, and vLLM applies"),
    ("a head under the backbone", Finding("x", "warning", "A."), "the check passes it, and vLLM applies"),
    ("rank 33", Finding("x", "warning", "A.", "It fails."), "the check passes it, and vLLM refuses it"),
    ("rank 33", Finding("x", "fatal", "A.", "vLLM ignores it."), "no finding says that it fails"),
]


@pytest.mark.parametrize(("name", "finding", "contradiction"), CLAIMS)
def test_a_wrong_claim_about_the_engine_is_noticed(tmp_path, name, finding, contradiction):
    path = submission(tmp_path / "submission.zip", **engine.case_options()[name])
    (tmp_path / "scratch").mkdir()
    (sentence, *_) = engine.contradictions([finding], path, ENGINE[name], tmp_path / "scratch")
    assert sentence.startswith(contradiction)


def test_what_the_scorer_drops_is_counted_in_parameters_and_percent(tmp_path):
    """q_proj of the tiny policy is (128, 128), its shared expert (64, 128) and (128, 64): A and B of rank 4."""
    findings = inspect(submission(tmp_path / "a.zip", {"target_modules": ["q_proj", *SHARED]}))
    modules = base_models.lora_modules("tiny")
    shared = sum(4 * sum(shape) for name, shape in modules.items() if ".shared_experts." in name)
    (finding,) = [finding for finding in findings if finding.code == "partly-used"]
    total, share = shared + 1024, f"{100 * shared / (shared + 1024):.0f} %"
    assert finding.what == f"{shared:,} of {total:,} LoRA parameters ({share}) are on shared experts."
    assert f"uses 1,024 of {total:,}" in finding.scorer and "in_proj, out_proj" in finding.remedy


def test_missing_tensors_are_found_when_targets_are_a_simple_expression(tmp_path):
    """The expression of the official demo is simple enough to read, so a tensor that it announces must be there."""
    expression = r".*\.(in_proj|out_proj|up_proj|down_proj)$"
    options = {
        "change": {"target_modules": ["in_proj", "out_proj", "up_proj", "down_proj"]},
        "config_only": {"target_modules": expression},
    }
    assert not fatal(inspect(submission(tmp_path / "a.zip", **options)))
    cut = inspect(submission(tmp_path / "b.zip", **options, edit=remove("experts.3.up_proj")))
    assert codes(cut, "fatal") == ["tensors-missing", "experts-partial"]


BASES = [  # base_model_name_or_path, the base that the caller gives, code and severity of the finding
    (base_models.PUBLISHED, None, "base", "ok"),
    ("metric/nemotron-3-nano-30b-a3b-bf16/transformers/default", None, "base", "ok"),
    ("/kaggle/input/models/metric/nemotron-3-nano-30b-a3b-bf16/transformers/default/1", None, "base", "ok"),
    ("unsloth/Nemotron-3-Nano-30B-A3B", None, "base-name", "warning"),
    ("me/nemotron-3-nano-30b-a3b-merged", None, "base-name", "warning"),
    ("/content/model", None, "base-unknown", "warning"),
    ("./model", None, "base-unknown", "warning"),
    ("model", None, "base-unknown", "warning"),
    ("", None, "base-unknown", "warning"),
    (None, None, "base-unknown", "warning"),
    (7, None, "base-unknown", "warning"),
    ("Qwen/Qwen3-4B", None, "wrong-base", "fatal"),
    # the same shapes as the 30B's, other weights
    (base_models.LIGHTNING, None, "base-other", "warning"),
    (base_models.LIGHTNING, base_models.LIGHTNING, "base-other", "warning"),
    (base_models.LIGHTNING, base_models.PUBLISHED, "wrong-base", "fatal"),
    (base_models.PUBLISHED, base_models.LIGHTNING, "wrong-base", "fatal"),
    (base_models.NANO_4B, base_models.PUBLISHED, "wrong-base", "fatal"),
    (base_models.TINY, None, "base-tiny", "warning"),
    (base_models.TINY, "tiny", "base-tiny", "warning"),
    (base_models.TINY, base_models.PUBLISHED, "wrong-base", "fatal"),
    (base_models.PUBLISHED, "tiny", "wrong-base", "fatal"),
    (None, "tiny", "base-unknown", "warning"),
    ("Qwen/Qwen3-4B", "tiny", "wrong-base", "fatal"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("base_name", "base", "code", "severity"), BASES)
def test_the_base_is_the_given_one_then_the_named_one_then_the_scorers(tmp_path, base_name, base, code, severity):
    fits = "tiny" if base == "tiny" or (base is None and base_name == base_models.TINY) else base_models.PUBLISHED
    change = {"base_model_name_or_path": base_name, "target_modules": ["q_proj"], "r": 1}
    findings = inspect_zip.inspect_submission(submission(tmp_path / "x.zip", change=change, base=fits), base)
    assert (code, severity) in [(finding.code, finding.severity) for finding in findings]
    assert bool(fatal(findings)) == (severity == "fatal")


def test_a_local_folder_is_recognised_as_a_base_by_its_config(tmp_path):
    from grpo_kit.nemotron import tiny

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text((tiny.FOLDER / "config.json").read_text())
    folder = str(tmp_path / "model")
    for base_name, code in ((folder, "base"), (base_models.TINY, "base"), ("Qwen/Qwen3-4B", "wrong-base")):
        path = submission(tmp_path / "x.zip", change={"base_model_name_or_path": base_name})
        assert code in codes(inspect_zip.inspect_submission(path, folder))
    path = submission(tmp_path / "x.zip", change={"base_model_name_or_path": folder})
    assert "shape" in codes(
        inspect_zip.inspect_submission(path)
    )  # a path from a zip is not opened, so the 30B counts as the base


@pytest.mark.slow
def test_files_are_checked_without_the_libraries_that_take_seconds_to_import(tmp_path):
    """By the command line, which loads the base only where its weights are at hand."""
    change = {"base_model_name_or_path": base_models.PUBLISHED, "target_modules": ["q_proj"]}
    path = submission(tmp_path / "submission.zip", change, base=base_models.PUBLISHED)
    code = f"""
import sys
from grpo_kit.cli.main import app
from typer.testing import CliRunner
result = CliRunner().invoke(app, ["check", {str(path)!r}])
assert result.exit_code == 0 and "pairs are non-zero" in result.output, result.output
sys.exit(" ".join({{"torch", "transformers", "peft", "bitsandbytes", "pandas", "matplotlib"}} & set(sys.modules)) or 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_a_complete_adapter_of_the_30b_model_is_sound(tmp_path):
    """Exactly 12,008 tensors for all linear layers, and 12,010 with the head."""
    change = {
        "base_model_name_or_path": base_models.PUBLISHED,
        "target_modules": [*ALL, "lm_head"],
        "r": 1,
        "lora_alpha": 2,
    }
    values = tensors(config(**change), base_models.PUBLISHED, dtype="float16")

    def inspect(edit, targets):
        config_only = change | {"target_modules": targets}
        return inspect_zip.inspect_submission(
            submission(tmp_path / "x.zip", edit=lambda _: edit(values), config_only=config_only)
        )

    for edit, targets, count in ((remove("lm_head"), ALL, "12,008"), (dict, [*ALL, "lm_head"], "12,010")):
        findings = inspect(edit, targets)
        assert (
            codes(findings) == ["partly-used", "archive", "base", "tensors", "values"]
            and f"{count} LoRA tensors" in findings[3].what
        )
    missing, partial = [f for f in inspect(remove("lm_head", ".experts.127."), ALL) if f.severity == "fatal"]
    assert (
        partial.code == "experts-partial"
        and missing.code == "tensors-missing"
        and "92 of 12,008 tensors" in missing.what
    )


def test_a_missing_file_or_unknown_base_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.zip is not a file"):
        inspect_zip.inspect_submission(tmp_path / "none.zip")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        inspect_zip.inspect_submission(tmp_path)
    with pytest.raises(FileNotFoundError, match="not a known base model"):
        inspect_zip.inspect_submission(submission(tmp_path / "x.zip"), "no/such")


def test_a_large_zip_gets_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(inspect_zip, "LARGEST_ACCEPTED", 1000)
    assert "size" in codes(inspect_zip.inspect_submission(submission(tmp_path / "x.zip")), "warning")


def test_damage_in_an_unused_file_of_the_zip_is_fatal(tmp_path):
    path = submission(tmp_path / "x.zip", members={"README.md": b"a readme" * 50})
    data = bytearray(path.read_bytes())
    data[data.find(b"a readme")] ^= 1
    path.write_bytes(data)
    assert codes(inspect_zip.inspect_submission(path)) == ["not-a-zip"]


@pytest.mark.parametrize(
    ("dtype", "code"),
    [(torch.bfloat16, None), (torch.float8_e4m3fn, "dtype"), (torch.float8_e5m2, "dtype"), (torch.complex64, "dtype")],
)
def test_dtypes_that_numpy_does_not_have(tmp_path, dtype, code):
    values = {key: torch.from_numpy(value).to(dtype) for key, value in tensors(config()).items()}
    findings = inspect(submission(tmp_path / "x.zip", members={TENSORS: torch_save(values)}))
    assert codes(findings, "fatal") == ([code] if code else []), findings


def test_findings_are_sorted_by_severity(tmp_path):
    path = submission(tmp_path / "x.zip", change={"r": 4, "inference_mode": False}, edit=remove("q_proj"))
    severities = [finding.severity for finding in inspect_zip.inspect_submission(path)]
    assert severities == sorted(severities, key=["fatal", "warning", "ok"].index) and len(set(severities)) == 3


def test_names_from_outside_are_printed_as_plain_text(tmp_path):
    hostile = "\x1b[31m[red]\u202e" + "x" * 5000
    path = submission(
        tmp_path / "x.zip",
        edit=add_tensor(hostile, (1,)),
        config_only={"peft_type": hostile, hostile: 1, "target_modules": [hostile]},
    )
    for finding in inspect(path):
        assert finding.what.isascii()


@pytest.mark.slow
def test_a_config_built_to_take_long_is_checked(tmp_path):
    """A config of a megabyte with the longest possible lists: trying every entry on every module would take minutes."""
    names = [f"m{i}" for i in range(50_000)]
    wild = [f".*a.*b{i}" for i in range(10_000)]
    ranks = dict.fromkeys(wild, 4) | dict.fromkeys(names[:5000], 4)
    change = {"target_modules": names, "base_model_name_or_path": base_models.PUBLISHED}
    path = submission(tmp_path / "x.zip", config_only=change | {"rank_pattern": ranks})
    assert "target-unmatched" in codes(inspect(path), "fatal")


def test_unpacking_takes_the_files_that_the_scorer_takes(tmp_path):
    path = submission(
        tmp_path / "x.zip",
        members={CONFIG: None, TENSORS: None, "a/" + CONFIG: config(), "a/" + TENSORS: b"x", "b/" + TENSORS: b"y"},
    )
    (tmp_path / "out").mkdir()
    inspect_zip.unpack_adapter(path, tmp_path / "out")
    assert json.loads((tmp_path / "out" / CONFIG).read_text()) == config()
    assert (tmp_path / "out" / TENSORS).read_bytes() == b"x" and len(list((tmp_path / "out").iterdir())) == 2
    with pytest.raises(Refused, match="2 files are named adapter_config.json"):
        inspect_zip.unpack_adapter(submission(tmp_path / "y.zip", members={"a/" + CONFIG: config()}), tmp_path / "out")


@pytest.mark.slow
def test_random_damage_never_crashes_the_check_or_writes_files(tmp_path):
    """A process of its own checks random bytes and zips that were cut or changed: tests/helpers/fuzz_inspection.py."""
    call = [sys.executable, "-B", "-m", "tests.helpers.fuzz_inspection", "400", str(tmp_path)]
    process = subprocess.run(call, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2])
    assert process.returncode == 0, process.stdout + process.stderr
    base_name = json.loads(process.stdout.splitlines()[-1])
    assert base_name["cases"] == 400 and base_name["written"] == [] and base_name["mebibytes"] < 200
    assert base_name["findings"] > 25 and base_name["passed"] > 0  # some cases get past the first checks
    print(base_name)


def test_a_zip_for_another_known_model_is_sound_and_never_sent(tmp_path):
    change = {"base_model_name_or_path": base_models.NANO_4B, "target_modules": ["q_proj"], "r": 1}
    findings = inspect_zip.inspect_submission(submission(tmp_path / "x.zip", change=change, base=base_models.NANO_4B))
    assert codes(findings, "warning", "fatal") == ["base-other"] and not fatal(findings)
    (finding,) = fatal(findings, "send")
    assert finding.what == f"The adapter is for {base_models.NANO_4B}; the challenge is about 3 Nano 30B."
    assert "for which this adapter was not trained" in finding.scorer
