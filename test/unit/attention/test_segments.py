"""segments.py against tables, a drawn mask, plain loops and tokenizers trained here."""

import string
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizing import (
    CHAT,
    CUTTABLE,
    PLAIN,
    PROMPTED,
    SENTENCES,
    byte_level,
    metaspace,
    tokenizer_of,
)
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from self_ensemble.attention.masks import (
    create_segment_isolation_mask,
    dense_mask,
    packed_segment_mask,
)
from self_ensemble.attention.positions import POSITIONS, assign_positions, assign_question_positions
from self_ensemble.attention.segments import (
    SplitQuestion,
    concatenate_paraphrases_with_positions,
    concatenate_prompts,
    split_prompts,
)
from self_ensemble.data import PromptTemplate, chat_prompt_template
from self_ensemble.data.names import SEPARATOR
from self_ensemble.system.errors import UserError

repeatable = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def at(mask_mod, q, kv):
    zero = torch.tensor(0)
    return bool(mask_mod(zero, zero, torch.tensor(q), torch.tensor(kv)))


# ---- the isolation mask ---------------------------------------------------------------------

THREE_SEGMENTS = ([(0, 5), (5, 10), (10, 15)], 15)
FIRST_DESCRIPTION = [
    (0, 0, True, "a segment's first token sees itself"),
    (4, 0, True, "the end of segment 0 sees its start"),
    (2, 1, True, "later in segment 0"),
    (7, 5, True, "segment 1 sees its start"),
    (9, 8, True, "later in segment 1"),
    (14, 10, True, "the end of segment 2 sees its start"),
    (1, 3, False, "nothing ahead within segment 0"),
    (10, 14, False, "nothing ahead within segment 2"),
    (5, 4, False, "the token just before the border is another segment's"),
    (7, 0, False, "segment 1 does not see segment 0"),
    (12, 3, False, "segment 2 does not see segment 0"),
    (14, 9, False, "segment 2 does not see segment 1"),
    (4, 5, False, "segment 0 does not see segment 1"),
    (0, 14, False, "segment 0 does not see segment 2"),
    (15, 0, True, "a generated token sees segment 0"),
    (15, 7, True, "and segment 1"),
    (15, 14, True, "and segment 2"),
    (17, 15, True, "and generated tokens before it"),
    (15, 16, False, "and none after it"),
]
BEYOND_IT = [
    (15, 15, True, "the first generated token sees itself"),
    (40, 0, True, "a generated token far behind sees segment 0"),
    (40, 15, True, "and the first generated token"),
    (14, 15, False, "a segment does not see generated tokens"),
]

# prefix 0-2, segment 3-4, separators 5-6, segment 7-9, separator 10, tail 11-12, generated 13-
WITH_EVERYTHING = ([(3, 5), (7, 10)], 11)
EVERYTHING = [
    (2, 0, True, "the prefix sees itself"),
    (0, 2, False, "the prefix is causal"),
    (2, 3, False, "the prefix does not see a segment"),
    (3, 0, True, "segment 0 sees the prefix"),
    (9, 2, True, "segment 1 sees the prefix to its end"),
    (8, 7, True, "segment 1 sees itself"),
    (7, 4, False, "segment 1 does not see segment 0"),
    (7, 6, False, "a segment does not see the separator before it"),
    (9, 10, False, "nor the one behind it"),
    (5, 2, True, "a separator sees the prefix"),
    (5, 5, True, "a separator sees itself"),
    (5, 4, False, "a separator does not see the segment before it"),
    (6, 5, False, "a separator does not see another token of the separator"),
    (10, 6, False, "nor another separator"),
    (11, 0, True, "the tail sees the prefix"),
    (11, 3, True, "the tail sees segment 0"),
    (11, 9, True, "the tail sees segment 1"),
    (11, 5, True, "the tail sees a separator"),
    (11, 10, True, "the tail sees the separator just before it"),
    (12, 11, True, "the tail sees itself"),
    (11, 12, False, "the tail is causal"),
    (9, 11, False, "a segment does not see the tail"),
    (13, 4, True, "a generated token sees a segment"),
    (13, 12, True, "a generated token sees the tail"),
    (13, 14, False, "what pads a sequence on its right is seen by nobody"),
]


def test_the_first_description_has_its_19_cases():
    assert len(FIRST_DESCRIPTION) == 19


@pytest.mark.parametrize("q, kv, expected, why", FIRST_DESCRIPTION + BEYOND_IT)
def test_mask_of_the_first_description(q, kv, expected, why):
    assert at(create_segment_isolation_mask(*THREE_SEGMENTS), q, kv) is expected, why


