"""What SQL that passed us by has done can be recorded afterwards."""

import enum
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker

import sqlaudit
from invariants import check_history, told
from stock import (
    Base,  # noqa: F401  # whose tables the tests find
    Item,
    fill,
)


@pytest.mark.parametrize("which", [[1, "2", 3, 5, 99], Item.price < 30, None])
def test_what_it_did_can_be_recorded_afterwards(sessions: Any, which: Any) -> None:
    sqlaudit.set_config(sqlaudit.SQLAuditConfig(on_uncaptured="ignore"))
    with sessions() as session:
        fill(session)
        session.execute(sa.text("UPDATE bulk_items SET price = price + 25 WHERE id = 1"))
        session.execute(sa.text("DELETE FROM bulk_parts WHERE item_id = 2"))
        session.execute(sa.text("DELETE FROM bulk_items WHERE id = 2"))
        session.execute(sa.text("INSERT INTO bulk_items (id, title, price) VALUES (5, 'new', 3)"))
        sqlaudit.record_changes(session, Item, which)
        session.commit()
        check_history(session, Item)
        assert told(session, Item, "id", "price") == [
            ("insert", 1, 10),
            ("update", 1, 35),
            ("insert", 2, 20),
            ("delete", 2, 20),
            ("insert", 3, 30),
            ("insert", 4, 40),
            ("insert", 5, 3),
        ]


class Colour(enum.Enum):
    violet = "v"
    blue = "b"
    red = "r"


@pytest.mark.filterwarnings("ignore:SQL that was written by hand")
def test_keys_that_a_database_sorts_otherwise_than_it_compares_them_are_all_found(
    base: Any, sessions: sessionmaker[Session]
) -> None:
    @sqlaudit.track_table()
    class Tile(base):
        __tablename__ = "tiles"

        colour: Mapped[Colour] = mapped_column(primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)

    rows = [{"colour": colour.name, "number": number} for colour in Colour for number in range(700)]
    with sessions() as session:
        base.metadata.create_all(session.connection())
        session.execute(sa.text("INSERT INTO tiles (colour, number) VALUES (:colour, :number)"), rows)
        sqlaudit.record_changes(session, Tile)
        session.commit()
        check_history(session, Tile)
