//! A share of a device keeps to its multiprocessors, queued or recorded. Needs an NVIDIA GPU.

use std::sync::Arc;

use super::super::{
    driver::{self, Context, DeviceMemory, Function, HostMemory, Launch, Stream, Turn},
    nvrtc::Nvrtc,
    share,
};

/// Counts the workgroups that each multiprocessor runs. They last long enough that all come to
/// have some.
const COUNTING: &str = r#"
struct Params { unsigned unused[4]; };
extern "C" __global__ void count(Params, unsigned, unsigned* counts) {
    unsigned id;
    asm("mov.u32 %0, %%smid;" : "=r"(id));
    if (threadIdx.x == 0) atomicAdd(counts + id, 1);
    for (long long start = clock64(); clock64() - start < 20000;) {}
}
"#;
const GROUPS: u32 = 2048;
/// More multiprocessors than any device has.
const MOST: usize = 1024;

/// Runs the counting kernel on a device or a share of it, at once and as a graph; how many
/// multiprocessors it met.
fn used(ordinal: usize, wanted: Option<u32>) -> Result<(Option<u32>, [usize; 2]), String> {
    let facts = &driver::devices().map_err(|e| format!("{e:?}"))?[ordinal];
    let wanted = share::check(facts, wanted)?;
    let nvrtc = Nvrtc::load(facts.driver.0).map_err(|e| e.to_string())?;
    let cubin = nvrtc.compile(COUNTING, facts.compute)?;
    let context = Context::open(ordinal, facts, wanted).map_err(|e| format!("{e:?}"))?;
    let count = |graph: bool| -> Result<usize, cudarc::driver::DriverError> {
        context.bind()?;
        let function = Arc::new(Function::load(&context, &cubin, "count", 0)?);
        let counts = DeviceMemory::new(&context, 4 * MOST)?;
        let back = HostMemory::new(&context, 4 * MOST)?;
        let stream = Stream::new(&context)?;
        let launch = Launch {
            function,
            grid: [GROUPS, 1, 1],
            threads: [256, 1, 1],
            spread: false,
            cluster: 1,
            params: vec![0; 4],
            buffers: vec![counts.address],
        };
        context.wait_fills()?;
        // SAFETY: the buffer has room for the counts of every multiprocessor and outlives the
        // launch, which is waited for.
        let queue = || unsafe { stream.launch(&launch, Turn::default()) };
        if graph {
            let graph = stream.capture(queue)?;
            // SAFETY: as above.
            unsafe { stream.replay(&graph) }?;
            stream.synchronize()?;
        } else {
            queue()?;
        }
        stream.copy_out(&back, counts.address, 4 * MOST)?;
        stream.synchronize()?;
        let mut bytes = vec![0u8; 4 * MOST];
        back.read(0, &mut bytes);
        let counts = bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap()));
        let counts: Vec<u32> = counts.collect();
        assert_eq!(counts.iter().sum::<u32>(), GROUPS);
        Ok(counts.iter().filter(|&&count| count > 0).count())
    };
    let both = (count(false), count(true));
    let (Ok(queued), Ok(recorded)) = both else { panic!("{wanted:?}: {both:?}") };
    Ok((context.share(), [queued, recorded]))
}

#[test]
fn a_share_keeps_to_its_multiprocessors() {
    if !driver::library_present() {
        println!("skipped: no NVIDIA driver");
        return;
    }
    let whole = match used(0, None) {
        Ok((None, whole)) => whole,
        Ok(other) => panic!("all were wanted: {other:?}"),
        Err(error) => {
            println!("skipped: {error}");
            return;
        }
    };
    println!("whole device: {whole:?} multiprocessors");
    for wanted in [1, 8, 16] {
        match used(0, Some(wanted)) {
            Ok((Some(got), [queued, recorded])) => {
                println!("{wanted} wanted: {got}; {queued} queued, {recorded} recorded");
                let got = got as usize;
                assert!(got >= wanted as usize && got < whole[0], "{got} of {whole:?}");
                assert!((queued, recorded) == (got, got), "{queued} and {recorded} of {got}");
            }
            // A device of no more multiprocessors, or an old driver.
            Ok((None, _)) => println!("skipped: {wanted} are all there are"),
            Err(error) => println!("skipped: {error}"),
        }
    }
}
