"""What is a version? An object of the model's history class, which is made when it is first asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime
from threading import RLock
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Generic, TypeVar, cast, get_args, overload
from uuid import UUID
from weakref import WeakKeyDictionary

from sqlalchemy import (
    Column,
    Connection,
    FromClause,
    Select,
    Table,
    and_,
    event,
    inspect,
    literal_column,
    select,
)
from sqlalchemy.exc import MissingGreenlet, StatementError
from sqlalchemy.orm import (
    InstanceState,
    Mapped,
    Mapper,
    QueryableAttribute,
    Session,
    column_property,
    configure_mappers,
    foreign,
    object_session,
    relationship,
)
from sqlalchemy.orm.exc import UnmappedColumnError
from sqlalchemy.sql import visitors

from sqlaudit.asynchronous import AsyncAttrs
from sqlaudit.changes import FieldChange, Operation, VersionInfo, diff, equalities_of
from sqlaudit.context import Actor
from sqlaudit.erased import ERASED, MARK, erased_fields, unmarked
from sqlaudit.exceptions import QueryError, ReadOnlyError
from sqlaudit.sql.batches import chunks
from sqlaudit.sql.comparing import all_equal
from sqlaudit.sql.lists import one_of
from sqlaudit.tracking.aliases import HistoryAlias
from sqlaudit.tracking.links import Readable, model_of
from sqlaudit.tracking.models import TrackedModel, tracked_model, tracked_model_of
from sqlaudit.tracking.sessions import bind_arguments_for
from sqlaudit.tracking.value_types import value_types
from sqlaudit.wire import IN_JSON, Mode, Value, dict_of, told

T = TypeVar("T")


class _AuditColumn(Generic[T]):
    """An audit column, whatever its name is in the history table."""

    def __init__(self, role: str) -> None:
        self.role = role

    @overload
    def __get__(self, version: None, owner: Any) -> QueryableAttribute[T]: ...

    @overload
    def __get__(self, version: object, owner: Any) -> T: ...

    def __get__(self, version: object | None, owner: Any) -> Any:
        model: TrackedModel | None = getattr(owner, "__sqlaudit_model__", None)
        if model is None:  # the base class
            return self
        found = getattr(owner if version is None else version, getattr(model.table.names, self.role))
        return found if version is None or self.role != "extra" else unmarked(found)


if TYPE_CHECKING:
    import typing_extensions

    M = typing_extensions.TypeVar("M", default=Any)

    class _HistoryType(type):
        """What type checkers know of a history class: it may have any column."""

        def __getattr__(cls, name: str) -> Any: ...
else:
    M = TypeVar("M")
    _HistoryType = type


class Version(Actor, AsyncAttrs, Generic[M], metaclass=_HistoryType):
    """Base class of every history class, such as ``Customer.History``: one row of a history table, read-only.

    In an ``AsyncSession``, await what executes a statement: ``await version.awaitable_attrs.previous``.

    Its attributes are the stored columns of the model, the audit columns by their names in the table (see
    :class:`AuditColumns`), and the attributes below, unless the model has columns of the same names. To type checkers,
    a version is a ``Version[Customer]``, and any other attribute is a column of the model.
    """

    __sqlaudit_model__: ClassVar[TrackedModel]

    version = _AuditColumn[int]("version")
    """The number of the version within the life of its row, from 1."""
    timestamp = _AuditColumn[datetime]("valid_from")
    """The instant at which the version began, in UTC."""
    operation = _AuditColumn[Operation]("operation")
    """What made the version."""
    changeset_id = _AuditColumn[UUID]("changeset_id")
    """The database transaction; the same for all versions that it wrote, in all tables."""
    changed_by = _AuditColumn[str | None]("changed_by")
    """The user; ``None`` if no user is known."""
    impersonated_by = _AuditColumn[str | None]("impersonated_by")
    """The user who really acted, if ``changed_by`` was impersonated."""
    reason = _AuditColumn[str | None]("reason")
    """Why."""
    extra = _AuditColumn[Any]("extra")
    """What else the audit context held."""

    if TYPE_CHECKING:
        valid_from: Mapped[datetime]
        valid_to: Mapped[datetime]
        audit_version: Mapped[int]
        audit_operation: Mapped[Operation]
        audit_changeset_id: Mapped[UUID]
        audit_changed_by: Mapped[str | None]
        audit_impersonated_by: Mapped[str | None]
        audit_reason: Mapped[str | None]
        audit_extra: Mapped[Any]

        def __getattr__(self, name: str) -> Any: ...

    @property
    def previous(self) -> Version[M] | None:
        """The version before this one; ``None`` if there is none, or it has been removed.

        If the session has not read it yet, one statement reads it, with those that precede the other versions of the
        model in the session.
        """
        with _asking_to_await(self, "previous"):
            return previous_of(self)

    @property
    def next(self) -> Version[M] | None:
        """The version after this one; ``None`` if there is none, or it has been removed. One statement."""
        with _asking_to_await(self, "next"):
            return neighbour(self, +1)

    @property
    def changes(self) -> list[FieldChange]:
        """The field changes of this version, compared with :attr:`previous`. No statement for each version of many."""
        with _asking_to_await(self, "changes"):
            return changes_of(self)

    def __sqlaudit_extra__(self) -> Any:
        return getattr(self, self.__sqlaudit_model__.table.names.extra)

    @property
    def extra_columns(self) -> dict[str, Any]:
        """The values, as the driver gives them, of columns that the model no longer has. One statement per table.

        :raises SQLAuditError: the version belongs to no session
        """
        with _asking_to_await(self, "extra_columns"):
            return extra_columns_of(self)

    def to_dict(self, mode: Mode = "python") -> dict[str, Any]:
        """Return a dict of the attributes: the stored columns of the model, and the audit columns.

        :param mode: ``"python"`` for the values as they are; ``"json"`` for what JSON can express
        :raises QueryError: there is no such mode
        """
        return version_dict(self, mode)

    def __repr__(self) -> str:
        model, mapper = self.__sqlaudit_model__, inspect(type(self))
        key = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
        values = {**dict(zip(key, inspect(self).identity or (), strict=False)), **self.__dict__}  # loads nothing
        names = [*model.key_names, *(name for role, name in model.table.names.items() if role in _TOLD)]
        parts = [f"{name}={told(values[name])}" for name in names if name in values]
        return f"<{' '.join([type(self).__qualname__, *parts])}>"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Return a schema of :meth:`to_dict`: of ``Version[Customer]`` that of ``Customer.History``."""
        if cls is Version:
            return _schema_of_type(source, handler)
        columns = {
            name: {"type": "typed-dict-field", "schema": handler.generate_schema(Annotated[type_, IN_JSON])}
            for name, type_ in value_types(inspect(cls), cls.__sqlaudit_model__).items()
        }
        row = {"type": "typed-dict", "fields": columns, "extra_behavior": "allow"}
        as_row = {"type": "function-plain", "function": version_dict, "return_schema": row}
        return {"type": "is-instance", "cls": cls, "serialization": as_row}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> Any:
        return handler(schema) if cls is Version else {**handler(schema), "title": cls.__qualname__}


