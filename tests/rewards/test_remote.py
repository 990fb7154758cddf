"""Rewards behind a real `reelign reward serve`: equal to the last bit, and no harm when it misbehaves or dies."""

import http.client
import json
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from checkpoints import newest_weights
from command import DEMO, TINY, reelign
from forks import Fork
from reelign.data.clip import Clip
from reelign.data.endpoint import EndpointError, exchange
from reelign.errors import ReelignError
from reelign.miniature.captions import full_prompt
from reelign.miniature.render import defective, render
from reelign.miniature.world import FPS, scenes
from reelign.rewards.base import Needs, Range, RewardError, RewardSet, Weighted
from reelign.rewards.miniature import MiniatureReward
from reelign.rewards.recipe import FunctionEntry, RemoteEntry, build_rewards
from reelign.rewards.remote import Remote
from reelign.rewards.serve import is_local
from reelign.rewards.wire import WireClip

MOODY = '''
"""A reward whose prompts say how it behaves."""
import os, pathlib, time
import numpy as np
from reelign.rewards.base import RewardError

NOTES = pathlib.Path(os.environ["NOTES"])

def reward(clips):
    with (NOTES / "scored").open("a") as file:
        file.write("".join(f"{clip.id}\\n" for clip in clips))
    if any(clip.prompt == "hang" for clip in clips):
        while not (NOTES / "release").exists():
            time.sleep(0.02)
    if bad := [clip.id for clip in clips if clip.prompt == "busy"]:
        raise RewardError("moody", bad, "too busy", passing=True)
    value = lambda clip: float("nan") if clip.prompt == "nan" else float(clip.frames.astype(float).std()) / 3
    return {"spread": [value(clip) for clip in clips], "frames": [len(clip.frames) / clip.fps for clip in clips]}
'''
MOODY_ENTRY = {
    "kind": "function",
    "path": "moody_service.reward",
    "dimensions": {"spread": [0, 255], "frames": [float("-inf"), float("inf")]},
    "weights": {"spread": 1},
    "fps": 3,
    "frames": 4,
    "side": 12,
}