@pytest.mark.parametrize("q, kv, expected, why", EVERYTHING)
def test_mask_with_prefix_separators_and_tail(q, kv, expected, why):
    assert at(create_segment_isolation_mask(*WITH_EVERYTHING, prefix_length=3), q, kv) is expected


# rows are queries, columns keys: prefix, segments a and b, separators |, fused tokens
DRAWN = """
  p p a a | b | f f
p x
p x x
a x x x
a x x x x
| x x     x
b x x       x
| x x         x
f x x x x x x x x
f x x x x x x x x x
"""


def test_drawn_mask():
    rows = [line[2:].ljust(18)[::2] for line in DRAWN.strip("\n").split("\n")[1:]]
    drawn = torch.tensor([[cell == "x" for cell in row] for row in rows])
    mask_mod = create_segment_isolation_mask([(2, 4), (5, 6)], 7, prefix_length=2)
    assert drawn.shape == (9, 9)
    assert torch.equal(dense_mask(mask_mod, 9, 9), drawn)


@pytest.mark.parametrize(
    "segments, length, prefix",
    [
        ([(0, 3), (2, 5)], 5, 0),
        ([(3, 5), (0, 2)], 5, 0),
        ([(0, 3), (3, 3)], 5, 0),
        ([(0, 6)], 5, 0),
        ([(1, 3)], 5, 2),
        ([], 5, 6),
    ],
    ids=["overlap", "order", "empty", "beyond", "in the prefix", "long prefix"],
)
def test_impossible_segments_are_a_programmers_error(segments, length, prefix):
    with pytest.raises(AssertionError):
        create_segment_isolation_mask(segments, length, prefix_length=prefix)


@st.composite
def layouts(draw):
    """(prefix length, segments, tokens before the tail, all tokens)."""
    prefix = draw(st.integers(0, 4))
    segments, end = [], prefix
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=4)):
        segments.append((end + gap, end + gap + length))
        end += gap + length
    original = end + draw(st.integers(0, 2))
    return prefix, segments, original, original + draw(st.integers(0, 4))


def visible_by_sets(prefix, segments, original, total):
    """The set of keys that each query sees, by the words of the method."""
    seen = []
    for q in range(total):
        keys = {q} | set(range(prefix))
        for start, end in segments:
            if start <= q < end:
                keys |= set(range(start, end))
        if q >= original:
            keys |= set(range(total))
        seen.append({kv for kv in keys if kv <= q})
    return seen


def as_sets(mask):
    return [set(row.nonzero().flatten().tolist()) for row in mask]


@repeatable
@given(layouts())
def test_random_layouts_equal_set_logic(layout):
    prefix, segments, original, total = layout
    mask_mod = create_segment_isolation_mask(segments, original, prefix_length=prefix)
    assert as_sets(dense_mask(mask_mod, total, total)) == visible_by_sets(*layout)


# ---- the packed mask ------------------------------------------------------------------------

PACKED_PREFIX = 3
#             question 0, segments of 3 and 2; question 1, of 1 and 3; two padding tokens
PACKED_IDS = [0, 0, 0, 1, 1, 2, 3, 3, 3, 4, 5]
PACKED_RIGHT = [3, 4, 5, 4, 5, 5, 3, 4, 5, 0, 0]
# q counts packed tokens, kv counts from the prefix's first token on
PACKED = [
    (0, 0, None, True, "a segment sees the prefix"),
    (8, 2, None, True, "the last segment sees the prefix"),
    (2, 3, None, True, "a segment sees its start"),
    (0, 3, None, True, "a token sees itself"),
    (0, 4, None, False, "nothing ahead in the segment"),
    (3, 5, None, False, "another segment of the same question"),
    (2, 6, None, False, "and it is so both ways"),
    (6, 3, None, False, "another question"),
    (6, 8, None, False, "another question, the token just before"),
    (5, 8, None, True, "a segment of one token sees itself"),
    (9, 12, None, True, "a padding token sees itself"),
    (10, 12, None, False, "a padding token does not see another"),
    (9, 11, None, False, "a padding token sees no segment"),
    (8, 12, None, False, "a segment does not see padding"),
    (2, 3, 3, True, "two positions back, window 3"),
    (2, 3, 2, False, "two positions back, window 2"),
    (2, 5, 1, True, "a window of 1 is the token itself"),
    (2, 4, 1, False, "and nothing else"),
    (4, 6, 2, True, "one position back in the second segment"),
    (0, 2, 2, True, "the prefix's last token is one position before a segment that starts behind"),
    (3, 2, 2, False, "but two before one that is pushed right, whatever the indices say"),
    (3, 2, 3, True, "which a window of 3 holds"),
    (8, 2, 4, True, "position 5 to position 2"),
    (8, 1, 4, False, "position 5 to position 1"),
    (9, 12, 1, True, "a padding token sees itself through any window"),
]


