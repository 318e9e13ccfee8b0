r"""choice decides whether a reply chooses the gold option, or exactly the gold options: 1.0 if it does, 0.0 if not,
None where the gold names no option.

Paste this file into a notebook cell as it is. It needs only the standard library.

The choice is read after the last </think>: the last box or <answer>, else ####, else the last sentence such as "The
answer is C", "I choose C", "option C" or "C is correct", else a reply that is nothing but the choice. It may be a
letter, "(C)", "C. the text", or the text of an option, which needs the `options` column. A capital that labels an
option means that option. Case never decides: "b" and "B" are one letter, and an option is recognised by its text in any
case; but two options whose texts differ by case alone ("M" and "m") must be written exactly. A choice of several
options earns 0 ("A and C", a box for each), and so does an option that the reply speaks against ("I rule out option C",
"C is wrong").

A gold may be several options: ["A", "C"], "A, C", "A and C", or "AC". Then the reply must choose exactly these, in any
order: in one box or in boxes side by side, in <answer>, behind ####, in a last sentence such as "The answers are A and
C", or alone. A gold that is an option's letter or text is that option, also where "AC" is the text. Else "AC" means A
and C if its capitals stand in the order of the alphabet and label options; "CA" is no gold.
"""

import re
from collections.abc import Mapping, Sequence

LONGEST_CHOICE = 20_000  # characters from the end that are read where there is no box

_CHOICE_BOX = re.compile(r"\\(?:boxed|fbox)\s?\{((?:[^{}]|\{[^{}]*\})*)(\})?")
_STATED = re.compile(
    r"(?i)(?:\b(?:(answer|choose|choosing|pick|select|go with|(?:it|this|that) (?:must|has to|should|can only) be)"
    r"|(choice|option)|therefore|thus|hence|so)\b[ \t*_]{0,4}|(答案)[是为為选應应该該]*)"
    r"((?:is|:|=|would be|should be|must be|has to be|can only be)[\s*_:]{0,8})?"
    r"(?:(?:option|choice|answer|letter)\b[ \t*_:]{0,4})?,?[ ]?(?=([^\n]{1,200}))"
)
_PRAISED = re.compile(  # C is the correct answer
    r"(?:^|[.,;:!?(\n]|\b(?:[Ss]o|[Tt]hus|[Hh]ence|[Tt]herefore|[Bb]ecause|[Ss]ince|[Cc]learly|think|believe|say)\b)"
    r"\s{0,8}"
    r"(?:(?:[Tt]he )?(?:[Oo]ption|[Cc]hoice|[Aa]nswer|[Ll]etter) )?[*_$]*\(?([A-Z])\)?[*_$]* (?:is|must be|has to be) "
    r"(?:\w+ly )?(?:the )?(?:only )?(?:correct|right|best|answer)\b(?! ?\?| (?:if|or)\b)"
)
_MARKED = re.compile(r"####[ \t]*([^\n]+)")
_WRAP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textit)\s?\{([^{}]*)\}")
_LETTER = re.compile(r"\(?([A-Za-z])(?:\)[.:]?|[.:]|$)(.*)", re.DOTALL)
_SENTENCE = re.compile(  # C because ..., (C), since ...; "a" and "I" are words of English
    r"\(?([A-Z])\)?(?:[.,;:!]*[*_]{0,3}[.,;:!]*\s*$|[.,;:!]*\s*[,;:.*_(–—-]*\s*"
    r"(?:because|since|as|for|so|which|where|it|this|that|the|given|due|by|and (?:not|no)|not|rather|instead|here)\b)"
)
_CHOICE_UNSURE = re.compile(
    r"(?i)\b(?:or|either|maybe|perhaps|possibly|alternatively)\b|^[\s$,;/&.*]*(?:and)?[\s$,;/&.*]*$"
)
_CHOICE_DENIED = re.compile(r"(?i)(?:\b(?:not|never|neither|nor|cannot)|n['’]t)(?: be)?[\s:$*]*$")
_EXCLUDED = re.compile(  # what stands before an option that a reply speaks against
    r"(?i)(?:\b(?:unlike|except|besides|than|instead of|without|rul(?:e|es|ed|ing)(?: out)?|reject\w*|exclud\w*"
    r"|eliminat\w*|discard\w*|dismiss\w*)|\b(?:wrong|incorrect|false|worst|unlikely|impossible|invalid|bad"
    r"|least[ -]\w+)(?: (?:answer|option|choice|one)s?(?: (?:is|are|was|were|would be))?)?)(?: the)?[\s:$*(]*$"
    r"|(?:(?:\b(?:not|never)|n['’]t) (?:think|believe|say|sure|certain|claim|agree|true)"
    r"|\b(?:doubt|deny|unless|whether|if|neither))\b[^.,;:!?\n]*$"
)
_RETRACTED = re.compile(  # what stands behind such an option
    r"(?i)[\s$*_).,]*(?:(?:which |it |this |that )?(?:(?:is|are|was|were|seems?|looks?"
    r"|(?:can|must|may|might|could|would) be)"
    r" (?:\w+ly )?(?:wrong|incorrect|false|unlikely|impossible|mistaken|ruled out|eliminated|excluded|rejected"
    r"|not (?:right|correct|true|the|it|possible|an))\b|cannot\b|(?:ca|is|was|could|would|do|does)n['’]t\b))"
)
_BESIDE = re.compile(
    r"[\s$*_).]*(?:,?\s*\b(?:or|and)\b|[/&,])[\s$*_(]*(?:(?:maybe|perhaps|possibly|else|option|choice) )*\(?[A-Z]\b"
)
_BESIDE_BEFORE = re.compile(
    r"\b[A-Z]\)?[\s$*_]*(?:\b(?:or|and)\b|[/&])[\s$*_(]*(?:(?:maybe|perhaps|possibly|option|choice) )*$"
)
# What may stand before a mere "option C" in its clause.
_CHOOSING = re.compile(
    r"(?i)\W*(?:(?:so|thus|hence|therefore|then|and|it|that|this|is|be|must|should|has|to|the|my|our|correct|right|best"
    r"|final|chosen|i|we|would|will|ll|s|d|say|think|believe|am|sure|of|for|go|going|went|with|answer|choice|prefer"
    r"|favou?r"
    r"|choose|definitely|clearly|probably|likely|most|guess|take|opt|need|want)\W+)*"
)
_SEVERAL = re.compile(  # The answers are A and C
    r"(?i)(?:\b(?:answers?|choices?|options?|choose|pick|select)\b|答案)[ \t*_]{0,4}"
    r"(?:(?:is|are|:|=|would be|must be|是|为|為)[\s*_:]{0,8})?(?=((?:[^\n]|\n(?!\n)){1,300}))"
)
_BETWEEN = re.compile(r"(?i)\s*(?:,?\s*\band\b|[,;、/&+\n])[-\s•]*")  # options that stand side by side
_BESIDE_BOX = re.compile(r"(?:[\s$*_,;&]|\band\b)*")
_WIDE = str.maketrans("。（）：，", ".():,")


