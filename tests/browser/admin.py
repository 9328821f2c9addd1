"""The admin site in a browser, as somebody who looks at it."""

from __future__ import annotations

from playwright.sync_api import ConsoleMessage, Locator, Page, Response, expect

from tests.acceptance.stack import Stack

PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}


class Admin:
    """`errors`: whatever the console said since the start, uncaught exceptions included."""

    def __init__(self, stack: Stack, page: Page) -> None:
        self.stack, self.page = stack, page
        self.errors: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.errors.append(f"{page.url}: {error}"))

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(f"{self.page.url}: {message.text}")

    def log_in(self) -> None:
        self.page.goto(f"{self.stack.url}/admin/login/")
        self.page.fill("[name=username]", self.stack.demo["ADMIN_USER"])
        self.page.fill("[name=password]", self.stack.demo["ADMIN_PASSWORD"])
        self.page.click("button[type=submit]")
        expect(self.page).to_have_url(f"{self.stack.url}/admin/")

    def open(self, path: str) -> Response:
        answer = self.page.goto(self.stack.url + path)
        assert answer is not None
        assert answer.status == 200, f"{path} answered {answer.status}"
        return answer

    def ask(self, verb: str) -> Locator:
        """Press a verb's button; its dialog."""
        self.page.get_by_role("link", name=verb, exact=False).first.click()
        dialog = self.page.locator("#modal-content")
        expect(dialog.get_by_role("button", name=verb)).to_be_visible()
        return dialog

    def figure(self, kind: str) -> int:
        """A figure of the dashboard, which must be the page that is open."""
        return int(self.page.locator(f"[data-figure={kind}]").inner_text().replace(",", ""))

    def width_at(self, size: dict[str, int]) -> int:
        """How wide the page becomes in a window of that size."""
        self.page.set_viewport_size({"width": size["width"], "height": size["height"]})
        return int(self.page.evaluate("document.documentElement.scrollWidth"))
