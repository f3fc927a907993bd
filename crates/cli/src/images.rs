//! Photos as model inputs: decode, resize, crop, normalise.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use image::{DynamicImage, ImageReader, imageops::FilterType};
use sparoa::{DType, Tensor, TensorType};

use crate::error::{CliError, CliResult};

/// How pixel values become numbers. With x in 0..=255:
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Normalize {
    /// (x/255 - mean) / std with ImageNet's mean and standard deviation, RGB.
    #[default]
    Imagenet,
    /// x/127.5 - 1, RGB.
    Symmetric,
    /// x/255, RGB.
    Unit,
    /// x as it is, RGB.
    Raw,
    /// x minus 104, 117, 123, in the order BGR (Caffe models).
    Caffe,
}

impl Normalize {
    /// The value of channel `c` (in the model's order) from an RGB pixel.
    fn apply(self, rgb: [f32; 3], c: usize) -> f32 {
        const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
        const STD: [f32; 3] = [0.229, 0.224, 0.225];
        const CAFFE: [f32; 3] = [104.0, 117.0, 123.0];
        match self {
            Normalize::Imagenet => (rgb[c] / 255.0 - MEAN[c]) / STD[c],
            Normalize::Symmetric => rgb[c] / 127.5 - 1.0,
            Normalize::Unit => rgb[c] / 255.0,
            Normalize::Raw => rgb[c],
            Normalize::Caffe => rgb[2 - c] - CAFFE[c],
        }
    }
}

/// True when the file name ends like a picture's.
pub fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
    matches!(extension.to_ascii_lowercase().as_str(), "jpg" | "jpeg" | "png")
}

/// Which part of a photo, and whether mirrored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Column and row of the part: the middle for `None`, else 0 or 1.
    corner: Option<(u8, u8)>,
    mirrored: bool,
}

impl View {
    /// The middle and the corners, each also mirrored.
    pub fn all() -> impl Iterator<Item = View> {
        let corners = [None, Some((0, 0)), Some((1, 1)), Some((1, 0)), Some((0, 1))];
        let views = |corner| [false, true].map(|mirrored| View { corner, mirrored });
        corners.into_iter().flat_map(views)
    }
}

/// The files in a folder that are `wanted`, sorted by name.
///
/// # Errors
/// When it cannot be read or has none; `kinds` says of what.
pub fn in_folder(folder: &Path, wanted: fn(&Path) -> bool, kinds: &str) -> CliResult<Vec<PathBuf>> {
    let fail = |why: String| CliError::input(format!("{}: {why}", folder.display()));
    let entries = std::fs::read_dir(folder).map_err(|e| fail(e.to_string()))?;
    let mut paths: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| wanted(p)).collect();
    paths.sort();
    if paths.is_empty() { Err(fail(format!("no {kinds} in it"))) } else { Ok(paths) }
}

/// Reads a photo as the tensor that an input of type `ty` wants: `[N,C,H,W]` or `[N,H,W,C]` with
/// C = 1 or 3, f32 or u8. The short side is resized to 8/7 of the target (256 for 224), then the
/// centre is cropped. Batches repeat the photo.
///
/// # Errors
/// When the file is no picture or the input is none that a picture fits.
pub fn load(path: &Path, name: &str, ty: &TensorType, normalize: Normalize) -> CliResult<Tensor> {
    load_view(path, name, ty, normalize, View::default())
}

/// [`load`], of another part than the centre.
///
/// # Errors
/// Those of [`load`].
pub fn load_view(
    path: &Path,
    name: &str,
    ty: &TensorType,
    normalize: Normalize,
    view: View,
) -> CliResult<Tensor> {
    let fail = |why: String| CliError::input(format!("{}: {why}", path.display()));
    let geometry = Geometry::of(ty).ok_or_else(|| {
        fail(format!(
            "a picture does not fit input '{name}' of type {ty}: it needs [N,3,H,W] or [N,H,W,3] \
             of f32 or u8; give a .npy file instead"
        ))
    })?;
    let picture = ImageReader::open(path)
        .and_then(ImageReader::with_guessed_format)
        .map_err(|e| fail(e.to_string()))?
        .decode()
        .map_err(|e| fail(format!("not a readable JPEG or PNG: {e}")))?;
    let pixels = crop(picture, geometry.height, geometry.width, view);
    let mut values = vec![0f32; ty.len()];
    let per_image = geometry.channels * geometry.height * geometry.width;
    for (i, value) in values.iter_mut().enumerate() {
        let (y, x, c) = geometry.locate(i % per_image);
        let rgb = pixels.get_pixel(x as u32, y as u32).0.map(f32::from);
        *value = if geometry.channels == 1 {
            let luma = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2];
            normalize.apply([luma; 3], 0)
        } else {
            normalize.apply(rgb, c)
        };
    }
    Ok(if ty.dtype == DType::F32 {
        Tensor::from_slice(ty.shape.clone(), &values)
    } else {
        let bytes: Vec<u8> = values.iter().map(|v| v.round().clamp(0.0, 255.0) as u8).collect();
        Tensor::from_slice(ty.shape.clone(), &bytes)
    })
}

