"""Somebody who has the page open in a browser, and what people do there."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

SIZES = {"wide": {"width": 1280, "height": 800}, "small": {"width": 390, "height": 844}}
SERIOUS = ("serious", "critical")


def events_of(*texts: str, done: bool = True) -> str:
    """The body of a reply that is streamed, as the server sends it."""
    events = [json.dumps({"choices": [{"delta": {"content": text}}]}) for text in texts]
    return "".join(f"data: {event}\n\n" for event in [*events, *["[DONE]"] * done])


class Talk:
    """Somebody who has the page open. `errors` gathers what the browser's console complains of."""

    def __init__(self, page):
        self.page = page
        page.set_default_timeout(10_000)
        self.errors: list[str] = []
        self.expected: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)

    def expect_errors(self, *texts: str) -> None:
        """Do not mind errors with these words, which the browser logs for failed requests."""
        self.expected += texts

    def unexpected_errors(self) -> list[str]:
        return [error for error in self.errors if not any(text in error for text in self.expected)]

    def open(self, url: str, is_ready: bool = True) -> None:
        self.page.goto(url)
        if is_ready:
            self.page.wait_for_selector("body.ready")

    def reload(self) -> None:
        self.page.reload()
        self.page.wait_for_selector("body.ready")

    def until(self, is_so: Callable[[], bool]) -> None:
        """Wait for something to be so; playwright's own way evaluates text in the page, which its policy forbids."""
        for _ in range(500):
            if is_so():
                return
            time.sleep(0.02)
        raise AssertionError("waited for in vain")

    def button(self, name: str, within: str = "body"):
        return self.page.locator(within).get_by_role("button", name=name, exact=True)

    def show(self, part: str) -> None:
        """Show a part of the page, as small screens need it."""
        tab = self.page.locator(f"[data-show={part}]")
        if tab.is_visible():
            tab.click()

    def persona(self, who: str = "agent") -> list[str]:
        boxes = self.page.locator(f"[data-card={who}] textarea")
        return boxes.evaluate_all("(boxes) => boxes.map((box) => box.value)")

    def set_persona(self, *sentences: str, who: str = "agent") -> None:
        card = self.page.locator(f"[data-card={who}]")
        card.evaluate("(card) => (card.open = true)")
        for _ in self.persona(who):
            card.get_by_role("button", name="Remove").first.click()
        for sentence in sentences:
            card.get_by_role("button", name="Add a sentence").click()
            self.page.keyboard.insert_text(sentence)

    def greedy(self) -> None:
        self.page.locator("#greedy").check()

    def turns(self) -> list[tuple[str, str]]:
        """What has been said, with the name of who said it."""
        rows = self.page.locator("#turns > li:not(.memory)")
        texts = "(row) => [row.querySelector('.who').textContent, row.querySelector('p').textContent]"
        return list(map(tuple, rows.evaluate_all(f"(rows) => rows.map({texts})")))

    def type(self, text: str) -> None:
        self.page.locator("#say").fill(text)

    @contextmanager
    def asks(self) -> Iterator[SimpleNamespace]:
        """Wait for the whole reply to what is done within; `body` is what the page then sent."""
        asked = SimpleNamespace(body={})
        with self.page.expect_request("**/v1/chat/completions") as request:
            yield asked
        asked.body = request.value.post_data_json
        self.page.wait_for_selector("#send:visible")

    def say(self, text: str) -> dict:
        """Say something and return what the page sent, once the reply is whole."""
        self.type(text)
        with self.asks() as asked:
            self.page.keyboard.press("Enter")
        return asked.body

    def rank(self, button: str) -> None:
        with self.page.expect_response("**/v1/rerank"):
            self.button(button).click()
        self.until(lambda: not self.page.inner_text("#rank-status").endswith("..."))

    def scores(self) -> list[tuple[str, str]]:
        """The candidates, best first, with what stands beside each one's bar."""
        texts = "(row) => [row.querySelector('p').textContent, row.querySelector('.value').textContent]"
        return list(map(tuple, self.page.locator("#scores > li").evaluate_all(f"(rows) => rows.map({texts})")))

    def download(self, button: str, path: Path) -> Path:
        self.page.locator("#open-share").click()
        with self.page.expect_download() as download:
            self.button(button).click()
        assert download.value.suggested_filename == path.name
        download.value.save_as(path)
        self.page.keyboard.press("Escape")
        return path

    def link(self) -> str:
        self.page.locator("#open-share").click()
        link = self.page.input_value("#link")
        self.page.keyboard.press("Escape")
        return link

    def focused(self) -> str:
        return self.page.evaluate("document.activeElement.id")

    def brightness(self) -> float:
        """The background's, from 0 to 255."""
        color = self.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        channels = [float(number) for number in color.removeprefix("rgb(").removesuffix(")").split(",")]
        return sum(channels) / 3

    def violations(self) -> list[str]:
        """What axe-core finds serious on the page as it stands."""
        import axe_playwright_python

        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate((Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
        found = self.page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
        return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in SERIOUS]
