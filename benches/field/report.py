"""Results as tables, a picture, and a page of benches/results."""

import math
import statistics
from html import escape

import bars
import products
from bars import number
from runner import TIMES

UNITS = {"MB": "MB/s", "ms": "ms", "s": "s"}
HEAD = ["workload", "product", "result", "spread", "ours ÷ it"]
# Columns of each subject beside the results.
STREAMED = ["GETs", "fetched ÷ read", "waits", "CPU s/GB: daemon", "reader", "server", "peak RSS"]
HEADS = {
    "reads": ["requests", "fetched ÷ read", "CPU s/GB: daemon", "reader", "server", "peak RSS"],
    "imports": ["requests", "GETs", "LISTs", "MB fetched", "peak RSS"],
    "streams": STREAMED,
    "models": STREAMED,
    "hints": ["requests", "fetched ÷ read", "CPU s/GB: daemon", "reader", "server", "peak RSS"],
    "names": ["LISTs", "HEADs", "CPU µs/name: daemon", "program", "server", "peak RSS"],
}
BARS_HEAD = ["workload", "target", "measured", "met"]
MET = {True: "yes", False: "**no**", None: "—"}
OURS_COLOR = "#0b57d0"
COLORS = {"s3fs": "#e08a2e", "rclone": "#3d9a50", "mountpoint-s3": "#8a5bb0", "goofys": "#9a7b4d",
          "geesefs": "#c2417d", products.JUICEFS: "#c2a83d", "boto3": "#5f6368",
          "boto3 get": "#9aa0a6", "boto3 download": "#5f6368", "s3fs/fsspec": "#2e9aa0",
          products.LOCAL: "#222222"}


def unit(rate):
    return UNITS.get(rate, f"{rate}s/s")


def speed(phase, found):
    """What is larger when it is better: of a time, how often it fits in a second."""
    return TIMES[phase["rate"]] / found["value"] if phase["rate"] in TIMES else found["value"]


def times(phase, ours, other):
    """How many times better we are."""
    if not ours or "value" not in ours:
        return "—"
    over = "> " if other.get("over") else ""
    return f"{over}{speed(phase, ours) / speed(phase, other):.2f}"


def lines(network, subject):
    """The table of one network, its head first."""
    yield [*HEAD, *HEADS[subject]]
    for phase in network["phases"]:
        ours = phase["products"].get(products.OURS)
        for name, found in phase["products"].items():
            more = [""] * len(HEADS[subject])
            if "error" in found:
                yield [phase["name"], name, found["error"].replace("|", "/"), "", "", *more]
                continue
            if found.get("over"):
                told = f"> {number(found['value'])} {unit(phase['rate'])}"
                yield [phase["name"], name, told, "ended", times(phase, ours, found), *more]
                continue
            at = f" at {found['items']:,}" if phase["rate"] == "file" else ""
            cut = f" (cut{at})" if found["cut"] else ""
            failed = f", {found['failed']} failed" if found["failed"] else ""
            spread = f"{number(found['least'])}–{number(found['most'])}"
            yield [
                phase["name"], name, f"{number(found['value'])} {unit(phase['rate'])}{cut}{failed}",
                spread if found["runs"] > 1 else "one run", times(phase, ours, found),
                *figures(found, name, subject), f"{found['peak_rss_mib']:,.0f} MiB",
            ]


def figures(found, name, subject):
    """What a row tells under HEADS, without the last column."""
    if subject == "imports":
        asked = [f"{found[figure]:,.0f}" for figure in ("requests", "gets", "lists", "fetched_mb")]
        return [""] * len(asked) if name == products.LOCAL else asked
    if subject == "names":
        asked = [f"{found['lists']:,}", f"{found['heads']:,}"]
        # The kernel counts in hundredths of a second, which says nothing of a hundred names.
        cpu = [number(found[f"{who}cpu_us_per_item"]) if found["items"] >= 1000 else ""
               for who in ("", "reader_", "server_")]
    else:
        streamed = HEADS[subject] is STREAMED
        asked = [f"{found['gets' if streamed else 'requests']:,}", ratio(found, "fetched_per_read")]
        asked += [f"{found['waits']:,}"] if streamed else []
        cpu = [ratio(found, f"{who}cpu_s_per_gb") for who in ("", "reader_", "server_")]
    local = name == products.LOCAL
    if local or name in products.CLIENTS:
        cpu[0] = ""
    return [*([""] * len(asked)), *cpu[:2], ""] if local else [*asked, *cpu]


def ratio(found, figure):
    """A figure per byte, which a workload without bytes does not have."""
    return f"{found[figure]:.2f}" if figure in found else ""


def columns(rows):
    """For a terminal: columns of even width, and long words as long as they are."""
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows if len(row[column]) < 40 or column == 0)
              for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )


def table(network, subject):
    return columns(lines(network, subject))


