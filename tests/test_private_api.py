"""Every name of SQLAlchemy's and Alembic's that is not public and that sqlaudit uses is there, and stands in this list.

A new release that takes one away fails here first, with what would replace it.
"""

import ast
from importlib import import_module
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import renderers
from alembic.migration import MigrationContext
from alembic.runtime import plugins
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import reflection
from sqlalchemy.engine.cursor import CursorResult, CursorResultMetaData, FullyBufferedCursorFetchStrategy
from sqlalchemy.engine.default import DefaultDialect, DefaultExecutionContext
from sqlalchemy.orm import context as orm_context
from sqlalchemy.orm.state import InstanceState

from blocks import ROOT

Base: Any = orm.declarative_base()


class Parent(Base):
    __tablename__ = "parents"

    id = sa.Column(sa.Integer, primary_key=True)
    children = orm.relationship("Child", cascade="all, delete-orphan", back_populates="parent")


class Child(Base):
    __tablename__ = "children"

    id = sa.Column(sa.Integer, primary_key=True)
    parent_id = sa.Column(sa.ForeignKey("parents.id"))
    parent = orm.relationship(Parent, back_populates="children")


def mapper() -> Any:
    orm.configure_mappers()
    return sa.inspect(Child)


def aliased_entity() -> Any:
    return sa.inspect(orm.aliased(Parent))


