"""What fasts3-mount is to reach, as data, and whether a run has shown it."""

from dataclasses import dataclass

import hints
import imports
import models
import products
import streams

ANY = "*"
LOCAL = products.LOCAL
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Bar:
    """A figure of ours in one phase on one network: at least `least`, or at most `most`.

    With `of`, what counts is our figure divided by that one: of a product in the same phase; of us
    in another phase, or on another network; or the best of us in phases whose names begin so: the
    highest rate, or the least of another figure where the rate is within a tenth of the highest.
    `figure` names an entry of runner.summary, and `unit` is what is printed.
    """

    network: str
    phase: str
    least: float | None = None
    most: float | None = None
    figure: str = "value"
    unit: str = ""
    of: str = ""
    of_phase: str = ""
    of_network: str = ""
    of_best: str = ""

    @property
    def other(self):
        """What our figure is held against, in words; or nothing."""
        best = self.of_best and f"the best of {self.of_best} …"
        return self.of or self.of_phase or best or self.of_network and f"network {self.of_network}"


READS = [
    Bar("s3", "1 GiB read()", least=1300, unit="MB/s"),
    *(Bar("s3", "1 GiB read()", least=2, of=peer)
      for peer in ("s3fs", "rclone", "boto3 download", "mountpoint-s3")),
    Bar("loop", "1 GiB read()", least=1350, unit="MB/s"),
    Bar("loop", "1 GiB read()", least=0.65, of=LOCAL),
    Bar("loop", "1 GiB read()", most=0.5, figure="cpu_s_per_gb", unit="daemon CPU s/GB"),
    Bar("s3", "first MiB", most=35, unit="ms"),
    Bar("s3", "4 threads, one file", least=0.9, of_phase="1 GiB read()"),
    Bar("s3", "4 threads, one file", most=1.05, figure="fetched_per_read", unit="fetched ÷ read"),
    Bar("s3", "4 processes, 4 files", least=1400, unit="MB/s"),
    Bar("s3", "128 KiB random, 16 threads", least=850, unit="reads/s"),
    Bar("s3", "128 KiB random, 16 threads", most=1.3, figure="fetched_per_read",
        unit="fetched ÷ blocks"),
    Bar("s3", "4 KiB random, 16 threads", least=900, unit="reads/s"),
    Bar("s3", "4 KiB random, 16 threads", most=1.3, figure="fetched_per_read",
        unit="fetched ÷ blocks"),
    Bar("s3", "mmap random faults", least=50, unit="faults/s"),
    Bar("s3", "2,000 × 110 KB, epoch 1", least=2500, unit="files/s"),
    # 1.0 to one decimal: a file in twenty that is fetched twice would be seen.
    Bar("s3", "2,000 × 110 KB, epoch 1", most=1.05, figure="gets_per_item", unit="GETs/file"),
    Bar("s3", "2,000 × 110 KB, epoch 2", most=0, figure="requests", unit="requests"),
    Bar("s3", "2,000 × 110 KB, epoch 2", least=0.7, of=LOCAL),
    Bar("s3", "1 GiB again", most=0, figure="requests", unit="requests"),
    Bar("s3", "1 GiB again", least=0.9, of=LOCAL),
    Bar("s3", "64 streams, budget 512MiB", most=576, figure="peak_rss_mib", unit="MiB RSS"),
    Bar("s3", "64 streams, budget 512MiB", least=0.7, of_phase="64 streams, budget 8GiB"),
    Bar(ANY, ANY, most=64, figure="rss_over_budget_mib", unit="MiB RSS over the budget"),
]

STREAMS = [
    Bar("s3", "first MiB", most=30, unit="ms"),
    Bar("s3", "first 64 MiB", most=70, unit="ms"),
    Bar("s3", "1 stream, read()", least=0.85, of_network="loop"),
    Bar("s3", "1 stream, read()", least=0.55, of=LOCAL),
    Bar("s3", "1 stream", least=0.85, of_network="loop"),
    Bar("s3", "4 streams", least=2, of="mountpoint-s3"),
    Bar("s3", "4 streams", least=2.2, of="JuiceFS"),
    *(Bar("s3", streams.streams_name(count, budget), **wanted)
      for count in streams.STREAMS if count > 1 for budget in streams.BUDGETS
      for wanted in (
          {"least": 0.9, "of_best": f"{streams.streams_name(count)}, budget"},
          {"most": 1.2, "of_phase": streams.streams_name(1), "figure": "cpu_s_per_gb",
           "unit": "daemon CPU s/GB"},
          {"most": 1.5, "of_best": f"{streams.streams_name(count)}, budget",
           "figure": "peak_rss_mib", "unit": "MiB RSS"})),
    *(Bar("s3", streams.interleaved_name(by, *run), least=0.9,
          of_phase=streams.interleaved_name(by, *streams.INTERLEAVED[0]))
      for by in ("mmap", "pread") for run in streams.INTERLEAVED[1:]),
    *(Bar("s3", streams.steps_name(mib, by), most=8, figure="waits", unit="waits")
      for mib, by in streams.STEPPED),
    # 40 MB.
    Bar("s3", "list ten files", most=38, figure="peak_rss_mib", unit="MiB RSS"),
]

