"""Hub sets: opened once, streamed when large, and named when the Hub or the connection fails."""

import pytest

from grpo_kit import config
from grpo_kit.data import hub, sources
from tests.helpers.source_rows import read_rows


def test_a_machine_without_a_network_does_not_wait_for_the_hub(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(FileNotFoundError, match="did not give it .*refused"):
        list(sources.read_source(sources.locate_source("nobody/nothing", config.Data()), config.Data(), 0))


def test_a_set_on_the_hub_is_read_by_datasets_and_streamed_when_large(monkeypatch):
    import datasets

    requests = []

    def load(name, subset, split, streaming):
        requests.append((name, subset, split, streaming))
        return iter([{"question": "p", "problem": "p", "answer": "#### 3", "solution": r"\boxed{3}"}] * 3)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub, "check_hub_reachable", lambda: None)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    nowhere = {"environ": {}, "filesystem": sources.Path("/nowhere")}
    assert read_rows("gsm8k", **nowhere) == [("p", "3", "")] * 3
    assert read_rows("numina_math_cot", config.Data(limit=2), **nowhere) == [("p", "3", "")] * 2
    assert read_rows("me/mine", config.Data(subset="s", split="dev"), **nowhere) == [("p", "3", "")] * 3
    assert requests == [
        ("openai/gsm8k", "main", "train", False),
        ("AI-MO/NuminaMath-CoT", None, "train", True),
        ("me/mine", "s", "dev", False),
    ]


def test_an_interrupted_stream_is_not_reported_as_a_missing_data_set(monkeypatch):
    import datasets

    def rows():
        yield {"question": "p", "answer": "#### 3"}
        raise TimeoutError("read timed out")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows())
    monkeypatch.setattr(hub, "check_hub_reachable", lambda: None)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(ConnectionError, match="connection to openai/gsm8k broke after row 1 .*Repeat the command"):
        read_rows("gsm8k", environ={}, filesystem=sources.Path("/nowhere"))
