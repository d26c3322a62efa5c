"""Prompts of SDXL: the true vocabulary, any length, weights, layers left out, and both halves of guidance alike."""

import importlib.util
import os

import pytest
import tiny_sdxl as sdxl
import torch
from hypothesis import given
from hypothesis import strategies as st

import ornstein as orn
from ornstein.errors import UsageError
from ornstein.interop.clip_vocabulary import byte_letters, clip_tokenizers, find_vocabulary
from ornstein.interop.diffusers import from_pipeline
from ornstein.interop.prompt_weights import parse_weights

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array__ implementation:DeprecationWarning")
CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # float32 encoders at other batch sizes and places
START, END = 49406, 49407


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return from_pipeline(sdxl.pipeline(tmp_path_factory.mktemp("xl")), size=16)


def words(count):
    return " ".join(sdxl.LETTERS[k % 26] for k in range(count))


# -------------------------------------------------------------------------------------------------- the true vocabulary


def published():
    """CLIP's own vocabulary: of the package open_clip, or named by the environment."""
    named = os.environ.get("CLIP_VOCABULARY")
    if named:
        return named
    return None if importlib.util.find_spec("open_clip") is None else find_vocabulary()


@pytest.mark.skipif(published() is None, reason="pip install --no-deps open_clip_torch, or set CLIP_VOCABULARY")
def test_the_true_vocabulary() -> None:
    first, second = clip_tokenizers(published())
    assert len(first) == len(second) == 49408
    photo = [START, 320, 1125, 539, 320, 2368, END]
    assert first("a photo of a cat").input_ids == photo
    for tokenizer, pad in ((first, END), (second, 0)):
        padded = tokenizer("a photo of a cat", padding="max_length").input_ids
        assert padded == photo + [pad] * (77 - len(photo))
        assert tokenizer("").input_ids == [START, END]
    assert second.convert_ids_to_tokens(0) == "!"
    text = "Ärger, 日本 – a_b 🦊 it's 1234"
    assert first.decode(first(text).input_ids[1:-1]).replace(" ", "") == text.lower().replace(" ", "")
    # A prompt in pieces between weights has the tokens of the whole.
    whole = first("a photo of a red fox, running", add_special_tokens=False).input_ids
    parts = parse_weights("a photo of (a (red:0.8) fox:1.2), running")
    assert [number for part, _ in parts for number in first(part, add_special_tokens=False).input_ids] == whole


def test_the_letters_of_bytes() -> None:
    letters = byte_letters()
    assert len(letters) == len(set(letters)) == 256
    assert letters[:3] == ["!", '"', "#"]
    assert all(letter.isprintable() for letter in letters)


# --------------------------------------------------------------------------------------------------------------- length


@pytest.mark.parametrize("count", [0, 1, 75, 76, 500])
def test_prompts_of_any_length_lose_nothing(model, count) -> None:
    cond = model.cond([words(count)])
    pieces = max(1, -(-count // 75))
    assert cond["text"].shape == (1, 77 * pieces, 128)
    first = model.cond([words(min(count, 75))])
    torch.testing.assert_close(cond["text"][:, :77], first["text"], **CLOSE)
    torch.testing.assert_close(cond["pooled"], first["pooled"], **CLOSE)
    if count:
        changed = model.cond([words(count - 1) + " z"])["text"]
        assert float((changed - cond["text"])[:, 77 * (pieces - 1) :].abs().max()) > 1e-3
    assert orn.sample(model, 1, steps=1, cond=cond, decode=False).isfinite().all()


def test_a_prompt_is_encoded_as_the_pipeline_does(model) -> None:
    theirs = model.pipe.encode_prompt(prompt=["a b c", "d"], device="cpu", do_classifier_free_guidance=False)
    mine = model.cond(["a b c", "d"])
    torch.testing.assert_close(mine["text"], theirs[0])
    torch.testing.assert_close(mine["pooled"], theirs[2])


# -------------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a fox", [("a fox", 1.0)]),
        ("a (red:1.2) fox", [("a ", 1.0), ("red", 1.2), (" fox", 1.0)]),
        ("((a:2) b:0.5)", [("a", 1.0), (" b", 0.5)]),
        ("(a : -.5 )", [("a ", -0.5)]),
        ("(a) [b] (c", [("(a) [b] (c", 1.0)]),
        ("a:1.2) b", [("a:1.2) b", 1.0)]),
        ("((x) y:2)", [("(", 2.0), ("x", 2.0), (") y", 2.0)]),
        (r"\(a:2\)", [("(a:2)", 1.0)]),
        ("", [("", 1.0)]),
    ],
)
def test_how_weights_are_read(prompt, parts) -> None:
    found = parse_weights(prompt)
    merged = []
    for text, weight in parts:
        merged = (
            [*merged[:-1], (merged[-1][0] + text, weight)]
            if merged and merged[-1][1] == weight
            else [*merged, (text, weight)]
        )
    assert found == merged


