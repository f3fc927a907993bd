#!/usr/bin/env python3
"""SparOA's CPU engine against ONNX Runtime and OpenVINO: same models, same threads, same cores, interleaved.

    cargo build --release && bench/compare.py [--models ..] [--batches 1,8] [--threads 1,2] [--rounds 5]

Every engine is a process of its own, pinned to the same cores. They take turns, A B C A B C .., each for `--seconds`; a
round's figure is the median of its inferences. The table shows the median over the rounds of the ratio ours / theirs within
a round, with the smallest and the largest. Below 1 SparOA is faster. The peers come from PyPI (requirements.txt), into
target/bench-venv.

On a machine shared with others, `--idle` counts only rounds before and after which a probe, a product of matrices in OpenVINO
at its default precision, took at most a fifth longer than the fastest one ever on this machine, and `sparoa doctor` found
that two cores are near each other: neighbours slow engines unequally, and a virtual machine's cores may be moved apart. It says
how many rounds were left out, and marks a row (busy) whose rounds had to be taken as they came.

`--avx2` hides AVX-512 and AMX from all engines alike (hide_avx512.c; needs cc): environment variables would cap some of the
libraries in them and not others. On CPUs that cannot make CPUID fault (AMD's) it hides them from a copy of ONNX Runtime (needs
objdump), and `SPAROA_ISA=avx2` caps SparOA.
"""
import argparse
import json
import math
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
VENV = ROOT / "target" / "bench-venv"
PAPER = "resnet18,mobilenet_v2,mobilenet_v3_small,vit_b_16,swin_t"
# The probe of --idle: how much longer than its best it may take, for how long it runs, and how many rounds are tried for one.
PROBE_SLACK, PROBE_S, TRIES = 1.2, 0.05, 4
# OpenVINO's default precision is bf16 where the CPU has it; `openvino` is held to f32.
PEERS = ["onnxruntime", "openvino", "openvino-default", "openvino-sparse"]


def in_venv():
    """Re-executes this script inside the environment that has the peers."""
    python = VENV / "bin" / "python3"
    if pathlib.Path(sys.prefix) == VENV:
        return
    stamp = VENV / "requirements.txt"
    wanted = (ROOT / "bench" / "requirements.txt").read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", ROOT / "bench" / "requirements.txt"], check=True)
        stamp.write_text(wanted)
    os.execv(python, [str(python), *sys.argv])


def worker(engine, model, batch, threads):
    """Loads the model; for every line of standard input (seconds) runs it that long and prints the median in ms."""
    import numpy as np

    rng = np.random.default_rng(0)
    start = time.perf_counter()
    if engine == "onnxruntime":
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        for free in {d for i in ort.InferenceSession(model).get_inputs() for d in i.shape if isinstance(d, str)}:
            options.add_free_dimension_override_by_name(free, batch)
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        shapes = {i.name: ([batch, *i.shape[1:]], i.type) for i in session.get_inputs()}
        feeds = {n: rng.uniform(-1, 1, s).astype(np.float32) for n, (s, _) in shapes.items()}

        def run():
            session.run(None, feeds)
    else:
        import openvino as ov

        core = ov.Core()
        if engine == "probe":
            network = probe()
        else:
            network = core.read_model(model)
            network.reshape({i.get_any_name(): [batch, *list(i.get_partial_shape())[1:]] for i in network.inputs})
        config = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        if engine not in ("openvino-default", "probe"):
            config["INFERENCE_PRECISION_HINT"] = "f32"
        if engine == "openvino-sparse":
            config["CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"] = 0.5
        compiled = core.compile_model(network, "CPU", config)
        request = compiled.create_infer_request()
        tensors = {i.get_any_name(): rng.uniform(-1, 1, list(i.shape)).astype(np.float32) for i in compiled.inputs}
        for name, tensor in tensors.items():
            request.set_tensor(name, ov.Tensor(tensor))

        def run():
            request.infer()

    print(json.dumps({"load_s": time.perf_counter() - start}), flush=True)
    for line in sys.stdin:
        for _ in range(2):
            run()
        times, end = [], time.perf_counter() + float(line)
        while not times or time.perf_counter() < end:
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
        print(json.dumps({"ms": statistics.median(times) * 1e3}), flush=True)


