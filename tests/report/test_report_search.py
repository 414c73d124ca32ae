"""The search page in use, in a headless Chromium: what it shows for an address."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from dneuro.report.write import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on the PATH")

Look = Callable[[str], str]


@pytest.fixture(scope="session")
def report_of_two_layers(tmp_path_factory, pictures: Callable[[int], np.ndarray]) -> Path:
    """A report to be searched: 30 channels of a layer called 10 and 25 of conv; channel n likes class n mod 3."""
    rng = np.random.default_rng(5)
    stores: dict[str, xr.Dataset] = {"/": xr.Dataset(coords={
        "image": np.arange(24), "label": ("image", np.arange(24) % 3), "class": ["tench", "gas pump", "church"],
    })}  # fmt: skip
    for order, (name, channels) in enumerate((("10", 30), ("conv", 25))):
        stores[f"/layers/{name}"] = xr.Dataset({
            "variance": ("channel", rng.permutation(channels) + 1.0),
            "fraction_active": ("channel", np.arange(channels) / channels),
            "top_image": (("channel", "rank"), (np.arange(channels)[:, None] % 3 + 3 * np.arange(5)) % 24),
        }, attrs={"layer": name, "shape": [channels], "order": order})  # fmt: skip
    return write_report(xr.DataTree.from_dict(stores), tmp_path_factory.mktemp("search") / "out", pictures=pictures)


@pytest.fixture
def look(report_of_two_layers: Path, tmp_path: Path) -> Look:
    """Return the page that an address shows, scripts run, as HTML."""

    def shown(address: str) -> str:
        assert BROWSER is not None
        command = [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
            "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=5000", "--dump-dom", f"{report_of_two_layers.as_uri().rpartition('/')[0]}/{address}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=True)
        return done.stdout

    return shown


def found(page: str) -> list[tuple[str, int]]:
    """Layer and number of the rows of the table."""
    body = page.split("<tbody>")[1].split("</tbody>")[0]
    return [(layer, int(n)) for layer, n in re.findall(r'title="([^"]+) #(\d+)"', body)]


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("#find=conv+12", [("conv", 12)]),
        ("#conv 12", [("conv", 12)]),
        ("#find=%237", [("10", 7), ("conv", 7)]),
        ("#find=10", [("10", 10), ("conv", 10)]),
        ("#find=10+7", [("10", 7)]),
        ("#find=3-5&layer=conv", [("conv", 3), ("conv", 4), ("conv", 5)]),
        ("#find=tench+1-4", [("10", 3), ("conv", 3)]),
        ("#find=gas+pump+conv+4", [("conv", 4)]),
        ("#find=active<10%25+conv", [("conv", 0), ("conv", 1), ("conv", 2)]),
        ("#find=variance>28", "two of 10"),
        ("#find=conv+99", []),
        ("#find=nothing", []),
        ("?find=7", [("10", 7), ("conv", 7)]),
    ],
)
def test_search__finds(look: Look, query: str, wanted: list[tuple[str, int]] | str):
    rows = found(look(f"neurons.html{query}"))
    if wanted == "two of 10":
        assert [layer for layer, _ in rows] == ["10", "10"]
    else:
        assert rows == wanted


def test_search__sorts_by_what_the_store_has(look: Look, report_of_two_layers: Path):
    variance = np.random.default_rng(5).permutation(30) + 1.0
    for order, sign in (("down", -1), ("up", 1)):
        rows = found(look(f"neurons.html#layer=10&sort=variance&order={order}"))
        assert [n for _, n in rows] == np.argsort(sign * variance).tolist()


def test_search__what_is_sorted_by_stands_first(look: Look):
    for key in ("variance", "entropy"):
        page = look(f"neurons.html#layer=10&sort={key}")
        head = page.split("<thead>")[1].split("</thead>")[0]
        assert re.findall(r"<button[^>]*>([^<]+)<", head)[0].endswith(key)
        assert 'aria-sort="descending"' in head.split("<button")[0]


def test_search__shows_some_rows_at_a_time_with_pictures_that_are_there(look: Look, report_of_two_layers: Path):
    page = look("neurons.html")
    assert len(found(page)) == 50
    assert "55 of 55 neurons of 2 layers." in page
    assert "Show 5 more of 55" in page
    sources = set(re.findall(r'<img [^>]*src="([^"]+)"', page))
    assert sources
    assert all((report_of_two_layers.parent / src).is_file() for src in sources)
    assert page.count('loading="lazy"') == page.count("<img ") == 50 * 4


def test_search__says_what_it_did_not_understand(look: Look):
    page = look("neurons.html#find=colour>3")
    assert "Nothing is called “colour” here" in page
    assert found(page) == []


def test_search__one_hit_of_the_field_in_the_bar_opens_its_page(look: Look):
    page = look("neurons.html?find=conv+12")
    assert "<title>conv, channels 10–19" in page


def test_search__links_lead_to_the_neuron(look: Look, report_of_two_layers: Path):
    page = look("neurons.html#find=conv+17")
    (link,) = re.findall(r'<a href="([^"]+)" title="conv #17"', page)
    file, _, anchor = link.partition("#")
    assert f'id="{anchor}"' in (report_of_two_layers.parent / file).read_text()
