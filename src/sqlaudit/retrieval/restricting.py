"""Which rows may a reader see? Those that fulfil a criterion, in every statement that a session executes.

Within :func:`restricted`, a copy of each statement renders every table of a restricted model, for instance ``FROM
tickets_history``, as ``(SELECT … FROM tickets_history WHERE tenant_id = :tenant) AS tickets_history``, and nothing else
differently. So no reader has to know of the restriction, and none can forget it. A masked column is NULL there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final, cast

from sqlalchemy import (
    BindParameter,
    Column,
    ColumnElement,
    SelectBase,
    Table,
    TextualSelect,
    and_,
    event,
    exists,
    false,
    null,
    select,
    true,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.orm import FromStatement, ORMExecuteState, Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import False_, True_
from sqlalchemy.sql.lambdas import StatementLambdaElement
from sqlalchemy.sql.visitors import InternalTraversal, cloned_traverse, iterate

from sqlaudit.asynchronous import AsyncSession
from sqlaudit.exceptions import QueryError, ReadOnlyError
from sqlaudit.sql.comparing import all_equal
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.handwritten import may_read_tables
from sqlaudit.sql.subclassing import copied_with_class, subclass_with
from sqlaudit.tracking.aliases import HistoryAlias
from sqlaudit.tracking.history import rebased_on_history
from sqlaudit.tracking.links import Readable, model_of
from sqlaudit.tracking.models import TrackedModel
from sqlaudit.tracking.tables import TrackedTable, alias_name, tracked_table

Criteria = Mapping[Any, ColumnElement[bool] | bool]
"""A criterion for each tracked model or association table: ``True`` for all of its rows, ``False`` for none."""
Masks = Mapping[Any, Collection[str]]
"""The attributes of each tracked model, or the columns of an association table, whose values nobody may see."""
_NONE: Final = false()
_INFO_KEY: Final = "sqlaudit_restrictions"
_EXTRA: Final = (
    ("_restricted_tables", InternalTraversal.dp_plain_obj),
    ("_hidden_tables", InternalTraversal.dp_plain_obj),
    ("_restricted_masks", InternalTraversal.dp_plain_obj),
    ("_restricted_by", InternalTraversal.dp_clauseelement_list),
)


@contextmanager
def restricted(
    session: Session | AsyncSession, criteria: Criteria, *, masked: Masks = MappingProxyType({})
) -> Iterator[None]:
    """Let a session see only the rows and versions that fulfil criteria, within the ``with`` block.

    .. code-block:: python

        with restricted(session, {Ticket: Ticket.tenant_id == 7, Payment: False}):
            changesets(session)  # of the tenant's tickets alone

    A version is visible if its own values fulfil the criterion; a row that moved from one tenant to another is visible
    to each for the time that it belonged there. A change is reported to those who may see the versions before and
    after it. Models without a criterion are visible whole. Within another such block, only what both allow is visible.
    The session cannot write within the block, nor execute hand-written SQL.

    :param session: a session, also an ``AsyncSession``. Begin with an empty one: objects that it holds already stay.
        What its ``connection()`` executes is not restricted
    :param criteria: a criterion for each tracked model or association table, on columns that are stored in history
    :param masked: by model, the names of attributes whose values the session reads as NULL, in the present and in the
        past, so that no change of them is reported either
    :raises TrackingError: a model is not tracked
    :raises QueryError: a criterion needs a column that is not stored in history; or a masked attribute does not exist,
        is part of the key, or decides on the class
    """
    with Restriction(criteria, masked).on(session.sync_session if isinstance(session, AsyncSession) else session):
        yield


def is_restricted(session: Session) -> bool:
    """Return whether a session sees a part of the rows, so that it may read past many others until it sees one."""
    return bool(session.info.get(_INFO_KEY))


class Restriction:
    """What a reader may see, for several blocks: to find the conditions of many tables takes time.

    The parameters and errors are those of :func:`restricted`.
    """

    def __init__(self, criteria: Criteria, masked: Masks = MappingProxyType({})) -> None:
        by_table: dict[Table, ColumnElement[bool]] = {}
        for source, criterion in criteria.items():
            by_table.update(_by_table(source, criterion))
        names = {(table.name, table.schema) for table in by_table}
        for table in (table for source in criteria for table in _tables_of(source)):
            if (table.name, table.schema) in names:  # what is visible whole is not taken for a restricted table
                by_table.setdefault(table, true())
        masks = {table: names for source, names in masked.items() for table, names in _masks_by_table(source, names)}
        self._visible = _Visible({**dict.fromkeys(masks, true()), **by_table}, masks)

    @contextmanager
    def on(self, session: Session) -> Iterator[None]:
        """Let a session see no more than this within the ``with`` block, as :func:`restricted` does."""

        def restrict(state: ORMExecuteState) -> None:
            self._restrict(state)

        def refuse(flushed: Session, *_: Any) -> None:
            raise _refusal(flushed)

        event.listen(session, "do_orm_execute", restrict)
        event.listen(session, "before_flush", refuse)
        session.info[_INFO_KEY] = session.info.get(_INFO_KEY, 0) + 1
        try:
            yield
        finally:
            session.info[_INFO_KEY] -= 1
            event.remove(session, "do_orm_execute", restrict)
            event.remove(session, "before_flush", refuse)

    def _restrict(self, state: ORMExecuteState) -> None:
        statement: Any = state.statement
        if isinstance(statement, StatementLambdaElement):
            statement = statement._resolved
        element = getattr(statement, "element", statement) if isinstance(statement, FromStatement) else statement
        if not isinstance(element, SelectBase) or isinstance(element, TextualSelect):
            raise _refusal(statement)
        if getattr(state.session, "copies", None) is not None:
            raise QueryError(
                "materialize=True copies whole tables, and this session sees a part of the rows. Leave it out.",
                statement,
            )
        visible = self._visible
        if isinstance(statement, Restricted):  # by the block around this one
            visible = _Visible(*statement._what_is_visible()).and_by(visible)
        if visible.conditions:
            made_class = subclass_with(Restricted, cast("Any", type(statement)), _EXTRA)
            state.statement = copied_with_class(made_class, statement._clone())
            state.statement.__dict__.update(visible.parts)


class _Visible:
    """The conditions on the rows of tables, and the keys of their masked columns.

    :ivar parts: the attributes of a :class:`Restricted` statement
    """

    def __init__(self, conditions: Mapping[Table, ColumnElement[bool]], masks: Mapping[Table, frozenset[str]]) -> None:
        self.conditions, self.masks = conditions, masks
        self.parts = {
            "_restricted_tables": tuple(table for table, condition in conditions.items() if condition is not _NONE),
            "_restricted_by": [condition for condition in conditions.values() if condition is not _NONE],
            "_hidden_tables": tuple(table for table, condition in conditions.items() if condition is _NONE),
            "_restricted_masks": tuple(masks.items()),
        }

    def and_by(self, other: _Visible) -> _Visible:
        """Return what is visible by both."""
        conditions = {**self.conditions, **other.conditions}
        for table in self.conditions.keys() & other.conditions.keys():
            both = (self.conditions[table], other.conditions[table])
            conditions[table] = _NONE if any(condition is _NONE for condition in both) else and_(*both)
        masks = {
            table: self.masks.get(table, frozenset()) | other.masks.get(table, frozenset())
            for table in (*self.masks, *other.masks)
        }
        return _Visible(conditions, masks)


def _refusal(statement: Any) -> ReadOnlyError:
    return ReadOnlyError(
        "This session sees a part of the rows, and can neither write nor execute hand-written SQL. Use another "
        "session.",
        statement,
    )


# --- criteria ---------------------------------------------------------------------------------------------------


def _by_table(source: Readable, criterion: ColumnElement[bool] | bool) -> Iterator[tuple[Table, ColumnElement[bool]]]:
    """Yield each live and history table of a source, with the condition on its rows."""
    model = model_of(source)
    condition: Any = criterion.__clause_element__() if hasattr(criterion, "__clause_element__") else criterion
    if condition is True or isinstance(condition, True_):
        return
    if condition is False or isinstance(condition, False_):
        yield from dict.fromkeys(_tables_of(source), _NONE).items()
        return
    condition = cloned_traverse(condition, {"maintain_key": True, "detect_subquery_cols": True}, {"bindparam": _rename})
    base = model.root.table
    for other in condition._from_objects:
        if other != base.live:  # each row would be visible as soon as one of another table fulfils the criterion
            raise QueryError(
                f"The criterion for {model.name} needs {other}, which is not its table. Give a criterion for each "
                "model, of its own columns; what another table says belongs into an IN or EXISTS of a subquery.",
                condition,
            )
    for table in _family_of(model):
        yield table.live, _condition_on_live(table, base, condition)
        yield table.history, _condition_on_history(table, base, condition, model.name)


def _rename(parameter: BindParameter[Any]) -> None:
    """Give a parameter of a criterion a name that no parameter of a statement, or of another criterion, has.

    Otherwise the value of that one would be the value of both.
    """
    parameter._orig_key, parameter.unique = "sqlaudit_visible", False
    parameter._convert_to_unique()  # type: ignore[no-untyped-call]  # SQLAlchemy's


def _family_of(model: TrackedModel) -> Collection[TrackedTable]:
    return dict.fromkeys(table for each in model.root.family() for table in each.chain)


def _tables_of(source: Readable) -> Iterator[Table]:
    for table in _family_of(model_of(source)):
        yield from (table.live, table.history)


def _condition_on_live(table: TrackedTable, base: TrackedTable, condition: Any) -> ColumnElement[bool]:
    if table is base:
        return cast("ColumnElement[bool]", condition)
    return exists().where(all_equal(base.key, table.key), condition)


def _condition_on_history(table: TrackedTable, base: TrackedTable, condition: Any, name: str) -> ColumnElement[bool]:
    stored = dict(base.columns)
    for element in iterate(condition):
        if isinstance(element, Column) and element.table == base.live and element not in stored:
            raise QueryError(
                f"The criterion for {name} needs {element.name!r}, which its history does not store. Choose a column "
                "that is stored.",
                element,
            )
    rebased: ColumnElement[bool] = rebased_on_history(condition, stored)
    if table is base:
        return rebased
    version, of_base = HistoryAlias(table, table.history), HistoryAlias(base, base.history)
    return exists().where(of_base.has_key(version.key), of_base.version == version.version, rebased)


def _masks_by_table(source: Readable, names: Collection[str]) -> Iterator[tuple[Table, frozenset[str]]]:
    """Yield each live and history table of a source with the keys of its masked columns.

    :raises QueryError: an attribute cannot be masked
    """
    model, names = model_of(source), frozenset(names)
    family = model.root.family()
    known: dict[str, set[Column[Any]]] = {}
    for each in family:
        mapped = () if model.table.is_association else each.mapper.columns.items()
        for name, column in (*each.columns.items(), *mapped):
            if isinstance(column, Column):
                known.setdefault(name, set()).add(column)
    if unknown := sorted(names - known.keys()):
        raise QueryError(
            f"{model.name} has no column {', '.join(map(repr, unknown))} that could be masked. It has "
            f"{', '.join(sorted(known))}.",
            source,
        )
    needed = {column.key for column in model.root.table.key}
    if (discriminator := model.root.discriminator) is not None:
        needed |= {element.key for element in iterate(discriminator) if isinstance(element, Column)}
    keys = {name: {column.key for column in known[name]} for name in names}
    if refused := sorted(name for name in names if not needed.isdisjoint(keys[name])):
        raise QueryError(
            f"{refused[0]!r} of {model.name} cannot be masked, because it identifies rows, or their class. Show no "
            f"rows instead: {{{model.name}: False}}.",
            source,
        )
    for table in _family_of(model):
        both = (table.live, table.history)
        own = frozenset(column.key for name in names for column in known[name] if column.table in both)
        if own:
            yield from ((each, own & frozenset(each.c.keys())) for each in both)


# --- statements -------------------------------------------------------------------------------------------------


class Restricted:
    """Mixin for the class of a statement that sees a part of the rows."""

    _restricted_tables: tuple[Table, ...]
    _restricted_by: Sequence[ColumnElement[bool]]
    """The condition on the rows of each restricted table."""
    _hidden_tables: tuple[Table, ...]
    """The tables of which no row may be seen."""
    _restricted_masks: tuple[tuple[Table, frozenset[str]], ...]
    """The keys of the masked columns, by table."""

    def _what_is_visible(self) -> tuple[dict[Table, ColumnElement[bool]], dict[Table, frozenset[str]]]:
        """Return the conditions and the masks by table."""
        conditions = dict(zip(self._restricted_tables, self._restricted_by, strict=True))
        return dict.fromkeys(self._hidden_tables, _NONE) | conditions, dict(self._restricted_masks)

    def _compiler_dispatch(self, visitor: SQLCompiler, **kw: Any) -> str:
        if not isinstance(visitor, RestrictedCompiler):
            compiler_class: Any = type(visitor)
            visitor.__class__ = subclass_with(RestrictedCompiler, compiler_class)
            visitor = cast(RestrictedCompiler, visitor)
            visitor.restrictions, visitor.masks = self._what_is_visible()
            visitor.unrestricted = set()
        return super()._compiler_dispatch(visitor, **kw)  # type: ignore[misc, no-any-return]  # the statement's own


class RestrictedCompiler(SQLCompiler):
    """Renders the restricted tables as selects of the rows that may be seen, and everything else as usual.

    :ivar restrictions: the condition on the rows of each table
    :ivar masks: the keys of the masked columns of each table
    :ivar unrestricted: the tables whose own select is being rendered
    """

    restrictions: dict[Table, ColumnElement[bool]]
    masks: dict[Table, frozenset[str]]
    unrestricted: set[Table]

    def visit_table(self, table: Table, asfrom: bool = False, **kw: Any) -> str:  # type: ignore[override]
        condition = self.restrictions.get(table) if asfrom and table not in self.unrestricted else None
        if asfrom and table not in self.restrictions:
            self._refuse_namesake(table)
        if condition is None or self._reads_past_of(table):
            return cast(str, super().visit_table(table, asfrom=asfrom, **kw))  # type: ignore[no-untyped-call]  # SQLAlchemy's
        rows = f"({self._visible_rows(table, condition, **kw)})"
        if kw.get("from_linter"):
            kw["from_linter"].froms[table] = table.fullname
        if getattr(kw.get("enclosing_alias"), "element", None) is table:
            return rows
        return f"{rows}{self.get_render_as_alias_suffix(self.preparer.quote(alias_name(table)))}"  # type: ignore[no-untyped-call]  # SQLAlchemy's

    def _refuse_namesake(self, table: Table) -> None:
        """Raise if a statement reads a restricted table by another ``Table`` object, which has no condition."""
        for known in self.restrictions:
            if (known.name, known.schema) == (table.name, table.schema):
                raise QueryError(
                    f"{known.fullname!r} is restricted, but the statement uses another Table object than the model. "
                    "Write the statement with the model, or with its __table__.",
                    table,
                )

    def _reads_past_of(self, table: Table) -> bool:
        """Return whether the statement reads a live table as of an instant, and so reads its restricted history."""
        tracked = tracked_table(table)
        return bool(getattr(self, "past", ())) and tracked is not None and tracked.live == table

    def _visible_rows(self, table: Table, condition: Any, *, literal_binds: bool = False, **kw: Any) -> str:
        recursive = bool(self.ctes) and self.ctes_recursive
        self.unrestricted.add(table)
        masked = self.masks.get(table, ())
        columns = [self._null_like(column) if column.key in masked else column for column in table.c]
        try:
            return self.process(select(*columns).where(condition), **({"literal_binds": True} if literal_binds else {}))
        finally:
            self.unrestricted.discard(table)
            self.ctes_recursive = recursive

    def _null_like(self, column: Column[Any]) -> ColumnElement[Any]:
        needs_type = TRAITS[self.dialect.name].compares_same_types_only
        value: ColumnElement[Any] = sql_cast(null(), column.type) if needs_type else null()
        return value.label(column.name)

    def visit_textclause(self, textclause: Any, *args: Any, **kw: Any) -> str:
        if kw.get("asfrom") or may_read_tables(textclause.text):
            raise _refusal(textclause)
        return cast(str, super().visit_textclause(textclause, *args, **kw))  # type: ignore[no-untyped-call]  # SQLAlchemy's

    def visit_column(self, column: Any, *args: Any, **kw: Any) -> str:
        rendered = super().visit_column(column, *args, **kw)
        if column.is_literal and may_read_tables(rendered):
            raise _refusal(column)
        table = column.table
        is_plain = not isinstance(table, Table) or table.schema is None or not kw.get("include_table", True)
        if is_plain or table not in self.restrictions or table in self.unrestricted or self._reads_past_of(table):
            return rendered
        return f"{self.preparer.quote(alias_name(table))}.{super().visit_column(column, include_table=False)}"
