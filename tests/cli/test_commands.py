"""Commands work on each database, with the application's models or with a URL alone, and fail in one line."""

import csv
import io
import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import ModuleType

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from databases import Database
from registering import recording
from sqlaudit import AuditContextManager, history_of, unregister_hooks
from sqlaudit.cli import describing
from sqlaudit.cli.commands import program
from sqlaudit.cli.options import Writing
from sqlaudit.display import safe, shortened_pair
from warehouse_history import changeset_id, fill

Run = Callable[..., Result]
HOSTILE = "\x1b[31mred\x1b]0;title\x07 [bold]x[/bold] \u202e\x9b2J\r\n"


def run(*arguments: str, **options: object) -> Result:
    result = CliRunner().invoke(program, list(arguments), prog_name="sqlaudit", **options)  # type: ignore[arg-type]
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def rows(*arguments: str) -> list[dict[str, object]]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def url(module: ModuleType, database: Database, monkeypatch: pytest.MonkeyPatch) -> str:
    """Set the URL of each database, which has the history of the page, as the default."""
    engine = sa.create_engine(database.url)
    fill(engine, module)
    engine.dispose()
    text = database.url.render_as_string(hide_password=False)
    monkeypatch.setenv("SQLAUDIT_URL", text)
    return text


@pytest.fixture
def url_alone(url: str, tmp_path: Path) -> str:
    (tmp_path / "pyproject.toml").unlink()
    return url


# --- reading ----------------------------------------------------------------------------------------------------


@pytest.mark.no_tables
def test_a_log_has_the_field_changes_of_all_tables(url: str) -> None:
    changes = rows("log", "-n", "1000", "--oldest-first")
    assert len(changes) == 27
    assert [change["timestamp"] for change in changes] == sorted(str(change["timestamp"]) for change in changes)
    assert rows("log", "-n", "1000")[0]["reason"] == "renegotiated"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--field", "terms", "--operation", "update"], [("terms", "bob"), ("terms", "bob")]),
        (["--field", "price", "--old", "0.12"], [("price", "carol")]),
        (["--new", "orders@nuts.example"], [("email", "carol")]),
        (["--actor-type", "agent", "--on-behalf-of", "carol"], [("price", "pricing-bot")] * 2),
        (["--actor-type", "service"], [("stock", "stock-sync")]),
        (["--run", "nightly"], []),
        (["--user", "bob", "--until", "2026-03-01 20:00", "--operation", "update"], [("terms", "bob")]),
    ],
)
def test_a_log_of_all_tables_has_the_filters_of_one(
    warehouse: str, options: list[str], expected: list[tuple[str, str]]
) -> None:
    assert [(each["field_name"], each["changed_by"]) for each in rows("log", *options)] == expected


@pytest.mark.no_tables
@pytest.mark.parametrize("with_models", [True, False])
def test_what_can_be_read_with_models_can_be_read_with_the_url_alone(
    url: str, with_models: bool, tmp_path: Path
) -> None:
    if not with_models:
        (tmp_path / "pyproject.toml").unlink()
    [price] = rows("log", "parts", "1", "--field", "price", "--user", "carol")
    assert (price["old_value"], price["new_value"], price["reason"]) == ("0.12", "0.15", "new price list")
    assert [each["operation"] for each in rows("log", "parts", "2", "--operation", "delete")] == ["delete"] * 4
    assert json.loads(run("show", "parts", "1", "--at", "2026-03-01 16:00", "--json").stdout)["stock"] == 480
    assert json.loads(run("show", "parts", "1", "--at", "1", "--json").stdout)["stock"] == 500
    assert {each["field_name"]: each["version"] for each in rows("blame", "parts", "1")} == {
        "id": 1,
        "name": 1,
        "price": 4,
        "stock": 2,
    }
    assert {each["version"] for each in rows("blame", "parts", "1", "--at", str(changeset_id(1)))} == {1}
    found = json.loads(run("diff", "parts", "1", "1", str(changeset_id(4)), "--json").stdout)
    assert found["fields"] == {"price": ["0.12", "0.15"], "stock": [500, 480]}
    assert [each["changeset_id"] for each in rows("changesets", "suppliers", "--user", "bob")] == [
        str(changeset_id(number)) for number in (7, 3)
    ]
    assert len(rows("log", "supplier_tags", "1,1")) == 2
    versions = {each["table"]: each["versions"] for each in rows("status")}
    assert versions == {"parts": 7, "suppliers": 4, "tags": 1, "supplier_tags": 1}


