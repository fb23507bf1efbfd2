"""What is a tracked class? Its options, its tables and its fields.

The mapper of a tracked model carries a :class:`TrackedModel` in ``mapper.class_manager.info["sqlaudit"]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

from sqlalchemy import (
    BinaryExpression,
    Column,
    ColumnClause,
    ColumnElement,
    FromClause,
    Table,
    inspect,
)
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import Mapper, RelationshipProperty
from sqlalchemy.sql import operators, visitors

from sqlaudit.exceptions import TrackingError
from sqlaudit.sql.redacting import Redaction
from sqlaudit.tracking.retention import Retention
from sqlaudit.tracking.sessions import SESSIONS
from sqlaudit.tracking.tables import INFO_KEY, AuditColumns, TrackedTable, refuse_clash, tracked_table


@dataclass(frozen=True, slots=True)
class Options:
    """The options of :func:`sqlaudit.track_table`."""

    tracked_fields: frozenset[str] | None = None
    exclude: frozenset[str] = frozenset()
    quiet: frozenset[str] = frozenset()
    redact: Mapping[str, Redaction] = field(default_factory=dict)
    table_label: str | None = None
    resource_id_field: str | None = None
    user_id_field: str | None = None
    history_table_name: str | None = None
    audit_columns: AuditColumns = AuditColumns()  # noqa: RUF009  # frozen
    as_of_index: bool = False
    append_only: bool = False
    retention: Retention | None = None
    subject: str | None = None
    personal: frozenset[str] = frozenset()
    partitions: int | None = None


def attribute_of(mapper: Mapper[Any], column: Any) -> str | None:
    """Return the name of the attribute that a column is mapped to, or ``None``."""
    prop = mapper._columntoproperty.get(column)
    return None if prop is None else prop.key


class TrackedModel:
    """A tracked class: its options, its tables from the base class's to its own, and its fields."""

    def __init__(self, mapper: Mapper[Any], options: Options, *, is_decorated: bool = False) -> None:
        self.mapper = mapper
        self.options = options
        self.is_decorated = is_decorated
        self.parent = None if mapper.inherits is None or mapper.concrete else tracked_model(mapper.inherits)
        self.table: TrackedTable
        self.history_class: type[Any] | None = None  # made by history_of()
        self.has_grown = False
        """Whether the model has gained attributes that its history class may lack."""
        self._make_table()
        mapper.class_manager.info[INFO_KEY] = self

    def _make_table(self) -> None:
        mapper, options = self.mapper, self.options
        fields = {name for name, column in mapper.columns.items() if isinstance(column, Column)}
        refuse_clash(options.audit_columns, mapper.class_.__name__, fields - options.exclude, mapper.class_)
        local = mapper.local_table
        if not isinstance(local, Table):
            raise TrackingError(
                f"{mapper.class_.__name__} is mapped to {local.description!r}, which is not a table. Track the models "
                "of the tables that it selects from.",
                mapper.class_,
            )
        if self.parent is not None and local is self.parent.table.live:
            self.table = self.parent.table
        else:
            self.table = TrackedTable(
                local,
                self._key(),
                exclude=self._names_of_columns(local, options.exclude),
                quiet=self._names_of_columns(local, options.quiet),
                redact={
                    name: redaction
                    for attribute, redaction in options.redact.items()
                    for name in self._names_of_columns(local, frozenset({attribute}))
                },
                name=options.history_table_name,
                names=options.audit_columns,
                as_of_index=options.as_of_index,
                append_only=options.append_only,
                partitions=options.partitions,
                mapper=mapper,
            )
        for table in self.chain:
            if self.chain not in table.chains:
                table.chains.append(self.chain)

    def _key(self) -> list[Column[Any]]:
        """Return the columns of the model's table that identify a row, in the order of the base table's key."""
        if self.parent is None:
            return [cast("Column[Any]", column) for column in self.mapper.primary_key]
        mapper, base = self.mapper, self.root.table
        name, equal = mapper.class_.__name__, _EqualColumns(mapper)
        if not equal.are_equal(mapper.primary_key, base.key):
            raise TrackingError(
                f"{name} has another primary key than {base.live.fullname!r}, by which sqlaudit finds the versions of "
                "its base class. Leave primary_key out of its __mapper_args__.",
                mapper.class_,
            )
        key = [equal.column_of(mapper.local_table, column) for column in base.key]
        if any(column is None for column in key):
            raise TrackingError(
                f"The table {mapper.local_table.description!r} of {name} has no column that is equal to the key of "
                f"{base.live.fullname!r}, by which sqlaudit finds its versions. Let its foreign key refer to that "
                "key, or to a column that is equal to it.",
                mapper.class_,
            )
        return key

    def _names_of_columns(self, table: Table, attributes: frozenset[str]) -> list[str]:
        """Return the names of the columns of the model's table, apart from its key, that attributes are mapped to."""
        key = set(self.mapper.primary_key)
        return [
            column.name
            for column in (table.c if attributes else ())
            if (attribute_of(self.mapper, column) or column.key) in attributes and column not in key
        ]

    def set_options(self, options: Options) -> None:
        """Set the options of a decorated subclass, which was tracked with its base class.

        :raises TrackingError: its history class is in use already, or an option can only be given to the base class
        """
        name = self.mapper.class_.__name__
        inherited = self.options
        shares_table = self.parent is not None and self.table is self.parent.table
        indexes = options.as_of_index and not inherited.as_of_index
        protects = options.append_only and not inherited.append_only
        divides = options.partitions not in (None, inherited.partitions)
        columns = (options.exclude - inherited.exclude) | (options.quiet - inherited.quiet)
        columns |= {name for name, value in options.redact.items() if inherited.redact.get(name) != value}
        if shares_table and (options.history_table_name or columns or indexes or divides):
            raise TrackingError(
                f"{name} shares the table {self.table.live.fullname!r} with its base class, which decides on its "
                "history table. Pass exclude, quiet, redact, history_table_name, as_of_index and partitions to the "
                "base class.",
                self.mapper.class_,
            )
        if options.audit_columns not in (AuditColumns(), inherited.audit_columns) and self.parent is not None:
            raise TrackingError(
                f"{name} inherits the names of its audit columns. Pass audit_columns to its base class.",
                self.mapper.class_,
            )
        if options.append_only and not inherited.append_only and self.parent is not None:
            raise TrackingError(
                f"{name} shares its versions with its base class, whose history is not append-only. Pass append_only "
                "to the base class.",
                self.mapper.class_,
            )
        if options.retention is not None and self.parent is not None:
            raise TrackingError(
                f"{name} shares its versions with its base class, and they are pruned together. Pass retention to "
                f"{self.root.name}.",
                self.mapper.class_,
            )
        self.is_decorated = True
        self.options = replace(
            options,
            tracked_fields=inherited.tracked_fields if options.tracked_fields is None else options.tracked_fields,
            exclude=options.exclude | inherited.exclude,
            quiet=options.quiet | inherited.quiet,
            redact={**inherited.redact, **options.redact},
            resource_id_field=options.resource_id_field or inherited.resource_id_field,
            user_id_field=options.user_id_field or inherited.user_id_field,
            audit_columns=inherited.audit_columns if self.parent is not None else options.audit_columns,
            as_of_index=options.as_of_index or inherited.as_of_index,
            append_only=options.append_only or inherited.append_only,
            retention=options.retention or inherited.retention,
            subject=options.subject or inherited.subject,
            personal=options.personal | inherited.personal,
            partitions=options.partitions or inherited.partitions,
        )
        if not shares_table and (
            options.history_table_name
            or options.exclude
            or options.quiet
            or options.redact
            or options.audit_columns != inherited.audit_columns
            or indexes
            or protects
            or divides
        ):
            if self.history_class is not None:
                raise TrackingError(
                    f"The history of {name} is already in use. Decorate the class right after its definition.",
                    self.mapper.class_,
                )
            self.table.discard()
            for other in self.chain:
                other.chains.remove(self.chain)
            self.__dict__.pop("chain", None)
            self._make_table()

    def options_for_subclass(self) -> Options:
        """Return the options that subclasses inherit: all except the name of the history table and the label."""
        return replace(self.options, history_table_name=None, table_label=None)

    @cached_property
    def chain(self) -> tuple[TrackedTable, ...]:
        """The tables that hold one object, base table first. Only joined-table inheritance has more than one."""
        above = self.parent.chain if self.parent else ()
        return above if self.table in above else (*above, self.table)

    @property
    def name(self) -> str:
        return self.mapper.class_.__name__

    @property
    def qualname(self) -> str:
        return self.mapper.class_.__qualname__

    @property
    def identity(self) -> Any:
        """The value of the discriminator for objects of this class, or ``None``."""
        return self.mapper.polymorphic_identity

    @property
    def key_names(self) -> list[str]:
        """The names of the attributes that identify an object, in the order of the base table's key."""
        return [self.mapper.get_property_by_column(column).key for column in self.root.table.key]

    @property
    def discriminator(self) -> Any:
        """The expression that gives a row's class, or ``None`` if its tables have none, as in a concrete hierarchy."""
        expression, tables = self.mapper.polymorphic_on, {table.live for table in self.root.chain}
        if expression is None:
            return None
        columns = [element for element in visitors.iterate(expression) if isinstance(element, ColumnClause)]
        return None if columns and all(column.table not in tables for column in columns) else expression

    @cached_property
    def root(self) -> TrackedModel:
        """The topmost model whose objects share this one's tables."""
        return self.parent.root if self.parent else self

    def family(self) -> list[TrackedModel]:
        """Return this model and the models of its subclasses, except concrete ones, from the top down."""
        found = []
        for mapper in self.mapper.self_and_descendants:
            model: TrackedModel | None = mapper.class_manager.info.get(INFO_KEY)
            if model is not None and model.root is self.root:
                found.append(model)
        return found

    @cached_property
    def columns(self) -> dict[str, Column[Any]]:
        """The stored fields, inherited ones included: attribute name → history column."""
        columns = dict(self.parent.columns) if self.parent else {}
        for live, history in self.table.columns:
            if name := attribute_of(self.mapper, live):
                columns.setdefault(name, history)
            elif self.parent is None and live.key not in columns and self._is_unmapped(live):
                columns[live.key] = history
        return columns

    def forget_columns(self) -> None:
        """Discard what was derived from the columns of the whole hierarchy, because the model has gained columns."""
        for model in self.root.family():
            model.__dict__.pop("columns", None)
            model.table.cache.clear()
            model.has_grown = True

    def _is_unmapped(self, column: Column[Any]) -> bool:
        return not any(attribute_of(mapper, column) for mapper in self.mapper.self_and_descendants)

    @property
    def stored(self) -> frozenset[str]:
        """The attribute names of the stored columns."""
        return frozenset(self.columns)

    @property
    def label(self) -> str:
        return self.options.table_label or self.mapper.class_.__name__

    def reported_fields(self) -> list[tuple[str, Column[Any]]]:
        """Return the fields that reads report, with their history columns, including those of subclasses."""
        fields: dict[Column[Any], str] = {}
        for model in self.family():
            chosen = model.options.tracked_fields
            for name, column in model.columns.items():
                if chosen is None or name in chosen:
                    fields.setdefault(column, name)
        return [(name, column) for column, name in fields.items()]

    def resource_id_columns(self) -> list[Column[Any]]:
        """Return the history columns whose values reads report as the id of a row."""
        field = self.options.resource_id_field
        return [self.columns[field]] if field else list(self.root.table.history_key)


