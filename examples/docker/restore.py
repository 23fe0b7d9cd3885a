"""Puts a backup, which it reads, in the place of the queue: docs/running.md, "In a container" and "In Kubernetes".

It runs in a container that has the queue's volume, while the service is stopped. The queue that was there goes into a
folder of its own. A backup that was cut off on the way here changes nothing.
"""

import os
import shutil
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

QUEUE = 0x53744F74  # the `application_id` of a queue's database

os.umask(0o077)
os.chdir("/var/lib/statsig-otel")
database, new, moving = Path("queue.db"), Path("new.db"), Path("moving")
old = Path(time.strftime("old-%Y-%m-%d-%H%M%S"))
if moving.is_dir() and not database.exists():  # an earlier run was killed while it moved the queue there: undo that
    for path in sorted(moving.iterdir(), key=lambda path: path.name == database.name):
        path.rename(path.name)
elif moving.is_dir() and any(moving.iterdir()):  # it was killed at its end, or a service has begun another queue
    moving.rename(f"{old}-interrupted")
    print(f"The queue that an interrupted run has moved is in the folder {old}-interrupted.")
try:
    with new.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        os.fsync(file.fileno())
    size = new.stat().st_size
    # `immutable`: nothing else uses the file, so SQLite makes no files beside it.
    with closing(sqlite3.connect("file:new.db?immutable=1", uri=True)) as copy:
        names = ("page_count", "page_size", "application_id", "quick_check(1)")
        pages, page_size, kind, found = (copy.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
    if size == 0 or size != pages * page_size:
        raise sqlite3.DatabaseError(f"it is cut off after {size} bytes")
    if kind != QUEUE or found != "ok":
        raise sqlite3.DatabaseError("it is not of a queue" if kind != QUEUE else found)
    if old.exists():
        raise FileExistsError(f"there is a folder {old}")
    moving.mkdir(exist_ok=True)
except (OSError, sqlite3.Error) as error:
    new.unlink(missing_ok=True)
    sys.exit(f"The backup can't be used, and the queue is as it was: {error}")

# The database goes first, and comes back last: while it is away, the next run knows that there is something to undo.
others = [path for path in Path().iterdir() if path.is_file() and path not in (database, new)]
for path in (database, *others):
    if path.exists():
        path.rename(moving / path.name)
new.replace(database)
moving.rename(old)
print(f"The backup is the queue now. The queue that was there is in the folder {old}.")
