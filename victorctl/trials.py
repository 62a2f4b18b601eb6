"""What speed is measured on: prompts of random tokens, pictures of noise, for any model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from victorctl.answering import settings_for, write
from victorctl.data.batches import join_images, to_model
from victorctl.features import noise, see, taken
from victorctl.modeling_victor import CACHE, MODALITIES, lengths_of

ENDS = (0,)  # ends no answer: all are as long as was asked for


@dataclass(frozen=True)
class Trial:
    """Prompts of one shape: text, a picture, and the rest of the text.

    Args:
        ids: Tokens, one placeholder for each visual token [b, n].
        shown: True at placeholders [n].
        pixels: The pictures, as the model takes them; none where they are left out.
        features: The same as its projector gives them.
    """

    ids: Tensor
    shown: Tensor
    pixels: Mapping[str, Tensor]
    features: Any

    @property
    def rows(self) -> range:
        """A number for each prompt."""
        return range(len(self.ids))

    @property
    def visual(self) -> int:
        """Visual tokens in a prompt."""
        return int(self.shown.sum())

    @property
    def text(self) -> int:
        """Other tokens in a prompt."""
        return len(self.shown) - self.visual

    def without_pictures(self) -> "Trial":
        """Take pictures and placeholders out."""
        words = ~self.shown
        return Trial(self.ids[:, words], self.shown[words], {}, None)

    def unseen(self) -> dict[str, Tensor]:
        """Make a model's inputs, pictures as pixels."""
        return self._text() | dict(self.pixels)

    def seen(self) -> dict[str, Any]:
        """Make a model's inputs, pictures as features where there are any."""
        if self.features is None:
            return self.unseen()
        made = BaseModelOutputWithPooling(None, self.features)
        return self._text() | {"mm_encoder_outputs": {"image": made}}

    def without_features(self) -> "Trial":
        """Leave the pictures to be seen."""
        return replace(self, features=None)

    def _text(self) -> dict[str, Tensor]:
        return {"input_ids": self.ids, "attention_mask": torch.ones_like(self.ids)}


@torch.inference_mode()
def trial(
    model: PreTrainedModel, batch: int, text: int, picture: tuple[int, int] | None, seed: int
) -> Trial:
    """Draw prompts, all with the same picture.

    Args:
        model: Converted or not.
        batch: Prompts.
        text: Tokens of text in each, half of them before the picture.
        picture: Its size, height first, for families that cut pictures into tiles.
        seed: Of the tokens.
    """
    pixels = to_model(join_images([noise(model, picture)] * batch), model)
    features = see(model, pixels).pooler_output
    visual = sum(lengths_of(features)) // batch
    shown = torch.zeros(visual + text, dtype=torch.bool)
    shown[text // 2 : text // 2 + visual] = True
    ids = _words(model, (batch, len(shown)), seed)
    ids[:, shown] = model.config.image_token_id
    given = {name: pixels[name] for name in taken(model.forward, pixels)}
    return Trial(ids.to(model.device), shown.to(model.device), given, features)


def _words(model: PreTrainedModel, size: tuple[int, int], seed: int) -> Tensor:
    """Draw tokens that stand for words: no placeholder, and none that ends an answer."""
    places = {getattr(model.config, kind.token, None) for kind in MODALITIES.values()}
    known = [
        token
        for token in range(model.config.get_text_config().vocab_size)
        if token not in {*places, *ENDS}
    ]
    drawn = torch.randint(len(known), size, generator=torch.Generator().manual_seed(seed))
    return torch.tensor(known)[drawn]


@torch.inference_mode()
def prefill(model: PreTrainedModel, prompts: Trial) -> Any:
    """Read prompts whose pictures are seen already, predict the next token, and fill a cache."""
    return model(**prompts.seen(), use_cache=True, logits_to_keep=1)


def generate(model: PreTrainedModel, prompts: Trial, length: int) -> Tensor:
    """See pictures, read prompts and write exactly so many tokens after each [b, length]."""
    return write(model, prompts.unseen(), settings_for(length, length, ENDS, ENDS[0]))


def cached_bytes(output: Any) -> int:
    """Count the bytes of the keys and values that a call left in its cache."""
    layers = getattr(output, CACHE).layers
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