@pytest.mark.parametrize("q, kv, window, expected, why", PACKED)
def test_packed_mask(q, kv, window, expected, why):
    mask_mod = packed_segment_mask(
        torch.tensor(PACKED_IDS), torch.tensor(PACKED_RIGHT), PACKED_PREFIX, window
    )
    assert at(mask_mod, q, kv) is expected, why


@st.composite
def packings(draw):
    """(prefix length, [(segment's length, its first position)], padding tokens, window)."""
    prefix = draw(st.integers(0, 5))
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    packed = [(length, prefix + draw(st.integers(0, 6))) for length in lengths]
    return prefix, packed, draw(st.integers(0, 3)), draw(st.none() | st.integers(1, 9))


@repeatable
@given(packings())
def test_random_packings_equal_plain_loops(packing):
    prefix, packed, padding, window = packing
    keys = [("prefix", 0, position) for position in range(prefix)]
    keys += [
        ("segment", name, start + step)
        for name, (length, start) in enumerate(packed)
        for step in range(length)
    ]
    keys += [("padding", name, 0) for name in range(padding)]
    queries = keys[prefix:]
    expected = []
    for q, (kind, name, position) in enumerate(queries):
        seen = set()
        for kv, (its_kind, its_name, its_position) in enumerate(keys):
            own = (its_kind, its_name) == (kind, name) and kv <= q + prefix
            near = window is None or its_position > position - window
            if (its_kind == "prefix" or own) and near:
                seen.add(kv)
        assert q + prefix in seen, "no row is empty"
        expected.append(seen)

    segment_ids = [name if kind == "segment" else 100 + name for kind, name, _ in queries]
    positions = torch.tensor([position for _, _, position in queries])
    mask_mod = packed_segment_mask(torch.tensor(segment_ids), positions, prefix, window)
    assert as_sets(dense_mask(mask_mod, len(queries), len(keys))) == expected


# ---- the ways a mask is evaluated -----------------------------------------------------------

EVALUATED = {
    "isolation": (create_segment_isolation_mask(*WITH_EVERYTHING, prefix_length=3), 15, 15),
    "packed": (
        packed_segment_mask(torch.tensor(PACKED_IDS), torch.tensor(PACKED_RIGHT), PACKED_PREFIX, 4),
        len(PACKED_IDS),
        PACKED_PREFIX + len(PACKED_IDS),
    ),
}


def cell_by_cell(mask_mod, q_length, kv_length):
    return torch.tensor([[at(mask_mod, q, kv) for kv in range(kv_length)] for q in range(q_length)])


@pytest.fixture(params=EVALUATED)
def evaluated(request):
    return EVALUATED[request.param]


def test_dense_mask(evaluated):
    assert torch.equal(dense_mask(*evaluated), cell_by_cell(*evaluated))


def test_mask_under_vmap(evaluated):
    mask_mod, q_length, kv_length = evaluated
    over_keys = torch.vmap(mask_mod, in_dims=(None, None, None, 0))
    over_both = torch.vmap(over_keys, in_dims=(None, None, 0, None))
    zero = torch.tensor(0)
    mapped = over_both(zero, zero, torch.arange(q_length), torch.arange(kv_length))
    assert torch.equal(mapped, cell_by_cell(*evaluated))


def test_mask_in_a_block_mask(evaluated):
    mask_mod, q_length, kv_length = evaluated
    block_mask = create_block_mask(
        mask_mod, None, None, q_length, kv_length, device="cpu", BLOCK_SIZE=1
    )
    assert torch.equal(block_mask.to_dense()[0, 0].bool(), cell_by_cell(*evaluated))


