"""The debug script: what it shows is what the engine does; its stops; its page."""

import base64
import io
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import torch
from chromium import open_in_chromium
from oracle import joint_oracle, mean_oracle
from small import run_script, write_jsonl
from tiny import VOCABULARY, TinyTokenizer, tiny_model
from transformers import AutoTokenizer

import debug_flexattention as debug
import flex_attention_generate
from self_ensemble.attention import kv_state
from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.kv_state import DecodeState, EncodeState
from self_ensemble.attention.masks import create_segment_isolation_mask, dense_mask
from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.attention.segments import SplitQuestion
from self_ensemble.data.result_files import result_file
from self_ensemble.diagnostics import debug_page, pictures
from self_ensemble.diagnostics.config import DebugConfig
from self_ensemble.diagnostics.inspection import Inspection
from self_ensemble.diagnostics.isolation import ANSWER_TOKENS, check_isolation
from self_ensemble.diagnostics.mask_drawing import mask_cells, question_parts
from self_ensemble.diagnostics.tables import isolation_lines
from self_ensemble.diagnostics.trace import trace_question, watch
from self_ensemble.diagnostics.words import percent
from self_ensemble.experiment.questions import read_questions
from self_ensemble.generation.config import GenerationConfig
from self_ensemble.generation.engine import Engine
from self_ensemble.generation.loading import loaded_engine
from self_ensemble.generation.request import Request
from self_ensemble.generation.stopping import NeverStop
from self_ensemble.generation.streams import attention_streams
from self_ensemble.methods.attention_fusion import AttentionFusion
from self_ensemble.models.config import ModelConfig
from self_ensemble.models.loading import find_model
from self_ensemble.system.console import visible
from self_ensemble.system.errors import UserError

HOSTILE = "</p><script>console.error('out')</script><img src=x onerror=alert(1)> $x$ \x1b[31m &amp;"


def run(capsys, *argv, stdin=None, monkeypatch=None):
    """Exit status, lines of stdout, stderr."""
    if stdin is not None:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    capsys.readouterr()
    status = run_script(debug, *argv)
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


def stages(lines) -> list[str]:
    """The names of what was shown, in order."""
    return [match[1] for line in lines if (match := re.fullmatch(r"\[([a-z0-9 ]+)\]", line))]


def chosen(lines) -> str:
    """The tokens that were chosen at each step, joined."""
    found = (re.match(r"   chosen: '(.*)' \([\d.]+%\)", line) for line in lines)
    return "".join(match[1] for match in found if match)


def summary(lines) -> dict[str, str]:
    """Name → answer of the summary's rows."""
    rows = (re.match(r"   (\S.*?\S)  +(.*?)  +(right|wrong)  +[\d.]+%", line) for line in lines)
    return {match[1]: match[2] for match in rows if match}


# ---- what is shown is what was generated --------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--fusion", "joint"),
        ("--positions", "left", "--fusion-tau", "0.5", "--weights", "3,0,1,1"),
        ("--fusion-tau", "1", "--weights-by", "entropy:2"),
    ],
    ids=lambda flags: "-".join(flags) or "default",
)
def test_tokens_and_answers_are_those_of_generation(small, capsys, tmp_path, flags):
    both = ("--model", small.folder, "--dataset", small.questions, "--num_paraphrases", 4, *flags)
    both = (*both, "--max_samples", 2, "--max_new_tokens", 12)
    status, lines, _ = run(capsys, *both)
    assert status == 0
    starts = [at for at, line in enumerate(lines) if re.match(r"question \d of 2: ", line)]
    args = flex_attention_generate.parse_args([*map(str, both), "--output_dir", str(tmp_path)])
    rows = pd.read_feather(result_file(flex_attention_generate.main(args), ".feather"))
    for begin, end, row in zip(starts, [*starts[1:], None], rows.itertuples(), strict=True):
        shown = lines[begin:end]
        # An end-of-sequence token and other special ones are shown, and are no text.
        text = re.sub("<eos>|<mark>", "", chosen(shown))
        assert text == visible(row.generation)
        assert summary(shown)["attention fusion"] == visible(row.prediction)
        assert visible(" | ".join(row.answers)) in "\n".join(shown)


def test_the_demo(capsys, tmp_path):
    status, lines, err = run(capsys)
    assert (status, err) == (0, "")
    steps = [name for name in stages(lines) if name.startswith("step")]
    assert stages(lines) == ["prompts", "mask", "isolation", *steps, "summary"]
    assert any("isolation check: passed" in line for line in lines)
    args = ["--max_samples", "1", "--output_dir", str(tmp_path)]
    stem = flex_attention_generate.main(flex_attention_generate.parse_args(args))
    [row] = pd.read_feather(result_file(stem, ".feather")).itertuples()
    assert chosen(lines) == visible(row.generation)
    assert len(summary(lines)) == 11  # fused, five alone, five left out
    assert max(map(len, lines)) < 130


@pytest.fixture(scope="module")
def engine(small):
    source = find_model(ModelConfig(name=str(small.folder), device="cpu", dtype="float32"))
    with loaded_engine(source, attention="auto") as engine:
        yield engine


