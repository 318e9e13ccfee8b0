"""What notebook 4 would send is shown; nothing is sent unless a switch says so, and nothing of the tiny policy ever."""

import shutil

import pytest

from grpo_kit import notebook
from grpo_kit.runs.run import Run


def test_publishing_shows_the_card_and_sends_nothing_unless_told_to(trained, tmp_path, displayed_texts, capsys):
    run = Run(tmp_path / "runs", "small")
    shutil.copytree(trained[1].path, run.path)
    notebook.publish(trained[0], run, "ada/sums", private=True, send=False)
    above, picture, below = displayed_texts
    assert above.strip().startswith("# sums") and "license:" not in above
    assert picture == (run.path / "publish/curves.png").read_bytes()  # the notebook has no such file beside it
    assert below.strip().startswith("## Samples") and "curves.png" not in above + below
    printed = capsys.readouterr().out
    assert "bytes  adapter_model.safetensors" in printed and printed.endswith(
        "these become public:\nrewards: <lambda>\nNothing was sent.\n"
    )
    with pytest.raises(ValueError, match="is embedded in grpo-kit"):
        notebook.publish(trained[0], run, "ada/sums", private=True, send=True)


@pytest.mark.parametrize("send", [False, True])
def test_a_zip_of_the_tiny_policy_is_never_sent(monkeypatch, capsys, tmp_path, trained, send):
    from grpo_kit.kaggle import credentials
    from grpo_kit.submission import package

    monkeypatch.setattr(credentials, "find_credentials", lambda: pytest.fail("credentials were looked up"))
    path = package.package_adapter(*trained, tmp_path / "submission.zip")
    if send:
        with pytest.raises(ValueError, match="embedded tiny policy"):
            notebook.submit_zip(path, "", send)
    else:
        notebook.submit_zip(path, "", send)
        assert "embedded tiny policy" in capsys.readouterr().out.replace("\n", " ")
