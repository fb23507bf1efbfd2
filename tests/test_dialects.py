"""What sqlaudit knows of databases."""

from dataclasses import fields

from sqlaudit.sql.dialects import TRAITS, Traits


def test_each_dialect_that_the_suite_runs_on_has_a_row(engine):
    assert engine.dialect.name in TRAITS


def test_an_unknown_dialect_has_the_defaults():
    assert TRAITS["other"] == Traits()
    assert "other" not in TRAITS


def test_each_fact_distinguishes_databases():
    for fact in fields(Traits):
        assert any(getattr(traits, fact.name) != fact.default for traits in TRAITS.values()), fact.name
