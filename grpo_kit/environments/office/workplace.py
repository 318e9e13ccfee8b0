"""Rows in the form of NVIDIA's workplace assistant (NeMo-Gym): theirs read as tasks of the office, and ours written.

Their row has `responses_create_params` (`input`, and 27 `tools`, 16 kB) and `ground_truth`: [{"name", "arguments" (JSON
text)}], calls on entries of tables that are not in the row. These are the CSV files of NeMo-Gym's
`resources_servers/workplace_assistant/csv_data`, which `read_tables` reads. `read_workplace_row` translates the calls:

    theirs                                                              the office's
    email_send_email, email_reply_email, email_forward_email            send_mail
    calendar_create_event                                               add_event
    project_management_create_task                                      add_task, and change for its list and board
    calendar_, project_management_update_..., ..._update_customer       change
    email_, calendar_, project_management_delete_..., ..._delete_customer   delete

These are 12 of their 14 tools that change something. Rows with the other two, analytics_create_plot and
customer_relationship_manager_add_customer, are refused, and so are those that read the analytics. Calls that only look
something up are left out. A task gets the tables that its calls change, and the people.
"""

import csv
import json
from pathlib import Path
from typing import Any

from grpo_kit.environments.office.office import TABLES, Office
from grpo_kit.environments.office.tables import State, read_state, write_state
from grpo_kit.environments.office.world import World, read_call, read_calls, read_row
from grpo_kit.environments.reading import Refused, give_unusable, read_messages, read_structure, show
from grpo_kit.environments.task import Task, make_task

WORKPLACE_AGENT = "workplace_assistant_simple_agent"  # whose rows lack their tables
Call = tuple[str, dict[str, Any]]
_FILES = {  # by table: its file, and the field of each column
    "mail": (
        "emails.csv",
        {"email_id": "id", "inbox/outbox": "folder", "sender/recipient": "person", "subject": "subject",
         "sent_datetime": "sent", "body": "body"},
    ),
    "events": (
        "calendar_events.csv",
        {"event_id": "id", "event_name": "title", "participant_email": "person", "event_start": "start",
         "duration": "minutes"},
    ),
    "tasks": (
        "project_tasks.csv",
        {"task_id": "id", "task_name": "title", "assigned_to_email": "person", "due_date": "due",
         "list_name": "list", "board": "board"},
    ),
    "customers": (
        "customer_relationship_manager_data.csv",
        {"customer_id": "id", "customer_name": "name", "assigned_to_email": "person", "customer_email": "email",
         "customer_phone": "phone", "last_contact_date": "last_contact", "product_interest": "interest",
         "status": "status", "follow_up_by": "follow_up", "notes": "notes"},
    ),
}  # fmt: skip
_PEOPLE = "email_addresses.csv"
_TABLE_OF = {"send_mail": "mail", "add_event": "events", "add_task": "tasks"}
_CHANGING = {  # table, and the argument that is an entry's id
    "calendar_update_event": ("events", "event_id"),
    "project_management_update_task": ("tasks", "task_id"),
    "customer_relationship_manager_update_customer": ("customers", "customer_id"),
}
_DELETING = {
    "email_delete_email": ("mail", "email_id"),
    "calendar_delete_event": ("events", "event_id"),
    "project_management_delete_task": ("tasks", "task_id"),
    "customer_relationship_manager_delete_customer": ("customers", "customer_id"),
}
_LOOKING = (
    "company_directory_find_email_address", "email_get_email_information_by_id", "email_search_emails",
    "calendar_get_event_information_by_id", "calendar_search_events", "project_management_get_task_information_by_id",
    "project_management_search_tasks", "customer_relationship_manager_search_customers",
)  # fmt: skip


def read_tables(folder: str | Path) -> State:
    """Read the tables of the workplace.

    Args:
        folder: `csv_data` of NeMo-Gym's workplace assistant, with `processed/emails.csv` and so on and
            `raw/email_addresses.csv`.

    Returns:
        The tables of the office; ids are numbers, and a cell that is empty is left out.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is no such table.
    """
    tables = {name: _read_table(Path(folder) / "processed" / file, names) for name, (file, names) in _FILES.items()}
    lines = _find(Path(folder) / "raw" / _PEOPLE).read_text(encoding="utf-8").split()
    tables["people"] = [
        {"id": number, "name": address.split("@")[0].replace(".", " ").title(), "address": address}
        for number, address in enumerate(lines, start=1)
    ]
    try:
        return read_state(json.dumps(tables), TABLES)
    except Refused as refused:
        raise ValueError(
            f"{folder} does not hold the workplace's tables: {refused.args[1]} Check the folder."
        ) from None


def _find(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; the tables are CSV files of NeMo-Gym. Give the folder "
            "resources_servers/workplace_assistant/csv_data of its repository."
        )
    return path


def _read_table(path: Path, names: dict[str, str]) -> list[dict[str, Any]]:
    with _find(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        entries = [{names[column]: cell for column, cell in row.items() if cell and cell.strip()} for row in rows]
        return [entry | {key: int(entry[key]) for key in ("id", "minutes") if key in entry} for entry in entries]
    except (KeyError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} must have the columns {', '.join(names)}, and whole numbers as ids ({error}). Check the file."
        ) from None