def test_compiled_mask(evaluated):
    mask_mod, q_length, kv_length = evaluated
    compiled = torch.compile(mask_mod, backend="aot_eager", fullgraph=True)
    assert torch.equal(dense_mask(compiled, q_length, kv_length), cell_by_cell(*evaluated))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_equals_dense_softmax(evaluated):
    mask_mod, q_length, kv_length = evaluated
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(1, 2, q_length, 16, generator=generator)
    key, value = torch.randn(2, 1, 2, kv_length, 16, generator=generator)
    block_mask = create_block_mask(mask_mod, None, None, q_length, kv_length, device="cpu")
    flex = flex_attention(query, key, value, block_mask=block_mask)

    def dense(mask):
        scores = (query @ key.transpose(-1, -2)) / 16**0.5
        return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ value

    mask = cell_by_cell(*evaluated)
    assert (flex - dense(mask)).abs().max() < 1e-5
    leaking = mask.clone()
    leaking[4, (~mask[4]).nonzero()[0]] = True
    assert (flex - dense(leaking)).abs().max() > 1e-2, "one key too many shows"


# ---- positions ------------------------------------------------------------------------------

PLACED = {  # lengths 2, 4, 1 behind a prefix of 3: starts, first fused position, turns
    "exact": ((3, 3, 3), 7, (2, 0, 3)),
    "left": ((3, 3, 3), 7, (0, 0, 0)),
    "right": ((5, 3, 6), 7, (0, 0, 0)),
    "sequential": ((3, 5, 9), 10, (0, 0, 0)),
}


def test_every_scheme_is_placed():
    assert set(PLACED) == set(POSITIONS)


@pytest.mark.parametrize("scheme", POSITIONS)
def test_place(scheme):
    placement = assign_positions([2, 4, 1], 3, scheme)
    assert (placement.starts, placement.fused_start, placement.rope_offsets) == PLACED[scheme]
    assert placement.separators == ()


@pytest.mark.parametrize("scheme", POSITIONS)
def test_one_paraphrase_stands_as_in_its_prompt(scheme):
    placement = assign_positions([6], 4, scheme)
    assert (placement.starts, placement.fused_start, placement.rope_offsets) == ((4,), 10, (0,))


@repeatable
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 7))
def test_positions_by_their_words(lengths, prefix):
    exact, left, right, sequential = (
        assign_positions(lengths, prefix, scheme) for scheme in POSITIONS
    )
    for i, n in enumerate(lengths):
        assert exact.starts[i] == left.starts[i] == prefix
        assert exact.fused_start - exact.rope_offsets[i] == prefix + n, "as in prompt i"
        assert right.starts[i] + n == right.fused_start == left.fused_start
        assert sequential.starts[i] == prefix + sum(lengths[:i])
    assert left.fused_start == prefix + max(lengths)
    assert sequential.fused_start == prefix + sum(lengths)
    assert not any(left.rope_offsets + right.rope_offsets + sequential.rope_offsets)


def test_an_unknown_scheme_is_a_programmers_error():
    with pytest.raises(AssertionError, match="middle"):
        assign_positions([2], 0, "middle")


SEPARATED = {  # a a | b b b b | | c behind a prefix of 3
    "exact": ((3, 3, 3), 10, (5, 3, 6), (7, 8, 9)),  # the first fused token follows each segment
    "left": ((3, 3, 3), 10, (0, 0, 0), (7, 8, 9)),
    "right": ((5, 3, 6), 10, (0, 0, 0), (7, 8, 9)),
    "sequential": ((3, 6, 12), 13, (0, 0, 0), (5, 10, 11)),
}


@pytest.mark.parametrize("scheme", POSITIONS)
def test_place_question(scheme):
    segments = ((1,) * 2, (2,) * 4, (3,))
    assert assign_question_positions(SplitQuestion(segments, (9,)), 3, scheme) == assign_positions(
        [2, 4, 1], 3, scheme
    )

    question = SplitQuestion(segments, (), ((2, 8), (7, 8), (8, 8)))
    placement = assign_question_positions(question, 3, scheme)
    found = (placement.starts, placement.fused_start, placement.rope_offsets, placement.separators)
    assert found == SEPARATED[scheme]


# ---- tokenizers that differ -----------------------------------------------------------------


QUESTIONS = [
    ["Who wrote Emma?", "Which author is the one who wrote Emma?", "The author of Emma?", "Emma?"],
    ["The capital of Peru is [MASK].", "Which city is Peru's capital?", "Peru's capital is"],
    ["the capital of Peru is", "Peru's capital"],
    ["7 is what?", "(What) is 7?", '"7"?', "'tis 7?", "-7?", "¿Qué es 7?", "Être 7?", "七是什么？"],
    [" What is it?", "\tWhat is it? ", "What  is it?\n"],
    ["Why"],
    ["?", "??", "!"],
]


