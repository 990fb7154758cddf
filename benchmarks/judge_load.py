"""Does the server of `reelign judge` keep every vote, once and soon? Twenty raters at once, two hundred votes each.

    python benchmarks/judge_load.py                   # the default: SQLite, raters that never pause
    python benchmarks/judge_load.py --think 0.5       # raters that take half a second
    python benchmarks/judge_load.py --database URL    # another database, empty

The server runs in a process of its own, the raters in a second one, on the same cores. Each rater does what the page
does: fetches both clips of a pair and posts the answer, whose reply is the next pair. Every fifth time the page is
loaded anew, and every tenth answer is sent twice. Raters without pauses are far more load than twenty people: whoever
is answered asks again at once. In the end the database is compared with what the raters know they sent.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from reelign.data.clip import write_clip
from reelign.feedback.entrants import Entrant, Sample
from reelign.feedback.study import Study, StudySettings, add_raters, make_study
from tables import head, line

ENTRANTS, SIDE, FRAMES, FPS = 3, 32, 9, 8
SERVER = (
    "import sys; from pathlib import Path; from reelign.feedback.app import serve_study; "
    "serve_study(Path(sys.argv[1]), '127.0.0.1', int(sys.argv[2]), lambda at: print(at, flush=True))"
)
LIMIT_MS = 100.0
COLUMNS = ("request", "count", "p50 ms", "p95 ms", "p99 ms", "worst ms")


@dataclass
class Seen:
    """What the raters remember."""

    votes: dict[tuple[str, int], dict[str, str]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def main() -> None:
    """Make a study, serve it, vote, compare, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raters", type=int, default=20)
    parser.add_argument("--votes", type=int, default=200)
    parser.add_argument("--think", type=float, default=0.0, help="mean pause of a rater, seconds")
    parser.add_argument("--database", help="any SQLAlchemy URL; by default the study's own SQLite file")
    parser.add_argument("--note", default="", help="what else the machine did, for the report")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/judge_load.json"))
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        return drive(*asked.part, asked.think)
    with tempfile.TemporaryDirectory() as folder:
        study, links = load_study(Path(folder), asked.raters, asked.votes, asked.database)
        load = os.getloadavg()[0]
        seen, wall, used = measure(study, links, asked.think, Path(folder))
        found = compare(study, seen)
    row = {
        "raters": asked.raters,
        "votes_each": asked.votes,
        "think": asked.think,
        "database": (asked.database or "sqlite").split(":", maxsplit=1)[0],
        "wall_seconds": round(wall, 1),
        "votes_a_second": round(len(seen["votes"]) / wall, 1),
        "server_cpu_ms_a_vote": round(1e3 * used / len(seen["votes"]), 2),
        "load_before": round(load, 1),
        "note": asked.note,
        **found,
        "requests": {name: quantiles(values) for name, values in seen["seconds"].items()},
    }
    report(row, asked.out)
    if found["lost"] or found["doubled"] or found["altered"] or seen["failures"]:
        raise SystemExit(f"votes went wrong: {seen['failures'][:3]}")


