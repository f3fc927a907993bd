//! cuDNN, NVIDIA's convolutions, through its graph interface: descriptors with attributes. The only
//! unsafe code that uses it is here.

use std::{
    ffi::{CStr, c_int, c_void},
    ptr,
    sync::Arc,
};

use cudarc::driver::sys::CUstream;
use libloading::Library;
use parking_lot::Mutex;
use sparoa_core::ops::Images;

use super::{Half, Operands, Refused, function};

/// File names.
#[cfg(windows)]
pub(super) const NAMES: &[&str] = &["cudnn64_9.dll"];
#[cfg(not(windows))]
pub(super) const NAMES: &[&str] = &["libcudnn.so.9"];

/// Functions that say its version and that of its CUDA.
pub(super) const VERSIONS: [&CStr; 2] = [c"cudnnGetVersion", c"cudnnGetCudartVersion"];

/// Bytes of workspace that an algorithm may take: Fourier's transforms of ResNet's 64 images of 128
/// channels are as many.
pub(super) const MAX_WORKSPACE: i64 = 256 << 20;
/// Configurations to ask for at most: many of them do not compute as they must.
const CONFIGURATIONS: usize = 160;
/// Those of them that are taken.
const TAKEN: usize = 10;

type Raw = *mut c_void;
type Status = c_int;

// Of cudnn_graph.h, the same since version 8.
const FLOAT: c_int = 0;
const HALF: c_int = 2;
const BFLOAT16: c_int = 9;
const TYPE_HANDLE: c_int = 0;
const TYPE_DATA_TYPE: c_int = 1;
const TYPE_BOOLEAN: c_int = 2;
const TYPE_INT64: c_int = 3;
const TYPE_FLOAT: c_int = 4;
const TYPE_VOID_PTR: c_int = 6;
const TYPE_CONVOLUTION_MODE: c_int = 7;
const TYPE_HEUR_MODE: c_int = 8;
const TYPE_NUMERICAL_NOTE: c_int = 11;
const TYPE_POINTWISE_MODE: c_int = 14;
const TYPE_DESCRIPTOR: c_int = 15;
const KIND_POINTWISE: c_int = 0;
const KIND_CONVOLUTION: c_int = 1;
const KIND_ENGINE: c_int = 2;
const KIND_ENGINECFG: c_int = 3;
const KIND_ENGINEHEUR: c_int = 4;
const KIND_PLAN: c_int = 5;
const KIND_CONVOLUTION_FORWARD: c_int = 10;
const KIND_OPERATION_POINTWISE: c_int = 13;
const KIND_GRAPH: c_int = 15;
const KIND_VARIANT_PACK: c_int = 16;
const KIND_TENSOR: c_int = 17;
const POINTWISE_ADD: c_int = 0;
const POINTWISE_RELU: c_int = 100;
const CROSS_CORRELATION: c_int = 1;
/// Ways to look for configurations: by estimates, and those that are nearly always there.
const HEURISTICS: [c_int; 2] = [3, 2];
/// What a configuration's numbers may not be: rounded to fewer bits than asked for, added with
/// fewer, as the coefficients of Winograd's convolution of the largest tiles, or added in no fixed
/// order.
const NOTES_REFUSED: [c_int; 4] = [1, 2, 4, 8];
const NOTE_TENSOR_CORE: c_int = 0;
/// What f32 may be transformed by first: Fourier's transform of tiles of up to 32 x 32, Winograd's, and
/// its tiles of 4 x 4 and 6 x 6. Fourier's results of random numbers were found within 2e-5 of their root
/// mean square from those of plain sums; an error is relative to a tile's numbers, though, not to an
/// element's.
const NOTES_TRANSFORMED: [c_int; 4] = [3, 5, 6, 7];
/// Notes that there may be, with room for more.
const NOTES: usize = 16;

type SetAttribute = unsafe extern "C" fn(Raw, c_int, c_int, i64, *const c_void) -> Status;
type GetAttribute = unsafe extern "C" fn(Raw, c_int, c_int, i64, *mut i64, *mut c_void) -> Status;

