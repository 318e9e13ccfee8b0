"""A folder of its own for each command."""

import pytest


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRPO_KIT_ROOT", raising=False)
    return tmp_path
