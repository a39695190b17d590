"""The page in a real browser, on a real server: what a person does, and what must not happen."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
import torch
from tests.inference.serve.page_helpers import HOSTILE, TEMPLATE, served, speaking

from controlllm import expand, load_sidecars

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is installed")
    sandbox = [] if os.getuid() else ["--no-sandbox"]  # chromium has none for root
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=path, args=sandbox)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def address(pico_llama: Callable, pico_tokenizer: Any) -> Iterator[str]:
    """A chat model: the base says "no ", the tuned model "yes "."""
    model, tokenizer = speaking(pico_llama, pico_tokenizer, "no ", "yes ")
    tokenizer.chat_template = TEMPLATE
    with served(model, tokenizer) as address:
        yield address


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, open; the test fails where it complains of anything."""
    with opened(browser, address) as page:
        yield page


class opened:
    """A page in a context of its own, with everything that the browser complains of."""

    def __init__(self, browser: Any, address: str, complains: str = "-", **options: Any) -> None:
        self.browser, self.address, self.options = browser, address, options
        self.complains = complains  # what it may complain of

    def __enter__(self) -> Any:
        self.context = self.browser.new_context(**self.options)
        self.context.set_default_timeout(20_000)
        self.wrong: list[str] = []
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", lambda told: told.type == "error" and self.wrong.append(told.text))
        page.goto(self.address)
        return page

    def __exit__(self, kind: Any, *args: Any) -> None:
        self.context.close()
        assert kind or [told for told in self.wrong if self.complains not in told] == []


def ask(page: Any, text: str, tokens: int = 3) -> None:
    """Say something, and wait until all is written and compared."""
    ready(page)
    page.evaluate(f"document.getElementById('max-tokens').value = {tokens}")
    page.locator("#say").fill(text)
    page.locator("#say").press("Enter")
    page.locator(".turn").last.locator(".facts .kl").nth(1).wait_for()


def ready(page: Any) -> None:
    page.locator("#model-name:not(:empty)").wait_for()


def shared(page: Any) -> str:
    """The link to the conversation."""
    page.locator("#share").click()
    page.locator("#notice").wait_for()
    link: str = page.evaluate("location.href")
    return link


def said(page: Any, side: str) -> str:
    text: str = page.locator(f".answer.{side} .said").last.text_content()
    return text


def test_base_and_tuned_answer_side_by_side_with_colours(page: Any) -> None:
    ask(page, "Is it so?")
    assert (said(page, "base"), said(page, "tuned")) == ("no no no ", "yes yes yes ")
    # p = 50/310 for one token and 1/310 for 260 others, of 261; q the same for another token.
    kl = 49 / 310 * math.log(50)
    assert page.locator(".facts .kl").all_text_contents() == [f"mean KL {kl:.3f} nats"] * 2
    assert page.locator(".answer.tuned .token.kl-3").count() == 3
    page.locator(".answer.tuned .token").first.hover()
    told = f"KL {kl:.3f} nats, log p +{math.log(50):.2f}"
    page.locator("#details", has_text=told).wait_for()
    left, right = (page.locator(f".answer.{side}").bounding_box() for side in ("base", "tuned"))
    assert left["y"] == right["y"] and left["x"] + left["width"] < right["x"]


def test_the_dial_goes_from_one_to_the_other(page: Any) -> None:
    ask(page, "Is it so?")
    page.locator("#alpha").focus()
    page.keyboard.press("Home")
    assert page.locator("#alpha-value").text_content() == "0.00"
    again = page.locator(".again")
    assert again.text_content() == "Answer again: maths, alpha 0.00"
    again.click()
    page.locator(".answer.tuned .at", has_text="alpha 0.00").wait_for()
    page.locator(".facts .kl", has_text="mean KL 0.000 nats").nth(1).wait_for()
    assert said(page, "tuned") == "no no no "
    assert not again.is_visible()


def test_as_trained_shows_no_place_on_the_dial(page: Any) -> None:
    """Greyed at 1.00 it looked as if the trained branch alone answered."""
    ready(page)
    slider = page.locator("#alpha")

    def looks(value: float) -> bytes:
        slider.evaluate(f"slider => slider.value = {value}")
        picture: bytes = slider.screenshot()
        return picture

    page.locator("#say").focus()
    assert page.locator("#alpha-value").text_content() == "–"
    assert looks(0) == looks(1)
    page.locator("#as-trained").uncheck()
    page.locator("#say").focus()
    assert looks(0) != looks(1)


def test_what_a_model_writes_is_text(browser: Any, pico_llama, pico_tokenizer) -> None:
    model, tokenizer = speaking(pico_llama, pico_tokenizer, "plain ", HOSTILE)
    with served(model, tokenizer) as address, opened(browser, address) as page:
        ask(page, HOSTILE, tokens=2)
        assert said(page, "tuned") == 2 * HOSTILE
        page.locator(".answer.tuned .token").first.hover()
        page.locator("#details").wait_for()
        assert page.locator(".asked").text_content() == HOSTILE
        assert page.locator("main img, main script, #details img").count() == 0
        assert page.title() == "controlllm"
        assert page.locator("#send").text_content() == "Go on"  # no template: no invented chat