/// The loaded library with a handle.
pub(super) struct Cudnn {
    handle: Raw,
    /// Held by whoever uses the handle: the library lets one thread do so at a time.
    turn: Mutex<()>,
    create: unsafe extern "C" fn(c_int, *mut Raw) -> Status,
    finalize: unsafe extern "C" fn(Raw) -> Status,
    set: SetAttribute,
    get: GetAttribute,
    destroy: unsafe extern "C" fn(Raw) -> Status,
    execute: unsafe extern "C" fn(Raw, Raw, Raw) -> Status,
    set_stream: unsafe extern "C" fn(Raw, CUstream) -> Status,
    destroy_handle: unsafe extern "C" fn(Raw) -> Status,
    /// Keeps the functions alive.
    _library: Library,
}

// SAFETY: the handle is used by one thread at a time, under `turn`.
unsafe impl Send for Cudnn {}
// SAFETY: as above.
unsafe impl Sync for Cudnn {}

impl Cudnn {
    /// Makes a handle in the current context. `None` where functions are missing or it fails.
    pub(super) fn new(library: Library) -> Option<Cudnn> {
        // SAFETY: the types are those of cudnn.h, the same in every version since 8; every function
        // is used only while `_library` is loaded.
        let mut cudnn = unsafe {
            Cudnn {
                handle: ptr::null_mut(),
                turn: Mutex::new(()),
                create: function(&library, c"cudnnBackendCreateDescriptor")?,
                finalize: function(&library, c"cudnnBackendFinalize")?,
                set: function(&library, c"cudnnBackendSetAttribute")?,
                get: function(&library, c"cudnnBackendGetAttribute")?,
                destroy: function(&library, c"cudnnBackendDestroyDescriptor")?,
                execute: function(&library, c"cudnnBackendExecute")?,
                set_stream: function(&library, c"cudnnSetStream")?,
                destroy_handle: function(&library, c"cudnnDestroy")?,
                _library: library,
            }
        };
        // SAFETY: as above; it writes the handle.
        let made = unsafe {
            let create: unsafe extern "C" fn(*mut Raw) -> Status =
                function(&cudnn._library, c"cudnnCreate")?;
            create(&mut cudnn.handle)
        };
        (made == 0).then_some(cudnn)
    }
}

impl Drop for Cudnn {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: created in `new`, destroyed once; descriptors keep the library.
            unsafe { (self.destroy_handle)(self.handle) };
        }
    }
}

/// A descriptor under construction or made.
struct Descriptor {
    cudnn: Arc<Cudnn>,
    raw: Raw,
}

/// A value of an attribute, as the library reads it.
enum Value<'a> {
    Int(&'a [i64]),
    Float(f32),
    Boolean(bool),
    /// An enumeration of this type.
    Word(c_int, c_int),
    Descriptors(&'a [&'a Descriptor]),
    Handle,
    Pointers(&'a [Raw]),
}

impl Descriptor {
    /// One of `kind` with these attributes. Errors are the library's status.
    fn new(cudnn: &Arc<Cudnn>, kind: c_int, attributes: &[(c_int, Value)]) -> Result<Self, Status> {
        let descriptor = Descriptor::bare(cudnn, kind)?;
        for (name, value) in attributes {
            descriptor.set(*name, value)?;
        }
        // SAFETY: alive.
        check(unsafe { (cudnn.finalize)(descriptor.raw) })?;
        Ok(descriptor)
    }

    /// One of `kind` without attributes, for the library to fill.
    fn bare(cudnn: &Arc<Cudnn>, kind: c_int) -> Result<Self, Status> {
        let mut descriptor = Descriptor { cudnn: cudnn.clone(), raw: ptr::null_mut() };
        // SAFETY: it writes the descriptor.
        check(unsafe { (cudnn.create)(kind, &mut descriptor.raw) })?;
        Ok(descriptor)
    }

    fn set(&self, name: c_int, value: &Value) -> Result<(), Status> {
        let put = |ty: c_int, count: usize, values: *const c_void| {
            // SAFETY: `values` are `count` of the type `ty`, which the library copies.
            check(unsafe { (self.cudnn.set)(self.raw, name, ty, count as i64, values) })
        };
        match value {
            Value::Int(values) => put(TYPE_INT64, values.len(), values.as_ptr().cast()),
            Value::Float(value) => put(TYPE_FLOAT, 1, ptr::from_ref(value).cast()),
            Value::Boolean(value) => put(TYPE_BOOLEAN, 1, ptr::from_ref(value).cast()),
            Value::Word(ty, value) => put(*ty, 1, ptr::from_ref(value).cast()),
            Value::Descriptors(list) => {
                let raw: Vec<Raw> = list.iter().map(|descriptor| descriptor.raw).collect();
                put(TYPE_DESCRIPTOR, raw.len(), raw.as_ptr().cast())
            }
            Value::Handle => put(TYPE_HANDLE, 1, ptr::from_ref(&self.cudnn.handle).cast()),
            Value::Pointers(list) => put(TYPE_VOID_PTR, list.len(), list.as_ptr().cast()),
        }
    }

