"""The tables of `notes/environments.md` are those of the rewards' tests, so that no verdict there is out of date.

python -m tests.test_trap_tables     prints them anew
"""

from tests.helpers.settings import ROOT
from tests.rewards.test_code_tests import TRAPS as PROGRAM_TRAPS
from tests.rewards.test_code_tests_attacks import ATTACKS, SLOW
from tests.rewards.test_documents_qa import EQUAL
from tests.rewards.test_instructions_kinds import KINDS
from tests.rewards.test_structured_output import FORMATS, TRAPS

LONGEST = 58  # characters of a reply in a table


def verdict(value, without):
    return without if value is None else f"{value:g}"


def cell(text):
    text = text.replace("\n", " ⏎ ").replace("|", "\\|").replace("`", "'")
    text = "".join(c if c.isprintable() else "�" for c in text)
    return f"`{text if len(text) <= LONGEST else text[: LONGEST - 4] + ' ...'}`" if text.strip() else "(blank)"


def table(headings, rows):
    return "\n".join(["| " + " | ".join(line) + " |" for line in [headings, ["---"] * len(headings), *rows]])


def structured_table():
    rows = [("json", *row) for row in TRAPS] + list(FORMATS)
    lines = [
        [cell(text), kind, trap, verdict(theirs, "by chance"), verdict(ours, "unusable")]
        for kind, text, _, theirs, ours, _, trap in rows
        if theirs != ours
    ]
    return table(["reply", "as", "what it is", "NVIDIA", "ours"], lines)


def instructions_table():
    lines = [
        [f"`{name}`", cell(reply), reason, verdict(theirs, "by chance"), verdict(ours, "unusable")]
        for name, _, reply, theirs, ours, reason in KINDS
        if theirs != ours
    ]
    return table(["kind", "reply", "the reason", "public", "ours"], lines)


def documents_table():
    lines = [
        [cell(gold), cell(reply), note, verdict(theirs, ""), verdict(ours, "")]
        for reply, gold, ours, theirs, note in EQUAL
        if theirs != ours
    ]
    return table(["gold", "reply", "what it is about", "SQuAD's rule", "ours"], lines)


def programs_table():
    lines = [
        [cell("".join(program)), cell("".join(test)), rule, note, verdict(theirs, ""), verdict(ours, "unusable")]
        for rule, program, test, theirs, ours, note in PROGRAM_TRAPS
        if theirs != ours
    ]
    return table(["printed, or the program", "expected, or the test", "rule", "what it is", "pays", "ours"], lines)


def attacks_table():
    """By what stops it and how it ends, for 130 rows would say the same again and again."""
    groups = {}
    for name, layer, _, _, reason in ATTACKS + SLOW:
        groups.setdefault((layer or "only data are compared", reason), []).append(name)
    return table(["stopped by", "ends as", "attacks"], [[*key, "; ".join(names)] for key, names in groups.items()])


TABLES = {
    "structured": structured_table,
    "instructions": instructions_table,
    "documents": documents_table,
    "programs": programs_table,
}
TABLES["attacks"] = attacks_table


def test_the_tables_are_those_of_the_tests():
    notes = (ROOT / "notes/environments.md").read_text(encoding="utf-8")
    for name, make in TABLES.items():
        assert make() in notes, f"the table of {name} is out of date: python -m tests.test_trap_tables"


if __name__ == "__main__":
    print("\n\n".join(f"## {name}\n\n{make()}" for name, make in TABLES.items()))
