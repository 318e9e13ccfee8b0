"""Records that are a list of flat ones, which CSV can hold."""

import random
from collections.abc import Callable

from grpo_kit.environments.names import PRODUCTS, TOWNS, draw_date, spell_date
from grpo_kit.environments.records.record import (
    NUMBER,
    TEXT,
    WHOLE,
    YES_NO,
    Record,
    draw_price,
    list_of,
    object_of,
    one_of,
)


def draw_stock(rng: random.Random) -> Record:
    """A list of flat records, which CSV can hold: products in stock."""
    rows = [
        {
            "product": product,
            "stock": rng.randint(0, 900),
            "price": draw_price(rng, 90),
            "discontinued": rng.random() < 0.3,
        }
        for product in rng.sample(PRODUCTS, rng.randint(2, 6))
    ]
    schema = list_of(object_of(product=TEXT, stock=WHOLE, price=NUMBER, discontinued=YES_NO))
    as_table = ["| product | in stock | price (EUR) | discontinued |", "|---|---|---|---|"]
    as_table += [
        f"| {row['product']} | {row['stock']} | {row['price']:.2f} | {'yes' if row['discontinued'] else 'no'} |"
        for row in rows
    ]
    as_sentences = [
        f"We have {row['stock']} of the product {row['product']} at {row['price']:.2f} euros; it is "
        f"{'discontinued' if row['discontinued'] else 'not discontinued'}."
        for row in rows
    ]
    text = rng.choice(("\n".join(as_table), " ".join(as_sentences)))
    return Record("stock", rows, schema, text)


def draw_readings(rng: random.Random) -> Record:
    """A list of flat records: what a weather station measured."""
    station, day = rng.choice(TOWNS), draw_date(rng)
    rows = [
        {"station": station, "hour": hour, "temperature": rng.randint(-150, 350) / 10,
         "wind": rng.choice(("calm", "breeze", "storm"))}
        for hour in sorted(rng.sample(range(24), rng.randint(2, 6)))
    ]  # fmt: skip
    wind = one_of("calm", "breeze", "storm")
    schema = list_of(object_of(station=TEXT, hour=WHOLE, temperature=NUMBER, wind=wind))
    told = [f"at {row['hour']}:00 {row['temperature']} degrees, {row['wind']}" for row in rows]
    return Record("readings", rows, schema, f"Station {station}, {spell_date(day)}: {'; '.join(told)}.")


LISTS: tuple[Callable[[random.Random], Record], ...] = (draw_stock, draw_readings)
