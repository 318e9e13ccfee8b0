"""NVIDIA's workplace: rows in its form on tables in its form, translated one by one; ours written and read back."""

import json

import pytest

from grpo_kit.environments.gym_rows import read_gym_row, write_gym_row
from grpo_kit.environments.office import WORLDS, make_tasks
from grpo_kit.environments.office.office import Office
from grpo_kit.environments.office.workplace import describe_tools, read_tables, read_workplace_row
from grpo_kit.environments.office.world import read_row
from grpo_kit.environments.task import Task, Unusable
from grpo_kit.environments.tiny_tasks import make_tasks as make_tiny_tasks

FILES = {
    "raw/email_addresses.csv": "raj.patel@atlas.com\nlena.schmidt@atlas.com\n",
    "processed/emails.csv": """email_id,inbox/outbox,sender/recipient,subject,sent_datetime,body
00000007,inbox,raj.patel@atlas.com,Plan,2023-10-01 09:15:02,"Sam,\\n\\nHere it is.\\n\\nRaj"
00000000,outbox,lena.schmidt@atlas.com,Lunch,2023-10-02 10:00:00,Today?
""",
    "processed/calendar_events.csv": """event_id,event_name,participant_email,event_start,duration
00000013,sync up,raj.patel@atlas.com,2023-08-01 09:00:00,90
""",
    "processed/project_tasks.csv": """task_id,task_name,assigned_to_email,list_name,due_date,board
00000149,Add animation,lena.schmidt@atlas.com,Backlog,2023-11-27,Front end
00000150,Fix the form,raj.patel@atlas.com,In Review,2023-11-28,Design
""",
    "processed/customer_relationship_manager_data.csv": (
        "customer_id,assigned_to_email,customer_name,customer_email,customer_phone,last_contact_date,product_interest,"
        "status,follow_up_by,notes\n"
        "00000189,lena.schmidt@atlas.com,Taylor Jackson,taylor.jackson@nanolabs,,2023-11-30 23:59:00,Consulting,Lost,"
        "2023-12-22 23:59:00,2023-11-07: Had a call.\n"
        "00000190,raj.patel@atlas.com,Quinn Harris,quinn@force,123,2023-11-30 23:59:00,Software,Won,,\n"
    ),
}
CRM, PM = "customer_relationship_manager_", "project_management_"
RAJ = "raj.patel@atlas.com"


def sent(subject, body):
    """The change that a mail to Raj is."""
    return "mail", "new", (("body", body), ("folder", "outbox"), ("person", RAJ), ("subject", subject))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("csv_data")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def tables(folder):
    return read_tables(folder)


def row(*calls):
    prompt = [{"role": "system", "content": "It is Thursday."}, {"role": "user", "content": "Do it."}]
    return {
        "id": 3,
        "responses_create_params": {"input": prompt, "tools": [{"name": "email_send_email"}], "temperature": 1.0},
        "ground_truth": [{"name": name, "arguments": json.dumps(arguments)} for name, arguments in calls],
        "category": "workplace_assistant_email",
        "environment_name": "workplace_assistant",
    }


def test_tables_are_read_with_numbers_as_ids_and_without_empty_cells(tables):
    assert tables["people"][1] == {"name": "Raj Patel", "address": "raj.patel@atlas.com"}
    assert list(tables["mail"]) == [7, 0] and tables["mail"][0]["folder"] == "outbox"
    assert tables["events"] == {
        13: {"title": "sync up", "person": "raj.patel@atlas.com", "start": "2023-08-01 09:00", "minutes": 90}
    }
    assert tables["tasks"][149]["list"] == "Backlog" and tables["tasks"][149]["board"] == "Front end"
    assert "phone" not in tables["customers"][189] and "follow_up" not in tables["customers"][190]


