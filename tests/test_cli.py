"""The commands as a user types them: each is a process, and what goes wrong is one message, never a traceback."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from command import DEMO, command, environment, reelign
from forks import Fork
from reelign.data.clip import read_clip
from reelign.data.manifest import KEPT_COLUMNS, MANIFEST, write_table
from reelign.inference.generate import generate_clip
from reelign.models.load import MINIATURE
from reelign.sampling.sample import SampleConfig

PROMPT = "a large red circle moving left"
TINY = (
    "curate=null",
    "battery.count=4",
    "battery.validation_count=2",
    "sampler.steps=2",
    "sft.data=[{kind: miniature, count: 16}]",
    "sft.batch_size=4",
    "sft.steps=8",
    "sft.validate_every=4",
    "sft.save_every=4",
    "votes=null",
    "reward=null",
    "rlhf=null",
    "enhance=null",
    "distill=null",
)


def message(done: subprocess.CompletedProcess[str], status: int = 1) -> str:
    """The one message of a command that failed as it should."""
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.count("reelign:") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        (
            "",
            [
                "Usage:",
                "run",
                "sft",
                "curate",
                "generate",
                "evaluate",
                "enhance",
                "report",
                "doctor",
                "export",
                "pairs",
                "miniature",
                "reward",
            ],
        ),
        ("run", ["Run all stages of a recipe", "sft.steps=200"]),
        ("sft", ["supervised fine-tuning only", "sft.steps=200"]),
        ("curate", ["Turn real footage into a dataset", "--out", "--set"]),
        ("generate", ["Write one clip", "--out", "--seed", "--steps", "--guidance", "--frames", "--height", "--width"]),
        ("generate", ["--enhance", "--enhancer", "--served-name"]),
        ("evaluate", ["Judge a model on the battery", "--recipe", "--against", "--out", "--no-enhance"]),
        ("enhance", ["as the generator likes them", "--model", "--enhancer", "--served-name", "--file", "--out"]),
        ("report", ["summary.json of a run"]),
        ("doctor", ["before the hours are spent"]),
        ("export", ["as a plain diffusers folder", "--out", "--no-merge", "--format"]),
        ("pairs", ["Make pairs for a prompt enhancer", "--out", "--from", "--url"]),
        ("reward serve", ["Serve a reward of a recipe", "--token-variable", "--port"]),
        ("miniature", ["train", "check"]),
        ("miniature train", ["--out", "--parts"]),
        ("miniature check", ["--capacity", "--sft", "--count"]),
    ],
)
def test_every_verb_explains_itself(verb: str, words: list[str]) -> None:
    done = reelign(*verb.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert [word for word in words if word not in done.stdout] == []


def test_help_needs_no_heavy_library() -> None:
    """Help answers at once: torch is imported by the verbs that use it."""
    done = subprocess.run(
        [*command()[:1], "-c", "import sys, reelign.cli; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    assert done.stdout.strip() == "False"


def test_generate_writes_a_clip_and_the_same_one_for_the_same_seed(tmp_path: Path) -> None:
    first = reelign("generate", "miniature", PROMPT, "--out", tmp_path / "clip.mp4", "--seed", "0")
    assert first.returncode == 0, first.stderr
    assert "17 frames of 32 x 32" in first.stdout
    again = reelign("generate", "miniature", PROMPT, "--out", tmp_path / "new" / "again.mp4", "--seed", "0")
    assert again.returncode == 0, again.stderr
    clip = read_clip(tmp_path / "clip.mp4")
    assert (clip.frames.shape, clip.fps) == ((17, 32, 32, 3), 8.0)
    assert clip.frames.std() > 10
    assert clip.frames.tobytes() == read_clip(tmp_path / "new" / "again.mp4").frames.tobytes()
    generate_clip("miniature", PROMPT, tmp_path / "other.mp4", SampleConfig(), seed=1)
    assert not np.array_equal(clip.frames, read_clip(tmp_path / "other.mp4").frames)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "new", "other.mp4"]


def test_an_unknown_model_is_answered_with_the_kinds_of_names(tmp_path: Path) -> None:
    said = message(reelign("generate", "miniatur", PROMPT, "--out", tmp_path / "clip.mp4"))
    assert "there is no model 'miniatur'" in said
    assert "'miniature'" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_a_damaged_weight_file_is_named(tmp_path: Path, damage: str) -> None:
    shutil.copytree(MINIATURE, tmp_path / "model")
    weights = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "header":
        content[8:40] = b"\x00" * 32
    weights.write_bytes(content if damage == "header" else content[: len(content) // 2])
    said = message(reelign("generate", tmp_path / "model", PROMPT, "--out", tmp_path / "clip.mp4"))
    assert str(weights) in said
    assert "damaged" in said
    assert not (tmp_path / "clip.mp4").exists()


@pytest.mark.parametrize("option", [("--steps", "0"), ("--guidance", "-1"), ("--frames", "0"), ("--seed", "x")])
def test_an_option_out_of_range_is_a_usage_error(option: tuple[str, str]) -> None:
    done = reelign("generate", "miniature", PROMPT, *option)
    assert done.returncode == 2
    assert option[0] in done.stderr
    assert "Traceback" not in done.stderr


def test_an_empty_dataset_stops_a_run_before_it_trains(tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    write_table(dataset / MANIFEST, [], KEPT_COLUMNS)
    data = f"sft.data=[{{kind: dataset, path: {dataset}}}]"
    said = message(reelign("run", DEMO, *TINY, data, f"runs={tmp_path}"))
    assert f"the dataset {dataset} is empty" in said
    assert "audit.html" in said
    assert not (tmp_path / "demo" / "sft" / "model").exists()


def test_a_typo_in_a_recipe_is_answered_with_the_key(tmp_path: Path) -> None:
    said = message(reelign("run", DEMO, "sft.stpes=3", f"runs={tmp_path}"))
    assert "sft.stpes: unknown key; did you mean `steps`?" in said
    assert list(tmp_path.iterdir()) == []


def test_square_brackets_of_a_message_are_not_taken_for_markup(tmp_path: Path) -> None:
    assert "[red]run is no run" in message(reelign("report", tmp_path / "[red]run"))


def test_the_doctor_fails_with_its_findings() -> None:
    done = reelign("doctor", DEMO, "battery.frames=16")
    assert "each FAIL above says what to do" in message(done)
    assert "use 13 or 17" in done.stdout


def test_the_report_of_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    assert "run.json is missing" in message(reelign("report", tmp_path))


def wait_for(path: Path, words: str, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert process.poll() is None, "the run ended before it could be stopped"
        if path.exists() and words in path.read_text(encoding="utf-8"):
            return
        time.sleep(0.005)
    raise AssertionError(f"{words!r} never stood in {path}")


def rows(run: Path, key: str) -> list[int]:
    lines = (run / "sft" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["step"] for row in map(json.loads, lines) if key in row]


def test_a_second_ctrl_c_ends_a_run_at_once_and_says_which_command_goes_on(tmp_path: Path) -> None:
    """The first one waits for a place to stop, and the base model's long battery has none."""
    arguments = ["run", DEMO, *TINY, "battery.count=160", "sampler.steps=200", "name=r", f"runs={tmp_path}"]
    run = Fork(tmp_path / "log", *arguments)
    run.signal_when((tmp_path / "r" / "run.json").exists, signal.SIGINT)
    first = time.monotonic()
    run.signal_when(lambda: time.monotonic() > first + 0.5, signal.SIGINT)
    said = run.end(130)
    wanted = f"what the run has saved is kept, and this goes on from there: reelign run {DEMO} "
    assert wanted in said
    assert said.endswith(f"name=r runs={tmp_path}")
    assert " 'sft.data=[{kind: miniature" in said  # as a shell takes it
    assert "Traceback" not in said


