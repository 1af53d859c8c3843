"""Draw the report's image in the README: a washer drawn as those of tests/samples, enrolled and scanned.

Needs pip install '.[recipe,browser]' and Chromium: python .readme/draw_report.py SCRATCH .readme/report.png
"""

import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "weights" / "tiny"))
from samples import draw_sample

PRODUCT = ("washer", 7004)
DEFECTS = ("crack", "scratch", "spots", "hair", "stain", "pit")
GOOD = {"references": range(100, 110), "calibration": range(200, 239), "images/good": range(300, 312)}


def main(scratch: Path, image: Path) -> None:
    """Draw, enroll, scan, and take a screenshot of the report."""
    for folder, seeds in GOOD.items():
        for seed in seeds:
            save(scratch / folder / f"{seed}.png", "good", seed)
    for defect in DEFECTS:
        for seed in (3, 8):
            save(scratch / "images" / defect / f"{seed}.png", defect, seed)
    faster = ("--image-size", "256", "--coreset", "0.1")
    run("enroll", "references", "--part", "washer", "--calibrate", "calibration", *faster, cwd=scratch)
    run("scan", "images", "--part", "washer", "--report", "--out", "out", cwd=scratch)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto((scratch / "out" / "report.html").resolve().as_uri())
        page.wait_for_selector("tbody .tile img")
        page.screenshot(path=image)
        browser.close()


def save(path: Path, shows: str, seed: int) -> None:
    """Draw an image, unless the defect would be invisible."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        Image.fromarray(draw_sample(*PRODUCT, shows, seed)[0]).save(path)
    except SystemExit as invisible:
        print(invisible)


def run(*arguments: str, cwd: Path) -> None:
    """Run the program."""
    subprocess.run([sys.executable, "-m", "aprilcli", *arguments], cwd=cwd, check=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
