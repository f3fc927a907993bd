//! How often a session's highest class is that of exact fp32, over pictures.

use std::path::Path;

use serde::Serialize;
use sparoa::{Arithmetic, DType, Policy, Session, Tensor};

use crate::{
    args::VerifyArgs,
    error::{CliError, CliResult},
    images::{self, View},
    progress::Bars,
    sessions::{BuildRequest, Machine, session_error},
};

/// Fewer pictures than this are shown in several crops, some mirrored.
const SAMPLES: usize = 50;

/// The verdict.
#[derive(Debug, Serialize)]
pub struct Agreement {
    /// Pictures.
    pub images: usize,
    /// Pictures, crops and mirror images.
    pub samples: usize,
    /// Those on which both see the same class.
    pub agree: usize,
    /// `agree` of `samples`.
    pub share: f64,
    /// The others.
    pub differing: Vec<Differing>,
}

/// A picture in which another class is seen.
#[derive(Debug, Serialize)]
pub struct Differing {
    /// Its file, crop and mirroring.
    pub picture: String,
    /// Class in exact fp32.
    pub expected: usize,
    /// Class here.
    pub given: usize,
    /// How far ahead of the class seen here the expected one was in exact fp32, as a share of the
    /// scores' root mean square: how near a tie it was.
    pub lead_of_rms: f64,
}

/// Runs the session and an exact one on every picture.
///
/// # Errors
/// When the model is none that classifies pictures, or a picture cannot be read.
pub fn measure(
    machine: &Machine,
    request: &BuildRequest,
    session: &mut Session,
    folder: &Path,
    args: &VerifyArgs,
    bars: &Bars,
) -> CliResult<Agreement> {
    let paths = images::in_folder(folder, images::is_image, ".jpg or .png")?;
    let views = SAMPLES.div_ceil(paths.len());
    let (name, ty) = match session.inputs() {
        [input] => (input.name.clone(), input.ty.clone()),
        several => {
            let count = several.len();
            return Err(CliError::usage(format!("--images: the model has {count} inputs, not 1")));
        }
    };
    let ty = ty.ok_or_else(|| CliError::usage("--images: the input has no known type"))?;
    let scores = scores(session)?;
    let mut exact = {
        let mut request = request.clone();
        request.policy = Some(Policy::Cpu);
        request.plan = None;
        request.pins = Vec::new();
        request.arithmetic = Some(Arithmetic::Exact);
        machine.build(&request, bars)?
    };
    let views: Vec<View> = View::all().take(views).collect();
    let samples = paths.len() * views.len();
    let bar = bars.bar(samples as u64, "comparing classes");
    let mut differing = Vec::new();
    for path in &paths {
        for view in &views {
            let x = images::load_view(path, &name, &ty, args.inputs.normalize, *view)?;
            let run = |session: &mut Session| {
                let mut outputs = session.run(&[(&name, x.clone())]).map_err(session_error)?;
                Ok::<_, CliError>(outputs.swap_remove(scores).1)
            };
            let (exact, ours) = (run(&mut exact)?, run(session)?);
            let (expected, given) = (highest(&exact), highest(&ours));
            if expected != given {
                differing.push(Differing {
                    picture: format!("{} {view:?}", path.display()),
                    expected,
                    given,
                    lead_of_rms: lead(&exact, expected, given),
                });
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let agree = samples - differing.len();
    let share = agree as f64 / samples as f64;
    Ok(Agreement { images: paths.len(), samples, agree, share, differing })
}

/// The output that holds a score per class.
fn scores(session: &Session) -> CliResult<usize> {
    let found = session.outputs().iter().position(|o| {
        o.ty.as_ref().is_some_and(|ty| {
            ty.dtype == DType::F32 && matches!(ty.shape.as_slice(), &[_, classes] if classes > 1)
        })
    });
    found.ok_or_else(|| {
        CliError::usage("--images: the model has no output of class scores, [N, classes] of f32")
    })
}

/// The scores of the first row.
fn first_row(scores: &Tensor) -> &[f32] {
    let classes = scores.shape().last().copied().unwrap_or(0);
    scores.as_slice::<f32>().map_or(&[], |v| &v[..classes])
}

/// By how much one class leads another, of the scores' root mean square.
fn lead(scores: &Tensor, first: usize, second: usize) -> f64 {
    let row = first_row(scores);
    let squares: f64 = row.iter().map(|v| f64::from(*v).powi(2)).sum();
    f64::from(row[first] - row[second]) / (squares / row.len() as f64).sqrt()
}

/// The class with the highest score of the first row.
fn highest(scores: &Tensor) -> usize {
    let row = first_row(scores);
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}
