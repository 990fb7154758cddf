"""What a user may name as an entrant, and a new study made of that: `reelign judge new A B --battery F`.

An entrant is an evaluation with kept clips, a model that is sampled now, or a folder of captioned clips. A model is
sampled as it would be deployed: with its own sampler, and through the prompt enhancer that it carries.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from reelign.data.clip import write_clip
from reelign.data.manifest import MANIFEST, read_manifest
from reelign.data.prompts import read_prompts
from reelign.enhancer.enhancer import load_enhancer
from reelign.errors import ReelignError
from reelign.evaluate.battery import BatteryConfig, generate_batch, tasks
from reelign.evaluate.evaluation import Evaluation
from reelign.feedback.clips import Progress
from reelign.feedback.database import check_database
from reelign.feedback.entrants import Entrant, Sample
from reelign.feedback.study import StudySettings, add_raters, check_names, make_study, read_links
from reelign.feedback.vote import read_votes
from reelign.models.load import enhancer_folder, load_model
from reelign.sampling.sample import SampleConfig, own_sampler

EVALUATION = "evaluation.json"
LOSSLESS = 0
"""Quality of clips on their way into a study, which compresses them once."""
Config = TypeVar("Config", bound=BaseModel)


def new_study(
    sources: Sequence[str],
    battery: Path | None,
    out: Path,
    raters: Sequence[str] | int,
    settings: StudySettings,
    database: str | None = None,
    known: Path | None = None,
    progress: Progress | None = None,
) -> list[tuple[str, str]]:
    """Make a study with its raters.

    Args:
        sources: at least two entrants; see `entrant_of`.
        battery: a YAML file with the key `battery:` (a recipe, for example) or a list of prompts; by default the
            miniature's battery. Only models that are sampled now need it.
        out: the folder of the study.
        raters: their names, or how many there are.
        settings: of the study.
        database: where votes are kept, if not in the study's folder.
        known: a file of votes with known answers, which become gold pairs.
        progress: told what is done.

    Returns:
        Name and path of the personal link of each rater, which are also in `links.txt`.

    Raises:
        ReelignError: a source is none, entrants do not fit together, or the place or the database will not do.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ReelignError(f"{out} exists already. Choose another place for the new study, or delete it.")
    if len(sources) < 2:
        raise ReelignError(f"a study compares two entrants or more, not {len(sources)}: reelign judge new A B.")
    if database is not None:
        check_database(database)
    config, sampler = read_battery(battery)
    names = raters if not isinstance(raters, int) else [f"rater-{number}" for number in range(1, raters + 1)]
    if not names or len(set(names)) < len(names):
        raise ReelignError("a study needs at least one rater, and each needs a name of its own.")
    check_names(names)
    votes = read_votes(known) if known is not None else []
    with tempfile.TemporaryDirectory(prefix="reelign-") as scratch:
        called = distinct([name_of(source) for source in sources])
        entrants = [
            entrant_of(source, name, config, sampler, Path(scratch) / str(place), progress)
            for place, (source, name) in enumerate(zip(sources, called, strict=True))
        ]
        study = make_study(out, entrants, settings, database, votes, progress)
    try:
        add_raters(study, names)
        return read_links(study)
    finally:
        study.store.database.close()


def entrant_of(
    source: str,
    name: str,
    battery: BatteryConfig,
    sampler: SampleConfig | None,
    scratch: Path,
    progress: Progress | None = None,
) -> Entrant:
    """The entrant that a source stands for.

    Args:
        source: a folder with an `evaluation.json` whose clips were kept, a dataset of captioned clips, or a model: the
            word 'miniature', an artifact, a diffusers folder or a hub id.
        name: of the entrant.
        battery: what a model is asked for, and with which seeds; a size that it leaves open is the model's own.
        sampler: how a model is sampled that has no sampler of its own; by default as its card says.
        scratch: a folder for clips that are sampled.
        progress: told of each batch.

    Raises:
        ReelignError: the source is none of these, or clips are missing.
    """
    folder = Path(source)
    if (folder / EVALUATION).is_file():
        return Entrant(name, _kept(folder))
    if (folder / MANIFEST).is_file():
        return Entrant(name, _captioned(folder))
    return Entrant(name, _sampled(source, battery, sampler, scratch, progress))


