"""Measure how well a Victor model and its base foretell a page of English.

    python -m scripts.smol.perplexity FOLDER --json

Text alone never meets a register, so both must give the same number where the base is intact.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForImageTextToText, AutoProcessor

PAGE = Path(__file__).with_name("page.txt")


def perplexity(model: nn.Module, processor: Any) -> float:
    """Exp of the mean loss of the page's tokens after the first."""
    ids = processor.tokenizer(PAGE.read_text(), return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, :-1]
    return math.exp(functional.cross_entropy(logits.float(), ids[0, 1:]))


def measure(folder: str) -> dict[str, float]:
    """Read the page with both models of a folder."""
    processor = AutoProcessor.from_pretrained(folder)
    found = {}
    for name, trust in (("model", True), ("base", False)):
        model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=trust)
        found[name] = perplexity(model, processor)
    return found


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