def _schema_of_type(source: Any, handler: Any) -> Any:
    """Return pydantic's schema of ``Version[Customer]``, or of versions of any model."""
    (model_class,) = get_args(source) or (Any,)
    if isinstance(model_class, type) and model_class is not Any:
        return handler.generate_schema(history_of(model_class))
    row = {"type": "dict", "keys_schema": {"type": "str"}, "values_schema": handler.generate_schema(Value)}
    as_row = {"type": "function-plain", "function": version_dict, "return_schema": row}
    return {"type": "is-instance", "cls": Version, "serialization": as_row}


@contextmanager
def _asking_to_await(version: Version, name: str, remedy: str | None = None) -> Iterator[None]:
    try:
        yield
    except (MissingGreenlet, StatementError) as error:
        if not isinstance(getattr(error, "orig", error), MissingGreenlet):
            raise
        raise QueryError(
            f"{name} of a {type(version).__qualname__} executes a statement, which an AsyncSession must await. Write: "
            f"await {remedy or f'version.awaitable_attrs.{name}'}.",
            version,
        ) from error


_TOLD: Final = frozenset({"version", "operation", "valid_from", "valid_to", "changed_by"})
"""The roles of the audit columns that the ``repr`` of a version has."""


@overload
def history_of(model_class: type[M]) -> type[Version[M]]: ...


@overload
def history_of(model_class: Table | Mapped[Any]) -> type[Version[Any]]: ...


def history_of(model_class: Readable) -> type[Version[Any]]:
    """Return the history class of a model, a subclass of :class:`Version`. ``Customer.History`` is the same class.

    :param model_class: a tracked model; or an association table or a relationship, for the history of its links
    :raises TrackingError: the model or table is not tracked
    """
    return history_class_of(model_of(model_class))


