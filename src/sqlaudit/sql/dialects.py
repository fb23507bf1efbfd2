"""What is peculiar to a database? One row of facts per dialect: ``TRAITS[dialect.name].locks_rows``.

Code that depends on a database asks for a fact, so that a new dialect is a new row. What stays with the names are
functions that render SQL for one dialect (``@compiles``), and queries of its catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

MYSQL: Final = ("mysql", "mariadb")
"""The names by which SQLAlchemy knows MySQL and MariaDB, for ``@compiles``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """Facts about a database. The defaults hold for a dialect that sqlaudit does not know."""

    # --- locks and transactions

    locks_rows: bool = True
    """A transaction locks the rows that it reads FOR UPDATE. Otherwise only one transaction writes at a time."""
    locks_scanned_rows: bool = False
    """A statement that writes locks all rows that it scans and the gaps between them, even if it selects others. So it
    waits for transactions that write other rows, and they may wait for it."""
    reads_snapshots: bool = False
    """By default, a SELECT without a lock misses what others have committed since the transaction's first SELECT."""
    locks_shared_and_skips: bool = False
    """FOR SHARE can be combined with SKIP LOCKED."""
    undoes_failed_statements: bool = False
    """Nothing remains of a statement that fails: the transaction can only roll back."""
    commits_ddl: bool = False
    """DDL commits the transaction."""
    begins_late: bool = False
    """A transaction begins with the first statement that writes rows, and DDL before it is not undone."""
    drops_on_commit: bool = False
    """A temporary table may be declared to last until the transaction ends."""
    drops_tables_while_reading: bool = True
    """A table can be dropped while a statement returns rows."""
    refuses_respelt_keys: bool = False
    """A key to which rows refer without ON UPDATE CASCADE cannot change to an equal spelling, from 'Ab' to 'aB'."""

    # --- types and their values

    has_typed_columns: bool = True
    """A column holds only values of its type."""
    compares_same_types_only: bool = False
    """A value of another type, or an untyped NULL, needs a cast."""
    converts_to_compare: bool = False
    """A comparison of a text with a number converts the text: both '5' and '05' equal 5."""
    sorts_enums_by_number: bool = False
    """An ENUM or a SET is sorted by its number, and compared by its text."""
    pads_char: bool = False
    """A CHAR is padded with blanks, which comparisons ignore."""
    has_decimals: bool = True
    """Decimals are stored exactly."""
    has_infinity: bool = False
    """Numbers may be NaN or infinite."""
    has_datetimes: bool = True
    """Dates and times have types. Otherwise they are texts."""
    has_time_zones: bool = True
    """A TIMESTAMP may have a time zone."""
    has_durations: bool = False
    """A TIME may be longer than a day."""
    fraction_digits: int = 6
    """The digits of a second's fraction that a time keeps if its type does not say how many."""
    numeric_precision: int | None = None
    """The digits of a NUMERIC if its type does not say how many; ``None`` for any number."""
    has_double_floats: bool = False
    """A FLOAT without a precision is a DOUBLE PRECISION."""
    limits_bytes: bool = False
    """TEXT, BLOB and BINARY hold a limited number of bytes."""
    parses_values_in_driver: bool = False
    """The driver converts JSON, UUIDs, arrays, ranges and addresses to Python's values. Otherwise SQLAlchemy does."""
    text_codes: tuple[int, ...] = ()
    """The codes by which drivers report the types of texts."""
    blob_codes: tuple[int, ...] = ()
    """Those of these codes that also stand for bytes."""

    # --- statements

    has_arrays: bool = False
    """A parameter may be an array."""
    has_writing_ctes: bool = False
    """A statement may use the rows that an UPDATE in its WITH clause returns."""
    has_compound_statements: bool = False
    """One statement may be a block of several, without a stored procedure."""
    has_json_each: bool = False
    """``json_each()`` reads many values from one parameter."""
    looks_up_ranges: bool = True
    """An index finds the rows of a range whose ends are columns of another table."""
    compares_rows_by_index: bool = True
    """An index of (a, b) finds the rows for ``(a, b) >= (x, y)``."""
    infers_dependence: bool = False
    """A SELECT that groups by a primary key may name all columns of the table."""
    has_late_rowcount: bool = False
    """Rows are counted while they are fetched, or not at all."""
    counts_without_returning: bool = False
    """The rowcount and ``lastrowid`` of an INSERT are other numbers with RETURNING than without it."""
    has_exact_conflicts: bool = False
    """INSERT … ON CONFLICT … RETURNING returns all rows that it inserts or updates, and no others."""
    overrides_identity: bool = False
    """An INSERT into a GENERATED ALWAYS column needs OVERRIDING SYSTEM VALUE."""

    needs_analyze: bool = False
    """Joins of a temporary table are planned badly before ANALYZE, which nobody else executes."""
    reads_temporary_tables_once: bool = False
    """A statement can read a temporary table in one place only."""

    # --- tables and names

    has_row_security: bool = False
    """Policies may hide rows from a role."""
    has_conflict_clauses: bool = False
    """A constraint may say ON CONFLICT REPLACE or IGNORE."""
    has_range_indexes: bool = False
    """An index may be of periods."""
    has_partial_indexes: bool = True
    """An index may leave rows out."""
    renames_indexes: bool = True
    """An index can be renamed."""
    name_length: int | None = None
    """The longest name, where it is not the dialect's ``max_identifier_length``."""
    measures_names_in_bytes: bool = False
    """The length of a name is its number of bytes."""


class _Table(dict[str, Traits]):
    """Facts by the name of a dialect. A lookup calls no function, as statements of every flush look facts up."""

    def __missing__(self, name: str) -> Traits:
        return _UNKNOWN


_UNKNOWN: Final = Traits()
_MYSQL: Final = Traits(
    locks_scanned_rows=True,
    reads_snapshots=True,
    commits_ddl=True,
    refuses_respelt_keys=True,
    converts_to_compare=True,
    sorts_enums_by_number=True,
    has_time_zones=False,
    has_durations=True,
    fraction_digits=0,
    numeric_precision=10,
    limits_bytes=True,
    text_codes=(249, 250, 251, 252, 253, 254),
    blob_codes=(249, 250, 251, 252),
    looks_up_ranges=False,
    compares_rows_by_index=False,
    infers_dependence=True,
    reads_temporary_tables_once=True,
    counts_without_returning=True,
    has_partial_indexes=False,
    name_length=64,
)
TRAITS: Final = _Table(
    sqlite=Traits(
        locks_rows=False,
        begins_late=True,
        drops_tables_while_reading=False,
        has_typed_columns=False,
        has_decimals=False,
        has_datetimes=False,
        has_time_zones=False,
        has_json_each=True,
        has_late_rowcount=True,
        has_conflict_clauses=True,
        renames_indexes=False,
    ),
    postgresql=Traits(
        locks_shared_and_skips=True,
        undoes_failed_statements=True,
        drops_on_commit=True,
        compares_same_types_only=True,
        pads_char=True,
        has_infinity=True,
        has_double_floats=True,
        parses_values_in_driver=True,
        text_codes=(25, 1042, 1043),  # pg_type.oid of text, bpchar and varchar
        needs_analyze=True,
        has_arrays=True,
        has_writing_ctes=True,
        infers_dependence=True,
        has_exact_conflicts=True,
        overrides_identity=True,
        has_row_security=True,
        has_range_indexes=True,
        measures_names_in_bytes=True,
    ),
    mysql=_MYSQL,
    mariadb=replace(_MYSQL, has_compound_statements=True, infers_dependence=False, reads_temporary_tables_once=False),
)
