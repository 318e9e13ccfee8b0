"""choice: letters and texts, whichever way they are written, and never two at once."""

import pytest

from grpo_kit.rewards.choice import choice_reward, final_answer

CITIES = ["Rome", "Paris", "Oslo", "New York"]
CHOICES = [  # completion, gold, options, reward, what the row is about
    (r"\boxed{B}", "B", None, 1.0, "a letter"),
    (r"\boxed{b}", "B", None, 1.0, "in lower case"),
    (r"\boxed{(B)}", "b", None, 1.0, "in brackets"),
    (r"\boxed{\text{(B) Paris}}", "B", CITIES, 1.0, "with its text"),
    (r"\boxed{B. Paris}", "B", CITIES, 1.0, "with its text, after a point"),
    (r"\boxed{B. Rome}", "B", CITIES, 0.0, "a letter with another option's text"),
    (r"\boxed{Paris}", "B", CITIES, 1.0, "the text alone"),
    (r"\boxed{paris}", "Paris", CITIES, 1.0, "the text in another case; a text as the gold"),
    (r"\boxed{\text{New York}}", "D", CITIES, 1.0, "a text of two words"),
    (r"\boxed{London}", "B", CITIES, 0.0, "none of the options"),
    (r"\boxed{E}", "B", CITIES, 0.0, "a letter beyond the options"),
    (r"\boxed{A and B}", "B", CITIES, 0.0, "two letters"),
    (r"\boxed{A, B}", "B", CITIES, 0.0, "two letters"),
    (r"\boxed{m}", "A", ["M", "m"], 0.0, "texts that differ by case alone: m is the second"),
    (r"\boxed{m}", "B", ["M", "m"], 1.0, "and here it is right"),
    (r"\boxed{2}", "B", ["1", "2"], 1.0, "a number as the text"),
    (r"\boxed{C}", "A", ["C", "D", "A"], 0.0, "C is the label here, though A's text is C"),
    (r"\boxed{A} no, \boxed{B}", "B", None, 1.0, "the last box"),
    (r"\boxed{B} or \boxed{}", "B", None, 0.0, "the last box is empty"),
    (r"\boxed{B} or \boxed{B", "B", None, 0.0, "the last box is cut off"),
    (r"<think>\boxed{B}</think>\boxed{A}", "B", None, 0.0, "the thinking does not count"),
    (r"<think>\boxed{B}", "B", None, 0.0, "the thinking never ends"),
    ("The answer is (B).", "B", None, 1.0, "the phrase"),
    ("Answer: **B**", "B", None, 1.0, "the phrase, in bold"),
    ("B", "B", None, 1.0, "nothing but the letter"),
    ("It can be B or C.", "B", None, 0.0, "a sentence that chooses nothing"),
    ("I am sure", "I", None, 0.0, "a pronoun is no letter"),
    ("", "B", None, 0.0, "nothing"),
    (r"\boxed{B}", "", None, None, "no gold"),
    (r"\boxed{B}", "E", CITIES, None, "a gold beyond the options"),
    (r"\boxed{m}", "x", {"x": "metre", "y": "mile"}, 0.0, "options as a mapping"),
    (r"\boxed{Y}", "mile", {"x": "metre", "y": "mile"}, 1.0, "options as a mapping"),
]  # fmt: skip

