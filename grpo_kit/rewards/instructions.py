r"""instructions decides whether a reply follows every verifiable instruction of its row: 1.0 if it does, 0.0 if not.

Paste this file into a notebook cell as it is. It needs only the standard library; the three kinds that ask for a
language need `pip install py3langid`.

A row names its instructions in `instruction_id_list` and their arguments in `kwargs`, as IFEval does:

    instruction_id_list  ["punctuation:no_comma", "length_constraints:number_words"]
    kwargs               [None, {"num_words": 40, "relation": "at least"}]

`list(INSTRUCTIONS)` has the names: the 54 kinds of IFEval and IFEvalG, and IFBench's without the three that need a list
of stop words, a tagger or a dictionary (ratio:stop_words, words:start_verb, words:odd_even_syllables).

Judged is what follows the last </think>. A thought that is not closed, an empty reply (no letter or digit) and one of
more than 100,000 characters earn 0, whatever was asked. Where the public checkers guess, this one does not: arguments
that are missing, unknown or out of range make the row unusable (None), as do relations other than "less than" and "at
least". Keywords are texts, not patterns, and whole words: "cat" is neither in "concatenate" nor in "cats". Letter case
counts only where an instruction is about it.

A sentence ends at . ! ? or their like, together with closing quotes, before a space or the end. The point of an
abbreviation (Dr., e.g.), of an initial or of a number that begins a line ends none, nor does a new line. number_words
counts runs of letters and digits as IFEval does, so "don't" counts twice; elsewhere a word is what stands between
spaces, without the punctuation around it.

Not judged: whether the reply answers the question, is true or makes sense. A reply can follow every instruction and say
nothing, so use this reward beside one for content, or on prompts that have no other measure. Words of scripts without
spaces (Chinese, Japanese, Thai) are counted as runs. A language is guessed from the whole reply, of a long one from
each third, so a foreign sentence within a third passes.
"""

import ast
import csv
import datetime
import functools
import io
import json
import re
import string
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

LONGEST_REPLY = 100_000  # characters; a longer reply earns 0
LONGEST_COLUMN = 1_000_000  # characters of a row's kwargs that are written as a text
INSTRUCTION_REASONS = ("followed", "partly_followed", "not_followed", "empty", "too_long", "unclosed_think", "unusable")


class InstructionVerdict(NamedTuple):
    """A reward, the one of INSTRUCTION_REASONS that led to it, and for each instruction whether it is followed."""

    reward: float | None
    reason: str
    followed: tuple[bool, ...] = ()


def instructions_reward(
    completions: Sequence,
    instruction_id_list: Sequence | None = None,
    kwargs: Sequence | None = None,
    grading_mode: str | Sequence[str | None] = "binary",
    prompt_opened_think: bool | Sequence[bool] = False,
    **columns,
) -> list[float | None]:
    r"""1.0 where a reply follows all instructions of its row, 0.0 where it breaks one, None where the row is unusable.

    Args:
        completions: texts or message lists; of several turns the last one of the assistant is judged. TRL's
            `reasoning_content` counts as thinking that is closed.
        instruction_id_list: for each completion its instructions, such as ["punctuation:no_comma"], or None where the
            row belongs to another reward.
        kwargs: for each completion a list with one dict, or None, for each instruction. It may be written as a text, in
            JSON or as Python's repr of it. Keys that are None count as absent.
        grading_mode: "binary", or "fraction" to earn the share of instructions that are followed. A text, or a column
            of the dataset, where None means "binary".
        prompt_opened_think: whether the chat template put <think> into the prompt, so that a completion without
            </think> is unfinished and earns 0. A bool, or a column of the dataset.
        columns: other columns. If `log_metric` is among them (TRL passes it), the share of each reason among the rows
            with instructions is logged as `instructions/<reason>`, and for each kind the share that is followed.

    Returns:
        One reward for each completion; None where an instruction is unknown, its arguments cannot be used, or it needs
        py3langid, which is not installed.

    Raises:
        ValueError: the lengths differ, or grading_mode is another text.

    Example:
        >>> ids, arguments = ["punctuation:no_comma", "keywords:existence"], [None, {"keywords": ["tea"]}]
        >>> instructions_reward(["Tea is fine.", "Tea, please."], [ids] * 2, [arguments] * 2)
        [1.0, 0.0]
    """
    count = len(completions)
    if instruction_id_list is None:
        return [None] * count
    arguments = [None] * count if kwargs is None else kwargs
    modes = [grading_mode] * count if isinstance(grading_mode, str) else grading_mode
    flags = [prompt_opened_think] * count if isinstance(prompt_opened_think, bool) else prompt_opened_think
    if not count == len(instruction_id_list) == len(arguments) == len(modes) == len(flags):
        raise ValueError(
            f"instructions_reward got {count} completions, {len(instruction_id_list)} instruction lists, "
            f"{len(arguments)} kwargs, {len(modes)} grading modes and {len(flags)} flags; each completion needs its "
            "own. Pass the dataset's columns repeated once per completion."
        )
    unknown = next((mode for mode in modes if mode not in ("binary", "fraction", None)), None)
    if unknown is not None:
        raise ValueError(f'grading_mode is {unknown!r}; it must be "binary" or "fraction". Write one of them.')
    verdicts = [
        instructions_verdict(completion, ids, values, mode or "binary", bool(flag))
        for completion, ids, values, mode, flag in zip(completions, instruction_id_list, arguments, modes, flags)
    ]
    if log_metric := columns.get("log_metric"):
        own = [(ids, verdict) for ids, verdict in zip(instruction_id_list, verdicts) if ids is not None]
        shares: dict[str, list[bool]] = {reason: [v.reason == reason for _, v in own] for reason in INSTRUCTION_REASONS}
        for ids, verdict in own:
            for name, is_followed in zip(_read_list(ids) if verdict.followed else (), verdict.followed):
                shares.setdefault(name, []).append(is_followed)
        for name, values in shares.items() if own else ():
            log_metric(f"instructions/{name}", sum(values) / len(values))
    return [verdict.reward for verdict in verdicts]


