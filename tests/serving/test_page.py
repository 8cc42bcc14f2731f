"""The page in a real Chromium with a fake microphone; what it plays is captured, compared with the
vocoder's sound, and recognised."""

import json
import shutil
import time

import httpx2
import numpy as np
import pytest
import soundfile
import soxr
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from speechgpt_jax.decoding.conversation import SpeechModel
from speechgpt_jax.evaluation.metrics import normalize
from speechgpt_jax.evaluation.recognisers import WhisperRecogniser
from speechgpt_jax.shipped import SHIPPED_MODEL
from speechgpt_jax.speech.audio import load_audio
from tests.serving import tiny
from tests.serving.clips import CLIP, QUESTION

pytestmark = pytest.mark.slow

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),
    "--autoplay-policy=no-user-gesture-required",
    # Unlike 127.0.0.1, a name of another host is not secure by http.
    "--host-resolver-rules=MAP plain.example 127.0.0.1",
)
# What reaches the loudspeaker goes to window.played too.
CAPTURE = """
window.played = [];
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (target, ...rest) {
  if (target instanceof AudioDestinationNode) {
    this.context.audioWorklet.addModule("page/recorder.js").then(() => {
      const tap = new AudioWorkletNode(this.context, "recorder", { numberOfOutputs: 0 });
      tap.port.onmessage = ({ data }) => played.push(...data);
      connect.call(this, tap);
    });
  }
  return connect.call(this, target, ...rest);
};
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    programs = [shutil.which("chromium"), shutil.which("chromedriver")]
    assert all(programs), "these tests need a browser: apt-get install chromium chromium-driver"
    folder = tmp_path_factory.mktemp("browser")
    wav = load_audio(QUESTION)
    soundfile.write(folder / "said.wav", np.concatenate([wav, np.zeros(16_000)]), 16_000)
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.add_argument(f"--use-file-for-fake-audio-capture={folder / 'said.wav'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(programs[1])
    driver = webdriver.Chrome(options=options, service=service)
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": CAPTURE})
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, address):
    browser.set_window_size(1000, 900)
    browser.get(address)
    tiny.wait_for(lambda: find(browser, "status").text == "Model tiny")
    yield browser
    problems = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert problems == []


def find(page, id_):
    return page.find_element(By.ID, id_)


def turn(page, number=0):
    """The newest turn, after its end and `number` others."""
    tiny.wait_for(lambda: len(page.find_elements(By.CSS_SELECTOR, ".turn[data-done]")) > number, 20)
    return page.find_element(By.CSS_SELECTOR, ".turn")


def part(element, name):
    return element.find_element(By.CLASS_NAME, name)


def played(page, element):
    """Samples that were played, after their end, at 24 kHz without the silence around them."""
    tiny.wait_for(lambda: element.get_attribute("data-player") == "finished", 20)
    time.sleep(0.2)
    wav = np.array(page.execute_script("return window.played"))
    loud = np.flatnonzero(np.abs(wav) > 1e-4)
    wav = wav[loud[0] : loud[-1] + 1]
    # Where a busy machine is too slow, the player inserts whole quanta of silence, and says so.
    is_silent = np.convolve(wav == 0, np.ones(128), "same") >= 128
    inside = np.convolve(is_silent, np.ones(128), "same") > 0
    assert part(element, "time").text.endswith("late") == inside.any()
    return wav[~inside]


def expected(units, speaker="slt"):
    """The sound of units at 24 kHz."""
    wav = soxr.resample(tiny.speech_model().vocoder(units, speaker=speaker), 16_000, 24_000)
    loud = np.flatnonzero(np.abs(wav) > 1e-4)
    return wav[loud[0] : loud[-1] + 1]


def similarity(a, b):
    """Highest correlation of two sounds over shifts of up to 20 ms."""
    size = min(len(a), len(b)) - 500
    return max(np.corrcoef(a[i : i + size], b[:size])[0, 1] for i in range(0, 480)) if size else 0


def bars(page):
    """Places at which the bars of the newest picture begin, and where its wave ends, in pixels."""
    pixels = page.execute_script(
        "const c = document.querySelector('.picture'), g = c.getContext('2d');"
        "return [c.height - 16, (c.height - 36) / 2].map("
        "(y) => [...g.getImageData(0, y, c.width, 1).data])"
    )
    bar, wave = (np.reshape(row, (-1, 4))[:, 3] > 127 for row in pixels)
    starts = np.flatnonzero(np.diff(bar.astype(int), prepend=0) == 1)
    return starts, np.flatnonzero(wave)[-1] + 1


def test_a_text_is_answered_and_played_without_gaps(page, tmp_path):
    find(page, "text").send_keys(tiny.SUM, Keys.ENTER)
    element = turn(page)
    assert part(element, "asked").text == tiny.SUM
    assert part(element, "answer").text == tiny.SUM_ANSWER
    assert part(element, "count").text == f"({len(tiny.SUM_UNITS)})"
    sound, whole = played(page, element), expected(tiny.SUM_UNITS)
    assert abs(len(sound) - len(whole)) < 480
    assert max(similarity(sound, whole), similarity(whole, sound)) > 0.98
    assert part(element, "time").text.startswith("First sound after ")
    # The bar of each unit begins below the beginning of its sound.
    seconds = tiny.unit_seconds(tiny.SUM_UNITS)
    starts, end = bars(page)
    assert min(seconds) < max(seconds) and len(starts) == len(seconds)
    expected_starts = np.cumsum([0, *seconds[:-1]]) / sum(seconds) * end
    np.testing.assert_allclose(starts, expected_starts, atol=1.5)
    page.save_screenshot(str(tmp_path / "answer.png"))


@pytest.fixture(scope="module")
def shipped():
    """A server with the shipped model, in which only what is used is compiled."""
    model = SpeechModel.from_run(SHIPPED_MODEL, num_slots=1, context=512)
    model.warm_up = lambda seconds: None
    with tiny.serving(model=model, max_new_tokens=256) as address:
        yield address


def test_a_recogniser_understands_what_the_shipped_model_says(shipped, browser):
    browser.get(shipped)
    tiny.wait_for(lambda: find(browser, "status").text == "Model tiny")
    find(browser, "text").send_keys("what color is grass?", Keys.ENTER)
    element = turn(browser)
    wav = soxr.resample(played(browser, element), 24_000, 16_000).astype(np.float32)
    assert part(element, "answer").text == "grass is green."
    assert normalize(WhisperRecogniser()(wav)) == "grass is green"


def test_the_shipped_model_answers_a_question_to_the_microphone(shipped, browser):
    browser.get(shipped)
    tiny.wait_for(lambda: find(browser, "status").text == "Model tiny")
    # On a busy machine the browser's false microphone loses samples: one good take is enough.
    takes = []
    while not takes or (takes[-1] != (CLIP["text"], CLIP["answer"]) and len(takes) < 5):
        element = record(browser)
        takes.append(tuple(part(element, name).text for name in ("asked", "answer")))
    assert takes[-1] == (CLIP["text"], CLIP["answer"]), takes


def record(page):
    """The turn that follows 2.5 s of microphone."""
    number = len(page.find_elements(By.CSS_SELECTOR, ".turn[data-done]"))
    button = find(page, "microphone")
    button.click()
    tiny.wait_for(lambda: button.get_attribute("aria-pressed") == "true")
    time.sleep(2.5)
    button.click()
    return turn(page, number)


def test_an_uploaded_recording_is_answered(page):
    find(page, "file").send_keys(str(QUESTION))
    element = turn(page)
    assert part(element, "asked").text == CLIP["text"]
    assert part(element, "answer").text == CLIP["answer"]
    element.find_element(By.TAG_NAME, "summary").click()
    assert part(element, "units").text == " ".join(map(str, tiny.CLIP_UNITS))


# Counts the microphones that are asked for in window.asked, and keeps them in window.streams.
MICROPHONES = """
window.asked = 0, window.streams = [];
const real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async (options) => {
  window.asked++;
  await new Promise((resolve) => setTimeout(resolve, 300));
  const stream = await real(options);
  window.streams.push(stream);
  return stream;
};
"""
IS_ON = "return window.streams.some((s) => s.getTracks().some((t) => t.readyState === 'live'))"


def test_a_second_click_starts_no_second_recording(page):
    page.execute_script(MICROPHONES)
    button = find(page, "microphone")
    page.execute_script("arguments[0].click(), arguments[0].click()", button)
    tiny.wait_for(lambda: button.get_attribute("aria-pressed") == "true")
    assert page.execute_script("return window.asked") == 1
    assert page.execute_script(IS_ON)
    button.click()
    turn(page)
    assert not page.execute_script(IS_ON)


@pytest.mark.parametrize("way", ["escape", "stop", "new", "text"])
def test_a_recording_can_be_discarded(page, way):
    page.execute_script(MICROPHONES)
    button = find(page, "microphone")
    button.click()
    tiny.wait_for(lambda: button.get_attribute("aria-pressed") == "true")
    if way == "text":
        find(page, "text").send_keys(tiny.SUM, Keys.ENTER)
        assert part(turn(page), "answer").text == tiny.SUM_ANSWER
    elif way == "escape":
        find(page, "text").send_keys(Keys.ESCAPE)
    else:
        find(page, way).click()
    assert button.text == "Record" and not page.execute_script(IS_ON)
    if way != "text":
        assert find(page, "status").text == "The recording was discarded."
        assert not page.find_elements(By.CLASS_NAME, "turn")


def test_a_recording_that_cannot_start_leaves_no_microphone_on(page):
    page.execute_script(
        MICROPHONES + "window.AudioContext.prototype.createMediaStreamSource = () => {"
        " throw new Error('no source'); };"
    )
    find(page, "microphone").click()
    tiny.wait_for(lambda: find(page, "status").text == "No microphone: no source")
    assert page.execute_script("return window.streams.length") == 1
    assert not page.execute_script(IS_ON)
    # Without its module the microphone isn't even asked for.
    page.execute_script(
        "window.AudioWorklet.prototype.addModule = async () => { throw new Error('no module'); };"
    )
    find(page, "microphone").click()
    tiny.wait_for(lambda: find(page, "status").text == "No microphone: no module")
    assert page.execute_script("return window.asked") == 1


def test_transcribing_and_reading_aloud(page):
    Select(find(page, "task")).select_by_value("transcribe")
    find(page, "file").send_keys(str(QUESTION))
    assert part(turn(page), "answer").text == CLIP["text"]
    page.refresh()
    tiny.wait_for(lambda: find(page, "status").text == "Model tiny")
    Select(find(page, "task")).select_by_value("speak")
    Select(find(page, "voice")).select_by_value("rms")
    find(page, "text").send_keys(tiny.GREETING, Keys.ENTER)
    sound, whole = played(page, turn(page)), expected(tiny.GREETING_UNITS, "rms")
    assert max(similarity(sound, whole), similarity(whole, sound)) > 0.98


def test_the_earlier_turns_are_sent_until_a_new_conversation(browser):
    """The model reads them, and the server's own voice is selected."""
    with tiny.serving(speaker="rms", history_tokens=60) as address:
        browser.get(address)
        tiny.wait_for(lambda: find(browser, "status").text == "Model tiny")
        assert find(browser, "voice").get_property("value") == "rms"
        browser.execute_script(
            "const send = window.fetch; window.sent = [];"
            "window.fetch = (path, options) => (sent.push(options.body), send(path, options));"
        )
        find(browser, "aloud").click()
        # The answer to the second may be any text: the model has learnt single questions.
        for _ in range(2):
            ask_and_wait(browser, tiny.SUM)
        find(browser, "new").click()
        assert not browser.find_elements(By.CSS_SELECTOR, ".turn")
        ask_and_wait(browser, tiny.SUM)
        bodies = [json.loads(body) for body in browser.execute_script("return window.sent")]
        question = {"role": "user", "content": tiny.SUM}
        answer = {"role": "assistant", "content": tiny.SUM_ANSWER}
        expected = [[question], [question, answer, question], [question]]
        assert [body["messages"] for body in bodies] == expected
        counts = [
            httpx2.post(f"{address}/v1/chat/completions", json=body | PLAIN, timeout=30).json()
            for body in bodies
        ]
        alone, after, anew = (count["usage"]["prompt_tokens"] for count in counts)
        assert alone == anew < after


