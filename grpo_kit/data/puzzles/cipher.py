"""Text encryption: one letter stands for another, the same one everywhere, in sentences of 77 words.

The examples do not always show every letter of the text to decrypt (in 62 % of the challenge's puzzles they do not).
The other letters follow from the words and from the four shapes of a sentence that all texts have. The solver reads the
words whose letters are known, and then, again and again, a word that only one of the 77 fits.
"""

import random
import re
import string
from collections.abc import Iterator
from itertools import islice

from grpo_kit.data.puzzles.puzzle import AMBIGUOUS, NO_RULE, NO_SEARCH, Family, Knobs, Solution, text_after

_BOTH = "garden castle forest"  # a thing and a place
WHO, DOES, KIND, IN, WHAT, WHERE = (
    words.split()
    for words in (
        "alice king queen princess wizard knight dragon rabbit cat mouse hatter bird turtle student teacher",
        "creates dreams found studies draws writes follows sees reads chases imagines discovers watches explores",
        "secret colorful hidden silver dark bright wise strange curious clever golden ancient magical mysterious",
        "in under inside around beyond near through above",
        f"key puzzle book treasure mirror crystal potion map message door story secret {_BOTH}",
        f"tower mountain library valley school village cave island wonderland palace ocean {_BOTH}",
    )
)
SHAPES = [[WHO, DOES, WHAT], [WHO, DOES, IN, WHERE], [["the"], KIND, WHO, DOES], [WHO, DOES, ["the"], KIND, WHAT]]
WORDS = sorted({word for shape in SHAPES for slot in shape for word in slot})

OPENING = "In Alice's Wonderland, secret encryption rules are used on text."


def draw_sentence(rng: random.Random) -> str:
    """Three to five words in one of the four shapes."""
    return " ".join(rng.choice(slot) for slot in rng.choice(SHAPES))


def extend_key(key: dict[str, str], secret: str, plain: str) -> dict[str, str] | None:
    """`key` (secret letter to plain letter) with this word's letters, None where they contradict it or each other."""
    if len(secret) != len(plain):
        return None
    key, back = dict(key), {plain: secret for secret, plain in key.items()}
    for a, b in zip(secret, plain):
        if key.setdefault(a, b) != b or back.setdefault(b, a) != a:
            return None
    return key


def find_readings(key: dict[str, str], text: str) -> Iterator[dict[str, str]]:
    """Every extension of `key` that turns `text` into a sentence; the word with the fewest readings is tried first."""

    def go(key: dict[str, str], open_words: list[tuple[str, list[str]]]) -> Iterator[dict[str, str]]:
        if not open_words:
            yield key
            return
        choices = [[new for word in slot if (new := extend_key(key, secret, word))] for secret, slot in open_words]
        least = min(range(len(choices)), key=lambda i: len(choices[i]))
        for new in choices[least]:
            yield from go(new, open_words[:least] + open_words[least + 1 :])

    words = text.split()
    for shape in SHAPES:
        if len(shape) == len(words):
            yield from go(key, list(zip(words, shape)))


def decrypt(key: dict[str, str], text: str) -> str:
    return "".join(letter if letter == " " else key.get(letter, "?") for letter in text)


def learn_key(pairs: list[tuple[str, str]]) -> tuple[dict[str, str], list[str]] | None:
    """(key, one line of working for each word of the examples), None where the examples contradict."""
    key, lines = {}, []
    for secret, plain in pairs:
        if len(secret.split()) != len(plain.split()):
            return None
        for a, b in zip(secret.split(), plain.split()):
            new = extend_key(key, a, b)
            if new is None:
                return None
            lines.append(f"{a} = {b}: {_name_letters(new, a, key) or 'known'}")
            key = new
    return key, lines


def _name_letters(new: dict[str, str], secret: str, key: dict[str, str]) -> str:
    """The letters of a word that `key` does not have, `t=c r=a`."""
    return " ".join(f"{letter}={new[letter]}" for letter in dict.fromkeys(secret) if letter not in key)


