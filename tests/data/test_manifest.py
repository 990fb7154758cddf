"""A dataset's tables: whole, the same for the same rows, and plain about damage."""

import pytest

from reelign.data.manifest import (
    DROPPED_COLUMNS,
    MANIFEST,
    read_dropped,
    read_manifest,
    storable,
    verify_clips,
    write_table,
)
from reelign.errors import ReelignError

ROW = {"source": "a.mp4", "start": 0.0, "end": None, "rule": "noise", "value": "1", "threshold": "2", "reason": "é 🎬"}


def test_rows_come_back_as_they_were_and_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("dropped.parquet", "again.parquet"):
        write_table(tmp_path / name, [ROW, ROW | {"source": "b.mp4"}], DROPPED_COLUMNS)
    assert read_dropped(tmp_path) == [ROW, ROW | {"source": "b.mp4"}]
    assert (tmp_path / "dropped.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.parquet", "dropped.parquet"]


def test_text_that_is_no_utf8_becomes_storable_and_other_text_stays():
    assert storable(ROW) == ROW
    assert storable({"source": "a\udcff", "start": 1.0}) == {"source": r"a\udcff", "start": 1.0}


def test_a_folder_without_a_manifest_is_told_how_to_make_one(tmp_path):
    with pytest.raises(ReelignError, match=r"is no dataset.*reelign curate FOOTAGE --out"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("keep", [0, 3, 60])
def test_a_damaged_manifest_is_named(tmp_path, keep):
    path = tmp_path / MANIFEST
    write_table(path, [ROW], DROPPED_COLUMNS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ReelignError, match=r"manifest\.parquet is damaged or unreadable"):
        read_manifest(tmp_path)


def test_clips_that_are_missing_or_changed_are_found(tmp_path):
    # The SHA-256 of nothing.
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    rows = [{"path": name, "sha256": empty} for name in ("whole", "gone", "changed")]
    (tmp_path / "whole").write_bytes(b"")
    (tmp_path / "changed").write_bytes(b"x")
    assert verify_clips(tmp_path, rows) == [str(tmp_path / "gone"), str(tmp_path / "changed")]