class _EqualColumns:
    """The columns of an object's tables that have equal values, because the tables are joined by them."""

    def __init__(self, mapper: Mapper[Any]) -> None:
        self._sets: list[set[Any]] = []
        while mapper.inherits is not None and not mapper.concrete:
            if mapper.inherit_condition is not None:
                self._read(mapper.inherit_condition)
            mapper = mapper.inherits

    def _read(self, condition: ColumnElement[bool]) -> None:
        for element in visitors.iterate(condition):
            if isinstance(element, BinaryExpression) and element.operator is operators.eq:
                same = {element.left._deannotate(), element.right._deannotate()}
                self._sets = [*self._merged(same)]

    def _merged(self, same: set[Any]) -> Iterator[set[Any]]:
        for columns in self._sets:
            if same.isdisjoint(columns):
                yield columns
            else:
                same = same | columns
        yield same

    def _equal_to(self, column: Any) -> set[Any]:
        return next((columns for columns in self._sets if column in columns), {column})

    def column_of(self, table: FromClause, column: Any) -> Any:
        """Return the column of a table that has the same value as another column, or ``None``."""
        return next(
            (candidate for candidate in (*table.primary_key, *table.c) if candidate in self._equal_to(column)), None
        )

    def are_equal(self, left: Sequence[Any], right: Sequence[Any]) -> bool:
        return len(left) == len(right) and all(a in self._equal_to(b) for a, b in zip(left, right, strict=True))


