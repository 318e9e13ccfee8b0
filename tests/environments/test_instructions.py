"""Each generated task of instruction following can be solved: a composer writes a reply that follows all of it.

The composer knows nothing but the kinds and their arguments. Breaking any one instruction of that reply costs the
reward. The reply is clumsy on purpose: it proves that the instructions hold together, not that they read well.
"""

import json
import random
import re
import string
from collections import Counter

import pytest

from grpo_kit.environments.instruction_kinds import EXCLUDED, KINDS, exclude
from grpo_kit.environments.instructions import make_tasks, state_instruction
from grpo_kit.environments.names import PLAIN_WORDS
from grpo_kit.environments.task import COLUMNS, count_characters
from grpo_kit.rewards.instructions import INSTRUCTIONS, instructions_verdict

TASKS = make_tasks(500, seed=7)
# Clauses of plain English without digits, commas, capitals, and the letters and words that a task may limit.
CLAUSES = (
    "we all like this plan and they know it", "it was made for us so that everybody can share it",
    "some people came late yet nobody minded that at all", "you could also try something new or stay where you are",
    "our friends brought their old tools to help with the work", "most of them had never seen such a thing before",
    "she told him about her first day there", "nothing went wrong nor did anyone get lost",
    "the whole group sang while the children slept", "after that everyone felt much better than before",
    "a good idea needs time but little money", "these small steps will lead to great results",
)  # fmt: skip
MARK_FREE = str.maketrans("", "", ".!?")


def count_words(text):
    return len(re.findall(r"\w+", text))


