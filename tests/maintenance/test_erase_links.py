"""The further columns of a link are erased like those of a row, and are not restored."""

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import Mapped, mapped_column, relationship

import sqlaudit
from sqlaudit import ERASED, QueryError, track_table
from sqlaudit.maintenance import erase, erasures, maintenance_tables, replay_erasures


class Base(orm.DeclarativeBase):
    pass


memberships = sa.Table(
    "memberships",
    Base.metadata,
    sa.Column("member_id", sa.ForeignKey("club_members.id"), primary_key=True),
    sa.Column("club_id", sa.ForeignKey("clubs.id"), primary_key=True),
    sa.Column("sponsor_id", sa.ForeignKey("club_members.id")),
    sa.Column("note", sa.String(20)),
    sa.Column("rank", sa.Integer),
)


@track_table()
class Club(Base):
    __tablename__ = "clubs"
    id: Mapped[int] = mapped_column(primary_key=True)


@track_table()
class ClubMember(Base):
    __tablename__ = "club_members"
    id: Mapped[int] = mapped_column(primary_key=True)
    clubs: Mapped[list[Club]] = relationship(secondary=memberships, foreign_keys=memberships.c["member_id", "club_id"])


maintenance_tables(Base.metadata)
KEY = (1, 1)


def happen(maker):
    """A member joins a club, gets a note, then another rank, and leaves; another one stays."""
    with maker() as session:
        member = ClubMember(id=1, clubs=[Club(id=1)])
        session.add_all([member, ClubMember(id=2, clubs=member.clubs)])
        session.commit()
        for values in ({"note": "secret", "rank": 1}, {"rank": 2}):
            session.execute(sa.update(memberships).values(values))
            session.commit()
        member.clubs.clear()
        session.commit()


@pytest.fixture
def session(session, happened, clock):
    return session


def erase_note(session, key=KEY):
    record = erase(session, memberships, key, fields=["note"], reason="request")
    session.commit()
    return record


def test_values_of_links_are_erased_from_all_versions(session):
    record = erase_note(session)
    assert (record.table, record.key, record.versions) == ("memberships", KEY, 4)
    notes = [version.note for version in sqlaudit.versions_of(session, memberships, KEY)]
    assert notes == [ERASED] * 4
    assert [version.note for version in sqlaudit.versions_of(session, memberships, (2, 1))][-1] == "secret"
    assert erasures(session, memberships) == [record]
    assert replay_erasures(session, memberships, [record]) == 0
    changes = sqlaudit.get_resource_changes(memberships, session, KEY, filter_fields="note")
    assert [(each.operation, each.old_value, each.new_value) for each in changes] == [
        ("insert", None, ERASED),
        ("delete", ERASED, None),
    ]


def test_the_live_link_is_erased_too(session):
    erase_note(session, (2, 1))
    assert session.execute(sa.select(memberships.c.note, memberships.c.rank)).all() == [(None, 2)]
    sqlaudit.record_changes(session, memberships)
    assert len(sqlaudit.versions_of(session, memberships, (2, 1))) == 3


def test_an_erased_value_of_a_link_is_not_restored(session):
    erase_note(session)
    before = sqlaudit.versions_of(session, memberships, KEY)[1]
    with pytest.raises(QueryError, match=r"The link \(1, 1\) of 'memberships' has no value of note .* was erased"):
        sqlaudit.restore(session, ClubMember, 1, at=before.timestamp, include=["clubs"])
    left = sqlaudit.versions_of(session, memberships, KEY)[-1]
    with pytest.raises(QueryError, match="has no value of note"):
        sqlaudit.undo(session, left.changeset_id)
    session.rollback()
    assert session.get(ClubMember, 1).clubs == []


def test_other_values_of_an_erased_link_are_undone(session):
    erase_note(session, (2, 1))
    rank = sqlaudit.versions_of(session, memberships, (2, 1))[-1]
    sqlaudit.undo(session, rank.changeset_id, force=True)
    session.commit()
    of_other = sa.select(memberships.c.note, memberships.c.rank).where(memberships.c.member_id == 2)
    assert session.execute(of_other).all() == [(None, 1)]


@pytest.mark.spread
@pytest.mark.parametrize(("field", "message"), [("club_id", "part of the key"), ("sponsor_id", "what the link refers")])
def test_what_a_link_refers_to_cannot_be_erased(session, field, message):
    with pytest.raises(QueryError, match=f"{message}.* Delete the link"):
        erase(session, memberships, KEY, fields=[field], reason="request")
    assert erase(session, memberships, KEY, fields="all", reason="request").fields == ("note", "rank")