@pytest.fixture(scope="module")
def asked(small):
    """(records, template) of the small questions."""
    argv = ["--dataset", str(small.questions), "--num_paraphrases", "4", "--max_samples", "3"]
    config = flex_attention_generate.parse_args(argv)
    questions = read_questions(config.questions, config.prompt, model=config.model.name)
    return questions.records, questions.template


def look_into(engine, asked, number=0, settings=None, **changes):
    records, template = asked
    method = settings or AttentionFusion(positions="exact", tau=0.0)
    config = DebugConfig(method=method, max_new_tokens=6, **changes)
    return Inspection(engine, template, records[number], config)


@pytest.mark.parametrize("number", [1, 2])
def test_alone_is_a_stock_forward_of_that_prompt(small, engine, asked, number):
    found = look_into(engine, asked, number)
    tokens = [step.token for step in found.trace.steps]
    assert len(tokens) >= 2
    for i, text in enumerate(found.record.paraphrases):
        ids = small.tokenizer(found.template.render(text))["input_ids"]
        for t, step in enumerate(found.trace.steps):
            with torch.no_grad():
                stock = small.model(torch.tensor([ids + tokens[:t]])).logits[0, -1]
            assert (step.single[i] - stock).abs().max() < 1e-3


@pytest.mark.parametrize(
    "settings",
    [
        AttentionFusion(positions="exact", tau=0.0),
        AttentionFusion(positions="exact", tau=1.0),
        AttentionFusion(positions="left", tau=0.7, weights=(3.0, 0.0, 1.0, 0.5)),
        AttentionFusion(positions="right", fusion="joint", weights=(3.0, 0.0, 1.0, 0.5)),
        AttentionFusion(positions="exact", tau=1.0, weights_by="entropy:3"),
        AttentionFusion(positions="left", fusion="joint", weights_by="entropy:3"),
    ],
    ids=["exact", "mass", "tau", "joint", "entropy", "joint, entropy"],
)
def test_left_out_is_the_engines_own_without_it(small, engine, asked, settings):
    found = look_into(engine, asked, 1, settings)
    record, trace = found.record, found.trace
    for i in range(4):
        rest = [text for j, text in enumerate(record.paraphrases) if j != i]
        weights = settings.weights and [u for j, u in enumerate(settings.weights) if j != i]
        method = replace(settings, weights=weights and tuple(weights))
        config = GenerationConfig(max_new_tokens=6)
        request = method.request(engine, found.template, [rest], config)
        [[(_, answer)]] = engine.generate(request)
        assert trace.left_out[i].token_ids == answer.token_ids

        segments = [s for j, s in enumerate(found.question.segments) if j != i]
        fused = [*found.question.tail, *(step.token for step in trace.steps[:-1])]
        if settings.weights_by is not None:
            weights = by_entropy(trace, [j for j in range(4) if j != i], 3)
        more = {"weights": weights}
        oracle = joint_oracle if settings.fusion == "joint" else mean_oracle
        if oracle is mean_oracle:
            more["tau"] = settings.tau_used
        given = (small.model, found.prefix, segments, fused, settings.positions)
        expected = oracle(*given, **more)[len(found.question.tail) - 1 :]
        logits = torch.stack([step.left_out[i] for step in trace.steps])
        assert (logits - expected).abs().max() < 1e-3
        for t, step in enumerate(trace.steps):
            assert (i in step.decisive) == (int(expected[t].argmax()) != step.token)


def by_entropy(trace, which, strength):
    """The weights of these paraphrases, from what each says alone first."""
    logprobs = trace.steps[0].single[which].log_softmax(-1)
    entropies = -(logprobs.exp() * logprobs).sum(-1)
    return (-strength * entropies).softmax(-1).tolist()


@pytest.mark.parametrize("positions", ["exact", "left"])
def test_weights_that_are_found_are_shown(engine, asked, positions):
    """As the engine finds and uses them, in the answer and in every table of a step."""
    settings = AttentionFusion(positions=positions, tau=1.0, weights_by="entropy:3")
    found = look_into(engine, asked, 1, settings)
    expected = by_entropy(found.trace, range(4), 3)
    assert found.trace.weights == pytest.approx(expected, abs=1e-5)
    assert max(expected) > 1.2 * min(expected)
    assert "tau 1, weights by entropy:3" in found.show_settings()[0]
    request = settings.request(
        engine, found.template, [found.record.paraphrases], GenerationConfig(max_new_tokens=6)
    )
    [[(_, answer)]] = engine.generate(request)
    assert found.trace.answer.token_ids == answer.token_ids
    assert found.trace.answer.logprobs == pytest.approx(answer.logprobs, abs=1e-4)
    page = debug_page.render_page([found], [dict.fromkeys(pictures.PICTURES, b"")])
    for text in ("\n".join(found.show_step(0)), page):
        assert all(percent(weight) in text for weight in expected)


def test_weights_that_are_given_are_shown(engine, asked):
    given = AttentionFusion(positions="exact", weights=(3.0, 0.0, 1.0, 1.0))
    assert "60.0%" in look_into(engine, asked, 1, given).show_step(0)[-6]
    assert "weight" not in "\n".join(look_into(engine, asked, 1).show_step(0))


