"""Tokenizers of tokenizer.json, compared with AutoTokenizer."""

import json
import pickle
import random

import hypothesis
import pytest
from hypothesis import strategies as st

from speechgpt_jax import files
from speechgpt_jax.errors import UserError
from speechgpt_jax.prompts import added_tokens
from speechgpt_jax.tokenizer import DEMO_TOKENIZER, HuggingFaceTokenizer, TextStream, Tokenizer
from tests.tokenizer.byte_level import GPT2, KINDS, LLAMA3, QWEN, mix, write

UNITS = added_tokens(200)
# Surrogates are no text.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return write(tmp_path_factory.mktemp(kind), kind)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.from_pretrained(folder)


@pytest.mark.slow
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(seed=st.integers(0, 2**32), texts=st.lists(TEXT, min_size=1, max_size=20))
def test_ids_are_those_of_auto_tokenizer(folder, tokenizer, seed, texts):
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    rng = random.Random(seed)
    mixes = [mix(rng, texts) for _ in range(300)]  # 25 x 300 = 7,500 of each kind
    expected = theirs(mixes, add_special_tokens=False).input_ids
    assert tokenizer.encode_batch(mixes) == expected
    for text, ids in zip(mixes[:30], expected):
        assert tokenizer.encode(text) == ids
        assert tokenizer.encode_prompt(text) == theirs(text).input_ids
        assert tokenizer.decode(ids) == theirs.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def test_special_ids_come_from_the_files(kind, tokenizer):
    ids = {name: id_ for name, id_ in tokenizer.added_tokens.items() if name.startswith("<|")}
    expected = {
        GPT2: (None, ["<|endoftext|>"], "<|endoftext|>"),
        QWEN: (None, ["<|im_end|>", "<|endoftext|>"], "<|endoftext|>"),
        LLAMA3: ("<|begin_of_text|>", ["<|eot_id|>", "<|end_of_text|>"], "<|eot_id|>"),
    }
    bos, ends, pad = expected[kind]
    assert tokenizer.bos_id == ids.get(bos)
    assert tokenizer.stop_ids == tuple(ids[end] for end in ends)
    assert (tokenizer.eos_id, tokenizer.pad_id) == (ids[ends[0]], ids[pad])
    assert tokenizer.unk_id is None
    assert len(tokenizer.unit_ids) == 0


def test_units_get_the_next_ids(tokenizer):
    first = tokenizer.vocab_size
    extended = tokenizer.with_tokens(UNITS)
    assert extended.vocab_size == first + 206
    assert extended.unit_ids == range(first, first + 200)
    assert extended.encode("<sosp> <17><199>\n<eosp>") == [
        extended.token_to_id(token) for token in ("<sosp>", "<17>", "<199>", "<eosp>")
    ]
    assert extended.encode("hello") == tokenizer.encode("hello")
    assert extended.decode(extended.encode("hi <sosp><5><eosp>")) == "hi<sosp><5><eosp>"
    assert (extended.bos_id, extended.stop_ids) == (tokenizer.bos_id, tokenizer.stop_ids)
    with pytest.raises(UserError, match="has a token '<0>' already"):
        extended.with_tokens(["<0>"])


def test_save_load_and_pickle(tokenizer, tmp_path):
    extended = tokenizer.with_tokens(UNITS)
    extended.save_pretrained(tmp_path)
    for again in (Tokenizer.from_pretrained(tmp_path), pickle.loads(pickle.dumps(extended))):
        assert again == extended != tokenizer
        assert again.encode("a <5> b") == extended.encode("a <5> b")
        assert again.stop_ids == extended.stop_ids


def test_a_folder_that_is_not_complete_has_no_tokenizer(tokenizer, tmp_path, monkeypatch):
    def write(path, text):
        if path.name == "generation_config.json":
            raise KeyboardInterrupt
        path.write_text(text)

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(files, "write_text", write)
    with pytest.raises(KeyboardInterrupt):
        tokenizer.save_pretrained(tmp_path / "out")
    with pytest.raises(UserError, match="has no tokenizer"):
        Tokenizer.from_pretrained(tmp_path / "out")


