"""The environment of the migrations, as ``alembic init --template async`` makes it, with the plugin of sqlaudit."""

import asyncio

from alembic import context
from helpdesk import models  # noqa: F401, whose tables are in SQLModel.metadata then
from helpdesk.database import URL
from sqlalchemy import NullPool
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import SQLModel

import sqlaudit_alembic

sqlaudit_alembic.register()


def configure(**options: object) -> None:
    context.configure(
        target_metadata=SQLModel.metadata,
        autogenerate_plugins=["alembic.autogenerate.*", "sqlaudit"],
        render_as_batch=True,  # SQLite needs it to change a table
        **options,
    )
    with context.begin_transaction():
        context.run_migrations()


async def migrate() -> None:
    engine = create_async_engine(URL, poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.run_sync(lambda connection: configure(connection=connection))
    await engine.dispose()


if context.is_offline_mode():
    configure(url=URL, literal_binds=True)
else:
    asyncio.run(migrate())
