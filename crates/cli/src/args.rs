//! The command line. Flags, JSON keys and exit codes are a contract with scripts.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{
    bytes::BytesArg,
    images::Normalize,
    shapes::{BatchArg, ShapeArg},
};

/// Runs ONNX models on the CPU and the GPU of one machine at once, and decides operator by
/// operator where each runs.
///
/// MODEL is the path of an ONNX file or one of the built-in models with seeded weights:
/// zoo:resnet18, zoo:mobilenet_v2, zoo:mobilenet_v3_small, zoo:vit_b_16, zoo:swin_t
/// (zoo:NAME@p90 is pruned to 90 % zeros).
///
/// Exit codes: 0 success, 1 a check failed (verify), 2 usage, 3 bad model, 4 bad input, 5 device.
#[derive(Debug, Parser)]
#[command(name = "sparoa", version, max_term_width = 100)]
pub struct Cli {
    /// Print one JSON document on stdout; progress and logs stay on stderr.
    #[arg(long, global = true)]
    pub json: bool,
    /// More log lines on stderr (twice: debug).
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// No progress bars.
    #[arg(short, long, global = true)]
    pub quiet: bool,
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List processors, their memory and features.
    Devices(DevicesArgs),
    /// Say what on this machine costs speed or makes timings noisy, and what to do about it.
    Doctor(DoctorArgs),
    /// Show a model's operators: shape, FLOPs, bytes, intensity, sparsity, quadrant, devices.
    Inspect(InspectArgs),
    /// Measure each operator's latency on each processor.
    Profile(ProfileArgs),
    /// Decide where each operator runs and predict the timeline.
    Plan(PlanArgs),
    /// Run a model once and print or store its outputs.
    Run(RunArgs),
    /// Measure latency and throughput under one or several policies.
    Bench(BenchArgs),
    /// Compare a plan's outputs with the CPU reference.
    Verify(VerifyArgs),
    /// The paper's tables by simulation on published figures of its boards, beside its figures.
    Reproduce(ReproduceArgs),
    /// Figures of the learned parts on models and boards that they have not seen (simulated).
    Evaluate(EvaluateArgs),
    /// Train the threshold predictor and the scheduler (needs the cargo feature `train`).
    Train(TrainArgs),
    /// The built-in models.
    #[command(subcommand)]
    Zoo(ZooCommand),
    /// Set the smallest weights of a model to zero, to see what pruning would be worth.
    Prune(PruneArgs),
}

/// Which processors may be used.
#[derive(Args, Clone, Debug)]
pub struct DeviceArgs {
    /// CPU threads [default: one per physical core available to the process].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Pin CPU threads to these cores: 0,2,3.
    #[arg(long, value_name = "CORES", value_delimiter = ',')]
    pub cpus: Option<Vec<usize>>,
    /// Use the GPU whose name contains this text; `cuda` or `cuda:TEXT` for NVIDIA's through CUDA.
    #[arg(long, value_name = "TEXT")]
    pub gpu: Option<String>,
    /// Processors to use: `cpu`, `gpu` or `auto` (all there are).
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = ["auto", "cpu", "gpu"])]
    pub device: String,
    /// Go on with the CPU when the GPU that was asked for is absent.
    #[arg(long)]
    pub allow_fallback: bool,
    /// tf32, fp16, bf16: products with constants on the tensor cores of an NVIDIA GPU (compute capability
    /// 8.0 or newer, `--gpu cuda`), operands rounded to 11 significant bits, to f16 or to bf16 (8), sums in
    /// f32; with tf32 and fp16 the CPU computes fp32. Other GPUs refuse tf32; with fp16 they store weights
    /// so, where they can, and compute fp32. bf16 on the CPU: products of bf16 operands
    /// with sums in f32, if it has AMX or AVX-512 BF16; other GPUs than CUDA's compute fp32 beside it, and
    /// refuse bf16 with `--device gpu`; CPUs without it compute fp32 beside CUDA. bf16x2: operands as sums
    /// of two bf16, 17 significant bits, on CPUs that have AMX; the GPU computes fp32. fp32 on CPUs that
    /// have AMX: where it is faster, operands as sums of three bf16, all of their bits.
    #[arg(
        long,
        default_value = "fp32",
        value_parser = ["fp32", "tf32", "fp16", "bf16", "bf16x2"]
    )]
    pub precision: String,
    /// Plain sums of products of fp32 only: no algorithm that is faster but rounds otherwise.
    #[arg(long)]
    pub exact: bool,
}

/// `devices`.
#[derive(Args, Debug)]
pub struct DevicesArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Measure the roofline: peak and attained rates of each processor and of the links.
    #[arg(long)]
    pub measure: bool,
}

/// `doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// A model and its input shapes.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// ONNX file or zoo:NAME.
    pub model: String,
    /// Shape of an input: NAME:1x3x224x224. Repeatable. A free batch is 1 by default.
    #[arg(long, value_name = "NAME:DIMS")]
    pub shape: Vec<ShapeArg>,
}

