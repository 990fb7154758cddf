"""What everything costs: a line for each phase, whatever happens to the phase or to the file."""

import json
import time

import pytest

from reelign.train.ledger import Ledger, peak_memory


def test_the_ledger_writes_a_phase_also_when_it_fails(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    with ledger.phase("good") as cost:
        cost.nfe, cost.clips = 12, 3
    with pytest.raises(RuntimeError), ledger.phase("bad") as cost:
        cost.clips = 1
        raise RuntimeError
    good, bad = (json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines())
    assert (good["phase"], good["nfe"], good["clips"], good["completed"]) == ("good", 12, 3, True)
    assert (bad["phase"], bad["clips"], bad["completed"]) == ("bad", 1, False)
    assert good["seconds"] >= 0
    assert good["peak_memory_bytes"] > 0


def test_a_phase_takes_as_long_as_its_block(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    with ledger.phase("sleep"):
        time.sleep(0.05)
    assert 0.05 <= ledger.read()[0]["seconds"] < 5


def test_phases_of_several_runs_stand_one_after_another(tmp_path):
    for name in ("first", "second"):
        with Ledger(tmp_path / "ledger.jsonl").phase(name):
            pass
    assert [row["phase"] for row in Ledger(tmp_path / "ledger.jsonl").read()] == ["first", "second"]


def test_a_line_that_a_crash_tore_off_costs_only_itself(tmp_path):
    """Killed within a write, the run goes on with a line of its own."""
    path = tmp_path / "ledger.jsonl"
    with Ledger(path).phase("before"):
        pass
    with path.open("a", encoding="utf-8") as file:
        file.write('{"phase": "torn", "sec')
    assert [row["phase"] for row in Ledger(path).read()] == ["before"]
    with Ledger(path).phase("after"):
        pass
    assert [row["phase"] for row in Ledger(path).read()] == ["before", "after"]


def test_other_ranks_write_nothing(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", enabled=False)
    with ledger.phase("phase"):
        pass
    assert not ledger.path.exists()
    assert ledger.read() == []


def test_the_peak_of_memory_counts_bytes():
    before = peak_memory()
    block = bytearray(64 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    assert max(before, 64 * 2**20) <= peak_memory() < 2**40