    /// How many values of the type `ty` an attribute has.
    fn count(&self, name: c_int, ty: c_int) -> Result<usize, Status> {
        let mut count = 0;
        // SAFETY: no value is asked for, their number is written.
        check(unsafe { (self.cudnn.get)(self.raw, name, ty, 0, &mut count, ptr::null_mut()) })?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Fills `values` of an attribute; how many there are.
    ///
    /// # Safety
    /// `T` is the library's type `ty`.
    unsafe fn get<T>(&self, name: c_int, ty: c_int, values: &mut [T]) -> Result<usize, Status> {
        let (room, mut count) = (values.len() as i64, 0);
        let to = values.as_mut_ptr().cast();
        // SAFETY: there is room for as many values of `ty` as are asked for.
        check(unsafe { (self.cudnn.get)(self.raw, name, ty, room, &mut count, to) })?;
        Ok(usize::try_from(count).unwrap_or(0).min(values.len()))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: created in `bare`, destroyed once.
            unsafe { (self.cudnn.destroy)(self.raw) };
        }
    }
}

fn check(status: Status) -> Result<(), Status> {
    if status == 0 { Ok(()) } else { Err(status) }
}

/// What a convolution is, apart from its operands.
pub(super) struct Convolution {
    pub(super) images: Images,
    /// Output channels.
    pub(super) channels: usize,
    /// What operands and result are stored as, if not as f32.
    pub(super) half: Option<Half>,
    /// Operands may be rounded to TF32.
    pub(super) tf32: bool,
    pub(super) bias: bool,
    pub(super) residual: bool,
    pub(super) relu: bool,
}

// Names of operands in a graph.
const X: i64 = 1;
const W: i64 = 2;
const Y: i64 = 3;
const BIAS: i64 = 4;
const RESIDUAL: i64 = 5;
/// The first of what lies between operations.
const BETWEEN: i64 = 10;

/// A described convolution and the configurations that there are for it, most promising first.
pub(super) struct Graph {
    cudnn: Arc<Cudnn>,
    configurations: Vec<Descriptor>,
    names: Vec<i64>,
    /// What configurations refer to.
    _described: Vec<Descriptor>,
}

/// One configuration, ready to run.
pub(super) struct Plan {
    plan: Descriptor,
    names: Vec<i64>,
    workspace: usize,
}

// SAFETY: what the library does with descriptors happens under `Cudnn::turn`.
unsafe impl Send for Plan {}
// SAFETY: as above.
unsafe impl Sync for Plan {}

impl Graph {
    /// Asks the library for configurations; `None` where it has none that computes as it must.
    pub(super) fn new(cudnn: &Arc<Cudnn>, convolution: &Convolution) -> Option<Graph> {
        let _turn = cudnn.turn.lock();
        match Graph::describe(cudnn, convolution) {
            Ok(graph) => (!graph.configurations.is_empty()).then_some(graph),
            Err(status) => {
                tracing::debug!(status, "cuDNN has no such convolution");
                None
            }
        }
    }