CUT_CASES = [pytest.param(name, False, id=name) for name in CUTTABLE] + [
    pytest.param(name, True, id=f"chat, {name}")
    for name in ("byte-level, BOS", "byte-level, trimmed", "question mark and newline")
]
each_tokenizer = pytest.mark.parametrize("name, chat", CUT_CASES)


def with_template(name, chat):
    tokenizer = tokenizer_of(name)
    if not chat:
        return tokenizer, PLAIN
    tokenizer.chat_template = CHAT
    return tokenizer, chat_prompt_template(tokenizer, PLAIN)


def ids_of(tokenizer, template, paraphrase):
    """What the tokenizer itself makes of a prompt."""
    prompt = template.render(paraphrase)
    return tokenizer(prompt, add_special_tokens=template.add_special_tokens)["input_ids"]


def check_cut(tokenizer, template, paraphrases, prefix, question):
    """What holds of every cut."""
    assert len(question.segments) == len(paraphrases)
    assert question.separators == ()
    assert len(question.tail) > 0
    for paraphrase, segment in zip(paraphrases, question.segments, strict=True):
        assert len(segment) > 0
        whole = ids_of(tokenizer, template, paraphrase)
        assert [*prefix, *segment, *question.tail] == whole


@each_tokenizer
def test_prefix_segment_and_tail_are_the_prompts_tokens(name, chat):
    tokenizer, template = with_template(name, chat)
    prefix, split = split_prompts(tokenizer, template, QUESTIONS)
    assert len(split) == len(QUESTIONS)
    for paraphrases, question in zip(QUESTIONS, split, strict=True):
        check_cut(tokenizer, template, paraphrases, prefix, question)
        assert question.lengths == [len(segment) for segment in question.segments]


@each_tokenizer
def test_as_many_bos_as_the_tokenizer_puts(name, chat):
    tokenizer, template = with_template(name, chat)
    prefix, split = split_prompts(tokenizer, template, QUESTIONS)
    expected = 0 if name == "byte-level" else 1
    assert prefix.count(tokenizer.bos_token_id) == expected
    assert prefix[:1].count(tokenizer.bos_token_id) == expected, "it comes first"
    for question in split:
        for part in (*question.segments, question.tail):
            assert tokenizer.bos_token_id not in part


@each_tokenizer
def test_prefix_is_the_templates_alone(name, chat):
    tokenizer, template = with_template(name, chat)
    prefix, together = split_prompts(tokenizer, template, QUESTIONS)
    assert split_prompts(tokenizer, template, []) == (prefix, [])
    for paraphrases, question in zip(QUESTIONS, together, strict=True):
        assert split_prompts(tokenizer, template, [paraphrases]) == (prefix, [question])


def texts_of(tokenizer, ids):
    """The characters each token adds to the text, by decoding one token more at a time."""
    texts, before = [], ""
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count], clean_up_tokenization_spaces=False)
        texts.append(text[len(before) :])
        before = text
    return texts


def longest_shared_tail(tokenizer, template, paraphrases):
    """By decoded text and not by offsets."""
    prompts = [ids_of(tokenizer, template, paraphrase) for paraphrase in paraphrases]
    texts = [texts_of(tokenizer, ids) for ids in prompts]
    best = 0
    for count in range(1, min(map(len, prompts)) + 1):
        within = all(len("".join(text[-count:])) <= len(template.tail) for text in texts)
        if within and len({tuple(ids[-count:]) for ids in prompts}) == 1:
            best = count
    return tuple(prompts[0][-best:])


ASCII_QUESTIONS = [[text for text in texts if text.isascii()] for texts in QUESTIONS]


@each_tokenizer
def test_tail_is_the_longest_shared_suffix_within_the_tail_text(name, chat):
    tokenizer, template = with_template(name, chat)
    if name == "whole words":
        expected = [tuple(tokenizer.convert_tokens_to_ids(["A", ":"]))] * len(ASCII_QUESTIONS)
    else:
        expected = [longest_shared_tail(tokenizer, template, texts) for texts in ASCII_QUESTIONS]
    _, split = split_prompts(tokenizer, template, ASCII_QUESTIONS)
    assert [question.tail for question in split] == expected


@each_tokenizer
def test_prefix_is_all_but_the_space_that_goes_with_the_paraphrase(name, chat):
    tokenizer, template = with_template(name, chat)
    prefix, _ = split_prompts(tokenizer, template, [])
    text = "".join(texts_of(tokenizer, prefix))
    if not chat:
        text = text.removeprefix("<bos>").lstrip(" ")
    if name == "whole words":
        assert text.split() == " ".join(tokenizer.tokenize(template.head)).split()
    else:
        assert text == template.head.removesuffix(" ")


