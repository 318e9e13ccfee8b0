"""Reading the instructions of a row: the kinds that the reward knows, and the arguments that each needs."""

from typing import Any

from grpo_kit.environments.reading import Refused, is_number, read_structure, read_text, show, write_json

MOST_INSTRUCTIONS = 50
_ARGUMENTS = {  # names of arguments: the kinds that take exactly these
    "keywords": ("keywords:existence"),
    "keyword frequency relation": ("keywords:frequency keywords:word_count_different_numbers"),
    "forbidden_words": ("keywords:forbidden_words"),
    "letter let_frequency let_relation": ("keywords:letter_frequency letters:letter_counting2"),
    "language": ("language:response_language"),
    "num_sentences relation": ("length_constraints:number_sentences"),
    "num_paragraphs": ("length_constraints:number_paragraphs"),
    "num_words relation": ("length_constraints:number_words"),
    "num_paragraphs nth_paragraph first_word": ("length_constraints:nth_paragraph_first_word"),
    "num_placeholders": ("detectable_content:number_placeholders"),
    "postscript_marker": ("detectable_content:postscript"),
    "num_bullets": ("detectable_format:number_bullet_lists"),
    "": (
        "detectable_format:constrained_response detectable_format:json_format detectable_format:title "
        "combination:two_responses startend:quotation change_case:english_capital change_case:english_lowercase "
        "punctuation:no_comma detectable_format:sentence_hyphens detectable_format:square_brackets "
        "detectable_format:bigram_wrapping keywords:no_adjacent_consecutive keywords:palindrome "
        "keywords:start_end paragraphs:paragraphs paragraphs:paragraphs2 punctuation:punctuation_dot "
        "punctuation:punctuation_exclamation count:count_unique count:punctuation ratio:sentence_type "
        "ratio:sentence_balance ratio:sentence_words words:alphabet words:vowel words:consonants words:palindrome "
        "words:prime_lengths words:last_first words:paragraph_last_first words:no_consecutive "
        "sentence:alliteration_increment format:parentheses format:quotes format:newline format:emoji "
        "format:line_indent format:quote_unquote format:thesis format:sub-bullets format:no_bullets_bullets "
        "format:title_case format:output_template format:no_whitespace repeat:repeat_simple custom:multiples "
        "custom:mcq_count_length custom:reverse_newline custom:word_reverse custom:character_reverse "
        "custom:sentence_alphabet custom:european_capitals_sort custom:csv_city custom:csv_special_character "
        "custom:csv_quotes custom:date_format_list"
    ),
    "num_highlights": ("detectable_format:number_highlighted_sections"),
    "section_spliter num_sections": ("detectable_format:multiple_sections"),
    "prompt_to_repeat": ("combination:repeat_prompt copy:copy copy:copying_simple repeat:repeat_change"),
    "end_phrase": ("startend:end_checker"),
    "capital_frequency capital_relation": ("change_case:capital_word_frequency"),
    "phrase small_n": ("copy:repeat_phrase"),
    "prompt_to_repeat N": ("copy:copying_multiple"),
    "prompt_to_repeat n_start n_end": ("new:copy_span_idx repeat:repeat_span"),
    "keyword": ("keywords:word_once keywords:exclude_word_harder words:words_position"),
    "keyword n m": ("keywords:keyword_specific_position words:keywords_specific_position"),
    "first_word": ("first_word:first_word_sent first_word:first_word_answer"),
    "last_word": ("last_word:last_word_sent last_word:last_word_answer"),
    "N": (
        "count:lowercase_counting count:unique_word_count count:person_names count:numbers count:words_japanese "
        "count:pronouns"
    ),
    "n_sent n_words": ("count:counting_composition"),
    "keyword1 keyword2": ("count:count_increment_word"),
    "N relation": ("letters:letter_counting"),
    "min_words max_words": ("count:word_count_range"),
    "small_n": ("count:conjunctions words:repeats sentence:increment"),
    "keyword1 keyword2 keyword3 keyword4 keyword5": ("count:keywords_multiple"),
    "reference_text percentage": ("ratio:overlap"),
    "word N": ("sentence:keyword"),
    "options": ("format:options"),
    "sep": ("format:list"),
}
ARGUMENTS: dict[str, frozenset[str]] = {
    name: frozenset(arguments.split()) for arguments, kinds in _ARGUMENTS.items() for name in kinds.split()
}
_RELATIONS = ("less than", "at least")
_NUMBERS = (
    "N", "n", "m", "small_n", "frequency", "let_frequency", "capital_frequency", "num_sentences", "num_paragraphs",
    "num_words", "num_placeholders", "num_bullets", "num_highlights", "num_sections", "nth_paragraph", "n_sent",
    "n_words", "min_words", "max_words", "n_start", "n_end", "percentage",
)  # fmt: skip
_LISTS = ("keywords", "forbidden_words")


