"""How does a model become tracked? By :func:`track_table`, which gives it a history table, and listens to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Column, ColumnElement, Enum, Select, String, Table, inspect
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.exc import UnmappedClassError
from sqlalchemy.sql import visitors
from sqlalchemy.types import TypeDecorator, TypeEngine

from sqlaudit.arguments import When
from sqlaudit.exceptions import TrackingError
from sqlaudit.hooks.mappers import handle_configured_mappers, listen_to_model, track_with_base
from sqlaudit.past import as_of as past_reads
from sqlaudit.past.as_of import MYPY, all_versions, as_of, between
from sqlaudit.past.rendering import BeforeBaseline, UntrackedPolicy
from sqlaudit.sql.redacting import Redaction
from sqlaudit.tracking.autogenerate import guard_autogenerate
from sqlaudit.tracking.history import Version, VersionsAttribute, history_of
from sqlaudit.tracking.models import Options, TrackedModel, tracked_model
from sqlaudit.tracking.retention import Retention
from sqlaudit.tracking.tables import AuditColumns, tracked_table
from sqlaudit.tracking.value_types import gives_other_values

M = TypeVar("M", bound=type[Any])
T = TypeVar("T")


def track_table(
    tracked_fields: Iterable[str] | None = None,
    table_label: str | None = None,
    resource_id_field: str | None = None,
    user_id_field: str | None = None,
    *,
    exclude: Iterable[str] = (),
    quiet: Iterable[str] = (),
    redact: Mapping[str, Redaction] | None = None,
    history_table_name: str | None = None,
    audit_columns: AuditColumns | None = None,
    as_of_index: bool = False,
    append_only: bool = False,
    retention: Retention | None = None,
    subject: str | None = None,
    personal: Iterable[str] = (),
    partitions: int | None = None,
) -> Callable[[M], M]:
    """Give a mapped class, and its subclasses, a history table.

    The class gets five attributes, unless it has attributes of these names: ``History``, its history class;
    ``versions``, a view-only relationship to the versions of a row; and the methods ``as_of(when)``,
    ``between(start, end)`` and ``all_versions()``. The functions :func:`~sqlaudit.history_of`,
    :func:`~sqlaudit.as_of`, :func:`~sqlaudit.between` and :func:`~sqlaudit.all_versions` do the same. Type checkers see
    the attributes if the class inherits from :class:`Temporal`.

    Every version stores the whole row. The options choose which fields are reported, and which columns are never
    stored.

    .. code-block:: python

        @track_table(exclude=["password_hash"])
        class User(Base): ...

    :param tracked_fields: the attributes whose changes are reported; all if omitted
    :param table_label: the name that field changes give to the table; the name of the class if omitted
    :param resource_id_field: the attribute that field changes name a row by; the primary key if omitted
    :param user_id_field: the attribute that names the user of a change if the audit context names none
    :param exclude: the attributes whose columns are never stored, and whose changes alone make no version
    :param quiet: the attributes whose columns are stored, but whose changes alone make no version: a counter of hits,
        say. A version has the value of the moment at which it was written
    :param redact: what history stores in place of the values of attributes. ``"hash"``: HMAC-SHA256 of a text, in
        hexadecimal digits, by the key of :class:`SQLAuditConfig`. ``"mask"``: the last four characters of a text, and a
        short hash. A function: it gets the column, as an SQL expression, and returns an SQL expression of the same type
    :param history_table_name: the name of the history table; ``<table>_history`` if omitted
    :param audit_columns: other names for the columns of sqlaudit, if the model has columns of the same names
    :param as_of_index: add indexes for reads of many rows as of an instant: of the periods, and of the foreign keys
        that are indexed in the live table. A read of a row by its key needs none. Writes take longer
    :param append_only: let the database itself refuse to change and to delete versions; ``create_all`` and
        ``op.protect_history`` create the triggers. If a transaction writes a row twice, its history keeps the first
        version, too, with an empty period. With links, one end that is append-only is enough
    :param retention: which versions :func:`~sqlaudit.maintenance.prune` keeps, for the whole hierarchy of the class
    :param subject: whose data the rows are: the attribute of a column with a foreign key to another tracked model, or a
        many-to-one relationship. :func:`~sqlaudit.maintenance.erase` of a row erases the rows that follow it, too
    :param personal: the attributes that :func:`~sqlaudit.maintenance.erase` erases of the rows that follow a row, and
        of a row itself if no fields are named
    :param partitions: on PostgreSQL, divide the history table into so many partitions, at least 2, by the hash of the
        key; ``create_all`` and Alembic create them. With joined inheritance, each history table of the hierarchy is
        divided; histories of links are not. It does nothing on other databases
    :raises TrackingError: the class cannot be tracked, or an option does not fit it
    """

    def decorate(model_class: M) -> M:
        mapper = _mapper_of(model_class)
        options = Options(
            tracked_fields=_names(mapper, "tracked_fields", tracked_fields) if tracked_fields is not None else None,
            exclude=_names(mapper, "exclude", exclude),
            quiet=_names(mapper, "quiet", quiet),
            redact=_redactions(mapper, redact or {}),
            table_label=table_label,
            resource_id_field=_name(mapper, "resource_id_field", resource_id_field),
            user_id_field=_name(mapper, "user_id_field", user_id_field),
            history_table_name=history_table_name,
            audit_columns=audit_columns or AuditColumns(),
            as_of_index=as_of_index,
            append_only=append_only,
            retention=_checked_retention(retention),
            subject=_checked_subject(mapper, subject),
            personal=_names(mapper, "personal", personal),
            partitions=_checked_partitions(partitions),
        )
        _check(mapper, options)
        inherited = tracked_model(mapper)
        if inherited is not None:
            inherited.set_options(options)
            handle_configured_mappers(inherited)
            return model_class
        model = TrackedModel(mapper, options, is_decorated=True)
        for name in ("History", "versions", "as_of", "between", "all_versions"):
            if not any(name in vars(base) for base in model_class.__mro__):
                setattr(model_class, name, vars(Temporal)[name])
        listen_to_model(model)
        guard_autogenerate()
        for descendant in mapper.self_and_descendants:
            track_with_base(descendant)
        handle_configured_mappers(model)
        return model_class

    if isinstance(tracked_fields, type):
        raise TrackingError(
            f"track_table needs parentheses. Write @track_table() above class {tracked_fields.__name__}.",
        )
    return decorate


class _History:
    """``Customer.History``: the history class, which the first access makes."""

    def __get__(self, instance: object, owner: type[T]) -> type[Version[T]]:
        return history_of(owner)


class Temporal:
    """A mixin that tells type checkers which attributes :func:`track_table` adds to a model.

    .. code-block:: python

        @track_table()
        class Customer(Temporal, Base): ...
    """

    History = _History()
    versions = VersionsAttribute()

    if MYPY:
        as_of = past_reads.AsOfMethod()
    else:

        @classmethod
        def as_of(
            cls,
            when: When,
            *,
            untracked: UntrackedPolicy = "raise",
            before_baseline: BeforeBaseline = "absent",
        ):
            """Return ``select(cls)`` as of an instant: see :func:`sqlaudit.as_of`."""
            return as_of(cls, when, untracked=untracked, before_baseline=before_baseline)

    @classmethod
    def between(cls, start: datetime, end: datetime) -> Select[Any]:
        """Select the versions of a time range: see :func:`sqlaudit.between`."""
        return between(cls, start, end)

    @classmethod
    def all_versions(cls) -> Select[Any]:
        """Select all versions: see :func:`sqlaudit.all_versions`."""
        return all_versions(cls)


def _mapper_of(model_class: Any) -> Mapper[Any]:
    name = getattr(model_class, "__name__", repr(model_class))
    try:
        mapper = inspect(model_class)
    except NoInspectionAvailable:
        mapper = None
    except UnmappedClassError as error:
        raise TrackingError(
            f"{name} is not mapped yet. Call track_table()({name}) once it is mapped, after prepare() or "
            f"configure_mappers(). SQLAlchemy says: {error}",
            model_class,
        ) from error
    if not isinstance(mapper, Mapper):
        raise TrackingError(
            f"{name} is not mapped to a table. Write @track_table() above every other decorator of a declarative "
            "model, call track_table()(Model) after map_imperatively(), and decorate the models instead of their "
            "abstract base.",
            model_class,
        )
    if not isinstance(mapper.local_table, Table):
        raise TrackingError(
            f"{name} is mapped to {mapper.local_table.description!r}, which is not a table. Track the models of the "
            "tables that it selects from.",
            model_class,
        )
    return mapper


def _checked_retention(retention: object) -> Retention | None:
    if retention is None or isinstance(retention, Retention):
        return retention
    raise TrackingError(f'retention is {retention!r}. Give a Retention: Retention(older_than="90d").', retention)


def _checked_subject(mapper: Mapper[Any], subject: str | None) -> str | None:
    if subject is None or (isinstance(subject, str) and mapper.has_property(subject)):
        return subject
    raise TrackingError(
        f"{mapper.class_.__name__} has no attribute {subject!r} for subject. Name a column with a foreign key, or a "
        "many-to-one relationship.",
        mapper.class_,
    )


def _checked_partitions(partitions: object) -> int | None:
    if partitions is None or (isinstance(partitions, int) and not isinstance(partitions, bool) and partitions >= 2):
        return partitions
    raise TrackingError(
        f"partitions is {partitions!r}. Give an int from 2, such as partitions=8, or leave it out.", partitions
    )


def _check(mapper: Mapper[Any], options: Options) -> None:
    """Raise if the options do not fit the model, or the model is tracked already."""
    name, model = mapper.class_.__name__, tracked_model(mapper)
    if model is not None and model.is_decorated:
        raise TrackingError(f"{name} is already tracked. Decorate it once, with all options.", mapper.class_)
    if model is None and mapper.inherits is not None and not mapper.concrete:
        base = mapper.inherits.class_.__name__
        raise TrackingError(
            f"{name} shares its rows with {base}, which is not tracked. Decorate {base}; its subclasses are then "
            "tracked, too.",
            mapper.class_,
        )
    if model is None and (tracked := tracked_table(mapper.local_table)) is not None and not tracked.is_obsolete:
        raise TrackingError(
            f"The table {tracked.live.fullname!r} of {name} is already tracked, through another class or as the "
            "association table between two classes. Decorate one class of a table, right after its definition.",
            mapper.class_,
        )
    told_by = [] if mapper.polymorphic_on is None else visitors.iterate(mapper.polymorphic_on)
    telling = (*mapper.primary_key, *(each for each in told_by if isinstance(each, Column)))
    mapped = set(mapper.columns.values())
    reasons = {
        mapper.get_property_by_column(column).key: "it shows to which row a version belongs"
        for column in telling
        if column in mapped
    }
    kept = reasons | dict.fromkeys(options.exclude, "it is excluded")
    if options.subject:
        kept.setdefault(options.subject, "it is the subject, and versions need its value")
    _refuse_names(mapper, "personal", "personal", options.personal, kept)
    if options.resource_id_field:
        reasons.setdefault(options.resource_id_field, "it is the resource_id_field, and versions need its value")
    _refuse_names(mapper, "quiet", "quiet", options.quiet, reasons | dict.fromkeys(options.exclude, "it is excluded"))
    if options.user_id_field:
        reasons.setdefault(options.user_id_field, "it is the user_id_field, and versions need its value")
    _refuse_names(mapper, "exclude", "excluded", options.exclude, reasons)
    if options.subject:
        reasons.setdefault(options.subject, "it is the subject, and versions need its value")
    reasons |= dict.fromkeys(options.exclude, "it is excluded, so nothing of it is stored")
    for name, columns in _columns(mapper, options.redact).items():
        if any(column.foreign_keys for column in columns):
            reasons.setdefault(name, "it refers to another row, and relationships of the past need its value")
    _refuse_names(mapper, "redact", "redacted", options.redact, reasons)
    _check_redactions(mapper, options.redact)


def _refuse_names(
    mapper: Mapper[Any], option: str, adjective: str, names: Iterable[str], reasons: Mapping[str, str]
) -> None:
    for name in names:
        if name in reasons:
            raise TrackingError(
                f"{mapper.class_.__name__}.{name} cannot be {adjective}, because {reasons[name]}. Remove it from "
                f"{option}.",
                mapper.class_,
            )


def _redactions(mapper: Mapper[Any], redact: Mapping[str, Redaction]) -> dict[str, Redaction]:
    """Return what history stores in place of the values of attributes.

    :raises TrackingError: a name is not that of a column's attribute
    """
    if not isinstance(redact, Mapping):
        raise TrackingError('redact needs to know how to redact. Give a dict: redact={"iban": "hash"}.', mapper.class_)
    _names(mapper, "redact", redact)
    return dict(redact)


def _check_redactions(mapper: Mapper[Any], redact: Mapping[str, Redaction]) -> None:
    """Raise if there is no such redaction, or the type of a column does not allow it."""
    for name, columns in _columns(mapper, redact).items():
        redaction, where = redact[name], f"{mapper.class_.__name__}.{name}"
        if redaction not in ("hash", "mask") and not callable(redaction):
            raise TrackingError(
                f"redact has {redaction!r} for {where}. Give 'hash', 'mask', or a function of the column.",
                mapper.class_,
            )
        for column in columns:
            if callable(redaction):
                _check_function(redaction, column, where)
            elif not _is_text(column.type):
                raise TrackingError(
                    f"{where} cannot be redacted by {redaction!r}, because its type {column.type!r} is not a plain "
                    "text. Give a function of the column that returns an SQL expression of this type, or exclude it.",
                    mapper.class_,
                )


def _check_function(redaction: Callable[[Any], Any], column: Column[Any], where: str) -> None:
    result = redaction(column)
    if not isinstance(result, ColumnElement):
        raise TrackingError(
            f"The function for {where} in redact returns {result!r}. Let it return an SQL expression, such as "
            "func.left(column, 2) or literal('-').",
            redaction,
        )


def _is_text(type_: TypeEngine[Any]) -> bool:
    """Return whether Python reads the values of a type as the texts that the database stores."""
    if isinstance(type_, TypeDecorator):
        return not gives_other_values(type_) and _is_text(type_.impl_instance)
    return isinstance(type_, String) and not isinstance(type_, Enum)


def _columns(mapper: Mapper[Any], names: Iterable[str]) -> dict[str, list[Column[Any]]]:
    """Return the columns of attributes, those of subclasses included."""
    mappers = list(mapper.self_and_descendants)
    columns = {name: [other.columns[name] for other in mappers if name in other.columns] for name in names}
    return {name: [column for column in found if isinstance(column, Column)] for name, found in columns.items()}


def _names(mapper: Mapper[Any], option: str, names: Iterable[str]) -> frozenset[str]:
    """Return the names that an option lists.

    :raises TrackingError: a name is not that of a column's attribute
    """
    if isinstance(names, str):
        raise TrackingError(f"{option} is {names!r}. Give a list: {option}=[{names!r}].", mapper.class_)
    chosen = frozenset(names)
    if not chosen:
        return chosen
    known = {name for descendant in mapper.self_and_descendants for name in descendant.columns.keys()}  # noqa: SIM118  # no dict
    if unknown := chosen - known:
        raise TrackingError(
            f"{mapper.class_.__name__} has no column {', '.join(sorted(map(repr, unknown)))} for {option}. It has "
            f"{', '.join(sorted(known))}.",
            mapper.class_,
        )
    return chosen


def _name(mapper: Mapper[Any], option: str, name: str | None) -> str | None:
    if name is not None:
        _names(mapper, option, [name])
    return name
