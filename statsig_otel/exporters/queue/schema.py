"""The queue's database file: its schema, and how a file of an older one is brought up to date.

Cursors work like a topic's consumer groups: `records` is an append-only log, and each exporter has a cursor in it. A
route is a receiver and the set of exporters that its records are for; each record has one, fixed when it is stored.
"""

import contextlib
import errno
import functools
import os
import resource
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from statsig_otel.exporters.queue.connection import Connection
from statsig_otel.exporters.queue.errors import DamagedError, ForeignFileError, NewerSchemaError

SUFFIXES: Final = ("", "-wal", "-shm")
"""The ends of the names of a database's files: the database, its log and its index."""

A_LINK: Final = "is a symbolic link, where the queue has a file of its own"

APPLICATION_ID: Final = 0x53744F74
"""`PRAGMA application_id` ("StOt") tells the file from other SQLite databases."""

_VERSION_1: Final = """
CREATE TABLE exporters (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice: routes name it also after it was removed
    name    TEXT NOT NULL UNIQUE,
    cursor  INTEGER NOT NULL,            -- the last seq that is done
    again   INTEGER NOT NULL DEFAULT 0,  -- the same: a flipped bit must not pass records over
    waiting INTEGER NOT NULL DEFAULT 0,  -- records after the cursor that are for it
    bytes   INTEGER NOT NULL DEFAULT 0,  -- their payloads together
    both    INTEGER NOT NULL DEFAULT 0   -- waiting + bytes: a flipped bit must not be believed
);
CREATE TABLE routes (
    id        INTEGER PRIMARY KEY,
    receiver  TEXT NOT NULL,             -- whose records they are; empty for replayed ones
    exporters TEXT NOT NULL,             -- ids in order, joined by commas
    UNIQUE (receiver, exporters)
);
CREATE TABLE records (
    seq      INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice, also after a deletion
    route    INTEGER NOT NULL,
    uid      BLOB NOT NULL,
    payload  BLOB NOT NULL,              -- a serialised ExportLogsServiceRequest with one log record
    checksum INTEGER NOT NULL            -- CRC-32 of the uid and the payload
);
CREATE INDEX records_by_route ON records (route, seq);
CREATE TABLE seen (
    receiver TEXT NOT NULL,
    uid      BLOB NOT NULL,
    at       INTEGER NOT NULL,           -- first sight, ms since the epoch
    PRIMARY KEY (receiver, uid)
) WITHOUT ROWID;
CREATE INDEX seen_by_time ON seen (at);
CREATE TABLE dead_letters (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    at       INTEGER NOT NULL,           -- ms since the epoch
    kind     TEXT NOT NULL,              -- item, body, record, batch or damaged
    owner    TEXT NOT NULL,              -- the receiver of an item or body, else the exporter
    reason   TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    uid      BLOB,
    count    INTEGER NOT NULL DEFAULT 1, -- log records in the content
    content  BLOB NOT NULL               -- the raw text, or the encoded request
);
CREATE INDEX bodies ON dead_letters (length(content)) WHERE kind = 'body';
CREATE TABLE salvage (
    file   TEXT NOT NULL,                -- a database that was set aside
    source TEXT NOT NULL,                -- its table
    after  INTEGER NOT NULL,             -- the last row that was carried over, or can't be
    PRIMARY KEY (file, source)
) WITHOUT ROWID;
"""

_VERSION_2: Final = """
CREATE TABLE remembered (
    receiver TEXT PRIMARY KEY,  -- whose changes are remembered
    since    INTEGER NOT NULL,  -- from this second on
    compared INTEGER NOT NULL   -- the audit log up to this second was compared with what came
) WITHOUT ROWID;
CREATE TABLE missed (
    receiver TEXT NOT NULL,
    entry    TEXT NOT NULL,     -- the id in the audit log
    second   INTEGER NOT NULL,
    PRIMARY KEY (receiver, entry)
) WITHOUT ROWID;
CREATE TABLE arrivals (
    receiver   TEXT NOT NULL,
    uid        BLOB NOT NULL,
    second     INTEGER NOT NULL,  -- when the change was made
    name       TEXT NOT NULL,
    user_id    TEXT,
    user_name  TEXT,
    user_email TEXT,
    type       TEXT NOT NULL,
    action     TEXT NOT NULL,
    text       TEXT NOT NULL,     -- the first line of the description
    filtered   INTEGER NOT NULL,
    from_log   INTEGER NOT NULL,  -- read in the audit log, since no webhook brought it
    PRIMARY KEY (receiver, uid)
) WITHOUT ROWID;
CREATE INDEX arrivals_by_time ON arrivals (receiver, second);
"""