@pytest.mark.slow
def test_a_link_holds_the_conversation_and_sends_nothing(browser: Any, page: Any) -> None:
    page.locator("#show-settings").click()
    page.locator("#system").fill(HOSTILE)
    ask(page, HOSTILE)
    link = shared(page)
    assert link.partition("#")[2].startswith("c=")
    with opened(browser, "about:blank") as other:
        asked: list[str] = []
        other.on("request", lambda request: asked.append(request.url.partition("#")[0]))
        other.goto(link)
        other.locator(".answer.tuned").wait_for()
        assert said(other, "tuned") == "yes yes yes "
        assert other.locator(".asked").text_content() == HOSTILE
        assert other.locator("#system").input_value() == HOSTILE
        assert other.locator("#max-tokens").input_value() == "3"
        assert other.title() == "controlllm"
        own = link.partition("#")[0]
        assert all(url.startswith(own) for url in asked)
        assert not [url for url in asked if "/v1/" in url or "compare" in url]


@pytest.mark.slow
@pytest.mark.parametrize("fragment", ["#c=AAAA", "#c=%%", "#c=q1YqVrJSUDK0AAA"])
def test_a_broken_link_is_told(browser: Any, address: str, fragment: str) -> None:
    with opened(browser, f"{address}/{fragment}") as page:
        page.locator("#error").wait_for()
        assert "link cannot be read" in page.locator("#error").inner_text()
        ask(page, "still works")


@pytest.mark.slow
def test_several_sidecars_are_chosen_or_blended(browser, pico_llama, pico_tokenizer, tmp_path):
    for seed, name in enumerate(("maths", "zh")):
        model = expand(pico_llama(), num_blocks=2)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, parameter in model.trainable_parameter_groups()["expanded"]:
                parameter += 0.4 * torch.randn(parameter.shape, generator=generator)
        model.save_sidecar(tmp_path / name)
    model = load_sidecars(pico_llama(), {name: tmp_path / name for name in ("maths", "zh")})
    with served(model, pico_tokenizer) as address, opened(browser, address) as page:
        ask(page, "Once")
        page.locator("#sidecar").select_option("zh")
        page.locator(".again", has_text="zh, as trained").click()
        page.locator(".answer.tuned h3", has_text="zh").wait_for()
        page.locator(".facts .kl").nth(1).wait_for()
        page.locator("#sidecar").select_option("a blend")
        page.get_by_label("alpha of zh").focus()
        page.keyboard.press("Home")
        assert not page.locator("#alpha").is_visible()
        page.locator(".again", has_text="blend, maths 0.50").click()
        page.locator(".answer.tuned .at", has_text="maths 0.50").wait_for()
        page.locator(".facts .kl").nth(1).wait_for()
        blended = said(page, "tuned")
        with opened(browser, shared(page)) as other:
            other.locator(".answer.tuned .at", has_text="maths 0.50").wait_for()
            assert said(other, "tuned") == blended
        page.locator("#sidecar").select_option("maths")
        page.locator("#alpha").fill("0.5")
        page.locator(".again", has_text="maths, alpha 0.50").click()
        page.locator(".answer.tuned h3", has_text="maths").wait_for()
        page.locator(".facts .kl").nth(1).wait_for()
        assert said(page, "tuned") == blended  # the other one was off


@pytest.mark.slow
def test_by_keyboard_alone(page: Any) -> None:
    ready(page)
    order = []
    page.locator(".skip").focus()
    for _ in range(10):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id"))
    assert order == [
        *("new-chat", "share", "download", "show-settings"),
        *("colour", "sidecar", "alpha", "as-trained", "say", "send"),
    ]
    page.keyboard.press("Shift+Tab")
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.evaluate("document.getElementById('max-tokens').value = 3")
    page.keyboard.press("Enter")
    page.locator(".facts .kl").nth(1).wait_for()
    assert page.locator(".asked").text_content() == "one\ntwo"
    assert "Done. base: no no no" in page.locator("#status").text_content()
    first = page.locator(".answer.base .token").first
    first.focus()
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.textContent") == "no "
    assert page.locator(".token[aria-describedby=details]").count() == 1
    assert page.locator(".answer.base .token[tabindex='0']").count() == 1
    unnamed = "e => e.filter(x => !(x.labels?.length || x.textContent.trim())).map(x => x.id)"
    assert page.locator("button, input, select, textarea").evaluate_all(unnamed) == []


