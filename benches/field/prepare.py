"""What a run needs and a fresh clone lacks: binaries, a venv, data files."""

import json
import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
VENV = TARGET / "bench-venv"
WORK = TARGET / "bench"
PYTHON = VENV / "bin" / "python"
MIB = 1 << 20


def binaries():
    """Builds the release binaries that are missing; an existing one is not built anew."""
    if not all((TARGET / "release" / name).exists() for name in ("fasts3-mount", "devserver")):
        command = ["cargo", "build", "--release", "--locked", "--workspace", "--bins"]
        subprocess.run(command, cwd=ROOT, check=True)


def venv(requirements="requirements"):
    """Installs requirements into the venv of the Python clients, once for each of their states."""
    wanted = HERE / f"{requirements}.txt"
    stamp = VENV / f"{requirements}.installed"
    if stamp.exists() and stamp.read_text() == wanted.read_text():
        return
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", wanted], check=True)
    stamp.write_text(wanted.read_text())


def program(name):
    """Where a program is, the venv's before others; None if there is none."""
    return shutil.which(name, path=f"{VENV / 'bin'}:{os.environ['PATH']}")


def of_family(prefix, count, size):
    """Sizes by key."""
    return {f"{prefix}{number:0{len(str(count - 1))}}": size for number in range(count)}


def local_files(sizes):
    """Writes under WORK/local what the server computes: same names and sizes, other bytes."""
    folder = WORK / "local"
    write_files(folder, sizes)
    return folder


# What files and objects begin with, by name.
HEADS = {}


def write_files(folder, sizes):
    """Files by name and size; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    block = os.urandom(8 * MIB)
    for name, size in sizes.items():
        path = folder / name
        if path.exists() and path.stat().st_size == size:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        head = HEADS[name].read_bytes() if name in HEADS else b""
        with open(path, "wb") as file:
            for offset in range(0, size, len(block)):
                file.write(block[: size - offset])
            file.seek(0)
            file.write(head)


def safetensors_header(shard, tensors, tensor_bytes, size):
    """Writes the header of a shard whose tensors lie in a shuffled order: `size` bytes, its length
    included."""
    layers = [f"layers.{shard * tensors + number:04}" for number in range(tensors)]
    random.Random(shard).shuffle(layers)
    header = {layer: {"dtype": "F16", "shape": [tensor_bytes // 2],
                      "data_offsets": [number * tensor_bytes, (number + 1) * tensor_bytes]}
              for number, layer in enumerate(layers)}
    text = json.dumps(header, separators=(",", ":")).encode().ljust(size - 8)
    assert len(text) == size - 8, f"the header needs {len(text)} bytes"
    path = WORK / f"header-{shard}-{tensors}-{tensor_bytes}-{size}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    return path


def gguf_header(tensors, tensor_bytes, size):
    """Writes the header of a GGUF file of F16 tensors: `size` bytes, a multiple of its alignment."""
    def text(words):
        return struct.pack("<Q", len(words)) + words.encode()

    # Version, tensors, values; of each tensor its name, dimensions, type and offset.
    header = b"GGUF" + struct.pack("<IQQ", 3, tensors, 0)
    for number in range(tensors):
        header += text(f"blk.{number}.weight")
        header += struct.pack("<IQIQ", 1, tensor_bytes // 2, 1, number * tensor_bytes)
    assert len(header) <= size and size - len(header) < 32, f"the header needs {len(header)} bytes"
    path = WORK / f"gguf-header-{tensors}-{tensor_bytes}"
    path.write_bytes(header.ljust(size, b"\0"))
    return path


def torch_checkpoint(tensors, tensor_bytes):
    """Has torch save a checkpoint."""
    path = WORK / f"torch-{tensors}-{tensor_bytes}.pt"
    if not path.exists():
        script = """
import sys
import torch
path, tensors, items = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.save({f"layers.{n:04}": torch.randint(30000, (items,), dtype=torch.int16)
            for n in range(tensors)}, path + ".part")
"""
        subprocess.run([PYTHON, "-c", script, path, str(tensors), str(tensor_bytes // 2)], check=True)
        path.with_name(f"{path.name}.part").rename(path)
    return path


def site_packages(packages, names):
    """Installs packages into folders under WORK/local, by name: the first as pip leaves it, the
    second with bytecode that is never compared with its source."""
    local_folder = WORK / "local"
    trees = {name: local_folder / name for name in names}
    as_it_is, unchecked = trees.values()
    if not as_it_is.exists():
        part = as_it_is.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-warn-conflicts", "--target", part, *packages], check=True)
        part.rename(as_it_is)
    if not unchecked.exists():
        part = unchecked.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(as_it_is, part)
        command = [PYTHON, "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash"]
        # Some files of tests are not Python, and it ends with 1.
        subprocess.run([*command, part], check=False)
        part.rename(unchecked)
    return local_folder, trees


def table_and_tensors(folder, quick):
    """Writes the Parquet table and the safetensors file, which programs must be able to parse."""
    rows = (1 if quick else 4) << 20
    names = f"table-{rows}.parquet", f"model-{rows}.safetensors"
    parquet, tensors = (folder / name for name in names)
    if not (parquet.exists() and tensors.exists()):
        script = """
import sys
import numpy, pyarrow, pyarrow.parquet, safetensors.numpy
rows, parquet, tensors = int(sys.argv[1]), sys.argv[2], sys.argv[3]
random = numpy.random.default_rng(1)
table = pyarrow.table({f"c{n:02}": random.random(rows) for n in range(16)})
pyarrow.parquet.write_table(
    table, parquet, compression="none", use_dictionary=False, row_group_size=rows // 8
)
layers = {f"layer.{n:02}": random.random((rows // 64, 16), dtype="float32") for n in range(128)}
safetensors.numpy.save_file(layers, tensors)
"""
        subprocess.run([PYTHON, "-c", script, str(rows), parquet, tensors], check=True)
    return parquet, tensors