TRANSLATED = [  # their call, what it changes
    (("email_send_email", {"recipient": "Raj.Patel@atlas.com", "subject": "Tea", "body": "Now."}),
     sent("tea", "now")),
    (("email_reply_email", {"email_id": "00000007", "body": "Thanks."}),
     sent("plan", "thanks")),
    (("email_forward_email", {"email_id": "00000000", "recipient": RAJ}),
     sent("lunch", "today")),
    (("email_delete_email", {"email_id": "00000000"}), ("mail", 0, "gone")),
    (("calendar_create_event", {"event_name": "Tea", "participant_email": RAJ,
      "event_start": "2023-12-01 09:30:00", "duration": "30"}),
     ("events", "new", (("minutes", 30), ("person", RAJ), ("start", "2023-12-01 09:30"), ("title", "tea")))),
    (("calendar_update_event", {"event_id": "00000013", "field": "event_start", "new_value": "2023-08-02 10:00:00"}),
     ("events", 13, "start", "2023-08-02 10:00")),
    (("calendar_update_event", {"event_id": "00000013", "field": "duration", "new_value": "45"}),
     ("events", 13, "minutes", 45)),
    (("calendar_delete_event", {"event_id": "00000013"}), ("events", 13, "gone")),
    ((PM + "create_task", {"task_name": "Draw", "assigned_to_email": RAJ, "list_name": "Backlog",
      "due_date": "2023-12-05", "board": "Design"}),
     ("tasks", "new", (("board", "design"), ("due", "2023-12-05"), ("list", "backlog"), ("person", RAJ),
      ("title", "draw")))),
    ((PM + "update_task", {"task_id": "00000149", "field": "list_name", "new_value": "In Review"}),
     ("tasks", 149, "list", "in review")),
    ((PM + "update_task", {"task_id": "00000149", "field": "assigned_to_email", "new_value": RAJ}),
     ("tasks", 149, "person", RAJ)),
    ((PM + "delete_task", {"task_id": "00000150"}), ("tasks", 150, "gone")),
    ((CRM + "update_customer", {"customer_id": "00000189", "field": "status", "new_value": "Won"}),
     ("customers", 189, "status", "won")),
    ((CRM + "update_customer", {"customer_id": "00000189", "field": "customer_phone", "new_value": "77"}),
     ("customers", 189, "phone", "77")),
    ((CRM + "delete_customer", {"customer_id": "00000189"}), ("customers", 189, "gone")),
]  # fmt: skip


@pytest.mark.parametrize(("call", "change"), TRANSLATED)
def test_each_of_twelve_tools_changes_what_theirs_changes(tables, call, change):
    task = read_workplace_row(row(("email_search_emails", {"query": "x"}), call), tables)
    _, changes = read_row(Office, **task.columns)
    assert changes == {change: 1}
    assert set(json.loads(task.columns["state"])) == {"people", change[0]}
    assert task.prompt == [
        {"role": "system", "content": f"It is Thursday. The tables of the office are people, {change[0]}."},
        {"role": "user", "content": "Do it."},
    ]


def test_two_new_tasks_get_their_own_lists(tables):
    new = {"assigned_to_email": RAJ, "due_date": "2023-12-05", "board": "Design"}
    calls = [
        (PM + "create_task", new | {"task_name": name, "list_name": which})
        for name, which in (("A", "Backlog"), ("B", "In Review"))
    ]
    _, changes = read_row(Office, **read_workplace_row(row(*calls), tables).columns)
    assert sorted((dict(fields)["title"], dict(fields)["list"]) for _, _, fields in changes) == [
        ("a", "backlog"), ("b", "in review"),
    ]  # fmt: skip