@pytest.mark.no_tables
def test_status_tells_the_size_of_a_table(url: str, database: Database) -> None:
    sizes = [each["bytes"] for each in rows("status")]
    assert all(isinstance(size, int) and size > 0 for size in sizes) or database.url.get_backend_name() == "sqlite"


def test_csv_has_the_values_that_json_has(warehouse: str) -> None:
    [read] = csv.DictReader(io.StringIO(run("log", "parts", "1", "--field", "stock", "-n", "1", "--csv").stdout))
    [written] = rows("log", "parts", "1", "--field", "stock", "-n", "1")
    assert read == {name: "" if value is None else _text(value) for name, value in written.items()}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def test_nothing_found_is_an_empty_array_and_no_error(warehouse: str) -> None:
    assert rows("log", "parts", "77") == []
    assert run("log", "parts", "77").stderr == "No changes.\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-03-01 16:00", "2026-03-01T16:00:00+00:00"),
        ("2026-03-01T16:00:00+02:00", "2026-03-01T14:00:00+00:00"),
        ("1 March 2026 16:00", "2026-03-01T16:00:00+00:00"),
        ("2026/3/1 16:00", "2026-03-01T16:00:00+00:00"),
    ],
)
def test_an_instant_can_be_written_in_several_ways(warehouse: str, text: str, expected: str) -> None:
    found = rows("changesets", "--until", text)
    assert len(found) == sum(
        datetime.fromisoformat(str(each["timestamp"])) <= datetime.fromisoformat(expected)
        for each in rows("changesets")
    )
    assert run("show", "parts", "1", "--at", text).exit_code == 0


# --- writing ----------------------------------------------------------------------------------------------------


@pytest.mark.spread
@pytest.mark.no_tables
def test_undo_does_what_it_planned_and_records_who_and_why(url: str, module: ModuleType) -> None:
    ids = [str(changeset_id(number)) for number in (4, 5, 6)]
    asked = run("undo", *ids, "--reason", "ticket 41", input="y\n")
    assert asked.exit_code == 0, asked.output
    assert "Part 1  update" in asked.stdout
    [undone] = rows("log", "parts", "1", "--field", "price", "-n", "1")
    assert (undone["new_value"], undone["changed_by"], undone["reason"]) == ("0.12", "ops", "ticket 41")


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_without_a_yes_nothing_is_undone(warehouse: str, answer: str) -> None:
    before = run("log", "--json").stdout
    assert run("undo", str(changeset_id(6)), input=answer).exit_code == 1
    assert run("restore", "parts", "1", "--to", "1", input=answer).exit_code == 1
    assert run("log", "--json").stdout == before


