"""The doctor finds before a run what would stop it, and each finding that fails says what to do."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from command import DEMO
from reelign.data.clip import write_clip
from reelign.data.manifest import KEPT_COLUMNS, MANIFEST, write_table
from reelign.doctor import Finding, examine
from reelign.miniature.pairs import CLEAN, pairs
from reelign.recipe import load_recipe

SMALL = ("curate=null", "sft.data=[{kind: miniature, count: 16}]")


def findings(*overrides: str) -> dict[str, Finding]:
    found = examine(
        load_recipe(DEMO, ["votes=null", "reward=null", "rlhf=null", "enhance=null", "distill=null", *overrides])
    )
    assert len({finding.check for finding in found}) == len(found)
    return {finding.check: finding for finding in found}


def failed(*overrides: str) -> dict[str, str]:
    return {check: finding.sentence for check, finding in findings(*overrides).items() if not finding.passed}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three real clips with a manifest."""
    from hashlib import sha256

    folder = tmp_path / "dataset"
    rows = []
    for number, pair in enumerate(pairs(3, CLEAN, 5)):
        path = folder / "clips" / f"{number}.mp4"
        write_clip(path, pair.frames, 8.0)
        digest = sha256(path.read_bytes()).hexdigest()
        facts = {"id": str(number), "path": f"clips/{number}.mp4", "caption": pair.caption, "source": f"{number}.mov"}
        size = {"fps": 8.0, "frames": 17, "height": 32, "width": 32, "seconds": 17 / 8}
        rows.append(facts | size | {"sha256": digest, "source_start": 0.0, "source_end": 17 / 8})
    write_table(folder / MANIFEST, rows, KEPT_COLUMNS)
    return folder


def source(dataset: Path) -> str:
    return f"sft.data=[{{kind: dataset, path: {dataset}}}]"


def test_the_demo_passes_every_finding() -> None:
    found = findings()
    assert [check for check, finding in found.items() if not finding.passed] == []
    checks = ["device", "model", "footage", "battery size", "sampler", "sft.data.0", "sft.data.1", "batch"]
    assert list(found) == [*checks, "memory", "shards", "disk"]
    assert "video files" in found["footage"].sentence
    assert found["batch"].sentence == "32 = 1 ranks x 1 passes x 32."


def test_the_doctor_changes_nothing(tmp_path: Path) -> None:
    findings(f"runs={tmp_path}/runs", "sft.method=lora")
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_does_not_divide_names_both_keys() -> None:
    assert failed(*SMALL, "sft.batch_size=10", "sft.accumulate=4") == {
        "batch": "sft.batch_size=10 does not divide over 1 ranks x sft.accumulate=4."
    }


def test_the_ranks_that_torchrun_would_start_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert failed(*SMALL, "sft.batch_size=32") == {
        "batch": "sft.batch_size=32 does not divide over 3 ranks x sft.accumulate=1."
    }
    assert failed(*SMALL, "sft.batch_size=33") == {}


def test_a_lora_target_that_matches_nothing_is_answered_with_near_names() -> None:
    said = failed(*SMALL, "sft.method=lora", "sft.lora.targets=[to_q, to_qq]")
    assert list(said) == ["LoRA coverage"]
    assert "'to_qq' matches no linear layer" in said["LoRA coverage"]
    assert "to_q" in said["LoRA coverage"].partition("Near names:")[2]


def test_lora_coverage_is_counted() -> None:
    sentence = findings(*SMALL, "sft.method=lora", "sft.lora.targets=[to_q, ffn.net.2]")["LoRA coverage"].sentence
    assert sentence == "12 modules carry an adapter: to_q 8, ffn.net.2 4."  # four blocks, self and cross attention


def test_a_missing_dataset_names_the_command_that_makes_one(tmp_path: Path) -> None:
    said = failed("curate=null", source(tmp_path / "none"))
    assert list(said) == ["sft.data.0"]
    assert f"reelign curate FOOTAGE --out {tmp_path / 'none'}" in said["sft.data.0"]


