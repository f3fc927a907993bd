//! Learning curves as SVG.

use plotters::prelude::*;

use super::TrainError;

/// A named line of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// (x, y) by rising x; points that are not finite are left out.
    pub points: Vec<(f64, f64)>,
}

/// Size of a chart in pixels.
const SIZE: (u32, u32) = (800, 480);
/// Colours that colour-blind readers can tell apart (Okabe and Ito 2008).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

/// A chart of several series over one axis, as the text of an SVG file.
///
/// # Errors
/// [`TrainError::Curve`].
pub fn svg(
    title: &str,
    x_label: &str,
    y_label: &str,
    series: &[Series],
) -> Result<String, TrainError> {
    let failed = |e: &dyn std::fmt::Display| TrainError::Curve(e.to_string());
    let finite = |p: &&(f64, f64)| p.0.is_finite() && p.1.is_finite();
    let points = || series.iter().flat_map(|s| s.points.iter().filter(finite));
    let x = bounds(points().map(|p| p.0));
    let y = bounds(points().map(|p| p.1));
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(|e| failed(&e))?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(64)
            .build_cartesian_2d(x.0..x.1, y.0..y.1)
            .map_err(|e| failed(&e))?;
        chart
            .configure_mesh()
            .x_desc(x_label)
            .y_desc(y_label)
            .light_line_style(WHITE)
            .draw()
            .map_err(|e| failed(&e))?;
        for (i, s) in series.iter().enumerate() {
            let style = COLOURS[i % COLOURS.len()].stroke_width(2);
            let line = s.points.iter().filter(finite);
            let line = line.map(|p| (p.0.clamp(x.0, x.1), p.1.clamp(y.0, y.1)));
            chart
                .draw_series(LineSeries::new(line, style))
                .map_err(|e| failed(&e))?
                .label(&s.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        }
        chart
            .configure_series_labels()
            .border_style(BLACK.mix(0.2))
            .background_style(WHITE.mix(0.8))
            .draw()
            .map_err(|e| failed(&e))?;
        root.present().map_err(|e| failed(&e))?;
    }
    Ok(text)
}

/// Least and largest, a little apart if they are the same.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return (0.0, 1.0);
    }
    // The limits keep the axis' own arithmetic finite.
    let (low, high) = (low.max(-1e100), high.min(1e100));
    let margin = ((high - low) * 0.05).max(low.abs() * 1e-6).max(1e-9);
    (low - margin, high + margin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_names_its_series() {
        let line = |name: &str, points: &[(f64, f64)]| Series {
            name: name.to_owned(),
            points: points.to_vec(),
        };
        let series = [
            line("return", &[(0.0, 1.0), (100.0, 2.0), (200.0, f64::NAN)]),
            line("constant", &[(0.0, 1.5), (200.0, 1.5)]),
        ];
        let text = svg("SAC", "updates", "return", &series).unwrap();
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"));
        for word in ["SAC", "updates", "return", "constant"] {
            assert!(text.contains(word), "{word}");
        }
        assert!(!text.contains("NaN"));
        assert!(text.matches("<polyline").count() >= 2);
        // Nothing to draw, one point and huge values are no failure.
        for points in [&[][..], &[(1.0, 1.0)], &[(0.0, f64::MAX), (1.0, f64::MIN)]] {
            assert!(svg("t", "x", "y", &[line("a", points)]).is_ok());
        }
    }
}
