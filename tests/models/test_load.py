import json
import shutil

import pytest

from reelign.errors import ReelignError
from reelign.models.load import MINIATURE, load_model, model_folder
from tiny_wan import tiny_wan


def test_the_word_miniature_loads_the_model_that_ships():
    model = load_model("miniature", device="cpu")
    assert model.latent_shape(17, 32, 32) == (16, 5, 8, 8)
    assert (model.native_size.frames, model.native_size.height, model.native_size.fps) == (17, 32, 8.0)


def test_a_stage_folder_means_the_model_inside(tmp_path):
    tiny_wan(tmp_path / "sft" / "model")
    assert model_folder(str(tmp_path / "sft")) == tmp_path / "sft" / "model"


@pytest.mark.parametrize("name", ["minature", "./nowhere", "/no/such/folder", "a/b/c"])
def test_a_name_that_means_nothing_says_what_may_stand_there(name):
    with pytest.raises(ReelignError, match="miniature"):
        load_model(name)


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(ReelignError, match=r"model_index\.json"):
        load_model(tmp_path)


def test_a_damaged_weight_file_is_named(tmp_path):
    shutil.copytree(MINIATURE, tmp_path / "model")
    weights = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ReelignError, match=str(weights)):
        load_model(tmp_path / "model")


def test_another_family_is_refused_by_name(tmp_path):
    folder = tiny_wan(tmp_path / "wan")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ReelignError, match="StableDiffusionPipeline"):
        load_model(folder)
