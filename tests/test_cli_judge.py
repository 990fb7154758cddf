"""`reelign judge` as a user runs it: from two entrants to a conclusion, and what is wrong is said in a sentence."""

import csv
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from command import reelign
from forks import Fork
from miniatures import rendered
from reelign.data.clip import write_clip
from reelign.feedback.study import open_study
from reelign.feedback.vote import AXES, Shown, read_votes, write_votes
from served import served
from studies import moving, study
from verdicts import vote

SMALL = ("--gold", "2", "--repeats", "0.25")


def message(done: subprocess.CompletedProcess[str]) -> str:
    """The one message of a command that failed as it should."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.count("reelign:") == 1, done.stderr
    return " ".join(done.stderr.split())


def said(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that went well told."""
    assert done.returncode == 0, done.stdout + done.stderr
    return " ".join((done.stdout + done.stderr).split())


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[Path]:
    """Nine clips of the miniature's world, blurred and clean."""
    root = tmp_path_factory.mktemp("sources")
    return [rendered(root / "blurred", 9, "blur"), rendered(root / "clean", 9)]


@pytest.fixture(scope="module")
def untouched(sources, tmp_path_factory) -> Path:
    """A study of two raters, made by the command, in which nobody has voted."""
    out = tmp_path_factory.mktemp("untouched") / "study"
    told = said(reelign("judge", "new", *sources, "--out", out, "--rater", "ann", "--rater", "bob", *SMALL))
    assert f"made {out}: 11 pairs of clips" in told
    assert re.search(r"ann is shown 14 bob is shown 14", told)
    assert f"reelign judge serve {out}" in told
    assert "/r/" not in told  # links are passwords: a terminal that is shared shows none before they are of use
    return out


@pytest.fixture(scope="module")
def simulated(untouched, tmp_path_factory) -> Path:
    """The same study after simulated raters have voted."""
    out = Path(shutil.copytree(untouched, tmp_path_factory.mktemp("simulated") / "study"))
    told = said(reelign("judge", "simulate", out, "--set", "temperature=0.05"))
    assert "28 pairs judged by simulated raters" in told
    return out


@pytest.fixture
def fresh(untouched, tmp_path) -> Path:
    return Path(shutil.copytree(untouched, tmp_path / "study"))


@contextmanager
def serving(folder: Path, *arguments: str | Path) -> Iterator[tuple[Fork, str]]:
    """`reelign judge serve ...` and its address."""
    with served(folder, "judge", "serve", *arguments) as (fork, port):
        yield fork, f"http://127.0.0.1:{port}"


def ask(link: str, path: str, body: dict | None = None) -> dict:
    """What the page of a link is answered."""
    at, _, token = link.removeprefix("http://").partition("/r/")
    connection = http.client.HTTPConnection(at, timeout=30)
    headers = {"Authorization": f"Bearer {token}", "X-Reelign": "1", "Content-Type": "application/json"}
    connection.request("GET" if body is None else "POST", path, body and json.dumps(body), headers)
    answer = connection.getresponse()
    found = json.loads(answer.read())
    assert answer.status == 200, found
    return found


def test_raters_vote_by_the_printed_links_until_ctrl_c_and_no_vote_is_lost(fresh, tmp_path):
    with serving(tmp_path / "log", fresh) as (fork, at):
        links = dict(re.findall(rf"(\w+), 0 of 14 done: ({at}/r/\S+)", fork.said))
        assert list(links) == ["ann", "bob"]
        place = ask(links["ann"], "/api/next")
        for _ in range(3):
            answer = {"showing": place["showing"], "votes": dict.fromkeys(AXES, "right"), "seconds": 2.0}
            place = ask(links["ann"], "/api/vote", answer)
        assert (place["done"], place["total"]) == (3, 14)
        fork.signal_when(lambda: True, signal.SIGINT)
        told = fork.end(130)
    assert f"serving {fresh} at {at}" in told
    assert "stopped; every vote that was sent is kept, and the same command goes on." in told
    assert "Traceback" not in told
    assert "ERROR" not in told
    with serving(tmp_path / "again", fresh) as (fork, _):
        assert "ann, 3 of 14 done:" in fork.said
    reelign("judge", "export", fresh, "--out", tmp_path / "votes.jsonl")
    votes = read_votes(tmp_path / "votes.jsonl")
    assert {(one.rater, one.source) for one in votes} == {("ann", "person")}
    assert len(votes) == 3 * 4


