"""What one prompt costs: matrix-product FLOPs and cache bytes, counted from the config alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

WITHOUT_GATE = {"falcon", "gpt2", "gpt_neox", "gptj", "nemotron", "opt", "phi", "starcoder2"}
VALUE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
TOWER_FIELDS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "image_size",
    "patch_size",
)
ANY_SIZE = (
    "dinov2",
    "dinov2_with_registers",
)  # towers that adapt to the picture: `image_size` is that of their training


@dataclass(frozen=True)
class Tower:
    """A vision transformer that sees pictures of one size."""

    layers: int
    width: int
    mlp: int
    patches: int
    patch_values: int
    """Numbers in one patch: its pixels times the colour channels."""
    class_token: bool
    pooling_head: bool
    """One query attends to all patches after the last layer, as SigLIP does."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a vision-language model that decide its cost."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    gated: bool
    """The MLP has three matrices (SwiGLU and its kin) instead of two."""
    value_bytes: int
    tower: Tower | None
    features: int
    """Width of what the projector reads."""
    projected: int
    """Vectors per picture that the projector reads."""
    omissions: tuple[str, ...]
    """What the counts leave out or only approximate, one sentence each."""

    @property
    def queries(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all key heads together; values are as wide."""
        return self.kv_heads * self.head_dim

    @property
    def mlp_matrices(self) -> int:
        """Matrices of one MLP."""
        return 3 if self.gated else 2


def shape_of(config: Any) -> Shape:
    """Read the sizes from a model's config.

    Args:
        config: A `LlavaConfig`, or one with `text_config` and `vision_config` of the usual fields.

    Returns:
        The sizes; what could not be read is named in `omissions` and counted as nothing.
    """
    text = config.get_text_config()
    vision = getattr(config, "vision_config", None)
    tower, omissions = _tower_of(vision, getattr(config, "image_seq_length", None))
    taps = getattr(config, "vision_feature_layer", -1)
    whole = getattr(config, "vision_feature_select_strategy", "default") == "full"
    dtype = str(getattr(config, "dtype", None) or text.dtype).removeprefix("torch.")
    return Shape(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        mlp=text.intermediate_size,
        heads=text.num_attention_heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        vocab=text.vocab_size,
        gated=text.model_type not in WITHOUT_GATE,
        value_bytes=VALUE_BYTES.get(dtype, 4),
        tower=tower,
        features=tower.width * (1 if isinstance(taps, int) else len(taps)) if tower else 0,
        projected=tower.patches + (whole and tower.class_token) if tower else 0,
        omissions=(*omissions, *_approximations(text)),
    )


def _tower_of(vision: Any, tokens: int | None) -> tuple[Tower | None, tuple[str, ...]]:
    """Read a tower's sizes; `tokens` is how many the model's configuration expects of a picture."""
    if vision is None:
        return None, ()
    kind = vision.model_type
    sizes = {name: getattr(vision, name, None) for name in TOWER_FIELDS}
    if hasattr(vision, "mlp_ratio"):
        sizes["intermediate_size"] = int(vision.hidden_size * vision.mlp_ratio)
    missing = [name for name, size in sizes.items() if not isinstance(size, int)]
    if missing:
        return None, (f"The {kind} tower is not counted: no single {', '.join(missing)}.",)
    if kind == "pixtral":
        return None, ("The pixtral tower is not counted: its length depends on the picture.",)
    if getattr(vision, "use_swiglu_ffn", False):
        return None, (f"The {kind} tower is not counted: its MLP has a gate.",)
    siglip = kind.startswith("siglip")
    patches = (vision.image_size // vision.patch_size) ** 2
    notes = ()
    if kind in ANY_SIZE and tokens and tokens != patches:
        notes = (f"The tower is counted for {tokens} patches, as many as image_seq_length says.",)
        patches = tokens
    return Tower(
        layers=vision.num_hidden_layers,
        width=vision.hidden_size,
        mlp=sizes["intermediate_size"],
        patches=patches,
        patch_values=vision.patch_size**2 * getattr(vision, "num_channels", 3),
        class_token=not siglip,
        pooling_head=siglip and getattr(vision, "vision_use_head", True),
    ), notes


def _approximations(text: Any) -> tuple[str, ...]:
    notes = []
    if set(getattr(text, "layer_types", None) or ()) - {"full_attention"}:
        notes.append("Layers with a sliding window are counted as if they attended to everything.")
    if getattr(text, "num_experts_per_tok", None):
        notes.append("A mixture of experts is counted as one expert per token.")
    return tuple(notes)


def tokens_per_layer(
    layers: int, drop_layer: int, *, visual: int, registers: int, text: int
) -> tuple[int, ...]:
    """Count the tokens that enter each layer during the prefill.

    Args:
        layers: Layers of the language model.
        drop_layer: Layers that still see the visual tokens; `layers` for an unconverted model.
        visual: Visual tokens of all pictures in the prompt.
        registers: Registers of all pictures; 0 for an unconverted model.
        text: Every other token of the prompt.

    Returns:
        One count per layer.
    """
    with_visual, without = visual + registers + text, registers + text
    return (with_visual,) * drop_layer + (without,) * (layers - drop_layer)


def mean_visual_tokens(layers: int, drop_layer: int, *, visual: int, registers: int) -> float:
    """Average over the layers how many visual tokens, registers included, enter them.

    This is the budget by which methods are compared: Victor with 8 registers that drops 576 visual
    tokens after 3 of 32 layers spends 62, not 8. See `tokens_per_layer` for the arguments.
    """
    return fmean(tokens_per_layer(layers, drop_layer, visual=visual, registers=registers, text=0))


def prefill_flops(shape: Shape, tokens: Sequence[int]) -> int:
    """Count the FLOPs of the language model's prefill of one prompt.

    Every matrix product counts 2·m·n·k: a multiplication and an addition are two. Attention counts
    the whole square of scores, causal or not, as PyTorch's FlopCounterMode does; the output layer
    counts for the last position only, which is all that generating reads.

    Args:
        shape: Sizes of the model.
        tokens: Tokens entering each layer, for any method; see `tokens_per_layer`.

    Returns:
        FLOPs without vision tower, projector and register-LoRA, which have their own functions.
    """
    widths = 2 * shape.queries + 2 * shape.keys + shape.mlp_matrices * shape.mlp
    linear, square = 2 * shape.hidden * widths, 4 * shape.queries
    layers = sum(n * linear + n * n * square for n in tokens)
    return layers + 2 * shape.hidden * shape.vocab


def adapter_flops(shape: Shape, registers: int, *, rank: int, layers: int) -> int:
    """Count what register-LoRA adds to the prefill of one prompt.

    Args:
        shape: Sizes of the model.
        registers: Registers of all pictures, the only positions that the adapters touch.
        rank: Rank of the updates.
        layers: Layers with adapters, each on every Linear of the layer.

    Returns:
        FLOPs to be added to `prefill_flops`.
    """
    attention = 2 * (shape.hidden + shape.queries) + 2 * (shape.hidden + shape.keys)
    ends = attention + shape.mlp_matrices * (shape.hidden + shape.mlp)
    return 2 * registers * rank * ends * layers


def vision_flops(shape: Shape) -> int:
    """Count the FLOPs of seeing one picture: vision tower and projector."""
    return tower_flops(shape) + projector_flops(shape)


def tower_flops(shape: Shape) -> int:
    """Count the FLOPs of the vision tower for one picture (or one tile of it), all layers run."""
    if shape.tower is None:
        return 0
    tower = shape.tower
    tokens, width = tower.patches + tower.class_token, tower.width
    embedding = 2 * tower.patches * tower.patch_values * width
    layer = 4 * tokens * width * (2 * width + tower.mlp) + 4 * tokens**2 * width
    head = 4 * width * (width + tokens * width + tokens + tower.mlp)
    return embedding + tower.layers * layer + tower.pooling_head * head


def projector_flops(shape: Shape) -> int:
    """Count the FLOPs of LLaVA's two-layer projector for one picture (or one tile of it)."""
    return 2 * shape.projected * shape.hidden * (shape.features + shape.hidden)


def cache_bytes(shape: Shape, tokens: Sequence[int]) -> int:
    """Count the bytes of keys and values that one sequence holds.

    Args:
        shape: Sizes of the model.
        tokens: Tokens that each layer has seen; after a prefill, those of `tokens_per_layer`.

    Returns:
        Bytes in the model's own number format.
    """
    return 2 * shape.keys * shape.value_bytes * sum(tokens)