def test_cuts(small, engine, asked):
    found = look_into(engine, asked, 0, verbose=True)
    rows = [re.match(r"(prefix|segment \d|tail) +(\d+) +(.*)", line) for line in found.show_split()]
    parts = {row[1]: (int(row[2]), row[3].split("|")) for row in rows if row}
    assert all(count == len(texts) for count, texts in parts.values())
    for i, text in enumerate(found.record.paraphrases):
        ids = small.tokenizer(found.template.render(text))["input_ids"]
        shown = [text for part in ("prefix", f"segment {i}", "tail") for text in parts[part][1]]
        pieces = [visible(small.tokenizer.decode([token])) for token in ids]
        # Spaces at a row's end are not printed.
        assert [piece.strip() for piece in shown] == [piece.strip() for piece in pieces]
    total = sum(count for count, _ in parts.values())
    whole = total + 3 * (parts["prefix"][0] + parts["tail"][0])
    assert f"{total} tokens, where 4 whole prompts have {whole}." in found.show_split()
    why = "<bos>: the tokenizer's post-processor puts it before every text"
    assert f"BOS: 1 in a prompt ({why})." in found.show_split()
    short = look_into(engine, asked, 0).show_split()
    [prefix] = [line for line in short if line.startswith("prefix")]
    assert f"... {parts['prefix'][0] - 12} more ..." in prefix


def test_a_chat_template_is_cut_too(small, capsys, tmp_path):
    folder = shutil.copytree(small.folder, tmp_path / "chatty")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<x>{{ m['content'] }}</x>{% endfor %}\nA is:"
    )
    tokenizer.save_pretrained(folder)
    flags = ("--model", folder, "--dataset", small.questions, "--num_paraphrases", 2)
    flags = (*flags, "--chat_template", "--max_new_tokens", 4)
    status, lines, _ = run(capsys, *flags)
    assert status == 0
    why = "the chat template writes it, so the tokenizer's own is left out"
    assert f"   BOS: 1 in a prompt (<bos>: {why})." in lines
    [prefix] = [line for line in lines if line.startswith("   prefix ")]
    assert "<bos>|<|x|>" in prefix and prefix.count("<bos>") == 1
    args = [str(flag) for flag in flags] + ["--max_samples", "1", "--output_dir", str(tmp_path)]
    stem = flex_attention_generate.main(flex_attention_generate.parse_args(args))
    [row] = pd.read_feather(result_file(stem, ".feather")).itertuples()
    assert re.sub("<eos>|<mark>", "", chosen(lines)) == visible(row.generation)


def test_nothing_is_left_out_of_nothing(engine, asked):
    records, template = asked
    given = {"settings": AttentionFusion(positions="exact"), "max_new_tokens": 3}
    trace = trace_question(engine, template, records[0].paraphrases[:1], **given)
    assert trace.left_out == (None,)
    assert all(step.left_out == (None,) and step.decisive == [] for step in trace.steps)
    assert trace.single[0].token_ids == trace.answer.token_ids
    # All the weight on one: without it nothing is asked.
    given["settings"] = AttentionFusion(positions="exact", weights=(0.0, 2.0))
    trace = trace_question(engine, template, records[0].paraphrases[:2], **given)
    assert [answer is None for answer in trace.left_out] == [False, True]
    assert trace.left_out[0].token_ids == trace.answer.token_ids == trace.single[1].token_ids


# ---- the attention that is shown ----------------------------------------------------------------


PREFIX, TAIL = tuple(range(20, 29)), (30, 31, 32)
SEGMENTS = tuple(tuple(range(40 + 7 * i, 40 + 7 * i + n)) for i, n in enumerate((6, 1, 7, 4)))
QUESTION = SplitQuestion(SEGMENTS, TAIL)
STEPS = 4


def watched(model, positions, fusion, question=QUESTION, prefix=PREFIX):
    """(tokens, logits [T, V], attention [T, L, H, N + 2]) as the debug script gets them."""
    assert max(map(max, question.segments)) < VOCABULARY
    tiny = Engine(model, TinyTokenizer(), FlexAttentionWrapper(model, "eager"))
    [stream] = attention_streams(question, len(prefix), positions)
    decode = watch(tiny, prefix, stream, fusion, STEPS, stop=NeverStop())
    unobserved = unobserved_logits(tiny, prefix, stream, fusion)
    logits = torch.stack(decode.logits)
    assert torch.equal(logits, unobserved)  # looking changes nothing
    return decode.tokens, logits, torch.stack(decode.attention)


def unobserved_logits(engine, prefix, stream, fusion):
    kept = []

    def keep(logits, weights):
        kept.append(logits[0, 0].clone())
        return logits[:, 0]

    list(engine.generate(Request(prefix, [[stream]], fusion, keep, STEPS, stop=NeverStop())))
    return torch.stack(kept)