# A reply at once, for its numbers of tokens.
PLAIN = {"stream": False, "stream_options": None}


def ask_and_wait(page, text):
    number = len(page.find_elements(By.CSS_SELECTOR, ".turn[data-done]"))
    find(page, "text").send_keys(text, Keys.ENTER)
    turn(page, number)


def test_a_long_text_is_read_aloud_and_what_is_cut_is_shown(browser):
    with tiny.serving(max_new_tokens=3) as address:
        browser.get(address)
        tiny.wait_for(lambda: find(browser, "status").text == "Model tiny")
        Select(find(browser, "task")).select_by_value("speak")
        find(browser, "text").send_keys(f"{tiny.GREETING}! {tiny.GREETING}", Keys.ENTER)
        message = part(turn(browser), "error").text
    assert message == f"Cut off at the longest reply: {tiny.GREETING}! {tiny.GREETING}"


def test_errors_are_shown(page):
    Select(find(page, "task")).select_by_value("transcribe")
    find(page, "text").send_keys("a", Keys.ENTER)
    assert find(page, "status").text == "Transcribing needs a recording."
    assert find(page, "text").get_property("value") == "a"
    find(page, "file").send_keys(__file__)
    assert "not readable as sound" in part(turn(page), "error").text
    # The browser reports a status of 400 as an error too.
    assert "400" in page.get_log("browser")[-1]["message"]


