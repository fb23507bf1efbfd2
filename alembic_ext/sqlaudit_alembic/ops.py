"""What can a revision do to history? Each operation is a value with a reverse.

Each takes the name of the live table. It takes the name of the history table, the names of audit columns and the schema
only where they differ from the defaults of :func:`sqlaudit.track_table`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from alembic.operations.base import Operations
from alembic.operations.ops import AddColumnOp, AlterColumnOp, MigrateOperation, ModifyTableOps
from sqlalchemy import Column, Date, MetaData, Table
from sqlalchemy.dialects import postgresql

from sqlaudit import SQLAuditError
from sqlaudit.sql.redacting import Redaction
from sqlaudit.tracking.tables import AuditColumns, TrackedTable, forget_metadata, shortened


@dataclass(frozen=True, slots=True)
class Place:
    """Where the history of a table lies.

    :param table: the name of the live table
    :param history_table: the name of the history table, if it is not the default
    :param audit_columns: role → name, for audit columns whose names are not the defaults
    """

    table: str
    history_table: str | None = None
    audit_columns: Mapping[str, str] = field(default_factory=dict)
    schema: str | None = None

    @property
    def history(self) -> str:
        return self.history_table or shortened(f"{self.table}_history")

    @property
    def names(self) -> AuditColumns:
        return AuditColumns(**self.audit_columns)


_OPTIONS: Final = frozenset({"history_table", "audit_columns", "schema"})


def _place(table: str, options: dict[str, Any]) -> Place:
    if unknown := set(options) - _OPTIONS:
        raise SQLAuditError(
            f"{', '.join(sorted(unknown))} is not an option. The options are {', '.join(sorted(_OPTIONS))}.", options
        )
    audit_columns = options.get("audit_columns") or {}
    if unknown := set(audit_columns) - {role for role, _ in AuditColumns().items()}:
        roles = ", ".join(role for role, _ in AuditColumns().items())
        raise SQLAuditError(
            f"audit_columns names {', '.join(sorted(unknown))}, which is not a role of an audit column. The roles are "
            f"{roles}.",
            audit_columns,
        )
    return Place(table, options.get("history_table"), dict(audit_columns), options.get("schema"))


class HistoryOp(MigrateOperation):
    """An operation on the history of one table."""

    directive: str

    def __init__(self, place: Place) -> None:
        self.place = place

    def arguments(self) -> list[Any]:
        """Return the positional arguments after the table's name."""
        return []

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments that make the same operation again."""
        place = self.place
        options = {"history_table": place.history_table, "schema": place.schema}
        if place.audit_columns:
            options["audit_columns"] = dict(place.audit_columns)  # type: ignore[assignment]
        return {name: value for name, value in options.items() if value is not None}

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return (self.directive, self.place.schema, self.place.table, *self.arguments())


class _Structure(HistoryOp):
    """An operation that describes a history table: the columns of the live table that it stores, and the key."""

    def __init__(
        self,
        place: Place,
        columns: Sequence[Column[Any]],
        key: Sequence[str],
        as_of_index: bool = False,
        partitions: int | None = None,
    ) -> None:
        super().__init__(place)
        self.columns = tuple(columns)
        self.key = tuple(key)
        self.as_of_index = as_of_index
        self.partitions = partitions

    def arguments(self) -> list[Any]:
        return list(self.columns)

    def options(self) -> dict[str, Any]:
        more: dict[str, Any] = {"key": list(self.key)} if self.key else {}
        more |= {"as_of_index": True} if self.as_of_index else {}
        more |= {"partitions": self.partitions} if self.partitions else {}
        return more | super().options()

    def to_tracked(self) -> TrackedTable:
        """Make the tables that the operation describes, in a MetaData of their own.

        :raises SQLAuditError: the key is missing or unknown, or a column is given twice
        """
        if not self.key:
            raise SQLAuditError(f"The history of {self.place.table!r} needs a key. Name its columns: key=[…].", self)
        names = [column.name for column in self.columns]
        if twice := {name for name in names if names.count(name) > 1}:
            raise SQLAuditError(
                f"The column {', '.join(sorted(twice))} is given twice for the history of {self.place.table!r}. Give "
                "each column once.",
                self,
            )
        metadata = MetaData()
        columns: list[Column[Any]] = [Column(column.name, column.type) for column in self.columns]
        live = Table(self.place.table, metadata, *columns, schema=self.place.schema)
        if unknown := set(self.key) - set(live.c.keys()):
            raise SQLAuditError(
                f"The key of {self.place.table!r} names {', '.join(sorted(unknown))}, which is not one of the given "
                "columns. Name columns that are given.",
                self,
            )
        tracked = TrackedTable(
            live,
            [live.c[name] for name in self.key],
            name=self.place.history,
            names=self.place.names,
            as_of_index=self.as_of_index,
            partitions=self.partitions,
        )
        forget_metadata(metadata)
        return tracked


@Operations.register_operation("create_history_table")
class CreateHistoryTableOp(_Structure):
    """Create the history table of a live table."""

    directive = "create_history_table"

    @classmethod
    def create_history_table(
        cls,
        operations: Operations,
        /,
        table: str,
        *columns: Column[Any],
        key: Sequence[str],
        as_of_index: bool = False,
        partitions: int | None = None,
        **options: Any,
    ) -> None:
        """Create a history table with the columns and indexes of sqlaudit. One index refuses a second open version.

        :param table: the name of the live table
        :param columns: the columns of the live table that the history stores
        :param key: the names of the columns that identify a row
        :param as_of_index: add the indexes of ``track_table(as_of_index=True)``
        :param partitions: on PostgreSQL, create the partitions of ``track_table(partitions=…)``
        :param options: ``history_table``, ``audit_columns`` (a dict of role and name) and ``schema``, if they are not
            the defaults
        """
        operations.invoke(cls(_place(table, options), columns, key, as_of_index, partitions))

    def reverse(self) -> MigrateOperation:
        return DropHistoryTableOp(self.place, self.columns, self.key, self.as_of_index, self.partitions)


@Operations.register_operation("drop_history_table")
class DropHistoryTableOp(_Structure):
    """Drop a history table; autogenerate proposes it only to reverse a creation."""

    directive = "drop_history_table"

    @classmethod
    def drop_history_table(
        cls,
        operations: Operations,
        /,
        table: str,
        *columns: Column[Any],
        key: Sequence[str] = (),
        as_of_index: bool = False,
        partitions: int | None = None,
        **options: Any,
    ) -> None:
        """Drop a history table with all its versions. The live table need not exist any more.

        :param table: the name of the live table
        :param columns: the columns of the history, to create it again if the operation is reversed
        :param key: its key, for the same purpose
        :param as_of_index: whether it has these indexes, for the same purpose
        :param partitions: how many partitions it has, for the same purpose. They are dropped, too
        :param options: ``history_table``, ``audit_columns`` (a dict of role and name) and ``schema``, if they are not
            the defaults
        """
        operations.invoke(cls(_place(table, options), columns, key, as_of_index, partitions))

    def reverse(self) -> MigrateOperation:
        if not self.columns or not self.key:
            raise SQLAuditError(
                f"Dropping the history table of {self.place.table!r} cannot be reversed, because its columns are "
                "unknown. Give drop_history_table its columns and its key=.",
                self,
            )
        return CreateHistoryTableOp(self.place, self.columns, self.key, self.as_of_index, self.partitions)


class _Writing(HistoryOp):
    """An operation that writes versions. Its reverse does nothing: only changes of structure are undone."""

    def __init__(
        self,
        place: Place,
        *,
        key: Sequence[str] = (),
        columns: Sequence[str] = (),
        at: datetime | None = None,
        redact: Mapping[str, Redaction] | None = None,
    ) -> None:
        super().__init__(place)
        self.key = tuple(key)
        self.columns = tuple(columns)
        self.at = at
        self.redact = dict(redact or {})

    def options(self) -> dict[str, Any]:
        options = {"key": list(self.key), "columns": list(self.columns), "at": self.at, "redact": self.redact}
        return {name: value for name, value in options.items() if value} | super().options()

    def reverse(self) -> MigrateOperation:
        return ModifyTableOps(self.place.table, [], schema=self.place.schema)


@Operations.register_operation("backfill_history")
class BackfillHistoryOp(_Writing):
    """Write baselines of the rows that have no history."""

    directive = "backfill_history"

    @classmethod
    def backfill_history(
        cls,
        operations: Operations,
        /,
        table: str,
        *,
        key: Sequence[str] = (),
        columns: Sequence[str] = (),
        at: datetime | None = None,
        redact: Mapping[str, Redaction] | None = None,
        **options: Any,
    ) -> None:
        """Write an open baseline for each row without history: one statement, one changeset, one instant.

        :param table: the name of the live table
        :param key: the names of the key columns. Needed in ``--sql`` mode, if the same run does not create the history
            table
        :param columns: the names of all columns that the history stores; any other column of the live table is
            excluded. Needed in the same case
        :param at: an aware datetime; if omitted, the time at which the migration, or its ``--sql`` script, runs
        :param redact: what history stores in place of the values of columns, as in ``track_table(redact=…)``. Not in
            ``--sql`` mode: the script would contain the key
        :param options: ``history_table``, ``audit_columns`` (a dict of role and name) and ``schema``, if they are not
            the defaults
        """
        operations.invoke(cls(_place(table, options), key=key, columns=columns, at=at, redact=redact))


@Operations.register_operation("renew_history")
class RenewHistoryOp(_Writing):
    """Write baselines of rows as a migration left them, after their existing versions."""

    directive = "renew_history"

    @classmethod
    def renew_history(
        cls,
        operations: Operations,
        /,
        table: str,
        *,
        key: Sequence[str] = (),
        columns: Sequence[str] = (),
        at: datetime | None = None,
        redact: Mapping[str, Redaction] | None = None,
        **options: Any,
    ) -> None:
        """Close the open version of each live row, and write a baseline of the row after it: two statements.

        The history then has what a migration did to the rows, without a user. The parameters are the same as of
        ``op.backfill_history``.
        """
        operations.invoke(cls(_place(table, options), key=key, columns=columns, at=at, redact=redact))


class ColumnsLeaveOp(ModifyTableOps):
    """Do nothing before columns are dropped that history keeps; the reverse renews history once they are back."""

    def __init__(self, renewal: RenewHistoryOp) -> None:
        super().__init__(renewal.place.table, [], schema=renewal.place.schema)
        self.renewal = renewal

    def reverse(self) -> MigrateOperation:  # type: ignore[override]  # returns no ModifyTableOps
        return self.renewal


class WidenHistoryOp(ModifyTableOps):
    """Widen columns of a history table; the reverse leaves them wide, because history may hold wider values then."""

    def reverse(self) -> ModifyTableOps:
        converted = [operation.reverse() for operation in self.ops if isinstance(operation, BecomeUTCOp)]
        return ModifyTableOps(self.table_name, converted, schema=self.schema)


class BecomeUTCOp(AlterColumnOp):
    """Convert a column of instants to a type with or without time zone, in UTC, whatever the session's time zone."""

    @classmethod
    def of(cls, operation: AlterColumnOp) -> BecomeUTCOp:
        return cls(
            operation.table_name,
            operation.column_name,
            schema=operation.schema,
            existing_type=operation.existing_type,
            existing_nullable=operation.existing_nullable,
            modify_nullable=operation.modify_nullable,
            modify_type=operation.modify_type,
            postgresql_using=_in_utc(operation.column_name, operation.existing_type),
        )

    def reverse(self) -> AlterColumnOp:
        operation = super().reverse()
        operation.modify_type = postgresql.TIMESTAMP(timezone=not self.modify_type.timezone)  # type: ignore[union-attr]
        operation.kw["postgresql_using"] = _in_utc(self.column_name, self.modify_type)
        return operation


