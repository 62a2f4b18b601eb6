"""LLaVA-1.5's proportions in any width, with random weights: what speed is measured on."""

from dataclasses import dataclass

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from victorctl.collation import Batch, collate
from victorctl.conversion import default_drop_layer
from victorctl.data.batches import IGNORED, Encoded, EncodedRow

LAYERS, WIDTH, MLP, VOCABULARY = 32, 4096, 11008, 32064  # of LLaVA-1.5-7B's language model
TOWER_LAYERS, HEAD, TOWER_HEAD = 24, 128, 64  # of its tower; heads stay as wide as they are there
SIDE, PATCH = 336, 14
VISUAL = (SIDE // PATCH) ** 2
TEXT, ANSWER = 64, 8  # tokens of a question with its prompt and its answer; of the answer alone
PAD, IMAGE = 0, 1


@dataclass(frozen=True)
class Shape:
    """LLaVA-1.5 in other sizes: every width shrinks as one, and the layers as others.

    Args:
        layers: Of the language model.
        width: Of the language model.
    """

    layers: int
    width: int

    def config(self, registers: int) -> LlavaConfig:
        """Describe the model and what its conversion adds."""
        heads = max(1, round(self.width / HEAD))
        seeing = max(1, round(self.width / 4 / TOWER_HEAD))  # the tower is a quarter as wide
        text = LlamaConfig(
            vocab_size=max(256, self.width * VOCABULARY // WIDTH),
            hidden_size=self.width,
            intermediate_size=self.width * MLP // WIDTH,
            num_hidden_layers=self.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=self.width // heads // 2 * 2,
            max_position_embeddings=4096,
            pad_token_id=PAD,
        )
        tower = CLIPVisionConfig(
            hidden_size=seeing * TOWER_HEAD,
            intermediate_size=4 * seeing * TOWER_HEAD,
            num_hidden_layers=max(2, round(TOWER_LAYERS * self.layers / LAYERS)),
            num_attention_heads=seeing,
            image_size=SIDE,
            patch_size=PATCH,
        )
        return LlavaConfig(
            text_config=text,
            vision_config=tower,
            image_token_index=IMAGE,
            image_seq_length=VISUAL,
            tie_word_embeddings=False,
            victor={
                "registers": registers,
                "drop_layer": default_drop_layer(self.layers),
                "positions": "overlay",
            },
        )

    def said(self) -> str:
        """Say in a sentence how the model differs from LLaVA-1.5-7B."""
        return (
            f"LLaVA-1.5-7B's proportions with random weights: {self.width}/{WIDTH} of its widths "
            f"(language model, MLP, vocabulary, tower), {self.layers} of {LAYERS} layers, heads as "
            "wide as there"
        )


def draw(config: LlavaConfig, rows: int, questions: int, before: int) -> Batch:
    """Draw pictures of noise and questions of random tokens, all as long as one another.

    Args:
        config: Whose vocabulary and pictures.
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
