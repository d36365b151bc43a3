"""What happened, from the reader's times and the server's: pure, times in seconds."""

import csv
from dataclasses import dataclass

# A read that takes longer has waited.
WAIT_SECONDS = 0.005
# Two clocks' readings this close to each other are one moment.
MOMENT_SECONDS = 0.0005


@dataclass
class Read:
    stream: int
    offset: int
    size: int
    begin: float
    end: float

    @property
    def seconds(self):
        return self.end - self.begin


@dataclass
class Get:
    """A GET of a range: asked for, first and last written by the server; None if nothing was."""

    key: str
    connection: int
    start: int
    end: int
    asked: float
    first: float | None
    last: float
    sent: int

    def there(self, offset):
        """When the byte before this offset had been written, if the connection was even."""
        if self.first is None:
            return float("inf")
        share = (offset - self.start) / (self.end - self.start)
        if self.sent < self.end - self.start:  # it was given up
            share *= (self.end - self.start) / max(self.sent, 1)
        return self.first + share * (self.last - self.first) if share <= 1 else float("inf")

    def bytes_until(self, time):
        """Bytes written until then, if the connection was even."""
        if self.first is None or time <= self.first:
            return 0
        share = min(1, (time - self.first) / max(self.last - self.first, 1e-9))
        return int(share * min(self.end - self.start, self.sent))

    def in_flight_until(self, time):
        """Seconds of its life until then."""
        return max(0, min(time, self.last) - self.asked)


def gets(log, since):
    """Those of devserver's log that came after `since`, in the order in which they came."""
    found = []
    with open(log) as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            first_last = row["range"].removeprefix("bytes=").split("-")
            if row["kind"] != "get" or float(row["arrived"]) < since or not all(first_last):
                continue
            sent = int(row["sent"])
            found.append(Get(
                row["key"], int(row["connection"]), int(first_last[0]), int(first_last[1]) + 1,
                float(row["arrived"]), float(row["first"]) if sent else None, float(row["last"]), sent))
    return sorted(found, key=lambda get: get.asked)


@dataclass
class Wait:
    read: Read
    get: Get | None  # whose bytes came last of those that the read wanted
    there: float  # when they had
    why: str


def waits(reads, by_key):
    """Why the long reads took long; `by_key` are the GETs of each stream's object."""
    return [explained(read, by_key[read.stream]) for read in reads if read.seconds > WAIT_SECONDS]


def explained(read, of_object):
    """The read's last bytes to come, each from the GET that brought it first."""
    end = read.offset + read.size
    edges = sorted({read.offset, end} | {
        edge for get in of_object for edge in (get.start, get.end) if read.offset < edge < end})
    latest = None
    for edge in edges[1:]:
        bringing = [get for get in of_object if get.start < edge <= get.end]
        if not bringing:
            return Wait(read, None, float("inf"), "no GET brought it")
        get = min(bringing, key=lambda get: get.there(edge))
        if latest is None or get.there(edge) > latest[1]:
            latest = get, get.there(edge)
    get, there = latest
    if get.asked > read.begin + MOMENT_SECONDS:
        why = "asked for only then"
    elif get.first is None or get.first > read.begin + MOMENT_SECONDS:
        why = "no first byte yet"
    elif there > read.begin + MOMENT_SECONDS:
        rate = (get.end - get.start) / 1e6 / max(get.last - get.first, 1e-9)
        why = f"on its way at {rate:.0f} MB/s"
    else:
        why = "was there: daemon, kernel or CPU"
    return Wait(read, get, there, why)


@dataclass
class Slice:
    """What happened in a piece of time."""

    begin: float
    read: int  # bytes
    arrived: int
    in_flight: float  # GETs, on average
    ahead: int  # bytes that had arrived and were not read, at the end
    waited: float  # seconds, of all streams


def timeline(reads, found, begin, end, count):
    """The time from `begin` to `end` in `count` equal slices."""
    length = (end - begin) / count
    slices, read_before, arrived_before = [], 0, 0
    for number in range(count):
        start, stop = begin + number * length, begin + (number + 1) * length
        read = sum(read.size for read in reads if read.end <= stop)
        arrived = sum(get.bytes_until(stop) for get in found)
        in_flight = sum(get.in_flight_until(stop) - get.in_flight_until(start) for get in found)
        waited = sum(max(0, min(read.end, stop) - max(read.begin, start)) for read in reads
                     if read.seconds > WAIT_SECONDS)
        slices.append(Slice(start, read - read_before, arrived - arrived_before,
                            in_flight / length, arrived - read, waited))
        read_before, arrived_before = read, arrived
    return slices
