"""A machine that is neither Colab nor Kaggle for each test, and what a test displays."""

import pytest


@pytest.fixture(autouse=True)
def local_machine(monkeypatch, tmp_path):
    """Neither Colab nor Kaggle, and an empty folder."""
    for name in ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE", "GRPO_KIT_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def displayed_texts(monkeypatch):
    """The texts that were displayed."""
    import IPython.display as display

    texts = []
    monkeypatch.setattr(display, "display", lambda content, **_: texts.append(content.data))
    return texts
