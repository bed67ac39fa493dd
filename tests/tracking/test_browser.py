"""What a person sees of runs in the pages of ``mfm ui``, in a real browser.

Screenshots are left in the folder that ``MFM_TEST_SCREENSHOTS`` names.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mfm import tracking
from mfm.config import validate
from mfm.training.recipe import RunConfig
from mfm.training.run import train
from tests.morse import morse_store, recipe
from tests.services import browser, free_port, serving, wait_until
from tests.tracking.conftest import SenderInThisProcess

pytestmark = [
    pytest.mark.slow,
    # MLflow 3.17 uses a loader that sqlalchemy 2.1 is about to remove
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]

RATES = {"slow": 1e-3, "middle": 3e-3, "fast": 1e-2}


_NEW_VISITOR = """
localStorage.clear();
sessionStorage.clear();
// a panel that would cover a quarter of the first page
localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
"""


class Pages(NamedTuple):
    """Pages of three recorded recipes, open in a browser."""

    driver: Any
    address: str
    """That ``mfm ui`` prints."""
    runs: dict[str, Any]
    """Name of a recipe to its run in the store."""
    children: dict[str, list[str]]
    """Name of a recipe to identifiers of its stages."""

    def open(self, address: str) -> None:
        """Load an address as a new visitor does: rows unfolded before stay so, and are selected with their parent."""
        self.driver.get(f"{self.address.partition('#')[0]}health")
        self.driver.execute_script(_NEW_VISITOR)
        self.driver.get(address)

    def all(self, path: str) -> list[Any]:
        """Elements of an XPath."""
        return self.driver.find_elements("xpath", path)

    def wait(self, path: str) -> Any:
        """First element of an XPath, once it is there."""
        return wait_until(lambda: self.all(path), f"`{path}` on {self.driver.current_url}")[0]

    def shoot(self, name: str) -> None:
        """Leave a picture of the page where one is asked for."""
        if folder := os.environ.get("MFM_TEST_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))


@pytest.fixture(scope="module")
def pages(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    with browser() as driver:
        folder, port = tmp_path_factory.mktemp("pages"), free_port()
        directory = shutil.copytree(empty_store, folder / "mlruns")
        morse_store().write(folder / "morse.h5")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mfm.tracking.run._SenderProcess", SenderInThisProcess)
            for name, rate in RATES.items():
                where = {"experiment": "morse", "directory": str(directory)}
                content = recipe(str(folder / "morse.h5"), str(folder / name), name=name, tracking=where)
                train(validate(RunConfig, {**content, "optimizer": {"lr": rate}}))
        store = tracking.open_store(tracking.locate(directory))
        runs = {run.info.run_name: run for run in store.search() if run.info.run_name in RATES}
        children = {
            name: [child.info.run_id for child in store.search(f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")]
            for name, run in runs.items()
        }
        command = [sys.executable, "-m", "mfm.cli", "ui", "--directory", str(directory), "--port", str(port)]
        printed = subprocess.run([*command, "--dry-run"], check=True, capture_output=True, text=True).stdout
        with serving(command, f"http://127.0.0.1:{port}/", folder / "ui.log"):
            yield Pages(driver, printed.split()[0], runs, children)


def _name_in(row: str) -> str:
    return f"//*[@role='row' and @row-id='{row}']//a[contains(@href, '/runs/{row}')]"


def test_the_address_that_is_printed_lists_recipes_and_their_stages(pages):
    pages.open(pages.address)
    for name, run in pages.runs.items():
        assert pages.wait(_name_in(run.info.run_id)).text == name
    assert pages.all("//*[normalize-space()='Playground']") == []  # nothing on language models
    run, stages = pages.runs["fast"].info.run_id, pages.children["fast"]
    assert [row for row in stages if pages.all(_name_in(row))] == []
    pages.wait(f"//*[@role='row' and @row-id='{run}']//button").click()
    assert sorted(pages.wait(_name_in(row)).text for row in stages) == ["joint", "low"]
    pages.shoot("runs")


_CELLS = """
const cells = [...document.querySelectorAll('.ReactVirtualized__Grid__innerScrollContainer > div')];
return cells.map(cell => [cell.style.top, Boolean(cell.querySelector('a')), cell.textContent]);
"""
_SCROLL = """
const grids = [...document.querySelectorAll('.ReactVirtualized__Grid')];
const grid = grids.find(grid => getComputedStyle(grid).overflowY == 'auto');
const ended = grid.scrollTop + grid.clientHeight >= grid.scrollHeight;
grid.scrollTop = ended ? 0 : grid.scrollTop + 150;
"""


def _metrics(pages: Pages, wanted: set[str]) -> dict[str, set[float]]:
    """Metrics on the page that compares runs, which draws only those that are scrolled to, and their values."""
    names: dict[str, str] = {}
    values: dict[str, set[float]] = {}

    def is_whole() -> bool:
        for top, is_name, text in pages.driver.execute_script(_CELLS):
            if is_name:
                names[top] = text
            elif text:
                values.setdefault(top, set()).add(float(text))
        pages.driver.execute_script(_SCROLL)  # from the end back to the start: a busy page skips some
        return names.keys() == values.keys() and wanted <= set(names.values())

    wait_until(is_whole, f"all of {sorted(wanted)}")
    return {name: values[top] for top, name in names.items()}


def test_the_page_that_compares_shows_settings_that_differ_and_every_error(pages):
    pages.open(pages.address)
    for run in pages.runs.values():
        row = f"//*[@role='row' and @row-id='{run.info.run_id}']"
        pages.wait(_name_in(run.info.run_id))
        next(box for box in pages.all(f"{row}//input[@type='checkbox']") if box.get_attribute("aria-label")).click()
    pages.wait("//button[normalize-space()='Compare']").click()
    pages.wait("//*[normalize-space()='Comparing 3 Runs from 1 Experiment']")
    pages.wait("//*[normalize-space(text())='Parameters']/following::button[@role='switch'][1]").click()
    settings = "//tr[th[normalize-space()='optimizer.lr']]/ancestor::table[1]//tr"
    wait_until(lambda: len(pages.all(settings)) < 10, "the settings that differ alone")
    shown = {row.find_element("tag name", "th").text: [cell.text for cell in row.find_elements("tag name", "td")]
             for row in pages.all(settings)}  # fmt: skip
    assert shown.keys() == {"name", "optimizer.lr", "output"}
    order = [RATES[name] for name in shown["name"]]
    assert [float(rate) for rate in shown["optimizer.lr"]] == order
    errors = {
        name: {float(f"{run.data.metrics[name]:.1f}") for run in pages.runs.values()}
        for name in pages.runs["fast"].data.metrics
        if name.startswith(("val/", "test/"))
    }
    assert {name.split("/")[1] for name in errors} == {"energy_low", "forces_low", "energy_high"}
    found = _metrics(pages, set(errors))
    assert {name: {round(value, 1) for value in found[name]} for name in errors} == errors
    pages.shoot("compare")


def test_a_parity_plot_opens_as_an_artifact(pages):
    run = pages.runs["fast"].info
    origin = pages.address.partition("#")[0]
    pages.open(f"{origin}#/experiments/{run.experiment_id}/runs/{run.run_id}/artifacts")
    pages.wait("//*[normalize-space(text())='test_parity_high.png']").click()
    image = pages.wait("//img[contains(@src, 'test_parity_high.png') or starts-with(@src, 'blob:')]")
    width = "return arguments[0].complete && arguments[0].naturalWidth"
    wait_until(lambda: pages.driver.execute_script(width, image), "the plot")
    pages.shoot("parity")
    assert pages.driver.execute_script(width, image) > 300
