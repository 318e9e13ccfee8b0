"""Text encryption: one letter stands for another, the same one everywhere, in sentences of 77 words.

The examples do not always show every letter of the text to decrypt (in 62 % of the challenge's puzzles they do not).
The other letters follow from the words and from the four shapes of a sentence that all texts have.
"""

import random
import re
import string
from collections.abc import Iterator

from grpo_kit.data.puzzles.puzzle import Family, Knobs, text_after

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
    """(key, one line of working for each example word that shows a new letter), None where the examples contradict."""
    key, lines = {}, []
    for secret, plain in pairs:
        if len(secret.split()) != len(plain.split()):
            return None
        for a, b in zip(secret.split(), plain.split()):
            new = extend_key(key, a, b)
            if new is None:
                return None
            if fresh := [f"{letter}={new[letter]}" for letter in dict.fromkeys(a) if letter not in key]:
                lines.append(f"{a} = {b}: {' '.join(fresh)}")
            key = new
    return key, lines


def explain_decryption(key: dict[str, str], text: str, final: dict[str, str]) -> list[str]:
    """Lines that read `text` word by word; a word with unknown letters waits until the others are read."""
    lines, waiting = [], text.split()
    while waiting:
        secret = min(waiting, key=lambda word: decrypt(key, word).count("?"))  # the first of the best known
        waiting.remove(secret)
        spelled, word = decrypt(key, secret), decrypt(final, secret)
        letters = " ".join(f"{letter}={key.get(letter, '?')}" for letter in secret)
        fitting = [candidate for candidate in WORDS if extend_key(key, secret, candidate)]
        reading = f" -> {spelled}" + ("" if "?" not in spelled else f", fits {' or '.join(fitting)}: {word}")
        lines.append(f"{secret}: {letters}{reading}")
        key = extend_key(key, secret, word)
    return lines


def draw_puzzle(rng: random.Random, knobs: Knobs) -> tuple[str, str, str, bool]:
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
    key, lines = learn_key(pairs)
    trace = [*lines, *explain_decryption(key, text, {a: b for b, a in back.items()}), answer]
    return prompt, answer, "\n".join(trace), len({decrypt(new, text) for new in find_readings(key, text)}) == 1


def solve_puzzle(prompt: str) -> str | None:
    learned = learn_key(re.findall(r"^([a-z ]+) -> ([a-z ]+)$", prompt, re.MULTILINE))
    text = text_after(prompt, "decrypt the following text: ")
    if learned is None or not re.fullmatch("[a-z ]+", text):
        return None
    spelled = decrypt(learned[0], text)
    return next(
        (decrypt(key, text) for key in find_readings(learned[0], text)), spelled if "?" not in spelled else None
    )


CIPHER = Family("text encryption", OPENING, {"examples": (3, 5), "hidden": (0, 5)}, draw_puzzle, solve_puzzle)
