"""The page in a real browser: no request, no error, themes, a phone's width, the keyboard, the table."""

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

SCHEMES = ("light", "dark")

# Contrast as defined by WCAG 2, of every kind of text with its actual background.
CONTRAST = """
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const luminance = (rgb) => {
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = rgb.slice(0, 3).map((v) => linear(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const rgb = parse(getComputedStyle(at).backgroundColor);
    if (rgb.length === 3 || rgb[3] > 0) return rgb;
  }
};
const kinds = "h1, .kicker, .card p, .verdict, .ratios li, nav a, td, th, figcaption, summary, output, .plots svg text";
return [...document.querySelectorAll(kinds)].map((element) => {
  const style = getComputedStyle(element);
  const svg = element instanceof SVGElement;
  const [a, b] = [luminance(parse(svg ? style.fill : style.color)), luminance(ground(element))].sort((x, y) => y - x);
  return [(a + 0.05) / (b + 0.05), element.textContent.trim().slice(0, 30)];
});
"""


def page(report):
    return report / "report.html"


def column(browser, index):
    rows = browser.find_elements(By.CSS_SELECTOR, "#case-table tbody tr")
    return [row.find_elements(By.CSS_SELECTOR, "th, td")[index] for row in rows if row.is_displayed()]


def numbers(browser, index):
    return [float(cell.get_attribute("data-value")) for cell in column(browser, index)]


def names(browser):
    return [cell.text for cell in column(browser, 0)]


def sorting(browser):
    heads = browser.find_elements(By.CSS_SELECTOR, "#case-table thead th")
    return [head.get_attribute("aria-sort") for head in heads]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_answer_comes_first(open_page, report, scheme):
    browser = open_page(page(report), scheme=scheme)
    assert browser.find_element(By.TAG_NAME, "h1").text.startswith("SASANTrainer is better than nnUNetTrainer")
    card = browser.find_element(By.CSS_SELECTOR, ".card.better")
    assert card.location["y"] + card.size["height"] < 800
    for part in ("better", "Dice points", "95% interval", "after Holm's correction", "time per epoch"):
        assert part in card.text


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_is_readable(open_page, report, scheme):
    """A contrast of at least 4.5 everywhere, in both themes."""
    browser = open_page(page(report), scheme=scheme)
    found = browser.execute_script(CONTRAST)
    assert len(found) > 100
    ratio, text = min(found)
    assert ratio >= 4.5, text


def test_the_themes_differ(open_page, report):
    grounds = set()
    for scheme in SCHEMES:
        body = open_page(page(report), scheme=scheme).find_element(By.TAG_NAME, "body")
        grounds.add(body.value_of_css_property("background-color"))
    assert len(grounds) == 2


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_is_never_wider_than_the_window(open_page, report, width):
    """Wide tables scroll in themselves; plots and pictures fit, and their texts keep a readable size."""
    browser = open_page(page(report), width)
    root = browser.find_element(By.TAG_NAME, "html")
    assert root.get_property("scrollWidth") == root.get_property("clientWidth") <= width
    for figure in browser.find_elements(By.CSS_SELECTOR, "figure svg, figure img"):
        assert 0 < figure.size["width"] <= width
    smallest = browser.execute_script(
        "return Math.min(...[...document.querySelectorAll('.plots svg')].map("
        "(svg) => 11.5 * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width))"
    )
    assert smallest >= 9


def test_a_click_sorts_the_table_and_another_turns_it(open_page, report):
    browser = open_page(page(report))
    before = names(browser)
    head = browser.find_elements(By.CSS_SELECTOR, "#case-table thead button")[5]
    assert head.text == "SASANTrainer, difference"
    head.click()
    rising = numbers(browser, 5)
    assert rising == sorted(rising)
    assert rising != numbers(browser, 2)
    assert sorting(browser) == ["none"] * 5 + ["ascending"] + ["none"]
    assert sorted(names(browser)) == before != names(browser)
    head.click()
    assert numbers(browser, 5) == rising[::-1]
    assert sorting(browser)[5] == "descending"
    browser.find_element(By.CSS_SELECTOR, "#case-table thead button").click()
    assert names(browser) == before
    assert sorting(browser)[5] == "none"
    assert browser.get_log("browser") == []


def test_the_table_is_sorted_and_filtered_by_keyboard_alone(open_page, report):
    browser = open_page(page(report))
    filter_box = browser.find_element(By.ID, "filter")
    assert browser.find_element(By.CSS_SELECTOR, "label[for=filter]").text == "Filter by case or fold"
    filter_box.send_keys("Fold 1")
    assert {cell.text for cell in column(browser, 1)} == {"1"}
    assert browser.find_element(By.ID, "shown").text == "6 of 12"
    # From the filter to the table, its first and its second button.
    for _ in range(3):
        browser.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "Fold"
    browser.switch_to.active_element.send_keys(Keys.TAB)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert numbers(browser, 2) == sorted(numbers(browser, 2))
    assert len(column(browser, 0)) == 6
    filter_box.clear()
    filter_box.send_keys("nothing")
    assert browser.find_element(By.ID, "shown").text == "0 of 12"


def test_the_first_tab_leads_to_the_answer(open_page, report):
    browser = open_page(page(report))
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the answer"


def test_plots_and_pictures_have_text_alternatives(open_page, report):
    """Roles and names as the browser gives them to a screen reader."""
    browser = open_page(page(report))
    plots = browser.find_elements(By.CSS_SELECTOR, "figure svg[role=img]")
    assert len(plots) == 6
    for plot in plots:
        assert len(plot.accessible_name) > 30
    pictures = browser.find_elements(By.CSS_SELECTOR, ".pictures img")
    assert len(pictures) == 3 * 3
    for picture in pictures:
        assert "MRI, axial slice" in picture.accessible_name
        assert (
            browser.execute_script("return arguments[0].decode().then(() => arguments[0].naturalWidth)", picture) > 300
        )
    tips = browser.find_elements(By.CSS_SELECTOR, "#plot-differences g > title")
    assert len(tips) == 2 * 12
