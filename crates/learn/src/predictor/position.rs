//! Where an operator is in its sequence, as the encoder sees it.

/// The sinusoidal encoding of `rows` positions, [rows, width]: pairs of sine and cosine with wave
/// lengths from 2 pi to 10000 * 2 pi (Vaswani et al. 2017, section 3.5). Computed in double precision.
pub fn position_encoding(rows: usize, width: usize) -> Vec<f32> {
    let rates: Vec<f64> =
        (0..width).map(|c| 10_000f64.powf(-((c - c % 2) as f64) / width as f64)).collect();
    let mut encoding = Vec::with_capacity(rows * width);
    for row in 0..rows {
        for (c, rate) in rates.iter().enumerate() {
            let angle = row as f64 * rate;
            encoding.push(if c % 2 == 0 { angle.sin() } else { angle.cos() } as f32);
        }
    }
    encoding
}
