"""Draws docs/budgets.svg, streams' MB/s over the memory budget, from the newest page of streams here;
or of the page that is named, into the file that is named behind it."""

import re
import sys
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
NETWORK = "s3"
OURS = "fasts3-mount"
NO_PEERS = (OURS, "build before", "local disk")
# By the number of streams.
COLORS = {1: "#9aa0a6", 4: "#0b57d0", 16: "#3d9a50", 64: "#e08a2e"}
# Other mounts are held against this many of ours.
PEERS = 4
LEFT, TOP, PLOT, HEIGHT, RIGHT = 70, 64, 520, 280, 190


def rows(page):
    """Streams, budget ("" for the default), product and MB/s."""
    table = page.partition(f"## Network `{NETWORK}`")[2].partition("\n## ")[0]
    workload = ""
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or len(cells) < 5:
            continue
        workload = cells[0] or workload
        name = re.fullmatch(r"(\d+) streams?(?:, budget (\w+))?", workload)
        speed = re.match(r"([\d,.]+) MB/s", cells[2])
        if name and speed:
            yield int(name[1]), name[2] or "", cells[1], float(speed[1].replace(",", ""))


def text(x, y, words, kind=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(words)}</text>'


def picture(found):
    budgets = list(dict.fromkeys(budget for _, budget, _, _ in found if budget))
    step = next(step for step in (100, 200, 250, 500, 1000) if max(row[3] for row in found) <= 8 * step)
    most = step * (max(row[3] for row in found) // step + 1)

    def x(budget):
        return LEFT + PLOT * (budgets.index(budget) + 0.5) / len(budgets)

    def y(speed):
        return TOP + HEIGHT * (1 - speed / most)

    shapes = [text(8, 22, "MB/s of all streams together over the memory budget", "head"),
              text(8, 40, "Each stream is a process that reads a file of its own; network s3: 15 ms to "
                          "the first byte, 90 MB/s a connection", "note")]
    for speed in range(0, int(most) + 1, step):
        shapes.append(f'<path d="M{LEFT} {y(speed):.1f}H{LEFT + PLOT}" stroke="#e3e6ea"/>')
        shapes.append(text(LEFT - 8, y(speed) + 4, f"{speed:,}", "end"))
    shapes += [text(x(budget), TOP + HEIGHT + 20, budget, "mid") for budget in budgets]
    labels = []
    for count, color in COLORS.items():
        points = [(x(b), y(speed)) for n, b, product, speed in found
                  if b and n == count and product == OURS]
        if not points:
            continue
        line = " ".join(f"{at:.1f},{height:.1f}" for at, height in points)
        shapes.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2.5"/>')
        shapes += [f'<circle cx="{at:.1f}" cy="{height:.1f}" r="4" fill="{color}"/>'
                   for at, height in points]
        labels.append((points[-1][1], f"{count} stream{'s' * (count > 1)}", color))
    for count, budget, product, speed in found:
        if count == PEERS and not budget and product not in NO_PEERS:
            shapes.append(f'<path d="M{LEFT} {y(speed):.1f}H{LEFT + PLOT}" stroke="#5f6368" '
                          'stroke-dasharray="5 4"/>')
            labels.append((y(speed), f"{product}, {count} streams", "#5f6368"))
    below = 0
    for height, words, color in sorted(labels):
        below = max(height + 4, below + 15)  # no label on another
        shapes.append(f'<text x="{LEFT + PLOT + 10}" y="{below:.1f}" style="fill:{color}">'
                      f"{escape(words)}</text>")
    width, bottom = LEFT + PLOT + RIGHT, TOP + HEIGHT + 36
    style = ("text{font:13px sans-serif;fill:#222}.head{font-weight:bold;font-size:15px}"
             ".note{font-size:12px;fill:#667}.mid{text-anchor:middle}.end{text-anchor:end}")
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{bottom}" '
            f'viewBox="0 0 {width} {bottom}"><style>{style}</style>'
            f'<rect width="{width}" height="{bottom}" fill="#fff"/>\n' + "\n".join(shapes) + "\n</svg>\n")


def main():
    page, into = (sys.argv[1:] + [None] * 2)[:2]
    page = Path(page) if page else max(HERE.glob("*-streams.md"))
    into = Path(into) if into else HERE.parent.parent / "docs" / "budgets.svg"
    into.write_text(picture(list(rows(page.read_text()))))


main()