/// Values of the inputs.
#[derive(Args, Clone, Debug)]
pub struct InputArgs {
    /// An input's value: NAME=FILE, or FILE where the model has one input. FILE is .npy, .npz,
    /// .jpg or .png. Inputs not given are random (seeded).
    #[arg(long, value_name = "NAME=FILE")]
    pub input: Vec<String>,
    /// How a picture's pixels become numbers.
    #[arg(long, value_enum, default_value_t)]
    pub normalize: Normalize,
    /// Seed of random inputs.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// How placement is decided.
#[derive(Args, Clone, Debug)]
pub struct PolicyArgs {
    /// Pin nodes to a processor: 'GLOB=cpu', 'GLOB=gpu', 'GLOB=split:0.5' (share on the GPU).
    /// GLOB matches node names or op types. Repeatable; later pins win.
    #[arg(long, value_name = "GLOB=PLACE")]
    pub pin: Vec<String>,
    /// What to minimise: latency, throughput (per-request time at the given batch), energy or edp
    /// (energy times latency). Watts are measured where this machine has sensors for them, else
    /// modelled (docs/energy.md).
    #[arg(long, default_value = "latency")]
    pub objective: String,
    /// Measure again instead of using cached profiles and choices.
    #[arg(long)]
    pub fresh: bool,
    /// The most memory that a prepared plan may take, host and GPU together: 2000000, 512M or 2G.
    /// The weights count once, on the processor that uses them.
    #[arg(long, value_name = "BYTES")]
    pub memory_limit: Option<BytesArg>,
}

/// `inspect`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub inputs: InputArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Leave the graph as imported (no fusion, no layout change).
    #[arg(long)]
    pub no_optimize: bool,
    /// Run nothing: no activation sparsity, no times of sparse kernels.
    #[arg(long)]
    pub static_only: bool,
    /// Record activation sparsity on every .jpg, .png, .npy and .npz file in this folder (of a
    /// model with one input).
    #[arg(long, value_name = "FOLDER", conflicts_with = "input")]
    pub calibrate: Option<PathBuf>,
    /// Write the table and the plot of the four quadrants as a page.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// `profile`.
#[derive(Args, Debug)]
pub struct ProfileArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Write the profile as JSON.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Measure again instead of using the cache.
    #[arg(long)]
    pub fresh: bool,
}

/// `plan`.
#[derive(Args, Debug)]
pub struct PlanArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub policy_args: PolicyArgs,
    /// cpu, gpu, threshold, greedy, heft, dp, ios, codl, split, sac, optimal or auto.
    #[arg(long, default_value = "auto")]
    pub policy: String,
    /// Plan for a machine that is not here, by its published figures: the name of a device profile
    /// (see `sparoa devices`) or the path of one. Everything is then simulated.
    #[arg(long, value_name = "NAME|FILE", conflicts_with_all = [
        "threads", "cpus", "gpu", "device", "allow_fallback", "exact", "fresh", "memory_limit",
    ])]
    pub target: Option<String>,
    /// Count the zeros that operators find in every .jpg, .png, .npy and .npz file in this folder (of
    /// a model with one input): kernels that skip them are then simulated as that much faster.
    #[arg(long, value_name = "FOLDER", requires = "target")]
    pub calibrate: Option<PathBuf>,
    /// How a picture's pixels become numbers.
    #[arg(long, value_enum, default_value_t)]
    pub normalize: Normalize,
    /// Write the plan: edit it, then pass it to `run --plan`.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Write the predicted timeline as Chrome/Perfetto trace.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Write the placed graph for GraphViz.
    #[arg(long, value_name = "FILE")]
    pub dot: Option<PathBuf>,
    /// Write the model with placement and times in each node's metadata (Netron shows them).
    #[arg(long, value_name = "FILE")]
    pub onnx: Option<PathBuf>,
}

/// `run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub inputs: InputArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub policy_args: PolicyArgs,
    /// cpu, gpu, threshold, greedy, heft, dp, ios, codl, split, sac, optimal or auto [default: cpu,
    /// without measuring anything].
    #[arg(long, conflicts_with = "plan")]
    pub policy: Option<String>,
    /// Run this plan file.
    #[arg(long, value_name = "FILE")]
    pub plan: Option<PathBuf>,
    /// Write each output as FOLDER/NAME.npy.
    #[arg(short, long, value_name = "FOLDER")]
    pub output: Option<PathBuf>,
    /// Print the K highest classes of the last axis.
    #[arg(long, value_name = "K")]
    pub top: Option<usize>,
    /// Class names, one a line.
    #[arg(long, value_name = "FILE", requires = "top")]
    pub labels: Option<PathBuf>,
    /// Write the measured timeline as Chrome/Perfetto trace.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
}