def builds_table(network):
    """This build against the one before, phase by phase: how many times as fast by the medians, the
    range of that round by round, and the requests of both."""
    rows, ratios = [["workload", "times as fast", "round by round", "requests", "before"]], []
    for phase in network["phases"]:
        ours, before = (phase["products"].get(n, {}) for n in (products.OURS, products.BEFORE))
        if "value" not in ours or "value" not in before:
            continue
        ratio = speed(phase, ours) / speed(phase, before)
        ratios.append(ratio)
        rounds = [(_rate(phase, one) / _rate(phase, other))
                  for one, other in zip(ours["samples"], before["samples"])
                  if not one["error"] and not other["error"]]
        rows.append([phase["name"], f"{ratio:.3f}", f"{min(rounds):.2f}–{max(rounds):.2f}",
                     f"{ours['requests']:,}", f"{before['requests']:,}"])
    if ratios:
        rows.append(["median of all", f"{statistics.median(ratios):.3f}", "", "", ""])
    return columns(rows)


def _rate(phase, sample):
    """What one sample did in a second."""
    done = sample["bytes"] if phase["rate"] == "MB" else 1 if phase["rate"] in TIMES else sample["items"]
    return done / sample["seconds"]


def bars_rows(judged):
    return [BARS_HEAD, *([b["bar"], b["wanted"], b["measured"], MET[b["met"]]] for b in judged)]


def bars_table(judged):
    return columns([[cell.strip("*") for cell in row] for row in bars_rows(judged)])


def markdown(rows):
    """Rows, the first of them the head; a repeated first column is left empty."""
    rows = [list(row) for row in rows]
    before, told = None, []
    for row in rows:
        told.append(["" if row[0] == before else row[0], *row[1:]])
        before = row[0]
    told.insert(1, ["---"] * len(rows[0]))
    return "\n".join("| " + " | ".join(row) + " |" for row in told)


def cpu_rows(network, cores):
    """CPU time of our reads by process, and the rate that an idle machine allows."""
    yield ["workload", "daemon", "reader", "server", f"{cores} idle cores allow"]
    for phase in network["phases"]:
        found = phase["products"].get(products.OURS, {})
        if phase["rate"] != "MB" or "value" not in found:
            continue
        spent = [found["cpu_s_per_gb"], found["reader_cpu_s_per_gb"], found["server_cpu_s_per_gb"]]
        yield [phase["name"], *(f"{seconds:.2f}" for seconds in spent),
               f"{1e3 * cores / sum(spent):,.0f} MB/s"]


LEFT, PLOT, RIGHT, ROW = 190, 560, 210, 24


def svg(results):
    """For each workload a row: how fast each product is compared with us, as points on a scale of
    powers of ten, and a mark where our bar is."""
    networks = [n for n in results["networks"] if any(_speeds(p) for p in n["phases"])]
    names = [name for name in COLORS if any(
        name in _speeds(phase) for network in networks for phase in network["phases"])]
    # One scale for all networks, so that they can be compared too.
    every = [s for n in networks for phase in n["phases"] for s in _speeds(phase).values()]
    low = math.floor(math.log10(min([0.05, *every])))
    high = max(0.5, math.log10(max([1, *every])) + 0.1)

    def x(ratio):
        return LEFT + PLOT * (math.log10(ratio) - low) / (high - low)

    shapes, y = _legend(names), 84
    for network in networks:
        phases = [phase for phase in network["phases"] if len(_speeds(phase)) > 1
                  or _speeds(phase) and bars.target(network["name"], phase["name"])]
        bottom = y + 34 + ROW * len(phases)
        shapes.append(_text(8, y + 12, f"Network {network['name']}", "head"))
        for power in range(low, math.ceil(high)):
            for ratio in (10.0**power, 3 * 10.0**power):
                if ratio <= 10**high:
                    color = OURS_COLOR if ratio == 1 else "#e3e6ea"
                    shapes.append(f'<path d="M{x(ratio):.1f} {y + 24}V{bottom}" stroke="{color}"/>')
                    shapes.append(_text(x(ratio), y + 18, f"{ratio:,g} ×", "axis mid"))
        for index, phase in enumerate(phases):
            shapes += _row(network, phase, x, y + 30 + ROW * index, index)
        y = bottom + 24
    style = ("text{font:12px sans-serif;fill:#222}.head{font-weight:bold;font-size:15px}"
             ".axis{font-size:10px;fill:#667}.mid{text-anchor:middle}.ours{font-weight:bold}"
             ".no{fill:#c5221f}.yes{fill:#137333}")
    width = LEFT + PLOT + RIGHT
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" '
            f'viewBox="0 0 {width} {y}"><style>{style}</style>'
            f'<rect width="{width}" height="{y}" fill="#fff"/>\n' + "\n".join(shapes) + "\n</svg>\n")


