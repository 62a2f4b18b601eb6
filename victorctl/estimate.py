"""What a training step needs, estimated from sizes alone: FLOPs, and bytes of memory.

The formulas follow `distill.py` on Llama-like layers (RMSNorm, SDPA attention, an MLP with a gate):
which tensors autograd keeps, and which matrix products run. `scripts/speed/estimating.py` compares
both with what PyTorch counts.

Shapes: d width, k layers that see visual tokens, r registers.
"""

from dataclasses import dataclass, replace

from victorctl import cost
from victorctl.cost import Shape

SINGLE, LONG = 4, 8  # bytes of a number in float32, and of an index
STATE = 3 * SINGLE  # bytes beside each trained parameter: its gradient and two moments
FLASH_BACKWARD = 2.5  # products of attention's backward, of its forward: the scores come again
FIXED = 1.5 * 2**30  # bytes that CUDA, its libraries and their workspaces take
SPARE = 0.1  # share of what a step needs that is lost between blocks of memory


@dataclass(frozen=True)
class Load:
    """What one process reads at once, padding included.

    Args:
        rows: Prefixes: as many as pictures, where each row has one.
        opening: Tokens before the first picture, in each row.
        visual: Visual tokens of the first picture.
        questions: Of all rows together.
        text: Tokens after the first picture, in each question.
        answers: Positions with a loss, of all questions together.
        tiles: Pictures, or parts of pictures, that the vision tower reads.
    """

    rows: int
    opening: int
    visual: int
    questions: int
    text: int
    answers: int
    tiles: int

    @property
    def prefix(self) -> int:
        """Tokens to the end of the first picture."""
        return self.opening + self.visual

    def resized(self, rows: int) -> "Load":
        """Scale to another number of rows of the same kind, rounded up."""
        more = {
            name: -(-getattr(self, name) * rows // self.rows)
            for name in ("questions", "answers", "tiles")
        }
        return replace(self, rows=rows, **more)


@dataclass(frozen=True)
class Method:
    """How a model is trained.

    Args:
        rung: As `train.rung`, the projector apart.
        registers: Registers of a picture.
        drop_layer: k.
        rank: Of low-rank updates.
        adapted: Layers with low-rank updates.
        trained: Parameters that are trained, all of them.
        parameters: Of the whole model.
        stored: Bytes of a number of the weights that are not trained.
        computed: Bytes of a number of the arithmetic.
        autocast: The arithmetic has another number format than the weights.
        projector: The projector is trained, too.
        checkpointing: The student's layers are computed again instead of keeping what they made.
        teacher: `none`, `cached` (known from before) or `live`.
        has_distill: The loss compares predictions with a teacher's.
    """

    rung: str
    registers: int
    drop_layer: int
    rank: int
    adapted: int
    trained: int
    parameters: int
    stored: int
    computed: int
    autocast: bool = False
    projector: bool = False
    checkpointing: bool = False
    teacher: str = "live"
    has_distill: bool = True

    @property
    def everywhere(self) -> bool:
        """Whether gradients are needed at every position, so that no prefix is shared."""
        return self.rung in ("lora", "lora-early", "full") or self.projector

    @property
    def low_rank(self) -> bool:
        """Whether low-rank updates stand at every position."""
        return self.rung in ("lora", "lora-early")


@dataclass(frozen=True)
class Reading:
    """Layers that read tokens after others that were read before.

    Args:
        layers: How many.
        sequences: At once.
        tokens: Read in each.
        keys: Tokens that they attend to, themselves included.
        adapted: Of these layers, those with low-rank updates.
    """

    layers: int
    sequences: int
    tokens: int
    keys: int
    adapted: int = 0

    @property
    def positions(self) -> int:
        """Positions in all sequences, in one layer."""
        return self.sequences * self.tokens


def prefix_readings(method: Method, load: Load, layers: int) -> list[Reading]:
    """List how the student reads prefixes: early layers all of them, late layers their text."""
    k, late = method.drop_layer, layers - method.drop_layer
    early = min(k, method.adapted)
    return [
        Reading(k, load.rows, load.prefix, load.prefix, early),
        Reading(late, load.rows, load.opening, load.opening, method.adapted - early),
    ]


def suffix_readings(method: Method, load: Load, layers: int) -> list[Reading]:
    """List how the student reads registers and questions."""
    k, late = method.drop_layer, layers - method.drop_layer
    own, early = method.registers + load.text, min(k, method.adapted)
    return [
        Reading(k, load.questions, own, load.prefix + own, early),
        Reading(late, load.questions, own, load.opening + own, method.adapted - early),
    ]


# ---- FLOPs ---------------------------------------------------------------------------------------


def step_flops(shape: Shape, method: Method, load: Load) -> float:
    """Count the FLOPs of a forward and a backward pass.

    Every matrix product counts 2·m·n·k, as in `cost`; nothing else counts.

    Args:
        shape: Sizes of the model.
        method: How it is trained.
        load: What is read at once.
    """
    prefix = prefix_readings(method, load, shape.layers)
    suffix = suffix_readings(method, load, shape.layers)
    with_gradient = suffix + (prefix if method.everywhere else [])
    head = 2 * shape.hidden * shape.vocab * load.answers
    trained = method.rung == "full"
    flops = load.tiles * cost.vision_flops(shape)
    flops += sum(_forward(shape, method, each) for each in prefix + suffix)
    flops += sum(_backward(shape, method, each) for each in with_gradient)
    flops += head * (3 if trained else 2)
    if method.everywhere:
        flops -= _unneeded(shape, method, load)
    if method.checkpointing:
        flops += sum(_forward(shape, method, each) for each in with_gradient)
    if method.projector:
        whole = load.tiles * cost.projector_flops(shape)
        flops += 2 * whole - load.tiles * 2 * shape.projected * shape.hidden * shape.features
    if method.teacher == "live":
        flops += head + _teacher(shape, method, load)
    return flops


def _forward(shape: Shape, method: Method, reading: Reading) -> float:
    return _linear(shape, reading) + _attention(shape, reading) + _updates(shape, method, reading)


def _backward(shape: Shape, method: Method, reading: Reading) -> float:
    """Count gradients of inputs everywhere, and of those weights that are trained."""
    weights = 2 if method.rung == "full" else 1
    return (
        weights * _linear(shape, reading)
        + FLASH_BACKWARD * _attention(shape, reading)
        + 2 * _updates(shape, method, reading)
    )


def _linear(shape: Shape, reading: Reading) -> int:
    widths = 2 * shape.queries + 2 * shape.keys + shape.mlp_matrices * shape.mlp
    return 2 * shape.hidden * widths * reading.layers * reading.positions


def _attention(shape: Shape, reading: Reading) -> int:
    return 4 * shape.queries * reading.keys * reading.layers * reading.positions


def _updates(shape: Shape, method: Method, reading: Reading) -> int:
    """Count low-rank updates: at registers, or at every position."""
    if not method.rank:
        return 0
    own = method.registers if reading.keys > reading.tokens else 0
    count = reading.tokens if method.low_rank else own
    return reading.sequences * cost.adapter_flops(
        shape, count, rank=method.rank, layers=reading.adapted
    )


def _unneeded(shape: Shape, method: Method, load: Load) -> int:
    """Count what `_backward` has too much: embeddings that nobody trains get no gradient."""
    if method.rung == "full" or method.projector:
        return 0
    thirds = shape.queries + 2 * shape.keys
    positions = load.rows * load.prefix
    return 2 * positions * (shape.hidden * thirds + 3 * method.rank * shape.hidden)


def _teacher(shape: Shape, method: Method, load: Load) -> int:
    """Count the teacher's layers, which all see everything; early ones may be the student's."""
    k, n = method.drop_layer, shape.layers
    own = n if method.everywhere else n - k
    plain = [
        Reading(own, load.rows, load.prefix, load.prefix),
        Reading(n, load.questions, load.text, load.prefix + load.text),
    ]
    return sum(_linear(shape, each) + _attention(shape, each) for each in plain)


# ---- Bytes ---------------------------------------------------------------------------------------


def saved_bytes(shape: Shape, method: Method, load: Load) -> float:
    """Count what autograd keeps from the forward to the backward pass, weights aside."""
    suffix = suffix_readings(method, load, shape.layers)
    readings = suffix + (prefix_readings(method, load, shape.layers) if method.everywhere else [])
    if method.checkpointing:
        width = method.computed * shape.hidden
        kept = sum(each.layers * each.positions * width for each in readings)
        kept += max(_in_layer(shape, method, each) for each in readings)
    else:
        kept = sum(each.layers * _in_layer(shape, method, each) for each in readings)
        kept += sum(each.adapted * _casts(shape, method) for each in suffix)
    final = (SINGLE + 2 * LONG) * shape.hidden * suffix[1].positions
    losses = 2 if method.has_distill else 1
    kept += _copies(shape, method)
    return kept + final + losses * SINGLE * shape.vocab * load.answers


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
    if method.rung != "register-lora" or reading.keys == reading.tokens or not reading.layers:
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
    updates = method.trained if method.autocast and method.low_rank else 0
    stored = SINGLE if method.rung == "full" else method.stored
    if stored == method.computed:
        return method.computed * updates
    linear = _linear(shape, Reading(shape.layers, 1, 1, 1)) // 2
    readings = 2 if method.everywhere and method.rung != "full" else 1
    return method.computed * (readings * linear + shape.hidden * shape.vocab + updates)


def _ends(shape: Shape) -> int:
    """Add up how wide a layer's Linears are at both ends."""
    attention = 2 * (shape.hidden + shape.queries) + 2 * (shape.hidden + shape.keys)
    return attention + shape.mlp_matrices * (shape.hidden + shape.mlp)