def test_a_page_of_plain_http_answers_and_replays(browser, address):
    """Browsers give such pages neither microphone nor worklets."""
    browser.get(address.replace("127.0.0.1", "plain.example"))
    tiny.wait_for(lambda: find(browser, "status").text == "Model tiny")
    assert find(browser, "microphone-note").is_displayed()
    find(browser, "text").send_keys(tiny.SUM, Keys.ENTER)
    element = turn(browser)
    assert part(element, "error").text == ""
    assert part(element, "answer").text == tiny.SUM_ANSWER
    replay = part(element, "replay")
    assert replay.is_displayed()
    tiny.wait_for(lambda: (replay.get_property("duration") or 0) > 0.3)


def test_a_second_question_stops_the_first(page):
    page.execute_script(
        "window.fetch = (path, { signal }) => new Promise((_, reject) =>"
        " signal.addEventListener('abort', () => reject(new DOMException('', 'AbortError'))));"
    )
    for text in ("first", "second"):
        find(page, "text").send_keys(text, Keys.ENTER)
    time.sleep(0.3)
    assert find(page, "status").text == "Answering …"
    find(page, "stop").send_keys(Keys.ENTER)
    tiny.wait_for(lambda: find(page, "status").text == "Stopped.")
    assert page.switch_to.active_element == find(page, "text")
    notes = [part(element, "error").text for element in page.find_elements(By.CLASS_NAME, "turn")]
    assert notes == ["Stopped.", "Stopped."]


