"""Triggers and rules of the user's, rights and row security: what they let happen is what history shows."""

import contextlib
import uuid
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker

import sqlaudit
from blocks import ROOT, blocks
from databases import Database
from invariants import check_history, told
from sqlaudit import SQLAuditWarning, track_table
from stock import do_nothing


class Base(orm.DeclarativeBase):
    pass


@track_table()
class Paper(Base):
    __tablename__ = "right_papers"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant: Mapped[int] = mapped_column(default=1)
    deleted: Mapped[bool] = mapped_column(default=False)
    notes: Mapped[list["Note"]] = orm.relationship(passive_deletes=True)


@track_table()
class Note(Base):
    __tablename__ = "right_notes"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    paper_id: Mapped[int] = mapped_column(sa.ForeignKey("right_papers.id", ondelete="CASCADE"))


pytestmark = pytest.mark.no_tables  # each test has its own triggers, rules and policies


@pytest.fixture(autouse=True)
def _tables(engine: sa.Engine) -> None:
    Base.metadata.create_all(engine)


# --- triggers and rules -----------------------------------------------------------------------------------------

SET_DELETED = "UPDATE right_papers SET deleted = true WHERE id = OLD.id"
BEFORE_DELETE = "CREATE TRIGGER soft BEFORE DELETE ON right_papers FOR EACH ROW EXECUTE FUNCTION soft()"
AFTER_DELETE = "CREATE TRIGGER soft AFTER DELETE ON right_papers FOR EACH ROW EXECUTE FUNCTION soft()"
PUT_BACK = "INSERT INTO right_papers (id, tenant, deleted) VALUES (OLD.id, OLD.tenant, true)"


def in_plpgsql(name: str, body: str) -> str:
    return f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; END $$"


SOFT_DELETES = {
    "sqlite": {
        "a trigger that ignores": [
            f"CREATE TRIGGER soft BEFORE DELETE ON right_papers BEGIN {SET_DELETED}; SELECT RAISE(IGNORE); END"
        ],
        "a trigger that puts back": [f"CREATE TRIGGER soft AFTER DELETE ON right_papers BEGIN {PUT_BACK}; END"],
        "a view": [
            "ALTER TABLE right_papers RENAME TO papers_base",
            "CREATE VIEW right_papers AS SELECT * FROM papers_base",
            "CREATE TRIGGER make INSTEAD OF INSERT ON right_papers BEGIN "
            "INSERT INTO papers_base VALUES (NEW.id, NEW.tenant, NEW.deleted); END",
            "CREATE TRIGGER soft INSTEAD OF DELETE ON right_papers BEGIN "
            "UPDATE papers_base SET deleted = true WHERE id = OLD.id; END",
        ],
    },
    "postgresql": {
        "a trigger that ignores": [in_plpgsql("soft", f"{SET_DELETED}; RETURN NULL"), BEFORE_DELETE],
        "a trigger that puts back": [in_plpgsql("soft", f"{PUT_BACK}; RETURN NULL"), AFTER_DELETE],
        "a rule": [f"CREATE RULE soft AS ON DELETE TO right_papers DO INSTEAD {SET_DELETED}"],
        "a view": [
            "ALTER TABLE right_notes DROP CONSTRAINT right_notes_paper_id_fkey",
            "ALTER TABLE right_papers RENAME TO papers_base",
            "CREATE VIEW right_papers AS SELECT * FROM papers_base",
            in_plpgsql("soft", "UPDATE papers_base SET deleted = true WHERE id = OLD.id; RETURN OLD"),
            "CREATE TRIGGER soft INSTEAD OF DELETE ON right_papers FOR EACH ROW EXECUTE FUNCTION soft()",
        ],
    },
}


def execute(engine: sa.Engine, statements: list[str]) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def delete_objects(session: Session) -> None:
    for paper in session.scalars(sa.select(Paper).where(Paper.id < 3)).all():
        session.delete(paper)
    session.flush()


