"""A user who is erased is named by no version and by no table of sqlaudit, and what the user did stays."""

import asyncio

import pytest
import sqlalchemy as sa
from ledger import Account, Base, Entry, Person, Tag, Worker, labels
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

import sqlaudit
from registering import recording
from sqlaudit import ERASED, ERASED_USER, AuditContext, AuditContextManager, ContextError, QueryError, track_table
from sqlaudit.maintenance import (
    erase,
    erase_actor,
    erasures,
    hold,
    holds,
    maintenance_tables,
    release,
    replay_erasures,
)

USER = "u42"
NAMES = ["u42", "Ada Lovelace", 'Zoë "Z" Ö']
assert Base  # whose tables the tests find


def happen(maker):
    """The user writes versions of every kind of history; others write about the user."""
    extra = {"by": 'Zoë "Z" Ö', "seen": [{"u42": 1}, True, 42, "u421"], "ip": "::1"}
    with maker() as session:
        with AuditContextManager(user_id=USER, reason="Ada Lovelace (u42) moved u421", extra=extra):
            account = Account(id=1, name="a", secret="s", entries=[Entry(number="a", amount=0)])
            session.add_all([account, Account(id=2, name="b"), Tag(id=1, name="t"), Worker(id=1, name="w", wage=1)])
            session.flush()
            account.tags.append(session.get(Tag, 1))
            session.commit()
        with AuditContextManager(user_id="bob", impersonated_by=USER):
            account.name = "c"
            session.commit()
        with AuditContextManager(user_id="bot", on_behalf_of=USER):
            account.name = "d"
            session.commit()
        with AuditContextManager(user_id="eve", reason="asked by Ada Lovelace, not by Ada Lovelaces"):
            session.get(Tag, 1).name = "u"
            session.commit()
        with AuditContextManager(user_id=USER):
            session.delete(session.get(Worker, 1))
            session.commit()


@pytest.fixture
def session(session, happened, clock):
    return session


def everything(session):
    """All rows of all tables, as text."""
    statements = [
        sa.select(*map(sa.column, table.c.keys())).select_from(table) for table in Base.metadata.sorted_tables
    ]
    session.rollback()
    return repr([session.execute(each).all() for each in statements])


def facts(session):
    """What the versions say of other than of users."""
    told = []
    for source in (Account, Entry, Tag, Person, labels):
        hidden = {"audit_changed_by", "audit_impersonated_by", "audit_reason", "audit_extra"}
        for version in session.scalars(sqlaudit.all_versions(source)):
            told.append({name: value for name, value in version.to_dict().items() if name not in hidden})
    session.expunge_all()
    return sorted(map(repr, told))


def test_no_version_names_the_user_and_all_else_stays(session):
    before = facts(session)
    done = erase_actor(session, USER, names=NAMES, reason="request")
    session.commit()
    text = everything(session)
    assert [name for name in ("'u42'", "Ada Lovelace ", "Zoë", "\\u00eb") if name in text] == []
    assert facts(session) == before
    assert {each.table: (each.rows, each.versions) for each in done.tables} == {
        "ledger_accounts": (2, 4),
        "ledger_entries": (1, 1),
        "ledger_labels": (1, 1),
        "ledger_people": (1, 2),
        "ledger_tags": (1, 2),
    }
    assert (done.versions, done.held) == (10, 0)


def test_each_place_gets_the_text_for_erased_users_and_others_stay(session):
    erase_actor(session, USER, names=NAMES, reason="request")
    session.commit()
    first, second, third = sqlaudit.versions_of(session, Account, 1)
    assert (first.changed_by, first.reason) == (ERASED_USER, f"{ERASED_USER} ({ERASED_USER}) moved u421")
    assert first.extra == {"by": ERASED_USER, "seen": [{ERASED_USER: 1}, True, 42, "u421"], "ip": "::1"}
    assert (second.changed_by, second.impersonated_by) == ("bob", ERASED_USER)
    assert (third.changed_by, third.on_behalf_of) == ("bot", ERASED_USER)
    last = sqlaudit.versions_of(session, Tag, 1)[-1]
    assert (last.changed_by, last.reason) == ("eve", f"asked by {ERASED_USER}, not by Ada Lovelaces")