MODELS = [
    *(Bar("s3", models.name_of(name, budget), **wanted)
      for budget in models.BUDGETS for name in models.LAYERS.values()
      for wanted in ({"least": 1 / 1.15, "of_phase": models.name_of(models.CAT, budget)},
                     {"most": 1.02, "figure": "fetched_per_read", "unit": "fetched ÷ read"})),
    *(Bar("s3", name, least=3, of="JuiceFS") for name in models.LAYERS.values()),
    Bar("s3", models.LOAD_FILE, least=1 / 1.4, of_phase=models.CAT),
    *(Bar("s3", name, least=1 / 1.4, of_phase=models.CAT)
      for name in (models.TORCH_FILES, models.TORCH_THREAD)),
    *(Bar("s3", name, most=1.02, figure="fetched_per_read", unit="fetched ÷ read")
      for name in (models.TORCH_FILES, models.TORCH_THREAD, models.TORCH_LOAD, models.GGUF_READER,
                   models.RUNAI)),
    *(Bar("s3", models.RUNAI, least=1, of=client) for client in ("runai, from S3",)),
    *(Bar("s3", models.name_of(name, budget), most=1.02, figure="fetched_per_read",
          unit="fetched ÷ read")
      for budget in models.BUDGETS for name in (models.LOAD_FILE, models.SHUFFLED)),
]

# On `s3`, where a page of a listing takes 40 ms.
NAMES = [
    Bar("s3", "listdir, 400,000 padded", most=2.5, unit="s"),
    Bar("s3", "listdir, 400,000 padded", most=520, figure="lists", unit="LISTs"),
    Bar("loop", "listdir, 400,000 padded", least=300_000, figure="items_per_s", unit="names/s"),
    Bar("loop", "listdir, 400,000 padded", most=3, figure="cpu_us_per_item",
        unit="daemon CPU µs/name"),
    Bar("s3", "listdir again", least=3_000_000, figure="items_per_s", unit="names/s"),
    Bar("s3", "first of 400,000", most=100, unit="ms"),
    Bar("s3", "scandir and stat, 400,000", most=6, unit="s"),
    # None of a file: the one is of the directory's own name.
    Bar("s3", "scandir and stat, 400,000", most=1, figure="heads", unit="HEADs"),
    Bar("s3", "listdir, 400,000 hexadecimal", most=2.5, unit="s"),
    Bar("s3", "listdir, 400,000 hexadecimal", most=520, figure="lists", unit="LISTs"),
    Bar("loop", "listdir, 400,000 hexadecimal", least=300_000, figure="items_per_s",
        unit="names/s"),
    Bar("loop", "listdir, 400,000 hexadecimal", most=3, figure="cpu_us_per_item",
        unit="daemon CPU µs/name"),
    Bar("s3", "listdir, 400,000 as ImageNet", most=4, unit="s"),
    Bar("s3", "listdir, 400,000 words", most=4, unit="s"),
    Bar("s3", "walk, 20,000 files in 200", most=1.5, unit="s"),
    Bar("s3", "walk, 20,000 files in 200", most=40, figure="lists", unit="LISTs"),
    Bar("s3", "walk, 1,000,000 files in 10,000", most=45, unit="s"),
    # Two round trips of 40 ms, and 5 for the way there and back.
    Bar("s3", "stat four deep", most=85, unit="ms"),
    # Two pages of 40 ms, and 20 for ls itself.
    Bar("s3", "ls -l, 2,000", most=100, unit="ms"),
    Bar("s3", "ls -l, 2,000", most=2, figure="lists", unit="LISTs"),
    Bar("s3", "100 missing names", most=0, figure="requests", unit="requests"),
    Bar("loop", "listdir, 5,000,000", most=1024, figure="peak_rss_mib", unit="MiB RSS"),
]

