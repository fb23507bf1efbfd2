"""Where are the versions kept? The history table of a live table, the history class of a model.

A tracked table and its history table carry a :class:`TrackedTable` in ``table.info["sqlaudit"]``; the mapper of a
tracked model carries a :class:`TrackedModel` in ``mapper.class_manager.info["sqlaudit"]``. Tables are made when a
model is decorated, so that ``create_all`` and Alembic see them; history classes when they are first asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Final, cast
from weakref import WeakKeyDictionary

from sqlalchemy import (
    JSON,
    BinaryExpression,
    Column,
    ColumnElement,
    Connection,
    Dialect,
    FromClause,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
    and_,
    event,
    inspect,
    select,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import Mapper, Session, object_session
from sqlalchemy.orm.exc import UnmappedColumnError
from sqlalchemy.schema import BLANK_SCHEMA, ExecutableDDLElement, conv
from sqlalchemy.sql import visitors
from sqlalchemy.sql.compiler import DDLCompiler
from sqlalchemy.sql.elements import quoted_name
from sqlalchemy.types import NullType, TypeDecorator, TypeEngine

from sqlaudit.changes import FieldChange, Operation, VersionInfo, diff
from sqlaudit.context import USER_ID_LENGTH
from sqlaudit.exceptions import ReadOnlyError, TrackingError
from sqlaudit.period import OpenEnd, UTCDateTime, is_open

INFO_KEY: Final = "sqlaudit"
_MAX_IDENTIFIER: Final = 63  # PostgreSQL's, in bytes; the others allow at least as many
_TABLE_OPTIONS: Final = ("engine", "charset", "default_charset", "collate", "default_collate")


@dataclass(frozen=True, slots=True)
class AuditColumns:
    """The names of our columns in a history table, for models whose own columns clash with them."""

    version: str = "audit_version"
    valid_from: str = "valid_from"
    valid_to: str = "valid_to"
    operation: str = "audit_operation"
    changeset_id: str = "audit_changeset_id"
    changed_by: str = "audit_changed_by"
    impersonated_by: str = "audit_impersonated_by"
    reason: str = "audit_reason"
    extra: str = "audit_extra"

    def items(self) -> Iterator[tuple[str, str]]:
        """Yield each role and the name of its column."""
        return ((field.name, getattr(self, field.name)) for field in fields(self))


@dataclass(frozen=True, slots=True)
class Options:
    """What :func:`sqlaudit.track_table` was told."""

    tracked_fields: frozenset[str] | None = None
    exclude: frozenset[str] = frozenset()
    table_label: str | None = None
    resource_id_field: str | None = None
    user_id_field: str | None = None
    history_table_name: str | None = None
    audit_columns: AuditColumns = AuditColumns()


class OperationText(TypeDecorator[Operation]):
    """An :class:`~sqlaudit.changes.Operation` as its text; an ``Enum`` would bring DDL of its own."""

    impl = String(16)
    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[str], Operation | None]:
        return {str(operation): operation for operation in Operation}.get


def _audit_column_types() -> dict[str, TypeEngine[Any]]:
    # Bob is not bob, whatever a database thinks of their names.
    user_id = String(USER_ID_LENGTH).with_variant(
        mysql.VARCHAR(USER_ID_LENGTH, collation="utf8mb4_bin"), "mysql", "mariadb"
    )
    return {
        "version": Integer(),
        "valid_from": UTCDateTime(),
        "valid_to": UTCDateTime(),
        "operation": OperationText(),
        # One type per database, whether a server answers or not: Uuid alone depends on MariaDB's version.
        "changeset_id": Uuid(native_uuid=False).with_variant(Uuid(), "postgresql"),
        "changed_by": user_id,
        "impersonated_by": user_id,
        "reason": Text(),
        "extra": JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql"),
    }


class TrackedTable:
    """A live table, its history table, and which column is which.

    :ivar live: the live table
    :ivar key: the columns of the live table that identify a row
    :ivar history: the history table
    :ivar names: the names of our columns in it
    """

    def __init__(
        self,
        live: Table,
        key: Iterable[Column[Any]],
        *,
        exclude: Iterable[str] = (),
        name: str | None = None,
        names: AuditColumns | None = None,
        is_association: bool = False,
    ) -> None:
        self.live = live
        self.key = tuple(key)
        self.exclude = frozenset(exclude)
        self.is_association = is_association
        self.names = names or AuditColumns()
        self.chains: list[tuple[TrackedTable, ...]] = []  # those of the models whose objects have rows in this table
        self.cache: dict[Any, Any] = {}
        self.statements: WeakKeyDictionary[Dialect, Any] = WeakKeyDictionary()  # built once per dialect
        self.history = self._make_table(name)
        live.info[INFO_KEY] = self.history.info[INFO_KEY] = self
        self.history.add_is_dependent_on(live)  # whose CREATE makes the types that both use

    def _make_table(self, name: str | None) -> Table:
        live, metadata = self.live, self.live.metadata
        name = name or _shortened(f"{live.name}_history")
        if (key := name if live.schema is None else f"{live.schema}.{name}") in metadata.tables:
            raise TrackingError(
                f"The history table of {live.fullname!r} cannot be named {key!r}, there is such a table already; "
                "choose another name: track_table(history_table_name=…).",
                live,
            )
        names = [column for role, column in self.names.items()]
        if len(set(names)) < len(names):
            raise TrackingError(f"{self.names} gives two columns one name; give each its own.", live)
        history = Table(
            quoted_name(name, getattr(live.name, "quote", None)),
            metadata,
            *(self._copy_of(column) for column in self._stored_columns()),
            *(
                Column(
                    getattr(self.names, role),
                    type_,
                    primary_key=role == "version",
                    autoincrement=False,
                    nullable=role in ("changed_by", "impersonated_by", "reason", "extra"),
                )
                for role, type_ in _audit_column_types().items()
            ),
            schema=live.schema or BLANK_SCHEMA,
            **{
                f"{dialect}_{option}": value
                for dialect in ("mysql", "mariadb")
                for option in _TABLE_OPTIONS
                if (value := live.kwargs.get(f"{dialect}_{option}")) is not None
            },
        )
        where = is_open(history.c[self.names.valid_to])
        Index(
            conv(_shortened(f"uq_{name}_open")),
            *(history.c[column.key] for column in self.key),
            unique=True,
            postgresql_where=where,
            sqlite_where=where,
        ).ddl_if(dialect=cast(str, ("postgresql", "sqlite")))
        Index(conv(_shortened(f"ix_{name}_changeset")), history.c[self.names.changeset_id])
        event.listen(history, "after_create", AddOpenGuard(history).execute_if(dialect=cast(str, ("mysql", "mariadb"))))
        return history

    def _stored_columns(self) -> Iterator[Column[Any]]:
        return (column for column in self.live.c if not column.system and column.name not in self.exclude)

    def _copy_of(self, column: Column[Any]) -> Column[Any]:
        _refuse_clash(self.names, repr(self.live.fullname), {column.name, column.key}, self.live)
        is_key = column in set(self.key)  # a set: == is the type's own, and may be anything
        copy: Column[Any] = Column(
            column.name, key=column.key, primary_key=is_key, nullable=not is_key, autoincrement=False
        )
        # Set afterwards, the type is shared without its DDL: no CHECK, no second CREATE TYPE.
        copy.type = column.type
        return copy

    def refresh(self) -> None:
        """Follow the live table, to which columns may have been added since.

        Single-table subclasses add columns, and a foreign key without a type gets it from its target.
        """
        for column in self._stored_columns():
            if column.key not in self.history.c:
                self.history.append_column(self._copy_of(column))
                self.statements.clear()
                self.__dict__.pop("columns", None)
            elif isinstance(self.history.c[column.key].type, NullType):
                self.history.c[column.key].type = column.type

    @cached_property
    def columns(self) -> list[tuple[Column[Any], Column[Any]]]:
        """The stored columns: (live column, history column)."""
        return [(column, self.history.c[column.key]) for column in self._stored_columns()]

    @property
    def history_key(self) -> tuple[Column[Any], ...]:
        """The columns of the history table that identify a row; a version needs its number, too."""
        return tuple(self.history.c[column.key] for column in self.key)

    def role(self, role: str) -> Column[Any]:
        """Return our column of a role: a field of :class:`AuditColumns`."""
        name: str = getattr(self.names, role)
        return self.history.c[name]

    @property
    def version(self) -> Column[int]:
        return self.role("version")

    @property
    def valid_from(self) -> Column[Any]:
        return self.role("valid_from")

    @property
    def valid_to(self) -> Column[Any]:
        return self.role("valid_to")


def _refuse_clash(ours: AuditColumns, owner: str, names: Collection[str], subject: object) -> None:
    for role, name in ours.items():
        if name in names:
            other = f"audit_{role}_2" if name.startswith("audit_") else f"audit_{role}"
            raise TrackingError(
                f"{owner} has a column {name!r}, and its history table needs a column of that name; rename ours: "
                f"track_table(audit_columns=AuditColumns({role}={other!r})).",
                subject,
            )


def _shortened(name: str) -> str:
    """Return ``name``, or if it is too long for a database its beginning and a digest of the whole."""
    if len(name.encode()) <= _MAX_IDENTIFIER:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return name.encode()[: _MAX_IDENTIFIER - 9].decode(errors="ignore") + "_" + digest


class AddOpenGuard(ExecutableDDLElement):
    """Let MySQL and MariaDB, which have no partial indexes, refuse two open versions of one row.

    An invisible generated column, unique within a row's life, is 0 for the open version and the number of the
    version for all others. InnoDB looks for duplicates beyond a new entry, too, and locks the one that follows: it
    is another version of the same row, never the neighbouring row's, so that writers of different rows don't wait.
    """

    def __init__(self, history: Table) -> None:
        self.history = history


@compiles(AddOpenGuard)
def _render_open_guard(element: AddOpenGuard, compiler: DDLCompiler, **kw: Any) -> str:
    history, quote = element.history, compiler.preparer.quote
    tracked: TrackedTable = history.info[INFO_KEY]
    guard = quote(f"{tracked.version.name}_closed")
    open_end = compiler.sql_compiler.process(OpenEnd())
    key = ", ".join([*(quote(column.name) for column in tracked.history_key), guard])
    return (
        f"ALTER TABLE {compiler.preparer.format_table(history)} ADD COLUMN {guard} INTEGER GENERATED ALWAYS "
        f"AS (IF({quote(tracked.valid_to.name)} = {open_end}, 0, {quote(tracked.version.name)})) VIRTUAL INVISIBLE, "
        f"ADD UNIQUE INDEX {quote(_shortened(f'uq_{history.name}_open'))} ({key})"
    )


class TrackedModel:
    """A tracked class: its options, its tables from the base of its hierarchy to its own, its fields."""

    def __init__(self, mapper: Mapper[Any], options: Options, *, is_decorated: bool = False) -> None:
        self.mapper = mapper
        self.options = options
        self.is_decorated = is_decorated
        self.parent = None if mapper.inherits is None or mapper.concrete else tracked_model(mapper.inherits)
        self.table: TrackedTable
        self.history_class: type[Version] | None = None
        self._make_table()
        mapper.class_manager.info[INFO_KEY] = self

    def _make_table(self) -> None:
        mapper, options = self.mapper, self.options
        fields = {name for name, column in mapper.columns.items() if isinstance(column, Column)}
        _refuse_clash(options.audit_columns, mapper.class_.__name__, fields - options.exclude, mapper.class_)
        local = mapper.local_table
        assert isinstance(local, Table)
        if self.parent is not None and local is self.parent.table.live:
            self.table = self.parent.table
            self.table.refresh()
        else:
            self.table = TrackedTable(
                local,
                self._key(),
                exclude=[
                    column.name
                    for column in local.c
                    if self._name_of(column) in options.exclude and column not in set(mapper.primary_key)
                ],
                name=options.history_table_name,
                names=options.audit_columns,
            )
        for table in self.chain:
            if self.chain not in table.chains:
                table.chains.append(self.chain)

    def _key(self) -> list[Column[Any]]:
        """Return the columns of the own table that identify a row, in the order of the base table's."""
        if self.parent is None:
            return [cast("Column[Any]", column) for column in self.mapper.primary_key]
        partners: dict[Any, Any] = {}
        for element in visitors.iterate(cast("ColumnElement[bool]", self.mapper.inherit_condition)):
            if isinstance(element, BinaryExpression):
                left, right = (side._deannotate() for side in (element.left, element.right))
                partners[left], partners[right] = right, left
        return [partners[column] for column in self.parent.table.key]

    def _name_of(self, column: Column[Any]) -> str:
        try:
            return self.mapper.get_property_by_column(column).key
        except UnmappedColumnError:
            return column.key

    def set_options(self, options: Options) -> None:
        """Take the options of a decorated subclass, which was tracked with its base class.

        :raises TrackingError: they come too late, or are those of the base
        """
        name = self.mapper.class_.__name__
        inherited = self.options
        shares_table = self.parent is not None and self.table is self.parent.table
        if shares_table and (options.history_table_name or options.exclude - inherited.exclude):
            raise TrackingError(
                f"{name} shares the table {self.table.live.fullname!r} with its base class; exclude its columns and "
                "name the history table there.",
                self.mapper.class_,
            )
        if options.audit_columns not in (AuditColumns(), inherited.audit_columns) and self.parent is not None:
            raise TrackingError(
                f"{name} inherits the names of our columns; give audit_columns to its base class.", self.mapper.class_
            )
        self.is_decorated = True
        self.options = replace(
            options,
            tracked_fields=inherited.tracked_fields if options.tracked_fields is None else options.tracked_fields,
            exclude=options.exclude | inherited.exclude,
            resource_id_field=options.resource_id_field or inherited.resource_id_field,
            user_id_field=options.user_id_field or inherited.user_id_field,
            audit_columns=inherited.audit_columns if self.parent is not None else options.audit_columns,
        )
        if not shares_table and (
            options.history_table_name or options.exclude or options.audit_columns != inherited.audit_columns
        ):
            if self.history_class is not None:
                raise TrackingError(
                    f"The history of {name} is in use already; decorate it right after it is defined.",
                    self.mapper.class_,
                )
            self.table.live.metadata.remove(self.table.history)
            del self.table.live.info[INFO_KEY]
            for other in self.chain:
                other.chains.remove(self.chain)
            self.__dict__.pop("chain", None)
            self._make_table()

    def options_for_subclass(self) -> Options:
        """Return the options that subclasses inherit: all but the name of a history table and the label."""
        return replace(self.options, history_table_name=None, table_label=None)

    @cached_property
    def chain(self) -> tuple[TrackedTable, ...]:
        """The tables that hold one object: base table first; one table but for joined inheritance."""
        above = self.parent.chain if self.parent else ()
        return above if self.table in above else (*above, self.table)

    @property
    def root(self) -> TrackedModel:
        """The topmost model whose objects share this one's tables."""
        return self.parent.root if self.parent else self

    def family(self) -> list[TrackedModel]:
        """Return this model and all below it whose objects are objects of this one, from the top down."""
        return [
            model
            for mapper in self.mapper.self_and_descendants
            if (model := tracked_model(mapper)) is not None and model.root is self.root
        ]

    @cached_property
    def columns(self) -> dict[str, Column[Any]]:
        """The stored fields, inherited ones included: attribute name → history column."""
        columns = dict(self.parent.columns) if self.parent else {}
        for live, history in self.table.columns:
            try:
                name = self.mapper.get_property_by_column(live).key
            except UnmappedColumnError:
                if self.parent is None and live.key not in columns and self._is_unmapped(live):
                    columns[live.key] = history
            else:
                columns.setdefault(name, history)
        return columns

    def _is_unmapped(self, column: Column[Any]) -> bool:
        return not any(column in mapper._columntoproperty for mapper in self.mapper.self_and_descendants)

    @property
    def stored(self) -> frozenset[str]:
        """The attribute names of the stored columns."""
        return frozenset(self.columns)

    @property
    def label(self) -> str:
        return self.options.table_label or self.mapper.class_.__name__

    def reported(self) -> list[tuple[str, Column[Any]]]:
        """Return the fields that reads report, with their history columns, those of subclasses included."""
        found: dict[Column[Any], str] = {}
        for model in self.family():
            chosen = model.options.tracked_fields
            for name, column in model.columns.items():
                if chosen is None or name in chosen:
                    found.setdefault(column, name)
        return [(name, column) for column, name in found.items()]

    def resource_id_columns(self) -> list[Column[Any]]:
        """Return the history columns that give the id of a row to its readers."""
        field = self.options.resource_id_field
        return [self.columns[field]] if field else list(self.root.table.history_key)


