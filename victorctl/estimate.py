"""What a training step computes, estimated from sizes alone: its matrix products.

The formulas follow `distill.py`; `scripts/speed/estimating.py` compares them, and those of
`memory.py`, with what PyTorch counts. In them k is the number of layers that see visual tokens.
"""

from dataclasses import dataclass, replace

from victorctl import cost
from victorctl.cost import Shape

FLASH_BACKWARD = 2.5  # products of attention's backward, of its forward: the scores come again


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
    def between(self) -> int:
        """Bytes of a number of the states between layers: autocast leaves them as they are."""
        return max(self.computed, 4 if self.rung == "full" else self.stored)

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
    adapted = method.adapted if method.low_rank else 0  # no register stands in a prefix
    early = min(k, adapted)
    return [
        Reading(k, load.rows, load.prefix, load.prefix, early),
        Reading(late, load.rows, load.opening, load.opening, adapted - early),
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
        flops += sum(_again(shape, method, each) for each in with_gradient)
    if method.projector:
        whole = load.tiles * cost.projector_flops(shape)
        flops += 2 * whole - load.tiles * 2 * shape.projected * shape.hidden * shape.features
    if method.teacher == "live":
        flops += head + _teacher(shape, method, load)
    return flops


def _forward(shape: Shape, method: Method, reading: Reading) -> float:
    return (
        linear_flops(shape, reading) + _attention(shape, reading) + _updates(shape, method, reading)
    )


def _again(shape: Shape, method: Method, reading: Reading) -> float:
    """Count what checkpointing computes once more: a layer's last product only for its updates."""
    last = 2 * shape.hidden * shape.mlp * reading.positions
    return _forward(shape, method, reading) - last * (reading.layers - reading.adapted)


def _backward(shape: Shape, method: Method, reading: Reading) -> float:
    """Count gradients of inputs everywhere, and of those weights that are trained."""
    weights = 2 if method.rung == "full" else 1
    return (
        weights * linear_flops(shape, reading)
        + FLASH_BACKWARD * _attention(shape, reading)
        + 2 * _updates(shape, method, reading)
    )


def linear_flops(shape: Shape, reading: Reading) -> int:
    """Count the products of every position with the layers' matrices."""
    widths = 2 * shape.queries + 2 * shape.keys + shape.mlp_matrices * shape.mlp
    return 2 * shape.hidden * widths * reading.layers * reading.positions


def _attention(shape: Shape, reading: Reading) -> int:
    return 4 * shape.queries * reading.keys * reading.layers * reading.positions


def _updates(shape: Shape, method: Method, reading: Reading) -> int:
    """Count low-rank updates: at registers, or at every position."""
    count = reading.tokens if method.low_rank else method.registers
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
    return sum(linear_flops(shape, each) + _attention(shape, each) for each in plain)