DELETIONS: dict[str, Callable[[Session], Any]] = {
    "objects": delete_objects,
    "a statement": lambda session: session.execute(sa.delete(Paper).where(Paper.id < 3)),
    "a statement for each": lambda session: [session.execute(sa.delete(Paper).where(Paper.id == n)) for n in (1, 2)],
    "a list": lambda session: session.connection().execute(
        sa.delete(Paper.__table__).where(Paper.__table__.c.id == sa.bindparam("number")), [{"number": 1}, {"number": 2}]
    ),
}


@pytest.mark.requires("on_conflict")  # where a trigger may keep what is deleted
@pytest.mark.parametrize("deletion", DELETIONS)
@pytest.mark.parametrize("is_recorded", [True, False], ids=["recorded", "unrecorded"])
@pytest.mark.parametrize("way", sorted({way for ways in SOFT_DELETES.values() for way in ways}))
@pytest.mark.filterwarnings("ignore:DELETE statement on table:sqlalchemy.exc.SAWarning")  # as without sqlaudit
def test_a_deletion_that_keeps_the_row_is_an_update(
    engine: sa.Engine, sessions: Any, database: Database, way: str, deletion: str, is_recorded: bool
) -> None:
    if way not in SOFT_DELETES[database.name]:
        pytest.skip("there are no rules")
    execute(engine, SOFT_DELETES[database.name][way])
    with sessions.begin() as session, contextlib.ExitStack() as stack:
        if not is_recorded:
            stack.enter_context(sqlaudit.tracking_disabled(session))
        session.execute(sa.insert(Paper), [{"id": number} for number in (1, 2, 3)])
    with sessions.begin() as session:
        DELETIONS[deletion](session)
    with sessions() as session:
        first = "insert" if is_recorded else "baseline"
        versions = told(session, Paper, "id", "deleted")
        assert [each for each in versions if each[1] < 3] == [
            each for number in (1, 2) for each in ((first, number, False), ("update", number, True))
        ]
        if is_recorded:
            check_history(session, Paper)


MOVES = {
    "sqlite": [
        "CREATE TRIGGER move AFTER UPDATE OF deleted ON right_papers BEGIN "
        "UPDATE right_papers SET id = NEW.id + 50 WHERE id = NEW.id; END"
    ],
    "postgresql": [
        in_plpgsql("move", "NEW.id := NEW.id + 50; RETURN NEW"),
        "CREATE TRIGGER move BEFORE UPDATE ON right_papers FOR EACH ROW EXECUTE FUNCTION move()",
    ],
    "mariadb": ["CREATE TRIGGER move BEFORE UPDATE ON right_papers FOR EACH ROW SET NEW.id = NEW.id + 50"],
}


def update_object(session: Session) -> None:
    session.get_one(Paper, 1).deleted = True
    session.flush()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("how", ["object", "statement"])
def test_a_trigger_that_moves_the_key_is_noticed(
    engine: sa.Engine, sessions: Any, database: Database, how: str, strict: bool
) -> None:
    sqlaudit.set_config(sqlaudit.SQLAuditConfig(strict=strict))
    execute(engine, MOVES[database.name])
    with sessions.begin() as session:
        session.add(Paper(id=1))
    with sessions() as session:
        expected: Any = pytest.raises(sqlaudit.CaptureError, match=r"does not exist after an UPDATE.*trigger")
        if not strict:
            expected = pytest.warns(SQLAuditWarning, match=r"does not exist after an UPDATE.*trigger")
        with expected:
            update_object(session) if how == "object" else session.execute(sa.update(Paper).values(deleted=True))
        session.rollback() if strict else session.commit()
        sqlaudit.record_changes(session, Paper)
        session.commit()
        check_history(session, Paper)
        assert [each[:2] for each in told(session, Paper, "id")] == (
            [("insert", 1)] if strict else [("insert", 1), ("delete", 1), ("insert", 51)]
        )