def _in_utc(column: str, existing: Any) -> str:
    quoted = postgresql.dialect().identifier_preparer.quote(column)  # type: ignore[no-untyped-call]  # SQLAlchemy's
    instant = f"CAST({quoted} AS TIMESTAMP)" if isinstance(existing, Date) else quoted
    return f"{instant} AT TIME ZONE 'UTC'"


@Operations.register_operation("drop_history_column")
class DropHistoryColumnOp(HistoryOp):
    """Drop a column that only history still has."""

    directive = "drop_history_column"

    def __init__(self, place: Place, column: str, type_: Any = None) -> None:
        super().__init__(place)
        self.column = column
        self.type_ = type_

    @classmethod
    def drop_history_column(
        cls, operations: Operations, /, table: str, column: str, *, type_: Any = None, **options: Any
    ) -> None:
        """Drop a column of a history table with all its values.

        :param table: the name of the live table
        :param column: the name of the column
        :param type_: its type, to add the column again if the operation is reversed
        :param options: ``history_table``, ``audit_columns`` (a dict of role and name) and ``schema``, if they are not
            the defaults
        """
        operations.invoke(cls(_place(table, options), column, type_))

    def arguments(self) -> list[Any]:
        return [self.column]

    def options(self) -> dict[str, Any]:
        return ({} if self.type_ is None else {"type_": self.type_}) | super().options()

    def reverse(self) -> MigrateOperation:
        if self.type_ is None:
            raise SQLAuditError(
                f"Dropping the column cannot be reversed, because the type of {self.column!r} is unknown. Give "
                "drop_history_column its type_=.",
                self,
            )
        return AddColumnOp(self.place.history, Column(self.column, self.type_), schema=self.place.schema)