def choice_reward(
    completions: Sequence,
    answer: Sequence,
    options: Sequence | None = None,
    prompt_opened_think: bool | Sequence[bool] = False,
    **kwargs,
) -> list[float | None]:
    r"""1.0 for the gold option or options, 0.0 for others or none, None where the gold is not among the options.

    Args:
        completions: texts or message lists; of several turns the last one of the assistant is judged. TRL's
            `reasoning_content` counts as thinking that is closed.
        answer: for each completion a letter ("C", "(C)"), the text of an option, or several: a list, "A, C" or "AC".
        options: for each completion its option texts in the order A, B, C, or a mapping from letter to text; without
            it only letters count.
        prompt_opened_think: whether the chat template put <think> into the prompt, so that a completion without
            </think> is unfinished and earns 0. A bool, or a column of the dataset.
        kwargs: other columns, which are ignored.

    Returns:
        One reward for each completion.

    Raises:
        ValueError: the lengths differ.

    Example:
        >>> options = [["x", "y"], ["Rome", "Paris"]]
        >>> choice_reward([r"\boxed{B}", r"\boxed{\text{Paris}}"], ["(b)", "B"], options)
        [1.0, 1.0]
        >>> choice_reward(["The answers are C and A.", r"\boxed{A}"], ["AC", "AC"])
        [1.0, 0.0]
    """
    listed = [None] * len(answer) if options is None else options
    if not len(completions) == len(answer) == len(listed):
        raise ValueError(
            f"choice_reward got {len(completions)} completions, {len(answer)} answers and "
            f"{len(listed)} option lists; each completion needs its own. Pass the dataset's "
            "columns repeated once per completion."
        )
    opened = prompt_opened_think
    flags = [opened] * len(answer) if isinstance(opened, bool) else opened
    rewards: list[float | None] = []
    for completion, gold, texts, flag in zip(completions, answer, listed, flags, strict=True):
        table = _make_table(texts)
        correct = _read_gold_options(gold, table)
        find = _find_choice if len(correct) == 1 else _find_choices
        chosen = find(_join_contents(completion), table, flag) if correct else None
        rewards.append(float(set(chosen or ()) == correct) if correct else None)
    return rewards


