"""Small real studies, and their server as a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from forks import environment, free_port
from reelign.data.clip import write_clip
from reelign.feedback.entrants import Entrant, Sample
from reelign.feedback.study import Study, StudySettings, add_raters, make_study

SERVE = "import sys; from pathlib import Path; from reelign.feedback.app import serve_study; "
SERVE += "serve_study(Path(sys.argv[1]), '127.0.0.1', int(sys.argv[2]), lambda at: print(at, flush=True))"


def moving(seed: int, frames: int = 9, side: int = 32) -> np.ndarray:
    """A bright square that moves over a textured ground: blur and standstill are both visible."""
    generator = np.random.default_rng(seed)
    video = np.repeat(generator.integers(0, 90, (1, side, side, 3), np.uint8), frames, axis=0)
    for place, frame in enumerate(video):
        left = (place * 3 + seed) % (side - 8)
        frame[8:20, left : left + 8] = generator.integers(160, 255, 3, np.uint8)
    return video


def entrants(
    folder: Path, names: Sequence[str] = ("secret-model-A", "secret-model-B"), prompts: int = 6
) -> list[Entrant]:
    found = []
    for place, name in enumerate(names):
        clips = []
        for number in range(prompts):
            file = folder / name / f"private-{number}.mp4"
            write_clip(file, moving(100 * place + number), 8)
            clips.append(Sample(f"p{number}", f"words of prompt {number}", file, 0))
        found.append(Entrant(name, clips))
    return found


def study(
    folder: Path,
    raters: Sequence[str] = ("ann", "bob"),
    prompts: int = 6,
    database: str | None = None,
    names: Sequence[str] = ("secret-model-A", "secret-model-B"),
    **settings: object,
) -> tuple[Study, list[str]]:
    """A study, and the tokens of its raters."""
    asked = StudySettings.model_validate({"gold": 2, "repeats": 0.25} | settings)
    made = make_study(folder / "study", entrants(folder / "sources", names, prompts), asked, database)
    return made, [link.removeprefix("/r/") for _, link in add_raters(made, raters)]


@contextmanager
def served(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of the study, from its first answer on; killed at the end."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(folder), str(port)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    at, until = f"http://127.0.0.1:{port}", time.monotonic() + 60
    try:
        while True:
            try:
                urllib.request.urlopen(f"{at}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < until
                time.sleep(0.05)
        yield process, at
    finally:
        process.kill()
        process.communicate()