def test_what_was_heard_of_a_stopped_answer_can_be_replayed(page):
    """The stream goes silent after its first sound."""
    page.execute_script(
        "const ask = window.fetch; window.fetch = async (path, options) => {"
        "  const reply = await ask(path, options);"
        "  if (!path.endsWith('completions')) return reply;"
        "  const reader = reply.body.getReader();"
        "  return new Response(new ReadableStream({ async pull(out) {"
        "    const { value, done } = await reader.read();"
        "    if (done) await new Promise((_, reject) => options.signal.addEventListener('abort',"
        "      () => reject(new DOMException('', 'AbortError'))));"
        "    out.enqueue(value);"
        "  } }));"
        "};"
    )
    find(page, "text").send_keys(tiny.SUM, Keys.ENTER)
    tiny.wait_for(lambda: part(page, "turn").get_attribute("data-first-sound"), 20)
    find(page, "text").send_keys(Keys.ESCAPE)
    element = turn(page)
    assert part(element, "error").text == "Stopped."
    replay = part(element, "replay")
    assert replay.is_displayed() and replay.accessible_name == "The answer once more"


def test_a_cut_answer_and_one_without_sound_say_so(browser):
    with tiny.serving(max_new_tokens=3) as address:
        browser.get(address)
        tiny.wait_for(lambda: find(browser, "status").text == "Model tiny")
        find(browser, "text").send_keys(tiny.SUM, Keys.ENTER)
        message = part(turn(browser), "error").text
    assert message == "Cut off at the longest reply. No sound was made."


def test_enter_that_ends_the_choice_of_a_character_does_not_send(page):
    find(page, "text").send_keys("a")
    for key in ("Enter", "Escape"):
        page.execute_script(
            "arguments[0].dispatchEvent(new KeyboardEvent('keydown', { key: arguments[1],"
            " isComposing: true, bubbles: true, cancelable: true }))",
            find(page, "text"),
            key,
        )
    assert find(page, "text").get_property("value") == "a"
    assert find(page, "status").text == "Model tiny"


def test_keyboard_and_names(page):
    """Every control is reached by Tab and has a name for screen readers."""
    reached = []
    for _ in range(8):
        webdriver.ActionChains(page).send_keys(Keys.TAB).perform()
        element = page.switch_to.active_element
        reached.append(element.get_attribute("id"))
        if reached[-1]:
            assert element.accessible_name, reached[-1]
    order = ["task", "voice", "aloud", "text", "send", "microphone", "file"]
    assert [id_ for id_ in reached if id_ in order][: len(order)] == order


@pytest.mark.parametrize("width", [320, 1000])
def test_no_width_needs_scrolling_sideways(page, width):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    find(page, "text").send_keys(tiny.SUM, Keys.ENTER)
    turn(page)
    sizes = page.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert sizes[0] <= sizes[1]
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
