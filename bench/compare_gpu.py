#!/usr/bin/env python3
"""SparOA on an NVIDIA GPU, through CUDA and through Vulkan, against PyTorch: same models, same card, interleaved.

    cargo build --release && bench/compare_gpu.py [--models ..] [--batches 1,8,64] [--rounds 3]

Needs a Python with torch and torchvision (and what torch.compile needs: Triton, a C compiler). The models are torchvision's
architectures with random weights. `--precision fp32`, the default: TF32 is off. tf32: PyTorch may use it in products and
convolutions. fp16, bf16: PyTorch's network is converted as a whole, its activations have 16 bits as SparOA's have, its input and
output are converted on the card; Vulkan has none of the three. Engines take turns, A B C A B C .., each for `--seconds`; a round's figure is
the median of its inferences, the table's the median of the rounds, the ratio the median of the rounds' ratios. Below 1 SparOA
is faster.

A SparOA inference begins and ends with tensors in the host's memory, so a PyTorch inference here copies its input from
page-locked memory to the card and its output back. `device` is the best of PyTorch's engines without these copies: what a
program gets whose tensors are on the card anyway. Of torch.compile there are `compile`, its default, `graphs`, mode
reduce-overhead, which replays CUDA graphs, and `autotune`, mode max-autotune, which replays them too and takes minutes a model
to choose kernels: it is left out unless asked for (`--engines cuda,graphs,autotune`). Its choices outlive the run where
TORCHINDUCTOR_CACHE_DIR names a folder that does.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAPER = "resnet18,mobilenet_v3_small,mobilenet_v2,swin_t,vit_b_16"
TORCH = {"eager": None, "compile": "default", "graphs": "reduce-overhead", "autotune": "max-autotune"}
OURS = ["cuda", "vulkan"]


def worker(model, batch, precision):
    """One model at one batch size. Commands are lines of JSON: {"load": engine}, {"run": engine, "seconds": s}."""
    import torch
    import torchvision

    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")

    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)

    class Half(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network.to(half)

        def forward(self, x):
            return self.network(x.to(half)).float()

    print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda}), flush=True)
    network, engines = None, {}
    for line in sys.stdin:
        command = json.loads(line)
        with torch.inference_mode():
            if network is None:
                torch.manual_seed(0)
                network = torchvision.models.get_model(model, weights=None).eval().cuda()
                network = Half(network) if half else network
                host = torch.rand(batch, 3, 224, 224).pin_memory()
                device = host.cuda()
            begin = time.perf_counter()
            if "load" in command:
                mode = TORCH[command["load"]]
                run = network if mode is None else torch.compile(network, mode=mode, dynamic=False)
                for _ in range(4):
                    run(device).cpu()
                engines[command["load"]] = run
                print(json.dumps({"load_s": time.perf_counter() - begin}), flush=True)
                continue
            run, answer = engines[command["run"]], {}
            for name, step in [("host", lambda: run(host.to("cuda", non_blocking=True)).cpu()),
                               ("device", lambda: (run(device), torch.cuda.synchronize()))]:
                for _ in range(5):
                    step()
                times, end = [], time.perf_counter() + command["seconds"]
                while len(times) < 5 or time.perf_counter() < end:
                    start = time.perf_counter()
                    step()
                    times.append(time.perf_counter() - start)
                answer[name] = statistics.median(times) * 1e3
            print(json.dumps(answer), flush=True)


class Peer:
    """PyTorch on one model at one batch size, in a process of its own."""

    def __init__(self, model, batch, precision):
        command = [sys.executable, __file__, "--worker", model, str(batch), precision]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a peer ended early: see its error above")
        return json.loads(line)

    def tell(self, **command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def ask(self, **command):
        self.tell(**command)
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def ours(args, engine, model, batch):
    """One round of SparOA: median in ms."""
    gpu = args.cuda if engine == "cuda" else args.vulkan
    command = [
        args.binary, "bench", f"zoo:{model}", "--policy", "gpu", "--device", "gpu", "--json", "--quiet", "--batch", str(batch),
        "--precision", args.precision, "--min-time-s", str(args.seconds), "--min-iters", "5", "--warmup-ms", "100",
        *(["--gpu", gpu] if gpu else []),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)["results"][0]["latency_ms"]["p50"]


def card():
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    except OSError:
        return "unknown card"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=PAPER)
    parser.add_argument("--batches", default="1,8,64")
    parser.add_argument("--engines", default="cuda,vulkan,eager,compile,graphs")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "fp16", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each engine in each round")
    parser.add_argument("--cuda", default="cuda", help="SparOA's --gpu for CUDA")
    parser.add_argument("--vulkan", default="", help="SparOA's --gpu for Vulkan [default: the best adapter]")
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "sparoa"))
    parser.add_argument("--json", help="write every round here")
    args = parser.parse_args()
    # Vulkan gives no access to tensor cores.
    engines = [e for e in args.engines.split(",") if args.precision == "fp32" or e != "vulkan"]
    mine, theirs = [e for e in OURS if e in engines], [e for e in TORCH if e in engines]
    pairs = [(m, int(b)) for b in args.batches.split(",") for m in args.models.split(",")]
    # All at once, since importing takes longest; they wait for their turn.
    peers = {pair: Peer(*pair, args.precision) for pair in pairs} if theirs else {}
    versions = [peer.answer() for peer in peers.values()]
    precision = "fp32 without TF32" if args.precision == "fp32" else args.precision
    print(f"{card()}, {precision}{', torch ' + versions[0]['torch'] if versions else ''}; medians in ms\n")
    against = [f"{m} / {t}" for m in mine for t in theirs]
    columns = ["model", "batch", *mine, *theirs, *(["device"] if theirs else []), *against]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|", flush=True)
    rows = []
    # Compilers wait for processors; only autotuning times kernels and must have the card to itself.
    together = "autotune" not in theirs
    for peer in peers.values() if together else []:
        for engine in theirs:
            peer.tell(load=engine)
    loaded = {pair: {e: peer.answer()["load_s"] for e in theirs} for pair, peer in peers.items() if together}
    for model, batch in pairs:
        peer = peers.get((model, batch))
        loads = loaded[model, batch] if theirs and together else {e: peer.ask(load=e)["load_s"] for e in theirs}
        rounds, inside = [], []
        for _ in range(args.rounds):
            times = {e: ours(args, e, model, batch) for e in mine}
            both = {e: peer.ask(run=e, seconds=args.seconds) for e in theirs}
            rounds.append(times | {e: both[e]["host"] for e in theirs})
            inside.append({e: both[e]["device"] for e in theirs})
        if peer:
            peer.close()
        middle = {e: statistics.median(r[e] for r in rounds) for e in [*mine, *theirs]}
        device = {e: statistics.median(r[e] for r in inside) for e in theirs}
        cells = [f"{middle[e]:.3f}" for e in [*mine, *theirs]] + ([f"{min(device.values()):.3f}"] if theirs else [])
        cells += [f"{statistics.median(r[m] / r[t] for r in rounds):.2f}" for m in mine for t in theirs]
        print(f"| {model} | {batch} | " + " | ".join(cells) + " |", flush=True)
        rows.append({"model": model, "batch": batch, "rounds_ms": rounds, "device_ms": device, "load_s": loads})
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps({"card": card(), "precision": args.precision, "rows": rows}, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        main()