@give_unusable
def read_workplace_row(row: dict[str, Any], tables: State) -> Task:
    """Read a row of NVIDIA's workplace assistant.

    Args:
        row: as its file has it.
        tables: what `read_tables` returned.

    Returns:
        A task of the environment `office`; an `Unusable` where the row gives none.
    """
    params = read_structure(row.get("responses_create_params"), "responses_create_params")
    prompt = read_messages(params.get("input") if isinstance(params, dict) else None, "responses_create_params.input")
    given = read_structure(row.get("ground_truth"), "ground_truth")
    calls: list[Call] = []
    for theirs in given if isinstance(given, list) else []:
        calls += _translate(*read_call(theirs), tables, sum(name == "add_task" for name, _ in calls))
    changed = {arguments.get("table", _TABLE_OF.get(name, "")) for name, arguments in calls}
    if not calls:
        raise Refused("idle gold", "the row's gold changes nothing, so an agent that does nothing would be paid")
    names = [name for name in TABLES if name == "people" or name in changed]
    columns = {
        "state": write_state({name: tables[name] for name in names}),
        "gold_calls": json.dumps([{"name": name, "arguments": arguments} for name, arguments in calls]),
    }
    read_row(Office, **columns)
    note = f"The tables of the office are {', '.join(names)}."
    system = f"{prompt[0]['content']} {note}" if prompt[0]["role"] == "system" else note
    rest = prompt[prompt[0]["role"] == "system" :]
    return make_task("office", [{"role": "system", "content": system}, *rest], **columns)


def _translate(name: str, given: dict[str, Any], tables: State, added: int) -> list[Call]:
    """One of their calls as the office's, after so many tasks were added."""
    if name in _LOOKING:
        return []
    try:
        if name in _CHANGING:
            table, key = _CHANGING[name]
            field = _FILES[table][1][given["field"]]
            return [_change(table, int(given[key]), field, given["new_value"])]
        if name in _DELETING:
            table, key = _DELETING[name]
            return [("delete", {"table": table, "id": int(given[key])})]
        if name == "email_send_email":
            return [_send(given["recipient"], given["subject"], given["body"])]
        if name == "email_reply_email":
            mail = tables["mail"][int(given["email_id"])]
            return [_send(mail["person"], f"Re: {mail['subject']}", given["body"])]
        if name == "email_forward_email":
            mail = tables["mail"][int(given["email_id"])]
            return [_send(given["recipient"], f"Fw: {mail['subject']}", mail["body"])]
        if name == "calendar_create_event":
            event = {"title": given["event_name"], "person": given["participant_email"]}
            return [("add_event", event | {"start": given["event_start"], "minutes": int(given["duration"])})]
        if name == "project_management_create_task":
            number = max(tables["tasks"], default=0) + 1 + added
            task = {"title": given["task_name"], "person": given["assigned_to_email"], "due": given["due_date"]}
            fields = ("list", given["list_name"]), ("board", given["board"])
            return [("add_task", task), *(_change("tasks", number, *field) for field in fields)]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Refused("bad gold", f"the gold call of {name} cannot be translated ({show(error)})") from None
    raise Refused("another tool", f"the row's gold calls {name[:60]}, for which the office has no tool")


def _send(to: Any, subject: Any, body: Any) -> Call:
    return "send_mail", {"to": to, "subject": subject, "body": body}


def _change(table: str, id: int, field: str, value: Any) -> Call:
    return "change", {"table": table, "id": id, "field": field, "value": value}


def write_ground_truth(columns: dict[str, Any]) -> list[dict[str, str]]:
    """The gold calls of a task of a world as a row of NeMo-Gym has them: arguments are JSON texts.

    >>> write_ground_truth({"gold_calls": '[{"name": "note", "arguments": {"price": 36}}]'})
    [{'name': 'note', 'arguments': '{"price": 36}'}]
    """
    return [
        {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
        for name, arguments in read_calls(columns["gold_calls"])
    ]


def read_ground_truth(row: dict[str, Any], kind: type[World]) -> dict[str, str]:
    """The columns of a row of ours in NeMo-Gym's form; Refused where the row has no `state`."""
    if row.get("state") is None:
        raise Refused(
            "no tables",
            "the row names entries of tables that it does not have; for NVIDIA's rows, see "
            "grpo_kit.environments.office.workplace.read_workplace_row",
        )
    given = read_structure(row.get("ground_truth"), "ground_truth")
    calls = [read_call(call) for call in (given if isinstance(given, list) else [])]
    gold = json.dumps([{"name": name, "arguments": arguments} for name, arguments in calls], ensure_ascii=False)
    columns = {"state": row["state"], "gold_calls": gold}
    read_row(kind, **columns)
    return columns


def describe_tools(kind: type[World]) -> list[dict[str, Any]]:
    """The tools of a world as a request of the Responses API has them."""
    from transformers.utils import get_json_schema

    functions = [get_json_schema(getattr(kind, name))["function"] for name in kind._tools()]
    return [
        {
            "type": "function",
            "name": function["name"],
            "description": function["description"],
            "parameters": function["parameters"] | {"additionalProperties": False},
            "strict": False,
        }
        for function in functions
    ]