def history_class_of(model: TrackedModel) -> type[Version[Any]]:
    """Return the history class of a tracked model."""
    if model.history_class is None or model.has_grown:
        for submodel in model.root.family():
            if submodel.history_class is None:
                submodel.history_class = _make_history_class(submodel)
            elif submodel.has_grown:
                _add_new_attributes(submodel)
            submodel.has_grown = False
    return cast("type[Version[Any]]", model.history_class)


def _make_history_class(model: TrackedModel) -> type[Version]:
    mapper, table, parent = model.mapper, model.table, model.parent
    table.complete()
    history_class = cast(
        "type[Version]",
        type(
            f"{model.name}.History",  # a registry warns about two classes of one name
            (Version if parent is None else history_class_of(parent),),
            {
                "__module__": mapper.class_.__module__,
                "__qualname__": f"{model.qualname}.History",
                "__doc__": f"A version of {model.name}.",
                "__sqlaudit_model__": model,
            },
        ),
    )
    options: dict[str, Any] = {}
    inherited = set(inspect(parent.history_class).columns.values()) if parent else set()
    properties = _stored_properties(model, inherited)
    if parent is None or parent.table is not table:
        for _, name in table.names.items():
            properties[name] = [
                table.history.c[name],
                *(base_table.history.c[name] for base_table in reversed(model.chain[:-1])),
            ]
    mapped_columns = inherited.union(*properties.values())
    options["exclude_properties"] = [column.key for column in table.history.c if column not in mapped_columns]
    if parent is None:
        if model.discriminator is not None:
            options["polymorphic_on"] = rebased_on_history(model.discriminator, dict(table.columns))
            options["with_polymorphic"] = "*"
    else:
        options["inherits"] = parent.history_class
        if parent.table is not table:
            below, above = HistoryAlias(table, table.history), HistoryAlias(parent.table, parent.table.history)
            options["inherit_condition"] = below.belongs_to(above)
    if model.identity is not None:
        options["polymorphic_identity"] = model.identity
    local_table = table.history if parent is None or parent.table is not table else None
    mapper.registry.map_imperatively(history_class, local_table, properties=properties, **options)
    _track_mutable_values(history_class, model)
    for name in ("before_insert", "before_update", "before_delete"):
        event.listen(history_class, name, _refuse_change)
    for name in ("load", "refresh"):
        event.listen(history_class, name, _hide_erased)
    return history_class


def _hide_erased(version: Version, *_: object) -> None:
    values = version.__dict__
    extra = values.get(version.__sqlaudit_model__.table.names.extra)
    if extra is not None and (erased := erased_fields(extra, version.__sqlaudit_model__.columns.items())):
        stored = inspect(version).info.setdefault(MARK, {})
        for name in erased & values.keys():
            if values[name] is not ERASED:
                stored[name], values[name] = values[name], ERASED


def erased_fields_of(version: Version) -> Collection[str]:
    """Return the names of the fields of a version that were erased."""
    return erased_fields(
        getattr(version, version.__sqlaudit_model__.table.names.extra), version.__sqlaudit_model__.columns.items()
    )


def stored_values(version: Version, names: Iterable[str]) -> list[Any]:
    """Return what the columns of a version hold, also of the fields that were erased: mostly ``None``."""
    values = [getattr(version, name, None) for name in names]
    stored: Mapping[str, Any] = inspect(version).info.get(MARK, {})
    return [stored.get(name) if value is ERASED else value for name, value in zip(names, values, strict=True)]


_adding: Final = RLock()


class VersionsAttribute:
    """``Customer.versions``: a relationship from a row to its versions, oldest first.

    The first access adds it to the model: models whose versions nobody loads need no history class.
    """

    @overload
    def __get__(self, instance: None, owner: type[M]) -> QueryableAttribute[list[Version[M]]]: ...

    @overload
    def __get__(self, instance: M, owner: type[M]) -> list[Version[M]]: ...

    def __get__(self, instance: Any, owner: type[Any]) -> Any:
        configure_mappers()
        with _adding:
            root = tracked_model_of(owner).root
            for mapper in reversed(list(root.mapper.self_and_descendants)):  # concrete subclasses have their own
                model = tracked_model(mapper)
                if model is not None and model.root is model and not mapper.has_property("versions"):
                    _add_versions(model)
        return owner.versions if instance is None else instance.versions


