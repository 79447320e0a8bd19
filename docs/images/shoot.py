"""Pictures of a committed report, as the README shows them: ``make pictures``."""

import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
REPORT = HERE.parents[1] / "reports/mixtral_vs_llama2/report.html"


def shoot(report: Path = REPORT, picture: Path = HERE / "mixtral_vs_llama2.png") -> None:
    """Open a report and keep the figure that compares its deployments."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
            args=["--no-sandbox"],
        )
        page = browser.new_page(viewport={"width": 1180, "height": 900}, color_scheme="light")
        page.goto(report.as_uri())
        page.wait_for_selector("#comparison .js-plotly-plot .main-svg")
        page.locator("#comparison").screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    shoot()
