r"""documents_qa decides whether a reply answers a question over several documents, and whether it names the documents
that the answer is in: 1.0 if it does, 0.0 if not, None where the row has no documents or no usable answer.

Paste this file into a notebook cell as it is. It needs only the standard library.

The columns:

    answer      the reference answer, or a list of answers that are as good
    aliases     further answers that are as good, or None
    documents   the documents as the prompt numbers them from 1: texts, or {"title": ..., "text": ...}
    supporting  the documents that the answer is in, by number or title; None where the reply need not name them

The answer is read after the last </think>: the last JSON object with an "answer", else the last box, else the last
"Answer: ..." (the rest of its line) or "the answer is ..." (also its first sentence), else a reply that is one line of
at most 200 characters. It must equal one of the answers after SQuAD's normalisation: without case, punctuation and the
words a, an and the. Unlike SQuAD's, this one keeps the point in 3.5, the signs of -5, C++, C# and O-, a last word such
as the A of "vitamin A", and something of every text, so that "?" is no answer to "!". A longer answer that contains the
right one is wrong; `partial_credit` pays it the F1 of its words.

Support: where `supporting` is given, the reply must name exactly these documents, no fewer and no more, since a reply
that names all of them says nothing. It does so after the thinking: in the JSON object under "supporting", "documents",
"sources" or HotpotQA's "supporting_facts"; without these, in square brackets ([2], [1, 3], [Title]) or as "Document 2".
Let the prompt ask for one of these forms. Whether a document says what the reply says of it is not judged.

Copying: the longest run of words that the thinking has in common with one document, as a share of the thinking
(NVIDIA's lc_niah takes characters). It is logged, and costs what `copying_cost` says. A short thought that quotes one
sentence has a high share, so look at the metric before it costs anything.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

LONGEST_ANSWERING = 20_000  # characters from the end of the reply in which the answer is looked for
LONGEST_SHORT_ANSWER = 1000  # characters of an answer
MOST_WORDS = 20_000  # words from the beginning of the thinking, and five times as many of the documents, are compared
DOCUMENTS_REASONS = ("right", "wrong", "no_answer", "unclosed_think", "uncited", "wrong_document", "unusable")

_ANSWER_BOX = re.compile(r"\\(?:boxed|fbox)\s?\{((?:[^{}]|\{[^{}]*\})*)(\})?")
_ANSWER_STATED = re.compile(r"(?i)\banswers?\b[*_ \t]{0,4}(?:([:：])|(?:is|are|was|were)\b:?)[*_ \t]{0,4}(\S[^\n]*)")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textit)\s?\{([^{}]*)\}")
_DOCUMENT_NUMBERS = re.compile(
    r"(?i)\b(?:documents?|docs?|sources?|passages?)[ #]{1,3}(\d{1,6}(?:(?:,|,? and| &)? \d{1,6}){0,50})"
)
_BRACKETED = re.compile(r"\[([^\[\]\n]{1,300})\]")
_LAST_BRACKETS = re.compile(r"\s*(?:\[([^\[\]\n]{1,300})\]|\(([^()\n]{1,300})\))[\s.]*$")
_ANSWER_SIGNS = re.compile(  # those that are kept, and those that are dropped
    r"((?<=\d)\.(?=\d)|(?<!\S)[-−](?=[\d.])|(?<=\w)(?:\+\+?|\#|[-−](?=\s|$))(?!\w))"
    r"|[!-/:-@\[-`{-~’‘“”„«»‹›–—…·•、。，！？：；（）「」『』《》]"
)
_CITING = ("supporting", "documents", "sources", "supporting_facts")


class DocumentsVerdict(NamedTuple):
    """A reward, the one of DOCUMENTS_REASONS that led to it, and the F1 of the answer's words."""

    reward: float | None
    reason: str
    f1: float = 0.0


