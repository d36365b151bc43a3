"""Draws docs/training.svg, the picture of the README, from the newest page of reads here."""

import re
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
NETWORK = "s3"
EPOCHS = ["2,000 × 110 KB, epoch 1", "2,000 × 110 KB, epoch 2"]
TITLES = ["First epoch", "Second epoch, on the same mount"]
COLORS = {"fasts3-mount": "#0b57d0", "local disk": "#9aa0a6"}
LEFT, PLOT, WIDTH, ROW = 110, 330, 760, 26


def rows(page):
    """Workload, product, files/s, and a note on each."""
    table = page.partition(f"## Network `{NETWORK}`")[2].partition("\n## ")[0]
    workload = ""
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) > 5:
            workload = cells[0] or workload
            if found := re.match(r"([\d,.]+) files/s", cells[2]):
                requests = f", {cells[5]} requests" if cells[5] else ", no network"
                yield (workload, cells[1], float(found[1].replace(",", "")),
                       ", stopped: too slow" if "(cut" in cells[2] else requests)


def text(x, y, words, kind=""):
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(words)}</text>'


def picture(found):
    most = max(speed for _, _, speed, _ in found)
    shapes = [text(8, 22, "2,000 images of 110 KB, read by 16 threads through plain open(), "
                          "15 ms from the store", "head")]
    y = 46
    for epoch, title in zip(EPOCHS, TITLES):
        shapes.append(text(8, y + 8, title, "title"))
        y += 18
        products = [row[1:] for row in found if row[0] == epoch]
        for name, speed, note in sorted(products, key=lambda row: -row[1]):
            width = max(2, PLOT * speed / most)
            told = f"{speed:,.0f} files/s{note}"
            shapes.append(text(LEFT - 8, y + 17, name, "name"))
            shapes.append(f'<rect x="{LEFT}" y="{y + 4}" width="{width:.1f}" height="{ROW - 8}" '
                          f'fill="{COLORS.get(name, "#e08a2e")}"/>')
            shapes.append(text(round(LEFT + width + 8), y + 17, told))
            y += ROW
        y += 16
    style = ("text{font:13px sans-serif;fill:#222}.head{font-weight:bold;font-size:15px}"
             ".title{font-weight:bold}.name{text-anchor:end}")
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" '
            f'viewBox="0 0 {WIDTH} {y}"><style>{style}</style>'
            f'<rect width="{WIDTH}" height="{y}" fill="#fff"/>\n' + "\n".join(shapes) + "\n</svg>\n")


def main():
    page = max(HERE.glob("*-reads.md")).read_text()
    (HERE.parent.parent / "docs" / "training.svg").write_text(picture(list(rows(page))))


main()