ENGINE = sa.create_engine("sqlite://")
SELECT = sa.select(Parent.__table__)
COMPILE_STATE: Any = getattr(orm_context, "ORMCompileState", None) or orm_context._ORMCompileState  # before 2.1, since
DML_INSTEAD = "none: it is what a statement says that it writes"
# What would replace the names, whose they are, and the names.
REPLACEMENTS: list[tuple[str, Any, str]] = [
    (
        DML_INSTEAD,
        lambda: sa.insert(Parent.__table__),
        "_post_values_clause _prefixes _independent_ctes _inline _values",
    ),
    (DML_INSTEAD, lambda: sa.insert(Parent.__table__), "_multi_values _select_names _return_defaults _with_options"),
    (DML_INSTEAD, lambda: sa.insert(Parent.__table__), "_return_defaults_columns _supplemental_returning _annotations"),
    (DML_INSTEAD, lambda: sa.insert(Parent.__table__), "_sort_by_parameter_order _returning _annotate _generate"),
    (DML_INSTEAD, lambda: sa.insert(Parent.__table__), "_set_propagate_attrs"),
    (".whereclause, to read it; none to replace it", lambda: sa.update(Parent.__table__), "_where_criteria"),
    (".get_final_froms(), which is slower", lambda: SELECT, "_raw_columns _from_obj _setup_joins _having_criteria"),
    ("none", lambda: SELECT, "_group_by_clauses _order_by_clauses _clone _compile_options _propagate_attrs"),
    ("none", lambda: Parent.__table__.c.id == 1, "_from_objects _deannotate"),
    ("bindparam(), with all that a parameter is told", lambda: sa.bindparam("one"), "_with_value"),
    ("none", lambda: sa.bindparam("one"), "_orig_key _convert_to_unique"),
    ("none: it is documented", lambda: sa.Row, "_mapping"),
    ("isinstance, with the classes of types", sa.Integer, "_type_affinity _static_cache_key _isnull _variant_mapping"),
    ("none", lambda: sa.types.TypeDecorator, "_has_bind_expression _has_bind_processor"),
    ("get_property_by_column() and UnmappedColumnError", mapper, "_columntoproperty"),
    ("relationship.cascade.delete_orphan", mapper, "_is_orphan _delete_orphans"),
    ("none", mapper, "_set_polymorphic_identity _single_table_criterion _props _compiled_cache _configure_failed"),
    ("none", lambda: mapper().relationships["parent"], "_configure_started _configure_finished"),
    ("relationship.back_populates", lambda: mapper().relationships["parent"], "_reverse_property"),
    ("none", aliased_entity, "_adapter"),
    ("session.new, .deleted and .dirty, which are slower", orm.Session, "_new _deleted _dirty_states"),
    ("session.flush(), if session.autoflush", orm.Session, "_autoflush"),
    ("none", orm.Session, "_flushing _execute_internal _query_cls"),
    ("a set of registries of sqlaudit's own", lambda: Base.registry, "_managers"),
    ("get_isolation_level(), which asks the database", lambda: sa.Connection, "_is_autocommit_isolation"),
    ("none", lambda: orm.Session(ENGINE).begin(), "_connections"),
    ("an event after a commit", lambda: sa.Connection, "_commit_impl _prepare_twophase_impl _commit_twophase_impl"),
    ("a flag that Events._listen sets", lambda: ENGINE.dispatch.commit, "parent_listeners"),
    ("none", lambda: orm.UOWTransaction(orm.Session()), "mappers states"),
    ("none", lambda: ENGINE.execution_options(), "_proxied"),
    ("none", lambda: ENGINE.dispatch.before_execute.for_modify(ENGINE.dispatch), "listeners"),
    ("return_defaults() and returned_defaults_rows", lambda: CursorResult, "_no_result_metadata _rewind"),
    ("the same", lambda: CursorResult, "_reset_memoizations"),
    ("the same", lambda: CursorResultMetaData, "_make_new_metadata _keymap"),
    ("the same", lambda: DefaultExecutionContext, "_is_explicit_returning _setup_ins_pk_from_lastrowid _rowcount"),
    ("the same", lambda: DefaultExecutionContext, "_is_server_side"),
    ("the same", lambda: FullyBufferedCursorFetchStrategy(None, initial_buffer=[]), "_rowbuffer"),
    ("session.expire()", lambda: InstanceState, "_commit_all"),
    ("none", lambda: orm_context.QueryContext.default_load_options, "_identity_token _refresh_state"),
    ("none", lambda: COMPILE_STATE.default_compile_options, "_current_path"),
    ("none", lambda: sa.StatementLambdaElement, "_resolved"),
    ("none", lambda: sa.CTE, "_get_reference_cte"),
    ("none", lambda: sa.text("1"), "_bindparams _compile_w_cache"),
    ("none", lambda: DefaultDialect, "_deliver_insertmanyvalues_batches"),
    ("none", lambda: orm.util.LoaderCriteriaOption, "_resolve_where_criteria"),
    ("none", postgresql.dialect, "_json_deserializer _native_inet_types"),
    ("none", lambda: ENGINE.dialect.identifier_preparer, "_double_percents"),
    ("a flag of sqlaudit_alembic's own", lambda: plugins, "_all_plugins"),
    ("none", lambda: reflection.Inspector, "_operation_context"),
    ("none", lambda: AutogenContext(MigrationContext.configure(dialect_name="sqlite")), "_object_filters"),
    ("none", lambda: renderers, "_registry"),
]
IMPORTED = [
    ("sqlalchemy.orm.session", "_sessions"),
    ("sqlalchemy.orm.mapper", "_all_registries"),
    ("sqlalchemy.engine.cursor", "_NO_CURSOR_DML"),
    ("alembic.autogenerate.render", "_alter_column"),
    ("alembic.autogenerate.render", "_render_column"),
    ("alembic.autogenerate.render", "_repr_type"),
]
USED_IF_THERE = {
    "_Session__binds": "SQLAlchemy 2.0",
    "_insert_orm_defaults": "SQLAlchemy 2.1",
    "_ordered_values": "SQLAlchemy 2.0",
    "_proxy": "a connection of an AsyncSession",
}
NAMES = [(owner, name, instead) for instead, owner, names in REPLACEMENTS for name in names.split()]
IDS = [f"{place}{name}" for place, (_, name, _) in enumerate(NAMES)]
FILES = [*(ROOT / "src").rglob("*.py"), *(ROOT / "alembic_ext").rglob("*.py")]


@pytest.mark.parametrize(
    ("owner", "name", "instead"), NAMES, ids=[f"{place}{name}" for place, (_, name, _) in enumerate(NAMES)]
)
def test_a_private_name_is_there(owner, name, instead):
    assert hasattr(owner(), name), f"gone; what would replace it: {instead}"


@pytest.mark.parametrize(("module", "name"), IMPORTED)
def test_a_private_import_is_there(module, name):
    assert hasattr(import_module(module), name)


def defined(trees: list[ast.Module]) -> set[str]:
    """Return the names that the project itself gives to functions, classes, variables and attributes."""
    names: set[str] = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                is_own = isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self"
                names |= {target.attr} if is_own else {target.id} if isinstance(target, ast.Name) else set()
    return names


def test_every_private_name_that_is_used_stands_in_the_list():
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in FILES]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)} - defined(trees)
    private = {name for name in used if name.startswith("_") and not name.startswith("__")}
    assert private - {name for _, name, _ in NAMES} - USED_IF_THERE.keys() - {"_getframe"} == set()
    imported = {
        (node.module, alias.name)
        for node in nodes
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("sqlaudit")
        for alias in node.names
        if alias.name.startswith("_")
    }
    assert imported == set(IMPORTED)