def tracked_table(table: object) -> TrackedTable | None:
    """Return what makes a table tracked, or ``None``."""
    return table.info.get(INFO_KEY) if isinstance(table, Table) else None


def tracked_model(mapper: Mapper[Any]) -> TrackedModel | None:
    """Return what makes the class of a mapper tracked, or ``None``."""
    return mapper.class_manager.info.get(INFO_KEY)


def tracked_model_of(model_class: type[Any]) -> TrackedModel:
    """Return what makes a class tracked.

    :raises TrackingError: it is not
    """
    try:
        mapper = inspect(model_class)
    except NoInspectionAvailable:
        mapper = None
    model = tracked_model(mapper) if isinstance(mapper, Mapper) else None
    if model is None:
        name = getattr(model_class, "__name__", repr(model_class))
        raise TrackingError(f"{name} is not a tracked model; decorate it with @track_table().", model_class)
    return model


def track_secondary(secondary: Table, columns: Iterable[Column[Any]]) -> TrackedTable:
    """Give an association table, whose links these columns make, a history table."""
    return tracked_table(secondary) or TrackedTable(secondary, secondary.primary_key or columns, is_association=True)


def tracked_tables(metadata: MetaData) -> list[TrackedTable]:
    """Return the tracked tables of a MetaData."""
    return [
        tracked
        for table in metadata.tables.values()
        if (tracked := tracked_table(table)) is not None and tracked.live is table
    ]