def mean_shares(model, positions, tokens, tau, weights, question=QUESTION, prefix=PREFIX):
    """Of the whole prompts side by side, [T, L, H, N + 2]."""
    P, N, fused = len(prefix), len(question.segments), [*question.tail, *tokens[:-1]]
    F, layers = len(fused), {}
    u = torch.ones(N) if weights is None else torch.tensor(weights)

    def keep(layer, probabilities, lse):  # [N, H, S, S], [N, H, S]; rows are padded on the left
        share = u[:, None, None] * torch.exp(tau * (lse - lse.amax(0)))
        share = (share / share.sum(0))[:, :, -F:, None]
        p = probabilities[:, :, -F:] * share  # [N, H, F, S]
        S, parts = p.shape[-1], []
        starts = [S - F - n - P for n in question.lengths]
        parts.append(sum(p[i, :, :, at : at + P].sum(-1) for i, at in enumerate(starts)))
        parts += [p[i, :, :, at + P : S - F].sum(-1) for i, at in enumerate(starts)]
        parts.append(p[:, :, :, S - F :].sum((0, -1)))
        layers[layer] = torch.stack(parts, dim=-1)[:, len(question.tail) - 1 :]  # [H, T, N + 2]

    mean_oracle(model, prefix, question.segments, fused, positions, tau, weights, watch=keep)
    return torch.stack([layers[layer] for layer in sorted(layers)]).permute(2, 0, 1, 3)


def joint_shares(model, positions, tokens, weights):
    """Of one sequence under the dense mask, [T, L, H, N + 2]."""
    fused, layers = [*TAIL, *tokens[:-1]], {}
    sizes = [len(PREFIX), *map(len, SEGMENTS), len(fused)]

    def keep(layer, probabilities, lse):
        parts = probabilities[0, :, -len(fused) + len(TAIL) - 1 :].split(sizes, dim=-1)
        layers[layer] = torch.stack([part.sum(-1) for part in parts], dim=-1)

    joint_oracle(model, PREFIX, SEGMENTS, fused, positions, weights, watch=keep)
    return torch.stack([layers[layer] for layer in sorted(layers)]).permute(2, 0, 1, 3)


@pytest.mark.parametrize(
    ("name", "positions", "tau", "weights"),
    [
        ("llama", "exact", 0.0, None),
        ("llama", "exact", 0.6, (3.0, 0.0, 1.0, 0.5)),
        ("gemma2", "exact", 0.0, None),
        ("gemma2", "right", 0.0, (3.0, 0.0, 1.0, 0.5)),
        ("gpt2", "left", 1.0, None),
    ],
)
def test_shares_are_the_dense_oracles(name, positions, tau, weights):
    model = tiny_model(name)
    tokens, _, found = watched(model, positions, Fusion.of("mean", tau, weights, "cpu"))
    expected = mean_shares(model, positions, tokens, tau, weights)
    assert found.shape == (STEPS, 4, 4, 6)
    assert (found.sum(-1) - 1).abs().max() < 1e-5
    assert (found - expected).abs().max() < 1e-4
    # They differ from step to step, layer to layer, head to head and part to part.
    assert min(found.std(axis).max() for axis in range(4)) > 1e-2
    if weights is not None:
        assert found[..., 2].abs().max() == 0  # the paraphrase of weight 0


@pytest.mark.parametrize("weights", [None, (3.0, 0.0, 1.0, 0.5)])
def test_joint_shares_are_the_dense_oracles(weights):
    model = tiny_model("qwen3")
    tokens, _, found = watched(model, "left", Fusion.of("joint", 0.0, weights, "cpu"))
    assert (found.sum(-1) - 1).abs().max() < 1e-5
    assert (found - joint_shares(model, "left", tokens, weights)).abs().max() < 1e-4


def test_shares_without_a_prefix():
    model = tiny_model("llama")
    tokens, _, found = watched(model, "exact", Fusion(), prefix=())
    assert found[..., 0].abs().max() == 0
    expected = mean_shares(model, "exact", tokens, 0.0, None, prefix=())
    assert (found - expected).abs().max() < 1e-4


def test_the_shares_that_are_printed(engine, asked):
    found = look_into(engine, asked, 1, verbose=True)
    lines = found.show_step(1)
    shares = found.trace.steps[1].attention
    for layer in range(2):
        [row] = [line.split() for line in lines if line.startswith(f"{layer}  ")][:1]
        expected = [f"{share:.1%}" for share in shares[layer].double().mean(0).tolist()]
        assert row == [str(layer), *expected]
    [row] = [line.split()[1:] for line in lines if line.startswith("all ")]
    assert row == [f"{share:.1%}" for share in shares.double().mean((0, 1)).tolist()]
    assert abs(sum(float(share[:-1]) for share in row) - 100) < 0.5


# ---- the mask and the isolation check -----------------------------------------------------------


def wanted_mask(found):
    """As it should be, [S, S]."""
    ends = torch.tensor(found.question.lengths).cumsum(0) + len(found.prefix)
    ranges = [(int(end) - n, int(end)) for end, n in zip(ends, found.question.lengths, strict=True)]
    original = ranges[-1][1]
    mask_mod = create_segment_isolation_mask(ranges, original, prefix_length=len(found.prefix))
    total = original + len(found.question.tail) + 2
    return dense_mask(mask_mod, total, total)