def _add_versions(model: TrackedModel) -> None:
    class_ = model.mapper.class_
    if isinstance(vars(class_).get("versions"), VersionsAttribute):
        del class_.versions
    pairs = zip(model.table.key, model.table.history_key, strict=True)
    versions = relationship(
        history_class_of(model),
        primaryjoin=and_(*(live == foreign(old) for live, old in pairs)),
        order_by=model.table.version,
        viewonly=True,
    )
    model.mapper.add_property("versions", versions)


def _stored_properties(model: TrackedModel, inherited: Collection[Any]) -> dict[str, list[Any]]:
    """Return the stored columns of a model, without inherited ones: attribute name → history columns."""
    properties: dict[str, list[Any]] = {}
    histories: dict[FromClause, Table] = {table.live: table.history for table in model.chain}
    for live, column in model.table.columns:
        if column in inherited:
            continue
        try:
            mapped = model.mapper.get_property_by_column(live)
        except UnmappedColumnError:
            if column in set(model.columns.values()):
                properties[live.key] = [column]
        else:  # in a joined subclass, one attribute may map columns of several tables
            properties[mapped.key] = [histories[column.table].c[column.key] for column in mapped.columns]
    return properties


def _add_new_attributes(model: TrackedModel) -> None:
    """Add the attributes to a history class that its model has gained."""
    mapper: Mapper[Any] = inspect(model.history_class)
    above = model.parent and inspect(model.parent.history_class)
    for name, columns in _stored_properties(model, set(above.columns.values()) if above else ()).items():
        if not mapper.has_property(name):
            mapper.add_property(name, column_property(*columns))


def _track_mutable_values(history_class: type[Version], model: TrackedModel) -> None:
    """Let ``Mutable`` types track the values of versions, too.

    SQLAlchemy recognises these types by identity when it configures the mapper. While it does, the history columns have
    the types of the live columns.
    """
    types = [(old, live.type, old.type) for table in model.chain for live, old in table.columns]

    def begin(*_: object) -> None:
        for column, type_, _readable in types:
            column.type = type_

    def end(*_: object) -> None:
        for column, _type, readable_type in types:
            column.type = readable_type

    event.listen(history_class, "before_mapper_configured", begin)
    event.listen(history_class, "mapper_configured", end)


def rebased_on_history(expression: Any, columns: Mapping[Any, Any]) -> Any:
    """Return an expression on the live table, rebased on the history table."""
    by_key = {live.key: old for live, old in columns.items()}
    tables = {live.table for live in columns}

    def replaced(element: Any, **kw: Any) -> Any:
        if isinstance(element, Column) and element.table in tables:
            return by_key.get(element.key)
        return None

    return visitors.replacement_traverse(expression, {}, replaced)


def _refuse_change(mapper: Mapper[Any], connection: Connection, version: Version) -> None:
    raise ReadOnlyError(
        f"{type(version).__qualname__} {inspect(version).identity} is a version, and versions are never changed. "
        "Expunge it, and change the live object or restore an old state of it instead.",
        version,
    )


def version_info(version: Version) -> dict[str, Any]:
    """Return the arguments of :class:`~sqlaudit.changes.VersionInfo` for a version."""
    names = version.__sqlaudit_model__.table.names
    info = {field.name: getattr(version, getattr(names, field.name, ""), None) for field in fields(VersionInfo)}
    return {**info, "timestamp": getattr(version, names.valid_from), "extra": unmarked(info["extra"])}


def version_dict(version: Version, mode: Mode = "python") -> dict[str, Any]:
    """Return the attributes of a version, as :meth:`Version.to_dict` does."""
    load_expired(version)
    values = {name: getattr(version, name) for name in inspect(version).mapper.column_attrs.keys()}  # noqa: SIM118
    extra = version.__sqlaudit_model__.table.names.extra
    return dict_of({**values, extra: unmarked(values[extra])}.items(), mode)


def load_expired(version: Version) -> None:
    """Load the columns of a version that a commit has expired.

    :raises QueryError: an ``AsyncSession`` must await it
    """
    state = inspect(version)
    if expired := state.expired_attributes.intersection(state.mapper.column_attrs.keys()):
        with _asking_to_await(version, "Reading columns after a commit", "session.refresh(version)"):
            getattr(version, min(expired))


def _session_of(version: Version[Any], wanted: str) -> tuple[Session, tuple[Any, ...]]:
    """Return the session of a version, and its identity there.

    :raises SQLAuditError: the version belongs to no session
    """
    identity, session = inspect(cast(Any, version)).identity, object_session(version)
    if session is None or identity is None:
        raise ReadOnlyError(
            f"{type(version).__qualname__} belongs to no session. Add it to a session to read its {wanted}.", version
        )
    return session, identity


