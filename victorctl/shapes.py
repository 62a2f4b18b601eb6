"""Models of random weights with the sizes of real ones, in any width: what speed is measured on."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig

from victorctl.collation import Batch, collate
from victorctl.conversion import default_drop_layer
from victorctl.data.batches import IGNORED, Encoded, EncodedRow

SIDE, VISUAL = 336, 576  # pixels of a picture's side and its visual tokens, in LLaVA-1.5
TEXT, ANSWER = 64, 8  # tokens of a question with its prompt and its answer; of the answer alone
PAD, IMAGE, VIDEO = range(3)  # token ids
UNIT = 32  # of which every width is a multiple


class Sizes(NamedTuple):
    """A published model: its family, whose default tower it has, and its language model."""

    title: str
    family: str
    text: str
    layers: int
    width: int
    mlp: int
    heads: int
    kv_heads: int
    vocabulary: int


LLAVA = "llava-1.5-7b"
SIZES = {
    LLAVA: Sizes("LLaVA-1.5-7B", "llava", "llama", 32, 4096, 11008, 32, 32, 32064),
    "llava-1.5-13b": Sizes("LLaVA-1.5-13B", "llava", "llama", 40, 5120, 13824, 40, 40, 32064),
    "llava-v1.6-mistral-7b": Sizes(
        "LLaVA-NeXT-Mistral-7B", "llava_next", "mistral", 32, 4096, 14336, 32, 8, 32064
    ),
    "llava-onevision-qwen2-7b": Sizes(
        "LLaVA-OneVision-Qwen2-7B", "llava_onevision", "qwen2", 28, 3584, 18944, 28, 4, 152000
    ),
}
"""By the name that `--shape` takes.

Source: `config.json` of llava-hf/llava-1.5-7b-hf, llava-1.5-13b-hf, llava-v1.6-mistral-7b-hf and
llava-onevision-qwen2-7b-ov-hf on the Hub.
"""


@dataclass(frozen=True)
class Shape:
    """A published model in other sizes: every width shrinks as one, and the layers as others.

    Args:
        layers: Of the language model.
        width: Of the language model.
        name: Of the published model, in `SIZES`.
    """

    layers: int
    width: int
    name: str = LLAVA

    @classmethod
    def scaled(cls, name: str, layers: int | None, scale: float) -> "Shape":
        """Shrink a model; `layers` is None for all of its own."""
        whole = cls(layers or SIZES[name].layers, SIZES[name].width, name)
        width = max(1, round(whole.width * scale / whole.unit)) * whole.unit
        return replace(whole, width=width)

    @property
    def sizes(self) -> Sizes:
        """Sizes of the published model."""
        return SIZES[self.name]

    @property
    def unit(self) -> int:
        """What every width is a multiple of, so that heads of even width fit in."""
        return math.lcm(UNIT, 2 * self.sizes.heads // self.sizes.kv_heads)

    @property
    def scale(self) -> float:
        """Share of the published model's widths."""
        return self.width / self.sizes.width

    def proportional_drop_layer(self) -> int:
        """Choose k so that the share of layers that see visual tokens stays what it was."""
        own = self.sizes.layers
        return max(1, round(default_drop_layer(own) * self.layers / own))

    def config(self, registers: int, drop_layer: int | None = None) -> PreTrainedConfig:
        """Describe the model and what its conversion adds.

        Args:
            registers: M.
            drop_layer: k; None for what `convert` would choose.
        """
        family = CONFIG_MAPPING[self.sizes.family]
        kinds = {"image_token_index": IMAGE, "video_token_index": VIDEO}
        return family(
            text_config=self._text(),
            vision_config=self._tower(family().vision_config),
            **{name: token for name, token in kinds.items() if hasattr(family, name)},
            tie_word_embeddings=False,
            victor={
                "registers": registers,
                "drop_layer": drop_layer or default_drop_layer(self.layers),
                "positions": "overlay",
                "adapter": None,
            },
        )

    def _text(self) -> PreTrainedConfig:
        sizes = self.sizes
        each, wanted = sizes.heads // sizes.kv_heads, sizes.kv_heads * self.scale
        fits = [n for n in range(1, sizes.kv_heads + 1) if self.width % (2 * n * each) == 0]
        kv_heads = min(fits, key=lambda n: abs(n - wanted))
        heads = kv_heads * each
        window = {"sliding_window": None} if sizes.text == "mistral" else {}
        return CONFIG_MAPPING[sizes.text](
            vocab_size=max(256, self.width * sizes.vocabulary // sizes.width),
            hidden_size=self.width,
            intermediate_size=self.width * sizes.mlp // sizes.width,
            num_hidden_layers=self.layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=self.width // heads // 2 * 2,
            max_position_embeddings=32768,
            pad_token_id=PAD,
            **window,
        )

    def _tower(self, tower: PreTrainedConfig) -> PreTrainedConfig:
        """Shrink the tower that the family has by default, which is the published models'."""
        own = self.sizes.layers
        heads = max(1, round(tower.num_attention_heads * self.scale))
        width = heads * tower.hidden_size // tower.num_attention_heads
        smaller = {
            "num_attention_heads": heads,
            "intermediate_size": tower.intermediate_size * width // tower.hidden_size,
            "hidden_size": width,
            "num_hidden_layers": max(2, round(tower.num_hidden_layers * self.layers / own)),
        }
        return type(tower)(**{**tower.to_diff_dict(), **smaller})

    def said(self) -> str:
        """Say in a sentence how the model differs from the published one."""
        text, sizes = self._text(), self.sizes
        heads = f"heads {text.head_dim} wide (there {sizes.width // sizes.heads})"
        return (
            f"{sizes.title}'s proportions with random weights: {self.width}/{sizes.width} of its "
            f"widths (language model, MLP, vocabulary, tower), {self.layers} of {sizes.layers} "
            f"layers, {heads}"
        )


def draw(config: PreTrainedConfig, rows: int, questions: int, before: int) -> Batch:
    """Draw pictures of noise and questions of random tokens, all as long as one another.

    Args:
        config: Of LLaVA-1.5's kind: its vocabulary counts.
        rows: Pictures.
        questions: About each of them.
        before: Tokens of text that stand before a picture.
    """
    generator = torch.Generator().manual_seed(0)

    def words(count: int) -> list[int]:
        most = config.text_config.vocab_size
        return torch.randint(IMAGE + 1, most, (count,), generator=generator).tolist()

    def row() -> EncodedRow:
        prefix = words(before) + [IMAGE] * VISUAL
        asked = [words(TEXT - before) for _ in range(questions)]
        hidden = [IGNORED] * (VISUAL + TEXT - ANSWER)
        said = tuple(Encoded(prefix + text, hidden + text[-ANSWER:], len(prefix)) for text in asked)
        pixels = torch.randn(1, 3, SIDE, SIDE, generator=generator)
        return EncodedRow({"pixel_values": pixels}, said)

    return collate([row() for _ in range(rows)], PAD)