class _Protection(HistoryOp):
    def __init__(
        self,
        place: Place,
        *,
        key: Sequence[str] = (),
        columns: Sequence[str] = (),
        maintainers: Sequence[str] = (),
    ) -> None:
        super().__init__(place)
        self.key = tuple(key)
        self.columns = tuple(columns)
        self.maintainers = tuple(maintainers)

    def options(self) -> dict[str, Any]:
        options = {"key": list(self.key), "columns": list(self.columns), "maintainers": list(self.maintainers)}
        return {name: value for name, value in options.items() if value} | super().options()


@Operations.register_operation("protect_history")
class ProtectHistoryOp(_Protection):
    """Let the database refuse to change and to delete versions."""

    directive = "protect_history"

    @classmethod
    def protect_history(
        cls,
        operations: Operations,
        /,
        table: str,
        *,
        key: Sequence[str] = (),
        columns: Sequence[str] = (),
        maintainers: Sequence[str] = (),
        **options: Any,
    ) -> None:
        """Let the database refuse to change and to delete versions of a table, except to ``sqlaudit.maintenance``.

        The model needs ``track_table(append_only=True)``. A history that is protected already gets its triggers again.

        :param table: the name of the live table
        :param key: the names of the key columns. Needed in ``--sql`` mode for SQLite, MariaDB and MySQL, if the same
            run does not create the history table
        :param columns: the names of all columns that the history stores. Needed in the same case
        :param maintainers: on MariaDB and MySQL, the names of the users whom the triggers let rewrite history, beside
            the user who creates them; those who are named already, if omitted
        :param options: ``history_table``, ``audit_columns`` (a dict of role and name) and ``schema``, if they are not
            the defaults
        """
        operations.invoke(cls(_place(table, options), key=key, columns=columns, maintainers=maintainers))

    def reverse(self) -> MigrateOperation:
        return UnprotectHistoryOp(self.place, key=self.key, columns=self.columns, maintainers=self.maintainers)


