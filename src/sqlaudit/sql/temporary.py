"""How is a temporary table dropped? By a statement that does not commit."""

from __future__ import annotations

from typing import Any

from sqlalchemy import FromClause
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

from sqlaudit.sql.dialects import MYSQL


class DropTemporary(ExecutableDDLElement):
    """Drop a temporary table without committing the transaction."""

    def __init__(self, table: FromClause) -> None:
        self.table = table


@compiles(DropTemporary)
def _drop_temporary(element: DropTemporary, compiler: DDLCompiler, **kw: Any) -> str:
    return f"DROP TABLE IF EXISTS {compiler.preparer.format_table(element.table)}"


@compiles(DropTemporary, *MYSQL)
def _drop_temporary_on_mysql(element: DropTemporary, compiler: DDLCompiler, **kw: Any) -> str:
    # Without TEMPORARY it would commit.
    return f"DROP TEMPORARY TABLE IF EXISTS {compiler.preparer.format_table(element.table)}"
