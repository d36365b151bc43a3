"""Results as a table, a picture, and the generated section of docs/performance.md."""

from html import escape

import products

UNITS = {"MB": "MB/s", "ms": "ms"}
BEGIN, END = "<!-- begin: make bench -->", "<!-- end: make bench -->"
HEAD = ["workload", "product", "result", "spread", "ours ÷ it", "requests", "fetched ÷ read",
        "CPU s/GB", "peak RSS"]
COLORS = ["#1b6ac9", "#e08a2e", "#4d9a4d", "#8a5bb0", "#c24d4d", "#2e9aa0", "#9a7b4d", "#777777"]


def unit(rate):
    return UNITS.get(rate, f"{rate}s/s")


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def times(rate, ours, other):
    """How many times better we are."""
    if not ours or "value" not in ours:
        return "—"
    ratio = other["value"] / ours["value"] if rate == "ms" else ours["value"] / other["value"]
    return f"{ratio:.2f}"


def lines(network):
    """The table's rows of one network."""
    for phase in network["phases"]:
        ours = phase["products"].get(products.OURS)
        for name, found in phase["products"].items():
            if "error" in found:
                yield [phase["name"], name, found["error"], *[""] * 6]
                continue
            local = name == products.LOCAL
            cut = f" (cut at {found['items']:,})" if found["cut"] and phase["rate"] == "file" else ""
            yield [
                phase["name"], name, f"{number(found['value'])} {unit(phase['rate'])}{cut}",
                f"{number(found['least'])}–{number(found['most'])}" if found["runs"] > 1 else "one run",
                times(phase["rate"], ours, found),
                "" if local else f"{found['requests']:,}",
                "" if local else f"{found['fetched_per_read']:.2f}",
                "" if local else f"{found['cpu_s_per_gb']:.2f}",
                f"{found['peak_rss_bytes'] / (1 << 20):,.0f} MiB",
            ]


def table(network):
    """For a terminal: columns of even width."""
    rows = [HEAD, *lines(network)]
    widths = [max(len(row[column]) for row in rows if len(row[2]) < 40 or column < 2)
              for column in range(len(HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )


def markdown(network):
    rows, before = [HEAD, ["---"] * len(HEAD)], None
    for row in lines(network):
        rows.append(["" if row[0] == before else row[0], *row[1:]])
        before = row[0]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def cpu_rows(network, cores):
    """Where the CPU time of our reads goes, and what that allows when nobody else computes."""
    yield ["workload", "daemon", "reader", "server", f"{cores} idle cores allow"]
    for phase in network["phases"]:
        found = phase["products"].get(products.OURS, {})
        if phase["rate"] != "MB" or "value" not in found:
            continue
        parts = [found[f"{who}cpu_s_per_gb"] for who in ("", "reader_", "server_")]
        yield [phase["name"], *(f"{part:.2f}" for part in parts),
               f"{number(cores / sum(parts) * 1e3)} MB/s"]


def cpu_markdown(network, cores):
    head, *rows = cpu_rows(network, cores)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def svg(results):
    """Bars for each workload and product, each workload to its own scale."""
    names = []
    for network in results["networks"]:
        for phase in network["phases"]:
            names += [name for name in phase["products"] if name not in names]
    color = dict(zip(names, COLORS * 2))
    shapes, y, left, length, step = [], 30, 230, 400, 13
    for network in results["networks"]:
        shapes.append(f'<text x="8" y="{y}" class="head">network {network["name"]}</text>')
        y += 22
        for phase in network["phases"]:
            found = {n: p for n, p in phase["products"].items() if "value" in p}
            # Of times, the shortest is best: its bar shows how often it fits in a second.
            height = {n: 1e3 / p["value"] if phase["rate"] == "ms" else p["value"]
                      for n, p in found.items()}
            shapes.append(f'<text x="8" y="{y + 10}">{escape(phase["name"])}</text>')
            for name in found:
                width = max(1, length * height[name] / max(height.values()))
                told = f"{number(found[name]['value'])} {unit(phase['rate'])}  {name}"
                shapes.append(f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{step - 2}" '
                              f'fill="{color[name]}"/>')
                shapes.append(f'<text x="{left + width + 5:.1f}" y="{y + 10}">{escape(told)}</text>')
                y += step
            y += 8
        y += 24
    style = "text{font:11px sans-serif;fill:#222}.head{font-weight:bold;font-size:14px}"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="860" height="{y}" '
            f'viewBox="0 0 860 {y}"><style>{style}</style>'
            f'<rect width="860" height="{y}" fill="#fff"/>\n' + "\n".join(shapes) + "\n</svg>\n")


def section(results, picture):
    """The generated part of docs/performance.md."""
    parts = [f"Measured {results['date']} on {results['machine']}, by `{results['command']}`.",
             f"![The results as bars]({picture})"]
    for network in results["networks"]:
        busy = f"Other programs kept {network['others_busy']:.0%} of the machine's CPU time busy."
        parts += [f"### Network `{network['name']}`", busy, markdown(network),
                  "CPU seconds per GB of fasts3-mount's reads, and what they allow:",
                  cpu_markdown(network, results["cores"])]
    return "\n\n".join(parts)


def update(document, text):
    """Puts the section between its marks, at the end if there are none."""
    before, mark, rest = document.partition(BEGIN)
    after = rest.partition(END)[2] if mark else ""
    return f"{before.rstrip()}\n\n{BEGIN}\n\n{text}\n\n{END}\n{after.lstrip() and chr(10)}{after.lstrip()}"