@pytest.mark.requires("concurrent_writes")  # where a trigger may change the key of what is inserted
@pytest.mark.parametrize("was_there", [False, True])
@pytest.mark.parametrize("how", ["object", "statement"])
def test_a_new_row_that_a_trigger_moves_is_noticed_whether_its_key_had_a_history_or_not(
    engine: sa.Engine, sessions: Any, database: Database, how: str, was_there: bool
) -> None:
    sqlaudit.set_config(sqlaudit.SQLAuditConfig(strict=False))
    if was_there:
        with sessions.begin() as session:
            session.add(Paper(id=1))
        with sessions.begin() as session:
            session.delete(session.get_one(Paper, 1))
    execute(engine, [each.replace("UPDATE ON", "INSERT ON") for each in MOVES[database.name]])
    with sessions() as session:
        if how == "object":
            session.add(Paper(id=1))
        with pytest.warns(SQLAuditWarning, match=r"not found by its key .*trigger"):
            session.flush() if how == "object" else session.execute(sa.insert(Paper).values(id=1))
        session.commit()
        sqlaudit.record_changes(session, Paper)
        session.commit()
        check_history(session, Paper)


@pytest.mark.requires("arrays")  # where triggers may be deferred
def test_what_a_deferred_trigger_changes_is_recorded_by_record_changes(engine: sa.Engine, sessions: Any) -> None:
    late = "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON right_papers DEFERRABLE INITIALLY DEFERRED"
    body = "UPDATE right_papers SET tenant = 7 WHERE id = NEW.id; RETURN NULL"
    execute(engine, [in_plpgsql("late", body), f"{late} FOR EACH ROW EXECUTE FUNCTION late()"])
    with sessions.begin() as session:
        session.add(Paper(id=1))
    with sessions.begin() as session:
        assert told(session, Paper, "tenant") == [("insert", 1)]
        sqlaudit.record_changes(session, Paper)
    with sessions() as session:
        assert told(session, Paper, "tenant") == [("insert", 1), ("update", 7)]


ARCHIVE = "UPDATE right_papers SET id = OLD.id + 50, deleted = true WHERE id = OLD.id"
ARCHIVES = {
    "sqlite": [f"CREATE TRIGGER soft BEFORE DELETE ON right_papers BEGIN {ARCHIVE}; SELECT RAISE(IGNORE); END"],
    "postgresql": [in_plpgsql("soft", f"{ARCHIVE}; RETURN NULL"), BEFORE_DELETE],
}


@pytest.mark.requires("on_conflict")  # where a trigger may keep what is deleted
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "criterion", [sa.true(), Paper.tenant == 1, Paper.id == 1], ids=["all", "those of a criterion", "one by its key"]
)
def test_a_deletion_that_gives_rows_other_keys_is_noticed(
    engine: sa.Engine, sessions: Any, database: Database, criterion: Any, strict: bool
) -> None:
    execute(engine, ARCHIVES[database.name])
    with sessions.begin() as session:
        session.add_all([Paper(id=1, tenant=1), Paper(id=2, tenant=2)])
    sqlaudit.set_config(sqlaudit.SQLAuditConfig(strict=strict))
    with sessions() as session:
        expected: Any = pytest.raises(sqlaudit.CaptureError) if strict else pytest.warns(SQLAuditWarning)
        with expected as noticed:
            session.execute(sa.delete(Paper).where(criterion))
        assert "gone after a DELETE" in str(noticed.value if strict else noticed[0].message)
        session.rollback() if strict else session.commit()
        archived = [number for (number,) in session.execute(sa.select(Paper.id).where(Paper.id > 50))]
        assert len(archived) == (0 if strict else 2 if criterion is sa.true() else 1)
        sqlaudit.record_changes(session, Paper)
        session.commit()
        check_history(session, Paper)
        gone = [("delete", number - 50) for number in archived]
        assert [each[:2] for each in told(session, Paper, "id") if each[0] == "delete"] == gone


# --- rights -----------------------------------------------------------------------------------------------------


@pytest.fixture
def role(engine: sa.Engine) -> Iterator[str]:
    """A role without rights, but on the history."""
    name = f"sqlaudit_role_{uuid.uuid4().hex}"
    execute(engine, [f"CREATE ROLE {name}", f"GRANT USAGE ON SCHEMA public TO {name}"])
    execute(engine, [f"GRANT ALL ON right_papers_history, right_notes_history TO {name}"])
    yield name
    execute(engine, [f"DROP OWNED BY {name}", f"DROP ROLE {name}"])


