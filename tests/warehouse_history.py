"""A database with the history that the page on the command line shows, with the same instants and ids in each run."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import sessionmaker

from blocks import ROOT
from sqlaudit import (
    AuditContextManager,
    SQLAuditConfig,
    clear_config,
    history_of,
    mark,
    register_hooks,
    set_config,
    unregister_hooks,
)

PAGE = ROOT / "docs" / "command-line.md"
BEGIN = datetime(2026, 3, 1, 9, tzinfo=UTC)
_MODULE = re.compile(r"^```py\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Clock:
    """Gives each transaction an instant three hours and seven minutes after the one before."""

    def __init__(self) -> None:
        self.now = BEGIN

    def __call__(self) -> datetime:
        self.now += timedelta(hours=3, minutes=7)
        return self.now


@contextmanager
def models(directory: Path) -> Iterator[ModuleType]:
    """Give the module of the page, ``warehouse``, which the command can import from a directory."""
    [code] = _MODULE.findall(PAGE.read_text(encoding="utf-8"))
    (directory / "warehouse.py").write_text(code, encoding="utf-8")
    (directory / "pyproject.toml").write_text('[tool.sqlaudit]\nmodels = ["warehouse:Base"]\n', encoding="utf-8")
    module = ModuleType("warehouse")
    sys.modules["warehouse"] = module
    try:
        exec(compile(code, "warehouse.py", "exec"), vars(module))
        yield module
    finally:
        del sys.modules["warehouse"]
        module.Base.registry.dispose()


def changeset_id(number: int) -> UUID:
    return UUID(f"019ca000-0000-7000-8000-{number:012}")


def fill(engine: sa.Engine, module: ModuleType) -> None:
    """Create the tables of the page and let its transactions happen."""
    Supplier, Part, Tag = module.Supplier, module.Part, module.Tag
    module.Base.metadata.create_all(engine)
    sessions = sessionmaker(engine)
    register_hooks(sessions)
    set_config(SQLAuditConfig(clock=Clock()))
    try:
        with sessions() as session:
            with AuditContextManager(user_id="alice", reason="first delivery"):
                terms = "Delivers on Mondays before noon; invoices are paid within 14 days, less 2 % discount."
                supplier = Supplier(id=1, name="Nuts & Bolts Ltd", email="office@nuts.example", terms=terms)
                parts = [
                    Part(id=1, name="hex bolt M8", price=Decimal("0.12"), stock=500),
                    Part(id=2, name="washer M8", price=Decimal("0.02"), stock=0),
                ]
                tag = Tag(id=1, name="preferred")
                session.add_all([supplier, *parts, tag])
                session.commit()
            with AuditContextManager(user_id="stock-sync", actor_type="service"):
                parts[0].stock = 480
                session.commit()
            with AuditContextManager(user_id="bob", reason="ticket 13"):
                supplier.terms = supplier.terms.replace("14 days", "30 days")
                supplier.tags.append(tag)
                session.commit()
            with AuditContextManager(user_id="bob"):
                mark(session, "before the price rise")
                session.commit()
            with AuditContextManager(user_id="carol", reason="new price list"):
                parts[0].price = Decimal("0.15")
                session.commit()
            with AuditContextManager(user_id="pricing-bot", actor_type="agent", on_behalf_of="carol"):
                parts[0].price, parts[1].price = Decimal("0.14"), Decimal("0.03")
                session.commit()
            with AuditContextManager(user_id="carol", reason="wrong address"):
                supplier.email = "orders@nuts.example"
                session.delete(parts[1])
                session.commit()
            with AuditContextManager(user_id="bob", reason="renegotiated"):
                supplier.terms = supplier.terms.replace("less 2 %", "less 3 %")
                session.commit()
    finally:
        clear_config()
        unregister_hooks(sessions)
    _number_changesets(engine, module)


def _number_changesets(engine: sa.Engine, module: ModuleType) -> None:
    """Give the changesets ids that are the same in each run."""
    sources = (module.Supplier, module.Part, module.Tag, module.supplier_tags)
    histories = [history_of(source).__table__ for source in sources]
    with engine.begin() as connection:
        instants = {
            row.valid_from: row.audit_changeset_id
            for history in histories
            for row in connection.execute(sa.select(history.c.valid_from, history.c.audit_changeset_id))
        }
        for number, instant in enumerate(sorted(instants), 1):
            for history in histories:
                of_it = history.c.audit_changeset_id == instants[instant]
                values = {"audit_changeset_id": changeset_id(number)}
                connection.execute(sa.update(history).where(of_it).values(values))