def split_evenly(items, count):
    """`count` lists of the items in their order; every one has an item, as long as there are enough."""
    sizes = [len(items) // count + (number < len(items) % count) for number in range(count)]
    return [items[sum(sizes[:number]) : sum(sizes[: number + 1])] for number in range(count)]


def compose(names, arguments):
    """A reply that follows the instructions."""
    asked = dict(zip(names, arguments, strict=True))
    clauses = list(list_clauses(asked))
    clauses += CLAUSES[: max(4 - len(clauses), 0)]  # a sentence for each of four paragraphs
    fillers = 0
    while True:
        text = lay_out(asked, clauses)
        if not needs_more(asked, text):
            return text
        clauses.append(CLAUSES[fillers % len(CLAUSES)])
        fillers += 1


def list_clauses(asked):
    """What the instructions want to be said."""
    for keyword in asked.get("keywords:existence", {}).get("keywords", []):
        yield f"we like the {keyword}"
    for name in ("keywords:frequency", "keywords:word_once"):
        values = asked.get(name, {"relation": "less than"})
        times = values["frequency"] if values.get("relation") == "at least" else "relation" not in values
        for _ in range(times):
            yield f"there was a {values['keyword']}"
    for name in ("keywords:letter_frequency", "letters:letter_counting2"):
        values = asked.get(name, {"let_relation": "less than"})
        if values["let_relation"] == "at least":
            yield f"the letter {' '.join(values['letter'] * values['let_frequency'])} is short"
    if values := asked.get("count:count_increment_word"):
        yield f"the {values['keyword1']} stood between one {values['keyword2']} and the next {values['keyword2']}"
    for _ in range(asked.get("detectable_format:number_highlighted_sections", {}).get("num_highlights", 0)):
        yield "we did *good work* there"
    for _ in range(asked.get("detectable_content:number_placeholders", {}).get("num_placeholders", 0)):
        yield "please ask [name]"
    capitals = asked.get("change_case:capital_word_frequency", {"capital_relation": "less than"})
    for _ in range(capitals["capital_frequency"] if capitals["capital_relation"] == "at least" else 0):
        yield "we said NO"


def needs_more(asked, text):
    """Whether a lower bound is not reached yet."""
    words, letters = asked.get("length_constraints:number_words", {}), asked.get("letters:letter_counting", {})
    sentences = asked.get("length_constraints:number_sentences", {})
    return (
        (words.get("relation") == "at least" and count_words(text) < words["num_words"])
        or (letters.get("relation") == "at least" and sum(map(str.isalpha, text)) < letters["N"])
        or (sentences.get("relation") == "at least" and len(re.findall(r"[.?]", text)) < sentences["num_sentences"])
    )


def lay_out(asked, clauses):
    """The clauses as sentences, paragraphs, sections and so on."""
    mark = "?" if "punctuation:punctuation_dot" in asked else "."
    if "detectable_format:json_format" in asked:
        return json.dumps({"text": " ".join(f"{clause}{mark}" for clause in clauses)})
    if values := asked.get("first_word:first_word_answer"):
        clauses = [f"{values['first_word']} {clauses[0]}", *clauses[1:]]
    clauses = put_keyword(asked, clauses)
    if asked.get("length_constraints:number_sentences", {}).get("relation") == "less than":
        clauses = [" and ".join(clauses)]
    start = asked.get("first_word:first_word_sent", {}).get("first_word")
    if values := asked.get("last_word:last_word_sent"):
        clauses = [f"{clause} {values['last_word']}" for clause in clauses]
    sentences = [f"{start} {clause}{mark}" if start else f"{clause[0].upper()}{clause[1:]}{mark}" for clause in clauses]
    if values := asked.get("length_constraints:nth_paragraph_first_word"):
        parts = split_evenly(sentences, values["num_paragraphs"])
        parts[values["nth_paragraph"] - 1].insert(0, f"{values['first_word'].title()} we go on{mark}")
        text = "\n\n".join(map(" ".join, parts))
    elif values := asked.get("length_constraints:number_paragraphs"):
        text = "\n***\n".join(map(" ".join, split_evenly(sentences, values["num_paragraphs"])))
    elif "paragraphs:paragraphs" in asked:
        text = "\n***\n".join(map(" ".join, split_evenly(sentences, 2)))
    elif "paragraphs:paragraphs2" in asked:
        text = "\n\n".join(map(" ".join, split_evenly(sentences, 2)))
    elif values := asked.get("detectable_format:multiple_sections"):
        parts = split_evenly(sentences, values["num_sections"])
        headed = [f"{values['section_spliter']} {n}\n{' '.join(part)}" for n, part in enumerate(parts, 1)]
        text = "\n".join(headed)
    elif "combination:two_responses" in asked:
        first, second = map(" ".join, split_evenly(sentences, 2))
        text = f"{first}\n******\nOtherwise {second}"
    else:
        text = " ".join(sentences)
    for number in range(asked.get("detectable_format:number_bullet_lists", {}).get("num_bullets", 0)):
        text += f"\n- point {string.ascii_lowercase[number]}"
    if "detectable_format:title" in asked:
        text = f"<<our day>>\n{text}"
    if values := asked.get("detectable_content:postscript"):
        text += f"\n{values['postscript_marker']} see you"
    if values := asked.get("last_word:last_word_answer"):
        text += f"\n{start or 'So'} we say {values['last_word']}{mark}"
    if values := asked.get("startend:end_checker"):
        text += f"\n{values['end_phrase']}"
    text = text.upper() if "change_case:english_capital" in asked else text
    text = text.lower() if "change_case:english_lowercase" in asked else text
    return f'"{text}"' if "startend:quotation" in asked else text


def put_keyword(asked, clauses):
    """The keyword in its sentence, at its place."""
    clauses = list(clauses)
    if values := asked.get("keywords:keyword_specific_position"):
        words = clauses[values["n"] - 1].split()
        filled = [*words, *["indeed"] * 5][: values["m"] - 1]
        clauses[values["n"] - 1] = " ".join([*filled, values["keyword"], *words[values["m"] - 1 :]])
    return clauses


def drop_words(text, words):
    return re.sub(rf"(?i)\b({'|'.join(words)})\b", "thing", text)


def repeat(text, words, times):
    return text + f" {words}" * times


BREAKERS = {  # a reply, broken in the one instruction that the arguments belong to
    "keywords:existence": lambda text, a: drop_words(text, a["keywords"][:1]),
    "keywords:frequency": lambda text, a: (
        drop_words(text, [a["keyword"]]) if a["relation"] == "at least" else repeat(text, a["keyword"], a["frequency"])
    ),
    "keywords:forbidden_words": lambda text, a: repeat(text, a["forbidden_words"][-1], 1),
    "keywords:exclude_word_harder": lambda text, a: repeat(text, a["keyword"].upper(), 1),
    "keywords:word_once": lambda text, a: repeat(text, a["keyword"], 1),
    "keywords:letter_frequency": lambda text, a: (
        re.sub(a["letter"], "-", text, flags=re.IGNORECASE)
        if a["let_relation"] == "at least"
        else repeat(text, a["letter"], a["let_frequency"])
    ),
    "keywords:keyword_specific_position": lambda text, a: f"Well then. {text}",
    "length_constraints:number_sentences": lambda text, a: (
        text.translate(MARK_FREE) if a["relation"] == "at least" else repeat(text, "We go on.", a["num_sentences"])
    ),
    "length_constraints:number_words": lambda text, a: (
        "Three plain words." if a["relation"] == "at least" else repeat(text, "word", a["num_words"])
    ),
    "letters:letter_counting": lambda text, a: "Short." if a["relation"] == "at least" else repeat(text, "a", a["N"]),
    "count:count_increment_word": lambda text, a: repeat(text, a["keyword2"], 1),
    "count:lowercase_counting": lambda text, a: repeat(text, "word", a["N"] + 1),
    "length_constraints:number_paragraphs": lambda text, a: f"{text}\n***\nMore.",
    "length_constraints:nth_paragraph_first_word": lambda text, a: drop_words(text, [a["first_word"]]),
    "paragraphs:paragraphs2": lambda text, a: f"{text}\n\nMore.",
    "detectable_format:multiple_sections": lambda text, a: drop_words(text, [f"{a['section_spliter']} 1"]),
    "detectable_format:number_bullet_lists": lambda text, a: f"{text}\n- one more",
    "detectable_format:number_highlighted_sections": lambda text, a: re.sub(r"(?i)\*good", "good", text),
    "detectable_format:title": lambda text, a: text.replace("<<", "<"),
    "detectable_content:number_placeholders": lambda text, a: text.replace("[", "(", 1),
    "detectable_content:postscript": lambda text, a: text.replace(a["postscript_marker"], "Also"),
    "startend:quotation": lambda text, a: text.strip('"'),
    "startend:end_checker": lambda text, a: f"{text} Bye",
    "first_word:first_word_answer": lambda text, a: f"Well {text}",
    "first_word:first_word_sent": lambda text, a: f"{text} Well we go.",
    "last_word:last_word_answer": lambda text, a: f"{text} Bye",
    "last_word:last_word_sent": lambda text, a: f"{text} We go on.",
    "change_case:english_capital": lambda text, a: f"{text} bye",
    "change_case:english_lowercase": lambda text, a: f"{text} BYE",
    "change_case:capital_word_frequency": lambda text, a: (
        text.lower() if a["capital_relation"] == "at least" else repeat(text, "LOUD", a["capital_frequency"])
    ),
    "punctuation:no_comma": lambda text, a: f"{text}, yes",
    "punctuation:punctuation_exclamation": lambda text, a: f"{text}!",
    "punctuation:punctuation_dot": lambda text, a: f"{text}.",
    "detectable_format:json_format": lambda text, a: f"Here: {text}",
    "combination:two_responses": lambda text, a: text.replace("******", "***"),
}
BREAKERS["paragraphs:paragraphs"] = BREAKERS["length_constraints:number_paragraphs"]
BREAKERS["letters:letter_counting2"] = BREAKERS["keywords:letter_frequency"]


def unpack(task):
    return task.columns["instruction_id_list"], json.loads(task.columns["kwargs"])


@pytest.mark.slow  # half of the time is the language detector's start
def test_the_composer_follows_every_generated_task_and_is_paid():
    used = Counter()
    for task in TASKS:
        names, arguments = unpack(task)
        reply = compose(names, arguments)
        verdict = instructions_verdict(reply, names, task.columns["kwargs"], task.columns["grading_mode"])
        assert verdict.reward == 1.0, (names, arguments, reply, verdict)
        used.update(names)
    assert set(used) == set(KINDS)


@pytest.mark.slow
def test_breaking_any_one_instruction_costs_the_reward():
    for task in TASKS:
        names, arguments = unpack(task)
        reply = compose(names, arguments)
        for place, (name, values) in enumerate(zip(names, arguments, strict=True)):
            broken = BREAKERS[name](reply, values)
            verdict = instructions_verdict(broken, names, task.columns["kwargs"])
            assert verdict.reward == 0.0 and not verdict.followed[place], (name, values, broken)


def test_silence_and_a_copy_of_the_prompt_are_not_paid():
    paid = 0
    for task in TASKS[:200]:
        names, arguments = unpack(task)
        assert instructions_verdict("", names, arguments).reason == "empty"
        paid += instructions_verdict("\n".join(turn["content"] for turn in task.prompt), names, arguments).reward
    assert paid < 60  # a limit such as "do without the word" is often kept by chance, never by silence


def test_every_instruction_is_stated_with_its_arguments():
    for task in TASKS:
        prompt = "\n".join(message["content"] for message in task.prompt)
        for name, values in zip(*unpack(task), strict=True):
            assert any(state_instruction(name, values, random.Random(n)) in prompt for n in range(20)), (name, prompt)
            for value in values.values():
                words = value if isinstance(value, list) else [str(value).replace("less than", "fewer than")]
                assert all(word in prompt for word in words), (name, prompt)


def test_no_task_has_two_kinds_that_exclude_each_other():
    for task in TASKS:
        names = task.columns["instruction_id_list"]
        assert 1 <= len(names) <= 4 and len(set(names)) == len(names)
        assert not any(other in exclude(name) for name in names for other in names if other != name), names


def test_the_table_of_exclusions_names_kinds_that_exist_and_gives_reasons():
    for left, right, why in EXCLUDED:
        assert left | right <= set(KINDS) and why
    assert set(KINDS) <= set(list(INSTRUCTIONS)[:54])  # IFEval's and IFEvalG's, which NeMo-Gym's server knows
    assert set(BREAKERS) == set(KINDS)
    assert all(exclude(name) >= {name} for name in KINDS)
    for name in KINDS:
        assert all(name in exclude(other) for other in exclude(name)), name


@pytest.mark.parametrize(
    "first, second",
    [
        ("startend:end_checker", "last_word:last_word_answer"),
        ("detectable_format:json_format", "punctuation:no_comma"),
        ("punctuation:punctuation_dot", "detectable_content:postscript"),
        ("change_case:english_lowercase", "change_case:english_capital"),
        ("length_constraints:number_words", "letters:letter_counting"),
        ("detectable_format:title", "first_word:first_word_answer"),
    ],
)
def test_these_exclude_each_other(first, second):
    assert second in exclude(first) and first in exclude(second)


def test_words_that_are_asked_for_hold_no_letter_that_is_limited():
    assert len(PLAIN_WORDS) == len(set(PLAIN_WORDS)) > 70
    assert not set("qxjz") & set("".join(PLAIN_WORDS))
    for task in TASKS:
        for values in unpack(task)[1]:
            if "let_relation" in values:
                assert (values["letter"] in "qxjz") == (values["let_relation"] == "less than")


def test_no_argument_is_asked_for_and_forbidden():
    for task in TASKS:
        words = []
        for name, values in zip(*unpack(task), strict=True):
            for key in ("keyword", "word", "keywords", "forbidden_words"):
                found = values.get(key, [])
                words += [found] if isinstance(found, str) else found
            assert all(value is not None for value in values.values()), name
        assert len(set(words)) == len(words)


def test_a_seed_decides_the_tasks_and_more_tasks_begin_with_the_same():
    assert make_tasks(20, seed=7) == TASKS[:20] and make_tasks(20, seed=8) != TASKS[:20]
    assert len({json.dumps(task.prompt) for task in TASKS}) == 500


def test_columns_are_in_their_order_and_prompts_can_be_bounded():
    assert all(tuple(task.columns) == COLUMNS["instructions"] for task in TASKS)
    assert {len(task.columns["instruction_id_list"]) for task in TASKS} == {1, 2, 3, 4}
    assert {tuple(turn["role"] for turn in task.prompt) for task in TASKS} == {("user",), ("system", "user")}
    short = make_tasks(40, seed=7, longest_prompt=200)
    assert max(count_characters(task.prompt) for task in short) <= 200
    with pytest.raises(ValueError, match="at most 30 characters"):
        make_tasks(2, seed=1, longest_prompt=30)