class Version:
    """Base of every history class: one row of a history table, whole and read-only.

    The attributes are those of the model, and the columns of :class:`AuditColumns`.
    """

    __sqlaudit_model__: ClassVar[TrackedModel]

    @property
    def previous(self) -> Any:
        """The version before this one, or ``None``. One statement."""
        return neighbour(self, -1)

    @property
    def next(self) -> Any:
        """The version after this one, or ``None``. One statement."""
        return neighbour(self, +1)

    @property
    def changes(self) -> list[FieldChange]:
        """What this version changed: at most one statement."""
        return changes_of(self)


def history_of(model_class: type[Any]) -> type[Any]:
    """Return the history class of a tracked model, a subclass of :class:`Version`.

    :raises TrackingError: the model is not tracked
    """
    model = tracked_model_of(model_class)
    if model.history_class is None:
        for each in model.root.family():
            if each.history_class is None:
                each.history_class = _make_history_class(each)
    return cast("type[Any]", model.history_class)


def _make_history_class(model: TrackedModel) -> type[Version]:
    mapper, table, parent = model.mapper, model.table, model.parent
    table.refresh()
    history_class = cast(
        "type[Version]",
        type(
            f"{mapper.class_.__name__}.History",  # its registry warns of two classes of one name
            (Version if parent is None else history_of(parent.mapper.class_),),
            {
                "__module__": mapper.class_.__module__,
                "__qualname__": f"{mapper.class_.__qualname__}.History",
                "__doc__": f"A version of {mapper.class_.__name__}.",
                "__sqlaudit_model__": model,
            },
        ),
    )
    options: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    histories: dict[FromClause, Table] = {each.live: each.history for each in model.chain}
    inherited = set(inspect(parent.history_class).columns.values()) if parent else set()
    for live, column in table.columns:
        if column in inherited:
            continue
        try:
            mapped = mapper.get_property_by_column(live)
        except UnmappedColumnError:
            if column in set(model.columns.values()):
                properties[live.key] = [column]
        else:  # in a joined subclass, one attribute may stand for columns of several tables
            properties[mapped.key] = [histories[each.table].c[each.key] for each in mapped.columns]
    if parent is None or parent.table is not table:
        for _, name in table.names.items():
            properties[name] = [table.history.c[name], *(each.history.c[name] for each in reversed(model.chain[:-1]))]
    mapped_columns = inherited.union(*properties.values())
    options["exclude_properties"] = [column.key for column in table.history.c if column not in mapped_columns]
    if parent is None:
        if mapper.polymorphic_on is not None:
            options["polymorphic_on"] = _moved(mapper.polymorphic_on, dict(table.columns))
            options["with_polymorphic"] = "*"
    else:
        options["inherits"] = parent.history_class
        if parent.table is not table:
            options["inherit_condition"] = and_(
                *(
                    ours == theirs
                    for ours, theirs in zip(
                        (*table.history_key, table.version),
                        (*parent.table.history_key, parent.table.version),
                        strict=True,
                    )
                )
            )
    if mapper.polymorphic_identity is not None:
        options["polymorphic_identity"] = mapper.polymorphic_identity
    local_table = table.history if parent is None or parent.table is not table else None
    mapper.registry.map_imperatively(history_class, local_table, properties=properties, **options)
    for name in ("before_insert", "before_update", "before_delete"):
        event.listen(history_class, name, _refuse_change)
    return history_class


