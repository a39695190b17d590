"""What does a token of the expanded model cost, beside its base, and beside what it must read?

    python benchmarks/decode.py --output benchmarks-output
    python benchmarks/decode.py --batched [--device cuda]

Batch 1 waits for memory: a token costs the bytes that must be read for it, the weights that take
part and the keys and values of all tokens before. So the *limit* of a case is bytes of the expanded
model / bytes of its base, counted while one token is decoded (each storage once; of an embedding
the rows looked up, of the cache what has been written); *to the limit* is the ratio of times
divided by that. 1 means that the expansion costs what it reads, and nothing else.

| case | what runs |
|---|---|
| `base` | the base against itself: what the measurement is worth |
| `N` | N blocks, spread evenly, beside copies (concat, lerp) |
| `N, alpha 0`, `N, alpha 1` | the same at the ends of the dial |
| `N, dlerp` | the same with a gate per token |
| `N, stack` | copies behind the blocks |
| `N, ends` | embedding, norm and head are expanded as well |
| `N, int8 copies` | the copies' linear layers are held in 8 bits (`load.quantize_copies`) |

The base and the expanded model hold the same frozen tensors. Tokens are decoded in turn, one by
each, the order changing from pair to pair; times are those of the process (`process_time`) on one
thread, ratios are taken pair by pair. Weights are random: speed does not ask what they say.
*Prefill* reads the prompt; there arithmetic counts, not bytes, and its ratio stands beside that of
the numbers multiplied.

`--batched` asks what would be won if both branches of a block were one batched product: all
linear layers of the blocks and their copies, for one token, as two products each and as one (`bmm`
over both weights, stacked).
"""

import argparse
import copy
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import torch
from data_rows import machine
from torch.utils._python_dispatch import TorchDispatchMode

WARM_UP, LOOKUP = 1, torch.ops.aten.embedding.default
Clock = Callable[[], float]


def cases(layers: int) -> dict[str, dict[str, Any]]:
    """Name -> what of the expansion is not the default, and the dial (`alpha`)."""
    few, many = layers // 4, layers // 2
    found: dict[str, dict[str, Any]] = {"base": {}}
    for blocks in (few, many, layers):
        found[f"{blocks}"] = {"num_blocks": blocks}
    for alpha in (0, 1):
        found[f"{many}, alpha {alpha}"] = {"num_blocks": many, "dial": float(alpha)}
    found[f"{many}, dlerp"] = {"num_blocks": many, "interpolator": "dlerp"}
    found[f"{many}, stack"] = {"num_blocks": many, "structure": "stack", "divergence": "none"}
    found[f"{many}, ends"] = {"num_blocks": many, "expand_ends": True}
    found[f"{many}, int8 copies"] = {"num_blocks": many, "quantize_copies": "int8"}
    return found


def make_base(options: argparse.Namespace) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    dtype = getattr(torch, options.dtype)
    if options.model:
        return AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).eval()
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        intermediate_size=options.width * 11 // 4,
        num_hidden_layers=options.layers,
        num_attention_heads=options.width // 64,
        num_key_value_heads=options.width // 128,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(dtype).eval()


def twin(base: Any) -> Any:
    """Another model of the same tensors."""
    shared = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
    return copy.deepcopy(base, memo=shared)


def make_model(base: Any, case: dict[str, Any]) -> Any:
    from controlllm import ExpansionConfig, expand
    from controlllm.expansion.surgery.int8_copies import quantize_copies

    settings = dict(case)
    dial, kind = settings.pop("dial", None), settings.pop("quantize_copies", None)
    if not settings:
        return twin(base)
    model: Any = expand(twin(base), ExpansionConfig(**settings)).eval()
    if dial is not None:
        model.set_alpha(dial)
    if kind is not None:
        quantize_copies(model, kind)
    return model