def free_port() -> int:
    """Below the ports that the system gives to clients: none of them takes it while its service is away."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no port is free")


def recipe(folder: Path, *rewards: dict) -> Path:
    path = folder / "served.yaml"
    prompts = [{"kind": "miniature", "count": 1}]
    settings = {"name": "r", "model": "miniature", "rlhf": {"prompts": prompts, "rewards": list(rewards)}}
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


@contextmanager
def served(path: Path, port: int, *more: str, **extra: str):
    """`reelign reward serve` from its first answer on; killed at the end."""
    service = Fork(path.parent, "reward", "serve", path, "--port", str(port), *more, **extra)
    try:
        until = time.monotonic() + 300
        while True:
            try:
                exchange(f"http://127.0.0.1:{port}/health", seconds=5)
                break
            except EndpointError:
                assert not service.ended, service.said
                assert time.monotonic() < until
                time.sleep(0.05)
        yield service
    finally:
        service.kill()


@pytest.fixture(scope="module")
def moody(tmp_path_factory):
    """A service with a token, a limit of 1 MiB and moods; its port and its notes."""
    folder, port = tmp_path_factory.mktemp("moody"), free_port()
    (folder / "moody_service.py").write_text(MOODY)
    path = recipe(folder, {"kind": "miniature"}, MOODY_ENTRY)
    extra = {"PYTHONPATH": str(folder), "NOTES": str(folder), "SECRET": "sesame"}
    with served(path, port, "--reward", "moody_service.reward", "--token-variable", "SECRET", "--limit", "1", **extra):
        yield port, folder


def client(port: int, **more) -> Remote:
    settings = {"kind": "remote", "url": f"http://127.0.0.1:{port}/", "weights": {"spread": 1}, "patience": 0}
    found = RemoteEntry.model_validate(settings | {"token_variable": "SECRET"} | more).build()
    assert isinstance(found, Remote)
    return found


def noise(name: str, prompt: str = "", frames: int = 17, side: int = 24) -> Clip:
    generator = np.random.default_rng(sum(map(ord, name)))
    return Clip(generator.integers(0, 256, (frames, side, side + 8, 3), np.uint8), 8.0, prompt, name)


def world(count: int) -> list[Clip]:
    generator = np.random.default_rng(1)
    chosen = scenes(False)[:: len(scenes(False)) // count][:count]
    videos = [
        defective(scene, generator, "noise") if place % 2 else render(scene, generator)
        for place, scene in enumerate(chosen)
    ]
    return [Clip(video, FPS, full_prompt(scene).text, scene.id) for scene, video in zip(chosen, videos, strict=True)]


def test_a_clip_travels_without_loss():
    for sent in (noise("a", 'an "odd"\nprompt \N{FACE WITH TEARS OF JOY}'), noise("b", frames=1, side=1)):
        found = WireClip.model_validate_json(WireClip.pack(sent).model_dump_json()).unpack()
        assert np.array_equal(found.frames, sent.frames)
        assert (found.fps, found.prompt, found.id) == (sent.fps, sent.prompt, sent.id)


def test_the_contract_is_the_rewards_own_and_only_what_it_needs_travels(moody, monkeypatch):
    port, folder = moody
    monkeypatch.setenv("SECRET", "sesame")
    monkeypatch.setenv("NOTES", str(folder))
    monkeypatch.syspath_prepend(folder)
    remote = client(port, batch=2)
    assert remote.name == "moody_service.reward"
    assert remote.dimensions == {"spread": Range(0, 255), "frames": Range()}
    assert remote.needs == Needs(fps=3, frames=4, side=12)
    local = FunctionEntry.model_validate(MOODY_ENTRY).build()
    clips = [noise(name) for name in "abcde"]
    assert {name: values.tolist() for name, values in remote(clips).items()} == {
        name: values.tolist() for name, values in local(clips).items()
    }
    assert client(port, name="mine").name == "mine"
    with pytest.raises(
        ReelignError, match=r"'moody_service\.reward' has no dimension 'beauty'; it scores spread, frames"
    ):
        Weighted(remote, {"beauty": 1.0})


def test_a_failure_of_the_served_reward_is_the_clients_with_the_same_clips(moody, monkeypatch):
    monkeypatch.setenv("SECRET", "sesame")
    remote = client(moody[0])
    with pytest.raises(RewardError, match="spread is nan") as caught:
        remote([noise("fine"), noise("bad", "nan"), noise("good")])
    assert (caught.value.clips, caught.value.passing) == (("bad",), False)
    with pytest.raises(RewardError, match="too busy") as caught:
        remote([noise("fine"), noise("full", "busy")])
    assert (caught.value.clips, caught.value.passing) == (("full",), True)


@pytest.mark.parametrize("token", ["", "open", "sesame!", "s\N{LATIN SMALL LETTER E WITH ACUTE}same"])
def test_a_wrong_token_is_refused_and_health_needs_none(moody, monkeypatch, token):
    monkeypatch.setenv("SECRET", token)
    with pytest.raises(ReelignError, match=r"refuses the token in \$SECRET"):
        client(moody[0], patience=60)
    with pytest.raises(EndpointError, match="answers 401") as caught:
        exchange(f"http://127.0.0.1:{moody[0]}/score", {"clips": []}, token=token, seconds=5)
    assert not caught.value.passing
    health = exchange(f"http://127.0.0.1:{moody[0]}/health", seconds=5)
    assert health == {"status": "ready", "reward": "moody_service.reward"}


def test_a_reward_that_hangs_is_a_passing_failure_and_who_has_gone_is_not_scored(moody, monkeypatch):
    port, folder = moody
    monkeypatch.setenv("SECRET", "sesame")
    remote = client(port, seconds=0.5)
    for clip in (noise("stuck", "hang"), noise("behind")):
        with pytest.raises(RewardError, match=r"no answer within 0\.5 s") as caught:
            remote([clip])
        assert (caught.value.clips, caught.value.passing) == ((clip.id,), True)
    (folder / "release").touch()
    assert client(port)([noise("after")])["spread"].shape == (1,)
    notes = (folder / "scored").read_text().split()
    assert "stuck" in notes
    assert "behind" not in notes


def test_a_request_that_is_too_large_is_refused_by_both_ends(moody, monkeypatch):
    port, _ = moody
    monkeypatch.setenv("SECRET", "sesame")
    remote = client(port, batch=3)
    clips = [noise(name, "x" * 400_000) for name in "abc"]
    with pytest.raises(RewardError, match=r"has 1\.2 MiB and .* takes 1\.0 MiB: lower `batch`") as caught:
        remote(clips)
    assert (caught.value.clips, caught.value.passing) == (("a", "b", "c"), False)
    assert client(port, batch=2)(clips)["spread"].shape == (3,)
    headers = {"Authorization": "Bearer sesame"}
    for sent in ({"Content-Length": str(2**21)}, {"Transfer-Encoding": "chunked"}):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.putrequest("POST", "/score")
        for name, value in (headers | sent).items():
            connection.putheader(name, value)
        connection.endheaders()
        if "Transfer-Encoding" in sent:
            connection.send(b"%x\r\n" % (2**20 + 1) + b"x" * (2**20 + 1) + b"\r\n")
        answer = connection.getresponse()
        assert answer.status == 413
        assert "more than 1048576 bytes" in json.load(answer)["error"]["reason"]
        connection.close()


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"clips": []},
        {"clips": [{"id": "a", "prompt": "", "fps": 8, "frames": ["no base64!"]}]},
        {"clips": [{"id": "a", "prompt": "", "fps": 8, "frames": ["bm8gUE5H"]}]},
        {"clips": [{"id": "a", "prompt": "", "fps": 0, "frames": ["bm8gUE5H"]}]},
        {"clips": [{"id": "a", "prompt": "", "fps": 8, "frames": ["bm8gUE5H"], "code": "x"}]},
    ],
)
def test_a_request_that_makes_no_sense_is_told_so(moody, body):
    with pytest.raises(EndpointError) as caught:
        exchange(f"http://127.0.0.1:{moody[0]}/score", body, token="sesame", seconds=20)
    assert caught.value.status == 400
    assert not caught.value.passing
    assert caught.value.answer["error"]["reason"].startswith("the request ")


def test_a_killed_service_comes_back_and_nothing_is_lost(tmp_path):
    """Killed between two calls of a series; the third call meets nobody, waits, and finds the new service."""
    path, port, clips = recipe(tmp_path, {"kind": "miniature"}), free_port(), world(24)
    wanted = MiniatureReward()(clips)
    parts = [clips[start : start + 6] for start in range(0, 24, 6)]
    found: list[dict[str, np.ndarray]] = []
    with served(path, port) as service:
        entry = RemoteEntry.model_validate(
            {"kind": "remote", "url": f"http://127.0.0.1:{port}", "weights": {"text": 1}, "batch": 4}
        )
        rewards = build_rewards([entry])
        found += [rewards(part) for part in parts[:2]]
        service.kill()
        with ThreadPoolExecutor(1) as pool:
            rest = pool.submit(lambda: [rewards(part) for part in parts[2:]])
            with served(path, port):
                found += rest.result()
    for name, values in wanted.items():
        assert np.concatenate([part[f"miniature.{name}"] for part in found]).tolist() == values.tolist()


def test_a_service_that_stays_away_or_comes_back_as_another_stops_the_run(tmp_path):
    path, port = recipe(tmp_path, {"kind": "miniature"}, {"kind": "pixels", "weights": {"sharpness": 1}}), free_port()
    with served(path, port) as service:
        remote = Remote(f"http://127.0.0.1:{port}", patience=0)
        waited: list[float] = []
        rewards = RewardSet([Weighted(remote, {"text": 1.0})], wait=waited.append)
        service.kill()
        with pytest.raises(RewardError, match="Connection refused"):
            rewards(world(2))
        assert len(waited) == 3
    with served(path, port, "--reward", "pixels"), pytest.raises(RewardError, match="another contract") as caught:
        rewards(world(2))
    assert not caught.value.passing


def test_no_service_is_one_message():
    with pytest.raises(ReelignError, match=r"Connection refused\. Is `reelign reward serve` running there\?"):
        Remote("http://127.0.0.1:9", patience=0)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--host", "0.0.0.0"), "0.0.0.0 is open to other machines: put a token"),
        (("--reward", "1"), "name one by its number: 0 (pixels)"),
        (("rlhf=null",), "has no `rlhf:` stage"),
    ],
)
def test_what_cannot_be_served_is_one_message(tmp_path, more, said):
    path = recipe(tmp_path, {"kind": "pixels", "weights": {"sharpness": 1}})
    done = reelign("reward", "serve", path, *more, REELIGN_REWARD_TOKEN="")
    assert done.returncode == 1
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_only_this_machines_own_addresses_need_no_token():
    assert all(map(is_local, ("localhost", "127.0.0.1", "127.1.2.3", "::1")))
    assert not any(map(is_local, ("0.0.0.0", "::", "192.0.2.1", "example.org", "")))


def test_a_taken_port_and_a_missing_extra_are_one_message_each(tmp_path):
    path = recipe(tmp_path, {"kind": "pixels", "weights": {"sharpness": 1}})
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = reelign("reward", "serve", path, "--port", str(other.getsockname()[1]))
    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    (tmp_path / "fastapi.py").write_text("raise ImportError('not installed')")
    done = reelign("reward", "serve", path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "pip install 'reelign[serve]'" in done.stderr
    assert "Traceback" not in done.stderr


TRAINED = {
    "prompts": [{"kind": "miniature", "count": 6}],
    "updates": 4,
    "prompts_per_update": 2,
    "group_size": 4,
    "micro_batch": 4,
    "validate_every": 2,
    "save_every": 1,
    "patience": None,
    "optim": {"lr": 1e-3},
}
FRAGILE = '''
"""The miniature's judge; its first process notes that it has a request in hand, and then never answers it."""
import os, pathlib, time
from reelign.rewards.miniature import MiniatureReward

