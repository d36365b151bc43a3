"""Models as programs load them, as workloads: a checkpoint of four shards whose tensors lie in another
order than that of the layers, and the same bytes as GGUF and as torch saves them."""

import prepare
from streams import of_budget
from workloads import MIB, Phase, Subject, Workload, by_name

TENSORS = 64
# With its length a header as safetensors writes one: tensors begin at an even offset, and on no page.
HEADER = 8_002
GGUF, GGUF_HEADER = "model.gguf", 2_912
TORCH = "model.pt"
BUDGETS = ["", "1GiB"]
CAT, LOAD_FILE, SHUFFLED = "cat", "load_file", "tensors shuffled"
LAYERS = {ranks: f"layers, {ranks} process{'es' * (ranks > 1)}" for ranks in (1, 4)}
ONE, HEADERS = "one tensor", "headers"
# Loaders from packages, by the program of reader.py.
TORCH_FILES, TORCH_LOAD, GGUF_READER = "safetensors.torch", "torch.load, mmap", "GGUFReader"
# The others wait for work in a loop, on the cores that the daemon needs.
TORCH_THREAD = "safetensors.torch, 1 thread"
RUNAI = "runai-model-streamer"


def models(quick):
    """Models: 4 GiB in four shards, loaded by every way that programs have."""
    tensor = (4 if quick else 16) * MIB
    shards = {f"model-{number:05}-of-00004.safetensors": HEADER + TENSORS * tensor
              for number in range(1, 5)}
    heads = {key: prepare.safetensors_header(number, TENSORS, tensor, HEADER)
             for number, key in enumerate(shards)}
    # It has its directory at its end: all of it is given.
    torch = prepare.torch_checkpoint(TENSORS, tensor)
    sizes = shards | {GGUF: GGUF_HEADER + TENSORS * tensor, TORCH: torch.stat().st_size}
    prepare.HEADS |= heads | {
        GGUF: prepare.gguf_header(TENSORS, tensor, GGUF_HEADER), TORCH: torch}
    holds = [word for key, size in sizes.items()
             for word in ("--object", f"{key}={size}", "--head", f"{key}={prepare.HEADS[key]}")]
    workloads = [model for budget in BUDGETS for model in of_model(shards, tensor, budget)]
    return Subject(by_name(workloads), holds, local_folder=prepare.local_files(shards), copies=sizes,
                   seconds=(60, 180, 60), quick_seconds=(8, 30, 3))


def of_model(shards, tensor, budget):
    args = {"keys": list(shards), "header": HEADER, "tensor": tensor, "tensors": TENSORS}
    size = sum(shards.values())

    def one(name, program, rate="MB", clients=(), **more):
        phase = Phase(name_of(name, budget), rate, program, args | more, 2 * size)
        # What a loader takes that waits for nothing: of torch, most of its time.
        is_local = rate == "MB" and "key" not in more
        return of_budget([phase], budget, clients=clients, no_local=not is_local)

    yield one(CAT, "cat", clients=("boto3 download",))
    for ranks, name in LAYERS.items():
        yield one(name, "layers", ranks=ranks)
    yield one(LOAD_FILE, "load_file")
    yield one(SHUFFLED, "shuffled_tensors")
    if not budget:
        yield one(TORCH_FILES, "torch_files")
        yield one(TORCH_THREAD, "torch_files", threads=1)
        yield one(RUNAI, "runai", clients=("runai, from S3",))
        yield one(TORCH_LOAD, "torch_load", keys=[], key=TORCH)
        yield one(GGUF_READER, "gguf", keys=[], key=GGUF)
        yield one(ONE, "one_tensor", rate="ms")
        yield one(HEADERS, "headers", rate="ms")


def name_of(name, budget):
    return name + (budget and f", budget {budget}")
