"""A form field of a notebook that holds another type than its form would give it is refused by the field's own name."""

import pytest

from grpo_kit import notebook
from grpo_kit.runs.run import Run


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"preset": None}, 'The field preset is None; it must be a text. Write preset = "auto".'),
        ({"preset": ["tiny"]}, "The field preset is ['tiny']; it must be a text. Write preset = \"auto\"."),
        ({"run_name": None}, 'The field run_name is None; it must be a text. Write run_name = "".'),
        ({"run_name": 5}, 'The field run_name is 5; it must be a text. Write run_name = "".'),
        ({"overrides": None}, 'The field overrides is None; it must be a text. Write overrides = "grpo.max_steps=60".'),
        ({"overrides": ["lora.r=8"]}, "The field overrides is ['lora.r=8']; it must be a text."),
        ({"tracker": None}, 'The field tracker is None; it must be a text. Write tracker = "none".'),
        ({"tracker": ["wandb"]}, "The field tracker is ['wandb']; it must be a text."),
        ({"use_drive": "False"}, "The field use_drive is 'False'; it must be True or False. Write use_drive = False."),
    ],
)
def test_a_field_of_another_type_opens_no_run(fields, sentence):
    with pytest.raises(TypeError) as raised:
        notebook.open_from_form(**({"preset": "tiny"} | fields))
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda run: notebook.show_search_space(None), "The field search is None; it must be a text."),
        (lambda run: notebook.show_search_space(["lora.r=[4,8]"]), "The field search is ['lora.r=[4,8]']; it must be"),
        (lambda run: notebook.open_search_board(run, "8", 12), "The field trials is '8'; it must be a whole number."),
        (lambda run: notebook.open_search_board(run, 2.5, 12), "The field trials is 2.5; it must be a whole number."),
        (lambda run: notebook.open_search_board(run, 8, "12"), "The field steps is '12'; it must be a whole number."),
        (lambda run: notebook.open_search_board(run, 8, 2.5), "The field steps is 2.5; it must be a whole number."),
        (lambda run: notebook.ask(None, run, "What?", "no"), "The field thinking is 'no'; it must be True or False."),
        # A text is true in Python: these would send.
        (lambda run: notebook.submit_zip("x.zip", "", "False"), "The field submit is 'False'; it must be True or"),
        (lambda run: notebook.publish(None, run, "a/b", True, "False"), "The field publish is 'False'; it must be"),
        (lambda run: notebook.publish(None, run, None, True, False), "The field publish_to is None; it must be a text"),
    ],
)
def test_a_field_of_another_type_is_refused_where_it_is_used(tmp_path, call, sentence):
    with pytest.raises(TypeError) as raised:
        call(Run(tmp_path, "r"))
    assert str(raised.value).startswith(sentence)
