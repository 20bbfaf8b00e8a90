"""Owns the claims about the status page, in a real browser (Chromium) over the real HTTP side.

``PRODUCER_PICTURES=DIRECTORY`` writes the pictures of README there.
"""

from __future__ import annotations

import asyncio
import dataclasses
import io
import os
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect
from rich.console import Console
from rich.terminal_theme import MONOKAI

from producer import http, progress
from producer.commits import SplitProgress
from producer.config import Config, HttpConfig
from producer.metrics import Metrics
from producer.model import Between, Checkpoint, KeyPosition, Split
from producer.service import Service
from producer.status import StreamStatus
from producer.worker import worker_id

TOKEN = "correct horse battery"
PICTURES = os.environ.get("PRODUCER_PICTURES")


def split(number: int, lower: int | None, at: int | None, upper: int | None, **more: Any) -> SplitProgress:
    low, place, up = (None if key is None else KeyPosition((key,)) for key in (lower, at, upper))
    rows = (at or lower or 0) - (lower or 0)
    checkpoint = Checkpoint(Split(str(number), low, up), place, rows, done=at is not None and at == upper)
    return SplitProgress(checkpoint, active=place != up, **more)


def scene() -> dict[str, StreamStatus]:
    """One stream of each kind of state."""
    now = time.time()
    events = StreamStatus("events", "shop", "shop.events", "running", 412_600, 410_000, 61_500_000)
    events.rows_total_estimate, events.rows_remaining, events.last_commit_at = 1_000_000, 590_000, now
    events.started_at = now - 20
    events.split_lists = {
        "": [
            split(0, None, 250_000, 250_000),
            split(1, 250_000, 370_000, 500_000),
            split(2, 500_000, 540_000, 1_000_000),
        ]
    }
    chats = StreamStatus("announcements", "chats", "chats.announcements", "paused", 12_001, 12_001, 4_200_000)
    chats.rows_remaining, chats.last_commit_at = 800, now - 240
    chats.split_lists = {"": [split(0, None, 12_001, None)]}
    users = StreamStatus("subscribers", "portal", "portal.subscribers", "failed", 5_000, 4_000, 900_000)
    users.error = "column 'balance', row with key 4711: the value 1234567890.12345 does not fit decimal(10,2)"
    users.hint = "set decimal: 20,6 in the stream, or leave the column out by exclude"
    users.split_lists = {"": [split(0, None, 4_000, 90_000)]}
    done = StreamStatus("countries", "shop", "shop.countries", "complete", 249, 249, 9_000)
    done.rows_remaining, done.last_commit_at = 0, now - 3000
    done.split_lists = {"": [split(0, None, 249, 249)]}
    return {status.name: status for status in (events, chats, users, done)}


@dataclass
class Scene:
    """A service of which the test says what it does."""

    streams: dict[str, StreamStatus] = field(default_factory=scene)
    token: str | None = None
    asked: list[tuple[str, str, Between | None]] = field(default_factory=list)
    url: str = ""

    @property
    def config(self) -> Config:
        sources = {"shop": {"type": "sql", "url": "sqlite:///none"}}
        streams = [{"source": "shop", "table": "events"}]
        return Config.model_validate(
            {"app": "shop-export", "sources": sources, "streams": streams, "http": {"token": self.token}}
        )

    async def pause(self, name: str) -> None:
        self.asked.append(("pause", name, None))
        self.streams[name].state = "paused"

    async def resume(self, name: str) -> None:
        self.asked.append(("resume", name, None))
        self.streams[name].state = "running"

    async def replay(self, name: str, wanted: Between) -> Split:
        self.asked.append(("replay", name, wanted))
        found = Split("replay-1", None, KeyPosition((200,)), wanted)
        self.streams[name].split_lists[""].append(
            SplitProgress(Checkpoint(found, KeyPosition((150,)), 50), active=True)
        )
        return found


@pytest.fixture(scope="module")
def chromium() -> str:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("tests need a browser: apt-get install -y --no-install-recommends chromium")
    return path


@pytest.fixture
async def browser(chromium: str) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.fixture
async def shown() -> AsyncIterator[Scene]:
    service = Scene()
    listener = http.bind(HttpConfig(port=0))
    service.url = "http://{}:{}".format(*listener.getsockname())
    async with http.serving(listener, Metrics(), cast(Service, service), str):
        yield service


async def opened(browser: Browser, service: Scene, **options: Any) -> Page:
    """The page, with whatever goes wrong in it failing the test at `no_complaints`."""
    context = await browser.new_context(viewport={"width": 1100, "height": 900}, **options)
    page = await context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on(
        "request",
        lambda request: None if request.url.startswith((service.url, "data:")) else complaints.append(request.url),
    )
    page.complaints = complaints  # type: ignore[attr-defined]
    await page.goto(service.url)
    await expect(page.get_by_role("article")).to_have_count(len(service.streams))
    return page