    fn describe(cudnn: &Arc<Cudnn>, c: &Convolution) -> Result<Graph, Status> {
        let Images { batch, channels, window, .. } = c.images;
        let int = |size: usize| i64::try_from(size).unwrap_or(i64::MAX);
        let pair = |sizes: [usize; 2]| sizes.map(int);
        let stored = match c.half {
            Some(Half::F16) => HALF,
            Some(Half::Bf16) => BFLOAT16,
            None => FLOAT,
        };
        let float = || Value::Word(TYPE_DATA_TYPE, FLOAT);
        // Batch, channels, height and width, by the order in memory batch, height, width, channels.
        let tensor = |name: i64, [n, ch, h, w]: [i64; 4], between: bool| {
            let ty = if between { FLOAT } else { stored };
            Descriptor::new(
                cudnn,
                KIND_TENSOR,
                &[
                    (900, Value::Int(&[16])),
                    (901, Value::Word(TYPE_DATA_TYPE, ty)),
                    (902, Value::Int(&[n, ch, h, w])),
                    (903, Value::Int(&[h * w * ch, 1, w * ch, ch])),
                    (906, Value::Int(&[name])),
                    (907, Value::Boolean(between)),
                ],
            )
        };
        let out = int(c.channels);
        let ([h, w], [oh, ow], [kh, kw]) =
            (pair(window.input), pair(window.output), pair(window.kernel));
        let result = [int(batch), out, oh, ow];
        let [top, left, bottom, right] = window.pads.map(int);
        let convolution = Descriptor::new(
            cudnn,
            KIND_CONVOLUTION,
            &[
                (100, float()),
                (101, Value::Word(TYPE_CONVOLUTION_MODE, CROSS_CORRELATION)),
                (102, Value::Int(&pair(window.dilations))),
                (103, Value::Int(&pair(window.strides))),
                (104, Value::Int(&[bottom, right])),
                (105, Value::Int(&[top, left])),
                (106, Value::Int(&[2])),
            ],
        )?;
        let mut names = vec![X, W, Y];
        let mut tensors = vec![
            tensor(X, [int(batch), int(channels), h, w], false)?,
            tensor(W, [out, int(channels), kh, kw], false)?,
        ];
        // Sums, with residual, with bias, through a ReLU: the order that the library fuses.
        let mut steps = Vec::new();
        if c.residual {
            names.push(RESIDUAL);
            steps.push((POINTWISE_ADD, Some(tensor(RESIDUAL, result, false)?)));
        }
        if c.bias {
            names.push(BIAS);
            steps.push((POINTWISE_ADD, Some(tensor(BIAS, [1, out, 1, 1], false)?)));
        }
        if c.relu {
            steps.push((POINTWISE_RELU, None));
        }
        let last = steps.len();
        let place = |i: usize| match i == last {
            true => tensor(Y, result, false),
            false => tensor(BETWEEN + int(i), result, true),
        };
        let mut value = place(0)?;
        let mut operations = vec![Descriptor::new(
            cudnn,
            KIND_CONVOLUTION_FORWARD,
            &[
                (700, Value::Float(1.0)),
                (701, Value::Float(0.0)),
                (702, Value::Descriptors(&[&convolution])),
                (703, Value::Descriptors(&[&tensors[1]])),
                (704, Value::Descriptors(&[&tensors[0]])),
                (705, Value::Descriptors(&[&value])),
            ],
        )?];
        for (i, (mode, beside)) in steps.into_iter().enumerate() {
            let mode = [(0, Value::Word(TYPE_POINTWISE_MODE, mode)), (1, float())];
            let what = Descriptor::new(cudnn, KIND_POINTWISE, &mode)?;
            let next = place(i + 1)?;
            let (from, to) = ([&value], [&next]);
            let mut attributes =
                vec![(751, Value::Descriptors(&from)), (753, Value::Descriptors(&to))];
            let with: [&Descriptor; 1] = [beside.as_ref().unwrap_or(&what)];
            if beside.is_some() {
                attributes.push((752, Value::Descriptors(&with)));
            }
            let doing = [&what];
            attributes.push((750, Value::Descriptors(&doing)));
            operations.push(Descriptor::new(cudnn, KIND_OPERATION_POINTWISE, &attributes)?);
            tensors.extend(beside);
            tensors.push(std::mem::replace(&mut value, next));
            tensors.push(what);
        }
        tensors.extend([value, convolution]);
        let list: Vec<&Descriptor> = operations.iter().collect();
        let graph = Descriptor::new(
            cudnn,
            KIND_GRAPH,
            &[(800, Value::Handle), (801, Value::Descriptors(&list))],
        )?;
        let refused = |note: &c_int| {
            let rounded = c.half.is_some() || c.tf32;
            NOTES_REFUSED.contains(note)
                || (*note == NOTE_TENSOR_CORE && !rounded)
                || (NOTES_TRANSFORMED.contains(note) && (rounded || c.images.plain))
        };
        let mut configurations = Vec::new();
        for heuristic in HEURISTICS {
            configurations.extend(self::configurations(cudnn, &graph, heuristic, &refused)?);
        }
        configurations.truncate(TAKEN);
        let mut described = operations;
        described.extend(tensors);
        described.push(graph);
        Ok(Graph { cudnn: cudnn.clone(), configurations, names, _described: described })
    }

    /// How many configurations there are.
    pub(super) fn count(&self) -> usize {
        self.configurations.len()
    }

