"""What a document can tell of a firm, a book, a ship, a person or a town, and how one asks for it."""

from typing import NamedTuple


class Relation(NamedTuple):
    """What a kind of things has: the sentence that says it, the question for it, the kind of its value.

    Attributes:
        says: sentences with {it} for the thing's name and {value}, divided by "|".
        asks: questions with {it} for the thing, by name or as "the author of ...", divided by "|".
        kind: a kind of `THINGS`, or one of the values that `documents.py` draws.
        leads: words for the value's thing, such as "the author of {it}"; "" where the value is no thing.
    """

    says: str
    asks: str
    kind: str
    leads: str = ""


THINGS: dict[str, tuple[Relation, ...]] = {
    "firm": (
        Relation(
            "{it} is led by {value}.|The director of {it} is {value}.",
            "Who leads {it}?|What is the name of the person who leads {it}?",
            "person",
            "the director of {it}",
        ),
        Relation(
            "{it} has its seat in {value}.|{it} is based in {value}.",
            "In which town is {it} based?|Where has {it} its seat?",
            "town",
            "the town in which {it} is based",
        ),
        Relation(
            "{it} was founded in {value}.|In {value} {it} opened its doors.",
            "In which year was {it} founded?|When was {it} founded?",
            "year",
        ),
        Relation(
            "{it} makes the {value}.|The best known product of {it} is the {value}.",
            "Which product is {it} known for?|What does {it} make?",
            "product",
        ),
    ),
    "book": (
        Relation(
            "{it} was written by {value}.|{value} is the author of {it}.",
            "Who wrote {it}?|Who is the author of {it}?",
            "person",
            "the author of {it}",
        ),
        Relation(
            "{it} has {value} pages.|The first edition of {it} ran to {value} pages.",
            "How many pages has {it}?|What is the number of pages of {it}?",
            "pages",
        ),
        Relation(
            "{it} came out in {value}.|Its readers have known {it} since {value}.",
            "In which year did {it} come out?|When did {it} come out?",
            "year",
        ),
    ),
    "ship": (
        Relation(
            "The captain of {it} is {value}.|{it} sails under {value}.",
            "Who is the captain of {it}?|Under which captain does {it} sail?",
            "person",
            "the captain of {it}",
        ),
        Relation(
            "{it} was built in {value}.|The yard that built {it} lay in {value}.",
            "In which town was {it} built?|Where was {it} built?",
            "town",
            "the town in which {it} was built",
        ),
        Relation(
            "{it} was launched on {value}.|On {value} {it} was launched.",
            "On which day was {it} launched?|What is the date of the launch of {it}?",
            "date",
        ),
    ),
    "person": (
        Relation(
            "{it} was born in {value}.|The birthplace of {it} is {value}.",
            "Where was {it} born?|In which town was {it} born?",
            "town",
            "the birthplace of {it}",
        ),
        Relation(
            "{it} studied {value}.|{it} holds a degree in {value}.",
            "Which subject did {it} study?|In what does {it} hold a degree?",
            "subject",
        ),
        Relation(
            "{it} learnt {value} as a child.|The first foreign language of {it} was {value}.",
            "Which foreign language did {it} learn first?|Which language did {it} learn as a child?",
            "language",
        ),
    ),
    "town": (
        Relation(
            "{it} lies on the river {value}.|The river {value} flows through {it}.",
            "On which river does {it} lie?|Which river flows through {it}?",
            "river",
        ),
        Relation(
            "{it} has {value} inhabitants.|At the last count {value} people lived in {it}.",
            "How many inhabitants has {it}?|How many people live in {it}?",
            "people",
        ),
        Relation(
            "The mayor of {it} is {value}.|{it} elected {value} as its mayor.",
            "Who is the mayor of {it}?|Whom did {it} elect as its mayor?",
            "person",
            "the mayor of {it}",
        ),
    ),
}
