"""The instruction kinds that the generator uses: their wordings, their arguments, and which exclude each other.

Names and arguments are those of IFEval and IFEvalG, which NeMo-Gym's server for instructions knows. IFBench's kinds are
left out, so that they measure whether what was learnt carries over.
"""

import functools
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from grpo_kit.environments.names import PLAIN_WORDS

FIRST_WORDS = ("Today", "Yesterday", "Sometimes", "Perhaps", "Finally", "Meanwhile", "Often")
LAST_WORDS = ("together", "tomorrow", "again", "forever", "home", "enough")
END_PHRASES = (
    "That is all for now.", "Let me know what you think.", "We hope this helps.", "More will follow soon.",
    "Thank you for reading.",
)  # fmt: skip


class Draws:
    """What the arguments of one task are drawn from; no keyword is drawn twice."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._left = rng.sample(PLAIN_WORDS, len(PLAIN_WORDS))

    def keyword(self) -> str:
        return self._left.pop()

    def keywords(self) -> list[str]:
        return [self._left.pop() for _ in range(self.rng.randint(2, 3))]

    def bound(self, name: str, relation: str, least: tuple[int, int], below: tuple[int, int]) -> dict[str, Any]:
        """{name: a number, relation: "at least" or "less than"}, the number from the range of its relation."""
        is_least = self.rng.random() < 0.5
        number = self.rng.randint(*(least if is_least else below))
        return {name: number, relation: "at least" if is_least else "less than"}


class Kind(NamedTuple):
    """One kind of instruction: its wordings, with the arguments in braces, and how the arguments are drawn."""

    wordings: tuple[str, ...]
    draw: Callable[[Draws], dict[str, Any]] = lambda draws: {}


def _letters(draws: Draws) -> dict[str, Any]:
    bound = draws.bound("let_frequency", "let_relation", (3, 9), (2, 6))
    letters = "aeinorst" if bound["let_relation"] == "at least" else "qxjz"  # that leave room for a text
    return {"letter": draws.rng.choice(letters), **bound}


def _paragraph(draws: Draws) -> dict[str, Any]:
    count = draws.rng.randint(2, 4)
    place, word = draws.rng.randint(1, count), draws.rng.choice(FIRST_WORDS)
    return {"num_paragraphs": count, "nth_paragraph": place, "first_word": word.lower()}


KINDS: dict[str, Kind] = {
    "keywords:existence": Kind(
        ("Use the words {keywords}.", "Include each of these words: {keywords}.", "Work in the words {keywords}."),
        lambda draws: {"keywords": draws.keywords()},
    ),
    "keywords:frequency": Kind(
        ('The word "{keyword}" must occur {relation} {frequency} times.',
         'Write the word "{keyword}" {relation} {frequency} times.'),
        lambda draws: {"keyword": draws.keyword(), **draws.bound("frequency", "relation", (2, 4), (2, 4))},
    ),
    "keywords:forbidden_words": Kind(
        ("Do not use the words {forbidden_words}.", "None of these words may occur: {forbidden_words}."),
        lambda draws: {"forbidden_words": draws.keywords()},
    ),
    "keywords:exclude_word_harder": Kind(
        ('Do without the word "{keyword}".', 'The word "{keyword}" is not allowed.'),
        lambda draws: {"keyword": draws.keyword()},
    ),
    "keywords:word_once": Kind(
        ('Use the word "{keyword}" once, and only once.', 'The word "{keyword}" must occur exactly one time.'),
        lambda draws: {"keyword": draws.keyword()},
    ),
    "count:count_increment_word": Kind(
        ('Use the word "{keyword1}" exactly once and the word "{keyword2}" exactly twice.',
         '"{keyword1}" must occur once, and "{keyword2}" two times, no more and no less.'),
        lambda draws: {"keyword1": draws.keyword(), "keyword2": draws.keyword()},
    ),
    "keywords:letter_frequency": Kind(
        ("The letter {letter} must occur {let_relation} {let_frequency} times.",
         "Use the letter {letter} {let_relation} {let_frequency} times."),
        _letters,
    ),
    "letters:letter_counting2": Kind(
        ("In your reply the letter {letter} should be found {let_relation} {let_frequency} times.",), _letters
    ),
    "keywords:keyword_specific_position": Kind(
        ('Word number {m} of sentence number {n} must be "{keyword}".',
         'Put the word "{keyword}" into sentence {n} as its word number {m}.'),
        lambda draws: {"keyword": draws.keyword(), "n": draws.rng.randint(1, 3), "m": draws.rng.randint(2, 5)},
    ),
    "length_constraints:number_sentences": Kind(
        ("Write {relation} {num_sentences} sentences.", "Your reply has {relation} {num_sentences} sentences."),
        lambda draws: draws.bound("num_sentences", "relation", (2, 6), (4, 9)),
    ),
    "length_constraints:number_words": Kind(
        ("Write {relation} {num_words} words.", "Answer with {relation} {num_words} words."),
        lambda draws: draws.bound("num_words", "relation", (20, 90), (90, 200)),
    ),
    "letters:letter_counting": Kind(
        ("Your reply has {relation} {N} letters.", "Write {relation} {N} letters; only letters count."),
        lambda draws: draws.bound("N", "relation", (60, 300), (500, 900)),
    ),
    "count:lowercase_counting": Kind(
        ("At most {N} words may be in lowercase letters only.",), lambda draws: {"N": draws.rng.randint(90, 150)}
    ),
    "length_constraints:number_paragraphs": Kind(
        ("Write {num_paragraphs} paragraphs and separate them with a line that holds only ***.",
         "There should be {num_paragraphs} paragraphs, with the divider *** between them."),
        lambda draws: {"num_paragraphs": draws.rng.randint(2, 4)},
    ),
    "length_constraints:nth_paragraph_first_word": Kind(
        ('Write {num_paragraphs} paragraphs with an empty line between them. Begin paragraph {nth_paragraph} with the '
         'word "{first_word}".',),
        _paragraph,
    ),
    "paragraphs:paragraphs": Kind(("Write two paragraphs with the divider *** between them.",)),
    "paragraphs:paragraphs2": Kind(("Write two paragraphs with an empty line between them.",
                                    "There should be exactly 2 paragraphs, separated by one empty line.")),
    "detectable_format:multiple_sections": Kind(
        ("Divide your reply into {num_sections} sections. Head each with {section_spliter} and its number, such as "
         "{section_spliter} 1.",),
        lambda draws: {"section_spliter": draws.rng.choice(("Section", "Part", "Chapter")),
                       "num_sections": draws.rng.randint(2, 4)},
    ),
    "detectable_format:number_bullet_lists": Kind(
        ("Include exactly {num_bullets} bullet points, each on a line that begins with a hyphen.",
         "Your reply must have {num_bullets} bullets in Markdown, no fewer and no more."),
        lambda draws: {"num_bullets": draws.rng.randint(2, 5)},
    ),
    "detectable_format:number_highlighted_sections": Kind(
        ("Highlight at least {num_highlights} phrases in Markdown, as in *this phrase*.",),
        lambda draws: {"num_highlights": draws.rng.randint(2, 4)},
    ),
    "detectable_format:title": Kind(("Give it a title in double angular brackets, such as <<a quiet day>>.",
                                     "Begin with a title, wrapped like this: <<title>>.")),
    "detectable_content:number_placeholders": Kind(
        ("Leave at least {num_placeholders} places to be filled in, in square brackets, such as [name].",),
        lambda draws: {"num_placeholders": draws.rng.randint(2, 4)},
    ),
    "detectable_content:postscript": Kind(
        ("Add a postscript at the end that begins with \"{postscript_marker}\".",),
        lambda draws: {"postscript_marker": draws.rng.choice(("P.S.", "P.P.S"))},
    ),
    "startend:quotation": Kind(("Wrap the whole reply in double quotation marks.",
                                "Your reply begins and ends with a double quotation mark.")),
    "startend:end_checker": Kind(
        ('End with exactly these words: "{end_phrase}"', 'The last words of your reply must be: "{end_phrase}"'),
        lambda draws: {"end_phrase": draws.rng.choice(END_PHRASES)},
    ),
    "first_word:first_word_answer": Kind(
        ('The first word of your reply must be "{first_word}".', 'Begin with the word "{first_word}".'),
        lambda draws: {"first_word": draws.rng.choice(FIRST_WORDS)},
    ),
    "first_word:first_word_sent": Kind(
        ('Each sentence must begin with the word "{first_word}".',),
        lambda draws: {"first_word": draws.rng.choice(FIRST_WORDS)},
    ),
    "last_word:last_word_answer": Kind(
        ('The last word of your reply must be "{last_word}".', 'Let "{last_word}" be the last word.'),
        lambda draws: {"last_word": draws.rng.choice(LAST_WORDS)},
    ),
    "last_word:last_word_sent": Kind(
        ('Each sentence must end with the word "{last_word}".',),
        lambda draws: {"last_word": draws.rng.choice(LAST_WORDS)},
    ),
    "change_case:english_capital": Kind(("Write in English and in capital letters only.",
                                         "USE CAPITAL LETTERS ONLY, in English.")),
    "change_case:english_lowercase": Kind(("Write in English and in lowercase letters only.",
                                           "No capital letters are allowed; the language is English.")),
    "change_case:capital_word_frequency": Kind(
        ("Write {capital_relation} {capital_frequency} words in capital letters throughout.",),
        lambda draws: draws.bound("capital_frequency", "capital_relation", (2, 4), (4, 8)),
    ),
    "punctuation:no_comma": Kind(("Do not use any commas.", "Your reply must not contain a comma.")),
    "punctuation:punctuation_exclamation": Kind(("Use no exclamation marks.", "Do without exclamation marks.")),
    "punctuation:punctuation_dot": Kind(("Use no full stops, not a single one.",
                                         "The reply must not contain any dot.")),
    "detectable_format:json_format": Kind(("Reply with one JSON object and nothing around it.",
                                           "Your whole reply must be valid JSON.")),
    "combination:two_responses": Kind(("Give two different replies, separated by a line of six asterisks: ******.",)),
}  # fmt: skip

_WORDS = {
    "keywords:existence", "keywords:frequency", "keywords:forbidden_words", "keywords:exclude_word_harder",
    "keywords:word_once", "count:count_increment_word",
}  # fmt: skip
_SENTENCES = {
    "keywords:keyword_specific_position", "length_constraints:number_sentences", "first_word:first_word_sent",
    "last_word:last_word_sent",
}  # fmt: skip
_LENGTHS = {"length_constraints:number_words", "letters:letter_counting", "count:lowercase_counting"}
_PARAGRAPHS = {
    "length_constraints:number_paragraphs", "length_constraints:nth_paragraph_first_word", "paragraphs:paragraphs2",
    "paragraphs:paragraphs", "detectable_format:multiple_sections", "combination:two_responses",
}  # fmt: skip
_STARTS = {
    "first_word:first_word_answer", "first_word:first_word_sent", "detectable_format:title",
    "length_constraints:nth_paragraph_first_word", "detectable_format:multiple_sections",
}  # fmt: skip
_ENDS = {
    "startend:end_checker", "last_word:last_word_answer", "last_word:last_word_sent", "detectable_content:postscript",
}  # fmt: skip
_WHOLE_CASES = {"change_case:english_capital", "change_case:english_lowercase"}
_CASES = _WHOLE_CASES | {"change_case:capital_word_frequency", "count:lowercase_counting"}
_PARTS = {"detectable_format:number_bullet_lists", "detectable_format:title", "detectable_content:postscript"}
_LETTERS = {"keywords:letter_frequency", "letters:letter_counting2"}
# (kinds, kinds, why one of the former and one of the latter are never asked for together)
EXCLUDED: tuple[tuple[set[str], set[str], str], ...] = (
    (_SENTENCES, _SENTENCES, "each places sentences, and what one asks of sentence 2 another may deny"),
    (_SENTENCES, _PARTS | _PARAGRAPHS, "whether a heading or the item of a list is a sentence is a matter of opinion"),
    (_LENGTHS, _LENGTHS, "two bounds on the length may leave no room"),
    (_LETTERS, _LETTERS, "both count letters, perhaps the same"),
    (_PARAGRAPHS, _PARAGRAPHS, "each says how the reply is divided"),
    (_STARTS, _STARTS, "each says how the reply begins"),
    (_ENDS, _ENDS, "each says how the reply ends"),
    (_CASES, _CASES, "each says which words are in capitals"),
    ({"first_word:first_word_sent"}, {"startend:end_checker"}, "these words are a sentence, which begins otherwise"),
    ({"startend:quotation"}, {"first_word:first_word_answer", "first_word:first_word_sent", "last_word:last_word_sent"},
     "to NeMo-Gym's checker the quotation mark belongs to the word"),
    ({"keywords:keyword_specific_position"},
     {"detectable_format:number_highlighted_sections", "detectable_content:number_placeholders", "startend:quotation"}
     | _WHOLE_CASES, "to NeMo-Gym's checker *, [ and a quotation mark are words that count, and case matters"),
    (_CASES, {"startend:end_checker", "detectable_content:postscript"}, "these are quoted in the case they must have"),
    (_WHOLE_CASES, _STARTS - {"detectable_format:title"}, "these are quoted in the case they must have"),
    ({"punctuation:punctuation_dot"}, _SENTENCES | {"startend:end_checker", "detectable_content:postscript"},
     "sentences and these words end with a full stop"),
    ({"combination:two_responses"}, _STARTS | _ENDS | _PARTS | {"startend:quotation"},
     "it is open which of the two replies is meant"),
    ({"detectable_format:json_format"}, set(KINDS) - _WORDS - {"detectable_format:json_format"},
     "a JSON document has no place for it"),
)  # fmt: skip


@functools.cache
def exclude(name: str) -> frozenset[str]:
    """The kinds that a task with this one must not have, itself among them.

    >>> "last_word:last_word_answer" in exclude("startend:end_checker")
    True
    """
    both = [*EXCLUDED, *((right, left, why) for left, right, why in EXCLUDED)]
    return frozenset({name} | {other for left, right, _ in both if name in left for other in right})
