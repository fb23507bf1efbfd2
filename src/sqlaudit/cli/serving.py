"""The command serve: history in a browser, for the person at this machine."""

from __future__ import annotations

import os
import socket
from importlib import import_module
from typing import Any

import click

from sqlaudit.cli.database import Database
from sqlaudit.cli.failures import Failure
from sqlaudit.cli.options import acting_user, shared_options
from sqlaudit.cli.output import Output


@click.command(short_help="Show history in a browser.")
@click.option("--port", type=click.IntRange(1, 65535), default=8400, show_default=True, help="The port to listen on.")
@click.option("--user", metavar="ID", help="Who you are, if you undo; your login name if omitted.")
@shared_options
def serve(database: Database, output: Output, port: int, user: str | None) -> None:
    """Show history in a browser, on this machine alone. Without models, it can only be read."""
    try:
        web, server = import_module("sqlaudit.web"), import_module("uvicorn")
    except ImportError as error:
        raise Failure("serve needs the extra web. Run pip install 'sqlaudit[web]'.") from error
    _check_port(port)
    who = acting_user(user)

    def get_context(request: Any) -> dict[str, Any]:
        return {"user_id": who, "actor_type": "user"} if who else {}

    sources = list(database.sources.values())
    browser = web.HistoryBrowser(database.engine, sources, get_context=get_context, can_write=bool(database.declared))
    click.echo(f"History is at http://127.0.0.1:{port}/ until you press Ctrl+C.", err=True)
    server.run(browser, host="127.0.0.1", port=port, log_level="warning", proxy_headers=False, lifespan="off")


def _check_port(port: int) -> None:
    """Raise unless a server can listen on a port: uvicorn would say so in a way of its own.

    :raises Failure: it cannot
    """
    with socket.socket() as probe:
        if os.name == "posix":  # elsewhere, this would take the port from another program
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise Failure(f"Port {port} cannot be used: {error.strerror}. Choose another one with --port.") from error