def test_ctrl_c_ends_another_command_with_one_line(tmp_path: Path) -> None:
    out, recipe = tmp_path / "out", ("--recipe", DEMO, "battery.count=160", "sampler.steps=50")
    fork = Fork(tmp_path, "evaluate", "miniature", "--out", out, *recipe)
    fork.signal_when((out / "model" / "samples").exists, signal.SIGINT)
    said = fork.end(130)
    assert said.endswith("reelign: stopped.")
    assert "Traceback" not in said


def test_ctrl_c_keeps_what_was_done_and_the_same_command_finishes(tmp_path: Path) -> None:
    run = tmp_path / "demo"
    arguments = ["run", DEMO, *TINY, "sft.steps=24", "sft.validate_every=12", "sft.save_every=24", f"runs={tmp_path}"]
    process = subprocess.Popen(
        command(*arguments), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(run / "sft" / "metrics.jsonl", '"step": 2,', process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    said = message(subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr))
    assert "as asked; the same command goes on from here" in said
    stopped = rows(run, "loss")[-1]
    assert f"stopped after step {stopped}" in said
    assert 2 <= stopped < 24
    assert (run / "sft" / "checkpoints" / f"step-{stopped:08d}" / "manifest.json").exists()
    before = (run / "sft" / "metrics.jsonl").read_text(encoding="utf-8")
    base = (run / "base" / "stage.json").stat().st_mtime_ns

    again = reelign(*arguments)
    assert again.returncode == 0, again.stderr
    assert (run / "sft" / "metrics.jsonl").read_text(encoding="utf-8").startswith(before)
    assert rows(run, "loss") == list(range(1, 25))
    assert (run / "base" / "stage.json").stat().st_mtime_ns == base
    assert (run / "report" / "index.html").exists()
    assert "Cost of the whole run" in again.stdout
    phases = [json.loads(line) for line in (run / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum(row["clips"] for row in phases if row["phase"] == "sft/train") == 24 * 4