def tracked_model(mapper: Mapper[Any]) -> TrackedModel | None:
    """Return the tracked model of a mapper, or ``None``."""
    return mapper.class_manager.info.get(INFO_KEY)


def tracked_model_of(model_class: type[Any]) -> TrackedModel:
    """Return the tracked model of a class.

    :raises TrackingError: the class is not tracked
    """
    try:
        mapper = inspect(model_class)
    except NoInspectionAvailable:
        mapper = None
    model = tracked_model(mapper) if isinstance(mapper, Mapper) else None
    if model is None:
        if isinstance(model_class, SESSIONS):
            raise TrackingError(
                f"The {type(model_class).__name__} is given where a model belongs. Give a model there, and the session "
                "in its own place.",
                model_class,
            )
        name = getattr(model_class, "__name__", repr(model_class))
        raise TrackingError(f"{name} is not a tracked model. Decorate it with @track_table().", model_class)
    return model


def root_of(table: TrackedTable) -> TrackedModel:
    """Return the topmost model of the hierarchy that uses a table, which is not an association table."""
    model = tracked_model(cast("Mapper[Any]", table.mapper))
    assert model is not None
    return model.root


def link_columns(relationship: RelationshipProperty[Any]) -> tuple[Column[Any], ...]:
    """Return the columns of an association table that refer to the two sides: this side's, then the other's."""
    pairs = (*relationship.synchronize_pairs, *(relationship.secondary_synchronize_pairs or ()))
    return tuple([column for _, column in pairs])  # type: ignore[misc]  # a Table has only Columns


def tracked_table_of(live: Table) -> TrackedTable:
    """Return the tracked table of a live table.

    :raises TrackingError: it is not tracked
    """
    table = tracked_table(live)
    if table is None or table.live is not live:
        raise TrackingError(
            f"{live.fullname!r} is not a tracked table. Give a tracked model, or an association table between tracked "
            "models, after sqlalchemy.orm.configure_mappers().",
            live,
        )
    return table


def base_table_of(source: Any) -> TrackedTable:
    """Return the base table of the hierarchy of a tracked model or table, or an association table itself.

    :raises TrackingError: the source is neither a tracked model nor a tracked table
    """
    if not isinstance(source, Table):
        return tracked_model_of(source).root.table
    table = tracked_table_of(source)
    return table if table.is_association else table.chains[0][0]
