"""The database of a study: its tables, how it is opened, and how it is written to.

SQLite is the default, with a write-ahead log that is flushed at every commit (`synchronous=FULL`): what was answered
survives `kill -9` and a power cut. Any other database that SQLAlchemy knows will do.

Writers take turns, and who has the turn writes for all that wait: one transaction, one flush, and a savepoint around
the work of each (group commit; DeWitt et al. 1984, section 3). So twenty raters cost little more than one, and the work
of each is still written as a whole or not at all.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from reelign.errors import ReelignError

try:
    from sqlalchemy import (
        Column,
        Connection,
        Double,
        Engine,
        ForeignKey,
        Index,
        Insert,
        Integer,
        MetaData,
        String,
        Table,
        Text,
        UniqueConstraint,
        create_engine,
        event,
        insert,
        inspect,
        select,
    )
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
except ImportError as error:
    raise ReelignError("human feedback needs the extra `feedback`: pip install 'reelign[feedback]'.") from error

SCHEMA = "2"
"""Version of the tables below."""
PATIENCE = 30.0
"""Seconds that a writer waits for another process to finish."""
Result = TypeVar("Result")
tables = MetaData()
FACTS = Table(
    "facts", tables, Column("key", String(40), primary_key=True), Column("value", String(200), nullable=False)
)
RATERS = Table(
    "raters",
    tables,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("token", String(64), nullable=False, unique=True),
    Column("quota", Integer, nullable=False),
    Column("created", Double, nullable=False),
)
"""`token` is the SHA-256 of what the rater's link holds."""
PAIRS = Table(
    "pairs",
    tables,
    Column("id", String(40), primary_key=True),
    Column("prompt", Text, nullable=False),
    Column("a", String(400), nullable=False),
    Column("a_clip", String(80), nullable=False),
    Column("b", String(400), nullable=False),
    Column("b_clip", String(80), nullable=False),
    Column("kind", String(10), nullable=False),
    Column("expected", Text, nullable=False),
    Column("fps", Double, nullable=False),
    Column("frames", Integer, nullable=False),
)
"""Two clips of one prompt; `expected` is JSON, the known verdict of each axis that has one."""
SHOWINGS = Table(
    "showings",
    tables,
    Column("id", Integer, primary_key=True),
    Column("rater", ForeignKey("raters.id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("pair", ForeignKey("pairs.id"), nullable=False, index=True),
    Column("left", String(1), nullable=False),
    Column("kind", String(10), nullable=False),
    Column("version", Integer, nullable=False),
    Column("shown_at", Double),
    Column("done_at", Double),
    UniqueConstraint("rater", "position"),
    Index("showings_open", "rater", "done_at"),
)
"""A pair in the list of one rater; `version` counts how often its answer was taken back."""
ANSWERS = Table(
    "answers",
    tables,
    Column("id", Integer, primary_key=True),
    Column("showing", ForeignKey("showings.id"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("at", Double, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("client", String(200), nullable=False),
    Column("source", String(10), nullable=False),
    UniqueConstraint("showing", "version"),
)
"""All verdicts on one showing. The answer whose version is the showing's counts; older ones were taken back.
`source` says who gave it: a person, or a simulation."""
VOTES = Table(
    "votes",
    tables,
    Column("answer", ForeignKey("answers.id"), primary_key=True),
    Column("axis", String(10), primary_key=True),
    Column("verdict", String(4), nullable=False),
)


@dataclass
class Job(Generic[Result]):
    """Work that waits for its turn, and what became of it."""

    work: Callable[[Connection], Result]
    done: bool = False
    result: Result | None = None
    error: BaseException | None = None


@dataclass
class Database:
    """An open database; safe to use from many threads."""

    engine: Engine
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _waiting: deque[Job[Any]] = field(default_factory=deque)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees one state of the database."""
        with self.engine.begin() as connection:
            yield connection

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """Do work in a transaction; it is on the disk when this returns, and undone when `work` raises."""
        job = Job(work)
        self._waiting.append(job)
        with self._turn:
            if not job.done:
                self._write_all()
        if job.error is not None:
            raise job.error
        return cast(Result, job.result)

    def close(self) -> None:
        """Let go of all connections."""
        self.engine.dispose()

    def _write_all(self) -> None:
        """Write for everybody who waits."""
        jobs = [self._waiting.popleft() for _ in range(len(self._waiting))]
        try:
            with self.engine.connect() as plain:
                connection = plain.execution_options(writes=True)
                with connection.begin():
                    for job in jobs:
                        _attempt(job, connection)
        except BaseException as error:
            for job in jobs:
                job.error = job.error or error
            if not isinstance(error, Exception):
                raise
        finally:
            for job in jobs:
                job.done = True


def open_database(url: str) -> Database:
    """Open the database of a study.

    Raises:
        ReelignError: the address makes no sense, nothing answers there, or there is no study of this version.
    """
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).is_file():
        raise ReelignError(f"there is no database {parsed.database}. Was it moved or deleted?")
    database = _reached(url)
    try:
        with database.reading() as connection:
            found = None
            if inspect(connection).has_table(FACTS.name):
                found = connection.scalar(select(FACTS.c.value).where(FACTS.c.key == "schema"))
    except SQLAlchemyError as error:
        database.close()
        raise ReelignError(f"cannot read the database {shown(url)}: {_first(error)}") from error
    if found != SCHEMA:
        database.close()
        what = "holds no study" if found is None else f"has tables of version {found}; this reelign knows {SCHEMA}"
        raise ReelignError(f"the database {shown(url)} {what}. Was the study made here, and by this version?")
    return database


def create_database(url: str, facts: dict[str, str]) -> Database:
    """Make the tables of a study in an empty database.

    Raises:
        ReelignError: the address makes no sense, nothing answers there, or the database holds tables of such names.
    """
    database = _empty(url)
    try:

        def fill(connection: Connection) -> None:
            tables.create_all(connection)
            rows = [{"key": key, "value": value} for key, value in ({"schema": SCHEMA} | facts).items()]
            connection.execute(insert(FACTS), rows)

        database.write(fill)
    except SQLAlchemyError as error:
        database.close()
        raise ReelignError(f"cannot make tables in the database {shown(url)}: {_first(error)}") from error
    return database


def check_database(url: str) -> None:
    """Find out whether a study can be made in a database, before its clips are sampled; leaves nothing there.

    Raises:
        ReelignError: see `create_database`.
    """
    parsed = _parsed(absolute(url))
    if parsed.get_backend_name() == "sqlite" and not (file := Path(str(parsed.database))).exists():
        if not file.parent.is_dir():
            raise ReelignError(f"cannot make the database {file}: there is no folder {file.parent}.")
        return
    _empty(url).close()


def added(connection: Connection, into: Insert, row: dict[str, Any]) -> int:
    """Insert a row; its id."""
    key = connection.execute(into, row).inserted_primary_key
    assert key is not None
    return key[0]


def shown(url: str) -> str:
    """An address without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "(its address cannot be read)"


def absolute(url: str) -> str:
    """The same address from every working directory.

    Raises:
        ReelignError: it is no address of a database, or of one that is gone when the process ends.
    """
    parsed = _parsed(url)
    if parsed.get_backend_name() != "sqlite":
        return url
    if parsed.database in (None, "", ":memory:") or str(parsed.database).startswith("file:"):
        raise ReelignError("votes need a database that stays: name a file, such as sqlite:///votes.sqlite.")
    return parsed.set(database=str(Path(str(parsed.database)).absolute())).render_as_string(hide_password=False)


def _attempt(job: Job[Any], connection: Connection) -> None:
    """One job of a batch; its failure is its own and leaves no trace."""
    try:
        with connection.begin_nested():
            job.result = job.work(connection)
    except Exception as error:  # raised again where the job came from
        job.error = error
        if connection.invalidated:
            raise


def _empty(url: str) -> Database:
    """A database that answers and holds no study."""
    database = _reached(url)
    try:
        with database.reading() as connection:
            taken = sorted(set(inspect(connection).get_table_names()) & set(tables.tables))
    except SQLAlchemyError as error:
        database.close()
        raise ReelignError(f"cannot read the database {shown(url)}: {_first(error)}") from error
    if taken:
        database.close()
        raise ReelignError(
            f"the database {shown(url)} holds a study already (tables {', '.join(taken)}): give each its own."
        )
    return database


def _reached(url: str) -> Database:
    """A database that answers."""
    parsed = _parsed(url)
    try:
        database = Database(_engine(parsed))
        with database.reading():
            return database
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise ReelignError(f"the database {shown(url)} needs a driver that is not installed: {error}") from error
    except (SQLAlchemyError, OSError) as error:
        raise ReelignError(f"cannot reach the database {shown(url)}: {_first(error)}") from error


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except ArgumentError:
        raise ReelignError(
            "the address of the database cannot be read; expected one such as sqlite:///votes.sqlite or "
            "postgresql+psycopg://user:password@host/name."
        ) from None


def _engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=10)
    engine = create_engine(url, pool_size=10, max_overflow=30, connect_args={"timeout": PATIENCE})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver would begin transactions by rules of its own
        for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {setting}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _first(error: BaseException) -> str:
    said = getattr(error, "orig", None) or error
    return str(said).strip().splitlines()[0].rstrip(".") + "."