class Reads(TorchDispatchMode):
    """Counts the bytes of a model's tensors that operations take, each storage once."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        tensors = (*model.parameters(), *model.buffers())
        self.sizes = {storage(part): part.nbytes for one in tensors for part in parts(one)}
        self.touched: set[int] = set()
        self.looked_up = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is LOOKUP:
            self.looked_up += output.nbytes
        else:
            self.touched |= {storage(one) for one in flat(args) if isinstance(one, torch.Tensor)}
        return output

    @property
    def bytes(self) -> int:
        """All that was read."""
        return self.looked_up + sum(self.sizes.get(place, 0) for place in self.touched)


def parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors inside: those of a quantised one are codes and scales."""
    names = getattr(tensor, "tensor_data_names", None)
    return [tensor] if names is None else [getattr(tensor, name) for name in names]


def storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def flat(values: Iterable[Any]) -> Iterable[Any]:
    """Arguments, and those in lists."""
    for value in values:
        yield from value if isinstance(value, list | tuple) else [value]


class Decoder:
    """A model in the middle of a text."""

    def __init__(self, model: Any, ids_BT: torch.Tensor) -> None:
        self.model = model
        self.ids_BT = ids_BT
        self.cache: Any = None

    def prefill(self) -> None:
        """Read the prompt."""
        self.cache = None
        output = self.model(input_ids=self.ids_BT, use_cache=True, logits_to_keep=1)
        self.cache = output.past_key_values

    def token(self) -> None:
        """Read one more token."""
        self.model(input_ids=self.ids_BT[:, :1], past_key_values=self.cache, use_cache=True)

    def count(self) -> dict[str, int]:
        """Bytes that one more token reads."""
        with Reads(self.model) as reads:
            self.token()
        layers = [one for one in self.cache.layers if one.is_initialized]
        return {"weights": reads.bytes, "kv": sum(2 * one.keys.nbytes for one in layers)}


def in_turn(
    first: Callable[[], Any],
    second: Callable[[], Any],
    pairs: int,
    clock: Clock = time.process_time,
) -> dict[str, Any]:
    """Seconds of both, and second / first pair by pair."""
    times: list[tuple[float, float]] = []
    for number in range(WARM_UP + pairs):
        found = [0.0, 0.0]
        for which in (0, 1) if number % 2 else (1, 0):
            begin = clock()
            (first, second)[which]()
            found[which] = clock() - begin
        times.append((found[0], found[1]))
    times = times[WARM_UP:]
    return {
        "base": statistics.median(one for one, _ in times),
        "expanded": statistics.median(one for _, one in times),
        "ratios": [round(b / a, 4) for a, b in times],
    }


@torch.inference_mode()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One case, in this process."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    base = make_base(options)
    model = make_model(base, cases(base.config.num_hidden_layers)[options.measure])
    ids_BT = torch.randint(base.config.vocab_size, (1, options.context))
    gc.disable()
    found = compare(base, model, ids_BT, options.prefills, options.pairs)
    return {**found, "load": os.getloadavg()[0]}


def compare(
    base: Any,
    model: Any,
    ids_BT: torch.Tensor,
    prefills: int,
    pairs: int,
    clock: Clock = time.process_time,
) -> dict[str, Any]:
    """Bytes and times of prefill and of one more token, of a base and of what became of it."""
    pair = Decoder(base, ids_BT), Decoder(model, ids_BT)
    prefill = in_turn(pair[0].prefill, pair[1].prefill, prefills, clock)
    for one in pair:
        one.prefill()
    counted = [one.count() for one in pair]
    decode = in_turn(pair[0].token, pair[1].token, pairs, clock)
    limit = sum(counted[1].values()) / sum(counted[0].values())
    return {
        "bytes": {"base": counted[0], "expanded": counted[1]},
        "limit": limit,
        "prefill limit": arithmetic(counted, base),
        "decode": decode,
        "prefill": prefill,
        "to the limit": [round(ratio / limit, 4) for ratio in decode["ratios"]],
    }