def load_study(folder: Path, raters: int, votes: int, database: str | None) -> tuple[Study, list[str]]:
    """A study of tiny clips with lists of the asked length."""
    generator = np.random.default_rng(0)
    found = []
    for name in (f"model-{number}" for number in range(ENTRANTS)):
        samples = []
        for number in range(votes // ENTRANTS + 2):
            file = folder / name / f"{number}.mp4"
            write_clip(file, generator.integers(0, 256, (FRAMES, SIDE, SIDE, 3), np.uint8), FPS)
            samples.append(Sample(str(number), f"prompt {number}", file, 0))
        found.append(Entrant(name, samples))
    study = make_study(folder / "study", found, StudySettings(quota=votes, gold=3 if votes > 10 else 0), database)
    return study, [link for _, link in add_raters(study, [f"rater-{number}" for number in range(raters)])]


def measure(study: Study, links: list[str], think: float, folder: Path) -> tuple[dict[str, Any], float, float]:
    """Serve the study and let all raters vote; what they saw, how long it took, and the server's CPU seconds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "links.json").write_text(json.dumps(links))
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(study.folder), str(port)], stdout=subprocess.DEVNULL)
    try:
        _wait(port)
        seen, began, before = folder / "seen.json", time.monotonic(), _cpu(server.pid)
        part = [str(folder / "links.json"), str(port), str(seen)]
        subprocess.run([sys.executable, __file__, "--think", str(think), "--part", *part], check=True)
        return json.loads(seen.read_text()), time.monotonic() - began, _cpu(server.pid) - before
    finally:
        server.terminate()
        server.wait()


def drive(links: str, port: str, out: str, think: float) -> None:
    """All raters, one thread each, in a process of their own."""
    seen = Seen()
    threads = [
        threading.Thread(target=rate, args=(link, int(port), think, seen, random.Random(number)))
        for number, link in enumerate(json.loads(Path(links).read_text()))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    votes = [[*key, choices] for key, choices in seen.votes.items()]
    Path(out).write_text(json.dumps({"votes": votes, "seconds": seen.seconds, "failures": seen.failures}))


def rate(link: str, port: int, think: float, seen: Seen, chance: random.Random) -> None:
    """One rater, from the first pair to the last."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    token = link.removeprefix("/r/")
    headers = {"Authorization": f"Bearer {token}", "X-Reelign": "1", "Content-Type": "application/json"}

    def ask(method: str, path: str, body: dict[str, Any] | None = None, label: str = "") -> Any:
        began = time.perf_counter()
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        content = answer.read()
        took = time.perf_counter() - began
        with seen.lock:
            seen.seconds.setdefault(f"{method} {label or path}", []).append(took)
            if answer.status != 200:
                seen.failures.append(f"{method} {path}: {answer.status} {content[:200]!r}")
        return json.loads(content) if answer.headers["Content-Type"] == "application/json" else content

    place, count = ask("GET", "/api/next"), 0
    while place["showing"] is not None:
        for side in ("left", "right"):
            ask("GET", place[side], label="/clip/..")
        if think:
            time.sleep(chance.uniform(0.5, 1.5) * think)
        choices = {axis: chance.choice(("left", "same", "right")) for axis in place["axes"]}
        answer = {"showing": place["showing"], "votes": choices, "seconds": think, "client": "judge_load"}
        seen.votes[token, place["showing"]] = choices
        count += 1
        place = ask("POST", "/api/vote", answer)
        if count % 10 == 0:
            place = ask("POST", "/api/vote", answer)
        if count % 5 == 0:
            place = ask("GET", "/api/next")
    connection.close()


def compare(study: Study, seen: dict[str, Any]) -> dict[str, int]:
    """What the database holds against what the raters sent."""
    from sqlalchemy import select

    from reelign.feedback.database import ANSWERS, SHOWINGS, VOTES

    query = select(SHOWINGS.c.id, SHOWINGS.c.left, ANSWERS.c.id.label("answer"), VOTES.c.axis, VOTES.c.verdict)
    query = query.select_from(VOTES).join(ANSWERS).join(SHOWINGS)
    held: dict[int, dict[str, str]] = {}
    answers: dict[int, set[int]] = {}
    with study.store.database.reading() as connection:
        for showing, left, answer, axis, verdict in connection.execute(query):
            better = {"good": left == "a", "bad": left != "a"}
            choice = "same" if verdict == "same" else "left" if better[verdict] else "right"
            held.setdefault(showing, {})[axis] = choice
            answers.setdefault(showing, set()).add(answer)
    sent = {showing: choices for _, showing, choices in seen["votes"]}
    return {
        "sent": len(sent),
        "kept": len(held),
        "lost": len(sent.keys() - held.keys()),
        "doubled": sum(len(ids) > 1 for ids in answers.values()) + len(seen["votes"]) - len(sent),
        "altered": sum(held.get(showing, choices) != choices for showing, choices in sent.items()),
    }


def soon(row: dict[str, Any]) -> bool:
    """Whether answers came within the limit."""
    return max(row["requests"][name]["p95"] for name in ("POST /api/vote", "GET /api/next")) < LIMIT_MS


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds."""
    values = 1e3 * np.array(seconds)
    ends = {name: round(float(np.quantile(values, q)), 1) for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}
    return {"count": len(values), **ends, "worst": round(float(values.max()), 1)}


def report(row: dict[str, Any], out: Path) -> None:
    """Print, and write JSON and Markdown; rows of other settings that are there stay."""
    key = ("raters", "votes_each", "think", "database")
    facts = {"machine": f"{os.cpu_count()} cores, {platform.machine()}", "python": platform.python_version()}
    facts |= {name: version(name) for name in ("fastapi", "uvicorn", "sqlalchemy")}
    rows = json.loads(out.read_text())["rows"] if out.exists() else []
    rows = [other for other in rows if any(other[name] != row[name] for name in key)] + [row]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1))
    lines = [f"# Load on `reelign judge serve` ({', '.join(f'{name} {value}' for name, value in facts.items())})", ""]
    for one in rows:
        pause = f"a mean pause of {one['think']} s" if one["think"] else "no pauses"
        lines += [
            f"{one['raters']} raters x {one['votes_each']} votes, {pause}, {one['database']}: {one['kept']} of "
            f"{one['sent']} answers kept, {one['lost']} lost, {one['doubled']} doubled, {one['altered']} altered; "
            f"{one['votes_a_second']} votes a second, {one['server_cpu_ms_a_vote']} ms of the server's CPU a vote with "
            f"its clips. Load of the machine before, by others: {one['load_before']}. "
            f"{one['note']}{' ' * bool(one['note'])}p95 of votes and of the next "
            f"pair below {LIMIT_MS:.0f} ms: {'yes' if soon(one) else 'no'}.",
            "",
            *head(*COLUMNS),
            *(line(name, *found.values()) for name, found in one["requests"].items()),
            "",
        ]
    out.with_suffix(".md").write_text("\n".join(lines))
    print("\n".join(lines))


def _wait(port: int) -> None:
    until = time.monotonic() + 120
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            connection.getresponse().read()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
        finally:
            connection.close()


def _cpu(process: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