def documents_qa_reward(
    completions: Sequence,
    answer: Sequence | None = None,
    documents: Sequence | None = None,
    aliases: Sequence | None = None,
    supporting: Sequence | None = None,
    prompt_opened_think: bool | Sequence[bool] = False,
    partial_credit: bool = False,
    copying_cost: float = 0.0,
    **kwargs,
) -> list[float | None]:
    r"""1.0 for a right answer with the right documents, 0.0 for another reply, None where the row cannot be judged.

    Args:
        completions: texts or message lists; of several turns the last one of the assistant is judged. TRL's
            `reasoning_content` counts as thinking that is closed.
        answer: for each completion the reference answer, or a list of equally good ones.
        documents: for each completion the list of its documents; None where the row belongs to another reward.
        aliases: for each completion a list of further good answers, or None.
        supporting: for each completion a list of document numbers (from 1) or titles, or None.
        prompt_opened_think: whether the chat template put <think> into the prompt, so that a completion without
            </think> is unfinished and earns 0. A bool, or a column of the dataset.
        partial_credit: pay a wrong answer the F1 of its words, 0.0 to 1.0, instead of 0.0.
        copying_cost: 0.0 to 1.0, the share of its reward that a reply loses whose thinking is nothing but a copy.
            With it, or with partial_credit, the rewards are no outcome for combine.py.
        kwargs: other columns. If `log_metric` is among them (TRL passes it), these are logged: the share of each
            reason, `documents_qa/f1` and `documents_qa/copied`, means over the completions.

    Returns:
        One reward for each completion.

    Raises:
        ValueError: the lengths differ, or copying_cost is out of range.

    Example:
        >>> documents = [["Oslo lies in Norway.", "Rome lies in Italy."]] * 3
        >>> replies = ["Answer: Oslo [1]", "Answer: Oslo [1] [2]", r"\boxed{Rome} [2]"]
        >>> documents_qa_reward(replies, ["Oslo"] * 3, documents, supporting=[[1]] * 3)
        [1.0, 0.0, 0.0]
    """
    if not 0.0 <= copying_cost <= 1.0:
        raise ValueError(f"copying_cost is {copying_cost}; it is the share of a reward. Set it between 0.0 and 1.0.")
    count = len(completions)
    columns = {"answer": answer, "documents": documents, "aliases": aliases, "supporting": supporting}
    columns["prompt_opened_think"] = prompt_opened_think
    for name, column in columns.items():
        if column is None or isinstance(column, bool):
            columns[name] = [column] * count
        elif len(column) != count:
            raise ValueError(
                f"documents_qa_reward got {count} completions and {len(column)} values of {name}; each completion "
                "needs its own. Pass the dataset's columns repeated once per completion."
            )
    rows = list(zip(completions, *columns.values(), strict=True))
    verdicts = [documents_qa_verdict(*row) for row in rows]
    rewards = [v.f1 if partial_credit and v.reason == "wrong" else v.reward for v in verdicts]
    log_metric = kwargs.get("log_metric")
    if log_metric or copying_cost:
        copied = [_measure_copying(row[0], row[2]) if v.reward is not None else 0.0 for row, v in zip(rows, verdicts)]
        rewards = [None if paid is None else paid * (1 - copying_cost * share) for paid, share in zip(rewards, copied)]
    if log_metric:
        counts = Counter(verdict.reason for verdict in verdicts)
        judged = max(count - counts["unusable"], 1)
        for reason in DOCUMENTS_REASONS:
            log_metric(f"documents_qa/{reason}", counts[reason] / max(count, 1))
        log_metric("documents_qa/f1", sum(verdict.f1 for verdict in verdicts) / judged)
        log_metric("documents_qa/copied", sum(copied) / judged)
    return rewards


def documents_qa_verdict(
    completion: str | list,
    answer: Any,
    documents: Sequence | None,
    aliases: Sequence | None = None,
    supporting: Any = None,
    prompt_opened_think: bool = False,
) -> DocumentsVerdict:
    """The reward of one completion, its reason and F1; the arguments are a row's.

    >>> documents_qa_verdict("The answer is Paris", "Paris, France", ["Paris is a city.", "France is a country."])
    DocumentsVerdict(reward=0.0, reason='wrong', f1=0.6666666666666666)
    """
    texts = _list_answers(answer)
    golds = list(filter(None, map(_normalize_answer, texts + _list_answers(aliases)))) if texts else []
    shelf = _Shelf.read(documents)
    wanted = shelf.find(supporting) if shelf and supporting else set()
    if not golds or shelf is None or (supporting and not wanted):
        return DocumentsVerdict(None, "unusable")
    _, reply = _split_thinking(_join_contents(completion), prompt_opened_think)
    if reply is None:
        return DocumentsVerdict(0.0, "unclosed_think")
    record = _find_record(reply)
    found = [_normalize_answer(text) for text in _find_answers(reply, record, shelf)]
    if not any(found):
        return DocumentsVerdict(0.0, "no_answer")
    f1 = max(_compare_words(text, gold) for text in found for gold in golds)
    if not set(found) & set(golds):
        return DocumentsVerdict(0.0, "wrong", f1)
    if wanted:
        named = shelf.find_named(reply, record)
        if named != wanted:
            return DocumentsVerdict(0.0, "wrong_document" if named else "uncited", f1)
    return DocumentsVerdict(1.0, "right", f1)