STATED = [  # completion, gold, options, reward
    ("I choose C.", "C", None, 1.0), ("I choose (C).", "C", None, 1.0), ("option C", "C", None, 1.0),
    ("Option C.", "C", None, 1.0), ("Option (C)", "C", None, 1.0),
    ("The answer is (C) because it is the capital.", "C", None, 1.0),
    ("The answer is C because A is wrong.", "C", None, 1.0), ("The answer is C, since B is false.", "C", None, 1.0),
    ("The correct option is C.", "C", None, 1.0), ("I would go with C.", "C", None, 1.0),
    ("I'll pick option C.", "C", None, 1.0), ("The answer is option C.", "C", None, 1.0),
    ("My choice: C", "C", None, 1.0), ("**Answer: C**", "C", None, 1.0),
    ("The answer is **C**, because.", "C", None, 1.0), ("The answer is C. Paris is in France.", "C", None, 1.0),
    ("The correct choice is **(C)**.", "C", None, 1.0), ("Answer: C\n", "C", None, 1.0),
    ("So I select C", "C", None, 1.0), ("The answer is Oslo.", "C", CITIES, 1.0),
    ("I choose Oslo.", "C", CITIES, 1.0), ("Option C: Oslo", "C", CITIES, 1.0),
    ("The answer is C: Oslo", "C", CITIES, 1.0), ("The answer is C) Oslo.", "C", CITIES, 1.0),
    (r"either \boxed{A} or \boxed{C}", "C", None, 0.0), (r"\boxed{A} or \boxed{C}", "C", None, 0.0),
    (r"\boxed{A}, \boxed{C}", "C", None, 0.0), (r"\boxed{A} \boxed{C}", "C", None, 0.0),
    (r"\boxed{A} and \boxed{C}", "C", None, 0.0), (r"\boxed{A}. Wait, no: \boxed{C}", "C", None, 1.0),
    (r"\boxed{C} or \boxed{C}", "C", None, 1.0), (r"\boxed{A} no, \boxed{C}", "C", None, 1.0),
    (r"maybe \boxed{A}, perhaps \boxed{C}", "C", None, 0.0), ("I choose C or D.", "C", None, 0.0),
    ("The answer is C or D.", "C", None, 0.0), ("The answer is A and C.", "C", None, 0.0),
    ("The answer is not C.", "C", None, 0.0), ("option C is wrong", "C", None, 0.0),
    ("The answer is (C) and (D)", "C", None, 0.0), ("The answer is a city in France.", "A", None, 0.0),
    ("I choose to leave", "I", None, 0.0), ("Option A is wrong, so the answer is C.", "C", None, 1.0),
    ("The answer is C. Option A is wrong.", "C", None, 1.0), ("The answer is D because C is false", "C", None, 0.0),
    ("I choose Oslo", "A", CITIES, 0.0), (r"The answer is not \boxed{C}", "C", None, 0.0),
    ("Either A or C", "C", None, 0.0), ("The answer is C/D", "C", None, 0.0), ("The answer is C, D", "C", None, 0.0),
    ("The answer is A. I considered option C too.", "C", None, 0.0), ("I think the answer is B", "B", None, 1.0),
]  # fmt: skip


COLOURS = ["red", "green", "blue", "grey"]
AGAINST = [  # replies that earn nothing for C
    "The wrong option is C", "The incorrect answer is C.", "I rule out option C", "I ruled out option C.",
    "I reject option C.", "We excluded option C.", "Eliminate option C", "Unlike option C",
    "The least likely answer is C", "I considered option C.", "It cannot be option C.",
    "I don't think the answer is C.", "I doubt the answer is C.", "If C is correct, A is not.",
    "Neither A nor C is correct.", "C is not the correct answer.", "Is C correct? C is correct?",
    "I don't think C is correct.", "A or C is correct.", "The answer is C, which is wrong.", "It must be C or D.",
    "#### C or D", "#### not C", "<answer>C</answer> or <answer>D</answer>", "<answer>A and C</answer>",
    "<answer>C</answer> is wrong", r"\boxed{C} is wrong", r"\boxed{C} is not correct.",
    r"$\boxed{C}$ cannot be right", r"\boxed{C} or D", r"\boxed{C}, or maybe D.", r"\boxed{C} and (D)",
    r"Maybe \boxed{C} or A", r"Either A or \boxed{C}", r"The wrong option is \boxed{C}.",
    r"The incorrect answer is: $\boxed{C}$", r"I rule out \boxed{C}", r"I do not think it is \boxed{C}",
    r"\boxed{option A}", "Therefore, (A).", "答案不是C", "答案是A", "So C and D.", "The answer is not:\n\nC",
    "Option A is correct.", "Statement C is correct.",
]  # fmt: skip
FOR = [  # replies that choose C
    "<answer>C</answer>", "I think.\n<answer>\n(C)\n</answer>", "#### C", "Because.\n#### (C)",
    "Option C is correct.", "C is the correct answer.", "So C is correct.", "(C) is the best answer.",
    "I think C is right.", "It must be C.", "It must be option C, because.", "Therefore, (C).", "Thus C.", "答案是C",
    "答案：C。", "答案为（C）", "The correct answer is:\n\n**C**", "**Answer:**\n\nC", "Answer: C. blue because sky",
    "Answer: C. Blue, as the sky is.", "The answer is (C) blue because.", r"\boxed{option C}",
    r"\boxed{\text{Option C}}", "I rule out option A. The answer is C.", "The most likely answer is C.",
    "The answer is C. I rule out option A.", "The answer is C. Unlike option A, it is blue.",
    "I would prefer option C.", "A is wrong: the answer is C.", "Since A is not right, the answer is C",
    "The wrong option is A. The answer is C.", r"A is wrong, so \boxed{C}.", r"\boxed{C} is correct",
    r"\boxed{C} because A is wrong", r"\boxed{C}, and not A.", r"\boxed{C}. A and B are wrong.",
    r"I rule out A and B. \boxed{C}", "The answer is C.\n#### Notes", "So the answer is C.",
    "The answer is A. Wait, C is the correct answer.", "If I had to guess, the answer is C.",
]  # fmt: skip


