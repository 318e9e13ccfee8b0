"""The replies that an audit writes: labelled cases in another form, and code with a known value."""

import pytest

from grpo_kit.rewards.tools.audit_replies import ANSWERS, OPENINGS, VALUE_CANARIES, VALUE_GOLDS, restate_cases
from grpo_kit.rewards.tools.audit_report import Case

REPLIES = [  # completion, its text behind ####, None where it is not a box alone
    (r"I think.</think>The answer is \boxed{\frac{1}{2}}.", r"#### \frac{1}{2}"),
    (r"\boxed{\{2,5\}}", r"#### \{2,5\}"),
    (r"</think> \boxed{8^{8^{8^{8}}}}", "#### 8^{8^{8^{8}}}"),
    (r"\boxed{4} or {5}", None),
    (r"Either \boxed{12} or \boxed{24}", None),
    (r"It is not \boxed{12}", None),
    (r"\boxed{}", None),
    (r"\boxed{24", None),
    ("#### 24", None),
]


@pytest.mark.parametrize(("completion", "text"), REPLIES)
@pytest.mark.parametrize("due", [1.0, 0.0, None])
def test_a_box_alone_is_restated_with_its_label(completion, text, due):
    restated = restate_cases([Case("sums", "g", completion, due)], "#### %s", "")
    own = [case for case in restated if case.gold == "g"]
    assert own == ([Case("in #### ...", "g", text, due)] if text else [])
    assert len(restated) > 5 and all(case.reward == 0.0 for case in restated[len(own) :])


def test_values_without_digits_are_what_python_makes_of_them():
    plain = [text for text in VALUE_CANARIES if not any(text.startswith(opening) for opening in OPENINGS if opening)]
    assert [eval(text, {"__builtins__": {}}) for text in plain] == [int(VALUE_GOLDS[0])] * len(plain)
    assert len(plain) == 3 and not any(digit in text for text in VALUE_CANARIES for digit in "0123456789")
    assert restate_cases([], ANSWERS[-1], OPENINGS[0])[0].kind == "in bare text"