@torch.inference_mode()
def batched(options: argparse.Namespace) -> str:
    """Both branches' products one by one and as one batch, for one token."""
    torch.set_num_threads(1)
    base = make_base(options)
    inside = (m for m in base.get_decoder().layers.modules() if isinstance(m, torch.nn.Linear))
    weights = [one.weight.to(options.device) for one in inside]
    del base
    stacked = [torch.stack([one, torch.randn_like(one) * one.std()]) for one in weights]
    inputs = [torch.randn_like(one[:, :1, :]) for one in stacked]
    places = list(zip(inputs, stacked, strict=True))

    def two() -> list[torch.Tensor]:
        return [torch.nn.functional.linear(x[i], w[i]) for x, w in places for i in (0, 1)]

    def one() -> list[torch.Tensor]:
        return [torch.bmm(x, w.mT) for x, w in places]

    for alone, together in zip(two()[::2], one(), strict=True):
        torch.testing.assert_close(together[0], alone, rtol=2e-2, atol=2e-2)
    on_gpu = options.device.startswith("cuda")
    found = in_turn(two, one, options.pairs, synchronised if on_gpu else time.process_time)
    times = [1e3 * found[which] for which in ("base", "expanded")]
    return (
        f"{len(places)} layers in {options.dtype} on {options.device}: two products each "
        f"{times[0]:.1f} ms, one batch {times[1]:.1f} ms, ratio {shown(found['ratios'])}"
    )


def synchronised() -> float:
    """The clock of the wall once a GPU has done what it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()


def arithmetic(counted: list[dict[str, int]], base: Any) -> float:
    """Ratio of the numbers multiplied for a token of the prompt: all weights but the head's."""
    head = base.get_output_embeddings().weight.nbytes
    few, many = (one["weights"] - head for one in counted)
    return many / few


def shown(values: list[float]) -> str:
    """The median, and the middle half."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.3f} ({low:.3f}–{high:.3f})"


def table(results: dict[str, dict[str, Any]]) -> str:
    head = (
        "| case | MB read, base | MB read | limit | ms, base | ms | ratio | to the limit | prefill"
    )
    lines = [f"{head} | arithmetic |", f"|---|{'---:|' * 9}"]
    for name, one in results.items():
        read = [sum(one["bytes"][which].values()) / 1e6 for which in ("base", "expanded")]
        times = [1e3 * one["decode"][which] for which in ("base", "expanded")]
        cells = [name, *(f"{mb:,.0f}" for mb in read), f"{one['limit']:.3f}"]
        cells += [*(f"{ms:.1f}" for ms in times), shown(one["decode"]["ratios"])]
        cells += [shown(one["to the limit"]), shown(one["prefill"]["ratios"])]
        lines.append(f"| {' | '.join([*cells, format(one['prefill limit'], '.3f')])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks-output"))
    parser.add_argument("--model", help="a real base instead of random weights")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=16_000)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--context", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--pairs", type=int, default=30, help="tokens decoded by each")
    parser.add_argument("--prefills", type=int, default=3)
    parser.add_argument("--cases", nargs="+", help="default: all")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--batched", action="store_true", help="see above")
    parser.add_argument("--device", default="cpu", help="of --batched")
    options = parser.parse_args()
    if options.batched:
        print(batched(options))
        return
    if options.measure:
        print("\n" + json.dumps(measure(options)))
        return
    layers = make_layers(options)
    results: dict[str, Any] = {}
    for case in options.cases or cases(layers):
        command = [sys.executable, *sys.argv, "--measure", case]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{case} failed:\n{done.stderr[-3000:]}")
        results[case] = json.loads(done.stdout.splitlines()[-1])
        print(table({case: results[case]}).splitlines()[-1], flush=True)
    record = {"machine": machine(), "command": sys.argv, "results": results}
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "decode.json").write_text(json.dumps(record, indent=1) + "\n")
    print("\n" + table(results))


def make_layers(options: argparse.Namespace) -> int:
    """Blocks of the base."""
    if not options.model:
        return int(options.layers)
    return int(json.loads((Path(options.model) / "config.json").read_text())["num_hidden_layers"])


if __name__ == "__main__":
    main()