def complaints(page: Page) -> list[str]:
    found: list[str] = page.complaints  # type: ignore[attr-defined]
    return found


async def test_it_shows_states_progress_splits_owners_and_the_way_out_of_an_error(
    browser: Browser, shown: Scene
) -> None:
    page = await opened(browser, shown)
    events = page.get_by_role("article", name="events")
    await expect(events).to_contain_text("running")
    bar = events.get_by_role("progressbar", name="events: rows acknowledged")
    await expect(bar).to_have_attribute("aria-valuenow", "41")
    await events.get_by_text("3 splits: 2 moving, 1 done").click()
    await expect(events.get_by_role("row")).to_have_count(4)
    await expect(events.get_by_role("row").nth(2)).to_contain_text(worker_id())
    failed = page.get_by_role("article", name="subscribers")
    await expect(failed.get_by_role("alert")).to_contain_text("does not fit decimal(10,2)")
    await expect(failed.get_by_role("alert")).to_contain_text("What to do: set decimal: 20,6")
    await expect(failed.get_by_role("button", name="Pause subscribers")).to_be_disabled()
    assert complaints(page) == []


async def test_a_replaced_table_is_shown_where_the_stream_continues(browser: Browser, shown: Scene) -> None:
    page = await opened(browser, shown)
    notice = page.get_by_role("article", name="events").locator(".replaced")
    await expect(notice).to_be_hidden()
    shown.streams["events"].table_replaced = "stream 'events': table 'public.events' has been replaced"
    await expect(notice).to_be_visible()
    await expect(notice).to_contain_text("Table replaced: stream 'events': table 'public.events' has been replaced")
    assert complaints(page) == []


async def test_the_plots_move(browser: Browser, shown: Scene) -> None:
    page = await opened(browser, shown)
    events = page.get_by_role("article", name="events")
    traces = events.locator("path.trace")
    seen = set()
    for _ in range(3):
        shown.streams["events"].rows_acked += 50_000
        before = await traces.first.get_attribute("d")
        await expect(traces.first).not_to_have_attribute("d", before or "")
        seen.add(await traces.first.get_attribute("d"))
    assert len(seen) == 3
    await expect(events.get_by_role("img", name="Rows a second:")).to_be_visible()


async def test_it_is_used_by_keyboard_alone(browser: Browser, shown: Scene) -> None:
    page = await opened(browser, shown)
    pause = page.get_by_role("button", name="Pause events")
    for _ in range(12):
        await page.keyboard.press("Tab")
        if await pause.evaluate("button => button === document.activeElement"):
            break
    await expect(pause).to_be_focused()
    assert await pause.evaluate("button => getComputedStyle(button).outlineStyle") == "solid"
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status").filter(has_text="events: paused")).to_be_visible()
    resume = page.get_by_role("button", name="Resume events")
    await expect(resume).to_be_focused()  # it stands in the same place, and the focus is not lost
    await page.keyboard.press("Enter")
    await expect(pause).to_be_visible()
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Replay rows of events")
    await expect(dialog).to_be_visible()
    await dialog.get_by_label("From").fill("101")
    await dialog.get_by_label("To").fill("200")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status").filter(has_text="events: replay-1 has begun")).to_be_visible()
    assert shown.asked == [
        ("pause", "events", None),
        ("resume", "events", None),
        ("replay", "events", Between("", "101", "200")),
    ]
    await page.keyboard.press("Escape")
    assert complaints(page) == []


async def test_enter_in_the_dialog_replays_and_escape_does_not(browser: Browser, shown: Scene) -> None:
    page = await opened(browser, shown)
    for key in ("Escape", "Enter"):
        await page.get_by_role("button", name="Replay events").click()
        await page.get_by_label("From").fill("7")
        await page.keyboard.press(key)
        await expect(page.get_by_role("dialog")).to_be_hidden()
    await expect(page.get_by_role("status").filter(has_text="has begun")).to_be_visible()
    assert shown.asked == [("replay", "events", Between("", "7", None))]


async def test_where_a_token_is_needed_it_is_asked_for_once(browser: Browser) -> None:
    service = Scene(token=TOKEN)
    listener = http.bind(HttpConfig(port=0))
    service.url = "http://{}:{}".format(*listener.getsockname())
    async with http.serving(listener, Metrics(), cast(Service, service), str):
        page = await opened(browser, service)
        await page.get_by_role("button", name="Pause events").click()
        await page.get_by_label("Token", exact=True).fill(TOKEN)
        await page.get_by_role("button", name="Use it").click()
        await page.get_by_role("button", name="Resume events").click()
        await expect(page.get_by_role("button", name="Pause events")).to_be_visible()
    assert [what for what, *_ in service.asked] == ["pause", "resume"]


