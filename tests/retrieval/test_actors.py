"""Which kind of actor was it, on whose behalf and in which run? Told with each version, and a filter of every read."""

import pickle
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqlaudit import (
    ActorType,
    AuditColumns,
    AuditContextManager,
    QueryError,
    blame,
    changes_in,
    changesets,
    get_resource_changes,
    set_audit_context,
    stream_resource_changes,
    track_table,
    versions_of,
)


class Base(DeclarativeBase):
    pass


@track_table()
class Ticket(Base):
    __tablename__ = "actors_tickets"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(sa.String(20))


@track_table(audit_columns=AuditColumns(extra="audit_more"))
class Run(Base):
    __tablename__ = "actors_runs"
    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(sa.String(20))


ACTORS: list[dict[str, Any]] = [
    {"user_id": "ana", "actor_type": "user"},
    {"user_id": "triage", "actor_type": ActorType.AGENT, "on_behalf_of": "ana", "run_id": "r-1"},
    {"user_id": "triage", "actor_type": "agent", "on_behalf_of": "Ana", "run_id": "R-1", "extra": {"model": "m"}},
    {"user_id": "nightly", "actor_type": "service", "run_id": 7},
    {"actor_type": "anonymous"},
    {"user_id": "eve", "extra": ["agent", "r-1"]},
    {"user_id": "eve", "extra": {"run_id": 7, "actor_type": "robot", "on_behalf_of": None}},
    {"user_id": "b", "on_behalf_of": 'Zoë\'s "bot" \\ 1%'},
    {},
]


def happen(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        ticket = Ticket(id=1, status="new")
        session.add(ticket)
        for number, actor in enumerate(ACTORS):
            with AuditContextManager(**actor):
                ticket.status = f"status {number}"
                session.commit()


def numbers(found: Any) -> list[int]:
    return [int(str(change.new_value).split()[1]) for change in found if change.field_name == "status"]


FILTERS = [
    ({"actor_type": "agent"}, [1, 2]),
    ({"actor_type": ActorType.ANONYMOUS}, [4]),
    ({"actor_type": "system"}, []),
    ({"on_behalf_of": "ana"}, [1]),
    ({"on_behalf_of": "Ana", "actor_type": "agent"}, [2]),
    ({"on_behalf_of": ACTORS[7]["on_behalf_of"]}, [7]),
    ({"run_id": "R-1"}, [2]),
    ({"run_id": 7}, [3, 6]),
    ({"run_id": 8}, []),
    ({"actor_type": "agent", "user_id": "ana"}, []),
]


_NAMES = {
    "actor_type": "filter_actor_types",
    "run_id": "filter_run_ids",
    "user_id": "filter_user_ids",
    "reason": "filter_reasons",
}


@pytest.mark.parametrize(("wanted", "expected"), FILTERS, ids=str)
def test_each_read_finds_what_an_actor_did(
    session: Session, happened: None, wanted: dict[str, Any], expected: list[int]
) -> None:
    filters = {_NAMES.get(name, f"filter_{name}"): value for name, value in wanted.items()}
    assert numbers(get_resource_changes(Ticket, session, **filters)) == expected
    assert numbers(stream_resource_changes(Ticket, session, 1, limit=50, **filters)) == expected
    ids = [each.changeset_id for each in changesets(session, **wanted)]
    assert [number for each in ids for number in numbers(changes_in(session, each))] == expected
    newest = changesets(session, **wanted, newest_first=True, limit=1)
    assert [each.changeset_id for each in newest] == ids[-1:]


def test_one_filter_takes_several_actors(session: Session, happened: None) -> None:
    found = get_resource_changes(Ticket, session, filter_actor_types=["agent", "service"], filter_run_ids=["R-1", 7])
    assert numbers(found) == [2, 3]
    assert get_resource_changes(Ticket, session, filter_actor_types=[]) == []


def test_what_is_told_of_an_actor_is_an_attribute_wherever_it_is_named(session: Session, happened: None) -> None:
    def told(something: Any) -> tuple[Any, ...]:
        return something.actor_type, something.on_behalf_of, something.run_id

    expected = [
        (ActorType.USER, None, None),
        (ActorType.AGENT, "ana", "r-1"),
        (ActorType.AGENT, "Ana", "R-1"),
        (ActorType.SERVICE, None, "7"),
        (ActorType.ANONYMOUS, None, None),
        (None, None, None),
        (None, None, "7"),
        (None, ACTORS[7]["on_behalf_of"], None),
        (None, None, None),
    ]
    versions = versions_of(session, Ticket, 1)
    assert [told(version) for version in versions] == expected
    assert [told(change) for version in versions for change in version.changes if change.field_name == "status"] == (
        expected
    )
    assert [told(each) for each in changesets(session)] == expected
    assert [told(each) for each in get_resource_changes(Ticket, session, filter_fields="status")] == expected
    assert told(blame(session, Ticket, 1)["status"]) == expected[-1]
    assert told(pickle.loads(pickle.dumps(changesets(session)[1]))) == expected[1]
    assert versions[2].audit_extra == {"model": "m", "actor_type": "agent", "on_behalf_of": "Ana", "run_id": "R-1"}


def test_a_column_of_the_model_keeps_its_name(session: Session) -> None:
    set_audit_context(actor_type="agent", run_id="of the agent")
    session.add(Run(id=1, run_id="of the model"))
    session.commit()
    (version,) = versions_of(session, Run, 1)
    assert (version.run_id, version.actor_type) == ("of the model", "agent")
    assert version.audit_more == {"actor_type": "agent", "run_id": "of the agent"}
    (change,) = get_resource_changes(Run, session, filter_fields="run_id", filter_run_ids="of the agent")
    assert (change.new_value, change.run_id) == ("of the model", "of the agent")


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"filter_actor_types": "robot"}, "filter_actor_types has 'robot'. Give user, service, agent, system, anonym"),
        ({"filter_actor_types": [None]}, "filter_actor_types has None"),
        ({"filter_on_behalf_of": 1.5}, "filter_on_behalf_of has 1.5"),
        ({"filter_run_ids": [None]}, "filter_run_ids has None"),
        ({"filter_reasons": 7}, "filter_reasons has 7"),
    ],
)
@pytest.mark.spread
def test_a_filter_that_no_actor_can_meet_is_refused(session: Session, filters: dict[str, Any], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        get_resource_changes(Ticket, session, **filters)


@pytest.mark.parametrize("name", ["actor_type", "on_behalf_of", "run_id"])
@pytest.mark.spread
def test_changesets_refuse_such_a_filter_too(session: Session, name: str) -> None:
    with pytest.raises(QueryError, match=f"{name} has 1.5"):
        changesets(session, **{name: 1.5})
