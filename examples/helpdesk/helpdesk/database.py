"""Where the help desk is stored: ``DATABASE_URL``, with an asynchronous driver, or else a file of SQLite."""

import os

from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession

from sqlaudit import register_hooks

URL = make_url(os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///helpdesk.db"))

engine = create_async_engine(URL)
Sessions = async_sessionmaker(engine, class_=AsyncSession, expire_on_commit=False)
register_hooks(Sessions)