def final_answer(completion: str | list, prompt_opened_think: bool = False, **kwargs) -> str | None:
    """The normalised answer that a reply commits to, None without one, for counting votes.

    >>> final_answer("The answer is the Eiffel Tower."), final_answer('{"answer": "Eiffel tower"}')
    ('eiffel tower', 'eiffel tower')
    """
    _, reply = _split_thinking(_join_contents(completion), prompt_opened_think)
    found = _find_answers(reply, _find_record(reply), _Shelf(0, {})) if reply else []
    return (_normalize_answer(found[-1]) or None) if found else None


documents_qa_reward.final_answer = final_answer  # stays this one where another reward file is pasted below


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


def _split_thinking(text: str, opened: bool) -> tuple[str, str | None]:
    """(the thinking, what follows it, or None where the thinking is not closed)."""
    close = text.rfind("</think>")
    if text.rfind("<think>") > close or (opened and close < 0):
        return text, None
    thought = text[: max(close, 0)]
    return thought, text[close + len("</think>") :] if close >= 0 else text


# The answer.


def _list_answers(value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return [str(item)[:LONGEST_SHORT_ANSWER] for item in values if item is not None]


def _normalize_answer(text: str) -> str:
    """The text as SQuAD compares it, but for the signs that make another answer."""
    text = unicodedata.normalize("NFKC", text[:LONGEST_SHORT_ANSWER]).casefold().replace("<|im_end|>", " ")
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    words = _ANSWER_SIGNS.sub(lambda sign: sign[1] or "", plain).replace("−", "-").split()
    words = [word for word in words[:-1] if word not in ("a", "an", "the")] + words[-1:]
    return " ".join(words) or " ".join(text.split())


def _compare_words(text: str, gold: str) -> float:
    """The F1 of the words; yes and no are equal or nothing."""
    if text == gold:
        return 1.0
    if {text, gold} & {"yes", "no", "noanswer"}:
        return 0.0
    words, golds = text.split(), gold.split()
    return 2 * sum((Counter(words) & Counter(golds)).values()) / max(len(words) + len(golds), 1)


def _find_answers(reply: str, record: dict | None, shelf: "_Shelf") -> list[str]:
    """The answer that the reply commits to; two readings of it where its end is not marked."""
    if record is not None:
        value = record["answer"]
        return [{True: "yes", False: "no"}[value]] if isinstance(value, bool) else _list_answers(value)[:1]
    reply = reply[-LONGEST_ANSWERING:].replace("<|im_end|>", "")
    start = max(reply.rfind("\\boxed"), reply.rfind("\\fbox"))
    if start >= 0:
        box = _ANSWER_BOX.match(reply, start)
        return [_WRAPPED.sub(r"\1", box[1])] if box and box[2] else []
    stated = list(_ANSWER_STATED.finditer(reply))
    if stated:
        _, colon, line = stated[-1].group(0, 1, 2)
        first = [] if colon else [re.split(r"[.!?](?=\s|$)", line)[0]]
        return [shelf.take_off(text) for text in [*first, line]]
    text = reply.strip()
    return [shelf.take_off(text)] if text and "\n" not in text and len(text) <= 200 else []


def _find_record(reply: str) -> dict | None:
    """The last JSON object with an answer that is a text, a number or a bool."""
    reply, record, place = reply[-LONGEST_ANSWERING:], None, -1
    decoder = json.JSONDecoder()
    for _ in range(1000):
        place = reply.find("{", place + 1)
        if place < 0:
            break
        try:
            value, end = decoder.raw_decode(reply, place)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and isinstance(value.get("answer"), str | int | float):
            record = value
        place = end - 1
    return record


# The documents.


class _Shelf(NamedTuple):
    """How many documents there are, and the numbers of those with a title, by the title as it is compared."""

    count: int
    titles: dict[str, list[int]]

    @classmethod
    def read(cls, documents: Any) -> "_Shelf | None":
        if not isinstance(documents, list | tuple) or not documents:
            return None
        titles: dict[str, list[int]] = {}
        for number, document in enumerate(documents, 1):
            title = document.get("title") if isinstance(document, dict) else None
            if title:
                titles.setdefault(_normalize_answer(str(title)), []).append(number)
        return cls(len(documents), titles)

    def find(self, names: Any) -> set[int]:
        """The numbers of documents that are named by number or title; none where a name fits no document or two."""
        found = set()
        for name in names if isinstance(names, list | tuple) else [names]:
            name = name[0] if isinstance(name, list | tuple) and name else name  # HotpotQA's [title, sentence]
            numbers = self._look_up(str(name))
            if len(numbers) != 1 or not 1 <= numbers[0] <= self.count:
                return set()
            found.update(numbers)
        return found

    def find_named(self, reply: str, record: dict | None) -> set[int]:
        """The numbers of the documents that a reply names, 0 for what is no document."""
        listed = [record[key] for key in _CITING if record and key in record]
        if listed:
            names = listed[0] if isinstance(listed[0], list) else [listed[0]]
            names = [name[0] if isinstance(name, list) and name else name for name in names[:1000]]
            return {number for name in names for number in self._look_up(str(name)) or [0]}
        reply = reply[-LONGEST_ANSWERING:]
        found = {int(number) for match in _DOCUMENT_NUMBERS.finditer(reply) for number in re.findall(r"\d+", match[1])}
        for match in _BRACKETED.finditer(reply):
            found.update(self._read_brackets(match[1]))
        return found

    def take_off(self, answer: str) -> str:
        """The answer without the documents that are named behind it."""
        for _ in range(20):
            brackets = _LAST_BRACKETS.search(answer[-400:])
            if not brackets or not self._read_brackets(brackets[1] or brackets[2]):
                break
            answer = answer[: max(len(answer) - 400, 0) + brackets.start()]
        return answer

    def _read_brackets(self, text: str) -> set[int]:
        whole = self._look_up(text)
        parts = [whole] if whole else [self._look_up(part) for part in re.split(r"[,;&]|\band\b", text)]
        return {number for numbers in parts for number in numbers}

    def _look_up(self, name: str) -> list[int]:
        number = re.fullmatch(r"(?i)\s*(?:(?:documents?|docs?|sources?|passages?)\b)?[\s#]*(\d{1,6})\s*", name)
        by_title = self.titles.get(_normalize_answer(name), [])
        return by_title or ([int(number[1])] if number else [])


# Copying.


def _measure_copying(completion: str | list, documents: Any) -> float:
    """The longest run of words that the thinking shares with a document, as a share of the thinking's words."""
    thought, _ = _split_thinking(_join_contents(completion), False)
    words = _split_into_words(thought, MOST_WORDS)
    texts = [document if isinstance(document, str) else _read_text(document) for document in documents]
    left, pages = 5 * MOST_WORDS, []
    for text in texts:
        pages.append(_split_into_words(text, left))
        left -= len(pages[-1])
    return _longest_run(words, pages) / len(words) if words else 0.0


def _read_text(document: Any) -> str:
    text = document.get("text") if isinstance(document, dict) else document
    return " ".join(map(str, text)) if isinstance(text, list | tuple) else str(text or "")


def _split_into_words(text: str, most: int) -> list[str]:
    """Words in lower case; a character of Chinese or Japanese is a word."""
    words = re.findall(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+", text[: 10 * most].lower())
    return words[:most]


def _longest_run(words: list[str], pages: list[list[str]]) -> int:
    """The length of the longest run that is in `words` and in a page: the automaton of the suffixes of `words`.

    Each state stands for runs that end at the same places; `following` leads on by a word, `link` to a shorter run.
    """
    following: list[dict[str, int]] = [{}]
    link, length, last = [-1], [0], 0
    for word in words:
        current, state = len(length), last
        length.append(length[last] + 1)
        following.append({})
        link.append(0)
        while state >= 0 and word not in following[state]:
            following[state][word] = current
            state = link[state]
        if state >= 0:
            target = following[state][word]
            if length[target] > length[state] + 1:
                twin = len(length)
                length.append(length[state] + 1)
                following.append(dict(following[target]))
                link.append(link[target])
                while state >= 0 and following[state].get(word) == target:
                    following[state][word] = twin
                    state = link[state]
                link[target] = target = twin
            link[current] = target
        last = current
    best = 0
    for page in pages:
        state = run = 0
        for word in page:
            while state and word not in following[state]:
                state = link[state]
                run = length[state]
            if word in following[state]:
                state, run = following[state][word], run + 1
                best = max(best, run)
    return best