/// Where height, width and channels lie in an input.
struct Geometry {
    channels: usize,
    height: usize,
    width: usize,
    channels_first: bool,
}

impl Geometry {
    fn of(ty: &TensorType) -> Option<Geometry> {
        if !matches!(ty.dtype, DType::F32 | DType::U8) {
            return None;
        }
        let &[_, a, b, c] = ty.shape.as_slice() else { return None };
        if matches!(a, 1 | 3) {
            Some(Geometry { channels: a, height: b, width: c, channels_first: true })
        } else if matches!(c, 1 | 3) {
            Some(Geometry { channels: c, height: a, width: b, channels_first: false })
        } else {
            None
        }
    }

    /// Row, column and channel of element `i` of one image.
    fn locate(&self, i: usize) -> (usize, usize, usize) {
        if self.channels_first {
            let (c, rest) = (i / (self.height * self.width), i % (self.height * self.width));
            (rest / self.width, rest % self.width, c)
        } else {
            let (pixel, c) = (i / self.channels, i % self.channels);
            (pixel / self.width, pixel % self.width, c)
        }
    }
}

/// Resizes so that a crop of `height` x `width` keeps 7/8 of the picture's tighter side.
fn crop(picture: DynamicImage, height: usize, width: usize, view: View) -> image::RgbImage {
    let rgb = picture.into_rgb8();
    let (w, h) = (f64::from(rgb.width()), f64::from(rgb.height()));
    let scale = (width as f64 / w).max(height as f64 / h) * 8.0 / 7.0;
    let (rw, rh) = ((w * scale).round() as u32, (h * scale).round() as u32);
    let (rw, rh) = (rw.max(width as u32), rh.max(height as u32));
    let resized = image::imageops::resize(&rgb, rw, rh, FilterType::Triangle);
    let (x, y) = (rw - width as u32, rh - height as u32);
    let (x, y) = match view.corner {
        None => (x / 2, y / 2),
        Some((column, row)) => (x * u32::from(column), y * u32::from(row)),
    };
    let part = image::imageops::crop_imm(&resized, x, y, width as u32, height as u32).to_image();
    if view.mirrored { image::imageops::flip_horizontal(&part) } else { part }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(dir: &Path) -> std::path::PathBuf {
        let path = dir.join("half.png");
        // Left half red, right half blue, 64 x 32.
        let image = image::RgbImage::from_fn(64, 32, |x, _| {
            image::Rgb(if x < 32 { [255, 0, 0] } else { [0, 0, 255] })
        });
        image.save(&path).unwrap();
        path
    }

    #[test]
    fn layouts_and_normalisations_agree() {
        let dir = tempfile::tempdir().unwrap();
        let path = picture(dir.path());
        let nchw = load(&path, "x", &TensorType::f32([1, 3, 8, 8]), Normalize::Unit).unwrap();
        let nhwc = load(&path, "x", &TensorType::f32([1, 8, 8, 3]), Normalize::Unit).unwrap();
        let (a, b) = (nchw.as_slice::<f32>().unwrap(), nhwc.as_slice::<f32>().unwrap());
        for (y, x, c) in [(0, 0, 0), (3, 1, 2), (7, 7, 2), (4, 7, 0)] {
            assert_eq!(a[c * 64 + y * 8 + x], b[(y * 8 + x) * 3 + c]);
        }
        assert_eq!((a[0], a[2 * 64 + 7]), (1.0, 1.0), "red left, blue right");
        let caffe = load(&path, "x", &TensorType::f32([1, 3, 8, 8]), Normalize::Caffe).unwrap();
        assert_eq!(caffe.as_slice::<f32>().unwrap()[2 * 64], 255.0 - 123.0, "red is last in BGR");
    }

    #[test]
    fn views_differ_and_mirror() {
        let dir = tempfile::tempdir().unwrap();
        let path = picture(dir.path());
        assert_eq!(
            in_folder(dir.path(), is_image, ".jpg or .png").unwrap(),
            std::slice::from_ref(&path)
        );
        let ty = TensorType::f32([1, 3, 8, 8]);
        let red = |view| {
            let tensor = load_view(&path, "x", &ty, Normalize::Unit, view).unwrap();
            let values = tensor.as_slice::<f32>().unwrap();
            (values[0], values[7])
        };
        let views: Vec<View> = View::all().collect();
        assert_eq!((views.len(), views[0]), (10, View::default()));
        assert_eq!(red(views[0]), (1.0, 0.0));
        assert_eq!(red(views[1]), (0.0, 1.0), "mirrored");
        assert_eq!(red(views[2]), (1.0, 1.0), "the left of a wide picture");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = picture(dir.path());
        let e = load(&path, "ids", &TensorType::f32([1, 128]), Normalize::Unit).unwrap_err();
        assert!(e.text.contains("'ids'") && e.text.contains(".npy"), "{e}");
        std::fs::write(dir.path().join("bad.png"), b"not a png").unwrap();
        let ty = TensorType::f32([1, 3, 8, 8]);
        assert!(load(&dir.path().join("bad.png"), "x", &ty, Normalize::Unit).is_err());
    }
}
