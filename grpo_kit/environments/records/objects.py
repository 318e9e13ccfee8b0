"""Records that are one object: an order, a letter, a line of a log, and so on."""

import random
from collections.abc import Callable

from grpo_kit.environments.names import (
    FIRM_HEADS,
    FIRM_TAILS,
    LANGUAGES,
    PRODUCTS,
    SUBJECTS,
    TOWNS,
    draw_code,
    draw_date,
    draw_person,
    draw_title,
    spell_date,
)  # fmt: skip
from grpo_kit.environments.records.record import (
    DATE,
    NUMBER,
    TEXT,
    TEXT_OR_NULL,
    WHOLE,
    YES_NO,
    Record,
    draw_price,
    join_words,
    list_of,
    object_of,
    one_of,
    spell_money,
)


def _draw_order(rng: random.Random) -> Record:
    status = rng.choice(("packed", "shipped", "delivered", "cancelled"))
    lines = [
        {"product": product, "quantity": rng.randint(1, 40), "unit_price": draw_price(rng, 90)}
        for product in rng.sample(PRODUCTS, rng.randint(1, 4))
    ]
    customer, express = {"name": draw_person(rng), "city": rng.choice(TOWNS)}, rng.random() < 0.5
    contents = {
        "order_id": draw_code(rng), "ordered_on": draw_date(rng), "customer": customer, "lines": lines,
        "express": express, "status": status,
    }  # fmt: skip
    schema = object_of(
        order_id=TEXT, ordered_on=DATE, customer=object_of(name=TEXT, city=TEXT),
        lines=list_of(object_of(product=TEXT, quantity=WHOLE, unit_price=NUMBER)), express=YES_NO,
        status=one_of("packed", "shipped", "delivered", "cancelled"),
    )  # fmt: skip
    goods = join_words(
        [f"{line['quantity']} x {line['product']} at {spell_money(line['unit_price'])} euros" for line in lines]
    )
    day, other = spell_date(contents["ordered_on"], rng.randrange(2)), draw_code(rng)
    text = rng.choice((
        f"On {day} {customer['name']} from {customer['city']} placed order {contents['order_id']}: {goods} apiece. "
        f"The customer asked for {'express' if express else 'standard, not express,'} delivery. By now the order is "
        f"{status}.",
        f"Order {contents['order_id']} ({'express' if express else 'no express'} delivery), status: {status}. Buyer is "
        f"{customer['name']}, {customer['city']}. The date of the order is {day}. Ordered were {goods} each.",
    ))  # fmt: skip
    beside = f" Order {other} of the same week is not meant here." if rng.random() < 0.4 else ""
    return Record("order", contents, schema, text + beside)


def _draw_employee(rng: random.Random) -> Record:
    departments = ("sales", "research", "logistics", "finance")
    name, (manager, former) = draw_person(rng), (draw_person(rng), draw_person(rng))
    boss = None if rng.random() < 0.35 else manager
    contents = {
        "name": name, "department": rng.choice(departments), "started_on": draw_date(rng, 2001, 2024),
        "weekly_hours": rng.choice((20, 25.5, 32, 35, 38.5, 40)),
        "languages": rng.sample(LANGUAGES, rng.randint(1, 3)), "manager": boss,
    }  # fmt: skip
    schema = object_of(
        name=TEXT, department=one_of(*departments), started_on=DATE, weekly_hours=NUMBER, languages=list_of(TEXT),
        manager=TEXT_OR_NULL,
    )  # fmt: skip
    day, spoken = spell_date(contents["started_on"], rng.randrange(2)), join_words(contents["languages"])
    reports = f"reports to {boss}" if boss else "has no manager"
    text = rng.choice((
        f"{name} has worked in {contents['department']} since {day} and {reports}. The contract is for "
        f"{contents['weekly_hours']} hours a week. Languages: {spoken}.",
        f"Personnel note. {name} speaks {spoken}. Since {day} {name} belongs to the department of "
        f"{contents['department']}, works {contents['weekly_hours']} hours weekly and {reports}.",
    ))  # fmt: skip
    beside = f" The desk belonged to {former} before." if rng.random() < 0.4 else ""
    return Record("employee", contents, schema, text + beside)


def _draw_log_line(rng: random.Random) -> Record:
    levels = ("debug", "info", "warning", "error")
    services = ("billing", "search", "mailer", "upload", "sessions", "reports")
    contents = {
        "logged_on": draw_date(rng), "level": rng.choice(levels), "service": rng.choice(services),
        "request": rng.randint(1000, 9_999_999), "duration_ms": rng.randint(1, 90_000) / 10,
        "host": ".".join(str(rng.randint(1, 250)) for _ in range(4)), "retried": rng.random() < 0.5,
    }  # fmt: skip
    schema = object_of(
        logged_on=DATE, level=one_of(*levels), service=TEXT, request=WHOLE, duration_ms=NUMBER,
        host={"type": "string", "format": "ipv4"}, retried=YES_NO,
    )  # fmt: skip
    c, retried = contents, "yes" if contents["retried"] else "no"
    text = rng.choice((
        f"{c['logged_on']} {c['level'].upper()} [{c['service']}] req={c['request']} host={c['host']} "
        f"took {c['duration_ms']}ms retried={retried}",
        f"<{c['level']}> {c['logged_on']} {c['host']} {c['service']}: request {c['request']} finished after "
        f"{c['duration_ms']} ms, {'retried' if c['retried'] else 'not retried'}",
    ))  # fmt: skip
    return Record("log_line", contents, schema, text)


