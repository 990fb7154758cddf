"""Throughput of `reelign curate`: files and seconds of footage a second, with 1, 2, ... processes.

    python benchmarks/curation.py FOOTAGE --processes 1 2

Without FOOTAGE the clips that ship with the package are curated. Each setting starts from nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from reelign.data.curate import CurateConfig, curate
from reelign.data.manifest import read_manifest

SHIPPED = Path(__file__).parents[1] / "src" / "reelign" / "miniature" / "assets" / "footage"


def main() -> None:
    """Curate with each number of processes and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("footage", type=Path, nargs="?", default=SHIPPED)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--out", type=Path, default=None, help="JSON to write.")
    arguments = parser.parse_args()
    rows = [measure(arguments.footage, count) for count in arguments.processes]
    result = {"cores": os.cpu_count(), "rows": rows}
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(footage: Path, processes: int) -> dict:
    """One curation from nothing."""
    files = sum(path.is_file() for path in footage.rglob("*"))
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        found = curate(footage, Path(out), CurateConfig(workers=processes))
        seconds = time.perf_counter() - start
        kept = read_manifest(Path(out)) if found.kept else []
    row = {
        "processes": processes,
        "files": files,
        "clips": found.kept,
        "seconds": seconds,
        "files_per_second": files / seconds,
        "clips_per_second": found.kept / seconds,
        "footage_seconds_per_second": sum(row["seconds"] for row in kept) / seconds,
    }
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    main()
