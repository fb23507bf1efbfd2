"""The migrations make the tables of the models, and what they do can be taken back."""

from alembic import command

from conftest import ALEMBIC


def test_the_migrations_make_the_tables_of_the_models() -> None:
    command.check(ALEMBIC)
    command.downgrade(ALEMBIC, "0001")
    command.upgrade(ALEMBIC, "head")
