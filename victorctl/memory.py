"""What a training step keeps in memory, estimated from sizes alone.

The formulas follow `distill.py` on Llama-like layers (RMSNorm, SDPA attention, an MLP with a gate):
they list the tensors that autograd keeps. d is a width, c the bytes of a number in the arithmetic.
"""

from victorctl.cost import Shape
from victorctl.estimate import (
    Load,
    Method,
    Reading,
    linear_flops,
    prefix_readings,
    suffix_readings,
)

HALF, SINGLE = 2, 4  # bytes of a number in bfloat16 and float32
STATE = 3 * SINGLE  # bytes beside each trained parameter: its gradient and two moments
FIXED = int(1.5 * 2**30)  # bytes that CUDA, its libraries and their workspaces take
SPARE = 0.1  # share of what a step needs beside the weights that is lost between its blocks

COPIED = 8192
"""Tokens of prefixes that are copied at once for the teacher's questions, or one for each row."""


def memory(
    shape: Shape, method: Method, load: Load, *, processes: int = 1, sharded: bool = False
) -> dict[str, int]:
    """Estimate the bytes that one process needs on its GPU.

    The teacher answers before the student reads, and the optimiser moves when both are done, so the
    largest of the three counts.

    Args:
        shape: Sizes of the model.
        method: How it is trained.
        load: What one process reads at once.
        processes: That train together, a GPU each.
        sharded: They share parameters and optimiser out (FSDP); else each has them all (DDP).

    Returns:
        Bytes of `weights`, `optimizer` (gradients and moments), `activations` (what is kept for the
        backward pass, keys and values), `workspace` (what lives shortly), `teacher` (what it needs
        before), `allowance` (libraries, and memory lost between blocks) and their `total`.
    """
    parts = processes if sharded else 1
    frozen = method.parameters - method.trained
    weights = (frozen * method.stored + method.trained * SINGLE) / parts
    optimizer = method.trained * STATE / parts
    if sharded:  # two layers, and what stands around the layers, are whole at any time
        outside = 2 * shape.hidden * shape.vocab
        weights += method.computed * (2 * linear_flops(shape, Reading(1, 1, 1, 1)) // 2 + outside)
    elif processes > 1:
        optimizer += method.trained * SINGLE  # gradients are sent in copies
    activations = saved_bytes(shape, method, load) + _cache(shape, method, load)
    workspace = _workspace(shape, method, load)
    teacher = _teacher_bytes(shape, method, load) if method.teacher == "live" else 0
    moving = method.trained * SINGLE / parts
    step = max(activations + workspace, teacher, moving)
    allowance = FIXED + SPARE * step
    found = {
        "weights": weights,
        "optimizer": optimizer,
        "activations": activations,
        "workspace": workspace,
        "teacher": teacher,
        "allowance": allowance,
        "total": weights + optimizer + step + allowance,
    }
    return {name: round(value) for name, value in found.items()}


def saved_bytes(shape: Shape, method: Method, load: Load) -> float:
    """Count what autograd keeps from the forward to the backward pass, weights aside."""
    suffix = suffix_readings(method, load, shape.layers)
    readings = suffix + (prefix_readings(method, load, shape.layers) if method.everywhere else [])
    if method.checkpointing:
        width = method.between * shape.hidden
        kept = sum(each.layers * each.positions * width for each in readings)
    else:
        kept = sum(each.layers * _in_layer(shape, method, each) for each in readings)
        kept += sum(each.adapted * _casts(shape, method) for each in suffix)
    kept += _outside(shape, method, load) + _copies(shape, method)
    losses = 2 if method.has_distill else 1
    return kept + losses * SINGLE * shape.vocab * load.answers


def _outside(shape: Shape, method: Method, load: Load) -> int:
    """Count what is kept before, between and after the layers."""
    c, d = method.computed, shape.hidden
    positions = load.questions * (method.registers + load.text)
    norm = SINGLE * (3 if method.rung == "full" else 1)
    kept = norm * d * positions
    if method.everywhere:
        kept += method.projector * d * load.rows * load.prefix  # who is visual
    if method.projector:
        kept += c * load.tiles * shape.projected * (shape.features + 2 * d)
    return kept


def _in_layer(shape: Shape, method: Method, reading: Reading) -> float:
    """Count what one layer keeps."""
    c, d, queries = method.computed, shape.hidden, shape.queries
    norms = 2 * SINGLE * (d + 1)
    attention = 2 * c * queries + SINGLE * shape.heads
    attention += c * reading.keys * (reading.keys > reading.tokens)  # the mask, where there is one
    mlp = (3 if shape.gated else 2) * c * shape.mlp
    each = norms + attention + mlp + _for_weights(shape, method, reading)
    keys = 2 * c * queries * reading.sequences * reading.keys
    registers = _at_registers(shape, method, reading)
    return reading.positions * each + keys + registers


def _for_weights(shape: Shape, method: Method, reading: Reading) -> float:
    """Count what a layer keeps of a position for the gradients of its weights."""
    c, d = method.computed, shape.hidden
    if method.rung == "full":
        inputs = 2 * c * d if c == SINGLE else (2 + shape.mlp_matrices) * c * d
        return 2 * SINGLE * d + inputs + c * shape.mlp
    if not method.low_rank:
        return 0
    share = reading.adapted / reading.layers if reading.layers else 0
    own = c if method.autocast else SINGLE
    if c == SINGLE:
        inputs = c * (2 * d + shape.mlp)
    else:  # peft casts the input of every Linear to float32, and autocast back
        inputs = own * ((2 + shape.mlp_matrices) * d + shape.queries + shape.mlp)
    return share * (inputs + own * method.rank * (4 + shape.mlp_matrices))


def _at_registers(shape: Shape, method: Method, reading: Reading) -> float:
    """Count what updates at registers keep in one layer."""
    if method.rung != "register-lora" or not reading.adapted:
        return 0
    low = method.rank * (4 + shape.mlp_matrices)
    rows = reading.sequences * method.registers
    return rows * method.computed * (_ends(shape) + low) * reading.adapted / reading.layers


def _casts(shape: Shape, method: Method) -> float:
    """Count a layer's updates at registers in the number format of the arithmetic."""
    if method.rung != "register-lora" or method.computed == SINGLE:
        return 0
    return method.computed * method.rank * _ends(shape)


def _copies(shape: Shape, method: Method) -> int:
    """Count matrices in the number format of the arithmetic, where autocast makes them.

    Those that are trained are made once in a step, others once for every reading.
    """
    again = method.checkpointing  # made for one layer at a time, and not kept
    updates = method.trained if method.autocast and method.low_rank and not again else 0
    stored = SINGLE if method.rung == "full" else method.stored
    if stored == method.computed:
        return method.computed * updates
    linear = linear_flops(shape, Reading(shape.layers, 1, 1, 1)) // 2
    readings = 2 if method.everywhere and method.rung != "full" else 1
    layers = 0 if again else readings * linear
    return method.computed * (layers + updates + shape.hidden * shape.vocab)


def _ends(shape: Shape) -> int:
    """Add up how wide a layer's Linears are at both ends."""
    attention = 2 * (shape.hidden + shape.queries) + 2 * (shape.hidden + shape.keys)
    return attention + shape.mlp_matrices * (shape.hidden + shape.mlp)


def _cache(shape: Shape, method: Method, load: Load) -> int:
    """Count the student's keys and values, where attention does not keep these very tensors."""
    same = shape.heads == shape.kv_heads and method.between == method.computed
    if same and not method.checkpointing:
        return 0
    held = suffix_readings(method, load, shape.layers)
    return (
        (method.between + method.computed)
        * shape.keys
        * sum(each.layers * each.sequences * each.keys for each in held)
    )


def _workspace(shape: Shape, method: Method, load: Load) -> float:
    """Count what lives shortly: a layer at work in the backward pass, or logits."""
    readings = suffix_readings(method, load, shape.layers)
    readings += prefix_readings(method, load, shape.layers)
    layer = max(_in_layer(shape, method, each) for each in readings if each.layers)
    if method.checkpointing:
        layer *= 1.5  # it is computed again before
        if method.between != method.computed:
            layer += method.computed * linear_flops(
                shape, Reading(1, 1, 1, 1)
            )  # its weights, twice
    logits = 3 * SINGLE * shape.vocab * load.answers
    states = method.computed
    if method.everywhere:  # what comes out of a layer, and a gradient
        states += 2 * method.between
    prefix = states * shape.hidden * load.rows * load.prefix
    return prefix + max(layer, logits)


def _teacher_bytes(shape: Shape, method: Method, load: Load) -> int:
    """Count the teacher's keys and values, for each question read at once anew, and its logits."""
    c, keys = method.computed, load.prefix + load.text
    each = (method.between + c) * shape.keys
    at_once = min(load.questions, max(load.rows, COPIED // max(1, load.prefix)))
    own = each * shape.layers * load.rows * load.prefix * (load.questions > at_once)
    cache = own + each * shape.layers * at_once * keys
    layer = 2 * c * shape.queries * at_once * keys
    early = load.rows * load.prefix * (method.between * shape.hidden + each * method.drop_layer)
    return cache + layer + early + 3 * SINGLE * shape.vocab * load.answers