_MIGRATIONS: Final[tuple[str, ...]] = (_VERSION_1, _VERSION_2)
"""Each brings the schema to the next version. A released one is never changed."""

VERSION: Final = len(_MIGRATIONS)

PLAIN: Final = 1
"""The version of a queue that does not remember what came. Older programs can open it."""

REMEMBERING: Final = 2
"""The version of a queue that does."""

LOG_LIMIT: Final = 4 << 20
"""Bytes that the log grows to before it is folded into the database in any case. Then it is made shorter again."""

_CHUNK: Final = 1 << 20
_AT_USER_VERSION: Final = 60
_AT_APPLICATION_ID: Final = 68

_NOT_THE_FILE: Final = frozenset(
    {
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)
"""Errors that are not the file's fault, and that pass once the machine is repaired."""


def error_code(error: BaseException) -> int | None:
    """SQLite's primary code of an error; None if the error is not from SQLite itself."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def is_damage(error: BaseException) -> bool:
    """Whether an error of the database says that its file is damaged, wherever that was found."""
    if not isinstance(error, sqlite3.DatabaseError):
        return False
    if (code := error_code(error)) is None:  # else the standard library's own: a string that is not UTF-8
        return isinstance(error, DamagedError | sqlite3.OperationalError)
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of the database, or of a file beside it, says that the disk has no space left."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return error_code(error) == sqlite3.SQLITE_FULL


def reason(error: BaseException) -> str:
    """An error of the database in words for the log. SQLite calls a file at its largest size only "disk I/O error"."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if error_code(error) != sqlite3.SQLITE_IOERR or limit == resource.RLIM_INFINITY:
        return str(error)
    return f"{error}; perhaps a file has reached the limit of this process, {limit:,} bytes (ulimit -f, LimitFSIZE=)"


def will_pass(error: sqlite3.Error) -> bool:
    """Whether an error of the database is not the file's fault, and passes once the machine is repaired."""
    return error_code(error) in _NOT_THE_FILE


@contextlib.contextmanager
def opening(path: Path, connection: sqlite3.Connection) -> Iterator[None]:
    """Tell a damaged file from one that can't be opened now, during the first statements. Any error closes it again.

    These statements are always the same, so an error is damage also if SQLite says that the statements are wrong.

    Raises:
        DamagedError: The file is damaged.
        sqlite3.Error: It can't be opened now.
    """
    try:
        yield
    except BaseException as error:
        connection.close()
        if isinstance(error, UnicodeDecodeError):  # SQLite quotes the file's content in its message
            raise DamagedError("its schema is not UTF-8") from error
        if not isinstance(error, sqlite3.Error) or isinstance(error, DamagedError):
            raise
        # A wrong format number in the header makes a writable file read-only. The extended codes have other causes.
        is_read_only = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_READONLY
        wrong_format = is_read_only and os.access(path, os.W_OK)
        if will_pass(error) and not wrong_format:
            raise
        raise DamagedError(str(error)) from error


def connect(path: Path) -> sqlite3.Connection:
    """Open the file for its one writer, which is the calling thread. A missing file is created, for its owner only.

    Transactions are begun and ended by hand.

    Raises:
        NewerSchemaError: It was written by a newer version.
        ForeignFileError: It is another program's database.
        DamagedError: It is damaged, or gone and its log is not.
        sqlite3.Error: It can't be opened now.
    """
    _refuse_lone_log(path)
    _rewrite_log(_log_of(path))
    connection = create(path)
    with opening(path, connection):
        _prepare(connection, path)
    return connection


def create(path: Path) -> sqlite3.Connection:
    """Open a file unchecked. A missing one is created, for its owner only.

    Raises:
        OSError: It can't be created.
        sqlite3.Error: It can't be opened.
    """
    # Only a missing file: closing one that is in use here would drop this process's locks on it (POSIX locks). The log
    # beside it gets the same mode.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        # An index that is left belongs to a database that was deleted, which a process may still have open.
        path.with_name(f"{path.name}-shm").unlink(missing_ok=True)
    if path.is_symlink():  # SQLite would follow it, and make a file wherever it leads
        raise OSError(errno.ELOOP, A_LINK, str(path))
    return sqlite3.connect(path, isolation_level=None, timeout=5.0, factory=Connection)


def connect_reading(path: Path) -> sqlite3.Connection:
    """Open the file for reading while its writer has it open, in any process; for any thread, but one at a time.

    Raises:
        DamagedError: It is damaged, or no queue, or gone and its log is not.
        sqlite3.Error: There is no such file, or it can't be read now.
    """
    try:
        _refuse_lone_log(path)
    except OSError as error:
        raise sqlite3.OperationalError(f"unable to look at the database file: {error}") from error
    connection = open_read_only(path)
    with opening(path, connection):
        connection.execute("PRAGMA query_only = ON")
        distrust(connection)
        connection.execute("SELECT 1 FROM exporters LIMIT 1").fetchall()
    return connection


def open_read_only(path: Path, options: str = "") -> sqlite3.Connection:
    """Open a file unchecked for reading, with more options of SQLite's URI."""
    uri = f"{path.absolute().as_uri()}?mode=ro{options}"
    return sqlite3.connect(
        uri, uri=True, isolation_level=None, timeout=5.0, check_same_thread=False, factory=Connection
    )


def distrust(connection: sqlite3.Connection) -> None:
    """Make damage an error: a failing disk without a SIGBUS, and a page with impossible content."""
    connection.execute("PRAGMA mmap_size = 0")
    connection.execute("PRAGMA cell_size_check = ON")


@contextlib.contextmanager
def overwriting(connection: sqlite3.Connection) -> Iterator[None]:
    """Overwrite what is deleted in the block with zeros, also on pages that become free. It costs writes."""
    connection.execute("PRAGMA secure_delete = ON")
    try:
        yield
    finally:
        connection.execute("PRAGMA secure_delete = FAST")


def size_of(path: Path) -> int:
    """A file's bytes; 0 if there is none."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def has_only_log(path: Path) -> bool:
    """Whether a database is gone or empty and its log is not: the log's content can be carried over."""
    return not size_of(path) and size_of(_log_of(path)) > 0


def _refuse_lone_log(path: Path) -> None:
    # SQLite would take it for a new database and delete the log, which can contain all that was acknowledged since it
    # was last folded in.
    if has_only_log(path):
        raise DamagedError("it is gone or empty, and its log is not")


def _rewrite_log(log: Path) -> None:
    """Bring all of the log to disk before anything is put behind it.

    After a failed fsync the kernel may consider pages clean that are not on the disk: it reads them from memory, and
    the next fsync succeeds. Changes that were acknowledged behind them would be lost with the power. So the log's bytes
    are written once more, each in its position. SQLite has no lock on this file that closing it could drop.
    """
    try:
        descriptor = os.open(log, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        position = 0
        while chunk := os.pread(descriptor, _CHUNK, position):
            position += os.pwrite(descriptor, chunk, position)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_version(connection: sqlite3.Connection, path: Path) -> None:
    """Check that a file was not written by a newer version.

    Raises:
        NewerSchemaError: It was.
    """
    _refuse_newer(pragma(connection, "user_version"), path)


def check_first_page(page: bytes, path: Path) -> None:
    """The same by the first page of a file that is not opened (section 1.3 of the file format).

    Raises:
        NewerSchemaError: It was.
    """
    if int.from_bytes(page[_AT_APPLICATION_ID : _AT_APPLICATION_ID + 4]) == APPLICATION_ID:
        _refuse_newer(int.from_bytes(page[_AT_USER_VERSION : _AT_USER_VERSION + 4]), path)


def _refuse_newer(version: int, path: Path) -> None:
    if version > VERSION:
        raise NewerSchemaError(
            f"{path} has schema version {version}, and this version of statsig-otel knows at most {VERSION}",
            "use the version that wrote it, or another directory",
        )


def check(path: Path) -> None:
    """Check whose file it is, and change nothing. For a file that nobody has open and that has no log beside it.

    Raises:
        NewerSchemaError: It was written by a newer version.
        ForeignFileError: It is another program's database.
        sqlite3.Error: It is damaged, or can't be read now.
    """
    # "immutable": no lock is taken, and no file is created beside it.
    with contextlib.closing(open_read_only(path, "&immutable=1")) as connection, opening(path, connection):
        _version_of(connection, path)


def has_all_tables(connection: sqlite3.Connection) -> bool:
    """Whether the tables and indexes are those of some version, whatever the file's header says."""
    tables = _tables(connection)
    return any(_expected(version) <= tables for version in range(1, VERSION + 1))


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    distrust(connection)
    connection.execute("PRAGMA temp_store = MEMORY")  # none of our pages in a file of another directory
    connection.execute("PRAGMA secure_delete = FAST")  # ON, the default of some systems, writes deleted content twice
    version = _version_of(connection, path)
    if version == 0:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # has to come before the first table
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA journal_size_limit = {LOG_LIMIT}")
    for number, script in enumerate(_MIGRATIONS[version:PLAIN], version + 1):
        _migrate(connection, script, number)


def upgrade(connection: sqlite3.Connection, to: int) -> None:
    """Bring the schema to a version, if it is an older one, inside the transaction that has begun."""
    version = pragma(connection, "user_version")
    for script in _MIGRATIONS[version:to]:
        for statement in script.split(";")[:-1]:
            connection.execute(statement)
    if version < to:
        connection.execute(f"PRAGMA user_version = {to}")


def _version_of(connection: sqlite3.Connection, path: Path) -> int:
    """Check whose file it is, and that it has the tables of its version; the version, 0 for a new file."""
    version, tables = pragma(connection, "user_version"), _tables(connection)
    if version == 0 and not tables:
        return 0
    is_marked = pragma(connection, "application_id") == APPLICATION_ID
    if not is_marked and not _expected(PLAIN) <= tables:
        raise ForeignFileError(f"{path} is a database of another program")
    _refuse_newer(version, path)
    if not is_marked or version < 1 or not _expected(version) <= tables:
        raise DamagedError(f"its tables are not those of schema version {version}")
    return version


def _tables(connection: sqlite3.Connection) -> frozenset[tuple[object, ...]]:
    return frozenset(connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master"))


@contextlib.contextmanager
def in_memory(version: int = PLAIN) -> Iterator[sqlite3.Connection]:
    """An empty queue of a version, in memory.

    SQLite keeps the beginnings of tables in the order of their creation, so those of a version are at the same pages in
    a file of a later one, and the first page of the one can be read with the other.
    """
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        for number, script in enumerate(_MIGRATIONS[:version], 1):
            _migrate(connection, script, number)
        yield connection


@functools.cache
def _expected(version: int) -> frozenset[tuple[object, ...]]:
    """The tables and indexes of a version."""
    with in_memory(version) as connection:
        return _tables(connection)


def _migrate(connection: sqlite3.Connection, script: str, version: int) -> None:
    """One step, as a whole or not at all."""
    connection.executescript(
        f"BEGIN IMMEDIATE;\n{script}\nPRAGMA application_id = {APPLICATION_ID};\n"
        f"PRAGMA user_version = {version};\nCOMMIT;"
    )


def pragma(connection: sqlite3.Connection, name: str) -> int:
    """The value of a PRAGMA that is a number."""
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value