def test_filters_no_longer_find_the_user(session):
    before = sqlaudit.get_resource_changes(Account, session, filter_user_ids=USER)
    erase_actor(session, USER, reason="request")
    session.commit()
    assert before
    assert sqlaudit.get_resource_changes(Account, session, filter_user_ids=USER) == []
    assert sqlaudit.changesets(session, user_id=USER) == []
    assert sqlaudit.changesets(session, on_behalf_of=USER) == []
    after = sqlaudit.get_resource_changes(Account, session, filter_user_ids=ERASED_USER)
    assert [(each.version, each.field_name) for each in after] == [(each.version, each.field_name) for each in before]


@pytest.mark.spread
def test_only_the_named_models_are_searched(session):
    done = erase_actor(session, USER, Tag, Worker, reason="request")
    session.commit()
    assert [each.table for each in done.tables] == ["ledger_tags", "ledger_people"]
    assert sqlaudit.versions_of(session, Account, 1)[0].changed_by == USER


@pytest.mark.spread
@pytest.mark.parametrize("names", [[], ["42"]])
def test_names_say_what_is_erased_from_texts(session, names):
    erase_actor(session, USER, names=names, reason="request")
    session.commit()
    version = sqlaudit.versions_of(session, Account, 1)[0]
    assert (version.changed_by, version.reason) == (ERASED_USER, "Ada Lovelace (u42) moved u421")
    assert version.extra["seen"] == [{"u42": 1}, True, ERASED_USER if names else 42, "u421"]


def test_the_tables_of_sqlaudit_no_longer_name_the_user(session):
    with AuditContextManager(user_id=USER):
        erase(session, Account, 2, fields=["name"], reason="asked by u42", values={"name": "-"})
        hold(session, Tag, 99, reason="u42 is sued")
        session.commit()
        done = erase_actor(session, USER, reason="u42 asked for it")
        session.commit()
    assert (done.reason, done.erased_by) == (f"{ERASED_USER} asked for it", ERASED_USER)
    record, _ = erasures(session, Account)
    assert (record.reason, record.erased_by) == (f"asked by {ERASED_USER}", ERASED_USER)
    assert [(each.reason, each.held_by) for each in holds(session)] == [(f"{ERASED_USER} is sued", ERASED_USER)]
    assert sqlaudit.versions_of(session, Account, 2)[0].name is ERASED
    assert "'u42'" not in everything(session)


def test_what_is_held_is_left_alone_and_counted(session):
    held = [hold(session, Account, 1, reason="lawsuit")]
    held.append(hold(session, changeset_id=sqlaudit.versions_of(session, Worker, 1)[-1].changeset_id, reason="audit"))
    session.commit()
    done = erase_actor(session, USER, reason="request")
    session.commit()
    assert (done.versions, done.held) == (5, 4)
    assert [each.changed_by for each in sqlaudit.versions_of(session, Worker, 1)] == [ERASED_USER, USER]
    for each in held:
        release(session, each)
    done = erase_actor(session, USER, reason="request")
    session.commit()
    assert (done.versions, done.held) == (4, 0)


@pytest.mark.spread
def test_it_is_recorded_for_each_table_without_the_user_and_done_once(session):
    with AuditContextManager(user_id="officer"):
        planned = erase_actor(session, USER, reason="request", dry_run=True)
        assert erasures(session, Account) == []
        done = erase_actor(session, USER, reason="request")
        assert erase_actor(session, USER, reason="again").versions == 0
        session.commit()
    assert (planned.versions, planned.tables) == (done.versions, done.tables)
    (record,) = erasures(session, Account)
    assert (record.key, record.versions, record.reason, record.erased_by) == (None, 4, "request", "officer")
    assert record.fields == ("audit_changed_by", "audit_extra", "audit_impersonated_by", "audit_reason")
    with pytest.raises(QueryError, match=r"is of a user, whom it does not name\. Call erase_actor"):
        replay_erasures(session, Account, [record])