def instructions_verdict(
    completion: str | list | dict | None,
    instruction_id_list: Sequence[str] | str | None,
    kwargs: Sequence[dict | None] | str | None = None,
    grading_mode: str = "binary",
    prompt_opened_think: bool = False,
) -> InstructionVerdict:
    r"""The reward of one completion, its reason, and which instructions are followed.

    >>> instructions_verdict("one, two", ["punctuation:no_comma", "count:count_unique"])
    InstructionVerdict(reward=0.0, reason='partly_followed', followed=(False, True))
    """
    checks = _read_instructions(instruction_id_list, kwargs)
    if not checks:
        return InstructionVerdict(None, "unusable")
    text = _read_reply(_join_contents(completion), prompt_opened_think)
    if text is None or not any(map(str.isalnum, text)) or len(text) > LONGEST_REPLY:
        reason = "unclosed_think" if text is None else "too_long" if len(text) > LONGEST_REPLY else "empty"
        return InstructionVerdict(0.0, reason, (False,) * len(checks))
    followed = tuple(bool(check(text)) for check in checks)
    share = sum(followed) / len(followed)
    reason = "followed" if share == 1 else "partly_followed" if share else "not_followed"
    return InstructionVerdict(share if grading_mode == "fraction" else float(share == 1), reason, followed)


def _read_reply(text: str, opened: bool) -> str | None:
    """The reply after its thinking; None where the thinking is not closed."""
    close = text.rfind("</think>")
    if text.rfind("<think>") > close or (opened and close < 0):
        return None
    text = text[close + len("</think>") :] if close >= 0 else text
    return _straighten(text).strip().removesuffix("<|im_end|>").rstrip()


def _join_contents(completion: str | list | dict | None) -> str:
    """The last assistant turn as the model wrote it; thinking that TRL has taken off stands before </think> again."""
    if completion is None or isinstance(completion, str):
        return completion or ""
    turns = [completion] if isinstance(completion, dict) else completion
    turn = next((turn for turn in reversed(turns) if turn.get("role", "assistant") == "assistant"), {})
    content = turn.get("content") or ""
    if not isinstance(content, str):
        content = "".join(block if isinstance(block, str) else str(block.get("text") or "") for block in content)
    thinking = turn.get("reasoning_content", turn.get("thinking"))
    return content if thinking is None else f"{thinking}</think>{content}"


def _straighten(text: str) -> str:
    """The text with plain quotes and line ends, and without characters that nobody sees."""
    return text.translate(_STRAIGHT).replace("\r\n", "\n")


_UNSEEN = "\u00ad\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
_STRAIGHT = str.maketrans("‘’“”", "''\"\"", _UNSEEN)


# The row: names and arguments. What cannot be used raises ValueError, and the row is unusable.


def _read_instructions(ids: object, kwargs: object) -> list[Callable[[str], bool]] | None:
    """One check for each instruction, its arguments filled in; None where anything cannot be used."""
    try:
        names, given = _read_list(ids), _read_list(kwargs)
        if kwargs is None:
            given = [None] * len(names)
        if len(names) != len(given):
            return None
        return [_bind_arguments(name, values) for name, values in zip(names, given)]
    except ValueError:
        return None


def _read_list(value: object) -> list:
    """A list, also where it is written as a text; an empty one for None. Raises ValueError for anything else."""
    if isinstance(value, str):
        value = _read_literal(value)
    value = _unpack(value)
    if value is not None and not isinstance(value, list | tuple):
        raise ValueError("not a list")
    return list(value or ())


def _unpack(value: object) -> object:
    """Lists and numbers of Python for those of NumPy, as pandas reads them."""
    return value.tolist() if hasattr(value, "tolist") else value


def _read_literal(text: str) -> object:
    if len(text) > LONGEST_COLUMN:
        raise ValueError("too long")
    for read in (json.loads, ast.literal_eval):  # literal_eval reads constants and calls nothing
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    raise ValueError("neither JSON nor a literal")


def _bind_arguments(name: object, values: object) -> Callable[[str], bool]:
    if isinstance(values, str):
        values = _read_literal(values)
    if not isinstance(name, str) or name not in INSTRUCTIONS or not isinstance(values, dict | None):
        raise ValueError("unknown")
    check, readers = INSTRUCTIONS[name]
    given = {key: _unpack(value) for key, value in (values or {}).items() if value is not None}
    if set(given) - {"instruction", "prompt"} != set(readers):  # these two only repeat the prompt
        raise ValueError("other arguments")
    arguments = {key: read(given[key]) for key, read in readers.items()}
    if check in (_is_in_language, _is_in_capitals, _is_in_lowercase) and _language_ranker() is None:
        raise ValueError("py3langid is not installed")
    _require_order(arguments)
    return functools.partial(check, **arguments)


def _require_order(arguments: dict[str, Any]) -> None:
    """Arguments that contradict each other raise ValueError."""
    pairs = [("min_words", "max_words"), ("nth_paragraph", "num_paragraphs"), ("n_start", "n_end")]
    for low, high in pairs:
        if low in arguments and arguments[low] > arguments[high]:
            raise ValueError(f"{low} exceeds {high}")
    prompt = arguments.get("prompt_to_repeat", "")
    if "n_end" in arguments:
        span = prompt[arguments["n_start"] : arguments["n_end"]]
        if not span.strip() or arguments["n_end"] > len(prompt):
            raise ValueError("no such span")
    words = [value.casefold() for key, value in arguments.items() if re.fullmatch(r"keyword\d", key)]
    if len(set(words)) < len(words):
        raise ValueError("one keyword, two counts")
    if "phrase" in arguments and len(arguments["phrase"].split()) < 3:
        raise ValueError("a phrase without a centre")