def test_links_that_are_gone_still_work_and_others_begin_as_the_proxy_is_called(fresh, tmp_path):
    [(_, link), (_, kept)] = [line.split("\t") for line in (fresh / "links.txt").read_text().splitlines()]
    (fresh / "links.txt").write_text(f"bob\t{kept}\n")
    with serving(tmp_path / "log", fresh, "--address", "https://judge.example.org/") as (fork, at):
        assert "ann, 0 of 14 done: (no link here)" in fork.said
        assert f"bob, 0 of 14 done: https://judge.example.org{kept}" in fork.said
        assert "links.txt lacks links. Those that were given out work" in fork.said
        assert ask(f"{at}{link}", "/api/info")["total"] == 14
    (fresh / "links.txt").unlink()
    with serving(tmp_path / "log", fresh) as (fork, at):
        assert fork.said.count("(no link here)") == 2
        assert ask(f"{at}{link}", "/api/info")["total"] == 14


def test_an_address_that_is_open_to_others_is_warned_of(fresh, tmp_path):
    with serving(tmp_path / "log", fresh, "--host", "0.0.0.0") as (fork, _):
        assert "warning: links and votes travel unencrypted to other machines: put a proxy with HTTPS" in fork.said


def test_a_port_that_is_taken_is_named(untouched):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = message(reelign("judge", "serve", untouched, "--port", str(port)))
    assert f"cannot serve at 127.0.0.1:{port}: [Errno 98] Address already in use. Choose another --host or" in told


def test_models_are_sampled_with_a_recipe_and_their_pairs_are_for_raters_to_see(tmp_path):
    (tmp_path / "b.yaml").write_text(yaml.safe_dump({"battery": {"count": 3}, "sampler": {"steps": 2}}))
    out, options = tmp_path / "study", ("--battery", tmp_path / "b.yaml", "--raters", "2", "--gold", "0")
    told = said(reelign("judge", "new", "miniature", "miniature", "--out", out, *options))
    assert f"made {out}: 3 pairs of clips rater-1 is shown 3 rater-2 is shown 3" in told
    opened = open_study(out)
    assert opened.entrants == ("miniature", "miniature (2)")
    opened.store.database.close()


def test_the_report_says_who_is_better_and_that_nobody_was_asked(simulated, tmp_path):
    told = said(reelign("judge", "report", simulated, "--out", tmp_path))
    assert "SIMULATED: 112 of 112 votes. They say nothing of people." in told
    better = r"visual: \S+clean is better than \S+blurred: \+(\d+) points \[.*\], 18 votes on 9 prompts\."
    found = re.search(better, told)  # raters of some noise, two on each pair
    assert found is not None
    assert int(found[1]) >= 80
    assert all(name in told for name in ("another rater", "miniature, training judge", "miniature, evaluation judge"))
    assert f"wrote {tmp_path / 'report.html'} and report.json" in told
    assert json.loads((tmp_path / "report.json").read_text())["simulated_share"] == 1.0
    assert "Simulated votes" in (tmp_path / "report.html").read_text()


def test_the_report_of_a_study_lies_in_it_and_that_of_a_file_beside_it(simulated, tmp_path):
    said(reelign("judge", "report", simulated, "--no-judges"))
    assert (simulated / "report.html").exists()
    file = tmp_path / "votes.jsonl"
    assert f"wrote {file}, from 112 votes" in said(reelign("judge", "export", simulated, "--out", file))
    told = said(reelign("judge", "report", file, "--no-judges"))
    assert "SIMULATED: 112 of 112 votes." in told
    assert "judge" not in told.replace(str(tmp_path), "")
    assert (tmp_path / "votes-report" / "report.html").exists()


def test_three_formats_go_out_and_come_back(simulated, tmp_path):
    """VideoAlign's table has no word for gold and repeats: 18 of 28 showings are plain."""
    for form, name, count in (
        ("jsonl", "votes.jsonl", 112),
        ("videoalign", "votes.csv", 72),
        ("label-studio", "votes.json", 112),
    ):
        told = said(reelign("judge", "export", simulated, "--out", tmp_path / name, "--format", form))
        assert ("40 gold and repeated votes are left out" in told) == (form == "videoalign")
        told = said(reelign("judge", "import", tmp_path / name, "--out", tmp_path / f"{form}.back"))
        assert re.search(rf"votes │ {count} │ .*left out │ 0 │ .*not here │ 0 │", told)
        back = read_votes(tmp_path / f"{form}.back")
        assert {one.source for one in back} == {"simulated"}
        assert len(back) == count
    assert read_votes(tmp_path / "jsonl.back") == read_votes(tmp_path / "votes.jsonl")