def final_answer(
    completion: str | list, options: Sequence | None = None, prompt_opened_think: bool = False, **kwargs
) -> str | None:
    r"""The letter of the option that a reply chooses, or the letters of several; None if none: a vote.

    Where several reward files are pasted, the name means the last one's reader; `choice_reward.final_answer` stays this
    one, and the rewards themselves call neither.

    >>> final_answer(r"\boxed{\text{Paris}}", options=["Rome", "Paris"]), final_answer(r"\boxed{C, A}")
    ('B', 'AC')
    """
    text, table = _join_contents(completion), _make_table(options)
    several = _find_choices(text, table, prompt_opened_think) or ()
    return _find_choice(text, table, prompt_opened_think) or ("".join(sorted(several)) if len(several) > 1 else None)


choice_reward.final_answer = final_answer


def _cut_thinking(text: str, opened: bool) -> str:
    """What stands behind the thinking, with boxes for <answer>; nothing where the thinking is not closed."""
    close = text.rfind("</think>")
    if text.rfind("<think>") > close or (opened and close < 0):
        return ""
    text = text[close + len("</think>") :] if close >= 0 else text
    text = text.translate(_WIDE)
    if "\\boxed" not in text and "\\fbox" not in text:
        text = text[-LONGEST_CHOICE:]
        text = re.sub(r"(?s)<answer>(.{0,300}?)</answer>", r"\\boxed{\1}", text)
    return text


def _find_choice(text: str, table: dict[str, str], opened: bool) -> str | None:
    """The option that the reply commits to; an unclosed thinking or box commits to nothing."""
    text = _cut_thinking(text, opened)
    if "\\boxed" in text or "\\fbox" in text:
        return _find_boxed_choice(text, table)
    text = re.sub(r"[*_]{2,3}", "", text)
    marked = _MARKED.findall(text)
    if marked and (option := _read_option(marked[-1], table)):
        return option
    stated = list(_STATED.finditer(text))
    for match in sorted([*stated, *_PRAISED.finditer(text)], key=lambda match: match.start(), reverse=True):
        before = text[max(0, match.start() - 80) : match.start()]
        if match.re is _PRAISED:
            if not (_CHOICE_DENIED.search(before) or _EXCLUDED.search(before)) and (not table or match[1] in table):
                return match[1]
            continue
        action, noun, chinese, verb, rest = match.groups()
        end = match.start(5)
        if _CHOICE_DENIED.search(before) or _CHOICE_DENIED.search(text[max(0, end - 20) : end]):
            return None
        mere = noun and not verb  # as in "I considered option C"
        if _EXCLUDED.search(before) or (mere and not _CHOOSING.fullmatch(re.split(r"[.,;:!?\n]", before)[-1])):
            continue
        if option := _read_option(rest, table) or _read_sentence(rest, table):
            return option
        if (action or chinese or verb) and re.match(r"\(?[A-Z]\b", rest):  # A or B
            return None
    plain = all(not any(match.groups()[:4]) for match in stated)  # no more than a "so"
    return _read_option(text[:500], table) if plain else None


def _find_boxed_choice(text: str, table: dict[str, str]) -> str | None:
    """The option in the last box, None where another one stands beside it (either A or C) or words deny it."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    box = _CHOICE_BOX.match(text, start)
    if not box or not box[2]:
        return None
    before, after = text[max(0, start - 80) : start], text[box.end() : box.end() + 80]
    if _CHOICE_DENIED.search(before) or _EXCLUDED.search(before) or _BESIDE_BEFORE.search(before):
        return None
    if _RETRACTED.match(after) or _BESIDE.match(after):
        return None
    option = _read_option(box[1], table)
    earlier = [m for m in _CHOICE_BOX.finditer(text[:start]) if m[2]]
    if earlier:
        other = _read_option(earlier[-1][1], table)
        if other and other != option and _CHOICE_UNSURE.search(text[earlier[-1].end() : start]):
            return None
    return option


def _find_choices(text: str, table: dict[str, str], opened: bool) -> set[str] | None:
    """The options that the reply commits to where it may choose several; None where one of them cannot be read."""
    text = _cut_thinking(text, opened)
    if "\\boxed" in text or "\\fbox" in text:
        return _find_boxed_choices(text, table)
    text = re.sub(r"[*_]{2,3}", "", text)
    marked, sentences = _MARKED.findall(text), list(_SEVERAL.finditer(text))
    if marked and (options := _read_options(marked[-1], table)):
        return options
    for match in reversed(sentences[-20:]):
        before = text[max(0, match.start() - 80) : match.start()]
        if _CHOICE_DENIED.search(before) or _EXCLUDED.search(before):
            return None
        line = match[1].partition("\n")[0]
        for stated in (match[1], line, re.split(r"[.!](?:\s|$)|,?\s*\b(?:because|since|as)\b", line)[0]):
            if options := _read_options(stated, table):
                return options
    return None if sentences else _read_options(text[:500], table)


def _find_boxed_choices(text: str, table: dict[str, str]) -> set[str] | None:
    """The options in the last box and in those side by side with it; None where words deny them."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    last = _CHOICE_BOX.match(text, start)
    if not last or not last[2] or _RETRACTED.match(text, last.end()):
        return None
    boxes = [match for match in _CHOICE_BOX.finditer(text, max(0, start - LONGEST_CHOICE), start) if match[2]][-25:] + [
        last
    ]
    first = len(boxes) - 1
    while first and _BESIDE_BOX.fullmatch(text[boxes[first - 1].end() : boxes[first].start()][:30]):
        first -= 1
    before = text[max(0, boxes[first].start() - 80) : boxes[first].start()]
    if _CHOICE_DENIED.search(before) or _EXCLUDED.search(before):
        return None
    sets = [_read_options(box[1], table) for box in boxes[first:]]
    return set().union(*sets) if all(sets) else None