def read_text(key: dict[str, str], text: str) -> tuple[list[str], str | None]:
    """(lines that read `text` word by word, the text); None where at some point several words fit each word left.

    Words whose letters are known come first. Another one is read where only one word of the list fits.
    """
    lines, words = [], text.split()
    readings: dict[int, str] = {}
    while len(readings) < len(words):
        open_places = [place for place in range(len(words)) if place not in readings]
        known = [place for place in open_places if "?" not in decrypt(key, words[place])]
        for place in known or open_places:
            secret, spelled = words[place], decrypt(key, words[place])
            lines.append(f"{secret}: {' '.join(f'{a}={b}' for a, b in zip(secret, spelled))} -> {spelled}")
            more, fits = ([], [spelled]) if known else try_words(key, secret)
            lines += more
            if len(fits) == 1:
                readings[place], key = fits[0], extend_key(key, secret, fits[0])
                break
            lines.append("several fit: later")
        else:
            return lines, None
    return lines, " ".join(readings[place] for place in range(len(words)))


def try_words(key: dict[str, str], secret: str) -> tuple[list[str], list[str]]:
    """(a line for each word of the list that has the known letters of `secret`, those that fit)."""
    lines, fits, spelled = [], [], decrypt(key, secret)
    for word in WORDS:
        if len(word) == len(secret) and all(b in ("?", a) for a, b in zip(word, spelled)):
            if new := extend_key(key, secret, word):
                fits.append(word)
                lines.append(f"{word}: {_name_letters(new, secret, key)}: fits")
            else:
                lines.append(f"{word}: {find_clash(key, secret, word)}: no")
    return lines, fits


def find_clash(key: dict[str, str], secret: str, plain: str) -> str:
    """The first letter of `plain` that cannot be, with what it contradicts; both words are equally long.

    >>> find_clash({"x": "e"}, "xyz", "eel"), find_clash({}, "aa", "is")
    ('y=e, but x=e', 'a=s, but a=i')
    """
    key = dict(key)
    for a, b in zip(secret, plain):
        other = next((c for c, d in key.items() if (c == a) != (d == b)), None)
        if other:
            return f"{a}={b}, but {other}={key[other]}"
        key[a] = b
    raise ValueError(f"{secret} can be {plain}.")


def draw_puzzle(rng: random.Random, knobs: Knobs) -> tuple[str, str, bool]:
    for _ in range(10_000):
        letters = list(string.ascii_lowercase)
        rng.shuffle(letters)
        back = dict(zip(string.ascii_lowercase, letters))
        *plain, answer = (draw_sentence(rng) for _ in range(rng.randint(*knobs["examples"]) + 1))
        hidden = len(set(answer) - set("".join(plain)) - {" "})
        if len({*plain, answer}) == len(plain) + 1 and knobs["hidden"][0] <= hidden <= knobs["hidden"][1]:
            break
    else:
        raise ValueError(
            "10,000 draws gave no sentence with {} to {} letters that its {} to {} examples do not show. "
            "Set hidden lower.".format(*knobs["hidden"], *knobs["examples"])
        )
    pairs = [(decrypt(back, text), text) for text in plain]
    text = decrypt(back, answer)
    prompt = (
        f"{OPENING} Here are some examples:\n{''.join(f'{a} -> {b}{chr(10)}' for a, b in pairs)}"
        f"Now, decrypt the following text: {text}"
    )
    key, _ = learn_key(pairs)
    return prompt, answer, len({decrypt(new, text) for new in find_readings(key, text)}) == 1


def solve_puzzle(prompt: str) -> Solution:
    """Learn letters from the examples, word by word, then read the text."""
    learned = learn_key(re.findall(r"^([a-z ]+) -> ([a-z ]+)$", prompt, re.MULTILINE))
    text = " ".join(text_after(prompt, "decrypt the following text: ").split())
    if learned is None or not re.fullmatch("[a-z ]+", text):
        return Solution(None, reason=NO_RULE, detail="No letters stand for the same letters in all examples.")
    key, lines = learned
    texts = list(dict.fromkeys(decrypt(new, text) for new in islice(find_readings(key, text), 1000)))
    if not texts and "?" in decrypt(key, text):
        return Solution(None, reason=NO_RULE, detail="No sentence of the known words fits the text.")
    if len(texts) > 1:
        return Solution(texts[0], reason=AMBIGUOUS, detail=f"The text can be {texts[0]!r} or {texts[1]!r}.")
    answer = texts[0] if texts else decrypt(key, text)
    more, read = read_text(key, text)
    if read != answer:
        return Solution(answer, reason=NO_SEARCH, detail="At some point several words fit each word that is left.")
    key_line = "key: " + " ".join(f"{a}={key[a]}" for a in sorted(key))
    return Solution(answer, "\n".join([*lines, key_line, f"{text}:", *more, answer]))


CIPHER = Family("text encryption", OPENING, {"examples": (3, 5), "hidden": (0, 5)}, draw_puzzle, solve_puzzle)