def _moved(expression: Any, columns: Mapping[Any, Any]) -> Any:
    """Return an expression on the live table as one on the history table."""
    by_key = {live.key: old for live, old in columns.items()}
    tables = {live.table for live in columns}

    def moved(element: Any, **kw: Any) -> Any:
        if isinstance(element, Column) and element.table in tables:
            return by_key.get(element.key)
        return None

    return visitors.replacement_traverse(expression, {}, moved)


def _refuse_change(mapper: Mapper[Any], connection: Connection, version: Version) -> None:
    raise ReadOnlyError(
        f"{type(version).__qualname__} {inspect(version).identity} is a version, and history is never rewritten; "
        "expunge the version, and change the live object or restore an old state of it instead.",
        version,
    )


def version_info(version: Version) -> dict[str, Any]:
    """Return the arguments of :class:`~sqlaudit.changes.VersionInfo` for a version."""
    names = version.__sqlaudit_model__.table.names
    info = {field.name: getattr(version, getattr(names, field.name, ""), None) for field in fields(VersionInfo)}
    return {**info, "timestamp": getattr(version, names.valid_from)}


def neighbour(version: Version, distance: int) -> Any:
    """Return the version ``distance`` places after (or before) this one in the life of its row, or ``None``.

    One statement, for models whose own columns hide :attr:`Version.previous` or :attr:`Version.next`, too.

    :raises SQLAuditError: the version belongs to no session
    """
    model = version.__sqlaudit_model__.root
    identity = inspect(version).identity
    session: Session | None = object_session(version)
    if session is None or identity is None:
        raise ReadOnlyError(
            f"{type(version).__qualname__} belongs to no session; add it to one to read its neighbours.", version
        )
    table = model.table
    *key, number = identity
    return session.scalar(
        select(history_of(model.mapper.class_)).where(
            *(column == value for column, value in zip(table.history_key, key, strict=True)),
            table.version == number + distance,
        ),
        bind_arguments=where_rows_are(session, model),
    )