def test_what_changed_while_the_question_waited_is_not_undone(warehouse: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer_late(writing: Writing, question: str) -> None:
        if writing.yes:
            return
        result = run("restore", "parts", "1", "--to", "1", "--yes", "--user", "eve")
        assert result.exit_code == 0, result.output

    monkeypatch.setattr(Writing, "confirm", answer_late)
    result = run("restore", "parts", "1", "--to", "2")
    assert result.exit_code == 1
    assert "nothing was done" in result.stderr
    assert rows("log", "parts", "1", "-n", "1")[0]["changed_by"] == "eve"


@pytest.mark.spread
@pytest.mark.no_tables
def test_a_restore_of_chosen_fields_leaves_the_others(url: str) -> None:
    assert run("restore", "parts", "1", "--to", "1", "--field", "price", "--yes").exit_code == 0
    now = json.loads(run("show", "parts", "1", "--json").stdout)
    assert (now["price"], now["stock"]) == ("0.12", 480)


@pytest.mark.spread
@pytest.mark.no_tables
def test_backfill_and_catch_up_record_what_was_not_recorded(url: str, module: ModuleType) -> None:
    engine = sa.create_engine(url)
    table = module.Part.__table__
    with engine.begin() as connection:  # without hooks
        connection.execute(sa.insert(table).values(id=9, name="nut", price=Decimal("0.01"), stock=1))
        connection.execute(sa.update(table).where(table.c.id == 1).values(stock=7))
    engine.dispose()
    assert rows("backfill", "parts", "--yes")[0]["rows"] == 1
    assert run("catch-up", "parts", "--yes", "--user", "ops2").exit_code == 0
    [caught] = rows("log", "parts", "1", "--field", "stock", "-n", "1")
    assert (caught["old_value"], caught["new_value"], caught["changed_by"]) == (480, 7, "ops2")


@pytest.mark.no_tables
def test_check_finds_and_mends_what_was_written_past_sqlaudit(url: str, module: ModuleType) -> None:
    assert run("check").exit_code == 0
    engine = sa.create_engine(url)
    parts, history = module.Part.__table__, history_of(module.Part).__table__
    with engine.begin() as connection:  # without hooks
        connection.execute(sa.update(parts).values(stock=7))
        connection.execute(sa.delete(history).where(history.c.id == 1, history.c.audit_version == 2))
    engine.dispose()
    found = run("check", "parts", "--json")
    assert found.exit_code == 3
    assert {each["code"] for each in json.loads(found.stdout)["findings"]} == {"missing-version", "unrecorded-change"}
    assert run("check", "suppliers").exit_code == 0
    mended = run("check", "--repair", "--yes", "--user", "ops2")
    assert mended.exit_code == 3, "a version that was deleted stays missing"
    assert "2 faults, 1 mended" in mended.stdout
    assert rows("log", "parts", "1", "--field", "stock", "-n", "1")[0]["changed_by"] == "ops2"


@pytest.mark.spread
@pytest.mark.no_tables
@pytest.mark.parametrize(
    ("command", "heading"),
    [
        ("check", "code,table,"),
        ("log parts 99", "version,timestamp,operation,"),
        ("changesets --user nobody", "changeset_id,timestamp,changed_by,"),
        ("diff parts 1 1 1", "field_name,old_value,new_value"),
        ("erasures parts", "erasure_id,"),
        ("holds", "hold_id,"),
    ],
)
def test_csv_has_its_heading_also_without_rows(url: str, command: str, heading: str) -> None:
    result = run(*command.split(), "--csv")
    assert result.exit_code == 0, result.output
    [line] = result.stdout.splitlines()
    assert line.startswith(heading)


@pytest.mark.spread
@pytest.mark.no_tables
def test_status_counts_the_faults_of_histories_unless_they_are_large(
    url: str, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {each["table"]: each["findings"] for each in rows("status")} == dict.fromkeys(
        ("parts", "suppliers", "tags", "supplier_tags"), 0
    )
    engine = sa.create_engine(url)
    with engine.begin() as connection:  # without hooks
        connection.execute(sa.update(module.Part).values(stock=7))
    engine.dispose()
    faulty = run("status", "--json")
    assert (faulty.exit_code, faulty.stderr) == (3, "")
    assert {each["table"]: each["findings"] for each in json.loads(faulty.stdout) if each["findings"]} == {"parts": 1}
    assert run("status", "suppliers").exit_code == 0
    monkeypatch.setattr(describing, "_QUICKLY_CHECKED", 3)
    small = run("status")
    assert (small.exit_code, "of their size: suppliers, parts. Add --check" in small.stderr) == (0, True)
    assert run("status", "--check").exit_code == 3
    assert {each["findings"] for each in rows("status", "--no-check")} == {None}
    (tmp_path / "pyproject.toml").unlink()
    assert {each["findings"] for each in rows("status")} == {None}


@pytest.mark.no_tables
def test_erase_takes_values_out_of_all_versions_once_it_is_confirmed(url: str) -> None:
    options = ["suppliers", "1", "--field", "email", "--field", "name", "--reason", "request"]
    assert run("erase", *options, "--value", "name=N.N.", input="n\n").exit_code == 1
    assert rows("erasures", "suppliers") == []
    asked = run("erase", *options, "--value", "name=N.N.", input="y\n")
    assert (asked.exit_code, "4 versions" in asked.output) == (0, True)
    for command in (["log", "suppliers"], ["show", "suppliers", "1"], ["show", "suppliers", "1", "--at", "1"]):
        output = run(*command, "--json").stdout
        assert "nuts" not in output.lower()
        assert "erased" in output
    [erased] = rows("erasures", "suppliers")
    assert (erased["fields"], erased["reason"], erased["erased_by"]) == (["email", "name"], "request", "ops")


@pytest.mark.spread
@pytest.mark.no_tables
def test_erase_actor_takes_a_user_out_of_all_tables_once_it_is_confirmed(url: str) -> None:
    asked = run("erase-actor", "bob", "--reason", "request", input="n\n")
    assert (asked.exit_code, "suppliers: 2 versions of 1 row" in asked.output) == (1, True)
    assert rows("log", "--user", "bob")
    planned = json.loads(run("erase-actor", "bob", "--reason", "request", "--dry-run", "--json").stdout)
    assert planned["versions"] == 3
    done = run("erase-actor", "bob", "--reason", "request", "--yes")
    assert (done.exit_code, "supplier_tags: 1 version of 1 row" in done.output) == (0, True)
    assert rows("log", "--user", "bob") == []
    assert {change["changed_by"] for change in rows("log", "suppliers", "--field", "terms")} == {"alice", "(erased)"}
    assert "suppliers: audit_changed_by" in run("erasures", "suppliers").output


SHOP = """
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlaudit import track_table
from sqlaudit.maintenance import maintenance_tables

class Base(DeclarativeBase):
    pass

@track_table(personal=["name"])
class Client(Base):
    __tablename__ = "clients"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]

@track_table(subject="client_id", personal=["address"])
class Purchase(Base):
    __tablename__ = "purchases"
    id: Mapped[int] = mapped_column(primary_key=True)
    client_id: Mapped[int] = mapped_column(ForeignKey("clients.id"))
    address: Mapped[str]

maintenance_tables(Base.metadata)
"""


def test_erase_shows_and_erases_the_rows_that_follow(
    terminal: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("shop_of_clients")
    monkeypatch.setitem(sys.modules, "shop_of_clients", module)
    exec(SHOP, vars(module))
    monkeypatch.setenv("SQLAUDIT_MODELS", "shop_of_clients:Base")
    monkeypatch.setenv("SQLAUDIT_URL", f"sqlite:///{tmp_path / 'shop.db'}")
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    with recording(engine, module.Base.metadata) as maker, maker() as session:
        session.add(module.Client(id=1, name="Ada"))
        session.flush()
        session.add_all([module.Purchase(id=id, client_id=1, address="1 Elm Road") for id in (1, 2)])
        session.commit()
    engine.dispose()
    command = ["erase", "clients", "1", "--reason", "request"]
    refused = run(*command, "--yes")
    assert (refused.exit_code, "Purchase: {'address'" in refused.stderr) == (1, True)
    options = ["--value", "purchases.address=-"]
    plan = run(*command, *options, "--dry-run").output
    assert plan == "Client 1: name\n  1 version; request\n  purchases: address of 2 rows, 2 versions\n"
    assert rows("erasures", "clients") == []
    assert "from 3 versions?" in run(*command, *options, input="y\n").output
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        assert connection.execute("SELECT address FROM purchases").fetchall() == [("-",), ("-",)]
    assert json.loads(run("show", "purchases", "1", "--at", "1", "--json").stdout)["address"] == {"erased": True}
    module.Base.registry.dispose()


@pytest.mark.no_tables
def test_prune_removes_what_it_planned_but_nothing_that_is_held(url: str) -> None:
    [planned] = rows("prune", "parts", "--keep-last", "2", "--dry-run")
    assert planned["rows"] == 3
    [held] = rows("hold", "parts", "1", "--reason", "audit of 2026")
    assert (held["table"], held["key"], held["held_by"]) == ("parts", 1, "ops")
    asked = run("prune", "parts", "--keep-last", "2", input="n\n")
    assert (asked.exit_code, "1 version" in asked.output) == (1, True)
    assert [each["hold_id"] for each in rows("holds", "parts")] == [held["hold_id"]]
    assert run("release", str(held["hold_id"])).exit_code == 0
    assert rows("holds") == []
    assert run("prune", "parts", "--keep-last", "2", "--yes").exit_code == 0
    early = run("show", "parts", "1", "--at", "2026-03-01 13:00")
    assert (early.exit_code, "was pruned before" in early.stderr) == (1, True)
    status = {each["table"]: each["pruned_before"] for each in rows("status")}
    assert status["parts"] is not None
    assert status["suppliers"] is None


@pytest.mark.spread
@pytest.mark.no_tables
def test_what_was_pruned_is_told_with_the_url_alone(url: str, tmp_path: Path) -> None:
    assert run("prune", "parts", "--keep-last", "1", "--yes").exit_code == 0
    (tmp_path / "pyproject.toml").unlink()
    for arguments in (
        ["show", "parts", "1", "--at", "2026-03-01 16:00"],
        ["checkout", "2026-03-01 16:00", "--to", "march.db"],
        ["log", "parts", "--since", "2026-03-01 16:00"],
    ):
        result = run(*arguments)
        assert (result.exit_code, "'parts' was pruned before" in result.stderr) == (1, True)
    assert {each["table"]: each["pruned_before"] is not None for each in rows("status")}["parts"]
    assert json.loads(run("show", "parts", "1", "--json").stdout)["stock"] == 480


@pytest.mark.parametrize("with_models", [True, False])
def test_checkout_copies_the_past_into_a_file(url: str, with_models: bool, tmp_path: Path) -> None:
    if not with_models:
        (tmp_path / "pyproject.toml").unlink()
    report = json.loads(run("checkout", "2026-03-01 16:00", "--to", "then.db", "--json").stdout)
    assert report["tables"] == {"parts": 2, "suppliers": 1, "tags": 1, "supplier_tags": 0}
    with closing(sqlite3.connect(tmp_path / "then.db")) as connection:
        assert connection.execute("SELECT id, stock FROM parts ORDER BY id").fetchall() == [(1, 480), (2, 0)]
    again = run("checkout", "2026-03-01 16:00", "--to", "then.db")
    assert (again.exit_code, again.stderr.count("\n")) == (1, 1)
    around = run("checkout", "2026-03-02 07:00", "--to", "slice.db", "--row", "parts", "1", "--json")
    assert json.loads(around.stdout)["tables"]["parts"] == 1


def test_a_mark_is_made_once_and_removed(warehouse: str) -> None:
    assert run("mark", "x").exit_code == 0
    assert run("mark", "x").exit_code == 1
    assert run("mark", "x", "--remove").exit_code == 0
    assert [each["name"] for each in rows("marks")] == ["before the price rise"]


# --- what a terminal must not get ---------------------------------------------------------------------------------


def test_no_value_reaches_the_terminal_as_a_command(warehouse: str) -> None:
    engine = sa.create_engine(warehouse)
    with recording(engine) as sessions, sessions() as session, AuditContextManager(user_id=HOSTILE, reason=HOSTILE):
        part = session.get_one(sys.modules["warehouse"].Part, 1)
        part.name = HOSTILE
        session.commit()
    engine.dispose()
    for command in (
        ["log", "-n", "1"],
        ["log", "parts", "1"],
        ["log", "parts", "1", "--json"],
        ["show", "parts", "1"],
        ["show", "parts", "1", "--json"],
        ["blame", "parts", "1"],
        ["diff", "parts", "1", "1", "5"],
        ["changesets", "-n", "1"],
        ["restore", "parts", "1", "--to", "1", "--dry-run"],
        ["show", HOSTILE, "1"],
        ["show", "parts", HOSTILE],
        ["log", "--since", HOSTILE],
    ):
        output = run(*command).output
        assert "red" in output
        assert [character for character in output if not character.isprintable() and character != "\n"] == [], command


def test_a_text_without_control_characters_stays_as_it_is() -> None:
    assert safe("Größe: 5 € [bold]") == "Größe: 5 € [bold]"
    assert safe("a\x1bb\u202ec\nd") == "a\\x1bb\\u202ec\\nd"


@pytest.mark.parametrize("width", [24, 40, 60, 100])
def test_two_long_texts_are_shortened_around_their_difference(width: int) -> None:
    old, new = "x" * 50 + "one" + "y" * 50, "x" * 50 + "two" + "y" * 50
    first, second = shortened_pair(old, new, width)
    assert len(first) + len(second) <= width
    assert ("o" in first, "t" in second) == (True, True)


SECRETS = ["hunter2", "s3cr/t"]


@pytest.mark.spread
@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://u:hunter2@127.0.0.1:1/x",
        "postgresql+psycopg://u@127.0.0.1:1/x?password=hunter2",
        "mysql+pymysql://u:s3cr%2Ft@127.0.0.1:1/x",
        "mysql+pymysql://u@127.0.0.1:1/x?passwd=hunter2",
        "mysql+pymysql://u:hunter2@127.0.0.1:1/x?wrong_option=hunter2",
        "nothing://u:hunter2@host/x",
        "mysql+pymysql://u:hunter2@127.0.0.1:port/x",
        "mysql+pymysql://u:hunter2/@127.0.0.1/x",
        "mysql+pymysql://u:/hunter2:hunter2@127.0.0.1/x",
        "hunter2",
    ],
)
def test_a_password_is_never_printed(terminal: None, url: str) -> None:
    for command in (["status"], ["log"], ["status", "--json"]):
        result = run(*command, "--url", url)
        assert result.exit_code in (1, 2)
        assert result.output.startswith("Error: ")
        assert result.output.count("\n") == 1
        assert not [secret for secret in SECRETS if secret in result.output]


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["log", "prts"], 2, "Did you mean 'parts'?"),
        (["log", "qqq"], 2, "There are parts, supplier_tags, suppliers, tags."),
        (["show", "parts", "99"], 1, "has no history"),
        (["show", "parts", "x"], 1, "has no history"),
        (["show", "parts", "1", "--at", "gestern"], 2, "is not an instant"),
        (["show", "parts", "1", "--at", "99"], 1, "has no version 99"),
        (["show", "parts", "1", "--at", "mark:no"], 1, "There is no mark 'no'"),
        (["log", "supplier_tags", "1"], 2, "Write them as supplier_id,tag_id"),
        (["blame", "supplier_tags", "1,1"], 2, "Use log"),
        (["blame", "parts", "2"], 1, "is deleted"),
        (["blame", "parts", "1", "--at", "2020-01-01"], 1, "has no history, as of 2020-01-01"),
        (["undo", "no-uuid", "--yes"], 1, "is not a changeset id"),
        (["undo", str(changeset_id(77)), "--yes"], 1, "changeset"),
        (["undo", "--yes"], 2, "Name a CHANGESET"),
        (["restore", "parts", "1", "--to", "1", "--field", "colour", "--yes"], 1, "colour"),
        (["log", "parts", "1", "--include", "tags"], 1, "tags"),
        (["log", "--include", "tags"], 2, "--include needs"),
        (["erase", "parts", "1", "--reason", "x", "--yes"], 2, "--field"),
        (["erase", "parts", "1", "--field", "name", "--reason", "x", "--yes"], 1, "name"),
        (["erase", "parts", "1", "--field", "id", "--reason", "x", "--yes"], 1, "key"),
        (["hold", "parts", "--reason", "x"], 2, "Name a TABLE and a KEY"),
        (["log", "--json", "--csv"], 2, "--json and --csv exclude each other"),
        (["release", "x"], 1, "x"),
        (["prune", "parts", "--older-than", "90 moons", "--yes"], 1, "90 moons"),
        (["checkout", "yesterday 14:00", "--to", "nowhere://u:p@h/d"], 1, "nowhere"),
        (["checkout", "2026-03-01 16:00", "--to", "x.db", "--include", "nothing"], 2, "no table 'nothing'"),
        (["log", "--field", "colour"], 2, "No table has a field 'colour'"),
        (["log", "--models", "nowhere:Base"], 2, "cannot be imported"),
        (["log", "--models", "warehouse:Nothing"], 2, "has no 'Nothing'"),
        (["log", "--models", "json"], 2, "has no tracked model"),
        (["log", "--models", ":Base"], 2, "Write package.module:Base"),
        (["log", "--since", "5"], 2, "is not an instant"),
        (["log", "--since", "march"], 2, "is not an instant"),
        (["log", "--since", "2026-13-01"], 2, "is not an instant"),
        (["log", "--since", "01/02/2026"], 2, "is not an instant"),
        (["show", "parts", "1", "--at", "9" * 30], 2, "is not an instant"),
        (["prune", "parts", "--keep-last", "9" * 30, "--dry-run"], 1, "too large"),
        (["erase", "parts", "1", "--field", "stock", "--value", "stock=few", "--reason", "x"], 2, "cannot be 'few'"),
        (["erase", "parts", "1", "--field", "stock", "--value", "stock", "--reason", "x"], 2, "Write NAME=VALUE"),
        (["checkout", "2026-03-01 16:00", "--to", "mariadb://u:p@h:port/d"], 2, "cannot be read"),
        (["log", "--url", "sqlite:///nothing.db"], 2, "There is no file 'nothing.db'"),
        (["log", "--url", "sqlite:///file:nothing.db?uri=true"], 2, "There is no file 'nothing.db'"),
    ],
)
def test_bad_input_is_told_in_one_line(
    warehouse: str, arguments: list[str], code: int, words: str, tmp_path: Path
) -> None:
    result = run(*arguments)
    assert words in result.stderr
    assert (result.exit_code, result.stderr.count("\n")) == (code, 1)
    assert not (tmp_path / "nothing.db").exists()


