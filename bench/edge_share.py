#!/usr/bin/env python3
"""What both processors are worth where the GPU is small: SparOA on a share of an NVIDIA GPU, beside the CPU.

    cargo build --release && bench/edge_share.py [--shares 8,16,all] [--models ..] [--batches 1,8,32] [--threads N]

A share is that many of the card's multiprocessors, set apart by a green context (SPAROA_CUDA_MULTIPROCESSORS; the device rounds
up to what it can divide by): Jetson Orin Nano has 8 of them, AGX Orin 16. It limits arithmetic and the bandwidth that so many
multiprocessors can ask for; clocks, caches and the bus are the large card's. Policies cpu, gpu and auto take turns on every
model and batch (`sparoa bench`), each for `--seconds`.

The first table has medians in ms per image and `gain`, the better of cpu and gpu over auto: above 1 auto is faster. The second
has, for each model, the batch at which each policy does most images a second within `--bound` ms a batch: `gain` is at auto's
batch, `own` compares the policies each at its own best batch, `least` is the smallest gain of all batches. J per image are the
sensors' (NVML, RAPL where it can be read); `card` alone means that the CPU's energy is not in them.

The comparison says most where CPU and share are about equally fast: `--threads` chooses the CPU.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys

from compare import geomean

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAPER = "resnet18,mobilenet_v2,mobilenet_v3_small,vit_b_16,swin_t"
PRUNED = "resnet18@p90,mobilenet_v2@p90"
POLICIES = ["cpu", "gpu", "auto"]


def measure(args, share, model, batch):
    """One model and batch on one share: the rows of `sparoa bench`, and its devices."""
    environment = dict(os.environ)
    environment.pop("SPAROA_CUDA_MULTIPROCESSORS", None)
    if share != "all":
        environment["SPAROA_CUDA_MULTIPROCESSORS"] = share
    command = [
        args.binary, "bench", f"zoo:{model}", "--policy", ",".join(POLICIES), "--batch", batch, "--gpu", args.gpu,
        "--json", "--quiet", "--min-time-s", str(args.seconds), "--min-iters", "5", "--warmup-ms", "100",
        *(["--threads", str(args.threads)] if args.threads else []), *(["--fresh"] if args.fresh else []),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed with a share of {share}: see its error above")
    document = json.loads(done.stdout)
    # Batch 1 is what bench takes for granted.
    return [r | {"batch": int(batch)} for r in document["results"]], document["environment"]["devices"]


def best(rows, bound):
    """The row with most images a second within the bound; without one, that of the smallest batch."""
    within = [r for r in rows if r["latency_ms"]["p50"] <= bound]
    return max(within, key=lambda r: r["batch"] / r["latency_ms"]["p50"]) if within else min(rows, key=lambda r: r["batch"])


def per_image(row):
    return row["latency_ms"]["p50"] / row["batch"]


def gain(by_policy):
    return min(per_image(by_policy["cpu"]), per_image(by_policy["gpu"])) / per_image(by_policy["auto"])


def table(columns):
    print("\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|", flush=True)


def line(*cells):
    print("| " + " | ".join(str(c) for c in cells) + " |", flush=True)


def header(share, devices):
    print(f"\n## {share} multiprocessors\n")
    for d in devices:
        print(f"{d['device']}: {d['name']}, {d['driver']}" + (f", {d['threads']} threads" if d.get("threads") else ""))
    table(["model", "batch", *(f"{p} ms" for p in POLICIES), "cpu / gpu", "gain", *(f"{p} J" for p in POLICIES), "cpu/gpu/split", "plan"])


def joules(row):
    known = row["energy_j"] is not None and row["energy_method"] != "modelled"
    return f"{row['energy_j'] / row['batch']:.4f}" if known else "-"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", default="8,16,all", help="multiprocessors; `all` is the whole card")
    parser.add_argument("--models", default=f"{PAPER},{PRUNED}")
    parser.add_argument("--batches", default="1,4,8,16,32", help="in rising order; those beyond the bound are left out")
    parser.add_argument("--threads", type=int, help="of the CPU [default: one per physical core]")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each policy on each model and batch")
    parser.add_argument("--bound", type=float, default=100.0, help="longest latency of a batch, in ms")
    parser.add_argument("--gpu", default="cuda", help="SparOA's --gpu")
    parser.add_argument("--fresh", action="store_true", help="measure operators and decide anew")
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "sparoa"))
    parser.add_argument("--json", help="write every row here")
    args = parser.parse_args()
    everything = {}
    for share in args.shares.split(","):
        found = {}
        for model in args.models.split(","):
            for batch in args.batches.split(","):
                rows, devices = measure(args, share, model, batch)
                if not found:
                    header(share, devices)
                found.setdefault(model, []).extend(rows)
                at = {r["policy"]: r for r in rows}
                times = [f"{per_image(at[p]):.3f}" for p in POLICIES]
                places = "{cpu}/{gpu}/{split}".format(**at["auto"]["placement"])
                relative = per_image(at["cpu"]) / per_image(at["gpu"])
                line(model, batch, *times, f"{relative:.2f}", f"{gain(at):.2f}", *(joules(at[p]) for p in POLICIES), places, at["auto"]["plan"])
                if min(r["latency_ms"]["p50"] for r in rows) > args.bound:
                    break
        table(["model", "batch (cpu/gpu/auto)", *(f"{p} ms" for p in POLICIES), "gain", "own", "least"])
        summary = {}
        for model, rows in found.items():
            chosen = {p: best([r for r in rows if r["policy"] == p], args.bound) for p in POLICIES}
            batches = sorted({r["batch"] for r in rows})
            gains = {b: gain({r["policy"]: r for r in rows if r["batch"] == b}) for b in batches}
            summary[model] = gains[chosen["auto"]["batch"]], gain(chosen), min(gains.values())
            line(model, "/".join(str(chosen[p]["batch"]) for p in POLICIES), *(f"{per_image(chosen[p]):.3f}" for p in POLICIES),
                 *(f"{x:.2f}" for x in summary[model]))
        paper = [m for m in PAPER.split(",") if m in summary]
        for name, models in [("the paper's models", paper), ("all", list(summary))]:
            if not models:
                continue
            at_auto, own = (geomean([summary[m][i] for m in models]) for i in (0, 1))
            least = min(summary[m][2] for m in models)
            print(f"\n{name}: gain {at_auto:.2f} at auto's best batch within {args.bound:g} ms, {own:.2f} at each policy's own; least {least:.2f}")
        everything[share] = {"devices": devices, "rows": found}
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