/// `bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// ONNX files or zoo:NAMEs.
    #[arg(required = true)]
    pub models: Vec<String>,
    /// Shape of an input: NAME:1x3x224x224. Repeatable.
    #[arg(long, value_name = "NAME:DIMS")]
    pub shape: Vec<ShapeArg>,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub policy_args: PolicyArgs,
    /// Policies to compare, measured interleaved [default: cpu,gpu,split,auto; only cpu where
    /// there is no GPU].
    #[arg(long, value_delimiter = ',')]
    pub policy: Vec<String>,
    /// Measure this plan file too.
    #[arg(long, value_name = "FILE")]
    pub plan: Option<PathBuf>,
    /// Batch sizes (the leading dimension of every input); `auto` finds for each policy the batch
    /// with the best throughput, from at most six probes.
    #[arg(long, value_name = "N|auto", value_delimiter = ',', default_value = "1")]
    pub batch: Vec<BatchArg>,
    /// The longest latency of a batch that `--batch auto` may choose.
    #[arg(long, value_name = "MS")]
    pub slo_ms: Option<f64>,
    /// Let plans follow the state of the machine while they are measured.
    #[arg(long)]
    pub adapt: bool,
    /// Warm-up per measurement.
    #[arg(long, default_value_t = 200, value_name = "MS")]
    pub warmup_ms: u64,
    /// Shortest measurement.
    #[arg(long, default_value_t = 3.0, value_name = "S")]
    pub min_time_s: f64,
    /// Fewest inferences measured.
    #[arg(long, default_value_t = 10)]
    pub min_iters: u64,
    /// Write predicted and measured timelines of the last policy as Chrome/Perfetto trace.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Seed of random inputs.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// `verify`.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub inputs: InputArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub policy_args: PolicyArgs,
    /// Verify this policy's plan [default: cpu, and gpu where there is one].
    #[arg(long, conflicts_with = "plan")]
    pub policy: Option<String>,
    /// Verify this plan file.
    #[arg(long, value_name = "FILE")]
    pub plan: Option<PathBuf>,
    /// Also verify N random placements over CPU, GPU and splits.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub random_plans: usize,
    /// Relative tolerance [default: 1e-3; where --precision rounds operands, the rest of the bound
    /// is derived from how it rounds].
    #[arg(long)]
    pub rtol: Option<f64>,
    /// Absolute tolerance [default: 1e-4; as above].
    #[arg(long)]
    pub atol: Option<f64>,
    /// For a model with class scores: how often its highest class is that of exact fp32, over the
    /// pictures (.jpg, .png) in this folder, with crops and flips if they are fewer than 50.
    #[arg(long, value_name = "FOLDER")]
    pub images: Option<PathBuf>,
}

/// `reproduce`.
#[derive(Args, Debug)]
pub struct ReproduceArgs {
    /// Device profiles, by name or path.
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "jetson-agx-orin,jetson-orin-nano"
    )]
    pub target: Vec<String>,
    /// Built-in models (NAME or NAME@p90).
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "resnet18,mobilenet_v2,mobilenet_v3_small,vit_b_16,swin_t"
    )]
    pub model: Vec<String>,
    /// States of the hardware per board.
    #[arg(long, value_name = "N", default_value_t = 60,
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub states: u32,
    /// Seed of the states.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write charts and tables as a page.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// `evaluate`.
#[derive(Args, Debug)]
pub struct EvaluateArgs {
    /// States of the hardware per model and board.
    #[arg(long, value_name = "N", default_value_t = 60,
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub states: u32,
    /// Small random networks on which every placement is tried.
    #[arg(long, value_name = "N", default_value_t = 12,
        value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub small: u32,
}

/// `train`.
#[derive(Args, Debug)]
pub struct TrainArgs {
    /// Where the weights and learning curves go. A training that was interrupted there goes on; set
    /// SPAROA_WEIGHTS to the folder to use them.
    #[arg(short, long, value_name = "FOLDER", default_value = "weights")]
    pub output: PathBuf,
    /// Seed: the same seed gives the same weights on the same machine.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Updates of the scheduler.
    #[arg(long, value_name = "N")]
    pub updates: Option<u64>,
    /// Seconds instead of minutes: to see that it works, not to use the result.
    #[arg(long)]
    pub tiny: bool,
}

/// `prune`.
#[derive(Args, Debug)]
pub struct PruneArgs {
    /// ONNX file or zoo:NAME.
    pub model: String,
    /// Share of the weights that becomes zero, 0 to 1.
    #[arg(long, value_name = "SHARE")]
    pub sparsity: f64,
    /// Seek the smallest among each layer's weights: all layers become equally sparse (default).
    #[arg(long, conflicts_with = "global")]
    pub per_layer: bool,
    /// Seek the smallest among all weights: layers of small weights become sparser than others.
    #[arg(long)]
    pub global: bool,
    /// The file to write.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

/// `zoo`.
#[derive(Debug, Subcommand)]
pub enum ZooCommand {
    /// List the built-in models.
    List,
    /// Write a built-in model as ONNX.
    Export {
        /// Name: resnet18, mobilenet_v2@p90, ...
        name: String,
        /// The file.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
}