@pytest.mark.parametrize("positions", ["exact", "right"])
def test_the_drawn_mask_is_measured(engine, asked, positions, monkeypatch):
    found = look_into(engine, asked, 0, AttentionFusion(positions=positions))
    wanted = wanted_mask(found)
    assert torch.equal(found.isolation.mask, wanted)
    assert found.isolation.passed
    # What is wrong in the engine is wrong in the drawing.
    intact = EncodeState._padded_mask

    def hidden(self, window, device):
        mask = intact(self, window, device)
        if self.prefix:
            mask = mask.expand(len(self.lengths), -1, -1, -1).clone()
            mask[1, :, 2, 0] = False
        return mask

    monkeypatch.setattr(EncodeState, "_padded_mask", hidden)
    broken = check_isolation(engine, found.prefix, found.question, positions)
    row = len(found.prefix) + found.question.lengths[0] + 2
    assert (broken.mask != wanted).nonzero().tolist() == [[row, 0]]
    assert not broken.apart


def cells_of(found, mask, most):
    parts = question_parts(found.words, found.prefix, found.question, ANSWER_TOKENS, most)
    return mask_cells(mask, parts)


def test_the_mask_is_that_of_the_fusion_asked_for(engine, asked):
    """A paraphrase of weight 0 is attended to by nobody."""
    method = AttentionFusion(positions="exact", weights=(1.0, 0.0, 1.0, 1.0))
    found = look_into(engine, asked, 0, method)
    ends = torch.tensor(found.question.lengths).cumsum(0) + len(found.prefix)
    wanted = wanted_mask(found)
    wanted[ends[-1] :, ends[0] : ends[1]] = False
    assert torch.equal(found.isolation.mask, wanted)


@pytest.mark.parametrize("most", [12, 30, 500])
def test_cells_hold_every_token_once_and_are_labelled_by_it(engine, asked, most):
    found = look_into(engine, asked, 0)
    cells = cells_of(found, wanted_mask(found), most).cells
    tokens = [token for cell in cells for token in cell.tokens]
    assert tokens == list(range(wanted_mask(found).shape[0]))
    ids = [*found.prefix, *(t for s in found.question.segments for t in s), *found.question.tail]
    for cell in cells:
        if cell.mark != "A":
            whole = found.words.token(ids[cell.tokens[0]])
            several = f"... {len(cell.tokens)} tokens"
            assert cell.label == (whole if len(cell.tokens) == 1 else several)
    fixed = 4 + len(found.question.tail) + 2
    assert len(cells) <= max(most, fixed + 4)
    if most == 500:
        assert sum(len(cell.tokens) > 1 for cell in cells) == 1  # of the prefix


def test_a_leak_is_drawn(engine, asked):
    found = look_into(engine, asked, 0)
    mask = wanted_mask(found)
    drawing = cells_of(found, mask, 30)
    cells, before = drawing.cells, drawing.seen
    first = next(i for i, cell in enumerate(cells) if cell.mark == "0" and len(cell.tokens) == 1)
    last = next(i for i, cell in enumerate(cells) if cell.mark == "3" and len(cell.tokens) > 1)
    mask[cells[last].tokens[1], cells[first].tokens[0]] = True
    after = cells_of(found, mask, 30).seen
    assert (before[last][first], after[last][first]) == (0.0, 0.5)
    after[last][first] = 0.0
    assert after == before


def leak(monkeypatch):
    """The last packed segment reads the first one's first key in place of its own."""
    intact = kv_state.attend_under_mask

    def leaking(query, key, value, mask, *settings):
        rows, _, M, _ = query.shape
        if rows > 2:  # loading tries two segments, and would refuse the model
            at = key.shape[2] - M
            key, value = key.clone(), value.clone()
            key[-1, :, at], value[-1, :, at] = key[0, :, at], value[0, :, at]
        return intact(query, key, value, mask, *settings)

    monkeypatch.setattr(kv_state, "attend_under_mask", leaking)


def test_isolation_passes_and_a_leak_fails_it(engine, asked, monkeypatch):
    found = look_into(engine, asked, 0)
    intact = check_isolation(engine, found.prefix, found.question, "exact")
    assert intact.passed
    assert intact.tolerance < 1e-3
    assert max(intact.differences) < 1e-5
    assert intact.unmasked > 0.05
    leak(monkeypatch)
    broken = check_isolation(engine, found.prefix, found.question, "exact")
    *others, reader = broken.differences
    assert max(others) < 1e-5
    assert reader > 0.01
    assert not broken.apart and not broken.passed


def test_a_wrong_decode_fails_it_too(engine, asked, monkeypatch):
    intact = DecodeState.attend
    halved = lambda self, layer, query, *rest: intact(self, layer, query / 2, *rest)  # noqa: E731
    monkeypatch.setattr(DecodeState, "attend", halved)
    found = look_into(engine, asked, 0)
    assert found.isolation.apart and not found.isolation.decodes and not found.isolation.passed
    lines = "\n".join(isolation_lines(found.words, found.isolation))
    assert "DECODE FAILED" in lines and "ISOLATION FAILED" not in lines
    assert "isolation check: FAILED" in lines and "no answer of this model" in lines


def test_no_number_is_no_pass(engine, asked):
    found = look_into(engine, asked, 0)
    for changes in ({"differences": (0.0, float("nan"))}, {"fused": float("nan")}):
        broken = replace(found.isolation, **changes)
        assert not broken.passed
        assert "FAILED" in "\n".join(isolation_lines(found.words, broken))


