"""What does another library record? Run as ``peer_history.py NAME URL``, because it changes SQLAlchemy's mappers.

The program prints the library's own view of the rows: the operation, time, user and changes of each version.
"""

import importlib
import json
import sys
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Session, configure_mappers, mapped_column, relationship

name, url = sys.argv[1:]
peer: Any = importlib.import_module(name)


class Who(importlib.import_module(f"{name}.plugins").Plugin):  # type: ignore[misc, name-defined]  # known at run time
    def transaction_args(self, uow: Any, session: Session) -> dict[str, Any]:
        return {"user_id": session.info["user_id"], "remote_addr": "10.0.0.1"}


peer.make_versioned(user_cls="User", plugins=[Who()])


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id = mapped_column(sa.Integer, primary_key=True)


class Post(Base):
    __tablename__ = "posts"
    __versioned__: dict[str, Any] = {}  # the libraries require it
    id = mapped_column(sa.Integer, primary_key=True)
    name = mapped_column("title", sa.String(20))
    kind = mapped_column(sa.String(10))
    tags = relationship(
        "Tag",
        secondary=sa.Table(
            "post_tags",
            Base.metadata,
            sa.Column("post_id", sa.ForeignKey("posts.id"), primary_key=True),
            sa.Column("tag_id", sa.ForeignKey("tags.id"), primary_key=True),
        ),
    )
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "post"}


class Article(Post):
    __tablename__ = "articles"
    id = mapped_column(sa.ForeignKey("posts.id"), primary_key=True)
    words = mapped_column(sa.Integer)
    __mapper_args__ = {"polymorphic_identity": "article"}


class Tag(Base):
    __tablename__ = "tags"
    __versioned__: dict[str, Any] = {}
    id = mapped_column(sa.Integer, primary_key=True)


def work(session: Session) -> None:
    """Write rows as an application does, some of them unseen by the library."""
    session.add(User(id=7))
    session.commit()
    session.info["user_id"] = 7
    post, article = Post(id=1, name="a", tags=[Tag(id=1), Tag(id=2)]), Article(id=2, name="b", words=5)
    session.add_all([post, article, Post(id=3, name="c"), Post(id=4, name="stays")])
    session.commit()
    session.info["user_id"] = None
    post.name = "a2"
    article.words = 6
    session.commit()
    session.info["user_id"] = 7
    del post.tags[0]
    article.name = "b2"
    session.commit()
    session.delete(session.get_one(Post, 3))
    session.delete(article)
    session.commit()
    session.add(Article(id=2, name="again", words=7))
    session.commit()
    session.execute(sa.text("UPDATE posts SET title = 'unseen' WHERE id = 1"))
    session.execute(sa.text("INSERT INTO posts (id, title, kind) VALUES (5, 'older', 'post')"))
    session.execute(sa.text("DELETE FROM posts WHERE id = 4"))
    session.commit()


def told(session: Session, model: type[Any]) -> list[dict[str, Any]]:
    version = peer.version_class(model)
    return [
        {
            "id": each.id,
            "operation": each.operation_type,
            "at": each.transaction.issued_at.isoformat(),
            "user_id": each.transaction.user_id,
            "changes": {field: pair for field, pair in each.changeset.items() if pair[0] != pair[1]},
        }
        for each in session.scalars(sa.select(version).order_by(version.id, version.transaction_id))
    ]


configure_mappers()
engine = sa.create_engine(url)
Base.metadata.create_all(engine)
with Session(engine) as session:
    session.info["user_id"] = None
    work(session)
    json.dump({model.__name__: told(session, model) for model in (Post, Tag)}, sys.stdout)