@pytest.mark.parametrize("options", [None, COLOURS])
@pytest.mark.parametrize(("completions", "reward"), [(AGAINST, 0.0), (FOR, 1.0)], ids=["against", "for"])
def test_an_option_that_a_reply_speaks_against_earns_nothing(completions, reward, options):
    wrong = [text for text in completions if choice_reward([text], ["C"], [options]) != [reward]]
    assert not wrong, f"these do not earn {reward}:\n" + "\n".join(wrong)


@pytest.mark.parametrize(("completion", "gold", "options", "reward", "note"), CHOICES)
def test_the_option_that_a_reply_commits_to_is_the_one_that_counts(completion, gold, options, reward, note):
    assert choice_reward([completion], [gold], [options]) == [reward], note


@pytest.mark.parametrize(("completion", "gold", "options", "reward"), STATED)
def test_a_choice_in_a_sentence_counts_and_a_hedge_does_not(completion, gold, options, reward):
    assert choice_reward([completion], [gold], [options]) == [reward]


def test_messages_are_read_and_lists_of_different_lengths_raise():
    messages = [{"role": "assistant", "content": r"\boxed{B}"}]
    assert choice_reward(completions=[messages], answer=["B"], prompts=["?"]) == [1.0]
    with pytest.raises(ValueError, match=r"1 completions, 1 answers and 2 option lists.*needs its own.*Pass"):
        choice_reward(["B"], ["B"], [CITIES, CITIES])