@repeatable
@given(
    st.sampled_from(CUT_CASES),
    st.lists(
        st.builds(
            str.__add__,
            st.characters(categories=["L"]) | st.sampled_from(string.ascii_letters + '7[("'),
            st.text(
                st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n?:A]"), max_size=9
            ),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_any_text_that_begins_with_a_letter_can_be_cut(case, paraphrases):
    tokenizer, template = with_template(*case.values)
    fixed, _ = split_prompts(tokenizer, template, [])
    prefix, [question] = split_prompts(tokenizer, template, [paraphrases])
    assert prefix == fixed
    check_cut(tokenizer, template, paraphrases, prefix, question)


def test_a_token_that_straddles_the_tails_border_is_the_segments():
    tokenizer = tokenizer_of("question mark and newline")
    merged = tokenizer.convert_tokens_to_ids("?Ċ")
    newline, a, colon = tokenizer.convert_tokens_to_ids(["Ċ", "A", ":"])
    questions = [["Who?", "Which city?"], ["Who?", "The city is"], ["The city is", "It is"]]
    _, [asked, mixed, stated] = split_prompts(tokenizer, PLAIN, questions)
    assert [segment[-1] for segment in asked.segments] == [merged, merged]
    assert [segment[-1] for segment in mixed.segments] == [merged, newline]
    assert newline not in stated.segments[0] + stated.segments[1]
    assert asked.tail == mixed.tail == (a, colon)
    assert stated.tail == (newline, a, colon)


@pytest.mark.parametrize("tail", ["answer:", "?\nA:"])
@pytest.mark.parametrize("name", ["byte-level, BOS", "byte-level, trimmed"])
def test_a_space_before_the_border_keeps_its_token_in_the_segment(name, tail):
    tokenizer = tokenizer_of(name)
    tokens = tokenizer.tokenize(f" {tail}")
    assert tokens[0].startswith("Ġ") and len(tokens[0]) > 1 and len(tokens) > 1
    paraphrases = [" Who ", " Which city is it "]
    _, [question] = split_prompts(tokenizer, PromptTemplate("Q:", tail), [paraphrases])
    first, *rest = tokenizer.convert_tokens_to_ids(tokens)
    assert [segment[-1] for segment in question.segments] == [first, first]
    assert question.tail == tuple(rest)


def test_the_prefix_leaves_what_some_paraphrase_may_change():
    tokenizer = tokenizer_of("question mark and newline")
    template = PromptTemplate("Answer:\n", "\nA:")
    assert "ĊĊ" in tokenizer.tokenize("Answer:\n\nWho?")
    paraphrases = ["Who?", "\nWho?"]
    prefix, [question] = split_prompts(tokenizer, template, [paraphrases])
    assert tokenizer.decode(prefix) == "<bos>Answer:"
    check_cut(tokenizer, template, paraphrases, prefix, question)


def test_trimmed_offsets_cut_alike():
    whole, trimmed = tokenizer_of("byte-level, BOS"), tokenizer_of("byte-level, trimmed")
    text = "Q: Who  is it?"
    offsets = [t(text, return_offsets_mapping=True)["offset_mapping"] for t in (whole, trimmed)]
    assert offsets[0] != offsets[1]
    assert split_prompts(whole, PLAIN, QUESTIONS) == split_prompts(trimmed, PLAIN, QUESTIONS)


def test_a_segment_keeps_a_token_where_the_paraphrase_has_none():
    tokenizer = tokenizer_of("whole words")
    prefix, [question] = split_prompts(tokenizer, PLAIN, [[" ", "Who is it?"]])
    assert question.tail == tuple(tokenizer.convert_tokens_to_ids([":"]))
    check_cut(tokenizer, PLAIN, [" ", "Who is it?"], prefix, question)


def test_a_tail_that_melts_into_the_paraphrases_is_refused():
    tokenizer = tokenizer_of("byte-level, BOS")
    assert len(tokenizer.tokenize("walked")) == len(tokenizer.tokenize("wanted")) == 1
    with pytest.raises(UserError, match="'walk' share no last token"):
        split_prompts(tokenizer, PromptTemplate("Q:\n", "ed"), [["walk", "want"]])
    with pytest.raises(UserError, match="'Is it' share no last token"):
        split_prompts(metaspace(SENTENCES + PROMPTED), PLAIN, [["Is it", "Is it?"]])


def test_a_paraphrase_that_melts_into_the_prefix_is_refused():
    tokenizer = tokenizer_of("byte-level, BOS")
    template = PromptTemplate("Q: Wh", "\nA:")
    prefix, _ = split_prompts(tokenizer, template, [["y?", "en?"]])
    assert tokenizer.decode(prefix) == "<bos>Q: Wh"
    with pytest.raises(UserError, match=r"before the paraphrase 'o is it\?'"):
        split_prompts(tokenizer, template, [["y?", "o is it?"]])


class WithoutOffsets:
    is_fast = False


@cache
def with_eos():
    return byte_level(eos=True)


REFUSING = [
    lambda tokenizer: split_prompts(tokenizer, PLAIN, [["Who?"]]),
    lambda tokenizer: concatenate_paraphrases_with_positions(["Who?"], tokenizer),
    lambda tokenizer: concatenate_prompts(tokenizer, PLAIN, ["Who?"], SEPARATOR),
]


@pytest.mark.parametrize("attempt", REFUSING, ids=["split", "positions", "concat"])
def test_tokenizers_that_cannot_be_used(attempt):
    with pytest.raises(UserError, match="no character offsets"):
        attempt(WithoutOffsets())
    with pytest.raises(UserError, match=r"<eos> behind every prompt.*add_eos_token"):
        attempt(with_eos())


def test_a_chat_template_needs_no_special_tokens_of_the_tokenizer():
    tokenizer = with_eos()
    tokenizer.chat_template = CHAT
    template = chat_prompt_template(tokenizer, PLAIN)
    paraphrases = ["Who?", "Who is it"]
    prefix, [question] = split_prompts(tokenizer, template, [paraphrases])
    check_cut(tokenizer, template, paraphrases, prefix, question)
    assert tokenizer.eos_token_id not in question.tail


# ---- joined prompts -------------------------------------------------------------------------


def owners_by_text(tokenizer, ids, prompts, separator):
    """Whose each token is, by the characters it decodes to: a prompt's index, or None."""
    characters = []
    for index, prompt in enumerate(prompts):
        characters += [None] * len(separator) * (index > 0) + [index] * len(prompt)
    owners, at = [], 0
    for token, text in zip(ids, texts_of(tokenizer, ids), strict=True):
        if token == tokenizer.bos_token_id:
            owners.append(0)
            continue
        held = [owner for owner in characters[at : at + len(text)] if owner is not None]
        owners.append(held[0] if held else None)
        at += len(text)
    assert at == len(characters)
    return owners


def owners_by_positions(positions, total):
    owners = [None] * total
    for index, (start, end) in enumerate(positions):
        assert 0 <= start < end <= total
        assert owners[start:end] == [None] * (end - start), "ranges do not overlap"
        owners[start:end] = [index] * (end - start)
    return owners


def check_joined(tokenizer, prompts, separator):
    """Text, total, and whose each token is."""
    whole = separator.join(prompts)
    ids = tokenizer(whole)["input_ids"]
    expected = owners_by_text(tokenizer, ids, prompts, separator)
    if set(expected) - {None} != set(range(len(prompts))):
        with pytest.raises(UserError, match="no token to the prompt"):
            concatenate_paraphrases_with_positions(prompts, tokenizer, separator)
        return
    text, positions, total = concatenate_paraphrases_with_positions(prompts, tokenizer, separator)
    assert (text, total, len(positions)) == (whole, len(ids), len(prompts))
    assert owners_by_positions(positions, total) == expected


TEXT_EXACT = [  # decoding gives their text back, character for character
    "byte-level",
    "byte-level, BOS",
    "byte-level, trimmed",
    "question mark and newline",
    "anything merges",
    "anything merges, trimmed",
]
PROMPTS = ["Q: Who wrote Dune?\nA:", "Q: The author of Emma\nA:", "Q: Emma?\nA:"]
SEPARATORS = [SEPARATOR, "", " ", "\n", "\n\n", "[SEP]", " | ", "?", "...", " Q:"]


@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize("name", TEXT_EXACT)
def test_joined_prompts(name, separator):
    tokenizer = tokenizer_of(name)
    check_joined(tokenizer, PROMPTS, separator)
    check_joined(tokenizer, PROMPTS[:1], separator)
    check_joined(tokenizer, [" Who?  ", " ", "? \n", "\nA: "], separator)


def test_a_prompt_without_a_token_of_its_own_is_refused():
    tokenizer = tokenizer_of("question mark and newline")
    with pytest.raises(UserError, match=r"no token to the prompt '\\n' alone"):
        concatenate_paraphrases_with_positions(["Who?", "\n", "A:"], tokenizer, "")


@repeatable
@given(
    st.sampled_from(TEXT_EXACT),
    st.lists(
        st.lists(
            st.sampled_from([" ", "\n", "?", ":", "A", "Q", " Who", "[", "SEP", "]", "is", "7"]),
            min_size=1,
            max_size=5,
        ).map("".join),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(SEPARATORS),
)
def test_any_prompts_joined(name, prompts, separator):
    check_joined(tokenizer_of(name), prompts, separator)


def test_joined_prompts_by_hand():
    tokenizer = tokenizer_of("byte-level, BOS")
    text, positions, total = concatenate_paraphrases_with_positions(["Q: A", " Q:"], tokenizer)
    ids = tokenizer(text)["input_ids"]
    assert text == "Q: A [SEP]  Q:"
    tokens = ["<bos>", "Q", ":", "ĠA", "Ġ[", "SEP", "]", "Ġ", "ĠQ", ":"]
    assert tokenizer.convert_ids_to_tokens(ids) == tokens
    assert (positions, total) == ([(0, 4), (8, 10)], 10)


@pytest.mark.parametrize(
    "name, separator, between",
    [
        ("byte fallback", SEPARATOR, "▁[SEP]"),
        ("byte fallback", "\n", "<0x0A>"),
        ("byte fallback", "é", "<0xC3><0xA9>"),
        ("metaspace", SEPARATOR, "▁[SEP]"),
        ("whole words", SEPARATOR, "[SEP]"),
        ("whole words", "\n", ""),
        ("byte-level", "é", "Ã©"),
        ("byte-level", " – ", "ĠâĢĵ"),
    ],
)
def test_what_stands_between_joined_prompts(name, separator, between):
    tokenizer = tokenizer_of(name)
    prompts = ["Q: Who is it?\nA:", "Q: éé\nA:"]
    text, positions, total = concatenate_paraphrases_with_positions(prompts, tokenizer, separator)
    ids = tokenizer(text)["input_ids"]
    assert total == len(ids)
    (first, end), (start, last) = positions
    assert (first, last) == (0, total)
    assert "".join(tokenizer.convert_ids_to_tokens(ids[end:start])) == between


def test_special_tokens_are_as_the_caller_says():
    tokenizer = tokenizer_of("byte-level, BOS")
    _, with_bos, total = concatenate_paraphrases_with_positions(PROMPTS, tokenizer)
    _, without, total_without = concatenate_paraphrases_with_positions(
        PROMPTS, tokenizer, add_special_tokens=False
    )
    assert total == total_without + 1
    assert with_bos[0] == (0, without[0][1] + 1)
    assert with_bos[1:] == [(start + 1, end + 1) for start, end in without[1:]]


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_layout_concat(chat):
    tokenizer, template = with_template("byte-level, BOS", chat)
    paraphrases = ["Who wrote Emma?", "Emma is by", "Emma?"]
    question = concatenate_prompts(tokenizer, template, paraphrases, SEPARATOR)
    text = SEPARATOR.join(template.render(paraphrase) for paraphrase in paraphrases)
    ids = tokenizer(text, add_special_tokens=not chat)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == (3 if chat else 1)

    assert question.tail == ()
    between = [token for _, token in question.separators]
    assert tokenizer.decode(between) == 2 * (SEPARATOR if chat else SEPARATOR.rstrip())
    joined = dict(question.separators)
    own = iter(token for segment in question.segments for token in segment)
    assert [joined[i] if i in joined else next(own) for i in range(len(ids))] == ids
    for segment, paraphrase in zip(question.segments, paraphrases, strict=True):
        shown = tokenizer.decode(segment).removeprefix("" if chat else "<bos>")
        assert shown.lstrip(" ") == template.render(paraphrase)

    placement = assign_question_positions(question, 0, "sequential")
    stands = set(placement.separators)
    for start, segment in zip(placement.starts, question.segments, strict=True):
        stands |= set(range(start, start + len(segment)))
        assert tuple(ids[start : start + len(segment)]) == segment
    assert stands == set(range(len(ids)))
    assert placement.fused_start == len(ids)
    positions = [(s, s + n) for s, n in zip(placement.starts, question.lengths, strict=True)]
    create_segment_isolation_mask(positions, len(ids))