async def test_a_name_is_text_and_never_markup(browser: Browser, shown: Scene) -> None:
    name = '<img src=x onerror="document.title=1"> ü'
    shown.streams[name] = StreamStatus(name, "<b>shop</b>", "t", "failed", error="<script>alert(1)</script>")
    page = await opened(browser, shown)
    await expect(page.get_by_role("heading", name=name)).to_be_visible()
    assert await page.locator("article img:not([role])").count() == 0
    assert complaints(page) == []


async def test_it_says_when_the_producer_has_gone_and_comes_back_by_itself(browser: Browser, shown: Scene) -> None:
    page = await opened(browser, shown)
    await expect(page.get_by_text("live", exact=True)).to_be_visible()
    await page.context.set_offline(True)
    await expect(page.get_by_text("no answer from the producer")).to_be_visible()
    await page.context.set_offline(False)
    await expect(page.get_by_text("live", exact=True)).to_be_visible()


CONTRAST = """() => {
  const linear = (c) => (c /= 255) <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
  const light = (rgb) => .2126 * linear(rgb[0]) + .7152 * linear(rgb[1]) + .0722 * linear(rgb[2]);
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const back = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const rgb = parse(getComputedStyle(at).backgroundColor);
      if (rgb.length === 3 || rgb[3] > 0) return rgb;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility() || element.matches("script, style, :disabled, noscript *")) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(back(element))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) poor.push(`${element.tagName} ${element.textContent.trim()}: ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_text_stands_out_by_4_5_to_1(browser: Browser, shown: Scene, scheme: str) -> None:
    page = await opened(browser, shown, color_scheme=scheme)
    backs = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, backs[4:-1].split(","))) < 200) is (scheme == "dark")
    assert await page.evaluate(CONTRAST) == []
    await page.get_by_role("button", name="Replay events").click()
    assert await page.evaluate(CONTRAST) == []


async def test_on_a_phone_nothing_is_cut_off(browser: Browser, shown: Scene) -> None:
    page = await opened(browser, shown)
    await page.set_viewport_size({"width": 360, "height": 700})
    assert await page.evaluate("document.documentElement.scrollWidth") <= 360


def move(events: StreamStatus, second: int) -> None:
    """What a second brings the stream of three splits, of which one is done: rows and commits that add up."""
    rows = 2 * (2_000 + 1_250 * (second * second % 5))
    splits = events.split_lists[""]
    for one in splits[1:]:
        at = one.checkpoint
        assert isinstance(at.position, KeyPosition)
        assert isinstance(at.position.values[0], int)
        moved = KeyPosition((at.position.values[0] + rows // 2,))
        one.checkpoint = dataclasses.replace(at, position=moved, rows=at.rows + rows // 2)
    events.rows_acked += rows
    events.rows_read = events.rows_acked + 2_600
    events.rows_remaining = 1_000_000 - sum(one.checkpoint.rows for one in splits)
    events.last_commit_at = time.time()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_its_picture(browser: Browser, shown: Scene, scheme: str, tmp_path: Path) -> None:
    """What README shows: a picture after some seconds of movement, small enough to be kept."""
    page = await opened(browser, shown, color_scheme=scheme)
    await page.get_by_text("3 splits").click()
    for second in range(24 if PICTURES else 2):
        move(shown.streams["events"], second)
        await asyncio.sleep(1 if PICTURES else 0)
    path = (Path(PICTURES) if PICTURES else tmp_path) / f"status-{scheme}.png"
    await page.set_viewport_size({"width": 940, "height": 880})
    await page.screenshot(path=path)
    assert 10_000 < path.stat().st_size < 150_000


async def test_the_terminals_picture(browser: Browser, tmp_path: Path) -> None:
    """The live table of the same streams, drawn by a browser as a terminal draws it."""
    console = Console(record=True, width=84, file=io.StringIO(), force_terminal=True)
    streams, rates = scene(), dict[str, progress.Rate]()
    progress.drawn(streams, rates)
    for second in range(5):
        move(streams["events"], second)
        await asyncio.sleep(0.2 if PICTURES else 0.01)
    console.print("$ producer run shop.yaml", style="bold")
    console.print(progress.drawn(streams, rates))
    told = console.export_html(theme=MONOKAI, inline_styles=True)
    assert "events" in told
    assert "running" in told
    page = await browser.new_page(viewport={"width": 760, "height": 150})
    await page.set_content(told.replace("<body>", '<body style="font-size: 14px; margin: 8px 16px">'))
    path = (Path(PICTURES) if PICTURES else tmp_path) / "terminal.png"
    await page.screenshot(path=path)
    assert 3_000 < path.stat().st_size < 100_000


async def test_the_api_page_lists_every_route(browser: Browser, shown: Scene) -> None:
    page = await browser.new_page()
    await page.goto(f"{shown.url}/api")
    await expect(page.get_by_role("heading", name="POST /streams/{name}/replay")).to_be_visible()
    await expect(page.get_by_text('{"from":100,"to":200}')).to_be_visible()