SEVERAL = [  # completion, gold, options, reward, what the row is about
    (r"\boxed{A, C}", "A,C", None, 1.0, "a list in one box"),
    (r"\boxed{C and A}", ["A", "C"], None, 1.0, "in another order; a list as the gold"),
    (r"\boxed{CA}", "AC", None, 1.0, "letters without anything between them"),
    (r"\boxed{(A)(C)}", "AC", None, 1.0, "in brackets"),
    (r"\boxed{\{A, C\}}", "A and C", None, 1.0, "as a set; the gold in words"),
    (r"\boxed{a; c}", "A; C", None, 1.0, "in lower case"),
    (r"\boxed{A}, \boxed{C}", "AC", None, 1.0, "boxes side by side"),
    (r"$\boxed{A}$ and $\boxed{C}$.", "AC", None, 1.0, "boxes side by side"),
    (r"\boxed{A}, no: \boxed{C}", "AC", None, 0.0, "a box that was given up"),
    (r"\boxed{A} or \boxed{C}", "AC", None, 0.0, "a hedge"),
    (r"\boxed{A or C}", "AC", None, 0.0, "a hedge"),
    (r"\boxed{A, B, C}", "AC", None, 0.0, "one too many"),
    (r"\boxed{A}", "AC", None, 0.0, "one too few"),
    (r"\boxed{A, C, C}", "AC", None, 0.0, "one of them twice"),
    (r"\boxed{A, C} is wrong", "AC", None, 0.0, "spoken against"),
    (r"\boxed{A, C} are wrong.", "AC", None, 0.0, "spoken against"),
    (r"The wrong options are \boxed{A, C}", "AC", None, 0.0, "spoken against"),
    (r"<think>\boxed{A, C}", "AC", None, 0.0, "the thinking never ends"),
    (r"\boxed{A, C", "AC", None, 0.0, "cut off"),
    (r"\boxed{A, C}", "A", None, 0.0, "a gold of one letter wants one letter"),
    (r"\boxed{Rome, Oslo}", "AC", CITIES, 1.0, "texts"),
    (r"\boxed{A. Rome, C. Oslo}", ["Rome", "Oslo"], CITIES, 1.0, "letters with their texts"),
    (r"\boxed{A. Rome, C. Paris}", "AC", CITIES, 0.0, "a letter with another option's text"),
    (r"\boxed{A, E}", "AE", CITIES, None, "a gold beyond the options"),
    (r"\boxed{A, Z}", ["A", "Z"], CITIES, None, "a gold beyond the options"),
    (r"\boxed{A}", [], None, None, "no gold"),
    (r"\boxed{A}", ["A"], None, 1.0, "a list of one"),
    (r"\boxed{A}", "AC", ["AC", "DC"], 1.0, "a gold that is an option's text is that option"),
    (r"\boxed{C}", "B,C", ["x", "y", "B,C"], 1.0, "also with a comma in it"),
    (r"\boxed{B,C}", "B,C", ["x", "y", "B,C"], 1.0, "and so is a choice"),
    (r"\boxed{A, B}", "BA", None, None, "capitals in another order are a word"),
    (r"\boxed{A, B}", "BAD", None, None, "capitals in another order are a word"),
    ("The answers are A and C.", "AC", None, 1.0, "the phrase"),
    ("**Answer:** A, C", "AC", None, 1.0, "the phrase, in bold"),
    ("The correct answers are:\n- A\n- C", "AC", None, 1.0, "the phrase, over lines"),
    ("The answers are A. Rome and C. Oslo.", "AC", CITIES, 1.0, "the phrase, with texts"),
    ("The answers are B and D. I rule out A and C.", "BD", None, 1.0, "only the last sentence that chooses"),
    ("Options A and C are correct.", "AC", None, 1.0, "praise"),
    ("The answers are not A and C.", "AC", None, 0.0, "denied"),
    ("The answers are A or C", "AC", None, 0.0, "a hedge"),
    ("The answer is A, since C is wrong.", "AC", None, 0.0, "one only"),
    ("答案：A、C", "AC", None, 1.0, "in Chinese"),
    ("#### A, C", "AC", None, 1.0, "behind ####"),
    ("<answer>A,C</answer>", "AC", None, 1.0, "<answer>"),
    ("A\nC", "AC", None, 1.0, "nothing but the letters"),
    ("A cat", "AC", None, 0.0, "a sentence"),
]  # fmt: skip


@pytest.mark.parametrize(("completion", "gold", "options", "reward", "note"), SEVERAL)
def test_a_gold_of_several_options_wants_exactly_these(completion, gold, options, reward, note):
    assert choice_reward([completion], [gold], [options]) == [reward], note


def test_votes_spell_several_options_in_one_order():
    votes = [final_answer(text) for text in (r"\boxed{C, A}", "The answers are A and C.", r"\boxed{C}", "A or C")]
    assert votes == ["AC", "AC", "C", None]


@pytest.mark.parametrize(
    "text", ["A,", r"\boxed{A} and ", "answer:\n", "- ", "(A)", r"\boxed{", "A, C\u202e", "#### A"]
)
def test_a_reply_of_a_megabyte_is_read_without_raising(text):
    assert choice_reward([text * (1_000_000 // len(text))], ["AC"]) == [0.0]
