"""Names that the generators draw from: people, towns, firms, things. What the tasks say of a real name is invented."""

import random


def _split(text: str, separator: str | None = None) -> list[str]:
    return text.split(separator)


FIRST = _split(
    "Ada Agnes Alma Anders Anja Arno Astrid Bela Birgit Bruno Carla Celia Dario Dora Edda Edwin Elin Emil Enid Erik "
    "Esra Felix Flora Gerda Greta Hanna Hilde Hugo Ida Igor Ines Ingrid Ivan Jana Jonas Karin Karl Klara Lars Lena "
    "Leon Lotta Luka Magda Malte Mara Mila Moritz Nadia Nils Nina Olga Oskar Otto Paula Petra Pia Rafael Rita Rosa "
    "Sami Selma Sven Tara Tilda Timo Ulla Vera Viktor Wanda Yara Zora"
)
LAST = _split(
    "Abel Adler Albrecht Amari Bauer Becker Berg Bergen Bloom Brandt Castell Cole Dahl Dahlin Decker Ebert Egger "
    "Falk Fischer Frost Gale Gruber Haas Hale Hansen Hartmann Holm Holmgren Ivarsson Jansen Keller Kern Kovac Krause "
    "Lang Lange Lindholm Lindqvist Lund Marek Moreau Nagel Novak Olsen Orlov Palmer Pavlik Petrov Quist Rask Reed "
    "Rossi Sand Sanders Sato Simon Soler Stein Steiner Tanaka Thorn Ulrich Varga Vogel Wagner Weber Winter Zeller"
)
TOWNS = _split(
    "Aldmoor Ashby Barrowen Bellhaven Birkdal Brackwater Calderby Cleeveton Dornau Drayford Eastmere Elmstead "
    "Falkenau Fernhill Glanmore Grenholt Halden Harrowgate Ilmenau Kestrel Kingsmoor Larkfield Lindow Lowestone "
    "Marlow Millbrook Nordby Norwell Oakhurst Ostvale Penwick Pinehurst Quarley Ravensby Redcliff Rosenau Sandvik "
    "Selby Stonebridge Tarnby Thornwick Ulverton Valdera Westholm Whitby Winterau Wolmar Yarrowby Zellhof Zinnow"
)
RIVERS = _split(
    "Aven Brill Corrow Dalva Elber Fenna Garrow Hester Ilva Jarra Kelm Lenne Mirra Nesk Orrel Pell Quill Rill Sarn "
    "Thur Ulse Vell Wend Yarn Zorn Arlo Besna Cyne Dorma Ettle"
)
FIRM_HEADS = _split(
    "Alder Amber Beacon Birch Cobalt Copper Crown Delta Ember Falcon Granite Harbor Harlan Helix Iron Juniper Lantern "
    "Linden Maple Meridian Nordic Oak Onyx Orchard Pioneer Quarry Raven River Saffron Silver Summit Tidal Union Vega "
    "Willow Zenith"
)
FIRM_TAILS = _split("Works Mills Foods Tools Glass Paper Textiles Optics Motors Ceramics Systems Press Boats Lamps")
PRODUCTS = _split(
    "bicycle lamp|oak shelf|steel kettle|wool blanket|garden hose|desk fan|paper lantern|copper pan|rain jacket|"
    "tea tin|field notebook|brass hinge|ceramic bowl|picture frame|travel mug|hand saw|linen towel|wall clock|"
    "reading lamp|canvas bag|door mat|cork board|water filter|tool box|pocket radio|clay pot|leather belt|"
    "walking stick|camp stove|wooden spoon",
    "|",
)
SUBJECTS = _split(
    "botany|civil engineering|economics|geology|history|law|linguistics|mathematics|medicine|music|philosophy|physics|"
    "chemistry|architecture|astronomy|geography|zoology|statistics|theology|archaeology",
    "|",
)
LANGUAGES = _split(
    "Arabic Czech Danish Dutch English Finnish French German Greek Italian Polish Spanish Swedish Turkish"
)
TITLES = _split(
    "Harbour|Lantern|Winter|Orchard|Letter|Bridge|Garden|Mirror|River|Island|Clockmaker|Lighthouse|Valley|Violin|"
    "Cartographer|Glacier|Nightingale|Archive|Compass|Meadow",
    "|",
)
# Words that an instruction may ask for or forbid, without the letters q, x, j and z, which another may limit.
PLAIN_WORDS = _split(
    "morning garden budget bridge butter candle carpet castle cloud coffee copper corner cotton dinner engine feather "
    "festival forest fountain harbour harvest helmet honey island kettle ladder lantern lemon library market meadow "
    "mirror mountain museum needle ocean orchard painter paper pepper pillow planet pocket pottery rabbit railway "
    "river saddle salad sailor shadow silver sister spider station summer sunset teacher thunder ticket timber tunnel "
    "valley village violin wagon water weather whistle willow window winter wooden"
)
MONTHS = _split("January February March April May June July August September October November December")


def draw_person(rng: random.Random) -> str:
    """A first and a last name."""
    return f"{rng.choice(FIRST)} {rng.choice(LAST)}"


def draw_title(rng: random.Random) -> str:
    """The title of a book or an evening."""
    first, second = rng.sample(TITLES, 2)
    return rng.choice((f"The {first} and the {second}", f"The {first} of {rng.choice(TOWNS)}", f"The Last {first}"))


def draw_date(rng: random.Random, first_year: int = 2015, last_year: int = 2025) -> str:
    """A date as 2024-05-03."""
    return f"{rng.randint(first_year, last_year)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"


def spell_date(date: str, order: int = 0) -> str:
    """A date as a letter writes it.

    >>> spell_date("2024-05-03"), spell_date("2024-05-03", order=1)
    ('3 May 2024', 'May 3, 2024')
    """
    year, month, day = map(int, date.split("-"))
    return f"{MONTHS[month - 1]} {day}, {year}" if order % 2 else f"{day} {MONTHS[month - 1]} {year}"


def draw_code(rng: random.Random) -> str:
    """The number of an order, a contract or the like, with letters in front, so that no format reads it as a number."""
    return f"{''.join(rng.choice('ABCGHKLMPRTW') for _ in range(2))}-{rng.randint(1000, 99999)}"