def probe():
    """A product of two matrices, one of them constant."""
    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops

    a = ops.parameter([768, 768], np.float32, name="a")
    b = ops.constant(np.random.default_rng(0).uniform(-1, 1, (768, 768)).astype(np.float32))
    return ov.Model([ops.matmul(a, b, False, False)], [a])


class Idle:
    """Tells rounds on an idle machine from those that others disturb."""

    FILE = ROOT / "target" / "bench-probe.json"

    def __init__(self, binary, threads, cores, avx2):
        self.doctor = [binary, "doctor", "--json", "--quiet", "--device", "cpu", "--threads", str(threads)]
        self.cores = cores
        self.key = f"{platform.node()}, {threads} threads{', AVX2' if avx2 else ''}"
        self.probe = Peer("probe", "-", 1, threads, cores)
        self.best = json.loads(self.FILE.read_text()) if self.FILE.exists() else {}

    def now(self):
        """Whether nothing disturbs: the probe is about as fast as ever, and the cores are those of one chip."""
        ms = self.probe.measure(PROBE_S)
        if ms < self.best.get(self.key, math.inf):
            self.best[self.key] = ms
            self.FILE.write_text(json.dumps(self.best))
        return ms <= PROBE_SLACK * self.best[self.key] and not self.far_apart()

    def far_apart(self):
        """Whether the host of a virtual machine has moved its cores to different chips."""
        told = subprocess.run(self.doctor, stdout=subprocess.PIPE, preexec_fn=lambda: os.sched_setaffinity(0, self.cores))
        return any(f["check"] == "core-distance" and f["status"] == "warn" for f in json.loads(told.stdout)["findings"])

    def wait(self, seconds):
        end = time.monotonic() + seconds
        while not self.now() and time.monotonic() < end:
            time.sleep(0.5)


