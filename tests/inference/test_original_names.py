import pytest
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

from reelign.errors import ReelignError
from reelign.inference.original_names import BLOCK, MODULES, original_name
from reelign.models.load import load_model
from tiny_wan import KINDS, tiny_wan


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_has_a_name_of_its_own_and_diffusers_finds_its_way_back(tmp_path, kind):
    keys = list(load_model(tiny_wan(tmp_path / "wan", kind), device="cpu").denoisers()["transformer"].state_dict())
    names = {key: original_name(key) for key in keys}
    assert len(set(names.values())) == len(keys)
    assert convert_wan_transformer_to_diffusers({name: key for key, name in names.items()}) == {
        key: key for key in keys
    }
    used = {name for key in keys for name in (*MODULES, *BLOCK) if f".{name}" in f".{key}"}
    assert used == {*MODULES, *BLOCK}


@pytest.mark.parametrize(
    "name",
    [
        "patch_embedding.weight",
        "time_embedding.0.weight",
        "time_projection.1.bias",
        "text_embedding.2.weight",
        "head.head.weight",
        "head.modulation",
        "blocks.1.modulation",
        "blocks.1.self_attn.q.weight",
        "blocks.1.cross_attn.norm_k.weight",
        "blocks.1.norm3.weight",
        "blocks.1.ffn.0.weight",
    ],
)
def test_names_are_those_of_the_release(tmp_path, name):
    """As in Wan's own `wan/modules/model.py`."""
    network = load_model(tiny_wan(tmp_path / "wan"), device="cpu").denoisers()["transformer"]
    assert name in map(original_name, network.state_dict())


def test_the_weight_of_an_adapter_keeps_its_ending():
    assert original_name("blocks.12.attn1.to_out.0.lora_A.weight") == "blocks.12.self_attn.o.lora_A.weight"


@pytest.mark.parametrize(
    "key", ["blocks.0.attn2.add_k_proj.weight", "blocks.0.attn1.to_qkv.weight", "proj_outer.weight"]
)
def test_a_weight_that_wan_does_not_have_is_named(key):
    with pytest.raises(ReelignError, match=key):
        original_name(key)