@Operations.register_operation("unprotect_history")
class UnprotectHistoryOp(_Protection):
    """End the protection of a history."""

    directive = "unprotect_history"

    @classmethod
    def unprotect_history(
        cls,
        operations: Operations,
        /,
        table: str,
        *,
        key: Sequence[str] = (),
        columns: Sequence[str] = (),
        maintainers: Sequence[str] = (),
        **options: Any,
    ) -> None:
        """Drop the triggers that let the database refuse to change versions, if there are any.

        :param table: the name of the live table
        :param key: as for ``op.protect_history``, to protect the history again if the operation is reversed
        :param columns: for the same purpose
        :param maintainers: for the same purpose
        :param options: ``history_table``, ``audit_columns`` (a dict of role and name) and ``schema``, if they are not
            the defaults
        """
        operations.invoke(cls(_place(table, options), key=key, columns=columns, maintainers=maintainers))

    def reverse(self) -> MigrateOperation:
        return ProtectHistoryOp(self.place, key=self.key, columns=self.columns, maintainers=self.maintainers)


class StaysProtectedOp(ModifyTableOps):
    """Do nothing before a protected history changes; the reverse protects it again once the change is undone."""

    def __init__(self, protection: ProtectHistoryOp) -> None:
        super().__init__(protection.place.table, [], schema=protection.place.schema)
        self.protection = protection

    def reverse(self) -> MigrateOperation:  # type: ignore[override]  # returns no ModifyTableOps
        return self.protection


