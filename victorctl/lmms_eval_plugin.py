"""What lmms-eval finds when victorctl is installed beside it: the model `victor`.

Nothing of torch or lmms-eval is imported before it is asked for.
"""

from typing import Any

NAME = "victor"


def manifest() -> Any:
    """Tell lmms-eval (0.7 or newer) where the model is.

    Source: lmms-eval 0.7.3, models/registry_v2.py, lines 150-171 (entry points `lmms_eval.models`).
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(NAME, chat_class_path="victorctl.lmms_eval_model.Victor")
