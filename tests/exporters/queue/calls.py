"""Changes files by all calls that may do so: `python -m tests.exporters.queue.calls DIRECTORY SEED PART`.

With a seed other than 0 one of them is a call that the recorder does not know.
"""

import contextlib
import os
import shutil
import sys
from pathlib import Path


def main(directory: str, seed: str, part: str) -> None:
    os.write(1, b"begun 0\n")
    place = Path(directory, part)
    place.mkdir()
    (place / "written").write_bytes(b"a" * 10_000)
    (place / "written").write_bytes(b"b" * 5_000)
    with (place / "written").open("ab") as file:
        file.write(b"c" * 700)
    with (place / "written").open("r+b") as file:
        file.seek(100)
        file.write(b"d" * 50)
        file.flush()
        os.pwrite(file.fileno(), b"e" * 50, 4_000)
        os.ftruncate(file.fileno(), 5_600)
    shutil.copyfile(place / "written", place / "copied")
    (place / "linked").hardlink_to(place / "copied")
    (place / "copied").rename(place / "renamed")
    (place / "tree" / "branch").mkdir(parents=True)
    (place / "tree" / "branch" / "leaf").touch()
    (place / "tree" / "branch" / "fruit").touch()
    (place / "tree").rename(place / "log")
    (place / "log" / "branch" / "fruit").rename(place / "fallen")
    shutil.rmtree(place / "log")  # relative to descriptors
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    os.mkdir("inner", dir_fd=descriptor)
    os.close(os.open("inner/made", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=descriptor))
    os.link("written", "inner/linked", src_dir_fd=descriptor, dst_dir_fd=descriptor)
    os.rename("inner/made", "inner/moved", src_dir_fd=descriptor, dst_dir_fd=descriptor)
    os.unlink("linked", dir_fd=descriptor)
    with contextlib.chdir(place):
        Path("relative").write_bytes(b"f")
        Path("relative").replace("renamed")
    if seed != "0":
        os.truncate(place / "written", 10)


if __name__ == "__main__":
    main(*sys.argv[1:])