class _Rename(HistoryOp):
    def __init__(self, place: Place, old: str, new: str, maintenance: bool = False) -> None:
        super().__init__(place)
        self.old = old
        self.new = new
        self.maintenance = maintenance

    def options(self) -> dict[str, Any]:
        return ({"maintenance": True} if self.maintenance else {}) | super().options()

    def arguments(self) -> list[Any]:
        return [self.old, self.new]


@Operations.register_operation("rename_tracked_column")
class RenameTrackedColumnOp(_Rename):
    """Rename a column of a live table and of its history."""

    directive = "rename_tracked_column"

    @classmethod
    def rename_tracked_column(
        cls,
        operations: Operations,
        /,
        table: str,
        old: str,
        new: str,
        *,
        maintenance: bool = False,
        **options: Any,
    ) -> None:
        """Rename a column of a live table and of its history table. It may be a column of the key.

        What versions and the table of erasures tell of erased values gets the new name, too.

        :param table: the name of the live table
        :param old: the name of the column now
        :param new: its new name
        :param maintenance: whether the database has the tables of :mod:`sqlaudit.maintenance`. Needed in ``--sql`` mode
        :param options: ``history_table``, ``audit_columns`` (a dict of role and name) and ``schema``, if they are not
            the defaults
        """
        operations.invoke(cls(_place(table, options), old, new, maintenance))

    def reverse(self) -> MigrateOperation:
        return RenameTrackedColumnOp(self.place, self.new, self.old, self.maintenance)


@Operations.register_operation("rename_tracked_table")
class RenameTrackedTableOp(_Rename):
    """Rename a live table, its history table, and sqlaudit's indexes and partitions of the history table."""

    directive = "rename_tracked_table"

    def __init__(
        self,
        place: Place,
        old: str,
        new: str,
        key: Sequence[str] = (),
        as_of_index: bool = False,
        maintenance: bool = False,
        partitions: int | None = None,
    ) -> None:
        super().__init__(place, old, new, maintenance)
        self.key = tuple(key)
        self.as_of_index = as_of_index
        self.partitions = partitions

    @classmethod
    def rename_tracked_table(
        cls,
        operations: Operations,
        /,
        old: str,
        new: str,
        *,
        key: Sequence[str] = (),
        as_of_index: bool = False,
        maintenance: bool = False,
        partitions: int | None = None,
        **options: Any,
    ) -> None:
        """Rename a live table, its history table, and the indexes and partitions of sqlaudit.

        A history table that was given a name of its own keeps it. Horizons, holds and erasures get the new name, too.

        :param old: the name of the live table now
        :param new: its new name
        :param key: the names of the key columns. Needed in ``--sql`` mode on SQLite, which creates indexes anew
        :param as_of_index: whether the history has these indexes. Needed in ``--sql`` mode
        :param maintenance: whether the database has the tables of :mod:`sqlaudit.maintenance`. Needed in ``--sql`` mode
        :param partitions: how many partitions the history has. Needed in ``--sql`` mode
        :param options: ``history_table``, ``audit_columns`` (a dict of role and name) and ``schema``, if they are not
            the defaults
        """
        operations.invoke(cls(_place(old, options), old, new, key, as_of_index, maintenance, partitions))

    def arguments(self) -> list[Any]:
        return [self.new]

    def options(self) -> dict[str, Any]:
        more: dict[str, Any] = {"key": list(self.key)} if self.key else {}
        more |= {"as_of_index": True} if self.as_of_index else {}
        more |= {"partitions": self.partitions} if self.partitions else {}
        return more | super().options()

    @property
    def renamed(self) -> Place:
        """The place of the history afterwards."""
        return Place(self.new, self.place.history_table, self.place.audit_columns, self.place.schema)

    def reverse(self) -> MigrateOperation:
        return RenameTrackedTableOp(
            self.renamed, self.new, self.old, self.key, self.as_of_index, self.maintenance, self.partitions
        )
