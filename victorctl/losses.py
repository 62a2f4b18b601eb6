"""How far a student is from its teacher: in what it expects, and in the states of its layers.

Shapes: a answer positions, x text tokens, v vocabulary, c classes kept of the teacher.

Source: Hinton et al. 2015, arXiv 1503.02531 (distillation); Romero et al. 2014, arXiv 1412.6550
(matching hidden states).
"""

import torch
from torch import Tensor
from torch.nn import functional

from victorctl.sections import TrainSection
from victorctl.teacher import Targets

CERTAIN = 1e-6  # probability left to the classes that were not kept, below which it does not count


def likeliest(logits: Tensor, settings: TrainSection) -> Targets:
    """Keep a teacher's likeliest classes, of its logits [a, v]."""
    log_probability = (logits / settings.temperature).log_softmax(dim=-1)
    best = log_probability.topk(min(settings.top_k, logits.shape[-1]))
    return Targets(best.indices, best.values)


def divergence(logits: Tensor, targets: Targets, temperature: float) -> Tensor:
    """Measure how far a student is from the teacher: KL(teacher || student), mean over positions.

    Classes that were not kept count as one. The result is scaled by the squared temperature, so
    that gradients keep their size.

    Args:
        logits: The student's [a, v].
        targets: The teacher's likeliest classes.
        temperature: At which both are compared; the targets were made at the same.
    """
    student = (logits / temperature).log_softmax(dim=-1).gather(1, targets.index)
    teacher = targets.log_probability
    kept = (teacher.exp() * (teacher - student)).sum(dim=-1)
    rest = 1 - teacher.exp().sum(dim=-1)
    student_rest = (1 - student.exp().sum(dim=-1)).clamp(min=CERTAIN)
    tail = rest.clamp(min=CERTAIN) * (rest.clamp(min=CERTAIN).log() - student_rest.log())
    return (kept + torch.where(rest > CERTAIN, tail, 0)).mean() * temperature**2


def unlikeness(states: Tensor, teacher: Tensor) -> Tensor:
    """Measure how far states point from the teacher's: 1 - cosine, mean over layers and tokens.

    Their lengths do not count: layers normalise what they read, and lengths grow with depth.

    Args:
        states: The student's [late layers, x, d].
        teacher: The teacher's, alike.
    """
    return 1 - functional.cosine_similarity(states.float(), teacher.float(), dim=-1).mean()
