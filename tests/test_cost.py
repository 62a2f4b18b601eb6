"""The counts against PyTorch's counter, a real cache, and numbers worked by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DynamicCache,
    GPTNeoXConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MixtralConfig,
    PixtralVisionConfig,
    SiglipVisionConfig,
)

from victorctl.cost import (
    Shape,
    adapter_flops,
    cache_bytes,
    mean_visual_tokens,
    prefill_flops,
    projector_flops,
    shape_of,
    tokens_per_layer,
    tower_flops,
    vision_flops,
)
from victorctl.modeling_victor import VictorLlava

# No two widths are equal: queries are 48 wide, keys 16, the hidden states 36, the MLP 72.
TEXT = LlamaConfig(
    num_hidden_layers=3,
    hidden_size=36,
    intermediate_size=72,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=301,
)
TOWER = {
    "num_hidden_layers": 2,
    "hidden_size": 24,
    "intermediate_size": 56,
    "num_attention_heads": 3,
    "image_size": 30,
    "patch_size": 6,
}
ANY_SIZE = TOWER | {"image_size": 54, "mlp_ratio": 2}  # trained on other pictures than those here
OTHER_SIZE, WITH_REGISTERS = Dinov2Config(**ANY_SIZE), Dinov2WithRegistersConfig(**ANY_SIZE)
# Two layers, no two widths equal, so small that every number can be worked by hand.
BY_HAND = Shape(
    layers=2,
    hidden=3,
    mlp=5,
    heads=2,
    kv_heads=1,
    head_dim=2,
    vocab=7,
    gated=True,
    value_bytes=2,
    tower=None,
    features=0,
    projected=0,
    omissions=(),
)


def llava(vision, **settings):
    return LlavaConfig(text_config=TEXT, vision_config=vision, image_token_index=5, **settings)


def count(config, text, build=LlavaForConditionalGeneration):
    """Prefill one prompt with one picture; give PyTorch's count per module, and the cache."""
    torch.manual_seed(0)
    model = build(config).eval().requires_grad_(False)
    model.set_attn_implementation("eager")
    visual = shape_of(config).projected
    tokens = torch.tensor([[1] + [5] * visual + [2] * (text - 1)])
    counter = FlopCounterMode(display=False)
    with counter:
        cache = model(
            input_ids=tokens, pixel_values=torch.randn(1, 3, 30, 30), logits_to_keep=1
        ).past_key_values
    flops = {name: sum(kinds.values()) for name, kinds in counter.get_flop_counts().items()}
    return flops, cache


@pytest.mark.parametrize(
    ("config", "visual"),
    [
        (llava(CLIPVisionConfig(**TOWER)), 25),
        (llava(CLIPVisionConfig(**TOWER), vision_feature_select_strategy="full"), 26),
        (llava(CLIPVisionConfig(**TOWER), vision_feature_layer=[-2, -1]), 25),
        (llava(SiglipVisionConfig(**TOWER), vision_feature_select_strategy="full"), 25),
        (llava(OTHER_SIZE, image_seq_length=25), 25),
        (llava(OTHER_SIZE, image_seq_length=26, vision_feature_select_strategy="full"), 26),
        (llava(WITH_REGISTERS, image_seq_length=29), 29),
        (llava(WITH_REGISTERS, image_seq_length=30, vision_feature_select_strategy="full"), 30),
    ],
    ids=[
        *("clip", "clip with class token", "clip with two taps", "siglip"),
        *("dinov2", "dinov2 with class token", "dinov2 with registers", "dinov2 with both"),
    ],
)
def test_an_unconverted_model_costs_what_pytorch_counts(config, visual):
    shape = shape_of(config)
    tokens = tokens_per_layer(3, 3, visual=visual, registers=0, text=11)

    flops, cache = count(config, text=11)

    whole = flops["Global"]
    tower = flops["LlavaForConditionalGeneration.model.vision_tower"]
    projector = flops["LlavaForConditionalGeneration.model.multi_modal_projector"]
    assert tower_flops(shape) == tower
    assert projector_flops(shape) == projector
    assert vision_flops(shape) == tower + projector
    assert prefill_flops(shape, tokens) == whole - tower - projector
    assert cache_bytes(shape, tokens) == cached(cache)


