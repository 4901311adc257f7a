"""The explorer as a person meets it: the page from a file, the widget in JupyterLab."""

import pytest

from quadmodel.explorer.page import page
from tests.explorer.browser import (
    browser,
    complaints,
    find,
    jupyterlab,
    needs_browser,
    picture,
    resize,
    run_all_cells,
    slider,
    wait,
)

pytestmark = [needs_browser, pytest.mark.slow]
PANELS = ("phase", "norm", "loss", "spectrum")
NOTEBOOK = """
import quadmodel as qm
explorer = qm.explore()
def noted(change):
    with open("seen", "a") as file:
        print(change["new"], file=file)
explorer.observe(noted, names="learning_rate")
explorer.observe(lambda _: setattr(explorer, "momentum", 0.5), names="batch_size")
explorer
"""


@pytest.fixture(scope="module")
def driver():
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "explorer.html"
    file.write_text(page(), "utf-8")
    return file.as_uri()


@pytest.fixture
def opened(driver, address):
    resize(driver, 1280)
    driver.get(address)
    assert complaints(driver) == []
    return driver


def pictures(driver):
    return {name: picture(driver, name) for name in PANELS}


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("learning_rate", {"phase", "norm", "loss", "spectrum"}),
        ("batch_size", {"phase", "norm", "loss"}),
        ("momentum", set(PANELS)),
        ("weight_decay", {"phase", "norm", "loss"}),
        ("parameter", set(PANELS)),
        ("curvature_strength", {"phase"}),
        ("steps", {"loss"}),
    ],
)
def test_an_arrow_key_on_a_slider_changes_the_picture(opened, name, changed):
    from selenium.webdriver.common.keys import Keys

    first = pictures(opened)
    slider(opened, name).send_keys(Keys.ARROW_RIGHT)  # to a value of the slider's own
    wait(lambda: all(picture(opened, panel) != first[panel] for panel in changed))
    before = pictures(opened)
    slider(opened, name).send_keys(Keys.ARROW_RIGHT * 3)
    wait(lambda: all(picture(opened, panel) != before[panel] for panel in changed))
    slider(opened, name).send_keys(Keys.ARROW_LEFT * 3)
    wait(lambda: pictures(opened) == before)
    assert complaints(opened) == []


def test_the_mouse_moves_a_slider(opened):
    from selenium.webdriver import ActionChains

    before, words = picture(opened, "phase"), find(opened, ".verdict").text
    handle = slider(opened, "learning_rate")
    ActionChains(opened).move_to_element_with_offset(
        handle, int(0.3 * handle.size["width"]), 0
    ).click().perform()
    wait(lambda: picture(opened, "phase") != before)
    assert words.startswith("Stable")
    wait(lambda: find(opened, ".verdict").text.startswith("Unstable"))


def test_menus_change_the_picture(opened):
    from selenium.webdriver.support.ui import Select

    before = pictures(opened)
    Select(slider(opened, "spectrum")).select_by_value("outliers")
    wait(lambda: all(picture(opened, panel) != before[panel] for panel in PANELS))
    assert find(opened, 'label[for$="-parameter"]').text == "Outlier over bulk"
    before = picture(opened, "norm")
    Select(slider(opened, "sampling")).select_by_value("with_replacement")
    wait(lambda: picture(opened, "norm") != before)


def test_the_page_says_that_the_nonlinear_edge_is_rough_with_momentum(opened):
    from selenium.webdriver.common.keys import Keys

    names, note = (find(opened, f'[data-panel="phase"] .{part}') for part in ("legend", "note"))
    assert "roughly" not in names.text
    assert "at most 3.5 %" in note.text
    assert "Typical edge: not on this page" in note.text
    slider(opened, "momentum").send_keys(Keys.ARROW_RIGHT * 3)
    wait(lambda: "nonlinear edge, roughly: from plain SGD" in names.text)
    assert "at most 31 %" in note.text
    assert find(opened, '[data-panel="phase"] .chart path.nonlinear.rough')


def test_every_control_has_a_name_and_takes_the_keyboard(opened):
    from selenium.webdriver.common.keys import Keys

    inputs = opened.find_elements("css selector", ".quadmodel-explorer [data-setting]")
    assert len(inputs) == 10
    assert all(element.accessible_name for element in inputs)
    enabled = [e.get_attribute("data-setting") for e in inputs if e.is_enabled()]
    slider(opened, enabled[0]).send_keys(Keys.NULL)
    reached = []
    for _ in enabled:
        active = opened.switch_to.active_element
        reached.append(active.get_attribute("data-setting"))
        active.send_keys(Keys.TAB)
    assert reached == enabled


def test_nothing_is_loaded(opened):
    code = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    assert [name for name in opened.execute_script(code) if not name.startswith("data:")] == []


@pytest.mark.parametrize(("width", "columns"), [(1280, 2), (390, 1)])
def test_widths(driver, address, width, columns):
    resize(driver, width)
    driver.get(address)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    panels = [find(driver, f'[data-panel="{name}"]').rect for name in PANELS]
    assert len({round(panel["x"]) for panel in panels}) == columns
    assert all(panel["width"] > 300 for panel in panels)
    sizes = """
    return [...document.querySelectorAll("svg text, label, output, li, p, figcaption")]
      .map((element) => parseFloat(getComputedStyle(element).fontSize));
    """
    assert min(driver.execute_script(sizes)) >= 11


def test_light_and_dark(driver, address):
    grounds = {}
    for scheme in ("light", "dark"):
        resize(driver, 1280, scheme=scheme)
        driver.get(address)
        code = "return getComputedStyle(arguments[0]).backgroundColor"
        ground = driver.execute_script(code, find(driver, ".layout").find_element("xpath", ".."))
        grounds[scheme] = [int(part) for part in ground.strip("rgb()").split(",")]
    assert min(grounds["light"]) > 240
    assert max(grounds["dark"]) < 40


def test_in_jupyterlab(driver, tmp_path):
    from selenium.webdriver.common.keys import Keys

    pytest.importorskip("jupyterlab", reason="JupyterLab is not there")
    pytest.importorskip("anywidget", reason="anywidget, of the extra explorer, is not there")
    resize(driver, 1280)
    with jupyterlab(tmp_path, NOTEBOOK) as address:
        run_all_cells(driver, address)
        wait(lambda: driver.find_elements("css selector", '[data-panel="loss"] .simulated'))
        note = '[data-panel="phase"] .note'
        wait(lambda: "Typical edge: its prediction does not hold here" in find(driver, note).text)
        before = picture(driver, "phase")  # scrolls there, too
        slider(driver, "learning_rate").send_keys(Keys.ARROW_RIGHT * 5)
        wait(lambda: picture(driver, "phase") != before)
        wait(lambda: (tmp_path / "seen").exists() and (tmp_path / "seen").read_text())
        shown = float(find(driver, 'output[for$="-learning_rate"]').text)
        wait(lambda: f"{float((tmp_path / 'seen').read_text().split()[-1]):.3g}" == f"{shown:.3g}")
        # Python answers a change of the batch size with a momentum of one half.
        slider(driver, "batch_size").send_keys(Keys.ARROW_RIGHT)
        wait(lambda: find(driver, 'output[for$="-momentum"]').text == "0.5")
        wait(lambda: driver.find_elements("css selector", '[data-panel="loss"] .simulated'))
        assert find(driver, '[data-panel="norm"] .legend').text.count("exact") == 1
