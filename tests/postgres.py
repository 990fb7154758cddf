"""A real PostgreSQL server for one test module, in a folder of its own, reached by a socket in that folder."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

USERS = ("postgres", "nobody")
"""PostgreSQL refuses to run as root; one of these runs it then."""


@contextmanager
def server() -> Iterator[str]:
    """The folder of its socket; skips where PostgreSQL is not installed."""
    if not shutil.which("initdb") or not shutil.which("postgres"):
        pytest.skip("initdb and postgres are not on the PATH: apt install postgresql")
    as_user = {"user": _other_user()} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="reelign-pg-"))
    try:
        if as_user:
            shutil.chown(folder, as_user["user"])
        made = ["initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(made, check=True, capture_output=True, cwd=folder, **as_user)
        options = ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=40"]
        process = subprocess.Popen(
            ["postgres", "-D", folder / "data", "-k", folder, *options],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **as_user,
        )
        try:
            _wait(folder, process)
            yield str(folder)
        finally:
            process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            process.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def database(folder: str, name: str) -> str:
    """A new, empty database; its address for SQLAlchemy."""
    with psycopg.connect(host=folder, user="postgres", dbname="postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return f"postgresql+psycopg://postgres@/{name}?host={folder}"


def _other_user() -> str:
    there = {entry.pw_name for entry in pwd.getpwall()}
    for name in USERS:
        if name in there:
            return name
    pytest.skip("PostgreSQL does not run as root, and there is no other user")


def _wait(folder: Path, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(host=str(folder), user="postgres", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
