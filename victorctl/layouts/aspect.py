"""Pad-to-square, which the original LLaVA 1.5 does, and its copies on llava-hf do not.

Source: haotian-liu/LLaVA, llava/mm_utils.py (expand2square, process_images).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from victorctl.errors import VictorError
from victorctl.sources import read_json

PROCESSORS = ("processor_config.json", "preprocessor_config.json")
PADDED = "LlavaImageProcessor"  # of transformers: it pads with the mean colour
LIKE_IT = ("CLIPImageProcessor", "SiglipImageProcessor", PADDED)


def check_can_pad(folder: Path, place: str) -> None:
    """Refuse to pad where the processor is of another kind.

    Raises:
        VictorError: If it is, or there is none.
    """
    kinds = [kind for _, part in _parts(folder) if (kind := _kind(part))]
    if not kinds or any(kind not in LIKE_IT for kind in kinds):
        found = f"its image processor is {kinds[0]}" if kinds else "it has no image processor"
        raise VictorError(
            f"--image-aspect pad: {found} in {place}, and only that of LLaVA 1.5 pads to squares",
            fix="leave --image-aspect out",
        )


def pad_to_square(folder: Path) -> None:
    """Let a folder's processor pad pictures to squares with the mean colour."""
    for file, part in _parts(folder):
        padded = dict(part) | {"image_processor_type": PADDED, "do_pad": True}
        if _kind(part) == "SiglipImageProcessor":
            padded["do_center_crop"] = False  # which it would do unless told
        content = read_json(file)
        whole = content | {"image_processor": padded} if "image_processor" in content else padded
        file.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def _parts(folder: Path) -> list[tuple[Path, Mapping[str, Any]]]:
    """Find each file that describes an image processor, with the description."""
    found = []
    for name in PROCESSORS:
        content = read_json(folder / name)
        if content is not None:
            part = content.get("image_processor", content)
            if isinstance(part, dict) and "image_processor_type" in part:
                found.append((folder / name, part))
    return found


def _kind(part: Mapping[str, Any]) -> str:
    return str(part["image_processor_type"]).removesuffix("Fast").removesuffix("Pil")