def _draw_letter(rng: random.Random) -> Record:
    currencies = {"EUR": "euros", "CHF": "Swiss francs", "SEK": "Swedish kronor"}
    firm, person, clerk = f"{rng.choice(FIRM_HEADS)} {rng.choice(FIRM_TAILS)}", draw_person(rng), draw_person(rng)
    contents = {
        "invoice": {
            "number": draw_code(rng), "amount": draw_price(rng, 9000), "currency": rng.choice(list(currencies)),
        },
        "sender": firm, "recipient": person, "written_on": draw_date(rng, 2015, 2019),
        "due_on": draw_date(rng, 2020, 2025), "reminder": rng.randint(1, 3),
    }  # fmt: skip
    schema = object_of(
        invoice=object_of(number=TEXT, amount=NUMBER, currency=one_of(*currencies)), sender=TEXT, recipient=TEXT,
        written_on=DATE, due_on=DATE, reminder=WHOLE | {"minimum": 1},
    )  # fmt: skip
    invoice, order = contents["invoice"], rng.randrange(2)
    written, due = spell_date(contents["written_on"], order), spell_date(contents["due_on"], order)
    nth = ("first", "second", "third")[contents["reminder"] - 1]
    text = (
        f"{firm}\n{rng.choice(TOWNS)}, {written}\n\nDear {person},\n\nthis is our {nth} reminder. Our invoice "
        f"{invoice['number']} over {spell_money(invoice['amount'])} {currencies[invoice['currency']]} is still open. "
        f"Please pay it by {due}.\n\nYours sincerely\n{clerk}, accounts"
    )
    return Record("letter", contents, schema, text)


def _draw_event(rng: random.Random) -> Record:
    talks = [{"speaker": draw_person(rng), "topic": topic} for topic in rng.sample(SUBJECTS, rng.randint(1, 3))]
    hall = f"{rng.choice(FIRM_HEADS)} Hall"
    contents = {
        "title": draw_title(rng), "venue": {"name": hall, "town": rng.choice(TOWNS)}, "held_on": draw_date(rng),
        "begins_at_hour": rng.randint(9, 21), "seats": rng.randint(30, 4000), "talks": talks,
        "streamed": rng.random() < 0.5,
    }  # fmt: skip
    schema = object_of(
        title=TEXT, venue=object_of(name=TEXT, town=TEXT), held_on=DATE,
        begins_at_hour=WHOLE | {"minimum": 0, "maximum": 23}, seats=WHOLE,
        talks=list_of(object_of(speaker=TEXT, topic=TEXT)), streamed=YES_NO,
    )  # fmt: skip
    day, seats = spell_date(contents["held_on"], rng.randrange(2)), f"{contents['seats']:,}"
    said = join_words([f"{talk['speaker']} on {talk['topic']}" for talk in talks])
    streamed = "It is streamed" if contents["streamed"] else "It is not streamed"
    text = rng.choice((
        f'"{contents["title"]}": an evening of talks in {hall}, {contents["venue"]["town"]}, on {day} at '
        f"{contents['begins_at_hour']}:00. Speakers are {said}. There are {seats} seats. {streamed}.",
        f'{hall} in {contents["venue"]["town"]} has {seats} seats for "{contents["title"]}". It begins on {day} at '
        f"{contents['begins_at_hour']} o'clock (24-hour clock). We hear {said}. {streamed}.",
    ))  # fmt: skip
    return Record("event", contents, schema, text)


def _draw_book(rng: random.Random) -> Record:
    genres = ("novel", "biography", "travel", "poetry", "crime")
    translated = None if rng.random() < 0.4 else rng.choice(LANGUAGES)
    contents = {
        "title": draw_title(rng), "authors": [draw_person(rng) for _ in range(rng.randint(1, 2))],
        "published_in": rng.randint(1920, 2024), "pages": rng.randint(80, 1200), "genre": rng.choice(genres),
        "translated_from": translated, "on_loan": rng.random() < 0.5,
    }  # fmt: skip
    schema = object_of(
        title=TEXT, authors=list_of(TEXT), published_in=WHOLE, pages=WHOLE, genre=one_of(*genres),
        translated_from=TEXT_OR_NULL, on_loan=YES_NO,
    )  # fmt: skip
    origin = f"translated from {translated}" if translated else "in its original language, so not translated"
    loan = "on loan" if contents["on_loan"] else "not on loan"
    text = (
        f'Catalogue card: "{contents["title"]}" by {join_words(contents["authors"])}, published in '
        f"{contents['published_in']}, {contents['pages']} pages, genre {contents['genre']}, {origin}. The copy is "
        f"{loan}."
    )
    return Record("book", contents, schema, text)