DELETE = ("email_delete_email", {"email_id": "00000007"})
REFUSED = [
    (row((CRM + "add_customer", {"customer_name": "Jo"})), "another tool"),
    (row(("analytics_create_plot", {"plot_type": "bar"}), DELETE), "another tool"),
    (row(("analytics_total_visits_count", {}), DELETE), "another tool"),
    (row(("__init__", {}), DELETE), "another tool"),
    (row(("x" * 10**6, {})), "another tool"),
    (row(("email_search_emails", {"query": "x"})), "idle gold"),
    (row(), "idle gold"),
    (row((PM + "update_task", {"task_id": "00000149", "field": "list_name", "new_value": "backlog"})), "idle gold"),
    (row(("email_delete_email", {"email_id": "00000099"})), "bad gold"),
    (row(("email_delete_email", {"email_id": "seven"})), "bad gold"),
    (row(("email_delete_email", {"email_id": None})), "bad gold"),
    (row(("email_delete_email", {})), "bad gold"),
    (row(("email_reply_email", {"email_id": "00000099", "body": "x"})), "bad gold"),
    (row(("email_reply_email", {"email_id": "00000007", "body": ["x"]})), "bad gold"),
    (row((PM + "update_task", {"task_id": "00000149", "field": "colour", "new_value": "x"})), "bad gold"),
    (row((PM + "update_task", {"task_id": "00000149", "field": ["board"], "new_value": "x"})), "bad gold"),
    (row((PM + "update_task", {"task_id": "00000149", "field": "board", "new_value": "Kitchen"})), "bad gold"),
    (row((PM + "update_task", {"task_id": "00000149", "field": "task_id", "new_value": "1"})), "bad gold"),
    (row(DELETE) | {"ground_truth": "[]"}, "idle gold"),
    (row(DELETE) | {"ground_truth": None}, "idle gold"),
    (row(DELETE) | {"ground_truth": [3]}, "bad gold"),
    (row(DELETE) | {"ground_truth": [{"name": "email_delete_email", "arguments": "{"}]}, "no JSON"),
    (row(DELETE) | {"ground_truth": [{"name": "email_delete_email", "arguments": "[" * 50_000}]}, "no JSON"),
    (row(DELETE) | {"responses_create_params": {}}, "no prompt"),
    (row(DELETE) | {"responses_create_params": None}, "no prompt"),
    ({}, "no prompt"),
    (None, "not a row"),
]


def test_rows_that_cannot_be_translated_are_refused_with_the_reason(tables):
    for given, reason in REFUSED:
        task = read_workplace_row(given, tables)
        assert isinstance(task, Unusable) and task.reason == reason and len(task.detail) < 400, (given, task)


def test_a_folder_without_the_tables_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"emails\.csv is missing; .* Give the folder"):
        read_tables(tmp_path)
    (tmp_path / "processed").mkdir()
    for header in ("a,b\n1,2\n", FILES["processed/emails.csv"].replace("00000007", "seven"), "email_id\n1,2,3\n"):
        (tmp_path / "processed/emails.csv").write_text(header)
        with pytest.raises(ValueError, match=r"emails\.csv must have the columns email_id, .*Check the file"):
            read_tables(tmp_path)


@pytest.mark.parametrize("name", WORLDS)
def test_tasks_of_ours_are_written_with_their_tools_and_read_back(name):
    made = make_tasks(20, seed=4) if name == "office" else make_tiny_tasks(name, 20, seed=4)
    for number, task in enumerate(made):
        written = json.loads(json.dumps(write_gym_row(task, name, f"{name}-{number}")))
        assert read_gym_row(written, name) == task
        tools = {tool["name"]: tool["parameters"] for tool in written["responses_create_params"]["tools"]}
        for call in written["ground_truth"]:
            arguments = json.loads(call["arguments"])
            assert set(tools[call["name"]]["required"]) <= set(arguments) <= set(tools[call["name"]]["properties"])
    assert written["agent_ref"]["name"] == f"{name.replace('-', '_')}_simple_agent"


def test_a_tool_is_described_as_theirs_are():
    tool = describe_tools(Office)[3]
    assert list(tool) == ["type", "name", "description", "parameters", "strict"] and tool["strict"] is False
    assert tool["name"] == "delete" and tool["parameters"] == {
        "type": "object",
        "properties": {
            "table": {"type": "string", "description": "mail, events or tasks."},
            "id": {"type": "integer", "description": "The id of the entry."},
        },
        "required": ["table", "id"],
        "additionalProperties": False,
    }


def test_a_row_without_its_tables_says_where_to_read_it():
    task = read_gym_row(row(DELETE), "office")
    assert task.reason == "no tables" and "read_workplace_row" in task.detail
    written = write_gym_row(Task([{"role": "user", "content": "q"}], make_tasks(1, seed=1)[0].columns), "office", "o")
    assert read_gym_row(written | {"ground_truth": []}, "office").reason == "bad gold"
    assert read_gym_row(written | {"state": "{}"}, "office").reason == "bad gold"


@pytest.mark.parametrize("number", [float("inf"), float("nan"), [13], "13abc", None])
def test_an_id_that_is_no_number_makes_a_row_unusable(tables, number):
    found = read_workplace_row(row(("calendar_delete_event", {"event_id": number})), tables)
    assert found.reason == "bad gold" and "cannot be translated" in found.detail
