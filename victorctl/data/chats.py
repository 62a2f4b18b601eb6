"""Chats as text: rendered by the model's chat template, with the characters of their answers."""

import functools
import re
from collections.abc import Sequence

import jinja2
from transformers import PreTrainedTokenizerBase, ProcessorMixin  # noqa: TID253
from transformers.utils.chat_template_utils import render_jinja_template  # noqa: TID253

from victorctl.data.formats import MARKER, Message
from victorctl.errors import VictorError

MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")  # in templates that mark answers themselves

Chat = Sequence[Message]
Span = tuple[int, int]  # of characters: the first, and one past the last


def render(chats: Sequence[Chat], processor: ProcessorMixin, *, prompt: bool) -> list[str]:
    """Render chats as texts.

    Args:
        chats: Messages with typed parts.
        processor: Its chat template is used, else its tokenizer's.
        prompt: Whether to end with the opening of an answer.

    Raises:
        VictorError: If there is no template, or it does not take such a chat.
    """
    return _render(chats, processor, prompt=prompt)[0]


def render_answers(
    chats: Sequence[Chat], processor: ProcessorMixin
) -> tuple[list[str], list[list[Span]]]:
    """Render chats that end in an answer, and find the characters of all their answers.

    An answer is what the model has to write after its opening, to the special token that ends it.
    Where a template ends the last one with none, as LLaVA-1.5's, the tokenizer's end token follows.

    Returns:
        Texts, and for each the spans of its answers.

    Raises:
        VictorError: If there is no template, or it does not take such a chat, or it neither marks
            answers nor renders a turn alike whether or not others follow.
    """
    if MARK.search(_template(processor)):
        texts, rough = _render(chats, processor, marks=True)
    else:
        texts = render(chats, processor, prompt=False)
        rough = [_nest(chat, text, processor) for chat, text in zip(chats, texts, strict=True)]
    (opening,) = render([chats[0][:-1]], processor, prompt=True)
    spaced = opening[-1:].isspace()
    trimmed = [
        [_trim(text, span, spaced=spaced) for span in spans]
        for text, spans in zip(texts, rough, strict=True)
    ]
    ends, eos = _end_tokens(processor.tokenizer), processor.tokenizer.eos_token or ""
    texts = [text.rstrip() for text in texts]
    texts = [text if text.endswith(ends) else text + eos for text in texts]
    closed = [
        [(start, _close(text, end, ends)) for start, end in spans]
        for text, spans in zip(texts, trimmed, strict=True)
    ]
    return texts, closed


def _render(
    chats: Sequence[Chat], processor: ProcessorMixin, *, prompt: bool = False, marks: bool = False
) -> tuple[list[str], list[list[Span]]]:
    try:
        return render_jinja_template(
            conversations=chats,
            chat_template=_template(processor),
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=marks,
            **processor.tokenizer.special_tokens_map,
        )
    except jinja2.TemplateError as error:
        fix = "give the row the roles and the order of turns that the model's chat template takes"
        raise VictorError(f"the chat template failed: {error}", fix=fix) from error


def _template(processor: ProcessorMixin) -> str:
    template = processor.chat_template or processor.tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        fix = "put the chat_template.jinja of a model of the same kind into the model's folder"
        raise VictorError("the model has no chat template", fix=fix)
    return template


def _nest(chat: Chat, text: str, processor: ProcessorMixin) -> list[Span]:
    """Find each answer as what a chat gains from its opening to its end."""
    places = [place for place, turn in enumerate(chat) if turn["role"] == "assistant"]
    openings = render([chat[:place] for place in places], processor, prompt=True)
    wholes = render([chat[: place + 1] for place in places], processor, prompt=False)
    if not all(text.startswith(part.rstrip()) for part in (*openings, *wholes)):
        fix = "mark answers in the chat template with {% generation %} and {% endgeneration %}"
        raise VictorError("the chat template changes a turn when others follow it", fix=fix)
    pairs = zip(openings, wholes, strict=True)
    return [(len(opening.rstrip()), len(whole.rstrip())) for opening, whole in pairs]


def _trim(text: str, span: Span, *, spaced: bool) -> Span:
    """Leave out the space around an answer.

    Args:
        text: Rendered chat.
        span: Roughly the answer.
        spaced: Whether openings end in space; if not, the space after one is the model's to write.
    """
    end = len(text[: span[1]].rstrip())
    start = end - len(text[span[0] : end].lstrip())
    return (start if spaced else len(text[:start].rstrip())), end


def _close(text: str, end: int, ends: tuple[str, ...]) -> int:
    """Move the end of an answer behind the token that ends it, if there is one."""
    rest = text[end:].lstrip()
    token = next((token for token in ends if rest.startswith(token)), None)
    if token is None or text[:end].endswith(ends):
        return end
    return len(text) - len(rest) + len(token)


@functools.lru_cache(maxsize=1)  # a tokenizer lists its tokens anew each time, slowly
def _end_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """List the special tokens, without those that start a text or stand for a picture."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special -= {tokenizer.bos_token, getattr(tokenizer, "image_token", MARKER)}
    return tuple(sorted((special | {tokenizer.eos_token}) - {None}))