@pytest.mark.parametrize("name", ["gemma3", "gpt2"])
def test_isolation_on_windows_and_learned_positions(name):
    model = tiny_model(name)
    tiny = Engine(model, TinyTokenizer(), FlexAttentionWrapper(model, "sdpa"))
    found = check_isolation(tiny, PREFIX, QUESTION, "left")
    assert found.passed
    assert max(found.differences) < 1e-4 < 0.05 < found.unmasked


def no_pictures(inspection):
    return dict.fromkeys(pictures.PICTURES, b"")


def test_broken_isolation_is_loud(small, capsys, monkeypatch, tmp_path):
    leak(monkeypatch)
    command = ("--model", small.folder, "--dataset", small.questions, "--num_paraphrases", 4)
    monkeypatch.setattr(debug_page, "draw_pictures", no_pictures)
    command = (*command, "--max_tokens", 2, "--save", tmp_path / "page")
    status, lines, err = run(capsys, *command)
    assert status == 1
    assert err.splitlines()[-1] == "ISOLATION FAILED on 1 of 1 questions: see above"
    assert any("isolation check: FAILED" in line for line in lines)
    assert stages(lines)[-1] == "summary"
    assert 'class="failed"' in (tmp_path / "page" / "index.html").read_text()


# ---- stops --------------------------------------------------------------------------------------


def interact(small, capsys, monkeypatch, typed, *more):
    command = ("--model", small.folder, "--dataset", small.questions)
    command = (*command, "--interactive", "--max_tokens", 3, "--indexs", "0,1", *more)
    return run(capsys, *command, stdin=typed, monkeypatch=monkeypatch)


def test_stops_before_every_step(small, capsys, monkeypatch):
    answers = "n\n" * 50
    status, lines, err = interact(small, capsys, monkeypatch, answers, "--max_samples", 3)
    assert (status, err) == (0, "")
    shown = stages(lines)
    asked = [re.match(r"\[(.*?)\] > n", line)[1] for line in lines if " > " in line]
    assert asked == shown
    assert shown.count("summary") == 3 and "step 3" in shown


def test_continue_and_quit(small, capsys, monkeypatch):
    _, lines, _ = interact(small, capsys, monkeypatch, "\nc\n", "--max_samples", 3)
    assert stages(lines).count("summary") == 3
    assert sum(" > " in line for line in lines) == 2
    status, lines, _ = interact(small, capsys, monkeypatch, "n\nq\n", "--max_samples", 3)
    assert (status, stages(lines)) == (0, ["prompts"])


def test_the_end_of_the_input_quits(small, capsys, monkeypatch, tmp_path):
    page = tmp_path / "page"
    status, lines, err = interact(small, capsys, monkeypatch, "n\nn\n", "--save", page)
    assert (status, stages(lines)) == (0, ["prompts", "mask"])
    assert err == f"nothing saved to {page}: not all was shown\n"
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_gets_through_and_saves_nothing(small, monkeypatch, tmp_path):
    def interrupted(prompt):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    argv = ["--model", small.folder, "--dataset", small.questions, "--indexs", "0,1"]
    argv += ["--interactive", "--save", tmp_path / "page"]
    with pytest.raises(KeyboardInterrupt):
        debug.main(debug.parse_args([str(arg) for arg in argv]))
    assert list(tmp_path.iterdir()) == []


def test_quantities_are_printed_by_name(small, capsys, monkeypatch):
    typed = "p\np nonsense\np attention\nhop\np prompts\np segments\np settings\np isolation\n"
    typed += "n\nn\nn\nn\np logits\np tokens\np attention\np candidates\np paraphrases\nq\n"
    _, lines, _ = interact(small, capsys, monkeypatch, typed)
    names = "settings, answers, prompts, segments, mask, isolation, "
    names += "tokens, candidates, logits, attention, paraphrases"
    text = "\n".join(lines)
    assert lines[2:6] == [
        f"   {names}",
        "[prompts] > p nonsense",
        f"   there is no 'nonsense'; there are {names}",
        "[prompts] > p attention",
    ]
    assert "   attention: not before the first step has been shown" in lines
    assert "   'hop' is none of n(ext), c(ontinue), p NAME, q(uit)" in lines
    for number, wording in enumerate(
        ("What is the capital city of Peru, please?", "Peru’s capital is [MASK].")
    ):
        at = lines.index(f"   --- prompt {number} ---")
        assert f"   Q: {wording}" in lines[at : at + 5]
    assert "151 fused logits from" in text or "152 fused logits from" in text
    assert re.search(r"^   answer: \d+='", text, re.M)
    assert re.search(r"^   token +fused +0 alone +1 alone$", text, re.M)


# ---- the page -----------------------------------------------------------------------------------