def tried(session: Session, role: str, work: Callable[[Session], Any]) -> tuple[str, list[Any]]:
    """Let a role do something; tell what becomes of it, and which rows there are then."""
    connection = session.connection()
    connection.exec_driver_sql(f"SET LOCAL ROLE {role}")
    result = "ok"
    try:
        with session.begin_nested():
            work(session)
    except sqlaudit.CaptureError:
        result = "CaptureError"
    except sa.exc.DBAPIError as error:
        result = getattr(error.orig, "sqlstate", "")
    connection.exec_driver_sql("RESET ROLE")
    return result, list(session.execute(sa.select(Paper.id, Paper.tenant, Paper.deleted).order_by(Paper.id)))


DOINGS: dict[str, Callable[[Session], Any]] = {
    "an object": lambda session: [session.add(Paper(id=9)), session.flush()],
    "an insert": lambda session: session.execute(sa.insert(Paper).values(id=9)),
    "an insert that may do nothing": lambda session: session.execute(do_nothing(session, Paper.__table__).values(id=1)),
    "an update": lambda session: session.execute(sa.update(Paper).where(Paper.id > 1).values(tenant=2)),
    "an update of all": lambda session: session.execute(sa.update(Paper).values(tenant=2)),
    "an update of an object": update_object,
    "a deletion of an object": delete_objects,
    "a deletion": lambda session: session.execute(sa.delete(Paper).where(Paper.id < 3)),
    "a deletion by key": lambda session: session.execute(sa.delete(Paper).where(Paper.id == 1)),
    "a deletion of all": lambda session: session.execute(sa.delete(Paper)),
}
GRANTS = ["SELECT, DELETE", "SELECT, INSERT", "SELECT, UPDATE (tenant)", "SELECT, INSERT, DELETE", "INSERT", "DELETE"]


@pytest.mark.requires("arrays")  # where roles have rights of their own
@pytest.mark.parametrize("doing", DOINGS)
@pytest.mark.parametrize("grant", GRANTS)
@pytest.mark.parametrize("with_notes", [True, False], ids=["shown", "hidden"])
def test_a_role_can_do_what_it_could(
    engine: sa.Engine, sessions: Any, role: str, grant: str, doing: str, with_notes: bool
) -> None:
    execute(engine, [f"GRANT {grant} ON right_papers TO {role}"])
    if with_notes:
        execute(engine, [f"GRANT SELECT ON right_notes TO {role}"])
    with sessions.begin() as session:
        session.add_all([Paper(id=1, notes=[Note(id=1)]), Paper(id=2), Paper(id=3)])
    with sessions() as session:
        with sqlaudit.tracking_disabled(session):
            plain = tried(session, role, DOINGS[doing])
        session.rollback()
    with sessions() as session:
        recorded = tried(session, role, DOINGS[doing])
        may_record = "SELECT" in grant and (with_notes or "deletion" not in doing)
        assert recorded == plain or (not may_record and recorded[0] == "CaptureError")
        session.commit()
        for model in (Paper, Note):
            check_history(session, model)


@pytest.mark.requires("arrays")
@pytest.mark.parametrize("how", ["objects", "statements"])
def test_a_role_needs_no_right_to_columns_that_are_excluded(
    engine: sa.Engine, sessions: Any, role: str, base: Any, how: str
) -> None:
    @track_table(exclude=["secret"])
    class Member(base):
        __tablename__ = "right_members"

        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        boss_id: Mapped[int | None] = mapped_column(sa.ForeignKey("right_members.id", ondelete="CASCADE"))
        name: Mapped[str]
        secret: Mapped[str | None] = mapped_column(deferred=True)

    columns = "(id, boss_id, name)"
    base.metadata.create_all(engine)
    execute(
        engine,
        [
            f"GRANT SELECT {columns}, INSERT {columns}, UPDATE {columns}, DELETE ON right_members TO {role}",
            f"GRANT ALL ON right_members_history TO {role}",
        ],
    )
    new = [{"id": number, "boss_id": 1 if number == 2 else None, "name": "a"} for number in (1, 2, 3)]
    with sessions() as session:
        session.connection().exec_driver_sql(f"SET LOCAL ROLE {role}")
        session.execute(sa.insert(Member), new)
        if how == "objects":
            session.get_one(Member, 3).name = "b"
            session.flush()
            session.delete(session.get_one(Member, 1))
            session.flush()
        else:
            session.execute(sa.update(Member).where(Member.id == 3).values(name="b"))
            session.execute(sa.delete(Member).where(Member.id == 1))
        sqlaudit.record_changes(session, Member)
        session.commit()
    with sessions() as session:
        check_history(session, Member)
        assert told(session, Member, "id", "name") == [("insert", 3, "b")]
    execute(engine, ["DROP TABLE right_members, right_members_history"])