# A build that fetched file by file sent 419 and 589 requests, for 46 and 7.4 MB.
IMPORTS = [
    *(Bar("s3", program, **wanted)
      for program, seconds, requests, megabytes in (
          ("import numpy", 1.3, 628, 92), ("boto3 and a client", 2.5, 883, 14.9))
      for wanted in ({"most": seconds, "unit": "s"},
                     {"most": requests, "figure": "requests", "unit": "requests"},
                     {"most": megabytes, "figure": "fetched_mb", "unit": "MB"})),
    # No more requests than a start without a profile.
    *(Bar("s3", imports.profiled(program), **wanted)
      for program, seconds, requests in (("import numpy", 0.6, 353), ("boto3 and a client", 1.2, 460))
      for wanted in ({"most": seconds, "unit": "s"},
                     {"most": requests, "figure": "requests", "unit": "requests"})),
    *(Bar("s3", imports.name_of(program, bytecode, again=True), **wanted)
      for program in imports.PROGRAMS for bytecode in imports.FOLDERS
      for wanted in ({"most": 0, "figure": "requests", "unit": "requests"}, {"most": 2, "of": LOCAL})),
]

HINTS = [
    Bar("s3", hints.HINTED, least=3300, unit="files/s"),
    Bar("s3", hints.HINTED, least=1.25, of_phase=hints.LOADER),
    *(Bar("s3", name, most=1.01, figure="fetched_per_read", unit="fetched ÷ read")
      for name in (hints.HINTED, hints.DISTRIBUTED)),
    # 1 % of the files.
    Bar("s3", hints.AGAIN, most=0.01, figure="gets_per_item", unit="GETs/file"),
    Bar("s3", hints.LOADER, least=3, of="JuiceFS"),
]

BARS = {"reads": READS, "streams": STREAMS, "models": MODELS, "names": NAMES, "imports": IMPORTS,
        "hints": HINTS}


def judge(subject, networks):
    """Every bar of a subject beside what was measured."""
    return [judged(bar, networks) for bar in BARS[subject]]


def target(network, phase):
    """The bar of our rate or time itself, if there is one."""
    every_bar = (bar for every in BARS.values() for bar in every)
    return next((bar for bar in every_bar if (bar.network, bar.phase) == (network, phase)
                 and bar.figure == "value" and not bar.other), None)


def judged(bar, networks):
    """A dict with `bar`, `wanted`, `measured` and `met`, which is None where a product or a workload
    was not measured."""
    sign, limit = ("≥", bar.least) if bar.least is not None else ("≤", bar.most)
    figure = f", {bar.unit}" if bar.unit else ""
    wanted = (f"{sign} {limit:.3g} × {bar.other}{figure}" if bar.other
              else f"{sign} {limit:,.9g} {bar.unit}")
    where = "all" if bar.network == ANY else bar.network
    name = f"{where}: {'every workload' if bar.phase == ANY else bar.phase}"
    value, note = _measured(bar, networks)
    if value is None:
        return {"bar": name, "wanted": wanted, "measured": note, "value": None, "met": None}
    shown = f"{value:.2f} ×" if bar.other else f"{number(value)}{note}"
    met = value >= bar.least if bar.least is not None else value <= bar.most
    return {"bar": name, "wanted": wanted, "measured": shown, "value": value, "met": met}


def _measured(bar, networks):
    """The figure and a note, or None and why there is none."""
    if bar.phase == ANY:
        found = [(summary[bar.figure], f" ({network['name']}: {phase['name']})")
                 for network in networks for phase in network["phases"]
                 if bar.figure in (summary := phase["products"].get(products.OURS, {}))]
        return max(found, default=(None, NOT_MEASURED))
    def figure(phase, product, network=bar.network):
        summary = phases(network).get(phase, {}).get(product, {"error": NOT_MEASURED})
        return summary.get(bar.figure), summary.get("error", "")

    def phases(network):
        return {phase["name"]: phase["products"] for found in networks if found["name"] == network
                for phase in found["phases"]}

    value, error = figure(bar.phase, products.OURS)
    if value is None or not bar.other:
        return value, error
    if bar.of_best:
        found = [summary for name, phase in phases(bar.network).items()
                 if name.startswith(bar.of_best) and "value" in (summary := phase[products.OURS])]
        best = max(summary["value"] for summary in found)
        other = best if bar.figure == "value" else min(
            summary[bar.figure] for summary in found if summary["value"] >= 0.9 * best)
    else:
        other, error = figure(bar.of_phase or bar.phase, bar.of or products.OURS,
                              bar.of_network or bar.network)
    return (None, error) if other is None else (value / other, "")


def number(value):
    """As many digits as mean something."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
