"""Forms as published, and the parser of responses."""

import re

import hypothesis
import hypothesis.strategies as st
import pytest

from speechgpt_jax import prompts
from speechgpt_jax.errors import UserError
from speechgpt_jax.prompts import SPEECHGPT_TEMPLATE, TEMPLATES, Response

X, Y = "<sosp><1><2><eosp>", "<sosp><7><8><eosp>"


def test_cross_modal_as_published():
    text = prompts.CROSS_MODAL.format(description="Say it", source="hello", target=Y)
    assert text == f"[Human]: Say it. This is input: hello<eoh> [SpeechGPT]: {Y}<eoa> "


def test_chain_of_modality_as_published():
    text = prompts.SPEECH_TO_SPEECH.format(
        question_units=X, question="what is it?", answer="a cat", answer_units=Y
    )
    assert text == f"[Human]: {X}<eoh>. [SpeechGPT]: what is it?; [ta] a cat; [ua] {Y}<eoa>."


FORMS = {
    "cross_modal": (
        prompts.CROSS_MODAL.format(description="Say it", source="hello", target=Y),
        Response("", "", [7, 8], source="hello"),
    ),
    "text_instruction": (
        prompts.TEXT_INSTRUCTION.format(question="what is it?", answer="a cat."),
        Response("", "a cat.", []),
    ),
    "speech_to_speech": (
        prompts.SPEECH_TO_SPEECH.format(
            question_units=X, question="what is it?", answer="a cat.", answer_units=Y
        ),
        Response("what is it?", "a cat.", [7, 8]),
    ),
    "speech_to_text": (
        prompts.SPEECH_TO_TEXT.format(question_units=X, question="what is it?", answer="a cat."),
        Response("what is it?", "a cat.", []),
    ),
    "text_to_speech": (
        prompts.TEXT_TO_SPEECH.format(question="what is it?", answer="a cat.", answer_units=Y),
        Response("", "a cat.", [7, 8]),
    ),
    "text_to_text": (
        prompts.TEXT_TO_TEXT.format(question="what is it?", answer="a cat."),
        Response("", "a cat.", []),
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("decoded", [False, True])
def test_every_form_of_response_is_parsed(form, decoded):
    text, response = FORMS[form]
    if decoded:  # A tokenizer puts spaces around added tokens.
        for token in ("<7>", "<8>", *prompts.MARKERS):
            text = text.replace(token, f" {token} ")
    assert SPEECHGPT_TEMPLATE.parse(text) == response


@pytest.mark.parametrize(
    ("text", "response"),
    [
        ("", Response("", "", [])),
        ("[tq] who; what?; [ta] me; [ua] <sosp>", Response("who; what?", "me", [])),
        ("a; [ta] b; [ua] <sosp> <7> <8>", Response("a", "b", [7, 8])),
        ("a; [ta] b; [ua] c", Response("a", "b", [])),
        ("<sosp><7><eosp> and more", Response("", "", [7])),
    ],
)
def test_incomplete_responses_keep_their_parts(text, response):
    assert SPEECHGPT_TEMPLATE.parse(text) == response


@pytest.mark.parametrize("name", [n for n in dir(prompts) if n.endswith("_PROMPT")])
def test_a_prompt_begins_its_dialogue(name):
    dialogue = getattr(prompts, name.removesuffix("_PROMPT"))
    assert dialogue.startswith(getattr(prompts, name) + " ")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_form_is_parsed_in_every_template(form, name):
    dialogue, response = FORMS[form]
    template = TEMPLATES[name]
    whole = template.render("Be kind.\n", dialogue)
    assert template.parse(whole) == template.parse(whole + template.answer.end) == response


def test_dialogues_in_chatml():
    chatml = TEMPLATES["chatml"]
    start = "<|im_start|>system\nBe kind.<|im_end|>\n"
    question = f"<|im_start|>user\n{X}<|im_end|>\n<|im_start|>assistant\n"
    prompt = prompts.SPEECH_TO_SPEECH_PROMPT.format(question_units=X)
    assert chatml.render("Be kind.\n", prompt) == start + question
    # The last answer ends with eos, which the data's pipeline adds.
    turns = f"{prompt} why?; [ta] so.<eoa>. {prompt} how?<eoa>."
    answers = "why?; [ta] so.<|im_end|>\n", "how?"
    assert chatml.render("Be kind.", turns) == start + question + question.join(answers)
    assert chatml.render("", f"[Human]: {X} <eoh>. [SpeechGPT]: ") == question, (
        "the released prompt"
    )
    assert chatml.render("", "<sosp><1><eosp> a cat.") == "<sosp><1><eosp> a cat."


PIECES = ["<eoa>", "<eoh>", "[SpeechGPT]:", "[Human]", ".", "a", " ", "  ", "\n"]


@hypothesis.given(st.lists(st.sampled_from(PIECES), max_size=20).map("".join))
@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_python_reads_the_patterns_as_tensorflow_does(name, dialogue):
    expected = dialogue
    for pattern, replacement in TEMPLATES[name].rewrites:
        expected = re.sub(pattern, replacement, expected)
    assert TEMPLATES[name].render("", dialogue) == expected


def test_long_runs_of_spaces_are_read_once():
    spaces = " " * 1_000_000
    for template in TEMPLATES.values():
        assert len(template.render("", f"a{spaces}b")) >= len(spaces)
    assert prompts.split_request(f"a{spaces}b") is None
    assert prompts.split_request(f"a,{spaces}This is input:{spaces}b") == ("a", "b")


def test_the_template_of_speechgpt_changes_nothing():
    assert SPEECHGPT_TEMPLATE.render("Be kind. \n", "a <eoa>. ") == "Be kind. \na <eoa>. "


def test_an_unknown_template():
    with pytest.raises(
        UserError, match="'chatlm' is unknown; choose from speechgpt, chatml, llama"
    ):
        prompts.template("chatlm")
