"""Reports on disk, with a few made-up numbers."""

import json

SETTINGS = {
    **{"model": "m", "base": "b", "base_sha256": "bb", "registers": 8, "data": "q.jsonl"},
    **{"limit": None, "seed": 0, "device": "NVIDIA H100", "threads": 8, "speed_batch_size": 16},
    "versions": {"torch": "2.13.0", "platform": "Linux"},
    "command": "victorctl eval m",
}
REPORT = {
    "schema": "victorctl/eval/1",
    "questions": 4,
    "accuracy": {"model": 0.5, "base": 0.75},
    "kept": 0.6667,
    "interval": [0.5, 0.8],
    "agreement": 0.5,
    "by_type": {
        "what": {"model": 0.5, "base": 1.0, "questions": 4, "kept": 0.5, "interval": [0.2, 0.7]}
    },
    "mean_visual_tokens": {"model": 62.0, "base": 576.0},
    "prefill_flops": {"model": 1e12, "base": 4e12},
    "cache_bytes": {"model": 1024, "base": 4096},
    "time_to_first_token": {"model": 0.1, "base": 0.3},
    "decode_tokens_per_second": {"model": 40.0, "base": None},
    "speedup": {"prefill": 2.5, "generate_2": None},
    "weights_sha256": "aa",
    "settings": SETTINGS,
}
ASKED = ("cat", "dog", "two", "red")  # right answers to questions 0 to 3; two share a picture


def line(number, *, model, base="cat", **more):
    """Write a prediction; answers other than those asked for are wrong."""
    right = {who: float(text == ASKED[number]) for who, text in (("model", model), ("base", base))}
    return {
        **{"id": f"row-{number}", "unit": number // 2, "type": "what"},
        **{"question": f"what is {number}?", "answers": [ASKED[number]]},
        **{"model": model, "base": base, "right": right, **more},
    }


def write(folder, lines=None, *, without=(), settings=None, **changes):
    """Write a report that differs from `REPORT` in some keys, with predictions if there are any."""
    folder.mkdir(parents=True)
    content = {key: value for key, value in REPORT.items() if key not in without} | changes
    content["settings"] = SETTINGS | (settings or {})
    (folder / "report.json").write_text(json.dumps(content))
    if lines is not None:
        text = "".join(json.dumps(each) + "\n" for each in lines)
        (folder / "predictions.jsonl").write_text(text)
    return folder
