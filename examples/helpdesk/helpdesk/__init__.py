"""A help desk whose tickets know their past: FastAPI, SQLModel, Alembic and sqlaudit, all of it asynchronous."""
