"""What holds for histories of accounts that several connections write at once?"""

import itertools
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import sqlaudit

PATIENCE = 10
"""Seconds after which a waiting transaction is considered to wait for ever."""


class Base(DeclarativeBase):
    pass


class AccountColumns:
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    writes: Mapped[int] = mapped_column(default=0)
    written_by: Mapped[str | None] = mapped_column(sa.String(20))


@sqlaudit.track_table()
class Account(AccountColumns, Base):
    """An account that counts its writes and names the last writer."""

    __tablename__ = "accounts"


class PlainAccount(AccountColumns, Base):
    __tablename__ = "plain_accounts"


# If a page is full, an UPDATE changes the index as well, and two serializable transactions that write different rows of
# the page conflict there, even without sqlaudit. Whether a page is full depends on vacuum.
for table in (Account.__table__, PlainAccount.__table__):
    leave_room = sa.DDL("ALTER TABLE %(fullname)s SET (fillfactor = 10)").execute_if(dialect="postgresql")
    sa.event.listen(table, "after_create", leave_room)


def _code(error: sa.exc.DBAPIError) -> Any:
    number = error.orig.args[0]  # MariaDB's SQLSTATE is the same for all conflicts
    return number if isinstance(number, int) else error.orig.sqlstate


def is_conflict(error: sa.exc.DBAPIError) -> bool:
    """Return whether the transaction should be repeated, because of a deadlock or of a change since it began."""
    return is_deadlock(error) or _code(error) in ("40001", 1020)


def is_deadlock(error: sa.exc.DBAPIError) -> bool:
    return _code(error) in ("40P01", 1213)


def until_it_passes(maker: sessionmaker[Session], work: Callable[[Session], Any]) -> Any:
    while True:
        with maker() as session:
            try:
                result = work(session)
                session.commit()
            except sa.exc.DBAPIError as error:
                if not is_conflict(error):
                    raise
            else:
                return result


def write(session: Session, id: int, mark: str, model: type[Any] = Account) -> None:
    account = session.get_one(model, id)
    account.writes = model.writes + 1
    account.written_by = mark
    session.flush()


def histories(session: Session) -> dict[int, list[Any]]:
    """Check what holds for all histories, and return the versions of each account."""
    found: dict[int, list[Any]] = {}
    for version in session.scalars(sa.select(Account.History).order_by(Account.History.id, "audit_version")):
        found.setdefault(version.id, []).append(version)
    live = {account.id: account for account in session.scalars(sa.select(Account))}
    for id, versions in found.items():
        assert [version.audit_version for version in versions] == list(range(1, len(versions) + 1))
        for before, after in itertools.pairwise(versions):
            assert before.valid_from <= before.valid_to == after.valid_from
        still_open = [version for version in versions if version.valid_to == sqlaudit.OPEN_END]
        assert still_open == ([versions[-1]] if id in live else [])
        for version in still_open:
            assert (version.writes, version.written_by) == (live[id].writes, live[id].written_by)
    assert found.keys() >= live.keys()
    return found
