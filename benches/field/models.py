"""Models as programs load them, as workloads: a checkpoint of four shards whose tensors lie in another
order than that of the layers."""

import prepare
from streams import of_budget
from workloads import MIB, Phase, Subject, by_name

TENSORS = 64
# With its length a header as safetensors writes one: tensors begin at an even offset, and on no page.
HEADER = 8_002
BUDGETS = ["", "1GiB"]
CAT, LOAD_FILE, SHUFFLED = "cat", "load_file", "tensors shuffled"
LAYERS = {ranks: f"layers, {ranks} process{'es' * (ranks > 1)}" for ranks in (1, 4)}


def models(quick):
    """Models: 4 GiB in four shards, loaded by every way that programs have."""
    tensor = (4 if quick else 16) * MIB
    shards = {f"model-{number:05}-of-00004.safetensors": HEADER + TENSORS * tensor
              for number in range(1, 5)}
    holds = [word for key, size in shards.items() for word in ("--object", f"{key}={size}")]
    for number, key in enumerate(shards):
        prepare.HEADS[key] = prepare.safetensors_header(number, TENSORS, tensor, HEADER)
        holds += ["--head", f"{key}={prepare.HEADS[key]}"]
    workloads = [model for budget in BUDGETS for model in of_model(shards, tensor, budget)]
    return Subject(by_name(workloads), holds, copies=shards)


def of_model(shards, tensor, budget):
    args = {"keys": list(shards), "header": HEADER, "tensor": tensor, "tensors": TENSORS}
    size = sum(shards.values())

    def one(name, program, rate="MB", **more):
        phase = Phase(name_of(name, budget), rate, program, args | more, 2 * size)
        return of_budget([phase], budget, no_local=True)

    yield one(CAT, "cat")
    for ranks, name in LAYERS.items():
        yield one(name, "layers", ranks=ranks)
    yield one(LOAD_FILE, "load_file")
    yield one(SHUFFLED, "shuffled_tensors")
    if not budget:
        yield one("headers", "headers", rate="ms")


def name_of(name, budget):
    return name + (budget and f", budget {budget}")
