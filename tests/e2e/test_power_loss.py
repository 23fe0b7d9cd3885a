"""After a power loss, what was answered with 200 is in the file of an exporter without a queue, or in a rotated one."""

from pathlib import Path

import pytest

from tests.e2e.power_loss import try_images


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_was_acknowledged_is_in_the_files_and_the_next_change_too(tmp_path: Path) -> None:
    assert not [one for one in try_images(tmp_path / "run", seed=0, images=40) if one.is_bad]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("unsynced", ["changes.jsonl", "disk"])
def test_without_the_syncs_of_the_file_or_of_its_directory_something_is_missing(tmp_path: Path, unsynced: str) -> None:
    """The control. Of the directory, the syncs at the first start are left: the name of a new file is missed."""
    assert any(
        one.missing.get("before the start")
        for one in try_images(tmp_path / "run", seed=0, images=200, unsynced=unsynced)
    )