# --- row security -----------------------------------------------------------------------------------------------

TENANT = "tenant = current_setting('app.tenant')::int"


def secure(engine: sa.Engine, role: str, *policies: str, history: bool) -> None:
    """Create policies, each of which is what follows the name of the table."""
    tables = ["right_papers", "right_papers_history"][: 1 + history]
    execute(engine, [f"GRANT ALL ON right_papers, right_notes TO {role}"])
    for table in tables:
        execute(engine, [f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"])
        execute(engine, [f"CREATE POLICY p{place} ON {table} {each}" for place, each in enumerate(policies)])


@pytest.fixture
def papers(sessions: sessionmaker[Session]) -> sessionmaker[Session]:
    """Sessions, after two papers of tenant 1 and one of tenant 2 were written."""
    with sessions.begin() as session:
        session.add_all([Paper(id=1), Paper(id=2), Paper(id=3, tenant=2)])
    return sessions


@contextlib.contextmanager
def acting(sessions: sessionmaker[Session], role: str, tenant: int) -> Iterator[Session]:
    with sessions() as session:
        session.connection().exec_driver_sql(f"SET LOCAL ROLE {role}")
        session.connection().exec_driver_sql(f"SET LOCAL app.tenant = {tenant}")
        yield session


@pytest.mark.requires("arrays")
@pytest.mark.parametrize("what", ["all", "ids"])
@pytest.mark.parametrize("history", [True, False], ids=["policies", "no policies"])
def test_record_changes_takes_no_row_for_deleted_that_a_policy_hides(
    engine: sa.Engine, papers: Any, role: str, history: bool, what: str
) -> None:
    secure(engine, role, f"USING ({TENANT})", history=history)
    with acting(papers, role, 2) as session, warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        sqlaudit.record_changes(session, Paper, None if what == "all" else [1, 2, 3])
        session.commit()
    messages = [str(each.message) for each in seen]
    assert any("policies" in each and "right_papers_history" in each for each in messages) == (not history)
    with papers() as session:
        check_history(session, Paper)
        assert told(session, Paper, "id") == [("insert", 1), ("insert", 2), ("insert", 3)]


@pytest.mark.requires("arrays")
def test_record_changes_leaves_a_row_open_that_has_moved_out_of_sight(
    engine: sa.Engine, papers: Any, role: str
) -> None:
    secure(engine, role, f"USING ({TENANT})", history=True)
    execute(engine, ["UPDATE right_papers SET tenant = 1 WHERE id = 3"])
    with acting(papers, role, 2) as session:
        with pytest.warns(SQLAuditWarning, match="row security hides it"):
            sqlaudit.record_changes(session, Paper)
        session.commit()
    with papers() as session:
        sqlaudit.record_changes(session, Paper)
        session.commit()
        check_history(session, Paper)
        assert told(session, Paper, "id", "tenant")[-2:] == [("insert", 3, 2), ("update", 3, 1)]


@pytest.mark.requires("arrays")
@pytest.mark.parametrize("ids", [None, [1, 2]])
def test_record_changes_takes_no_row_for_one_of_another_class_that_a_policy_hides(
    base: Any, engine: sa.Engine, sessions: sessionmaker[Session], role: str, ids: Any
) -> None:
    @track_table()
    class Person(base):
        __tablename__ = "right_people"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        kind: Mapped[str] = mapped_column(sa.String(10))

    class Clerk(Person):
        __tablename__ = "right_clerks"
        __mapper_args__ = {"polymorphic_identity": "clerk"}
        id: Mapped[int] = mapped_column(sa.ForeignKey(Person.id), primary_key=True)
        desk: Mapped[int]

    base.metadata.create_all(engine)
    tables = ", ".join(base.metadata.tables)
    policies = [
        "ALTER TABLE right_clerks ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY p ON right_clerks USING (desk = 1)",
    ]
    execute(engine, [f"GRANT ALL ON {tables} TO {role}", *policies])
    with sessions.begin() as session:
        session.add_all([Clerk(id=1, desk=1), Clerk(id=2, desk=2)])
    with acting(sessions, role, 1) as session:
        with pytest.warns(SQLAuditWarning, match=r"no longer sees the row \(2,\)"):
            sqlaudit.record_changes(session, Person, ids)
        session.commit()
    with sessions() as session:
        check_history(session, Person)
        assert told(session, Person, "id") == [("insert", 1), ("insert", 2)]


@pytest.mark.requires("arrays")
@pytest.mark.parametrize("history", [True, False], ids=["policies", "no policies"])
def test_a_backfill_of_a_role_begins_the_history_of_the_rows_that_it_sees(
    engine: sa.Engine, papers: Any, role: str, history: bool
) -> None:
    execute(engine, ["DELETE FROM right_papers_history"])
    secure(engine, role, f"USING ({TENANT})", history=history)
    with acting(papers, role, 1) as session:
        expected: Any = contextlib.nullcontext() if history else pytest.warns(SQLAuditWarning, match="same policies")
        with expected:
            assert sqlaudit.backfill(session, Paper).rows == 2
        session.commit()
    with papers() as session:
        assert told(session, Paper, "id") == [("baseline", 1), ("baseline", 2)]


@pytest.mark.requires("arrays")
def test_the_first_write_of_a_role_that_sees_more_of_the_history_warns(
    engine: sa.Engine, papers: Any, role: str
) -> None:
    secure(engine, role, f"USING ({TENANT})", history=False)
    fresh = sa.create_engine(engine.url)
    sqlaudit.register_hooks(papers)
    with acting(sessionmaker(fresh, class_=papers.class_), role, 2) as session:
        session.add(Paper(id=4, tenant=2))
        with pytest.warns(SQLAuditWarning, match="right_papers_history.*same policies"):
            session.flush()
    fresh.dispose()


@pytest.mark.requires("arrays")
def test_the_warning_of_a_hidden_insert_names_the_policy(engine: sa.Engine, papers: Any, role: str) -> None:
    secure(engine, role, f"FOR SELECT USING ({TENANT})", "FOR INSERT WITH CHECK (true)", history=True)
    with acting(papers, role, 2) as session:
        session.add_all([Paper(id=4, tenant=2), Paper(id=5, tenant=1)])
        with pytest.warns(SQLAuditWarning, match=r"\(5,\): row security hides it"):
            session.flush()
        session.commit()
    with papers() as session:
        sqlaudit.record_changes(session, Paper)
        session.commit()
        check_history(session, Paper)


BY_POLICY: dict[str, Callable[[Session], Any]] = {
    "a deletion": lambda session: session.execute(sa.delete(Paper).where(Paper.id > 0)),
    "a deletion by key": lambda session: session.execute(sa.delete(Paper).where(Paper.id == 1)),
    "a deletion of all": lambda session: session.execute(sa.delete(Paper)),
    "an update": lambda session: session.execute(sa.update(Paper).where(Paper.id > 0).values(deleted=True)),
    "an update of all": lambda session: session.execute(sa.update(Paper).values(deleted=True)),
    "an insert that may do nothing": lambda session: session.execute(do_nothing(session, Paper.__table__).values(id=3)),
    "a deletion of an object": delete_objects,
}
POLICIES = {
    "for all": ["USING ({})"],
    "no update": ["FOR SELECT USING ({})", "FOR DELETE USING ({})", "FOR INSERT WITH CHECK (true)"],
    "update of more": ["FOR SELECT USING ({})", "FOR DELETE USING (true)", "FOR UPDATE USING (true)"],
}


@pytest.mark.requires("arrays")
@pytest.mark.parametrize("doing", BY_POLICY)
@pytest.mark.parametrize("policies", POLICIES)
def test_a_statement_under_policies_writes_the_rows_that_it_would_write(
    engine: sa.Engine, papers: Any, role: str, policies: str, doing: str
) -> None:
    secure(engine, role, *(each.format(TENANT) for each in POLICIES[policies]), history=False)
    execute(engine, ["ALTER TABLE right_papers_history ENABLE ROW LEVEL SECURITY"])
    execute(engine, ["CREATE POLICY all_rows ON right_papers_history USING (true)"])
    found = []
    for tracked in (False, True):
        with papers() as session, contextlib.ExitStack() as stack, warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            if not tracked:
                stack.enter_context(sqlaudit.tracking_disabled(session))
            session.connection().exec_driver_sql("SET LOCAL app.tenant = 1")
            found.append(tried(session, role, BY_POLICY[doing]))
            if tracked:
                session.commit()
            else:
                session.rollback()
    assert found[0] == found[1]
    with papers() as session:
        if any("more rows" in str(each.message) for each in seen):
            sqlaudit.record_changes(session, Paper)
            session.commit()
        check_history(session, Paper)


# --- the page of the docs ---------------------------------------------------------------------------------------

PAGE = ROOT / "docs" / "rights.md"


@pytest.mark.requires("arrays")
@pytest.mark.parametrize("last", [2, 3], ids=["one policy", "a policy for each command"])
def test_a_role_with_the_rights_and_policies_of_the_docs_can_record(
    engine: sa.Engine, sessions: Any, role: str, base: Any, last: int
) -> None:
    @track_table()
    class Customer(base):
        __tablename__ = "customers"

        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        tenant: Mapped[int]
        name: Mapped[str | None]

    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add_all([Customer(id=1, tenant=1), Customer(id=2, tenant=2)])
    statements = [text.replace(" TO app", f" TO {role}") for language, text, _ in blocks(PAGE) if language == "sql"]
    assert len(statements) == 3
    execute(engine, statements[:last])
    with acting(sessions, role, 2) as session:
        assert [version.id for version in session.scalars(sqlaudit.all_versions(Customer))] == [2]
        session.add(Customer(id=3, tenant=2))
        session.flush()
        session.get_one(Customer, 3).name = "c"
        session.get_one(Customer, 2).name = "b"
        session.flush()
        session.execute(sa.update(Customer).values(name="d"))
        session.execute(sa.delete(Customer).where(Customer.id == 3))
        sqlaudit.record_changes(session, Customer)
        session.commit()
    with acting(sessions, role, 2) as session:
        session.execute(sa.delete(Customer))
        session.commit()
    with sessions() as session:
        check_history(session, Customer)
        assert told(session, Customer, "id", "name") == [
            ("insert", 1, None),
            ("insert", 2, None),
            ("update", 2, "d"),
            ("delete", 2, "d"),
        ]
    execute(engine, ["DROP TABLE customers, customers_history"])


def update_twice(session: Session) -> None:
    for tenant in (2, 3):
        session.get_one(Paper, 1).tenant = tenant
        session.flush()


MISSING: dict[str, dict[str, Callable[[Session], Any]]] = {
    "SELECT": DOINGS,
    "INSERT": DOINGS,
    "UPDATE": {name: doing for name, doing in DOINGS.items() if "insert" not in name and name != "an object"},
    "DELETE": {"two updates": update_twice},
}


@pytest.mark.requires("arrays")
@pytest.mark.parametrize(("right", "doing"), [(right, doing) for right, doings in MISSING.items() for doing in doings])
def test_a_missing_right_is_named_and_nothing_is_written(
    engine: sa.Engine, sessions: Any, role: str, right: str, doing: str
) -> None:
    execute(engine, [f"GRANT ALL ON right_papers, right_notes TO {role}"])
    execute(engine, [f"REVOKE {right} ON right_papers_history FROM {role}"])
    with sessions.begin() as session:
        session.add_all(
            [Paper(id=2), Paper(id=3)] if doing == "an insert that may do nothing" else [Paper(id=1), Paper(id=2)]
        )
    with sessions() as session:
        before = session.scalars(sa.select(Paper.id)).all()
        session.connection().exec_driver_sql(f"SET LOCAL ROLE {role}")
        with pytest.raises(sqlaudit.CaptureError, match=r"SELECT, INSERT, UPDATE and DELETE on 'right_papers_history'"):
            MISSING[right][doing](session)
        session.rollback()
        assert session.scalars(sa.select(Paper.id)).all() == before
        check_history(session, Paper)
