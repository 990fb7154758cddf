"""`reelign stream` as a user runs it: the file plays whatever happens, and what is wrong is said in a sentence."""

import http.client
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from command import command, reelign
from forks import Fork, environment
from reelign.data.clip import read_clip
from served import served
from streaming import BLUE, RED, message, saved_causal_miniature


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return saved_causal_miniature(tmp_path_factory.mktemp("causal") / "model")


def frames(path: Path) -> int:
    """How many play; 0 while there is no file or no frame in it."""
    try:
        return len(read_clip(path).frames)
    except Exception:  # noqa: BLE001 whatever a player would stumble over
        return 0


def test_a_stream_of_any_length_is_written_and_its_figures_are_said(model, tmp_path):
    out = tmp_path / "new" / "clip.mp4"
    done = reelign("stream", model, RED, "--out", out, "--seconds", "4.5", "--switch", f"2:{BLUE}")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert re.search(r"first frame after \d+\.\d\d s", said)
    assert re.search(
        rf"wrote {re.escape(str(out))}: 36 frames \(4\.5 s\) of 32 x 32 at 8 fps, made at [\d.]+ frames a second; "
        r"KV cache 0\.\d MiB",
        said,
    )
    switched = read_clip(out).frames
    assert switched.shape == (36, 32, 32, 3)
    reelign("stream", model, RED, "--out", tmp_path / "plain.mp4", "--frames", "36")
    plain = read_clip(tmp_path / "plain.mp4").frames
    changed = (switched != plain).any((1, 2, 3))
    assert not changed[:17].any()  # blocks begin at frames 0, 1, 5, 9, 13 and 17, which is the first after 2 s
    assert changed[17:].all()


def test_generate_makes_the_first_clip_of_the_stream_by_the_sampler_of_the_model(model, tmp_path):
    done = reelign("generate", model, RED, "--out", tmp_path / "clip.mp4", "--seed", "3")
    assert done.returncode == 0, done.stderr
    assert "17 frames of 32 x 32 at 8 fps, 3 network evaluations" in " ".join(done.stdout.split())  # 2 and a memory
    reelign("stream", model, RED, "--out", tmp_path / "stream.mp4", "--frames", "17", "--seed", "3")
    one, two = (read_clip(tmp_path / f"{name}.mp4").frames.astype(int) for name in ("clip", "stream"))
    assert np.abs(one - two).mean() < 4  # the same frames, coded in two ways


def test_evaluate_samples_a_model_as_its_own_card_says(model, tmp_path):
    """The recipe's sampler is guided, which a causal model would refuse."""
    done = reelign("evaluate", model, "--out", tmp_path / "out", "battery.count=2", "battery.validation_count=2")
    assert done.returncode == 0, done.stderr
    assert "Scores of" in done.stdout


def test_kill_9_leaves_a_file_that_plays(model, tmp_path):
    out = tmp_path / "clip.mp4"
    fork = Fork(tmp_path / "log", "stream", model, RED, "--out", out)
    fork.signal_when(lambda: frames(out) >= 20, signal.SIGKILL)
    fork.end(-signal.SIGKILL)
    assert frames(out) >= 20


def test_ctrl_c_ends_an_endless_stream_and_cuts_a_longer_one(model, tmp_path):
    for name, more, code in (("endless", (), 0), ("long", ("--seconds", "9999"), 1)):
        out = tmp_path / f"{name}.mp4"
        fork = Fork(tmp_path / name, "stream", model, RED, "--out", out, *more)
        fork.signal_when(lambda out=out: frames(out) >= 20, signal.SIGINT)
        said = fork.end(code)
        wrote = re.search(r"wrote .*: (\d+) frames", said)
        assert wrote is not None
        assert frames(out) == int(wrote[1]) >= 20
        assert ("stopped before the end" in said) == (code == 1)


def test_a_full_disk_is_said_and_what_fits_plays(model, tmp_path):
    """A limit on the size of files fails a write as a full disk does: in the middle."""
    out = tmp_path / "clip.mp4"
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 40 && exec "$@"', "-", *command("stream", model, RED, "--out", out)],
        capture_output=True,
        text=True,
        env=environment(CUDA_VISIBLE_DEVICES=""),
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    holds = re.search(
        r"cannot write more to .*clip\.mp4 \(.*\)\. It holds (\d+) frames \(.* s\) and plays\. Free", said
    )
    assert holds is not None, said
    assert frames(out) == int(holds[1]) > 10
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("MODEL", RED, "--window", "2", "--sinks", "-1"), "sinks"),
        (("MODEL", RED, "--seconds", "2", "--frames", "9"), "give --seconds or --frames, not both"),
        (("MODEL", RED, "--switch", "soon:a dog"), "no time and prompt; write SECONDS:PROMPT"),
        (("MODEL", RED, "--switch", "2:"), "no time and prompt"),
        (("MODEL",), "say what the video shows"),
        (("MODEL", RED, "--height", "33"), "use 32 or 40"),
        (("miniature", RED, "--frames", "9"), "miniature is not causal"),
        (("miniature", "--serve"), "miniature is not causal"),
        (("MODEL", "--serve", "--host", "0.0.0.0"), "0.0.0.0 is open to other machines: put a token into"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_before_anything_is_made(model, tmp_path, arguments, words):
    out = tmp_path / "clip.mp4"
    asked = [str(model) if it == "MODEL" else it for it in arguments]
    done = reelign("stream", *asked, "--out", out)
    assert done.returncode in (1, 2)
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not out.exists()


@contextmanager
def serving(folder: Path, *arguments: str | Path) -> Iterator[tuple[Fork, int]]:
    """`reelign stream ... --serve` and its port."""
    with served(folder, "stream", *arguments, "--serve") as found:
        yield found


def test_the_server_ends_on_ctrl_c_with_a_stream_that_runs(model, tmp_path):
    with serving(tmp_path / "log", model) as (fork, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/stream", json.dumps({"prompt": RED}), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert message(answer)[0]["fps"] == 8.0
        message(answer)
        fork.signal_when(lambda: True, signal.SIGINT)
        while "error" not in (last := message(answer)[0]):
            pass
        assert last == {"error": "the server was stopped."}
        said = fork.end(130)
    assert f"streaming {model} at http://127.0.0.1:{port}" in said
    assert "Traceback" not in said
    assert "ERROR" not in said