class Reader(HTMLParser):
    """What a browser would build of it: tags with attributes, and text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def hostile(small, tmp_path):
    """Flags for a file whose texts would break out of a page."""
    rows = [
        {"paraphrases": [f"{HOSTILE} {i}?", "Peru's capital?"], "answers": [HOSTILE, "$Lima"]}
        for i in range(2)
    ]
    file = write_jsonl(tmp_path / "hostile.jsonl", rows)
    flags = ("--num_paraphrases", 2, "--max_samples", 2, "--max_tokens", 3)
    return ("--model", small.folder, "--dataset", file, *flags)


def test_the_page_loads_nothing_and_shows_texts_as_text(hostile, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "VERBOSE_CELLS", 30)  # labels take long to draw
    for made_of_tokens in ("step_title", "choice_line", "attention_title"):
        monkeypatch.setattr(debug_page, made_of_tokens, lambda *given: HOSTILE)
    folder = tmp_path / "new" / "page"
    status, lines, err = run(capsys, *hostile, "--instruction", HOSTILE, "--save", folder)
    assert status == 0
    assert err == f"saved {folder / 'index.html'} and its pictures\n"
    assert "\x1b" not in "".join(lines)
    names = [f"question{n}-{picture}.png" for n in (1, 2) for picture in pictures.PICTURES]
    assert sorted(path.name for path in folder.iterdir()) == sorted(["index.html", *names])

    reader = Reader((folder / "index.html").read_text(encoding="utf-8"))
    assert reader.open == []
    tags = [tag for tag, _ in reader.tags]
    ours = "html head meta title link style body h1 section h2 h3 p div table tr th td figure img"
    assert set(tags) == {*ours.split(), "figcaption", "details", "summary"}
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    images = [attributes["src"] for tag, attributes in reader.tags if tag == "img"]
    inline = [base64.b64decode(each.removeprefix("data:image/png;base64,")) for each in images]
    assert inline == [(folder / name).read_bytes() for name in names]
    assert all(content.startswith(b"\x89PNG") for content in inline)
    links = [(t, a) for t, a in reader.tags if ("href" in a or "src" in a) and t != "img"]
    assert links == [("link", {"rel": "icon", "href": "data:,"})]
    policies = [a["content"] for t, a in reader.tags if a.get("http-equiv")]
    assert policies == [
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        "style-src 'unsafe-inline'"
    ]
    text = "".join(reader.text)
    assert visible(f"{HOSTILE} 1?") in text
    assert not re.search(r"@import|url\(", text)
    # What the terminal shows, the page has too.
    answers = summary(lines)
    assert len(answers) == 5
    assert all(name in text and answer in text for name, answer in answers.items())
    assert tags.count("details") == sum("chosen: " in line for line in lines)


def test_a_paraphrase_has_the_number_that_indexs_gives_it(small, capsys):
    command = ("--model", small.folder, "--dataset", small.questions, "--indexs", "3,1")
    _, lines, _ = run(capsys, *command, "--max_tokens", 1)
    answers = summary(lines)
    [top] = [line.strip() for line in lines if re.fullmatch(r" +P+3+1+T+A+", line)]
    assert top
    for name in ("3", "1"):
        assert any(line.startswith(f"   segment {name}  ") for line in lines)
        assert any(line.startswith(f"   {name}  ") for line in lines)
        assert f"paraphrase {name} alone" in answers and f"without paraphrase {name}" in answers


def test_a_page_that_cannot_be_made_is_told_before_anything(small, capsys, tmp_path, monkeypatch):
    page = tmp_path / "x" / "y" / "z"
    status, lines, err = run(capsys, "--save", page, "--model", "nobody/none")
    assert (status, lines, list(tmp_path.iterdir())) == (2, [], [])
    assert "nobody/none" in err
    monkeypatch.setattr(debug_page, "draw_pictures", no_pictures)
    monkeypatch.setattr(debug_page, "write_synced", broken_disk)
    monkeypatch.setattr(debug_page, "render_page", lambda *given: "")
    with pytest.raises(UserError, match="cannot write"):
        debug_page.save_pages(page, [])
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(debug_page, "find_spec", lambda name: None)
    status, lines, err = run(capsys, "--save", page)
    assert (status, lines, err.count("\n")) == (2, [], 1)
    assert "matplotlib, which is not installed" in err


def broken_disk(path, content):
    raise OSError(28, "No space left on device")


def test_a_page_is_written_whole_or_not_at_all(small, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(debug_page, "draw_pictures", no_pictures)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    command = ("--model", small.folder, "--dataset", small.questions, "--max_tokens", 1)
    command = (*command, "--num_paraphrases", 2, "--save")
    for folder in (taken, taken / "mine.txt"):
        status, lines, err = run(capsys, *command, folder)
        assert (status, lines) == (2, [])
        assert err == (f"error: --save: {folder} is there already; name a new or an empty folder\n")
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]

    with monkeypatch.context() as patch:
        patch.setattr(debug_page, "write_synced", broken_disk)
        status, _, err = run(capsys, *command, tmp_path / "page")
    assert status == 2
    assert err == f"error: --save: cannot write {tmp_path / 'page'}: No space left on device\n"
    assert list(tmp_path.iterdir()) == [taken]
    (tmp_path / "page").mkdir()
    assert run(capsys, *command, tmp_path / "page")[0] == 0
    assert (tmp_path / "page" / "index.html").is_file()


def test_mistakes_on_the_command_line(small, capsys):
    command = ("--model", small.folder, "--dataset", small.questions)
    for flags, said in (
        (("--weights", "1,2,3", "--num_paraphrases", 2), "--weights: 3 weights for 2 paraphrases"),
        (("--fusion", "joint", "--positions", "exact"), "--fusion joint has one softmax"),
        (("--max-tokens", "0"), "--max_tokens/--max_new_tokens: '0' is not a whole number above"),
        (("--indexs", "0,9"), "9"),
    ):
        status, lines, err = run(capsys, *command, *flags)
        assert (status, lines) == (2, [])
        assert err.startswith("error: ") and said in err and err.count("\n") == 1


@pytest.fixture
def unlike(tmp_path):
    """A file whose questions have 3, 1, 2 and no paraphrases, and no answers."""
    rows = [
        {"uuid": f"capital-{i}", "question": f"Land {i}?", "paraphrases": texts}
        for i, texts in enumerate((["a b?", "b a?", "c?"], ["d?"], ["e f?", "g?"], []))
    ]
    return write_jsonl(tmp_path / "unlike.jsonl", rows)


def test_a_question_by_its_uuid(small, unlike, capsys):
    """The others do not matter: neither that they come before it nor what they lack."""
    command = ("--model", small.folder, "--dataset", unlike, "--max_tokens", 1)
    status, lines, _ = run(capsys, *command, "--uuid", "capital-2", "--num_paraphrases", 2)
    assert status == 0
    assert lines[0] == "question 1 of 1: e f? (uuid capital-2)"
    assert not any(line.startswith("question ") for line in lines[1:])
    assert "paraphrase 1 alone" in "\n".join(lines)
    # Nobody knows what is right.
    assert "   right answers: none are known" in lines
    [row] = [line.split() for line in lines if line.startswith("   attention fusion  ")]
    assert row[-2] == "-" and not any(re.search("  (right|wrong)  ", line) for line in lines)


def test_the_numbers_of_the_paraphrases_that_a_question_has(small, unlike, capsys):
    command = ("--model", small.folder, "--dataset", unlike, "--max_tokens", 1)
    status, lines, _ = run(
        capsys, *command, "--uuid", "capital-2", "--indexs", "2,1,0", "--fewer", "use"
    )
    assert status == 0
    found = [line.split()[1:4] for line in lines if line.startswith("   segment ")]
    assert [number for number, *_ in found] == ["1", "0"]
    texts = [line for line in lines if re.match(r"   segment \d", line)]
    assert "g" in texts[0] and "e" in texts[1]


@pytest.mark.parametrize(
    "flags, told",
    [
        (
            ("--uuid", "capital-9"),
            "none of the 4 questions of unlike has the uuid 'capital-9'; near",
        ),
        (("--uuid", "0"), "has the uuid '0'; there are capital-0, capital-1, capital-2, …"),
        (("--uuid", "capital-0", "--max_samples", 2), "--max_samples: --uuid says which question"),
        (("--uuid", "capital-1", "--num_paraphrases", 2), "line 2 of"),
        (("--uuid", "capital-3", "--num_paraphrases", 1, "--fewer", "use"), "leaves no question"),
        (
            ("--uuid", "capital-1", "--num_paraphrases", 2, "--fewer", "use", "--weights", "1,2"),
            "has 1 of them",
        ),
    ],
)
def test_a_uuid_that_does_not_do(small, unlike, capsys, flags, told):
    status, lines, err = run(capsys, "--model", small.folder, "--dataset", unlike, *flags)
    assert (status, lines) == (2, [])
    last = err.splitlines()[-1]
    assert last.startswith("error: ") and told in last, err


def test_max_samples_is_one_where_nothing_is_said():
    assert debug.parse_args([]).questions.options.max_samples == 1
    assert debug.parse_args(["--max_samples", "3"]).questions.options.max_samples == 3
    asked = debug.parse_args(["--uuid", "u"])
    assert (asked.uuid, asked.questions.options.max_samples) == ("u", None)


def test_the_command_line_waits_for_nothing_heavy():
    code = "import sys, debug_flexattention as d; d.parse_args([]); print(*sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0
    assert not {"torch", "transformers", "pandas", "matplotlib"} & set(done.stdout.split())


@pytest.mark.browser
def test_the_page_opens_in_chromium(hostile, capsys, tmp_path):
    folder = tmp_path / "page"
    run(capsys, *hostile, "--save", folder)
    page = (folder / "index.html").read_text(encoding="utf-8")
    dom, messages = open_in_chromium(page, tmp_path)
    assert messages == []
    assert dom.count("<img alt=") == 6
    assert "<script" not in dom
    # With a script of the test: every picture is there, and folded steps open.
    script = """
      const images = [...document.images].every((i) => i.complete && i.naturalWidth > 300);
      const steps = [...document.querySelectorAll("details")];
      for (const step of steps) step.open = true;
      const seen = steps.every((step) => step.querySelector("table").offsetHeight > 20);
      document.title = `${images} ${seen}`;
    """
    dom, messages = open_in_chromium(page, tmp_path, f"onload = () => {{{script}}};")
    assert messages == []
    assert "<title>true true</title>" in dom
    # What would be seen if something were wrong, and that the policy stops foreign scripts.
    assert open_in_chromium(page, tmp_path, "nothing.at.all")[1]
    foreign = page.replace("</body>", "<script>document.title = 'taken'</script></body>")
    dom, messages = open_in_chromium(foreign, tmp_path)
    assert "taken</title>" not in dom
    assert any("Content Security Policy" in message for message in messages)