STREAMED = {kind: lambda tmp, kind=kind: write(tmp / kind, kind) for kind in KINDS} | {
    "sentencepiece": lambda tmp: DEMO_TOKENIZER
}


@pytest.mark.parametrize("make", STREAMED.values(), ids=STREAMED)
def test_a_stream_writes_the_text_of_all_ids(make, tmp_path):
    tokenizer = Tokenizer.from_pretrained(make(tmp_path))
    if not tokenizer.unit_ids:
        tokenizer = tokenizer.with_tokens(UNITS)
    rng = random.Random(0)
    for _ in range(80):
        text = "".join(mix(rng, ["\U0001f600 \u65e5", "   "]) for _ in range(3))
        encoded = tokenizer.encode(text)
        shuffled = rng.sample(encoded, len(encoded))
        # Ids in an order that no text has: bytes without an end, spaces before tokens.
        for ids in (encoded, shuffled, rng.choices(range(tokenizer.vocab_size), k=20)):
            stream = TextStream(tokenizer)
            pieces = [stream.write(id_) for id_ in ids]
            assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)


def test_no_piece_of_a_stream_breaks_a_character(tokenizer):
    stream = TextStream(tokenizer)
    ids = tokenizer.encode("caf\u00e9 \U0001f600!")
    assert len(ids) > 6
    pieces = [stream.write(id_) for id_ in ids]
    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces[-1] == "!" and stream.finish() == ""


def test_the_bytes_of_tokens_are_those_of_the_text(tokenizer):
    text = "na\u00efve \U0001f600 caf\u00e9\x00\u00ad!"
    pieces = [tokenizer.token_bytes(id_) for id_ in tokenizer.encode(text)]
    assert b"".join(pieces) == text.encode()
    assert "\U0001f600".encode() not in pieces  # It has several tokens.
    units = tokenizer.with_tokens(UNITS)
    assert units.token_bytes(units.token_to_id(UNITS[0])) == UNITS[0].encode()
    if tokenizer.eos_id not in tokenizer._marks:
        assert tokenizer.token_bytes(tokenizer.eos_id) == b""
    with pytest.raises(UserError, match="No token has id"):
        tokenizer.token_bytes(tokenizer.vocab_size)


# As SmolLM2-135M-Instruct and Meta-Llama-3-8B-Instruct publish them.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] +"
    " '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
META = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content ="
    " '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] |"
    " trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
DIALOGUE = "[Human]: hi <5>!<eoh>. [SpeechGPT]: it's; [ta] so.<eoa>. [Human]: <sosp><7><eosp><eoh>"
PROMPT = DIALOGUE + ". [SpeechGPT]:"
MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "hi <5>!"},
    {"role": "assistant", "content": "it's; [ta] so."},
    {"role": "user", "content": "<sosp><7><eosp>"},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "template", "published"),
    [(QWEN, "chatml", CHATML), (LLAMA3, "llama3", META), (QWEN, "speechgpt", None)],
    ids=["chatml", "llama3", "speechgpt"],
    indirect=["kind"],
)
def test_dialogues_are_those_of_apply_chat_template(tokenizer, template, published, tmp_path):
    import transformers

    tokenizer = tokenizer.with_tokens(UNITS).with_template(template)
    tokenizer.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    answer = {"role": "assistant", "content": "<sosp><9><eosp>"}
    dialogue = f"{PROMPT} {answer['content']}<eoa>. "
    for jinja in filter(None, (theirs.chat_template, published)):
        theirs.chat_template = jinja
        for messages, text, begins in (
            (MESSAGES, PROMPT, True),
            ([*MESSAGES, answer], dialogue, False),
        ):
            whole = theirs.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=begins
            )
            bos = theirs.bos_token or ""
            end = "" if begins or template == "speechgpt" else tokenizer.template.answer.end
            assert bos + tokenizer.template.render("Be kind.\n", text) + end == whole
            ids = theirs(whole, add_special_tokens=False).input_ids
            assert tokenizer.encode_dialogue("Be kind.\n", text) + tokenizer.encode(end) == ids


