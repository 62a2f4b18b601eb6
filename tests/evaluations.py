"""Made-up results of evaluations: of the first version, of today, and of benchmarks."""

from PIL import Image

TYPES = {"how many": (0.78, 0.83, 600), "colour": (0.91, 0.93, 1400)}


def pair(model, base):
    return {"model": model, "base": base}


def evaluation(settings=(), **changes):
    """What reports of the first version hold; keys that came later are absent."""
    return {
        "questions": 2000,
        "accuracy": pair(0.879, 0.9035),
        "kept": 0.9729,
        "interval": [0.9612, 0.9843],
        "agreement": 0.931,
        "by_type": {name: {**pair(*both), "questions": n} for name, (*both, n) in TYPES.items()},
        "mean_visual_tokens": pair(33.0, 100),
        "prefill_flops": pair(1.62e8, 4.9e8),
        "omissions": [],
        "cache_bytes": pair(40960, 118784),
        "time_to_first_token": pair(0.02, 0.03),
        "decode_tokens_per_second": pair(211.4, 208.2),
        "speedup": {"prefill": 1.93, "generate_2": 1.55, "generate_128": 1.08},
        "baselines": {"pool": {"accuracy": 0.7716, "kept": 0.854, "mean_visual_tokens": 32.5}},
        "report": "/home/someone/report.html",
        "weights_sha256": "9f86d081",
        "settings": {
            "model": "runs/model",
            "registers": 8,
            "drop_layer": 2,
            "train": "register-lora",
            "base_intact": True,
            "data": "demo:test",
            "dtype": "fp32",
            "threads": 1,
            "speed_batch_size": 16,
            "device": "cpu",
            "versions": {"torch": "2.13.0"},
            "command": "victorctl eval runs/model --data demo:test",
            **dict(settings),
        },
        **changes,
    }


def of_today(settings=(), **changes):
    """With intervals by type, the divergence of first tokens, and timed baselines."""
    types = {
        "how many": {**pair(0.78, 0.83), "questions": 600, "kept": 0.9398, "interval": [0.9, 0.97]},
        "colour": {**pair(0.93, 0.93), "questions": 1400, "kept": 1.0, "interval": [0.98, 1.02]},
    }
    pool = {"accuracy": 0.7716, "kept": 0.854, "mean_visual_tokens": 32.5}
    blind = {"accuracy": 0.3, "kept": 0.332, "mean_visual_tokens": 0.0}
    baselines = {
        "pool": {**pool, "interval": [0.82, 0.88], "speedup": {"prefill": 1.9}},
        "no-image": {**blind, "interval": None, "speedup": {}},
    }
    recorded = {"base_sha256": "ba5e", "data_sha256": {"data": "da7a"}, "repeats": 5, "limit": None}
    later = {"by_type": types, "baselines": baselines, "first_token_kl": 0.013249, "benchmarks": {}}
    return evaluation({**recorded, **dict(settings)}, **{**later, **changes})


def of_benchmarks(*names, **changes):
    """With two benchmarks of different units, or one of them.

    Shares of their highest scores are 0.86 and 0.7 for the base, 0.86 and 0.7161 for the model: the
    means are 0.78 and 0.78805, and 101.0 % is kept.
    """
    pope = {
        "title": "POPE",
        "questions": 9000,
        "metric": "f1",
        "highest": 1.0,
        "score": pair(0.86, 0.86),
        "kept": 1.0,
        "interval": [0.991, 1.008],
        "agreement": 0.97,
        "first_token_kl": 0.002,
        "metrics": {"f1": pair(0.86, 0.86), "yes_ratio": pair(0.5, 0.5), "recall": pair(None, 0.8)},
        "meanings": {"yes_ratio": "share of questions whose right answer is yes"},
        "mean_visual_tokens": pair(33.0, 576),
    }
    mme = {
        "title": "MME",
        "questions": 2374,
        "metric": "perception",
        "highest": 2000,
        "score": pair(1432.2, 1400.0),
        "kept": 1.023,
        "interval": [1.004, 1.05],
        "agreement": 0.91,
        "first_token_kl": 0.04,
        "metrics": {
            "perception": pair(1432.2, 1400.0),
            "points/count": pair(150.0, 140.0),
            "accuracy/count": pair(0.8125, 0.8),
        },
        "meanings": {"points/...": "points of a category, of 200"},
        "mean_visual_tokens": pair(34.0, 576),
    }
    known = {"pope": pope, "mme": mme}
    asked = {name: known[name] for name in names or known}
    whole = {"accuracy": pair(0.78805, 0.78), "kept": 1.0103, "interval": [0.99, 1.03]}
    if len(asked) == 1:
        (one,) = asked.values()
        whole = {"accuracy": pair(0.7, 0.7), "kept": one["kept"], "interval": one["interval"]}
    settings = {
        "data": None,
        "benchmarks": list(asked),
        "data_sha256": dict.fromkeys(asked, "da7a"),
    }
    questions = sum(of["questions"] for of in asked.values())
    return of_today(settings, benchmarks=asked, questions=questions, **{**whole, **changes})


def without_base(measured=None):
    """The same evaluation with --base none."""
    found = _alone(measured or evaluation())
    for row in (found, *found["by_type"].values(), *found.get("benchmarks", {}).values()):
        row |= {key: None for key in COMPARED if key in row}
    found["settings"] |= {"base_sha256": None}
    return found | {"baselines": {}, "speedup": dict.fromkeys(found["speedup"])}


def _alone(value):
    if not isinstance(value, dict):
        return value
    found = {key: _alone(inner) for key, inner in value.items()}
    return found | {"base": None} if "base" in value and "train" not in value else found


COMPARED = ("kept", "interval", "agreement", "first_token_kl")


def difference(model_right, base_right, size=(48, 32), **changes):
    """A question that both answer differently."""
    return {
        "picture": Image.linear_gradient("L").resize(size),
        "question": "How many stars?",
        "answer": "three",
        "model": "three" if model_right else "two",
        "base": "three" if base_right else "four",
        "type": "how many",
        "model_right": model_right,
        "base_right": base_right,
        **changes,
    }
