"""The page in headless Chromium: it draws, plays, answers the pointer, and reads well on a phone, in light and dark."""

from __future__ import annotations

import pytest

from avssl.report import write_report
from report.browser import CHROMIUM, Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def page(run, other, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    return {
        "one": write_report(run, folder / "one.html", workers=0).path,
        "two": write_report(run, folder / "two.html", compare=[other], workers=0).path,
    }


@pytest.mark.parametrize("which", ["one", "two"])
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_the_page_draws_everything_without_an_error_and_without_sideways_scrolling(page, which, width, dark):
    with Browser(width, 844, dark) as browser:
        browser.open(page[which])
        assert browser.ask("document.body.dataset.ready") == "yes"
        assert browser.ask("document.documentElement.scrollWidth") <= width
        assert browser.ask("document.querySelectorAll('.query').length") == 8
        assert browser.ask("document.querySelectorAll('.hit.pair, .hit.kin, .hit.wrong').length") > 8
        assert browser.ask("[...document.querySelectorAll('.chart svg')].every((s) => s.querySelector('polyline'))")
        assert browser.ask("[...document.querySelectorAll('canvas')].length") >= 3
        drawn = "[...document.querySelectorAll('canvas')].map((c) => new Set(c.getContext('2d')" \
                ".getImageData(0, 0, c.width, c.height).data).size)"  # fmt: skip
        assert min(browser.ask(drawn)) > 3
        background = browser.ask("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(19, 21, 25)" if dark else "rgb(250, 249, 246)")
        browser.ask("document.querySelectorAll('img').forEach((i) => i.loading = 'eager')")
        pictures = "Promise.all([...document.images].map((i) => i.decode())).then(() => document.images.length)"
        assert browser.ask(pictures) > 60
        assert browser.errors == []
        assert [r for r in browser.requests if not r.startswith(("data:", "file:"))] == []


def test_sound_plays_and_stops(page):
    with Browser() as browser:
        browser.open(page["one"])
        browser.ask("document.querySelector('.asked .plays').click()")
        playing = """new Promise((yes, no) => {
            const p = document.getElementById('player'), end = Date.now() + 8000;
            const look = () => p.error ? no(p.error.message)
                : p.currentTime > 0.05 || p.ended ? yes(p.duration)
                : Date.now() > end ? no('silent, readyState ' + p.readyState) : setTimeout(look, 30);
            look();
        })"""
        assert browser.ask(playing) == pytest.approx(1.0, abs=0.2)
        browser.ask("document.querySelector('.asked .plays').click()")
        assert browser.ask("document.getElementById('player').paused")
        assert browser.errors == []


def test_a_point_of_the_map_shows_its_clip_and_leads_to_its_neighbours(page):
    with Browser() as browser:
        browser.open(page["one"])
        browser.ask(
            "document.documentElement.style.scrollBehavior = 'auto'; document.getElementById('map').scrollIntoView()"
        )
        browser.ask("new Promise((r) => setTimeout(r, 200))")
        # The map's own pixels say where a point is: the first that has a class's colour.
        spot = browser.ask("""(() => {
            const c = document.querySelector('#map canvas'), box = c.getBoundingClientRect();
            const at = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
            for (let i = 0; i < at.length; i += 4) if (at[i + 3] > 150) {
                const x = i / 4 % c.width, y = Math.floor(i / 4 / c.width);
                return [box.left + x * box.width / c.width, box.top + y * box.height / c.height];
            }
        })()""")
        browser.move(*spot)
        assert browser.ask("!document.getElementById('preview').hidden")
        shown = browser.ask("document.querySelector('#preview .id').textContent")
        browser.click(*spot)
        assert browser.ask("document.querySelectorAll('.query').length") == 1
        assert browser.ask("document.querySelector('.asked .id').textContent") == shown
        assert browser.errors == []


def test_charts_answer_the_pointer_and_the_theme_can_be_switched(page):
    with Browser() as browser:
        browser.open(page["one"])
        browser.ask("document.documentElement.style.scrollBehavior = 'auto'")
        browser.ask("document.getElementById('training').scrollIntoView()")
        box = browser.ask("""(() => {
            const b = document.querySelector('.chart svg').getBoundingClientRect();
            return [b.left, b.top, b.width, b.height];
        })()""")
        browser.move(box[0] + box[2] / 2, box[1] + box[3] / 2)
        assert "update " in browser.ask("document.querySelector('.chart .legend').textContent")
        browser.ask("document.getElementById('theme').click()")
        assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(19, 21, 25)"
        assert browser.errors == []


def test_answers_can_be_sorted_by_right_and_wrong(page):
    with Browser() as browser:
        browser.open(page["one"])
        for label, wanted in (("right at rank 1", ["pair", "kin"]), ("wrong at rank 1", ["wrong"])):
            browser.ask(f"[...document.querySelectorAll('.chip')].find((c) => c.textContent === {label!r}).click()")
            kinds = browser.ask(
                "[...document.querySelectorAll('.hits')].map((h) => h.firstChild.className.split(' ')[1])"
            )
            assert set(kinds) <= set(wanted)
        assert browser.errors == []