def _row(network, phase, x, y, index):
    """One workload: a line from the slowest to the fastest, points, the bar, our own figure."""
    middle, speeds = y + ROW / 2, _speeds(phase)
    ours = phase["products"][products.OURS]
    shapes = []
    if index % 2 == 0:
        shapes.append(f'<rect x="0" y="{y}" width="{LEFT + PLOT + RIGHT}" height="{ROW}" '
                      'fill="#5f7fa8" fill-opacity="0.07"/>')
    shapes.append(_text(8, middle + 4, phase["name"]))
    ends = [x(s) for s in speeds.values()]
    shapes.append(f'<path d="M{min(ends):.1f} {middle}H{max(ends):.1f}" stroke="#c4cad2" '
                  'stroke-width="2"/>')
    told, kind = f"{number(ours['value'])} {unit(phase['rate'])}", "ours"
    for name, ratio in speeds.items():
        color = OURS_COLOR if name == products.OURS else COLORS.get(name, "#888")
        if name == products.LOCAL:
            shapes.append(f'<rect x="{x(ratio) - 4.5:.1f}" y="{middle - 4.5}" width="9" height="9" '
                          f'fill="#fff" stroke="{color}" stroke-width="2"/>')
        else:
            size = 6.5 if name == products.OURS else 5
            shapes.append(f'<circle cx="{x(ratio):.1f}" cy="{middle}" r="{size}" fill="{color}" '
                          'stroke="#fff"/>')
    if bar := bars.target(network["name"], phase["name"]):
        reached = bars.judged(bar, [network])["met"]
        wanted = speed(phase, {"value": bar.least if bar.least is not None else bar.most})
        at = x(wanted / speed(phase, ours))
        kind = "yes" if reached else "no"
        color = "#137333" if reached else "#c5221f"
        shapes.append(f'<path d="M{at:.1f} {y + 3}V{y + ROW - 3}" stroke="{color}" '
                      'stroke-width="3"/>')
        told += f" (target {bar.least or bar.most:,g})"
    shapes.append(_text(LEFT + PLOT + 12, middle + 4, told, kind))
    return shapes


def _legend(names):
    shapes = [_text(8, 20, "How fast the others are compared with fasts3-mount", "head"),
              _text(8, 38, "Left of the blue line (fasts3-mount, 1 ×) is slower: 0.1 × is ten times "
                    "slower. The figures on the right are those of fasts3-mount.", "axis")]
    at = 14
    for name in [products.OURS, *names]:
        color = COLORS.get(name, OURS_COLOR)
        shapes.append(f'<rect x="{at - 4.5}" y="52.5" width="9" height="9" fill="#fff" '
                      f'stroke="{color}" stroke-width="2"/>' if name == products.LOCAL else
                      f'<circle cx="{at}" cy="57" r="5.5" fill="{color}"/>')
        label = f"{name} (page cache)" if name == products.LOCAL else name
        shapes.append(_text(at + 10, 61, label))
        at += 26 + 6.6 * len(label)
    shapes.append(f'<path d="M{at} 49V65" stroke="#c5221f" stroke-width="3"/>')
    shapes.append(f'<path d="M{at + 6} 49V65" stroke="#137333" stroke-width="3"/>')
    shapes.append(_text(at + 12, 61, "our target, missed or met"))
    return shapes


def _speeds(phase):
    """Of each product that was measured, as multiples of ours."""
    ours = phase["products"].get(products.OURS, {})
    if "value" not in ours:
        return {}
    return {name: speed(phase, found) / speed(phase, ours)
            for name, found in phase["products"].items() if "value" in found}


def _text(x, y, words, kind=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(words)}</text>'


def page(results, picture):
    """The name and the text of the page in benches/results; `picture` is its path from there."""
    dates = sorted({run["date"] for run in results["runs"]})
    commands = dict.fromkeys(run["command"] for run in results["runs"])
    name = f"{dates[-1]}-{results['subject']}.md"
    parts = [
        f"# {results['subject'].capitalize()}, {dates[-1]}",
        "<!-- Written by `benches/field --update-docs`. Do not edit. -->",
        f"Measured {' and '.join(dates)} on {results['machine']}, by "
        f"{', '.join(f'`{command}`' for command in commands)}.",
        "## Targets",
        "The targets and what this run measured; — means not measured.",
        markdown(bars_rows(results["bars"])),
        f"![How fast the others are compared with fasts3-mount]({picture})",
    ]
    for network in results["networks"]:
        seconds = sum(piece["seconds"] for piece in network["pieces"]) or 1
        busy = sum(piece["others_busy"] * piece["seconds"] for piece in network["pieces"]) / seconds
        parts += [
            f"## Network `{network['name']}`",
            f"Measured for {seconds / 60:.1f} minutes; other programs used {busy:.0%} of the "
            "machine's CPU time.", markdown(lines(network, results["subject"]))]
        if results["subject"] != "names":
            parts += ["CPU seconds per GB of fasts3-mount's reads, and the rate that they allow:",
                      markdown(cpu_rows(network, results["cores"]))]
    return name, "\n\n".join(parts) + "\n"