def _as_number(value: object) -> int:
    """A whole number from 0 on, also where it is written 3.0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e9 or value != int(value):
        raise ValueError("no number")
    return int(value)


def _as_place(value: object) -> int:
    """A whole number from 1 on."""
    if not _as_number(value):
        raise ValueError("places begin with 1")
    return int(value)


def _as_text(value: object) -> str:
    if isinstance(value, list) and len(value) == 1:  # as some rows write a single word
        (value,) = value
    if not isinstance(value, str) or not value.strip():
        raise ValueError("no text")
    return _straighten(value.strip())


def _as_prompt(value: object) -> str:
    """A text whose characters are counted, so it stays as it is."""
    _as_text(value)
    return value if isinstance(value, str) else _as_text(value)


def _as_texts(value: object) -> list[str]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("no texts")
    return [_as_text(text) for text in value]


def _as_symbol(value: object) -> str:
    symbol = _as_text(value).lower()
    if len(symbol) != 1:
        raise ValueError("not one character")
    return symbol


def _as_relation(value: object) -> str:
    if value not in ("less than", "at least"):
        raise ValueError("another relation")
    return str(value)


def _as_percentage(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise ValueError("no percentage")
    return float(value)


def _as_language(value: object) -> str:
    code = _as_text(value).lower().split("-")[0]  # zh-cn is zh
    rank = _language_ranker()
    if rank is not None and code not in {language for language, _ in rank("a")}:
        raise ValueError("an unknown language")
    return code


# Sentences, words, keywords.


def _list_words(text: str) -> set[str]:
    return set(text.split())


_MARKS = "".join(  # signs that join the letter before them, as vowels do in Hindi, and the joiners of Persian
    chr(i) for i in range(0x300, 0xFE30) if unicodedata.category(chr(i)) in ("Mn", "Mc")
) + "\u200c\u200d"  # fmt: skip
_LETTER_RUN = re.compile(rf"[\w{_MARKS}]+")
_SPACED_WORD = re.compile(rf"[^\W_](?:\S*(?:[^\W_]|[{_MARKS}]))?")
_TITLES = _list_words("mr mrs ms dr prof rev hon gen col capt lt sgt st mt vs eg ie e.g i.e cf")  # a name follows
_NUMBERED = _list_words("no nos vol fig eq ch sec pp approx ca")  # a number follows
_SHORTENED = _list_words("jr sr etc al inc ltd co corp dept est jan feb mar apr jun jul aug sep sept oct nov dec ave")
_STARTERS = _list_words("the a an it its he she we they you i this that these those there in on at but and so if when")
_SENTENCE_END = re.compile(r"(?:(?<![.!?…‽])[.!?…‽]+|[।॥؟۔])[\"')\]}*_»]*(?=\s|$)|[。！？]+[」』\"]*")
_NEXT_WORD = re.compile(r"\s*[\"'(\[*_]*(\w*)")
_ALNUM = re.compile(r"[^\W_]")


@functools.lru_cache(maxsize=4)
def _split_sentences(text: str) -> tuple[str, ...]:
    sentences, start, seen, has_words = [], 0, 0, False
    for end in _SENTENCE_END.finditer(text):
        has_words = has_words or bool(_ALNUM.search(text, seen, end.start()))
        seen = end.start()
        if has_words and _ends_sentence(text, start, end):
            sentences.append(text[start : end.end()].strip())
            start, seen, has_words = end.end(), end.end(), False
    rest = text[start:].strip()
    if sentences and not _ALNUM.search(rest):  # a closing quote, an emoji
        sentences[-1] = f"{sentences[-1]} {rest}".strip()
    elif rest:
        sentences.append(rest)
    return tuple(sentences)


def _ends_sentence(text: str, start: int, end: re.Match) -> bool:
    """Whether a mark is not the point of an abbreviation, an initial or a list's number."""
    after = _NEXT_WORD.match(text, end.end(), end.end() + 40)[1]
    goes_on = after[:1].islower()
    if end[0].startswith(("...", "…")):
        return not goes_on
    if end[0] != ".":
        return True
    begin = max(start, end.start() - 30)
    before = text[begin : end.start()]
    word = re.search(r"[^\s(\[\"'*_]*$", before)[0].casefold()
    if word.isdigit() and text[end.end() : end.end() + 1] != "\n" and after:
        item = re.search(r"(?:^|\n)[\s>*_#-]*\d+$", before)  # 1. as the number of an item
        return not item or (item.start() == 0 and begin > start and before[0] != "\n")
    if word in _TITLES:
        return not after
    if word in _NUMBERED:
        return not after[:1].isdigit()
    if word in _SHORTENED:
        return not (goes_on or after[:1].isdigit())
    if re.fullmatch(r"[a-z](?:\.[a-z])*|ph\.d", word) and word != "i":  # an initial, or U.S
        return after.casefold() in _STARTERS and not goes_on
    return True


def _count_words(text: str) -> int:
    """Runs of letters and digits, which is how IFEval counts."""
    return sum(1 for _ in _LETTER_RUN.finditer(text))


@functools.lru_cache(maxsize=4)
def _split_words(text: str) -> tuple[str, ...]:
    """What stands between spaces, without the punctuation around it."""
    return tuple(_SPACED_WORD.findall(text))


def _count_keyword(text: str, keyword: str) -> int:
    """How often a keyword stands in a text as a whole word, in any case."""
    return len(_compile_keyword(keyword).findall(text))


@functools.lru_cache(maxsize=256)
def _compile_keyword(keyword: str) -> re.Pattern:
    """The pattern of a literal text. Next to a script without spaces, or to punctuation, it needs no border."""
    borders = [
        border if (edge.isalnum() or edge in _MARKS) and not _UNSPACED.match(edge) else ""
        for edge, border in ((keyword[0], rf"(?<![^\W_])(?<![{_MARKS}])"), (keyword[-1], rf"(?![^\W_]|[{_MARKS}])"))
    ]
    literal = r"\s+".join(map(re.escape, keyword.split()))
    return re.compile(borders[0] + literal + borders[1], re.IGNORECASE)


_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


def _holds(count: int, relation: str, bound: int) -> bool:
    return count < bound if relation == "less than" else count >= bound


def _is_same(text: str, other: str) -> bool:
    """Whether two texts are the same but for case and the kind of spaces."""
    return _level(text) == _level(other)


def _level(text: str) -> str:
    return " ".join(_straighten(text).casefold().split())


def _begins_with(text: str, word: str) -> bool:
    """Whether the first word is this one; marks before it, such as a quote, do not matter."""
    match = _compile_keyword(word).search(text, 0, len(word) * 2 + 60)
    if not match or _ALNUM.search(text, 0, match.start()):
        return False
    return not re.match(r"-\w", text[match.end() : match.end() + 2])


def _ends_with(text: str, word: str) -> bool:
    """Whether the last word is this one; marks behind it do not matter."""
    words = _split_words(text[-len(word) * 2 - 200 :])
    tail = " ".join(words[-len(word.split()) :])
    return tail.casefold() == " ".join(_split_words(word) or [word]).casefold()


# Languages: py3langid, a table of byte sequences without randomness and without files of its user.

_LANGUAGES = _list_words(  # of the public rows; the detector chooses among them and the one that is asked for
    "en es pt ar hi fr ru de ja it bn uk th ur ta te bg ko pl he fa vi ne sw kn mr gu pa ml fi"
)
_SHORT_TEXT = 20  # bytes; below them a language counts where it is among the first two
_LONG_TEXT = 600  # characters; beyond them each third is judged