@pytest.mark.parametrize(
    ("kind", "template", "end"),
    [(QWEN, "chatml", "<|im_end|>"), (LLAMA3, "llama3", "<|eot_id|>")],
    ids=["chatml", "llama3"],
    indirect=["kind"],
)
def test_a_template_is_saved_with_its_tokenizer(tokenizer, template, end, tmp_path):
    tokenizer.with_tokens(UNITS).with_template(template).save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    assert again.template.name == template
    assert again.eos_id == again.stop_ids[0] == again.token_to_id(end)
    ids = again.encode_dialogue("Be kind.\n", PROMPT)
    start = ids[: len(ids) - len(again.encode(again.template.answer.start))]
    assert again.decode(start).endswith(f"<sosp><7><eosp>{end}" + "\n" * (template == "chatml"))
    assert (
        again.template.parse(again.decode([*ids, *again.encode("so."), again.eos_id])).text == "so."
    )
    assert Tokenizer.from_pretrained(tmp_path, "speechgpt").encode_dialogue("", "a") == (
        tokenizer.encode_prompt("a")
    )


@pytest.mark.parametrize("kind", [GPT2], indirect=True)
def test_a_template_needs_its_tokens(tokenizer, tmp_path):
    with pytest.raises(
        UserError, match=r"'chatml' does not fit the tokenizer: '<\|im_start\|>' is"
    ):
        tokenizer.with_template("chatml")
    with pytest.raises(UserError, match="'llama3' is for a tokenizer"):
        Tokenizer.from_pretrained(DEMO_TOKENIZER, "llama3")
    assert Tokenizer.from_pretrained(DEMO_TOKENIZER, "speechgpt").template.name == "speechgpt"


def change(**fields):
    def apply(folder):
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return apply


def cut(folder):
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text()[:500])


def newer_version(folder):
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"ByteLevel"', '"CharLevel"'))


def without_merges(folder):
    fields = json.loads((folder / "tokenizer.json").read_text())
    del fields["model"]["merges"]
    (folder / "tokenizer.json").write_text(json.dumps(fields))


def without_eos(folder):
    change(eos_token=None)(folder)
    (folder / "generation_config.json").unlink()


def foreign_eos(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": 128001}')


MISTAKES = [
    (cut, "tokenizer.json is damaged, or of a version"),
    (newer_version, "tokenizer.json is damaged, or of a version"),
    (without_merges, "tokenizer.json is damaged, or of a version"),
    (lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff\x00"), "is damaged"),
    (without_eos, "the tokenizer has no eos"),
    (foreign_eos, "eos_token_id 128001 is no token's id; this tokenizer has"),
    (
        change(added_tokens_decoder={"5": "x"}),
        r'added_tokens_decoder {"5": "x"}; expected a mapping, each value a mapping',
    ),
    (change(added_tokens_decoder={"9": {"content": "<new>"}}), "gives '<new>' the id 9, and"),
]


@pytest.mark.parametrize(("damage", "message"), MISTAKES)
def test_mistakes_are_one_line(damage, message, tmp_path):
    damage(write(tmp_path, QWEN))
    with pytest.raises(UserError, match=message) as caught:
        Tokenizer.from_pretrained(tmp_path)
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


def test_ids_and_tokens_that_do_not_exist(tokenizer):
    with pytest.raises(UserError, match=f"No token has id {tokenizer.vocab_size}; this"):
        tokenizer.decode([tokenizer.vocab_size])
    with pytest.raises(UserError, match="neither an added token nor a piece"):
        tokenizer.token_to_id("<1000>")


def test_tokens_that_only_the_config_has(tmp_path):
    """transformers 4 wrote added tokens into tokenizer_config.json, with all their fields."""
    plain = Tokenizer.from_pretrained(write(tmp_path, QWEN))
    entry = {"content": "<new>", "lstrip": True, "normalized": False, "special": False}
    change(added_tokens_decoder={str(plain.vocab_size): entry})(tmp_path)
    tokenizer = HuggingFaceTokenizer.from_folder(tmp_path)
    assert tokenizer.encode("a <new> b") == [
        *plain.encode("a"),
        plain.vocab_size,
        *plain.encode(" b"),
    ]