def test_without_a_url_the_command_says_how_to_give_one(terminal: None) -> None:
    result = run("log", env={"SQLAUDIT_URL": ""})
    assert (result.exit_code, "--url" in result.stderr) == (2, True)


def test_a_database_without_history_says_so(terminal: None, tmp_path: Path) -> None:
    sa.create_engine(f"sqlite:///{tmp_path / 'empty.db'}").connect().exec_driver_sql("CREATE TABLE t (i)").close()
    result = run("log", "--url", f"sqlite:///{tmp_path / 'empty.db'}")
    assert (result.exit_code, "no history tables" in result.stderr) == (1, True)


def test_a_command_that_writes_needs_models(warehouse: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").unlink()
    result = run("restore", "parts", "1", "--to", "1", "--yes")
    assert (result.exit_code, "--models" in result.stderr) == (2, True)
    assert run("restore", "parts", "1", "--to", "1", "--yes", env={"SQLAUDIT_MODELS": "warehouse:Base"}).exit_code == 0


def test_traceback_shows_where_an_error_comes_from(warehouse: str) -> None:
    result = CliRunner().invoke(program, ["show", "parts", "1", "--at", "99", "--traceback"])
    assert "has no version 99" in str(result.exception)
    assert not isinstance(result.exception, SystemExit)


# --- a real process ---------------------------------------------------------------------------------------------


def _process(*arguments: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error::DeprecationWarning:sqlaudit", "-m", "sqlaudit.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SQLAUDIT_MODELS": ""},
    )


def test_a_closed_pipe_is_no_error_to_tell(warehouse: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").unlink()
    with _process("log", "-n", "1000", "--json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


def test_the_program_prints_its_version_and_its_commands(terminal: None) -> None:
    with _process("--help") as process:
        assert process.stdout is not None
        assert "blame" in process.stdout.read()
    assert process.returncode == 0


def test_a_shell_completes_the_names_of_tables(warehouse: str) -> None:
    words = {"_SQLAUDIT_COMPLETE": "bash_complete", "COMP_WORDS": "sqlaudit log sup", "COMP_CWORD": "2"}
    result = CliRunner().invoke(program, [], prog_name="sqlaudit", env=words)
    assert result.output.split() == ["plain,supplier_tags", "plain,suppliers"]


def test_a_port_that_is_taken_is_told(warehouse: str) -> None:
    pytest.importorskip("sqlaudit.web")
    pytest.importorskip("uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = run("serve", "--port", str(port))
    assert result.exit_code == 1
    assert f"Port {port} cannot be used" in result.output


def test_a_browser_is_served_to_this_machine_alone(warehouse: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sqlaudit.web")
    served = {}

    class Server:
        @staticmethod
        def run(app: object, **options: object) -> None:
            served.update(options, app=app)

    monkeypatch.setitem(sys.modules, "uvicorn", Server)
    result = run("serve", "--port", "8123", "--user", "ops")
    app = served["app"]
    unregister_hooks(app.sessions)
    assert "http://127.0.0.1:8123/" in result.output
    assert (served["host"], served["port"], served["proxy_headers"]) == ("127.0.0.1", 8123, False)
    assert app.authorize is None
    assert app.can_write
    assert app.get_context(None)["user_id"] == "ops"