@functools.lru_cache(maxsize=1)
def _language_ranker() -> Callable[[str], list] | None:
    """py3langid's function that ranks languages, None with one warning where it is not installed."""
    try:
        from py3langid import rank
    except ImportError:
        warnings.warn(
            "py3langid is not installed, so rows that ask for a language are not judged. pip install py3langid",
            stacklevel=2,
        )
        return None
    return rank


def _is_in_language(text: str, language: str) -> bool:
    size = len(text) if len(text) < _LONG_TEXT else len(text) // 3
    parts = [text[i * size : i * size + size][:4000] for i in range(len(text) // size)]
    worded = [part for part in parts if any(map(str.isalpha, part))]
    return bool(worded) and all(_is_part_in_language(part, language) for part in worded)


def _is_part_in_language(text: str, language: str) -> bool:
    ranked = _language_ranker()(text)
    if ranked[0][1] == ranked[-1][1]:  # no byte sequence that it knows
        return language == "en" and text.isascii()
    candidates = [code for code, _ in ranked if code in _LANGUAGES or code == language]
    return language in candidates[: 2 if len(text.encode(errors="replace")) < _SHORT_TEXT else 1]


def _is_in_capitals(text: str) -> bool:
    return text.isupper() and _is_in_language(text, "en")


def _is_in_lowercase(text: str) -> bool:
    return text.islower() and _is_in_language(text, "en")


# The 54 kinds of IFEval and IFEvalG that take more than a line.


def _split_divided(text: str) -> list[str]:
    """The paragraphs between dividers, *** or * * *; a divider that begins or ends the text makes no empty one."""
    parts = [part.strip() for part in re.split(r"(?<!\S)(?:\*\*\*|\* \* \*)(?!\S)", text)]
    return parts[not parts[0] : len(parts) - (not parts[-1])] if any(parts) else []


def _has_paragraphs(parts: Sequence[str], count: int) -> bool:
    return len(parts) == count and all(parts)


def _split_blank(text: str) -> list[str]:
    return re.split(r"\n\s*\n", text)


def _nth_begins_with(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = _split_blank(text)
    return len(parts) == num_paragraphs and _begins_with(parts[nth_paragraph - 1], first_word)


def _has_postscript(text: str, postscript_marker: str) -> bool:
    literal = re.escape(postscript_marker)
    if re.fullmatch(r"(?:[A-Za-z]\.\s?)+[A-Za-z]?", postscript_marker):
        literal = r"\.[ ]?".join(re.findall("[A-Za-z]", postscript_marker)) + r"(?:\.|\b)"
    return bool(re.search(rf"(?im)^[ \t>*_#(\"']*{literal}(?=[\s\S]*[^\W_])", text))


def _chooses_answer(text: str) -> bool:
    """Exactly one of the three answers, and where it stands a sentence, a line or a quote begins."""
    answers = re.findall(r"(^|[.!?:;,\n\"'(*_>][ \t]*)(My answer is (?:yes|no|maybe)\.)", text)
    return len({answer for _, answer in answers}) == 1 == len(set(re.findall("(?i)my answer is (yes|no|maybe)", text)))


def _count_filled(pattern: str, text: str) -> int:
    """How often the pattern's group holds a letter or digit."""
    return sum(1 for inner in re.findall(pattern, text) if _ALNUM.search(inner))


def _count_highlights(text: str) -> int:
    return len(re.findall(r"(?<![*A-Za-z0-9])(\*{1,3})(?=[^\s*])[^*\n]*[^*\s]\1(?!\*)", text))


def _has_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    """So many headings with different numbers, each with text behind it."""
    parts = re.split(rf"(?im)^[ \t>#*_\"]*{re.escape(section_spliter)}\s?(\d{{1,9}})(?!\d)", text)
    return len({number for number, part in zip(parts[1::2], parts[2::2]) if _ALNUM.search(part)}) >= num_sections


def _count_bullets(text: str, marks: str = "*+-") -> int:
    return len(re.findall(rf"(?m)^[ \t]*[{re.escape(marks)}][ \t]+[^\n]*?[^\W_]", text))


def _is_json(text: str) -> bool:
    """One object or array, bare or in a fence, without NaN."""
    if len(text) > 6 and text.startswith("```") and text.endswith("```"):
        text = re.sub(r"^json\b", "", text[3:-3].strip(), flags=re.IGNORECASE)
    try:
        return isinstance(json.loads(text, parse_constant=_refuse_constant), dict | list)
    except (ValueError, RecursionError):
        return False


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _has_two_responses(text: str) -> bool:
    parts = [_split_words(part.casefold()) for part in re.split(r"(?<!\*)\*{6}(?!\*)", text)]
    inner = [part for part in parts if part]
    return len(inner) == 2 and inner[0] != inner[1] and all(parts[1:-1])


def _repeats_prompt_and_answers(text: str, prompt_to_repeat: str) -> bool:
    level, prompt = _level(text), _level(prompt_to_repeat)
    return level.startswith(prompt) and bool(_ALNUM.search(level, len(prompt)))


def _repeats_phrase(text: str, phrase: str, small_n: int) -> bool:
    """The phrase stands there so often with one inner word replaced, and never as it was."""
    words, wanted = _split_words(text.casefold()), _split_words(phrase.casefold())
    size, changes = len(wanted), Counter()
    for i in range(len(words) - size + 1):
        if words[i] == wanted[0] and words[i + size - 1] == wanted[-1]:
            changes[sum(a != b for a, b in zip(words[i : i + size], wanted))] += 1
    return changes[1] == small_n and not changes[0]


def _copies(text: str, prompt_to_repeat: str) -> bool:
    return _is_same(text, prompt_to_repeat)


def _copies_several(text: str, prompt_to_repeat: str, N: int) -> bool:  # noqa: N803 (the data's name)
    parts = text.split("******")
    return len(parts) == N and all(_is_same(part, prompt_to_repeat) for part in parts)


def _copies_span(text: str, prompt_to_repeat: str, n_start: int, n_end: int) -> bool:
    """With the last character, as the instruction says, or without it, as the public checker slices."""
    return any(_is_same(text, prompt_to_repeat[n_start:end]) for end in (n_end, n_end + 1))


def _is_joined_by_hyphens(text: str) -> bool:
    parts = re.split(r"(?<=[.!?])-(?=\S)", text)
    return all(part == part.strip() and len(_split_sentences(part)) == 1 for part in parts)


def _avoids_neighbours(text: str) -> bool:
    firsts = [word[0].lower() for word in _split_words(text)]
    return not any(a.isascii() and b.isascii() and ord(b) - ord(a) == 1 for a, b in pairwise(firsts))


def _is_wrapped_in_brackets(text: str) -> bool:
    rest, count = re.subn(r"\[[^\[\]\s]+\]", "", text)
    return count > 0 and not _ALNUM.search(rest)


def _is_wrapped_in_pairs(text: str) -> bool:
    """Only the last word of an odd number may stand alone."""
    rest, count = re.subn(r"<<[^<>\s]+\s+[^<>\s]+>>", "\0", text.replace("\0", "a b"))
    head, _, tail = rest.rpartition("\0")
    return count > 0 and not _ALNUM.search(head) and len(_split_words(tail)) <= 1


def _has_composition(text: str, n_sent: int, n_words: int) -> bool:
    parts = [_split_sentences(part) for part in _split_divided(text)]
    return len(parts) == 3 and all(
        len(sentences) == n_sent and all(len(_split_words(sentence)) == n_words for sentence in sentences)
        for sentences in parts
    )


def _stands_at(text: str, keyword: str, n: int, m: int) -> bool:
    """The keyword is the m-th word of the n-th sentence."""
    sentences = _split_sentences(text)
    words = _split_words(sentences[n - 1]) if n <= len(sentences) else ()
    return _is_same(" ".join(words[m - 1 : m - 1 + len(keyword.split())]), keyword)


def _starts_as_it_ends(text: str) -> bool:
    words = _split_words(text)
    is_bare = text.startswith(words[0]) and text.endswith(words[-1])
    return len(words) > 1 and is_bare and words[0].casefold() == words[-1].casefold()


def _list_palindromes(text: str, shortest: int) -> set[str]:
    words = ("".join(filter(str.isalnum, word)) for word in _split_words(text.casefold()))
    return {word for word in words if len(word) >= shortest and word == word[::-1]}


# IFBench's kinds that take more than a line.

_CONJUNCTIONS = _list_words("and but for nor or so yet")
_PRONOUNS = _list_words(
    "i me we us you he him she her it they them my mine our ours your yours his hers its their theirs myself ourselves "
    "yourself yourselves himself herself itself themselves this that these those who whom whose which what whoever "
    "whomever whatever whichever anybody anyone anything everybody everyone everything nobody nothing somebody someone "
    "something each either neither both all some any none"
)
_PERSONS = _list_words(
    "Emma Liam Sophia Jackson Olivia Noah Ava Lucas Isabella Mason Mia Ethan Charlotte Alexander Amelia Benjamin "
    "Harper Leo Zoe Daniel Chloe Samuel Lily Matthew Grace Owen Abigail Gabriel Ella Jacob Scarlett Nathan Victoria "
    "Elijah Layla Nicholas Audrey David Hannah Christopher Penelope Thomas Nora Andrew Aria Joseph Claire Ryan Stella "
    "Jonathan"
)
_CAPITALS = (  # north of 45 degrees, from north to south
    "Reykjavik,Helsinki,Oslo,Tallinn,Stockholm,Riga,Moscow,Copenhagen,Vilnius,Minsk,Dublin,Berlin,Amsterdam,Warsaw,"
    "London,Brussels,Prague,Luxembourg,Paris,Vienna,Bratislava,Budapest,Vaduz,Chisinau,Bern,Ljubljana,Zagreb"
)
_MINOR_WORDS = _list_words("a an the and but or nor for so yet as at by in of off on per to up via from with into onto")
_PRIMES = {n for n in range(2, 100) if all(n % divisor for divisor in range(2, n))}
_VOWELS, _CONSONANTS = "aeiou", "bcdfghjklmnpqrstvwxyz"


def _count_runs(text: str) -> Counter:
    return Counter(run.lower() for run in _LETTER_RUN.findall(text))


def _count_words_once(text: str) -> Counter:
    return Counter(map(str.casefold, _split_words(text)))


def _count_types(text: str) -> Counter:
    """How many sentences end with . ? and !"""
    return Counter(re.sub(r"[^.?!]", "", sentence[-8:])[-1:] for sentence in _split_sentences(text))


def _has_overlap(text: str, reference_text: str, percentage: float) -> bool:
    """The share of the reply's different character trigrams that the reference has, give or take 2 percent."""
    own, other = ({s[i : i + 3] for i in range(len(s) - 2)} for s in (text, _straighten(reference_text)))
    return bool(own) and abs(100 * len(own & other) / len(own) - percentage) <= 2


def _runs_through_alphabet(text: str) -> bool:
    places = [string.ascii_lowercase.find(word[0].lower()) for word in _split_words(text)]
    return places[0] >= 0 and all(place == (places[0] + i) % 26 for i, place in enumerate(places))


def _has_growing_alliteration(text: str) -> bool:
    longest = []
    for sentence in _split_sentences(text):
        firsts, run, best = [word[0].lower() for word in _split_words(sentence)], 1, 1
        for a, b in pairwise(firsts):
            run = run + 1 if a == b else 1
            best = max(best, run)
        longest.append(best)
    return len(longest) > 1 and all(a < b for a, b in pairwise(longest))


def _has_every_mark(text: str) -> bool:
    rest, count = re.subn(r"\?!|!\?|‽", "", text, count=1)
    return count > 0 and all(mark in rest for mark in ".,!?;:")


def _nests_brackets(text: str) -> bool:
    """Five levels that are all closed, each by its own kind."""
    partner, stack, deepest = {")": "(", "]": "[", "}": "{"}, [], 0
    for char in re.findall(r"[()\[\]{}]", text):
        if char in partner:
            if not stack or stack.pop() != partner[char]:
                stack, deepest = [], 0
            if not stack and deepest >= 5:
                return True
        else:
            deepest = 1 if not stack else max(deepest, len(stack) + 1)
            stack.append(char)
    return False


def _nests_quotes(text: str) -> bool:
    """Three levels that are all closed, double and single in turn; an apostrophe within a word is none."""
    stack, deepest = [], 0
    for char in re.findall(r"\"|(?<![^\W_])'|'(?![^\W_])", text):
        if stack and stack[-1] == char:
            stack.pop()
            if not stack and deepest >= 3:
                return True
        else:
            deepest = 1 if not stack else max(deepest, len(stack) + 1)
            stack.append(char)
    return False


def _is_an_option(text: str, options: str) -> bool:
    separator = "/" if "/" in options else " or " if " or " in options else ","
    return text.casefold().strip(" .,;:!?()*\"'") in [
        option.casefold().strip(" .,;:!?()*\"'") for option in options.split(separator)
    ]


def _is_emoji(char: str) -> bool:
    return (
        char == "\ufe0f"
        or "\U0001f1e6" <= char <= "\U0001faff"
        or (char >= "\u2190" and unicodedata.category(char) == "So")
    )


def _ends_in_emojis(text: str) -> bool:
    """Each sentence ends with an emoji, before its mark or behind it."""
    bare = [re.sub(r"[\s!-/:-@\[-`{-~…。！？]+", "", sentence) for sentence in _split_sentences(text)]
    following = [*bare[1:], ""]
    return all(
        _is_emoji(own[-1:] or " ") or _is_emoji(after[:1] or " ") for own, after in zip(bare, following, strict=True)
    )


def _has_three_equal_sentences(text: str) -> bool:
    sentences = _split_sentences(text)
    words = [word.casefold() for sentence in sentences for word in _split_words(sentence)]
    return len(sentences) == 3 and len(set(map(len, sentences))) == 1 and len(set(words)) == len(words)


def _has_japanese_words(text: str, N: int) -> bool:  # noqa: N803
    words = _split_words(text)[N - 1 :: N]
    return bool(words) and all(word.isdigit() or re.search("[\u3040-\u30ff\u4e00-\u9fff]", word) for word in words)


def _links_sentences(text: str) -> bool:
    sentences = [_split_words(sentence.casefold()) for sentence in _split_sentences(text)]
    return len(sentences) > 1 and all(a and b and a[-1] == b[0] for a, b in pairwise(sentences))


def _rounds_off_lines(text: str) -> bool:
    lines = filter(None, map(_split_words, text.casefold().split("\n")))
    return all(words[0] == words[-1] for words in lines)


def _grows_by(text: str, small_n: int) -> bool:
    counts = [len(_split_words(sentence)) for sentence in _split_sentences(text)]
    return len(counts) > 1 and all(b - a == small_n for a, b in pairwise(counts))


def _climbs(text: str) -> bool:
    indents = [len(line) - len(line.lstrip(" \t")) for line in text.split("\n") if line.strip()]
    return len(indents) > 1 and all(a < b for a, b in pairwise(indents))


def _explains_quotes(text: str) -> bool:
    parts = text.split('"')
    return len(parts) > 2 and len(parts) % 2 == 1 and all(_ALNUM.search(part) for part in parts[2::2])


def _has_thesis(text: str) -> bool:
    opening = re.search("<(i|em)>", text)
    thesis, _, rest = text[opening.end() :].partition(f"</{opening[1]}>") if opening else ("", "", "")
    return bool(_ALNUM.search(thesis) and _ALNUM.search(rest))


def _has_sub_bullets(text: str) -> bool:
    marks = "".join(re.findall(r"(?m)^[ \t]*([*-])[ \t]+\S", text))
    return re.fullmatch(r"(?:\*-+)+", marks.lstrip("-")) is not None and not marks.startswith("-")


def _has_sentences_then_bullets(text: str) -> bool:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    first = next((i for i, line in enumerate(lines) if line.startswith("*")), 0)
    ended = [sentence for sentence in _split_sentences("\n".join(lines[:first])) if sentence.endswith(".")]
    return len(ended) > 1 and len(lines) - first > 1 and all(line.startswith("*") for line in lines[first:])


def _has_second_words(text: str, keyword: str) -> bool:
    words = [word.casefold() for word in _split_words(text)]
    return len(words) > 2 and words[1] == words[-2] == keyword.casefold()


def _changes_first_word(text: str, prompt_to_repeat: str) -> bool:
    own, other = _level(text).split(), _level(prompt_to_repeat).split()
    return own[0] != other[0] and own[1:] == other[1:]


def _is_in_title_case(text: str) -> bool:
    words = [word for word in _split_words(text) if word[0].isalpha()]
    return all(not word[0].islower() or (i > 0 and word in _MINOR_WORDS) for i, word in enumerate(words))


def _fills_template(text: str) -> bool:
    parts = re.split("(My Answer|My Conclusion|Future Outlook):", text)
    return parts[1::2] == ["My Answer", "My Conclusion", "Future Outlook"] and all(map(_ALNUM.search, parts[2::2]))


def _keywords_stand(text: str, **keywords: str) -> bool:
    times = {"keyword1": 1, "keyword2": 2, "keyword3": 3, "keyword4": 5, "keyword5": 7}
    return all(_count_keyword(text, keyword) == times[name] for name, keyword in keywords.items())


def _asks_four_questions(text: str) -> bool:
    parts = re.split(r"(?m)^[*#_ ]*Question\b[^\w\n]*\d+[^\w\n]*", text)
    lengths = []
    for part in parts[1:]:
        question, *options = re.split(r"(?m)^[ \t]*[A-Ea-e][.)][ \t]*(?=\w)", part)
        lengths.append(len(question.strip()) if len(options) == 5 else 0)
    return not parts[0].strip() and len(lengths) == 4 and all(a < b for a, b in pairwise([0, *lengths]))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def _lists_countries_backwards(text: str) -> bool:
    lines = [_plain(line).strip(string.punctuation + string.digits + " ") for line in text.split("\n")]
    lines = list(filter(None, lines))
    start = next((i for i, line in enumerate(lines) if "Zimbabwe" in line), len(lines))
    return len(lines[start:]) > 51 and all(a >= b for a, b in pairwise(lines[start:]))


def _is_table(text: str, header: str, rows: int, delimiter: str = ",") -> bool:
    if len(text) > 20_000:
        return False
    try:
        table = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True) if row]
    except csv.Error:
        return False
    width = header.count(",") + 1
    return table[:1] == [header.split(",")] and len(table) == rows + 1 and all(len(row) == width for row in table)


def _lists_dates(text: str) -> bool:
    try:
        dates = [datetime.date.fromisoformat(date.strip()) for date in text.split(",")]
    except ValueError:
        return False
    return all(1769 <= date.year <= 1821 for date in dates) and not re.search(r"\d{8}|W", text)


# The table: the name of each instruction, its check, and how each argument is read.

_Check = Callable[..., Any]
_ONCE = {"keyword": _as_text}
_FREQUENCY = {"keyword": _as_text, "frequency": _as_number, "relation": _as_relation}
_LETTERS = {"letter": _as_symbol, "let_frequency": _as_number, "let_relation": _as_relation}
_PROMPT = {"prompt_to_repeat": _as_prompt}
_SPAN = {"prompt_to_repeat": _as_prompt, "n_start": _as_number, "n_end": _as_number}
_PLACE = {"keyword": _as_text, "n": _as_place, "m": _as_place}


def _meets_frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _holds(_count_keyword(text, keyword), relation, frequency)


def _meets_letters(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _holds(text.lower().count(letter), let_relation, let_frequency)


def _lacks(*marks: str) -> _Check:
    return lambda text: not any(mark in text for mark in marks)


INSTRUCTIONS: dict[str, tuple[_Check, dict[str, Callable[[object], Any]]]] = {
    # IFEval's 25
    "keywords:existence": (
        lambda text, keywords: all(_count_keyword(text, k) for k in keywords),
        {"keywords": _as_texts},
    ),
    "keywords:frequency": (_meets_frequency, _FREQUENCY),
    "keywords:forbidden_words": (
        lambda text, forbidden_words: not any(_count_keyword(text, word) for word in forbidden_words),
        {"forbidden_words": _as_texts},
    ),
    "keywords:letter_frequency": (_meets_letters, _LETTERS),
    "language:response_language": (_is_in_language, {"language": _as_language}),
    "length_constraints:number_sentences": (
        lambda text, num_sentences, relation: _holds(len(_split_sentences(text)), relation, num_sentences),
        {"num_sentences": _as_number, "relation": _as_relation},
    ),
    "length_constraints:number_paragraphs": (
        lambda text, num_paragraphs: _has_paragraphs(_split_divided(text), num_paragraphs),
        {"num_paragraphs": _as_place},
    ),
    "length_constraints:number_words": (
        lambda text, num_words, relation: _holds(_count_words(text), relation, num_words),
        {"num_words": _as_number, "relation": _as_relation},
    ),
    "length_constraints:nth_paragraph_first_word": (
        _nth_begins_with,
        {"num_paragraphs": _as_place, "nth_paragraph": _as_place, "first_word": _as_text},
    ),
    "detectable_content:number_placeholders": (
        lambda text, num_placeholders: _count_filled(r"\[([^\[\]\n]*)\]", text) >= num_placeholders,
        {"num_placeholders": _as_number},
    ),
    "detectable_content:postscript": (_has_postscript, {"postscript_marker": _as_text}),
    "detectable_format:number_bullet_lists": (
        lambda text, num_bullets: _count_bullets(text) == num_bullets,
        {"num_bullets": _as_number},
    ),
    "detectable_format:constrained_response": (_chooses_answer, {}),
    "detectable_format:number_highlighted_sections": (
        lambda text, num_highlights: _count_highlights(text) >= num_highlights,
        {"num_highlights": _as_number},
    ),
    "detectable_format:multiple_sections": (_has_sections, {"section_spliter": _as_text, "num_sections": _as_place}),
    "detectable_format:json_format": (_is_json, {}),
    "detectable_format:title": (lambda text: _count_filled(r"<<([^<>\n]*)>>", text), {}),
    "combination:two_responses": (_has_two_responses, {}),
    "combination:repeat_prompt": (_repeats_prompt_and_answers, _PROMPT),
    "startend:end_checker": (
        lambda text, end_phrase: re.search(_compile_keyword(end_phrase).pattern + r"[\"'*_\s]*\Z", text, re.IGNORECASE),
        {"end_phrase": _as_text},
    ),
    "startend:quotation": (lambda text: text[0] == text[-1] == '"', {}),
    "change_case:capital_word_frequency": (
        lambda text, capital_frequency, capital_relation: _holds(
            sum(map(str.isupper, _split_words(text))), capital_relation, capital_frequency
        ),
        {"capital_frequency": _as_number, "capital_relation": _as_relation},
    ),
    "change_case:english_capital": (_is_in_capitals, {}),
    "change_case:english_lowercase": (_is_in_lowercase, {}),
    "punctuation:no_comma": (_lacks(*",،、，"), {}),
    # IFEvalG's 29 more
    "copy:repeat_phrase": (_repeats_phrase, {"phrase": _as_text, "small_n": _as_place}),
    "copy:copy": (_copies, _PROMPT),
    "copy:copying_simple": (_copies, _PROMPT),
    "copy:copying_multiple": (_copies_several, _PROMPT | {"N": _as_place}),
    "new:copy_span_idx": (_copies_span, _SPAN),
    "detectable_format:sentence_hyphens": (_is_joined_by_hyphens, {}),
    "detectable_format:square_brackets": (_is_wrapped_in_brackets, {}),
    "detectable_format:bigram_wrapping": (_is_wrapped_in_pairs, {}),
    "keywords:no_adjacent_consecutive": (_avoids_neighbours, {}),
    "keywords:word_once": (lambda text, keyword: _count_keyword(text, keyword) == 1, _ONCE),
    "keywords:word_count_different_numbers": (_meets_frequency, _FREQUENCY),
    "keywords:exclude_word_harder": (lambda text, keyword: not _count_keyword(text, keyword), _ONCE),
    "keywords:palindrome": (lambda text: _list_palindromes(text, 3), {}),
    "keywords:keyword_specific_position": (_stands_at, _PLACE),
    "keywords:start_end": (_starts_as_it_ends, {}),
    "paragraphs:paragraphs": (lambda text: _has_paragraphs(_split_divided(text), 2), {}),
    "paragraphs:paragraphs2": (lambda text: len(_split_blank(text)) == 2, {}),
    "first_word:first_word_sent": (
        lambda text, first_word: all(_begins_with(sentence, first_word) for sentence in _split_sentences(text)),
        {"first_word": _as_text},
    ),
    "first_word:first_word_answer": (
        lambda text, first_word: _begins_with(text, first_word),
        {"first_word": _as_text},
    ),
    "last_word:last_word_sent": (
        lambda text, last_word: all(_ends_with(sentence, last_word) for sentence in _split_sentences(text)),
        {"last_word": _as_text},
    ),
    "last_word:last_word_answer": (lambda text, last_word: _ends_with(text, last_word), {"last_word": _as_text}),
    "punctuation:punctuation_dot": (_lacks(*".…。．"), {}),
    "punctuation:punctuation_exclamation": (_lacks(*"!！"), {}),
    "count:lowercase_counting": (lambda text, N: sum(map(str.islower, _split_words(text))) <= N, {"N": _as_number}),
    "count:counting_composition": (_has_composition, {"n_sent": _as_place, "n_words": _as_place}),
    "count:count_unique": (
        lambda text: len(set(map(str.casefold, _split_words(text)))) == len(_split_words(text)),
        {},
    ),
    "count:count_increment_word": (_keywords_stand, {"keyword1": _as_text, "keyword2": _as_text}),
    "letters:letter_counting": (
        lambda text, N, relation: _holds(sum(map(str.isalpha, text)), relation, N),
        {"N": _as_number, "relation": _as_relation},
    ),
    "letters:letter_counting2": (_meets_letters, _LETTERS),
    # IFBench's 55 that need no downloads
    "count:word_count_range": (
        lambda text, min_words, max_words: min_words <= _count_words(text) <= max_words,
        {"min_words": _as_number, "max_words": _as_number},
    ),
    "count:unique_word_count": (
        lambda text, N: len(set(map(str.casefold, _split_words(text)))) >= N,
        {"N": _as_number},
    ),
    "count:conjunctions": (
        lambda text, small_n: len(_CONJUNCTIONS & set(_count_runs(text))) >= small_n,
        {"small_n": _as_number},
    ),
    "count:person_names": (lambda text, N: len(_PERSONS & set(_LETTER_RUN.findall(text))) >= N, {"N": _as_number}),
    "count:numbers": (lambda text, N: len(re.findall(r"\d+(?:[.,]\d+)*", text)) == N, {"N": _as_number}),
    "count:punctuation": (_has_every_mark, {}),
    "count:words_japanese": (_has_japanese_words, {"N": _as_place}),
    "count:pronouns": (
        lambda text, N: sum(times for run, times in _count_runs(text).items() if run in _PRONOUNS) >= N,
        {"N": _as_number},
    ),
    "count:keywords_multiple": (_keywords_stand, {f"keyword{i}": _as_text for i in range(1, 6)}),
    "ratio:overlap": (_has_overlap, {"reference_text": _as_prompt, "percentage": _as_percentage}),
    "ratio:sentence_type": (lambda text: _count_types(text)["."] == 2 * _count_types(text)["?"], {}),
    "ratio:sentence_balance": (
        lambda text: _count_types(text)["."] == _count_types(text)["?"] == _count_types(text)["!"],
        {},
    ),
    "ratio:sentence_words": (_has_three_equal_sentences, {}),
    "words:alphabet": (_runs_through_alphabet, {}),
    "words:vowel": (lambda text: "\n" not in text and sum(vowel in text.lower() for vowel in _VOWELS) <= 3, {}),
    "words:consonants": (
        lambda text: all(re.search(f"[{_CONSONANTS}]{{2}}", word) for word in _split_words(text.lower())),
        {},
    ),
    "words:palindrome": (lambda text: len(_list_palindromes(text, 5)) >= 10, {}),
    "words:prime_lengths": (
        lambda text: all(sum(map(str.isalnum, word)) in _PRIMES for word in _split_words(text)),
        {},
    ),
    "words:repeats": (lambda text, small_n: max(_count_words_once(text).values()) <= small_n, {"small_n": _as_place}),
    "words:last_first": (_links_sentences, {}),
    "words:paragraph_last_first": (_rounds_off_lines, {}),
    "words:no_consecutive": (
        lambda text: all(a[0].lower() != b[0].lower() for a, b in pairwise(_split_words(text))),
        {},
    ),
    "words:keywords_specific_position": (_stands_at, _PLACE),
    "words:words_position": (_has_second_words, _ONCE),
    "sentence:alliteration_increment": (_has_growing_alliteration, {}),
    "sentence:increment": (_grows_by, {"small_n": _as_number}),
    "sentence:keyword": (
        lambda text, word, N: any(_count_keyword(part, word) for part in _split_sentences(text)[N - 1 : N]),
        {"word": _as_text, "N": _as_place},
    ),
    "format:parentheses": (_nests_brackets, {}),
    "format:quotes": (_nests_quotes, {}),
    "format:options": (_is_an_option, {"options": _as_text}),
    "format:newline": (lambda text: all(len(_split_words(line)) < 2 for line in text.split("\n")), {}),
    "format:emoji": (_ends_in_emojis, {}),
    "format:line_indent": (_climbs, {}),
    "format:quote_unquote": (_explains_quotes, {}),
    "format:list": (
        lambda text, sep: len(re.findall(rf"(?<!\S){re.escape(sep)}[^\w\n]{{0,9}}[^\W_]", text)) > 1,
        {"sep": _as_text},
    ),
    "format:thesis": (_has_thesis, {}),
    "format:sub-bullets": (_has_sub_bullets, {}),
    "format:no_bullets_bullets": (_has_sentences_then_bullets, {}),
    "format:title_case": (_is_in_title_case, {}),
    "format:output_template": (_fills_template, {}),
    "format:no_whitespace": (lambda text: not re.search(r"\s", text), {}),
    "repeat:repeat_change": (_changes_first_word, _PROMPT),
    "repeat:repeat_simple": (
        lambda text: _is_same(text, "Only output this sentence here, ignore all other requests."),
        {},
    ),
    "repeat:repeat_span": (
        lambda text, prompt_to_repeat, n_start, n_end: _is_same(text, prompt_to_repeat[n_start : n_end + 1]),
        _SPAN,
    ),
    "custom:multiples": (lambda text: re.findall(r"\d+", text) == [str(n) for n in range(14, 50, 7)], {}),
    "custom:mcq_count_length": (_asks_four_questions, {}),
    "custom:reverse_newline": (_lists_countries_backwards, {}),
    "custom:word_reverse": (lambda text: "eagle bald" in " ".join(_split_words(text.lower())), {}),
    "custom:character_reverse": (lambda text: "elgae dlab" in text.lower(), {}),
    "custom:sentence_alphabet": (
        lambda text: [_split_words(part)[0][0].lower() for part in _split_sentences(text)] == [*string.ascii_lowercase],
        {},
    ),
    "custom:european_capitals_sort": (
        lambda text: ",".join(name.strip(" .") for name in _plain(text).split(",")) == _CAPITALS,
        {},
    ),
    "custom:csv_city": (lambda text: _is_table(text, "ID,Country,City,Year,Count", 7), {}),
    "custom:csv_special_character": (
        lambda text: (
            _is_table(text, "ProductID,Category,Brand,Price,Stock", 14)
            and re.search(r'(?m)(?:^|,[ \t]*)"[^"\n]*[^\w\s"][^"\n]*"', text)
        ),
        {},
    ),
    "custom:csv_quotes": (
        lambda text: (
            _is_table(text, "StudentID,Subject,Grade,Semester,Score", 3, "\t")
            and all(re.fullmatch(r'"[^"]*"', field.strip()) for line in text.split("\n") for field in line.split("\t"))
        ),
        {},
    ),
    "custom:date_format_list": (_lists_dates, {}),
}