@given(st.text(alphabet="ab ():\\.12-", max_size=30))
def test_no_text_is_lost_and_weights_are_numbers(prompt) -> None:
    found = parse_weights(prompt)
    assert found
    joined = "".join(text for text, _ in found)
    assert [one for one in joined if one in "ab"] == [one for one in prompt if one in "ab"]
    assert all(abs(weight) < 100 for _, weight in found) or "(" in prompt


def test_weights_scale_away_from_the_empty_prompt(model) -> None:
    plain, empty = model.cond(["a b c"]), model.cond([""])
    assert torch.equal(model.cond(["a (b:1.0) c"])["text"], plain["text"])
    for weight in (0.0, 0.5, 1.3):
        weighed = model.cond([f"a (b:{weight}) c"])
        expected = plain["text"].clone()
        expected[:, 2] = empty["text"][:, 2] + weight * (plain["text"] - empty["text"])[:, 2]
        torch.testing.assert_close(weighed["text"], expected, **CLOSE)
        assert torch.equal(weighed["pooled"], plain["pooled"])
    long = model.cond([words(80) + " (q:1.5)"])["text"]
    usual = model.cond([words(80) + " q"])["text"]
    assert (long != usual).any(2).nonzero()[:, 1].tolist() == [77 + 1 + 5]
    with pytest.raises(UsageError, match="a weight in a prompt lies below 100 in size, got 1000"):
        model.cond(["(a:1000)"])


# ------------------------------------------------------------------------------------------- layers and second captions


def test_clip_skip_is_theirs_and_acts_on_both_halves(model) -> None:
    for skip in (0, 1):
        own = from_pipeline(model.pipe, size=16, clip_skip=skip)
        theirs = model.pipe.encode_prompt(
            prompt=["a b"], device="cpu", do_classifier_free_guidance=False, clip_skip=skip or None
        )
        torch.testing.assert_close(own.cond(["a b"])["text"], theirs[0])
        torch.testing.assert_close(own.null(negative="a b")["text"], theirs[0])
    with pytest.raises(UsageError, match=r"clip_skip lies between 0 and 2 with this text encoder, got 3"):
        from_pipeline(model.pipe, size=16, clip_skip=3).cond(["a"])


def test_second_captions(model) -> None:
    one, other, both = model.cond(["a"]), model.cond(["b"]), model.cond(["a"], second=["b"])
    assert torch.equal(both["text"][..., :64], one["text"][..., :64])
    assert torch.equal(both["text"][..., 64:], other["text"][..., 64:])
    assert torch.equal(both["pooled"], other["pooled"])
    # diffusers drops a second negative prompt without a first one in silence
    null = model.null(second="b")
    assert torch.equal(null["pooled"], other["pooled"])
    assert torch.equal(null["text"][..., :64], model.cond([""])["text"][..., :64])
    with pytest.raises(UsageError, match="second captions need one for each of the 2 captions, got 1"):
        model.cond(["a", "b"], second=["c"])


def test_the_vocabulary_is_looked_for_beside_the_file(tmp_path) -> None:
    assert find_vocabulary(sdxl.vocabulary(tmp_path / "tokenizer").parent) == str(tmp_path / "tokenizer")
    for name, text in (("vocab.json", "[1]"), ("merges.txt", "#version\na b c\n")):
        folder = sdxl.vocabulary(tmp_path / name.partition(".")[0])
        (folder / name).write_text(text)
        with pytest.raises(UsageError, match=r"(give vocabulary=|a merge is two words)"):
            clip_tokenizers(folder)