NOTES, judge, calls = pathlib.Path(os.environ["NOTES"]), MiniatureReward(), []

def reward(clips):
    calls.append(1)
    if len(calls) == 10 and not (NOTES / "stuck").exists():
        (NOTES / "stuck").touch()
        time.sleep(600)
    with (NOTES / "processes").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    return judge.score(clips)
'''


def test_a_run_whose_service_is_killed_at_work_ends_in_the_bits_of_a_local_reward(tmp_path):
    (tmp_path / "fragile.py").write_text(FRAGILE)
    ranges = {name: [0, 1] for name in ("text", "visual", "motion")}
    weights = dict.fromkeys(ranges, 1)
    own = {"kind": "function", "path": "fragile.reward", "dimensions": ranges, "weights": weights}
    path = recipe(tmp_path, own | {"fps": FPS, "frames": 17, "side": 32})
    extra = {"PYTHONPATH": str(tmp_path), "NOTES": str(tmp_path)}
    port = free_port()
    remote = {"kind": "remote", "url": f"http://127.0.0.1:{port}", "weights": weights, "batch": 3}

    def arguments(folder: str, reward: dict) -> list[str | Path]:
        stage = json.dumps(TRAINED | {"rewards": [reward]})
        return ["rlhf", DEMO, *TINY, "sft=null", f"rlhf={stage}", f"runs={tmp_path / folder}", "name=r"]

    with served(path, port, **extra) as service:
        run = Fork(tmp_path / "said", *arguments("remote", remote))
        until = time.monotonic() + 300
        while not (tmp_path / "stuck").exists():
            assert not run.ended, run.said
            assert time.monotonic() < until
            time.sleep(0.02)
        service.kill()
    with served(path, port, **extra):
        run.end(0)
    assert len(set((tmp_path / "processes").read_text().split())) == 2
    local = reelign(*arguments("local", {"kind": "miniature"}), CUDA_VISIBLE_DEVICES="")
    assert local.returncode == 0, local.stderr
    found, wanted = (newest_weights(tmp_path / name / "r" / "rlhf") for name in ("remote", "local"))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
