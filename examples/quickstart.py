"""Who changed what, when and why, and what did it look like then?

    python examples/quickstart.py [URL]

Runs on SQLite in memory, or on any database that SQLAlchemy reaches, and drops its tables again.
"""

import sys
from datetime import UTC, datetime
from decimal import Decimal

from sqlalchemy import Numeric, String, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlaudit import AuditContextManager, Temporal, get_resource_changes, register_hooks, track_table


class Base(DeclarativeBase):
    pass


@track_table(tracked_fields=["name", "city", "credit"])
class Customer(Temporal, Base):  # Temporal tells editors of Customer.as_of
    __tablename__ = "quickstart_customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))
    city: Mapped[str | None] = mapped_column(String(50))
    credit: Mapped[Decimal] = mapped_column(Numeric(10, 2))


def show(title: str, header: str, *rows: tuple[object, ...]) -> None:
    """Print rows as a table."""
    table = [header.split(), *(["-" if value is None else str(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    table.insert(1, ["-" * width for width in widths])
    print(f"\n{title}\n")
    for cells in table:
        print("  " + "  ".join(map(str.ljust, cells, widths)).rstrip())


register_hooks()  # from now on every session records
engine = create_engine(sys.argv[1] if len(sys.argv) > 1 else "sqlite://")
Base.metadata.drop_all(engine)
Base.metadata.create_all(engine)  # quickstart_customers and quickstart_customers_history

with Session(engine) as session:
    with AuditContextManager(user_id="ana", reason="signed at the fair"):
        ada = Customer(name="Ada", city="London", credit=Decimal(100))
        bob = Customer(name="Bob", city="Paris", credit=Decimal(200))
        eve = Customer(name="Eve", credit=Decimal(0))
        session.add_all([ada, bob, eve])
        session.commit()

    before_the_review = datetime.now(UTC)

    with AuditContextManager(user_id="ben", reason="yearly review"):
        ada.credit += 50
        bob.name, bob.city = "Robert", "Lyon"
        session.commit()
        with AuditContextManager(reason="closed the account"):  # still by ben
            session.delete(eve)
            session.commit()

    then = session.scalars(Customer.as_of(before_the_review).order_by(Customer.id))
    show("Before the review", "id name city credit", *((c.id, c.name, c.city, c.credit) for c in then))

    now = session.scalars(select(Customer).order_by(Customer.id))
    show("Now", "id name city credit", *((c.id, c.name, c.city, c.credit) for c in now))

    changes = get_resource_changes(Customer, session)
    show(
        "All changes",
        "when by reason what customer field old new",
        *(
            (
                f"{change.timestamp:%H:%M:%S.%f}",
                change.changed_by,
                change.reason,
                change.operation,
                change.resource_id,
                change.field_name,
                change.old_value,
                change.new_value,
            )
            for change in changes
        ),
    )

Base.metadata.drop_all(engine)
engine.dispose()