def test_a_dataset_that_nobody_curates_is_named() -> None:
    said = failed("curate=null")
    assert list(said) == ["sft.data.1"]
    assert "sft.data.1.path is not given" in said["sft.data.1"]
    assert "`curate:`" in said["sft.data.1"]


def test_a_dataset_on_disk_passes(dataset: Path) -> None:
    found = findings("curate=null", source(dataset))["sft.data.0"]
    assert found.passed, found.sentence
    assert found.sentence.startswith("3 clips, all captioned")


def test_clips_that_are_gone_or_changed_are_counted_and_named(dataset: Path) -> None:
    (dataset / "clips" / "1.mp4").unlink()
    (dataset / "clips" / "2.mp4").write_bytes((dataset / "clips" / "0.mp4").read_bytes())
    said = failed("curate=null", source(dataset))["sft.data.0"]
    assert "2 clips are gone or changed" in said
    assert "clips/1.mp4" in said
    assert "curate again" in said


def test_an_empty_dataset_says_where_the_reasons_are(dataset: Path) -> None:
    write_table(dataset / MANIFEST, [], KEPT_COLUMNS)
    assert pq.read_table(dataset / MANIFEST).num_rows == 0
    said = failed("curate=null", source(dataset))["sft.data.0"]
    assert "is empty" in said
    assert "audit.html" in said


def test_a_damaged_manifest_is_a_finding(dataset: Path) -> None:
    (dataset / MANIFEST).write_bytes(b"PAR1 no more")
    assert "damaged or unreadable" in failed("curate=null", source(dataset))["sft.data.0"]


def test_a_bucket_that_does_not_fit_the_autoencoder_is_found(dataset: Path) -> None:
    bucket = "sft.data.0.buckets=[{frames: 17, height: 36, width: 32}]"
    said = failed("curate=null", source(dataset), bucket)
    assert list(said) == ["sft.data.0"]
    assert "height 36 does not fit" in said["sft.data.0"]


def test_frames_that_are_not_4n_plus_1_are_answered_with_the_nearest_that_are() -> None:
    said = failed(*SMALL, "battery.frames=16")
    assert "16 frames do not fit" in said["battery size"]
    assert "use 13 or 17" in said["battery size"]


@pytest.mark.parametrize("name", ["miniatur", "runs/none/sft/model", "/no/such/model"])
def test_a_missing_model_is_answered_with_the_kinds_of_names(name: str) -> None:
    said = failed(*SMALL, f"model={name}")
    assert list(said) == ["model"]
    assert f"there is no model '{name}'" in said["model"]
    assert "'miniature', an artifact of a run" in said["model"]


def test_a_model_with_a_damaged_file_is_named(tmp_path: Path) -> None:
    from reelign.models.load import MINIATURE

    shutil.copytree(MINIATURE, tmp_path / "model")
    weights = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    said = failed(*SMALL, f"model={tmp_path / 'model'}")
    assert list(said) == ["model"]
    assert str(weights) in said["model"]


def test_missing_or_empty_footage_is_found(tmp_path: Path) -> None:
    assert f"no folder {tmp_path / 'none'}" in failed(f"curate.footage={tmp_path / 'none'}")["footage"]
    (tmp_path / "notes.txt").write_text("no film")
    assert "holds no video file" in failed(f"curate.footage={tmp_path}")["footage"]


def test_another_shift_than_the_checkpoints_is_mentioned() -> None:
    found = findings(*SMALL, "sampler.shift=5.0")["sampler"]
    assert found.passed
    assert "shift 5. The checkpoint ships shift 3" in found.sentence


def test_bfloat16_without_a_gpu_is_advised_against(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    said = failed(*SMALL, "dtype=bfloat16")
    assert list(said) == ["device"]
    assert "set dtype=float32" in said["device"]


def test_a_batch_beyond_the_memory_says_what_to_lower() -> None:
    said = failed(*SMALL, "sft.batch_size=1000000")
    assert list(said) == ["memory"]
    assert "Lower sft.batch_size or raise sft.accumulate" in said["memory"]
    assert failed(*SMALL, "sft.batch_size=1000000", "sft.accumulate=100000") == {}
