"""The settings to search, as a notebook's form takes them."""

from grpo_kit import notebook


def test_a_search_takes_spaces_within_brackets(capsys):
    words = notebook.show_search_space("grpo.learning_rate=log(3e-5, 3e-3) lora.r=[4, 16]")
    assert words == ["grpo.learning_rate=log(3e-5, 3e-3)", "lora.r=[4, 16]"]
    assert "4 or 16" in capsys.readouterr().out