class Peer:
    """A peer in a process of its own."""

    def __init__(self, engine, model, batch, threads, cores):
        command = [sys.executable, __file__, "--worker", engine, str(model), str(batch), str(threads)]
        environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a peer ended early: see its error above")
        return json.loads(line)

    def measure(self, seconds):
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        return self.answer()["ms"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def ours(binary, model, batch, threads, cores, seconds, extra):
    """One round of SparOA: median in ms."""
    command = [
        binary, "bench", model, "--policy", "cpu", "--device", "cpu", "--json", "--quiet", "--batch", str(batch),
        "--threads", str(threads), "--min-time-s", str(seconds), "--min-iters", "1", "--warmup-ms", "50", *extra,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, preexec_fn=lambda: os.sched_setaffinity(0, cores))
    return json.loads(done.stdout)["results"][0]["latency_ms"]["p50"]


def hide_avx512(peers):
    """Builds the library that hides AVX-512 and AMX, and has every process started from here on load it."""
    library = ROOT / "target" / "hide_avx512.so"
    source = ROOT / "bench" / "hide_avx512.c"
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", library, source], check=True)
    preload = ":".join([str(library), *filter(None, [os.environ.get("LD_PRELOAD")])])
    if subprocess.run(["true"], env={**os.environ, "LD_PRELOAD": preload}, stderr=subprocess.DEVNULL).returncode != 0:
        if set(peers) - {"onnxruntime"}:
            sys.exit("--avx2: this CPU cannot make CPUID fault: only ONNX Runtime can be held to AVX2 (--peers onnxruntime)")
        os.environ |= {"HIDE_AVX512_UD2": "1", "SPAROA_ISA": "avx2", "PYTHONPATH": str(without_cpuid("onnxruntime"))}
    os.environ["LD_PRELOAD"] = preload


def without_cpuid(package):
    """The folder of a copy of a Python package whose libraries have UD2 in the place of CPUID."""
    site = next(VENV.glob("lib/python3*/site-packages"))
    folder = ROOT / "target" / "bench-ud2"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(site / package, folder / package)
    for library in (folder / package).rglob("*.so*"):
        listed = subprocess.run(["objdump", "-d", "--no-show-raw-insn", library], stdout=subprocess.PIPE, text=True, check=True)
        code = bytearray(library.read_bytes())
        for line in listed.stdout.splitlines():
            if line.split()[1:] == ["cpuid"]:
                at = int(line.split(":")[0], 16)
                if code[at : at + 2] != b"\x0f\xa2":
                    sys.exit(f"--avx2: {library}: instructions do not lie in the file where they lie in memory")
                code[at : at + 2] = b"\x0f\x0b"
        library.write_bytes(code)
    return folder


def geomean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=PAPER, help="zoo names or ONNX files, comma separated")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.7, help="of each engine in each round")
    parser.add_argument("--peers", default="onnxruntime,openvino", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--peer-models", help="other models for the peers: a sparse one against the dense one, say")
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "sparoa"))
    parser.add_argument("--idle", action="store_true", help="leave out rounds that others on the machine disturb")
    parser.add_argument("--avx2", action="store_true", help="hide AVX-512 and AMX from all engines")
    parser.add_argument("--json", help="write every round here")
    parser.add_argument("extra", nargs="*", help="after --: more arguments of `sparoa bench`")
    args = parser.parse_args()
    peers = args.peers.split(",") if args.peers else []
    models = args.models.split(",")
    peer_models = args.peer_models.split(",") if args.peer_models else models
    allowed = sorted(os.sched_getaffinity(0))
    exported = ROOT / "target" / "bench-models"
    exported.mkdir(parents=True, exist_ok=True)

    def file_of(name):
        if name.endswith(".onnx"):
            return pathlib.Path(name)
        path = exported / f"{name}.onnx"
        if not path.exists():
            subprocess.run([args.binary, "zoo", "export", name, "-o", path], check=True)
        return path

    if args.avx2:
        hide_avx512(peers)
    rows, left_out = [], 0
    print("| model | batch | threads | SparOA ms | " + " | ".join(f"{p} ms | ratio (min-max)" for p in peers) + " |", flush=True)
    print("|---" * (4 + 2 * len(peers)) + "|", flush=True)
    for name, peer_name in zip(models, peer_models):
        model = name if name.endswith(".onnx") else f"zoo:{name}"
        for batch in map(int, args.batches.split(",")):
            for threads in map(int, args.threads.split(",")):
                cores = set(allowed[:threads])
                running = [Peer(p, file_of(peer_name), batch, threads, cores) for p in peers]
                idle = Idle(args.binary, threads, cores, args.avx2) if args.idle else None
                rounds, disturbed = [], []
                while len(rounds) < args.rounds:
                    if idle:
                        idle.wait(20)
                    times = [ours(args.binary, model, batch, threads, cores, args.seconds, args.extra)]
                    times += [peer.measure(args.seconds) for peer in running]
                    if not idle or idle.now():
                        rounds.append(times)
                        continue
                    disturbed.append(times)
                    if len(disturbed) >= TRIES * args.rounds:
                        break
                busy = len(rounds) < args.rounds
                left_out += 0 if busy else len(disturbed)
                rounds = disturbed if busy else rounds
                for peer in [*running, *([idle.probe] if idle else [])]:
                    peer.close()
                medians = [statistics.median(column) for column in zip(*rounds)]
                ratios = [[r[0] / r[1 + i] for r in rounds] for i in range(len(peers))]
                rows.append({"model": name, "batch": batch, "threads": threads, "rounds_ms": rounds, "busy": busy,
                             "ratios": {p: statistics.median(r) for p, r in zip(peers, ratios)}})
                cells = [f"{medians[1 + i]:.2f} | {statistics.median(r):.2f} ({min(r):.2f}-{max(r):.2f})" for i, r in enumerate(ratios)]
                print(f"| {name}{' (busy)' if busy else ''} | {batch} | {threads} | {medians[0]:.2f} | " + " | ".join(cells) + " |", flush=True)
    if args.idle:
        print(f"{left_out} disturbed rounds left out")
    for peer in peers:
        ratios = [row["ratios"][peer] for row in rows]
        print(f"{peer}: geomean of the ratios {geomean(ratios):.3f}, worst {max(ratios):.2f}")
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps({"engines": ["sparoa", *peers], "rows": rows}, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        in_venv()
        main()