def where_rows_are(session: Session, model: TrackedModel) -> dict[str, Any]:
    """Return the bind arguments of reads of a model's history, which lies beside its rows."""
    if isinstance(session, ShardedSession):
        return {"mapper": model.mapper}
    return {"bind": session.get_bind(model.mapper)}


def changes_of(version: Version) -> list[FieldChange]:
    """Return what a version changed, as :attr:`Version.changes` does."""
    model = version.__sqlaudit_model__
    chosen = model.options.tracked_fields
    names = [name for name in model.columns if chosen is None or name in chosen]
    info = version_info(version)
    operation: Operation = info["operation"]
    before = neighbour(version, -1) if operation is Operation.UPDATE else None
    field = model.options.resource_id_field
    keys = [field] if field else [model.mapper.get_property_by_column(column).key for column in model.root.table.key]
    resource_id = tuple(getattr(version, key) for key in keys)
    return [
        FieldChange(
            **info,
            resource_type=model.label,
            resource_id=resource_id if len(resource_id) > 1 else resource_id[0],
            field_name=name,
            old_value=old,
            new_value=new,
        )
        for name, old, new in diff(
            names,
            operation,
            None if before is None else [getattr(before, name, None) for name in names],
            [getattr(version, name) for name in names],
        )
    ]
