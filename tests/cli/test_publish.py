"""`grpo-kit publish`: a dry run prints the files and the card; wrong words end in one sentence and status 2."""

import shutil

import pytest
from typer.testing import CliRunner

from grpo_kit.cli.main import app


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """The folder of runs with a copy of the small run."""
    root = tmp_path_factory.mktemp("cli") / "runs"
    shutil.copytree(trained[1].path, root / "small")
    return root


@pytest.fixture
def call(folder, monkeypatch):
    monkeypatch.setenv("GRPO_KIT_ROOT", str(folder))
    return lambda *words: CliRunner().invoke(app, ["publish", *words])


def test_a_dry_run_prints_every_file_with_its_size_and_the_card(call, folder):
    result = call("--run", "small", "--to", "ada/sums", "--dry-run")
    assert result.exit_code == 0
    for path in (folder / "small/publish").iterdir():
        assert f"{path.stat().st_size:,} bytes  {path}" in result.output
    assert (folder / "small/publish/README.md").read_text() in result.output
    assert "dry run: nothing was sent" in result.output
    assert "of your own words, these become public:\nrewards: <lambda>\n" in result.output
    assert result.output.endswith("so this folder is a preview and cannot be sent.\n")  # no command that is refused


# words after `publish`: the sentence
REFUSED = [
    (["--run", "small", "--to", "sums"], "--to is 'sums'"),
    (["--run", "small", "--to", "ada/sums"], "is embedded in grpo-kit"),
    (["--run", "small", "--to", "ada/sums", "--dry-run", "--base", "org/x"], "Leave --base out"),
    (["--run", "new", "--to", "ada/sums", "--dry-run"], "has no finished stage 'train'"),
]


def test_a_folder_whose_name_no_run_can_have_is_not_offered(call, folder):
    shutil.copytree(folder / "small", folder / "my run", dirs_exist_ok=True)
    assert "Runs in" in (said := call("--run", "new", "--to", "ada/sums", "--dry-run").output)
    assert "small" in said and "my run" not in said
    assert "Invalid run name 'my run'" in call("--run", "my run", "--to", "ada/sums", "--dry-run").output


@pytest.mark.parametrize(("words", "sentence"), REFUSED, ids=lambda part: str(part)[:30])
def test_what_cannot_be_published_is_refused_in_a_sentence(call, words, sentence):
    result = call(*words)
    assert result.exit_code == 2 and result.output.startswith("error:") and sentence in result.output