def previous_of(version: Version[M]) -> Version[M] | None:
    """Return the version before a version, as :attr:`Version.previous` does, which a column may hide.

    :raises SQLAuditError: the version belongs to no session
    """
    session, _ = _session_of(version, "neighbours")
    earlier: Version[M] | None = session.identity_map.get(_key_before(inspect(cast(Any, version))))
    if earlier is None:
        read = session.info.setdefault(_PREVIOUS, WeakKeyDictionary())
        if version not in read:
            _read_previous(session, version, read)
        earlier = read[version]
    return earlier


_PREVIOUS: Final = "sqlaudit_previous"
"""Where a session keeps the previous versions that it has read, by the versions that they precede."""


def _key_before(state: InstanceState[Any]) -> Any:
    """Return the key of a version's predecessor in the identity map."""
    class_, (*key, number), token = cast(Any, state.key)
    return class_, (*key, number - 1), token


def _read_previous(session: Session, version: Version[Any], read: MutableMapping[Any, Any]) -> None:
    """Read the predecessor of a version, and of the other versions of the model in the session that may need theirs."""
    model, token = version.__sqlaudit_model__.root, inspect(cast(Any, version)).identity_token
    waiting: dict[Any, Any] = {}
    for other in session.identity_map.values():
        if isinstance(other, Version) and other.__sqlaudit_model__.root is model and other not in read:
            state = inspect(cast(Any, other))
            operation = state.dict.get(model.table.names.operation, Operation.UPDATE)
            before = _key_before(state)
            if operation is Operation.UPDATE and state.identity_token == token and before not in session.identity_map:
                waiting[before[1]] = other
    waiting[_key_before(inspect(cast(Any, version)))[1]] = version
    table, spelt_differently = model.table, False
    for chunk in chunks(list(waiting)):
        found = session.scalars(
            select(history_class_of(model)).where(one_of((*table.history_key, table.version), chunk)),
            bind_arguments=bind_arguments_for(session, model.mapper),
        )
        for earlier in found:
            identity = inspect(cast(Any, earlier)).identity
            if identity in waiting:
                read[waiting.pop(identity)] = earlier
            else:
                spelt_differently = True
    for other in waiting.values():
        read[other] = neighbour(other, -1) if spelt_differently else None


def neighbour(version: Version[M], distance: int) -> Version[M] | None:
    """Return the version of the same row whose number is ``distance`` higher, or ``None``. One statement.

    Unlike :attr:`Version.next`, it cannot be hidden by a column of the model.

    :raises SQLAuditError: the version belongs to no session
    """
    model = version.__sqlaudit_model__.root
    session, (*key, number) = _session_of(version, "neighbours")
    table = model.table
    return session.scalar(
        select(history_class_of(model)).where(
            all_equal(table.history_key, key),
            table.version == number + distance,
        ),
        bind_arguments=bind_arguments_for(session, model.mapper),
    )


def extra_columns_of(version: Version) -> dict[str, Any]:
    """Return the values of columns that the model no longer has, as :attr:`Version.extra_columns` does."""
    model = version.__sqlaudit_model__
    session, identity = _session_of(version, "extra columns")
    extra: dict[str, Any] = {}
    for table in model.chain:
        of_version = zip((*table.history_key, table.version), identity, strict=True)
        statement: Select[Any] = (
            select(literal_column("*")).select_from(table.history).where(*(c == v for c, v in of_version))
        )
        known = {column.name for column in table.history.c}
        row = session.execute(statement, bind_arguments=bind_arguments_for(session, model.mapper)).mappings().one()
        extra |= {name: value for name, value in row.items() if name not in known}
    return extra


def changes_of(version: Version) -> list[FieldChange]:
    """Return the field changes of a version, as :attr:`Version.changes` does."""
    model = version.__sqlaudit_model__
    chosen = model.options.tracked_fields
    names = [name for name in model.columns if chosen is None or name in chosen]
    info = version_info(version)
    operation: Operation = info["operation"]
    before = previous_of(version) if operation is Operation.UPDATE else None
    field = model.options.resource_id_field
    keys = [field] if field else model.key_names
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
            None if before is None else stored_values(before, names),
            stored_values(version, names),
            equalities_of((name, model.columns[name]) for name in names),
            (() if before is None else erased_fields_of(before), erased_fields_of(version)),
        )
    ]
