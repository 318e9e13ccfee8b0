"""`grpo-kit export`: what it prints before it writes, what it leaves, and the sentence for each wrong use."""

import pytest
from typer.testing import CliRunner

from grpo_kit.cli.main import app
from grpo_kit.nemotron.base_models import PUBLISHED
from tests.publishing.llama_cpp.test_gguf_lora import MODULES, make_adapter


@pytest.fixture
def call(tmp_path, monkeypatch):
    """A function that runs `grpo-kit export` with an adapter from elsewhere at `theirs` and returns what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRPO_KIT_ROOT", str(tmp_path / "runs"))
    monkeypatch.setattr("sys.argv", ["grpo-kit", "export", "--dry-run", "--to", "gguf-lora"])
    make_adapter(tmp_path / "theirs", {"lm_head": MODULES["lm_head"]})

    def export(*words, status=0):
        done = CliRunner().invoke(app, ["export", *words])
        assert done.exit_code == status, done.output + str(done.exception)
        return done.output

    return export


def test_a_dry_run_says_what_would_be_written_and_writes_nothing(call, tmp_path):
    output = call("--to", "gguf-lora", "--adapter", "theirs", "--out", "new", "--dry-run").splitlines()
    assert (
        output[0] == f"{tmp_path}/new/adapter.gguf: 6.2 KiB, 2 tensors in float32, rank 4, alpha 6, for nemotron_h_moe"
    )
    assert output[1:4] == [f"{tmp_path}/new/{name}" for name in ("Modelfile", "README.md", "SHA256SUMS")]
    assert output[4].startswith("The base is grpo-kit/tiny by the word of its adapter_config.json")
    assert output[5].startswith("needs 1.0 MiB of the disk, which has ")
    assert output[6:] == ["dry run: nothing was touched", "next:    grpo-kit export --to gguf-lora"]
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_the_folder_is_written_and_the_readme_named(call, tmp_path):
    words = "--to", "merged", "--adapter", "theirs", "--out", "new"
    assert call(*words).splitlines()[-1] == (
        f"next:    read {tmp_path}/new/README.md: the commands, and what does not carry over"
    )
    assert (tmp_path / "new/model/model.safetensors").is_file()
    assert "merged from the same base and adapter before, and not changed since; nothing was written" in call(*words)
    (tmp_path / "new/README.md").unlink()
    assert "the model is merged and unchanged; written anew: README.md\n" in call(*words)


def test_settings_are_not_taken(call, tmp_path):
    words = "--to", "gguf-lora", "--adapter", "theirs", "--out", "new"
    for more in (["policy.enable_thinking=false"], ["evaluation.temperature=0.1"], ["-c", "t4"]):
        assert "Usage:" in call(*words, *more, status=2)
    assert not (tmp_path / "new").exists()


def test_no_run_is_looked_at_for_an_adapter_from_elsewhere(call, tmp_path):
    (tmp_path / "runs/tiny").mkdir(parents=True)
    (tmp_path / "runs/tiny/run.json").write_text("damaged")
    call("--to", "gguf-lora", "--adapter", "theirs", "--out", "new")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "ollama"], "--to is 'ollama'; it must be one of gguf-lora, merged"),
        (
            ["--to", "gguf-lora", "--run", "r", "--adapter", "theirs"],
            "one of them is exported. Leave one of the two out",
        ),
        (["--to", "gguf-lora", "--adapter", "theirs"], "has no place in a run. Name one with --out"),
        (["--to", "gguf-lora", "--adapter", "gone", "--out", "new"], "gone is missing. Give a folder with an adapter"),
        (["--to", "gguf-lora", "--run", "r"], "Run 'r' has no finished stage 'train'"),
        (["--to", "merged", "--adapter", "theirs", "--out", "theirs"], "which an export does not write. Move it away"),
        (
            ["--to", "gguf-lora", "--adapter", "theirs", "--out", "new", "--base", PUBLISHED],
            "which is (131072, 2688) in this base",
        ),
        (["--to", "gguf-lora", "--adapter", "theirs", "--out", "theirs/adapter_config.json/x"], "Name another folder"),
    ],
)
def test_wrong_uses_end_with_a_sentence_and_status_2(call, tmp_path, words, message):
    assert message in " ".join(call(*words, status=2).split())
    assert not (tmp_path / "new").exists()
