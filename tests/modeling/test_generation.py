"""However tokens are generated they are those of plain decoding, and the caller sees no register.

Faults planted and caught: late padding attended; images end in another order; an image answers with
its first register; crop leaves positions; crop leaves the length; crop one token behind an image
refused; an adopted cache forgets to record its past; a guessed image token is visual; guesses on
top of a filled cache allowed; states of the sequence, not the caller's.
"""

import copy

import pytest
import torch
from transformers import (
    DynamicCache,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

from tests.modeling.laws import assert_close
from tests.tiny import tiny_model, tiny_processor
from tests.victor_models import (
    ENDS,
    IMAGE,
    PLAIN,
    each,
    ids,
    inputs,
    pictures,
    shared,
    shared_native,
    victor_llava,
)
from victorctl.modeling_victor import CACHE, VictorCache

GREEDY = {**PLAIN, "max_new_tokens": 6}
OUT = {"return_dict_in_generate": True, "output_logits": True, "output_scores": True}
PROMPTS = ("ab#cd", "abc", "#a#bcde", "ab##")  # pictures 0; none; 1 and 2; 3 and 4


def generate(model, batch, **how):
    torch.manual_seed(0)
    return model.generate(**batch, **{**GREEDY, **how})


# ---- Many rows, many images ----------------------------------------------------------------------

RAGGED = (
    *("a", "#", "ab#", "#a#", "###", "a####b", "c#####", "######d", "##a##b##c#", "abcdefgh"),
    *("########", "a#b#c", "d", "efg#", "##", "h#ijklmnop"),
)  # 1 to 131 tokens, 0 to 8 images


@pytest.mark.parametrize(("positions", "beams"), [("overlay", 1), ("append", 2)])
def test_sixteen_rows_of_up_to_eight_images_generate_what_each_generates_alone(positions, beams):
    model, how = shared("llama", positions=positions, adapted=True), {"max_new_tokens": 3}
    assert sorted({prompt.count("#") for prompt in RAGGED}) == [*range(9)]

    batched = generate(model, inputs(*RAGGED), num_beams=beams, **how)

    uncached = generate(model, inputs(*RAGGED), num_beams=beams, use_cache=False, **how)
    assert torch.equal(batched, uncached)
    alone = [generate(model, single, num_beams=beams, **how)[0, -3:] for single in each(*RAGGED)]
    assert torch.equal(batched[:, -3:], torch.stack(alone))


@pytest.mark.parametrize("positions", ["overlay", "append"])
def test_several_sequences_of_a_row_are_those_of_the_row_repeated(positions):
    model = shared("llama", positions=positions, adapted=True)
    how = {"do_sample": True, "temperature": 2.0}
    repeated = inputs(*(prompt for prompt in PROMPTS for _ in range(3)))
    repeated["pixel_values"] = pictures(5)[[0, 0, 0, *[1, 2] * 3, *[3, 4] * 3]]

    several = generate(model, inputs(*PROMPTS), num_return_sequences=3, **how)

    assert torch.equal(several, generate(model, repeated, **how))
    assert len(several.unique(dim=0)) == 12


# ---- Tokens guessed ahead ------------------------------------------------------------------------


@pytest.fixture
def removed(monkeypatch):
    """Record how many guessed tokens are taken out of the cache again, call by call."""
    calls, crop = [], VictorCache.crop

    def recording(cache, tokens_to_remove):
        calls.append(-tokens_to_remove)
        crop(cache, tokens_to_remove)

    monkeypatch.setattr(VictorCache, "crop", recording)
    return calls


def language_model():
    """Take the text model out of the unconverted model."""
    native = tiny_model()
    model = LlamaForCausalLM(native.config.text_config).eval()
    model.model, model.lm_head = native.model.language_model, native.lm_head
    model.generation_config = native.generation_config
    return model


ASSISTANTS = {
    "text": language_model,
    "native": tiny_model,
    "other": lambda: victor_llava(registers=2, drop_layer=4),
    "itself": lambda: copy.deepcopy(shared("llama", adapted=True)),
}


@pytest.mark.parametrize("prompt", ["ab#cd", "#"])
@pytest.mark.parametrize("assistant", ASSISTANTS)
def test_an_assistant_changes_no_token(assistant, prompt):
    model, batch = shared("llama", adapted=True), inputs(prompt)

    assisted = generate(model, batch, assistant_model=ASSISTANTS[assistant]())

    assert torch.equal(assisted, generate(model, batch))


@pytest.mark.parametrize("positions", ["overlay", "append"])
def test_guesses_may_be_wrong_right_behind_an_image(positions, removed):
    model, batch = shared("llama", positions=positions, adapted=True), inputs("ab#")

    assisted = generate(model, batch, assistant_model=language_model())

    assert removed[0] > 0
    assert torch.equal(assisted, generate(model, batch))


def test_a_victor_model_guesses_for_its_base():
    native, batch = shared_native(text="llama"), inputs("ab#cd")

    assisted = generate(native, batch, assistant_model=victor_llava())

    assert torch.equal(assisted, generate(native, batch))


def only_a_and_b(row, tokens):
    return ids("ab")


@pytest.mark.parametrize("positions", ["overlay", "append"])
@pytest.mark.parametrize("prompt", ["abab#abab", "ab#", "abaab#ab#"])
def test_looking_guesses_up_in_the_prompt_changes_no_token(prompt, positions, removed):
    model, batch = shared("llama", positions=positions, adapted=True), inputs(prompt)
    how = {"max_new_tokens": 12, "prefix_allowed_tokens_fn": only_a_and_b}

    looked_up = generate(model, batch, prompt_lookup_num_tokens=3, **how, **OUT)

    assert torch.equal(looked_up.sequences, generate(model, batch, **how))
    assert looked_up[CACHE].get_seq_length() == len(ids(prompt)) + 11
    assert len(removed) < 12  # some guesses were right
    assert any(removed)  # and some wrong


CACHES = {
    "made by generate": lambda config: {},
    "without layers": lambda config: {CACHE: DynamicCache()},
    "with layers": lambda config: {CACHE: DynamicCache(config=config)},
}


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("text", ["mistral", "qwen2"])  # every layer has a window; every other has
def test_guesses_are_taken_back_where_a_sliding_window_is_full(text, cache, removed):
    model, batch = shared(text, window=7), inputs("abab#abab")
    how = {"max_new_tokens": 12, "prefix_allowed_tokens_fn": lambda row, tokens: ids("abc")}

    given = CACHES[cache](model.config)
    looked_up = generate(model, batch, prompt_lookup_num_tokens=3, **given, **how)

    assert any(removed)
    assert torch.equal(looked_up, generate(model, batch, use_cache=False, **how))


def test_a_victor_assistant_takes_guesses_back_where_its_window_is_full():
    model, batch = shared("mistral", window=7), inputs("abab#abab")

    assisted = generate(model, batch, assistant_model=copy.deepcopy(model))

    assert torch.equal(assisted, generate(model, batch))


def test_a_guessed_image_token_is_text_once_the_prompt_is_read():
    # The prompt does not end in "a", so nothing is guessed before "a" is generated.
    model, batch = shared("llama", adapted=True), inputs("a#b")
    script = [*ids("a"), *[IMAGE] * 5]

    def follow(row, tokens):
        return [script[len(tokens) - 18]]

    how = {"prefix_allowed_tokens_fn": follow, "suppress_tokens": None}
    looked_up = generate(model, batch, prompt_lookup_num_tokens=3, **how, **OUT)

    assert looked_up.sequences[0, 18:].tolist() == script
    for step, expected in zip(
        looked_up.logits, generate(model, batch, **how, **OUT).logits, strict=True
    ):
        assert_close(step, expected)


def test_an_image_token_is_not_guessed_while_the_prompt_is_read():
    # The last "a" is found before the image, so three image tokens are guessed beside its features.
    fix = rf"(?s)16 features for 19 image tokens.*prompt_lookup.*suppress_tokens=\[{IMAGE}\]"
    with pytest.raises(ValueError, match=fix):
        generate(shared("llama"), inputs("a#a"), prompt_lookup_num_tokens=3, suppress_tokens=[ENDS])


@pytest.mark.parametrize("prompt", ["ab#cab", "abcab"])
def test_nothing_is_guessed_on_top_of_a_filled_cache(prompt):
    # transformers would read the whole prompt once more, behind itself.
    model, batch = shared("llama"), inputs(prompt)
    first = generate(model, batch, return_dict_in_generate=True)
    second = inputs(prompt + "abcdef")

    match = (
        rf"(?s){len(ids(prompt)) + 5} tokens of it are cached.*fix: leave out {CACHE}, or prompt"
    )
    with pytest.raises(ValueError, match=match):
        generate(model, second, prompt_lookup_num_tokens=2, **{CACHE: first[CACHE]})


# ---- What is handed out --------------------------------------------------------------------------


def test_every_step_hands_out_states_of_the_callers_length_and_what_the_head_reads_in_them():
    model, batch = shared("llama", adapted=True), inputs("ab#cd", "#e#f")  # 20 and 34 tokens

    output = generate(model, batch, **OUT, output_hidden_states=True)

    assert output.sequences.shape == (2, 34 + 6)
    assert output[CACHE].get_seq_length() == 34 + 5
    for step, states in enumerate(output.hidden_states):
        assert [state.shape[1] for state in states] == [1 if step else 34] * 7
        assert_close(model.lm_head(states[-1][:, -1]), output.logits[step])
        suppressed = output.logits[step].index_fill(1, torch.tensor([IMAGE, ENDS]), -torch.inf)
        assert torch.equal(output.scores[step], suppressed)


@pytest.mark.parametrize("prompt", ["ab#cd", "ab#", "#"])
def test_one_new_token_is_the_likeliest_after_the_prompt_and_is_not_read(prompt):
    model, batch = shared("llama", adapted=True), inputs(prompt)
    with torch.no_grad():
        logits = model(**batch).logits[:, -1].index_fill(1, torch.tensor([IMAGE, ENDS]), -torch.inf)

    output = generate(model, batch, max_new_tokens=1, return_dict_in_generate=True)

    assert output.sequences[:, -1].tolist() == logits.argmax(dim=1).tolist()
    assert output[CACHE].get_seq_length() == len(ids(prompt))


class Seen(LogitsProcessor):
    """Record the tokens that a step is told of, and forbid what the step before has chosen."""

    def __init__(self):
        self.tokens = []

    def __call__(self, input_ids, scores):
        self.tokens.append(input_ids[0].tolist())
        return scores.index_fill(1, input_ids[0, -1:], -torch.inf)


class AfterThree(StoppingCriteria):
    """Stop after three new tokens."""

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] == 20 + 3)


def test_processors_and_criteria_are_told_of_the_callers_tokens_and_no_register():
    model, seen = shared("llama"), Seen()

    tokens = generate(
        model,
        inputs("ab#cd"),
        logits_processor=LogitsProcessorList([seen]),
        stopping_criteria=StoppingCriteriaList([AfterThree()]),
    )[0].tolist()

    assert tokens[:20] == ids("ab#cd")
    assert seen.tokens == [tokens[:20], tokens[:21], tokens[:22]]
    assert len(tokens) == 23


def test_a_streamer_prints_the_answer_and_no_placeholder(capsys):
    tokenizer = tiny_processor().tokenizer
    streamer = TextStreamer(tokenizer, skip_prompt=True)

    tokens = generate(shared("llama"), inputs("ab#cd"), streamer=streamer)[0]

    assert capsys.readouterr().out.split() == tokenizer.decode(tokens[20:]).split()
