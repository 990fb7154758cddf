"""Captions in the layouts that people own, and from a vision model behind a real HTTP server."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from footage import pan, write
from reelign.data.captions import CaptionEndpoint, Captions, ask_endpoint, find_captions
from reelign.data.curate import CurateConfig, curate
from reelign.data.manifest import read_manifest
from reelign.errors import ReelignError


def found(folder: Path, *media: str, **texts: str | bytes) -> Captions:
    """Captions of a folder; media need only exist, because no caption depends on their content."""
    for name in media:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    for name, content in texts.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return find_captions(folder, [path for path in folder.rglob("*") if path.is_file()])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.csv", "file_name,caption\na.mp4,a cat\nsub/b.mp4,a dog\n"),
        ("m.csv", "\ufefffile_name,caption\r\na.mp4,a cat\r\nsub/b.mp4,a dog\r\n"),
        ("m.csv", "file_name,caption\ra.mp4,a cat\rsub/b.mp4,a dog\r"),
        ("m.csv", "video;prompt\na.mp4;a cat\nsub/b.mp4;a dog\n"),
        ("m.tsv", "path\ttext\na.mp4\ta cat\nsub/b.mp4\ta dog\n"),
        ("m.json", '[{"file": "a.mp4", "cap": "a cat"}, {"file": "./sub/b.mp4", "cap": " a\\ndog "}]'),
        ("m.json", '{"data": [{"video": "a.mp4", "text": "a cat"}, {"video": "sub/b.mp4", "text": "a dog"}]}'),
        ("m.jsonl", '{"video": "a.mp4", "text": "a cat"}\n\n{"video": "sub/b.mp4", "text": "a dog"}'),
    ],
)
def test_a_table_is_read_in_each_of_its_dialects(tmp_path, name, content):
    captions = found(tmp_path, "a.mp4", "sub/b.mp4", **{name: content})
    assert captions.words == {"a.mp4": ("a cat", f"table {name}"), "sub/b.mp4": ("a dog", f"table {name}")}
    assert captions.notes[name] == "captions of 2 files"


def test_a_parquet_table_is_read(tmp_path):
    pq.write_table(pa.table({"file_name": ["a.mp4"], "caption": ["a cat"]}), tmp_path / "metadata.parquet")
    assert found(tmp_path, "a.mp4").words == {"a.mp4": ("a cat", "table metadata.parquet")}


def test_a_table_names_files_beside_itself_or_below_the_footage_and_never_outside(tmp_path):
    (tmp_path / "secret.mp4").write_bytes(b"")
    folder = tmp_path / "footage"
    for name in ("sub/b.mp4", "c.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    rows = ["file,text", "b.mp4,beside", "c.mp4,below", "../../secret.mp4,outside", f"{tmp_path}/secret.mp4,outside"]
    (folder / "sub" / "m.csv").write_text("\n".join(rows))
    captions = found(folder)
    assert {name: words for name, (words, _) in captions.words.items()} == {"sub/b.mp4": "beside", "c.mp4": "below"}
    assert captions.notes["sub/m.csv"] == "captions of 2 files, 2 rows name no file here"


def test_a_sidecar_wins_over_a_table(tmp_path):
    captions = found(tmp_path, "a.mp4", **{"a.txt": "by hand\n", "m.csv": "file,text\na.mp4,by table\n"})
    assert captions.words == {"a.mp4": ("by hand", "sidecar a.txt")}


def test_a_sidecar_reaches_the_video_also_where_a_picture_has_the_same_stem(tmp_path):
    captions = found(tmp_path, "a.mp4", "a.png", **{"a.txt": "a cat"})
    assert captions.words["a.mp4"] == ("a cat", "sidecar a.txt")


def test_what_a_text_file_was_used_for_is_said(tmp_path):
    captions = found(tmp_path, "a.mp4", "b.mp4", **{"a.txt": "a cat", "b.txt": " \n", "alone.txt": "words"})
    assert captions.words == {"a.mp4": ("a cat", "sidecar a.txt")}
    assert captions.notes == {
        "a.txt": "caption of a.mp4",
        "b.txt": "empty caption of b.mp4",
        "alone.txt": "text file that belongs to no video",
    }


def test_two_lists_of_equal_length_belong_together(tmp_path):
    lists = {"videos.txt": "a.mp4\nb.mp4\n", "prompts.txt": "a\u2028cat\r\na dog"}
    captions = found(tmp_path, "a.mp4", "b.mp4", **lists)
    assert captions.words == {"a.mp4": ("a cat", "list prompts.txt"), "b.mp4": ("a dog", "list prompts.txt")}


def test_two_lists_of_unequal_length_are_not_used_and_that_is_said(tmp_path):
    captions = found(tmp_path, "a.mp4", "b.mp4", **{"videos.txt": "a.mp4\nb.mp4\n", "prompts.txt": "a cat\n"})
    assert captions.words == {}
    assert captions.notes["videos.txt"] == "not used: 2 videos but 1 prompts, so lines do not belong together"


def test_a_line_separator_inside_a_caption_does_not_cut_its_line(tmp_path):
    line = json.dumps({"video": "a.mp4", "text": "a\u2028cat\x85here"}, ensure_ascii=False)
    assert found(tmp_path, "a.mp4", **{"m.jsonl": line}).words["a.mp4"][0] == "a cat here"


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("m.json", "{", "not read as captions: Expecting property name"),
        ("m.json", '{"data": 5}', "a table without captions"),
        ("m.json", "7", "a table without captions"),
        ("m.json", "[" * 100_000, "not read as captions: maximum recursion depth"),
        ("m.jsonl", "[" * 100_000 + '\n{"video": "b.mp4"', "a table without captions, 2 lines are no JSON"),
        ("m.csv", "", "a table without captions"),
        ("m.csv", "\n\n", "a table without captions"),
        ("m.csv", f'file,text\na.mp4,"{"x" * 200_000}"\n', "not read as captions: field larger"),
        ("m.csv", "file,text\na.mp4\n", "captions of 0 files, 1 rows have no text"),
        ("m.parquet", b"PAR1", "not read as captions: a damaged Parquet file"),
    ],
)
def test_a_damaged_table_takes_nothing_along(tmp_path, name, content, note):
    captions = found(tmp_path, "a.mp4", "b.mp4", **{"b.txt": "a dog", name: content})
    assert captions.words == {"b.mp4": ("a dog", "sidecar b.txt")}
    assert captions.notes[name].startswith(note)


def test_an_unquoted_comma_and_a_foreign_encoding_are_said(tmp_path):
    captions = found(tmp_path, "a.mp4", **{"m.csv": "file,text\na.mp4,a café, at night\n".encode("latin-1")})
    assert captions.words["a.mp4"][0] == "a café"
    assert "Latin-1" in captions.notes["m.csv"]
    assert "an unquoted comma cut their captions" in captions.notes["m.csv"]


def test_folders_with_the_names_of_lists_are_only_folders(tmp_path):
    (tmp_path / "videos.txt").mkdir()
    (tmp_path / "prompts.txt").mkdir()
    assert found(tmp_path, "a.mp4") == Captions()


@pytest.fixture
def endpoint():
    """A real server: it answers with the next of `answers` and keeps what it was asked."""
    answers: list[tuple[int, str]] = []
    asked: list[tuple[str, dict]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.headers["Authorization"], json.loads(body)))
            status, words = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(words.encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/", answers, asked
    server.shutdown()
    thread.join()
    server.server_close()


def says(words: object) -> tuple[int, str]:
    return 200, json.dumps({"choices": [{"message": {"content": words}}]})


FRAMES = np.zeros((9, 8, 8, 3), np.uint8)


def test_the_model_sees_four_frames_and_the_question(endpoint, monkeypatch):
    url, answers, asked = endpoint
    monkeypatch.setenv("CAPTION_KEY", "secret")
    answers.append(says(" A black\nsquare. "))
    settings = CaptionEndpoint(url=url, model="eyes", api_key_variable="CAPTION_KEY", prompt="What is it?")
    assert ask_endpoint(settings, FRAMES) == "A black square."
    ((key, body),) = asked
    content = body["messages"][0]["content"]
    assert (key, body["model"], content[0]["text"]) == ("Bearer secret", "eyes", "What is it?")
    assert [part["image_url"]["url"][:23] for part in content[1:]] == ["data:image/jpeg;base64,"] * 4


def test_a_stumble_is_tried_again(endpoint):
    url, answers, asked = endpoint
    answers += [(500, "busy"), (200, "{}"), says("A square.")]
    assert ask_endpoint(CaptionEndpoint(url=url, model="eyes"), FRAMES) == "A square."
    assert len(asked) == 3


@pytest.mark.parametrize("answer", [(404, "no"), (200, "<html>"), (200, "[]"), says(None), says(" ")])
def test_an_endpoint_without_words_is_an_error_with_its_address(endpoint, answer):
    url, answers, asked = endpoint
    answers.append(answer)
    with pytest.raises(ReelignError, match=r"caption endpoint http://127\.0\.0\.1:\d+/v1/ failed three times"):
        ask_endpoint(CaptionEndpoint(url=url, model="eyes"), FRAMES)
    assert len(asked) == 3


def test_nobody_at_the_address_is_an_error():
    with pytest.raises(ReelignError, match="failed three times"):
        ask_endpoint(CaptionEndpoint(url="http://127.0.0.1:9/v1", model="eyes", seconds=2), FRAMES)


def test_curation_asks_only_for_clips_without_words(endpoint, tmp_path):
    url, answers, asked = endpoint
    answers.append(says("A pan."))
    write(tmp_path / "footage" / "a.mp4", pan(1, 30))
    write(tmp_path / "footage" / "b.mp4", pan(2, 30))
    (tmp_path / "footage" / "a.txt").write_text("mine")
    config = CurateConfig(workers=1, captions=CaptionEndpoint(url=url, model="eyes"))
    rows = read_manifest(curate(tmp_path / "footage", tmp_path / "dataset", config).dataset)
    assert [(row["caption"], row["caption_source"]) for row in rows] == [
        ("mine", "sidecar a.txt"),
        ("A pan.", "endpoint eyes"),
    ]
    assert len(asked) == 1