def _draw_match(rng: random.Random) -> Record:
    home, away = rng.sample(TOWNS, 2)
    goals = [{"scorer": draw_person(rng), "minute": minute} for minute in sorted(rng.sample(range(1, 90), 3))]
    for_home = rng.randint(0, 3)
    contents = {
        "home": home, "away": away, "score": {"home": for_home, "away": 3 - for_home}, "played_on": draw_date(rng),
        "spectators": rng.randint(200, 60_000), "goals": goals,
    }  # fmt: skip
    schema = object_of(
        home=TEXT, away=TEXT, score=object_of(home=WHOLE, away=WHOLE), played_on=DATE, spectators=WHOLE,
        goals=list_of(object_of(scorer=TEXT, minute=WHOLE)),
    )  # fmt: skip
    told = join_words([f"{goal['scorer']} in minute {goal['minute']}" for goal in goals])
    text = (
        f"{home} received {away} on {spell_date(contents['played_on'], rng.randrange(2))}. The match ended "
        f"{for_home}:{3 - for_home} before {contents['spectators']:,} spectators. The goals came from {told}."
    )
    return Record("match", contents, schema, text)


def _draw_recipe(rng: random.Random) -> Record:
    units = {
        "g": ("flour", "rice", "butter", "lentils"),
        "ml": ("milk", "cream", "stock"),
        "pieces": ("carrots", "leeks"),
    }
    stuff = rng.sample([(name, unit) for unit, things in units.items() for name in things], rng.randint(2, 4))
    ingredients = [
        {"name": name, "amount": rng.randint(1, 9) * (1 if unit == "pieces" else 50), "unit": unit}
        for name, unit in stuff
    ]
    oven, vegan = rng.choice((160, 180, 200, 220)), rng.random() < 0.5
    dish = f"{rng.choice(TOWNS)} {rng.choice(('soup', 'bake', 'stew', 'pie'))}"
    contents = {
        "dish": dish, "servings": rng.randint(1, 12), "minutes": rng.randint(10, 180), "oven_celsius": oven,
        "ingredients": ingredients, "vegan": vegan,
    }  # fmt: skip
    schema = object_of(
        dish=TEXT, servings=WHOLE, minutes=WHOLE, oven_celsius=WHOLE,
        ingredients=list_of(object_of(name=TEXT, amount=NUMBER, unit=one_of(*units))), vegan=YES_NO,
    )  # fmt: skip
    needed = join_words([f"{part['amount']} {part['unit']} of {part['name']}" for part in ingredients])
    heat = f"Heat the oven to {oven} degrees Celsius."
    text = (
        f"{dish}, for {contents['servings']} {'person' if contents['servings'] == 1 else 'people'}. Take {needed}. "
        f"{heat} The work takes {contents['minutes']} minutes. The dish is {'vegan' if vegan else 'not vegan'}."
    )
    return Record("recipe", contents, schema, text)


def _draw_flat(rng: random.Random) -> Record:
    features = rng.sample(("balcony", "cellar", "lift", "garden", "garage", "fireplace"), rng.randint(1, 4))
    contents = {
        "town": rng.choice(TOWNS), "rooms": rng.choice((1, 1.5, 2, 2.5, 3, 3.5, 4)), "area_m2": rng.randint(20, 180),
        "monthly_rent": draw_price(rng, 3000), "free_from": draw_date(rng), "features": features,
        "pets_allowed": rng.random() < 0.5, "contact": {"name": draw_person(rng), "extension": rng.randint(10, 999)},
    }  # fmt: skip
    schema = object_of(
        town=TEXT, rooms=NUMBER, area_m2=NUMBER, monthly_rent=NUMBER, free_from=DATE, features=list_of(TEXT),
        pets_allowed=YES_NO, contact=object_of(name=TEXT, extension=WHOLE),
    )  # fmt: skip
    c = contents
    text = (
        f"To let in {c['town']}: {c['rooms']} rooms, {c['area_m2']} m2, {spell_money(c['monthly_rent'])} euros a "
        f"month, free from {spell_date(c['free_from'], rng.randrange(2))}. With {join_words(features)}. Pets are "
        f"{'allowed' if c['pets_allowed'] else 'not allowed'}. Ask for {c['contact']['name']}, extension "
        f"{c['contact']['extension']}."
    )
    return Record("flat", contents, schema, text)


OBJECTS: tuple[Callable[[random.Random], Record], ...] = (
    _draw_order, _draw_employee, _draw_log_line, _draw_letter, _draw_event, _draw_book, _draw_match, _draw_recipe,
    _draw_flat,
)  # fmt: skip