def _read_gold_options(gold: object, table: dict[str, str]) -> set[str]:
    """The letters of the gold's options, none where it cannot be used."""
    if isinstance(gold, Sequence) and not isinstance(gold, str):
        letters = [_read_option(str(item), table) for item in gold]
        return set() if None in letters else set(letters)
    text = str(gold or "")
    if option := _read_option(text, table):
        return {option}
    joined = re.fullmatch(r"[A-Z]{2,26}", text.strip())
    if joined and "".join(sorted(set(joined[0]))) != joined[0]:
        return set()
    return _read_options(text, table) or set()


def _read_options(text: str, table: dict[str, str]) -> set[str] | None:
    """The letters of the options that a text lists, None where it holds anything else."""
    if len(text) > LONGEST_CHOICE:
        return None
    text = _WRAP.sub(r"\1", text).strip(" \t\n*_.$[]{}\\-•")
    text = re.sub(
        r"(?i)^(?:both|(?:options|choices|answers|letters)\b:?)\s+|\s+are (?:both |all )?(?:correct|right)$", "", text
    )
    joined = re.fullmatch(r"[A-Z]{2,26}|(?:\([A-Za-z]\)){2,26}", text)
    pieces = re.findall("[A-Za-z]", text) if joined else _BETWEEN.split(text, 26)
    pieces = [piece.strip("'\" ") for piece in pieces]
    if not table and not all(re.fullmatch(r"\(?[A-Za-z]\)?[.:]?", piece) for piece in pieces):
        return None
    letters = [_read_option(piece, table) for piece in pieces]
    return None if None in letters or len(set(letters)) < len(letters) else set(letters)


def _read_sentence(text: str, table: dict[str, str]) -> str | None:
    """The letter that a sentence begins with and explains: "C because ...", "(C), since ...", "C. Paris, as ..."."""
    text = text.strip(" $")
    named = _SENTENCE.match(text)
    if named and (not table or named[1] in table):
        return None if _RETRACTED.match(text[named.end(1) :]) else named[1]
    labelled = re.match(r"\(?([A-Z])(?:\)[.:]?|[.:])\s*(.*)", text)
    if not labelled or labelled[1] not in table:
        return None
    rest, option = labelled[2].casefold(), table[labelled[1]].casefold()
    if option and rest.startswith(option):
        explained = r"\s*(?:[.;:!–—-]|,?\s*(?:because|since|as|for|so|which|where|given|due|by)\b)"
        return labelled[1] if re.match(explained, rest[len(option) :]) else None
    other = any(text and rest.startswith(text.casefold()) for text in table.values())
    return None if other or re.match(r"(?:or|and|maybe|perhaps|possibly)\b|[^\w\s]", rest) else labelled[1]


def _read_option(text: str, table: dict[str, str]) -> str | None:
    """The letter of the option that a text names, None if it names none."""
    text = _WRAP.sub(r"\1", text).replace("$", "").strip(" \t\n*_.")
    if text in table:
        return text
    exact = [letter for letter, option in table.items() if option == text]
    loose = [letter for letter, option in table.items() if option.casefold() == text.casefold()]
    for letters in (exact, loose):
        if len(letters) == 1:
            return letters[0]
    named = _LETTER.match(re.sub(r"(?i)^(?:option|choice|answer)\b[\s:]*", "", text))
    if not named:
        return None
    letter, rest = named[1].upper(), named[2].strip(" .")
    if not table and re.match(r"(?:and|or)\b|[,;/&+]", rest):  # (A) and (C)
        return None
    if table and (letter not in table or (rest and rest.casefold() != table[letter].casefold())):
        return None  # the letter of one option with the text of another is no choice
    return letter


def _make_table(options: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    if not options:
        return {}
    pairs = options.items() if isinstance(options, Mapping) else zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", options)
    return {str(letter).upper(): str(text).strip(" .") for letter, text in pairs}


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