@pytest.mark.slow
def test_stop_keeps_what_was_written(page: Any) -> None:
    ready(page)
    page.evaluate("document.getElementById('max-tokens').value = 2000")
    page.locator("#show-settings").click()
    page.locator("#sides").select_option("tuned")
    page.locator("#say").fill("Go on")
    page.locator("#say").press("Enter")
    page.locator(".answer.tuned .said", has_text="yes yes").wait_for()
    page.keyboard.press("Escape")
    page.locator(".facts", has_text="stopped").wait_for()
    assert said(page, "tuned").startswith("yes yes ")
    assert page.locator("#send").is_visible()
    page.locator("#new-chat").click()
    assert page.locator(".turn").count() == 0


@pytest.mark.slow
def test_download_holds_texts_and_numbers(page: Any) -> None:
    ask(page, "Is it so?")
    with page.expect_download() as waiting:
        page.locator("#download").click()
    with open(waiting.value.path(), encoding="utf-8") as file:
        data = json.load(file)
    (turn,) = data["turns"]
    assert turn["tuned"]["text"] == "yes yes yes "
    assert [token["text"] for token in turn["base"]["compared"]["tokens"]] == ["no "] * 3


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_scrolling_sideways(browser: Any, address: str, scheme: str) -> None:
    phone = {"viewport": {"width": 390, "height": 780}, "is_mobile": True, "has_touch": True}
    with opened(browser, address, color_scheme=scheme, **phone) as page:
        page.locator("#show-settings").click()
        ask(page, "word" * 60)
        widths = page.evaluate(WIDTHS)
        assert widths == [390, 390]
        boxes = [page.locator(f".answer.{side}").bounding_box() for side in ("base", "tuned")]
        assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]
        page.locator(".answer.tuned .token").first.tap()
        page.locator(".answer.tuned .token:focus").wait_for()  # A finger leaves before that.
        box = page.locator("#details").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390


CONTRASTS = """() => {
  const probe = document.createElement("canvas").getContext("2d");
  const light = (colour) => {
    probe.clearRect(0, 0, 1, 1); probe.fillStyle = colour; probe.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...probe.getImageData(0, 0, 1, 1).data].map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const value = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
  const pairs = [["ink", "paper"], ["ink", "card"], ["soft", "paper"], ["soft", "card"],
    ["soft", "field"], ["on-tuned", "tuned"], ["tuned", "tuned-pale"], ["base", "base-pale"],
    ["ink", "tuned-pale"], ["wrong", "wrong-pale"], ["wrong", "card"], ["tuned", "paper"],
    ["paper", "ink"], ...[1, 2, 3, 4, 5].map((n) => ["ink", `kl-${n}`])];
  return pairs.map(([front, back]) => {
    const [a, b] = [light(value(`--${front}`)), light(value(`--${back}`))].sort((x, y) => y - x);
    return [`${front} on ${back}`, (a + 0.05) / (b + 0.05)];
  });
}"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_to_read(browser: Any, address: str, scheme: str) -> None:
    with opened(browser, address, color_scheme=scheme) as page:
        contrasts = dict(page.evaluate(CONTRASTS))
        assert len(contrasts) == 18
        assert {pair: value for pair, value in contrasts.items() if value < 4.5} == {}


@pytest.mark.slow
def test_a_key_is_asked_for_and_kept_in_the_tab(browser: Any, pico_llama, pico_tokenizer) -> None:
    model, tokenizer = speaking(pico_llama, pico_tokenizer, "no ", "yes ")
    with (
        served(model, tokenizer, api_key="open sesame") as address,
        opened(browser, address, complains="401") as page,
    ):
        for key in ("wrong key", "open sesame"):
            page.locator("#key").fill(key)
            page.locator("#key").press("Enter")
            page.locator("#error:visible" if key == "wrong key" else "#welcome:visible").wait_for()
        ask(page, "so?")
        shared(page)
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        assert page.locator("#key").input_value() == ""


@pytest.mark.slow
def test_nothing_said_is_lost_where_the_server_refuses(browser: Any, address: str) -> None:
    with opened(browser, address, complains="400") as page:
        ready(page)
        page.locator("#say").fill("x" * 5000)
        page.locator("#say").press("Enter")
        page.locator("#error").wait_for()
        assert "context holds 4096 tokens" in page.locator("#error").inner_text()
        page.locator(".turn").wait_for(state="detached")  # once the other side is refused too
        assert page.locator("#say").input_value() == "x" * 5000


def test_the_page_is_the_servers_own_and_names_are_no_paths(address: str) -> None:
    reply = httpx2.get(f"{address}/")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe-inline" not in policy
    assert "<script>" not in reply.text and " style=" not in reply.text
    assert "//" not in reply.text.replace("http://www.w3.org", "")
    for name in ("style.css", "app.js", "icon.svg"):
        assert httpx2.get(f"{address}/page/{name}").status_code == 200
    for name in ("..%2f__init__.py", "%2e%2e/app.py", "nothing.js", "..%5capp.py"):
        assert httpx2.get(f"{address}/page/{name}").status_code == 404
