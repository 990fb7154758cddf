"""`reelign pairs` as a user types it."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from command import reelign
from reelign.data.endpoint import ChatEndpoint
from reelign.data.manifest import KEPT_COLUMNS, MANIFEST, write_table
from reelign.data.pairs import PromptPair, inverted, read_pairs, write_pairs
from reelign.errors import ReelignError
from reelign.inference.pairs import make_pairs
from reelign.miniature.enhancer_pairs import miniature_pairs

CAPTIONS = [f"A {colour} fox walks slowly over the snow, captured from afar." for colour in ("red", "grey", "white")]


def pairs(*arguments: str | Path) -> str:
    """What the command prints when it goes well."""
    done = reelign("pairs", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*arguments: str | Path) -> str:
    """The one sentence of a command that is refused."""
    done = reelign("pairs", *arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("reelign:") == 1, done.stderr
    return done.stderr


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps({"caption": caption}) + "\n" for caption in CAPTIONS))
    return path


def test_the_miniature_gives_pairs_and_says_how_many_how_long_and_which(tmp_path: Path) -> None:
    said = pairs("miniature", "--out", tmp_path / "p.jsonl", "--count", "50", "--seed", "3")
    assert read_pairs(tmp_path / "p.jsonl") == list(dict.fromkeys(miniature_pairs(50, seed=3)))
    assert "wrote 50 pairs to" in said
    assert "words on average: " in said
    assert said.count("->") == 3


def test_a_list_a_dataset_and_its_manifest_are_inverted(tmp_path: Path, listed: Path) -> None:
    assert "wrote 3 pairs" in pairs(listed, "--out", tmp_path / "p.jsonl")
    assert read_pairs(tmp_path / "p.jsonl") == inverted(CAPTIONS, 3, seed=0)
    rows = [{"id": str(n), "caption": caption} for n, caption in enumerate([*CAPTIONS, ""])]
    write_table(tmp_path / MANIFEST, rows, KEPT_COLUMNS)
    for source in (tmp_path, tmp_path / MANIFEST):
        pairs(source, "--out", tmp_path / "d.jsonl", "--count", "9", "--from", "inversion")
        assert read_pairs(tmp_path / "d.jsonl") == list(dict.fromkeys(inverted(CAPTIONS, 9, seed=0)))


def test_published_pairs_are_taken_over(tmp_path: Path) -> None:
    source, out = tmp_path / "published.json", tmp_path / "p.jsonl"
    rows = [{"prompt": f"fox {n}", "enhanced": {"one": f"A fox {n}.", "two": f"[red]fox[/] {n}."}} for n in range(5)]
    source.write_text(json.dumps(rows))
    assert "wrote 10 pairs" in pairs(source, "--out", out)
    said = pairs(source, "--out", out, "--rewriter", "two", "--count", "2", "--from", "file")
    assert "[red]fox[/]" in said
    found = read_pairs(out)
    assert len(found) == 2
    assert set(found) <= {PromptPair(f"fox {n}", f"[red]fox[/] {n}.") for n in range(5)}


def test_an_endpoint_is_asked_and_the_same_command_goes_on(tmp_path: Path, listed: Path) -> None:
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            words = json.dumps({"choices": [{"message": {"content": '{"prompt": "a fox"}'}}]})
            self.send_response(200 if len(asked) < 3 else 400)
            self.end_headers()
            self.wfile.write(words.encode())

        def log_message(self, *_: object) -> None:
            pass

    out = tmp_path / "p.jsonl"
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        command = (listed, "--out", out, "--from", "endpoint", "--url", url, "--model", "words")
        assert "1 of 3 captions have no prompt" in refused(*command)
        asked.clear()
        assert "wrote 3 pairs" in pairs(*command)
        server.shutdown()
    assert len(asked) == 1
    assert {pair.rewrite for pair in read_pairs(out)} == set(CAPTIONS)


def test_what_goes_wrong_is_one_sentence(tmp_path: Path, listed: Path) -> None:
    assert "there is no 'nothing'" in refused("nothing", "--out", tmp_path / "p.jsonl")
    assert "go together" in refused(listed, "--out", tmp_path / "p.jsonl", "--url", "http://127.0.0.1:9/v1")


WORDS = ChatEndpoint(url="http://127.0.0.1:9/v1", model="words")


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("none.txt", {}, "there is no"),
        (".", {}, "is no dataset"),
        ("miniature", {"way": "file"}, "leave --from out"),
        ("miniature", {"rewriter": "one"}, "--rewriter is for files of pairs"),
        ("captions.jsonl", {"way": "file"}, "line 1: .* is no pair"),
        ("captions.jsonl", {"way": "endpoint"}, "--url and --model"),
        ("captions.jsonl", {"endpoint": WORDS}, "without --from endpoint"),
        ("captions.jsonl", {"way": "endpoint", "endpoint": WORDS, "count": 4}, "holds 3, fewer than --count 4"),
        ("own.jsonl", {"way": "inversion"}, "holds pairs already"),
        ("own.jsonl", {"rewriter": "one"}, "has no rewriter 'one'"),
        ("own.jsonl", {"count": 2}, "holds 1, fewer than --count 2"),
        ("own.jsonl", {"out": "own.jsonl"}, "is what is read"),
        ("own.jsonl", {"out": "."}, "is a folder"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, listed: Path, source: str, options, words: str) -> None:
    write_pairs(tmp_path / "own.jsonl", [PromptPair("a", "b c")])
    settings = {"way": None, "count": None, "seed": 0, "rewriter": None, "endpoint": None} | options
    settings["out"] = tmp_path / options.get("out", "p.jsonl")
    with pytest.raises(ReelignError, match=words):
        make_pairs(source if source == "miniature" else str(tmp_path / source), progress=print, **settings)
    assert {path.name for path in tmp_path.iterdir()} == {listed.name, "own.jsonl"}
    assert read_pairs(tmp_path / "own.jsonl") == [PromptPair("a", "b c")]


def test_the_verb_explains_itself() -> None:
    said = pairs("--help")
    for option in ("--out", "--count", "--seed", "--from", "--rewriter", "--url", "--model", "inversion|file|endpoint"):
        assert option in said
    assert reelign("pairs", "miniature").returncode == 2
    assert reelign("pairs", "miniature", "--out", "p.jsonl", "--count", "0").returncode == 2