def test_votes_of_others_are_imported_and_what_is_no_vote_is_said(tmp_path):
    for name in ("a", "b", "c", "d"):
        write_clip(tmp_path / f"videos/{name}.mp4", moving(ord(name)), 8)
    rows = [
        ["path_A", "path_B", "prompt", "VQ", "MQ", "TA", "fps_A", "num_frames_A", "fps_B", "num_frames_B"],
        ["./videos/a.mp4", "videos/b.mp4", "a dog", "A", "same", "B", "8.0", "9.0", "8", "9"],
        ["videos/c.mp4", "videos/d.mp4", "a cat", "A", "maybe", "", "8", "9", "8", "9"],
    ]
    with (tmp_path / "theirs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    told = said(reelign("judge", "import", tmp_path / "theirs.csv", "--out", tmp_path / "ours.jsonl"))
    assert "left out, line 3: " in told and "'maybe'" in told
    assert re.search(r"VideoAlign CSV .*votes │ 4 │ .*left out │ 1 │ .*not here │ 0 │", told)
    told = said(reelign("judge", "report", tmp_path / "ours.jsonl"))
    assert "no two named models are compared" in told
    assert "pixels (sharpness, steadiness)" in told

    bench = [{"prompt": "a dog", "video_left": "l.mp4", "video_right": "r.mp4", "vote_type": "bothbad_vote"}]
    (tmp_path / "data.json").write_text(json.dumps(bench))
    told = said(reelign("judge", "import", tmp_path / "data.json", "--out", tmp_path / "bench.jsonl"))
    assert '1 votes of "both bad" are read as "same"' in told
    assert re.search(r"GenAI-Bench data.json .*votes │ 1 │ .*not here │ 2 │", told)


def test_clips_that_are_missing_are_named_where_judges_would_look(tmp_path):
    file = tmp_path / "votes.jsonl"
    sides = Shown("base", "gone-a.mp4"), Shown("tuned", "gone-b.mp4")
    write_votes(file, [vote(prompt=f"p{n}", a=sides[0], b=sides[1]) for n in range(9)])
    told = message(reelign("judge", "report", file))
    assert f"2 of the clips, which are not there: {tmp_path / 'gone-a.mp4'}, {tmp_path / 'gone-b.mp4'}. " in told
    assert "ask no judges: --no-judges" in told
    told = said(reelign("judge", "report", file, "--no-judges"))
    assert "tuned is worse than base: −100 points" in told
    assert "SIMULATED" not in told


def test_a_rater_who_only_chooses_left_is_said(tmp_path):
    votes = [vote("good" if n % 2 else "bad", f"p{n}", left="a" if n % 2 else "b") for n in range(30)]
    write_votes(tmp_path / "votes.jsonl", votes)
    told = said(reelign("judge", "report", tmp_path / "votes.jsonl", "--no-judges"))
    assert "warning: the rater ann chooses left in 100 % of 30 decided pairs" in told


def test_further_pairs_go_to_everybody_or_to_nobody(sources, tmp_path):
    out = tmp_path / "study"
    said(
        reelign(
            "judge", "new", *sources, "--out", out, "--quota", "5", "--gold", "0", "--repeats", "0", "--raters", "2"
        )
    )
    told = said(reelign("judge", "more", out, "--count", "3"))
    assert "rater-1: 3 further, 8 of 8 open rater-2: 3 further, 8 of 8 open" in told
    assert "Ask for 1 to 1" in message(reelign("judge", "more", out, "--count", "2"))
    said(reelign("judge", "more", out, "--count", "1"))
    told = message(reelign("judge", "more", out, "--count", "1"))
    assert f"rater-1 has seen all pairs of {out}: make a new study with other clips" in told
    opened = open_study(out)
    assert [row.total for row in opened.store.raters()] == [9, 9]
    opened.store.database.close()


def test_simulated_raters_stop_where_nothing_is_open_or_words_are_strange(simulated, tmp_path):
    told = message(reelign("judge", "simulate", simulated))
    assert f"every list of {simulated} is done: give further pairs with `reelign judge more {simulated}`" in told
    made, _ = study(tmp_path)
    made.store.database.close()
    assert "asks for 'words of prompt 0': here people have to vote" in message(
        reelign("judge", "simulate", made.folder)
    )
    told = message(reelign("judge", "simulate", simulated, "--set", "temprature=1"))
    assert "temprature: unknown key; did you mean `temperature`?" in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("serve", "NOTHING"), "is no study: study.json is missing. Make one with: reelign judge new A B"),
        (("more", "NOTHING"), "is no study"),
        (("simulate", "NOTHING"), "is no study"),
        (("report", "NOTHING"), "there is no study and no file of votes"),
        (("export", "NOTHING", "--out", "OUT"), "there is no study and no file of votes"),
        (("import", "NOTHING", "--out", "OUT"), "cannot read the votes"),
        (("import", "STUDY", "--out", "OUT"), "is a folder. Of a study: reelign judge export"),
        (("report", "STUDY"), "nobody has voted in"),
        (("export", "STUDY", "--out", "OUT"), "Raters vote while this runs: reelign judge serve"),
        (("report", "STUDY", "--no-judges", "--reward", "NOTHING"), "leave one of them out"),
        (("import", "TEXT", "--out", "OUT"), "holds no votes that are known here: expected JSON lines of votes, a CSV"),
        (("report", "TEXT"), "holds no votes that are known here"),
        (("new", "miniature", "--out", "OUT"), "a study compares two entrants or more, not 1: reelign judge new A B."),
        (("new", "miniature", "none", "--out", "STUDY"), "exists already. Choose another place"),
        (("new", "miniature", "none", "--out", "OUT", "--rater", "ann", "--rater", "ann"), "a name of its own"),
        (("new", "miniature", "none", "--out", "OUT", "--rater", "a\nb"), "'a\\nb' is no name of a rater"),
        (("new", "miniature", "none", "--out", "OUT", "--title", ""), "--title has 0 characters"),
        (("new", "miniature", "none", "--out", "OUT", "--battery", "TEXT"), "there is no model 'none'"),
        (("new", "miniature", "none", "--out", "OUT", "--known", "NOTHING"), "cannot read the votes"),
        (("new", "a", "b", "--out", "OUT", "--database", "votes"), "the address of the database cannot be read"),
        (("new", "a", "b", "--out", "OUT", "--database", "sqlite:///NOTHING/v.sqlite"), "there is no folder"),
        (("new", "a", "b", "--out", "OUT", "--database", "sqlite://"), "votes need a database that stays"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_in_a_sentence_and_leaves_nothing(untouched, tmp_path, arguments, words):
    (tmp_path / "TEXT").write_text("a dog\na cat\n")
    places = {"NOTHING": tmp_path / "NOTHING", "STUDY": untouched, "OUT": tmp_path / "OUT", "TEXT": tmp_path / "TEXT"}
    asked = [str(places.get(it, it)).replace("sqlite:///NOTHING", f"sqlite:///{tmp_path}/NOTHING") for it in arguments]
    assert words in message(reelign("judge", *asked))
    assert [path.name for path in tmp_path.iterdir()] == ["TEXT"]


def test_a_database_that_does_not_answer_is_said_before_anything_is_sampled_and_without_its_password(tmp_path):
    url = "postgresql+psycopg://me:secret@127.0.0.1:1/none"
    told = message(reelign("judge", "new", "miniature", "miniature", "--out", tmp_path / "study", "--database", url))
    assert "cannot reach the database postgresql+psycopg://me:***@127.0.0.1:1/none" in told
    assert "secret" not in told


def test_a_database_is_used_once_and_found_again(sources, tmp_path):
    url = f"sqlite:///{tmp_path / 'votes.sqlite'}"
    said(reelign("judge", "new", *sources, "--out", tmp_path / "one", "--database", url, *SMALL))
    assert "14 pairs judged by simulated raters" in said(reelign("judge", "simulate", tmp_path / "one"))
    told = message(reelign("judge", "new", *sources, "--out", tmp_path / "two", "--database", url))
    assert "holds a study already" in told
    (tmp_path / "votes.sqlite").unlink()
    assert f"there is no database {tmp_path / 'votes.sqlite'}" in message(reelign("judge", "serve", tmp_path / "one"))


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("", ["new", "serve", "simulate", "more", "report", "export", "import"]),
        ("new", ["reelign judge new BASE TUNED", "--battery", "--rater", "--quota", "--gold", "--database"]),
        ("serve", ["every vote is on disk before it is answered", "--host", "--port", "--address"]),
        ("simulate", ["without people", "called simulated wherever they go", "--set", "--seed"]),
        ("more", ["further pairs", "--count", "--reward"]),
        ("report", ["who is better and how surely", "--no-judges", "--reward", "--out"]),
        ("export", ["jsonl|videoalign|label-studio", "--out"]),
        ("import", ["listed with its reason", "--out"]),
    ],
)
def test_every_verb_explains_itself(verb, words):
    told = said(reelign("judge", *verb.split(), "--help"))
    assert [word for word in words if word not in told] == []