def test_an_engine_erases_in_transactions_of_ranges(session, engine):
    session.close()
    done = erase_actor(engine, USER, names=NAMES, reason="request", chunk_size=1)
    assert done.versions == 10
    assert [each.versions for each in erasures(session, Account)] == [4]
    assert "'u42'" not in everything(session)


@pytest.mark.spread
def test_versions_in_the_session_are_refreshed(session):
    version = sqlaudit.versions_of(session, Account, 1)[0]
    erase_actor(session, USER, reason="request")
    assert version.changed_by == ERASED_USER
    session.rollback()
    assert sqlaudit.versions_of(session, Account, 1)[0].changed_by == USER


def test_an_async_session_awaits_it(happened, async_engine):
    async def erased():
        async with AsyncSession(async_engine) as session:
            done = await erase_actor(session, USER, Tag, reason="request")
            await session.commit()
            return done.versions

    assert asyncio.run(erased()) == 1


REFUSALS = {
    "no user": (("", {}), "The user is empty"),
    "a text of names": ((USER, {"names": "Ada"}), "names is 'Ada'"),
    "an empty name": ((USER, {"names": [" "]}), "not empty"),
    "no reason": ((USER, {"reason": " "}), "says why"),
    "no chunk": ((USER, {"chunk_size": 0}), "chunk_size is 0"),
}


@pytest.mark.no_tables
@pytest.mark.parametrize(("arguments", "message"), REFUSALS.values(), ids=list(REFUSALS))
def test_what_cannot_be_erased_is_refused(arguments, message):
    user, options = arguments
    with orm.Session() as session, pytest.raises(QueryError, match=message):
        erase_actor(session, user, **{"reason": "request", **options})


@pytest.mark.no_tables
def test_nobody_else_has_the_text_for_erased_users():
    for options in ({"user_id": ERASED_USER}, {"impersonated_by": ERASED_USER}, {"on_behalf_of": ERASED_USER}):
        with pytest.raises(ContextError, match="stands for users who were erased"):
            AuditContextManager(**options)


class Kept(orm.DeclarativeBase):
    pass


@track_table(append_only=True)
class Paper(Kept):
    __tablename__ = "papers"
    id: Mapped[int] = mapped_column(primary_key=True)


maintenance_tables(Kept.metadata)
sqlaudit.marks_table(Kept.metadata, "paper_marks")


@pytest.mark.no_tables
def test_an_append_only_history_and_marks_no_longer_name_the_user(engine):
    with recording(engine, Kept.metadata) as maker:
        try:
            with maker() as session, AuditContextManager(user_id=USER):
                session.add(Paper(id=1))
                sqlaudit.mark(session, "before")
                session.commit()
                erase_actor(session, USER, Paper, reason="request")
                session.commit()
                assert sqlaudit.versions_of(session, Paper, 1)[0].changed_by == ERASED_USER
                assert sqlaudit.mark_named(session, "before").changed_by == ERASED_USER
                with pytest.raises(sa.exc.DBAPIError):
                    session.execute(sa.text("UPDATE papers_history SET audit_changed_by = 'x'"))
        finally:
            Kept.metadata.drop_all(engine)


@pytest.mark.no_tables
def test_a_context_keeps_the_reserved_name_of_extra_free():
    for make in (AuditContextManager, sqlaudit.set_audit_context, AuditContext):
        with pytest.raises(ContextError, match="extra has 'sqlaudit_erased'"):
            make(extra={"sqlaudit_erased": "[]"})
