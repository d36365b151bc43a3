"""The program whose reads are measured, in a process of its own.

Called with a JSON object {"program", "how", "folder", …arguments}. When it has imported what it
needs it prints "ready" and waits for a line; then it runs, and prints a JSON object {"seconds",
"bytes", "block_bytes", "items", "cut", "waits", "waited_seconds", "cpu_seconds", "peak_rss_bytes"}.
It knows nothing of products: a folder is a folder, and `how` names a client for those that are none.
"""

import itertools
import json
import mmap
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
import traceback

MIB = 1 << 20
# Where the package `fasts3` is.
PACKAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../python")
# Random reads are rounded to blocks of this size before they are compared with the bytes fetched.
BLOCK = 128 << 10
# A read that takes longer than this has waited for the store.
WAIT_SECONDS = 0.005


class Meter:
    """What threads have read, until an end that they look out for."""

    def __init__(self, limit_seconds):
        self.limit_seconds = limit_seconds
        self.bytes = self.items = self.block_bytes = 0
        self.waits, self.waited_seconds = 0, 0.0
        self.lock = threading.Lock()
        self.cut = False
        self.begin()

    def begin(self):
        """The time counts from now on."""
        self.start = time.perf_counter()
        self.until = self.start + self.limit_seconds

    def timed(self, read, *args):
        """What read(*args) gives, and noted if that was waited for."""
        start = time.perf_counter()
        given = read(*args)
        if (took := time.perf_counter() - start) > WAIT_SECONDS:
            with self.lock:
                self.waits += 1
                self.waited_seconds += took
        return given

    def more(self):
        if time.perf_counter() < self.until:
            return True
        self.cut = True
        return False

    def add(self, size):
        with self.lock:
            self.bytes += size
            self.block_bytes += size
            self.items += 1

    def count(self, items):
        """Names, which have no bytes."""
        self.items += items

    def add_random(self, offset, size):
        """An unpredictable read: it costs the blocks that it touches."""
        with self.lock:
            self.bytes += size
            self.block_bytes += -(-(offset + size) // BLOCK) * BLOCK - offset // BLOCK * BLOCK
            self.items += 1


def in_threads(count, work):
    """Runs work(0) … work(count - 1) at once; the first failure is ours."""
    failures = []

    def guarded(index):
        try:
            work(index)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def whole(meter, args):
    """One object by one read(), or as a client gets it."""
    meter.add(CLIENTS[args["how"]](args, 0, None))


def paced(meter, args):
    """One object, no faster than so many bytes a second: a program that works on what it reads."""
    with open(path(args), "rb", buffering=0) as file:
        while data := file.read(4 * MIB):
            meter.add(len(data))
            time.sleep(max(0, meter.start + meter.bytes / args["pace"] - time.perf_counter()))


def first(meter, args):
    meter.add(CLIENTS[args["how"]](args, 0, MIB))


def from_folder(args, start, size):
    with open(path(args), "rb", buffering=0 if size else -1) as file:
        return len(file.read() if size is None else file.read(size))


def boto3_get(args, start, size):
    import boto3

    ranged = {} if size is None else {"Range": f"bytes={start}-{start + size - 1}"}
    return len(boto3.client("s3").get_object(Bucket="data", Key=args["key"], **ranged)["Body"].read())


def boto3_download(args, start, size):
    import io

    import boto3
    from boto3.s3.transfer import TransferConfig

    config = TransferConfig(max_concurrency=16, multipart_chunksize=8 * MIB)
    buffer = io.BytesIO()
    boto3.client("s3").download_fileobj("data", args["key"], buffer, Config=config)
    return buffer.getbuffer().nbytes  # its position is where the last part to arrive ended


def fsspec_read(args, start, size):
    import s3fs

    with s3fs.S3FileSystem().open(f"data/{args['key']}", "rb", block_size=8 * MIB) as file:
        return len(file.read() if size is None else file.read(size))


CLIENTS = {"files": from_folder, "get": boto3_get, "download": boto3_download, "fsspec": fsspec_read}
MODULES = {"runai": ["runai_model_streamer"], "get": ["boto3"], "download": ["boto3.s3.transfer"], "boto3": ["boto3"],
           "fsspec": ["s3fs"]}


def processes(meter, args):
    """A process for each of several objects; they are there before the time begins."""
    if args["how"] != "files":
        return several_by_client(meter, args)
    buffer = bytearray(b"x") * MIB
    in_processes(meter, args, len(args["keys"]), lambda own, index: read_on(
        own, os.path.join(args["folder"], args["keys"][index]), buffer))


def in_processes(meter, args, count, work):
    """work(meter, index) in that many processes."""
    (wait, begin), (hear, tell) = os.pipe(), os.pipe()
    children = []
    for index in range(count):
        if pid := os.fork():
            children.append(pid)
            continue
        try:
            os.close(hear)
            own = Meter(args["limit_seconds"])
            os.read(wait, 1)
            own.begin()
            work(own, index)
            told = own.bytes, own.items, own.waits, own.waited_seconds, int(own.cut)
            os.write(tell, (" ".join(map(str, told)) + "\n").encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    os.close(tell)
    meter.begin()
    os.write(begin, b"x" * len(children))
    with open(hear) as file:
        for line in file:
            size, items, waits, waited_seconds, cut = line.split()
            meter.bytes += int(size)
            meter.block_bytes += int(size)
            meter.items += int(items)
            meter.waits += int(waits)
            meter.waited_seconds += float(waited_seconds)
            meter.cut |= cut == "1"
    if any([os.waitpid(pid, 0)[1] for pid in children]):
        raise OSError("a process failed")


def read_on(meter, name, buffer, most=float("inf")):
    """Reads a file from its beginning by readinto, at most `most` bytes of it."""
    with open(name, "rb", buffering=0) as file:
        done = 0
        while done < most and meter.more() and (size := meter.timed(full, file, buffer)):
            meter.add(size)
            done += size


def sequential(meter, args):
    """The first bytes of one object, by readinto of 1 MiB."""
    buffer = bytearray(b"x") * MIB
    meter.begin()
    read_on(meter, path(args), buffer, args["bytes"])


def several_by_client(meter, args):
    in_threads(len(args["keys"]), lambda index: meter.add(
        CLIENTS[args["how"]](args | {"key": args["keys"][index]}, 0, None)))


def start(meter, args):
    """A Python that finds its packages in a folder, and nowhere else."""
    meter.begin()
    run(args, *program(args))
    meter.count(1)


def start_by_profile(meter, args):
    """The same, by the profile of record_start."""
    meter.begin()
    run(args, args["tool"], "warm", "--profile", args["profile"].name, args["folder"])
    run(args, *program(args))
    meter.count(1)


def record_start(args):
    """A profile of it, after which everything is dropped."""
    args["profile"] = tempfile.NamedTemporaryFile()
    folder, name = args["folder"], args["profile"].name
    run(args, args["tool"], "record", folder, "-o", name, "--", *program(args))
    run(args, args["tool"], "drop", folder)


def program(args):
    return sys.executable, "-S", "-c", args["code"]


def run(args, *command):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environ |= {"PYTHONPATH": path(args), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)


def regions(meter, args):
    """Threads that each read on in a region of one object."""
    def work(index):
        buffer = bytearray(MIB)
        share = args["size"] // args["threads"]
        with open(path(args), "rb", buffering=0) as file:
            for offset in range(index * share, (index + 1) * share, MIB):
                if not meter.more():
                    return
                file.seek(offset)
                meter.add(full(file, buffer))

    in_threads(args["threads"], work)


def full(file, buffer):
    """Fills a buffer, as far as the file goes."""
    view, done = memoryview(buffer), 0
    while done < len(buffer) and (size := file.readinto(view[done:])):
        done += size
    return done


def streams(meter, args):
    """A thread for each of many objects."""
    def work(index):
        read_on(meter, os.path.join(args["folder"], args["keys"][index]), bytearray(MIB))

    in_threads(len(args["keys"]), work)


def scattered(meter, args):
    """Random preads from threads."""
    length, file = args["length"], os.open(path(args), os.O_RDONLY)

    def work(index):
        chance = random.Random(index)
        for _ in range(args["reads"] // args["threads"]):
            if not meter.more():
                return
            offset = chance.randrange(args["size"] // length) * length
            meter.add_random(offset, len(os.pread(file, length, offset)))

    in_threads(args["threads"], work)


def faults(meter, args):
    """Random bytes of a mapping, each on a page of its own."""
    chance = random.Random(1)
    with open(path(args), "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        for _ in range(args["reads"]):
            if not meter.more():
                return
            offset = chance.randrange(args["size"] // 4096) * 4096
            view[offset]
            meter.add_random(offset, 4096)


def interleaved(meter, args):
    """Threads that read the slices of one object in turns."""
    size, slice_bytes, threads = args["size"], args["slice_bytes"], args["threads"]
    with open(path(args), "rb") as file:
        reader = SLICES[args["by"]](file)

        def work(index):
            for start in range(index * slice_bytes, size, threads * slice_bytes):
                if not meter.more():
                    return
                reader(meter, start, min(start + slice_bytes, size))

        in_threads(threads, work)


def slices_by_pread(file):
    def read(meter, start, end):
        buffer = bytearray(BLOCK)
        for offset in range(start, end, BLOCK):
            view = memoryview(buffer)[: end - offset]
            meter.add(meter.timed(os.preadv, file.fileno(), [view], offset))

    return read


def slices_by_mmap(file):
    values = mapped(file)

    def read(meter, start, end):
        for offset in range(start, end, BLOCK):
            piece = values[offset // 2 : min(offset + BLOCK, end) // 2]
            meter.timed(piece.max)
            meter.add(piece.nbytes)

    return read


SLICES = {"pread": slices_by_pread, "mmap": slices_by_mmap}


def mapped(file, offset=0):
    """A file from `offset` on as an array, without a copy."""
    import numpy

    view = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    return numpy.frombuffer(view, "int16", (len(view) - offset) // 2, offset)


def steps(meter, args):
    """A page each so many bytes, one after the other."""
    with open(path(args), "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        touch = {"mmap": view.__getitem__,
                 "pread": lambda offset: os.pread(file.fileno(), 4096, offset)}[args["by"]]
        for offset in range(0, args["size"], args["step"]):
            if not meter.more():
                return
            meter.timed(touch, offset)
            meter.add_random(offset, 4096)


def cat(meter, args):
    if args["how"] != "files":
        return several_by_client(meter, args)
    files = [os.path.join(args["folder"], key) for key in args["keys"]]
    subprocess.run(["cat", *files], check=True, stdout=subprocess.DEVNULL)
    meter.add(sum(os.stat(file).st_size for file in files))


def load_file(meter, args):
    """Shard by shard as safetensors' load_file, and then all values in an operation that copies
    nothing: first a page of each tensor, in file order, then the tensors."""
    for key in args["keys"]:
        with open(os.path.join(args["folder"], key), "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            file.read(args["header"])
            values = tensors_of(file, args)
        for tensor in values:
            meter.timed(tensor.item, 0)
        for tensor in values:
            if not meter.more():
                return
            meter.timed(tensor.max)
            meter.add(tensor.nbytes)


def shuffled_tensors(meter, args):
    """All values, tensor by tensor, in an order that has nothing to do with the files'."""
    every = []
    for key in args["keys"]:
        with open(os.path.join(args["folder"], key), "rb") as file:
            every += tensors_of(file, args)
    random.Random(1).shuffle(every)
    for tensor in every:
        if not meter.more():
            return
        meter.timed(tensor.max)
        meter.add(tensor.nbytes)


def tensors_of(file, args):
    values, length = mapped(file, args["header"]), args["tensor"] // 2
    return [values[number * length : (number + 1) * length] for number in range(args["tensors"])]


def layers(meter, args):
    """All tensors of a model's shards in the order of their names, by safetensors: as much of each
    as is one process's part."""
    import safetensors

    ranks = args["ranks"]

    def load(own, rank):
        files = [safetensors.safe_open(os.path.join(args["folder"], key), "numpy")
                 for key in args["keys"]]
        names = sorted((name, file) for file in range(len(files)) for name in files[file].keys())
        for name, file in names:
            if not own.more():
                return
            whole = files[file].get_slice(name)
            part = whole.get_shape()[0] // ranks
            own.add(own.timed(whole.__getitem__, slice(rank * part, (rank + 1) * part)).nbytes)

    in_processes(meter, args, ranks, load)


def one_tensor(meter, args):
    """A tensor of the first shard, by its name."""
    import safetensors

    with safetensors.safe_open(os.path.join(args["folder"], args["keys"][0]), "numpy") as file:
        meter.add(file.get_tensor(sorted(file.keys())[args["tensors"] // 2]).nbytes)


def copied(meter, tensors):
    """Tensors of torch, as they are brought to a device."""
    for tensor in tensors:
        if not meter.more():
            return
        meter.add(meter.timed(tensor.clone).nbytes)


def torch_files(meter, args):
    import safetensors.torch
    import torch

    if "threads" in args:
        torch.set_num_threads(args["threads"])
    for key in args["keys"]:
        copied(meter, safetensors.torch.load_file(os.path.join(args["folder"], key)).values())


def torch_load(meter, args):
    import torch

    copied(meter, torch.load(path(args), mmap=True).values())


def gguf(meter, args):
    import gguf

    for tensor in gguf.GGUFReader(path(args)).tensors:
        if not meter.more():
            return
        meter.timed(tensor.data.view("int16").max)
        meter.add(tensor.data.nbytes)


def runai(meter, args):
    """All shards by a streamer that reads with threads of its own."""
    from runai_model_streamer import SafetensorsStreamer

    folder = args["folder"] or "s3://data"
    os.environ |= {"RUNAI_STREAMER_S3_ENDPOINT": os.environ["AWS_ENDPOINT_URL"],
                   "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0", "RUNAI_STREAMER_LOG_LEVEL": "ERROR"}
    with SafetensorsStreamer() as streamer:
        streamer.stream_files([f"{folder}/{key}" for key in args["keys"]])
        for _, tensor in streamer.get_tensors():
            meter.add(tensor.nbytes)


def headers(meter, args):
    """The names of all tensors, and no tensor."""
    import safetensors

    for key in args["keys"]:
        file = safetensors.safe_open(os.path.join(args["folder"], key), "numpy")
        meter.count(len(file.keys()))


def rows(meter, args):
    """Every so-manieth row of a memory-mapped array."""
    import numpy

    table = numpy.memmap(path(args), dtype="uint8", mode="r").reshape(-1, args["row_bytes"])
    for row in range(0, len(table), args["every"]):
        if not meter.more():
            return
        meter.add(len(table[row].tobytes()))


def epoch(meter, args):
    """Every file of a directory once, in random order, as a data loader's workers read them."""
    folder = os.path.join(args["folder"], args["key"])
    names = os.listdir(folder)
    random.Random(args["seed"]).shuffle(names)
    pieces = args["pieces"]

    def work(index):
        for name in names[index :: args["threads"]]:
            if not meter.more():
                return
            with open(os.path.join(folder, name), "rb", buffering=0) as file:
                if not pieces:
                    meter.add(len(file.read()))
                    continue
                size, sizes = 0, iter(pieces)
                while data := file.read(next(sizes, pieces[-1])):
                    size += len(data)
                meter.add(size)

    in_threads(args["threads"], work)


def loader(meter, args):
    """Every file of a directory once, in random order, as PyTorch's DataLoader has it read: workers
    are processes that have two batches each to read, and batches are taken in their order. With a
    depth, the mount is told of so many files ahead. With a share (rank, ranks), only the files of
    this rank."""
    folder = os.path.join(args["folder"], args["key"])
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
    order = list(range(len(paths)))
    random.Random(args["seed"]).shuffle(order)
    rank, ranks = args.get("share", (0, 1))
    order = order[rank::ranks]
    batches = [order[at : at + args["batch"]] for at in range(0, len(order), args["batch"])]
    if args["depth"]:
        sys.path.insert(0, PACKAGE)
        import fasts3

        batches = fasts3.Ahead(batches, paths, args["depth"])
    # Forked before anything is told: no worker needs the sampler.
    workers = [Worker(paths) for _ in range(args["workers"])]
    left, outstanding = iter(batches), 0
    turns = itertools.cycle(workers)
    for worker in [*workers, *workers]:
        outstanding += worker.ask(next(left, None))
    while outstanding and meter.more():
        worker = next(turns)
        for size in worker.answer():
            meter.add(size)
        outstanding += worker.ask(next(left, None)) - 1
    for worker in workers:
        worker.asking.close()
    for worker in workers:
        os.waitpid(worker.pid, 0)


def ranks(meter, args):
    """As many loaders, each on a mount of its own, which divide the files as DistributedSampler."""
    in_processes(meter, args, args["ranks"], lambda own, rank: loader(own, args | {
        "folder": os.path.join(args["folder"], str(rank)), "share": (rank, args["ranks"])}))


class Worker:
    """A process that reads batches of files."""

    def __init__(self, paths):
        (asked, self.asking), (self.answers, answering) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self.asking)
            try:
                with open(asked) as batches, open(answering, "w", buffering=1) as sizes:
                    for batch in map(json.loads, batches):
                        read = [len(open(paths[index], "rb").read()) for index in batch]
                        sizes.write(json.dumps(read) + "\n")
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        os.close(asked)
        os.close(answering)
        self.asking, self.answers = open(self.asking, "w", buffering=1), open(self.answers)

    def ask(self, batch):
        """How many batches were asked for: 0 when there are no more."""
        if batch is None:
            return 0
        self.asking.write(json.dumps(batch) + "\n")
        return 1

    def answer(self):
        return json.loads(self.answers.readline())


def columns(meter, args):
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path(args), columns=args["columns"])
    meter.add(table.nbytes)


def tensors(meter, args):
    import safetensors.numpy

    loaded = safetensors.numpy.load_file(path(args))
    meter.add(sum(tensor.nbytes for tensor in loaded.values()))


class FolderNames:
    """How names are asked for in a folder; the clients' classes ask for the same in their way."""

    def __init__(self, args):
        self.path = path(args)

    def listing(self):
        return len(os.listdir(self.path))

    def first(self):
        next(os.scandir(self.path))
        return 1

    def scan(self):
        return sum(entry.stat().st_size > 0 for entry in os.scandir(self.path))

    def walk(self):
        return sum(len(files) for _, _, files in os.walk(self.path))

    def stat(self):
        os.stat(self.path)
        return 1

    def long_listing(self):
        lines = subprocess.run(["ls", "-l", self.path], check=True, stdout=subprocess.PIPE).stdout
        return lines.count(b"\n") - 1

    def missing(self):
        return sum(not os.path.exists(f"{self.path}/missing-{number}") for number in range(100))


class Boto3Names:
    def __init__(self, args):
        import boto3

        self.client, self.key = boto3.client("s3"), args["key"]

    def pages(self, **options):
        paginator = self.client.get_paginator("list_objects_v2")
        return paginator.paginate(Bucket="data", Prefix=f"{self.key}/", **options)

    def listing(self):
        pages = self.pages(Delimiter="/")
        return sum(len(page.get("Contents", [])) + len(page.get("CommonPrefixes", []))
                   for page in pages)

    def first(self):
        next(iter(self.pages(Delimiter="/")))
        return 1

    def walk(self):
        return sum(len(page.get("Contents", [])) for page in self.pages())

    def stat(self):
        self.client.head_object(Bucket="data", Key=self.key)
        return 1


class FsspecNames:
    def __init__(self, args):
        import s3fs

        self.fs, self.path = s3fs.S3FileSystem(), f"data/{args['key']}"

    def listing(self):
        return len(self.fs.ls(self.path, detail=False))

    def walk(self):
        return sum(len(files) for _, _, files in self.fs.walk(self.path))

    def stat(self):
        self.fs.info(self.path)
        return 1


NAMES = {"files": FolderNames, "boto3": Boto3Names, "fsspec": FsspecNames}


def names(meter, args):
    """What NAMES does under the name args["what"]."""
    meter.count(getattr(NAMES[args["how"]](args), args["what"])())


def path(args):
    return os.path.join(args["folder"], args["key"])


def cpu_seconds():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def peak_rss_bytes():
    # Not ru_maxrss: that begins with what the process that started this one had.
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) * 1024


def main():
    args = json.loads(sys.argv[1])
    program = args.pop("program")
    needed = {"rows": ["numpy"], "interleaved": ["numpy"], "load_file": ["numpy"],
              "shuffled_tensors": ["numpy"], "layers": ["safetensors.numpy"],
              "headers": ["safetensors.numpy"], "one_tensor": ["safetensors.numpy"],
              "torch_files": ["safetensors.torch"], "torch_load": ["torch"], "gguf": ["gguf"],
              "runai": ["runai_model_streamer"], "columns": ["pyarrow.parquet"], "tensors": ["safetensors.numpy"]}
    for module in needed.get(program, []) + MODULES.get(args["how"], []):
        __import__(module)
    if args.get("known") and args["how"] == "files":
        os.stat(path(args))  # the lookup of the name is not what is measured
    if program == "start_by_profile":
        record_start(args)
    print("ready", flush=True)
    sys.stdin.readline()
    cpu = cpu_seconds()
    meter = Meter(args["limit_seconds"])
    globals()[program](meter, args)
    seconds = time.perf_counter() - meter.start
    print(json.dumps({
        "seconds": seconds, "bytes": meter.bytes, "block_bytes": meter.block_bytes,
        "items": meter.items, "cut": meter.cut,
        "waits": meter.waits, "waited_seconds": meter.waited_seconds,
        "cpu_seconds": cpu_seconds() - cpu,
        "peak_rss_bytes": peak_rss_bytes(),
    }))


main()