    /// Makes configuration `i` ready; `None` where the library cannot, or takes too much memory.
    pub(super) fn plan(&self, i: usize) -> Option<Plan> {
        let _turn = self.cudnn.turn.lock();
        let attributes =
            [(400, Value::Handle), (401, Value::Descriptors(&[&self.configurations[i]]))];
        let plan = Descriptor::new(&self.cudnn, KIND_PLAN, &attributes).ok()?;
        let mut bytes = [0i64];
        // SAFETY: a workspace's size is one of these.
        unsafe { plan.get(402, TYPE_INT64, &mut bytes) }.ok()?;
        let workspace = usize::try_from(bytes[0]).ok()?;
        (bytes[0] <= MAX_WORKSPACE).then(|| Plan { plan, names: self.names.clone(), workspace })
    }
}

/// The configurations for a graph, but those whose numbers are not as asked for.
fn configurations(
    cudnn: &Arc<Cudnn>,
    graph: &Descriptor,
    heuristic: c_int,
    refused: &dyn Fn(&c_int) -> bool,
) -> Result<Vec<Descriptor>, Status> {
    let heuristics = Descriptor::new(
        cudnn,
        KIND_ENGINEHEUR,
        &[(200, Value::Word(TYPE_HEUR_MODE, heuristic)), (201, Value::Descriptors(&[graph]))],
    )?;
    let there = heuristics.count(202, TYPE_DESCRIPTOR)?.min(CONFIGURATIONS);
    let made = (0..there).map(|_| Descriptor::bare(cudnn, KIND_ENGINECFG));
    let mut found: Vec<Descriptor> = made.collect::<Result<_, _>>()?;
    let mut raw: Vec<Raw> = found.iter().map(|descriptor| descriptor.raw).collect();
    // SAFETY: results are descriptors of configurations, which the library fills.
    let count = unsafe { heuristics.get(202, TYPE_DESCRIPTOR, &mut raw) }?;
    found.truncate(count);
    found
        .retain(|configuration| notes(configuration).is_ok_and(|notes| !notes.iter().any(refused)));
    tracing::debug!(heuristic, there, usable = found.len(), "configurations of cuDNN");
    Ok(found)
}

/// What the library notes on a configuration's numbers.
fn notes(configuration: &Descriptor) -> Result<Vec<c_int>, Status> {
    let engine = Descriptor::bare(&configuration.cudnn, KIND_ENGINE)?;
    let mut raw = [engine.raw];
    let mut notes = vec![0; NOTES];
    // SAFETY: an engine is a descriptor, which the library fills; notes are words.
    let count = unsafe {
        configuration.get(300, TYPE_DESCRIPTOR, &mut raw)?;
        engine.get(1303, TYPE_NUMERICAL_NOTE, &mut notes)?
    };
    notes.truncate(count);
    Ok(notes)
}

impl Plan {
    /// Bytes of workspace.
    pub(super) fn workspace(&self) -> usize {
        self.workspace
    }

    /// Queues the convolution.
    ///
    /// # Safety
    /// The operands have the sizes that it was described with, the workspace those that
    /// [`Plan::workspace`] says, all alive until it is done.
    pub(super) unsafe fn queue(
        &self,
        operands: &Operands,
        stream: CUstream,
    ) -> Result<(), Refused> {
        let cudnn = &self.plan.cudnn;
        let _turn = cudnn.turn.lock();
        let address = |name: &i64| match *name {
            X => operands.x,
            W => operands.weight,
            BIAS => operands.bias,
            RESIDUAL => operands.residual,
            _ => operands.y,
        };
        let pointers: Vec<Raw> =
            self.names.iter().map(|name| address(name) as usize as Raw).collect();
        let workspace = [operands.workspace as usize as Raw];
        let pack = [
            (1000, Value::Int(&self.names)),
            (1001, Value::Pointers(&pointers)),
            (1003, Value::Pointers(&workspace)),
        ];
        let queued = Descriptor::new(cudnn, KIND_VARIANT_PACK, &pack).and_then(|pack| {
            // SAFETY: the descriptors are alive; the rest is the caller's word.
            unsafe {
                check((cudnn.set_stream)(cudnn.handle, stream))?;
                check((cudnn.execute)(cudnn.handle, self.plan.raw, pack.raw))
            }
        });
        queued.map_err(|status| Refused { library: "cuDNN", status })
    }
}
