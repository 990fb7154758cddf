"""What a stream's decoder gives block after block is what decoding the whole video gives."""

import pytest
import torch
from torch import Tensor

from reelign.errors import ReelignError
from reelign.models.base import VideoModel
from reelign.models.load import load_model
from tiny_wan import tiny_wan

BLOCKS = [(1,) * 9, (3, 3, 3), (1, 4, 2, 2), (9,)]


@pytest.fixture(scope="module", params=["miniature", "2.1", "2.2-5b"])
def model(request, tmp_path_factory) -> VideoModel:
    if request.param == "miniature":
        return load_model("miniature", device="cpu")
    return load_model(tiny_wan(tmp_path_factory.mktemp("wan") / "model", request.param), device="cpu")


def latents(model: VideoModel, frames: int = 9, batch: int = 1, seed: int = 3) -> Tensor:
    channels = model.latent_shape(1, 64, 64)[0]
    return torch.randn(batch, channels, frames, 4, 4, generator=torch.Generator().manual_seed(seed))


def streamed(model: VideoModel, video: Tensor, blocks: tuple[int, ...]) -> list[Tensor]:
    decoder = model.decoder()
    return [decoder(part) for part in video.split(list(blocks), 2)]


@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
def test_the_frames_are_those_of_the_whole(model, blocks):
    """A convolution over fewer frames may add its terms in another order: a rounding may fall to the other side."""
    video = latents(model)
    wanted, found = model.decode(video), torch.cat(streamed(model, video, blocks), 1)
    assert found.dtype == torch.uint8
    assert found.shape == wanted.shape == (1, 33, *wanted.shape[2:])
    difference = (found.int() - wanted.int()).abs()
    assert int(difference.max()) <= 1
    assert float((difference > 0).float().mean()) < 1e-3
    assert float(wanted.float().std()) > 5


def test_the_first_latent_frame_is_one_frame_and_each_later_one_is_a_stride(model):
    assert [len(part[0]) for part in streamed(model, latents(model), (1, 2, 3, 3))] == [1, 8, 12, 12]


def test_streams_may_take_turns_and_the_whole_decode_comes_between(model):
    first, second = latents(model), latents(model, seed=4)
    alone = [torch.cat(streamed(model, video, (3, 3, 3)), 1) for video in (first, second)]
    decoders, parts = (model.decoder(), model.decoder()), ([], [])
    for pieces in zip(first.split(3, 2), second.split(3, 2), strict=True):
        for decoder, part, piece in zip(decoders, parts, pieces, strict=True):
            part.append(decoder(piece))
            model.decode(latents(model, 2, seed=5))
    assert all(torch.equal(torch.cat(part, 1), wanted) for part, wanted in zip(parts, alone, strict=True))


def test_each_row_of_a_batch_is_decoded_as_if_alone(model):
    video = latents(model, batch=2)
    both = torch.cat(streamed(model, video, (3, 3, 3)), 1)
    for row in range(2):
        alone = torch.cat(streamed(model, video[row : row + 1], (3, 3, 3)), 1)
        assert int((both[row].int() - alone[0].int()).abs().max()) <= 1


def test_what_is_kept_does_not_grow(model):
    decoder, sizes = model.decoder(), []
    for _ in range(20):
        decoder(latents(model, 1))
        sizes.append(decoder.nbytes)
    assert sizes[0] > 0
    assert len(set(sizes[3:])) == 1


def test_tiles_are_refused(tmp_path):
    model = load_model(tiny_wan(tmp_path / "model"), device="cpu")
    model.pipeline.vae.enable_tiling()
    with pytest.raises(ReelignError, match="without tiles"):
        model.decoder()