@pytest.mark.parametrize(
    ("layers", "adapted"),
    [(None, 0), ("early", 2), ("all", 3)],
    ids=["registers alone", "register-lora in early layers", "register-lora in all layers"],
)
def test_a_victor_model_costs_what_pytorch_counts(layers, adapted):
    config = llava(CLIPVisionConfig(**TOWER))
    adapter = {"rank": 5, "alpha": 5, "layers": layers} if layers else None
    sizes = {"registers": 4, "drop_layer": 2}
    config.victor = {**sizes, "positions": "overlay", "adapter": adapter}
    shape = shape_of(config)
    tokens = tokens_per_layer(3, 2, visual=25, registers=4, text=11)

    flops, cache = count(config, text=11, build=VictorLlava)

    seen = tower_flops(shape) + projector_flops(shape)
    updates = adapter_flops(shape, 4, rank=5, layers=adapted)
    assert prefill_flops(shape, tokens) + updates + seen == flops["Global"]
    assert cache_bytes(shape, tokens) == cached(cache)


def cached(cache):
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def test_the_cache_is_counted_in_the_models_number_format():
    config = llava(CLIPVisionConfig(**TOWER))
    config.dtype = torch.bfloat16
    tokens = [7, 7, 4]
    cache = DynamicCache()
    for layer, length in enumerate(tokens):
        state = torch.zeros(1, 2, length, 8, dtype=torch.bfloat16)
        cache.update(state, state, layer)

    assert cache_bytes(shape_of(config), tokens) == cached(cache) == 2 * 2 * 8 * 2 * 18


def test_the_prefill_is_the_sum_of_its_matrix_products():
    # 4 tokens, then 2. Per token: q 3x4, k and v 3x2 each, o 4x3, three times 3x5 = 81 products.
    # Scores and values: 4 wide, the whole square: 2 * 4 * n * n. The output layer, once: 3x7.
    products = (4 * 81 + 2 * 4 * 16) + (2 * 81 + 2 * 4 * 4) + 21

    assert prefill_flops(BY_HAND, [4, 2]) == 2 * products


def test_an_mlp_without_a_gate_has_one_matrix_less():
    neox = GPTNeoXConfig(hidden_size=64, num_attention_heads=4, intermediate_size=96)
    gated = shape_of(TEXT)
    plain = shape_of(neox)

    assert (gated.mlp_matrices, plain.mlp_matrices) == (3, 2)
    assert (plain.kv_heads, plain.head_dim) == (4, 16)


def test_register_lora_costs_its_rank_at_both_ends_of_every_linear():
    # In + out: q 3+4, k and v 3+2 each, o 4+3, three times 3+5 = 48; rank 6, 5 registers, 1 layer.
    assert adapter_flops(BY_HAND, 5, rank=6, layers=1) == 2 * 5 * 6 * 48


def test_layers_from_the_drop_on_see_registers_and_text_only():
    assert tokens_per_layer(5, 2, visual=100, registers=8, text=10) == (118, 118, 18, 18, 18)
    assert tokens_per_layer(3, 3, visual=100, registers=0, text=10) == (110, 110, 110)


@pytest.mark.parametrize(("registers", "mean"), [(8, 62), (16, 70), (64, 118), (256, 310)])
def test_the_budget_of_the_papers_models_counts_the_layers_before_the_drop(registers, mean):
    assert mean_visual_tokens(32, 3, visual=576, registers=registers) == mean


def test_an_unconverted_models_budget_is_its_visual_tokens():
    assert mean_visual_tokens(32, 32, visual=576, registers=0) == 576


@pytest.mark.parametrize(
    ("config", "omission"),
    [
        (llava(PixtralVisionConfig()), "The pixtral tower is not counted"),
        (llava(Dinov2Config(use_swiglu_ffn=True)), "its MLP has a gate"),
        (llava(CLIPVisionConfig(**TOWER | {"patch_size": None})), "no single patch_size"),
        (MistralConfig(sliding_window=4, layer_types=["sliding_attention"] * 32), "sliding window"),
        (MixtralConfig(), "A mixture of experts is counted as one expert"),
    ],
)
def test_what_cannot_be_counted_is_said(config, omission):
    shape = shape_of(config)

    assert omission in " ".join(shape.omissions)
    assert tower_flops(shape) == projector_flops(shape) == 0


@pytest.mark.parametrize(
    ("vision", "tokens", "patches"),
    [(OTHER_SIZE, 25, 25), (WITH_REGISTERS, 29, 25), (OTHER_SIZE, 81, None)],
)
def test_a_tower_that_is_counted_for_other_pictures_than_it_was_trained_on_says_so(
    vision, tokens, patches
):
    said = {f"The tower is counted for {patches} patches, as image_seq_length says."}

    assert set(shape_of(llava(vision, image_seq_length=tokens)).omissions) == (
        said if patches else set()
    )
