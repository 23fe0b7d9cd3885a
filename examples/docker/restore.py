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

os.umask(0o077)
os.chdir("/var/lib/statsig-otel")
new = Path("new.db")
old = Path(time.strftime("old-%Y-%m-%d-%H%M%S"))
files = [path for path in Path().iterdir() if path.is_file() and path != new]
try:
    with new.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    size = new.stat().st_size
    # `immutable`: nothing else uses the file, so SQLite makes no files beside it.
    with closing(sqlite3.connect("file:new.db?immutable=1", uri=True)) as database:
        names = ("page_count", "page_size", "quick_check(1)")
        pages, page_size, found = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
    if size == 0 or size != pages * page_size:
        raise sqlite3.DatabaseError(f"it is cut off after {size} bytes")
    if found != "ok":
        raise sqlite3.DatabaseError(found)
    old.mkdir()
    for path in files:  # all of them have a second name there before one loses its first: a queue is never divided
        os.link(path, old / path.name)
except (OSError, sqlite3.Error) as error:
    new.unlink(missing_ok=True)
    sys.exit(f"The backup can't be used, and the queue is as it was: {error}")

for path in files:
    if path.name != "queue.db":
        path.unlink()
new.replace("queue.db")
print(f"The backup is the queue now. The queue that was there is in the folder {old}.")