def read_battery(path: Path | None) -> tuple[BatteryConfig, SampleConfig | None]:
    """The battery, and the sampler if a file names one.

    Raises:
        ReelignError: the file cannot be read, or a key of its battery or sampler makes no sense.
    """
    if path is None:
        return BatteryConfig(), None
    if path.suffix.lower() not in (".yaml", ".yml"):
        count = len(read_prompts(path))
        return _config(path, "battery", BatteryConfig, {"judge": "pixels", "prompts": path, "count": count}), None
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ReelignError(f"{path} is not a readable YAML file: {error}") from error
    if not isinstance(values, dict) or "battery" not in values:
        raise ReelignError(f"{path} names no battery: expected the key `battery:` at the top, as in a recipe.")
    battery = _config(path, "battery", BatteryConfig, values["battery"] or {})
    sampler = values.get("sampler")
    return battery, None if sampler is None else _config(path, "sampler", SampleConfig, sampler)


def name_of(source: str) -> str:
    """What an entrant is called: the folder of its run and stage, without what all artifacts share."""
    parts = [part for part in Path(source).parts if part not in ("/", ".", "..", "model", "runs")]
    return "/".join(parts[-2:]) if Path(source).exists() else source


def distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number where one occurs again."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        while seen[name] > 1 and f"{name} ({seen[name]})" in names:
            seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def _kept(folder: Path) -> list[Sample]:
    evaluation = Evaluation.load(folder / EVALUATION)
    kept = [item for item in evaluation.items if item.clip is not None]
    if not kept:
        raise ReelignError(f"{folder} kept no clips: evaluate again with `battery.keep_clips` set.")
    ids = _ids(item.prompt for item in kept)
    samples = [
        Sample(one, item.prompt, folder / str(item.clip), item.seed) for one, item in zip(ids, kept, strict=True)
    ]
    if missing := [sample.file for sample in samples if not sample.file.is_file()]:
        raise ReelignError(f"{folder} lacks {len(missing)} of its clips, the first is {missing[0]}.")
    return samples


def _captioned(folder: Path) -> list[Sample]:
    rows = read_manifest(folder)
    if blank := [row["path"] for row in rows if not (row["caption"] or "").strip()]:
        raise ReelignError(f"{folder}: {len(blank)} clips have no caption, the first is {blank[0]}; raters need words.")
    ids = _ids(row["caption"] for row in rows)
    return [Sample(one, row["caption"], folder / row["path"]) for one, row in zip(ids, rows, strict=True)]


def _sampled(
    source: str, battery: BatteryConfig, sampler: SampleConfig | None, scratch: Path, progress: Progress | None
) -> list[Sample]:
    model, carried, todo = load_model(source), enhancer_folder(source), tasks(battery)
    native = {name: getattr(model.native_size, name) for name in ("frames", "height", "width", "fps")}
    battery = battery.model_copy(update={name: native[name] for name in native.keys() - battery.model_fields_set})
    scale = 1.0 if model.causal is not None else model.native_size.guidance_scale
    plain = SampleConfig(shift=model.scheduler_shift, guidance_scale=scale)
    chosen = own_sampler(model) or sampler or plain
    rewrites = load_enhancer(str(carried))([task.prompt for task in todo]) if carried is not None else []
    said = {rewrite.prompt: rewrite.text for rewrite in rewrites}
    ids, samples = _ids(task.prompt for task in todo), list[Sample]()
    for start in range(0, len(todo), battery.batch_size):
        batch = todo[start : start + battery.batch_size]
        asked = [(said.get(task.prompt, task.prompt), task.id) for task in batch]
        frames, _ = generate_batch(model, asked, battery, chosen, battery.seed)
        for task, video in zip(batch, frames, strict=True):
            file = scratch / f"{len(samples)}.mp4"
            write_clip(file, video, battery.fps, LOSSLESS)
            samples.append(Sample(ids[len(samples)], task.prompt, file, battery.seed))
        if progress is not None:
            progress(f"sample {source}", len(samples), len(todo), "")
    return samples


def _ids(prompts: Iterable[str]) -> list[str]:
    """Ids that follow from the words; a prompt that comes again gets a number."""
    seen: Counter[str] = Counter()
    found = []
    for prompt in prompts:
        key = hashlib.sha256(" ".join(prompt.split()).encode("utf-8", "replace")).hexdigest()[:12]
        seen[key] += 1
        found.append(f"{key}-{seen[key]}")
    return found


def _config(path: Path, key: str, kind: type[Config], values: Any) -> Config:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in (key, *first["loc"]))
        raise ReelignError(f"{path}: {place}: {first['msg']} (given: {first['input']!r})") from None