def read_instructions(ids: Any, kwargs: Any, grading_mode: Any = None) -> dict[str, Any]:
    """The columns of a row's instructions.

    Args:
        ids: a list of kinds, or its text.
        kwargs: a list with one object, or null, for each kind, or its text. Keys that are null count as absent, since a
            table fills every object with all keys.
        grading_mode: "binary", "fraction" or nothing, which is "binary".

    Returns:
        `instruction_id_list`, `kwargs` as JSON text without nulls, and `grading_mode`.

    Raises:
        Refused: the lists do not fit, a kind is unknown, its arguments are not those that it needs, or they contradict
            the prompt.
    """
    names, given = read_structure(ids, "instruction_id_list"), read_structure(kwargs, "kwargs")
    if not isinstance(names, list | tuple) or not isinstance(given, list | tuple | None) or not names:
        raise Refused("no instructions", "instruction_id_list must be a list of one name or more, and kwargs a list")
    given = [None] * len(names) if given is None else given
    if len(names) != len(given) or len(names) > MOST_INSTRUCTIONS:
        detail = f"{len(names)} instructions have {len(given)} kwargs; each needs its own, up to {MOST_INSTRUCTIONS}"
        raise Refused("no instructions", detail)
    if grading_mode not in ("binary", "fraction", None):
        raise Refused("grading mode", 'grading_mode is neither "binary" nor "fraction"')
    texts = [read_text(name, "instruction_id_list", 200) for name in names]
    arguments = [_read_arguments(name, values) for name, values in zip(texts, given, strict=True)]
    return {
        "instruction_id_list": texts,
        "kwargs": write_json(arguments, "kwargs"),
        "grading_mode": grading_mode or "binary",
    }


def _read_arguments(name: str, values: Any) -> dict[str, Any]:
    if name not in ARGUMENTS:
        raise Refused("unknown instruction", f"the reward knows no instruction {name[:80]!r}")
    values = read_structure(values, "kwargs") if isinstance(values, str) else values
    if not isinstance(values, dict | None):
        raise Refused("arguments", f"the arguments of {name} are no object")
    kept = {key: value for key, value in (values or {}).items() if value is not None}
    kept = {key: value for key, value in kept.items() if key not in ("instruction", "prompt")}  # they repeat the prompt
    if kept.keys() != ARGUMENTS[name]:
        needed = ", ".join(sorted(ARGUMENTS[name])) or "none"
        raise Refused("arguments", f"{name} has the arguments {', '.join(map(str, kept))[:100]}, and it needs {needed}")
    for key, value in kept.items():
        if not _fits(key, value):
            raise Refused("arguments", f"{key} of {name} is {show(value)}, which is of another type or out of range")
    if name == "keywords:word_count_different_numbers" and kept["relation"] == "less than":
        raise Refused("contradiction", f"the prompt of {name} asks for a word so many times, and its check pays fewer")
    return kept


def _fits(key: str, value: Any) -> bool:
    """Whether a value is of the type that the argument needs. The reward looks closer, and gives None where it must."""
    if key.endswith("relation"):
        return value in _RELATIONS
    if key in _NUMBERS:
        return is_number(value) and value >= 0 and (value == int(value) or key == "percentage")
    texts = value if isinstance(value, list | tuple) and (key in _LISTS or len(value) == 1) else [value]
    is_listed = key not in _LISTS or (texts is value and len(texts) > 0)
    return is_listed and all(isinstance(text, str) and text.strip() for text in texts)
