//! The operators as a page: the four quadrants as a scatter plot, and the table.

use std::fmt::Write;

use super::{Document, Row, percent, verdict};
use crate::{
    page::{self, escape},
    table::scaled,
};

/// Of the plot, in user units.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 48.0;
const TOP: f64 = 16.0;
const RIGHT: f64 = 28.0;

const STYLE: &str = "
:root { --sparse-light: #0d7a5f; --sparse-intense: #7a4dd8; --dense-light: #b06a00;
  --dense-intense: #1f6feb; }
@media (prefers-color-scheme: dark) { :root { --sparse-light: #45c9a4; --sparse-intense: #b79bff;
  --dense-light: #f0a742; --dense-intense: #6cb0ff; } }
svg .threshold { stroke: var(--dim); stroke-dasharray: 5 4; }
svg circle { fill-opacity: .55; stroke-width: 1.2; }
.sparse-light { color: var(--sparse-light); } .sparse-intense { color: var(--sparse-intense); }
.dense-light { color: var(--dense-light); } .dense-intense { color: var(--dense-intense); }
circle, .key { fill: currentColor; stroke: currentColor; }
th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left; }
";

/// The page.
pub(super) fn page(d: &Document) -> String {
    let mut body = format!(
        "<p>{} &rarr; {}</p>\n<p>{} operators, {}, {} of weights</p>\n",
        escape(&d.inputs.join(", ")),
        escape(&d.outputs.join(", ")),
        d.nodes.len(),
        scaled(d.flops as f64, "FLOP"),
        scaled(d.weight_bytes as f64, "B"),
    );
    for line in &d.findings {
        // Writing to a string cannot fail.
        let _ = writeln!(body, "<p>{}</p>", escape(line));
    }
    body.push_str(&plot(d));
    body.push_str(&table(d));
    page::page(&d.model, STYLE, &body)
}

/// Sparsity against intensity, a circle per operator, its area the operator's work.
fn plot(d: &Document) -> String {
    let rows: Vec<&Row> = d.nodes.iter().filter(|n| n.intensity > 0.0).collect();
    let decades = |i: f64| i.log10();
    let low = rows.iter().map(|n| decades(n.intensity)).fold(-1.0, f64::min).floor();
    let high = rows.iter().map(|n| decades(n.intensity)).fold(2.0, f64::max).ceil();
    let x = |sparsity: f64| LEFT + sparsity * (WIDTH - LEFT - RIGHT);
    let y = |intensity: f64| {
        let share = (decades(intensity) - low) / (high - low);
        HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)
    };
    let most = rows.iter().map(|n| n.flops).max().unwrap_or(1).max(1) as f64;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"Sparsity and intensity of \
         the operators\">\n"
    );
    let (x0, x1, y0, y1) = (x(0.0), x(1.0), HEIGHT - BOTTOM, TOP);
    for tick in 0..=10 {
        let at = x(f64::from(tick) / 10.0);
        let _ = write!(
            svg,
            "<line class=\"axis\" x1=\"{at}\" x2=\"{at}\" y1=\"{y0}\" y2=\"{y1}\"/><text \
             x=\"{at}\" y=\"{}\" text-anchor=\"middle\">{} %</text>",
            y0 + 18.0,
            tick * 10
        );
    }
    for decade in low as i32..=high as i32 {
        let value = 10f64.powi(decade);
        let at = y(value);
        let _ = write!(
            svg,
            "<line class=\"axis\" x1=\"{x0}\" x2=\"{x1}\" y1=\"{at}\" y2=\"{at}\"/><text x=\"{}\" \
             y=\"{}\" text-anchor=\"end\">{value}</text>",
            x0 - 8.0,
            at + 4.0
        );
    }
    let _ = write!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">zeros that a kernel could skip</text><text \
         transform=\"translate(14 {}) rotate(-90)\" text-anchor=\"middle\">FLOP per byte</text>",
        (x0 + x1) / 2.0,
        HEIGHT - 10.0,
        (y0 + y1) / 2.0
    );
    let (tx, ty) = (x(d.thresholds.sparsity), y(d.thresholds.intensity));
    let _ = writeln!(
        svg,
        "<line class=\"threshold\" x1=\"{tx}\" x2=\"{tx}\" y1=\"{y0}\" y2=\"{y1}\"/><line \
         class=\"threshold\" x1=\"{x0}\" x2=\"{x1}\" y1=\"{ty}\" y2=\"{ty}\"/>"
    );
    for n in rows {
        let radius = 3.0 + 13.0 * (n.flops as f64 / most).sqrt();
        let _ = writeln!(
            svg,
            "<circle class=\"{}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius:.1}\"><title>{} ({}): {}, \
             {:.1} FLOP/byte, {} zeros</title></circle>",
            class(n),
            x(n.sparsity),
            y(n.intensity),
            escape(&n.name),
            n.op_type,
            scaled(n.flops as f64, "FLOP"),
            n.intensity,
            percent(Some(n.sparsity)),
        );
    }
    // Over the circles.
    for (class, at_x, at_y, anchor) in [
        ("dense-intense", x0 + 8.0, y1 + 16.0, "start"),
        ("sparse-intense", x1 - 8.0, y1 + 16.0, "end"),
        ("dense-light", x0 + 8.0, y0 - 8.0, "start"),
        ("sparse-light", x1 - 8.0, y0 - 8.0, "end"),
    ] {
        let label = class.replace('-', ", ");
        let _ = writeln!(
            svg,
            "<text x=\"{at_x}\" y=\"{at_y}\" text-anchor=\"{anchor}\"><tspan class=\"key \
             {class}\" stroke=\"none\">{label}</tspan></text>"
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn class(n: &Row) -> String {
    n.quadrant.to_string().replace(", ", "-")
}

fn table(d: &Document) -> String {
    let mut html = String::from(
        "<div class=\"wide\"><table><thead><tr><th>node<th>operator<th>output<th>FLOPs<th>bytes<th>\
         FLOP/byte<th>weights=0<th>2:4<th>inputs=0<th>by channel<th>quadrant<th>sparse \
         kernel</thead>\n",
    );
    for n in &d.nodes {
        let channels = n.activation_zeros.and_then(|z| z.channels);
        let _ = writeln!(
            html,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{:.1}<td>{}<td>{}<td>{}<td>{}<td class=\"{}\">\
             {}<td>{}",
            escape(&n.name),
            n.op_type,
            escape(&n.outputs.join(", ")),
            scaled(n.flops as f64, ""),
            scaled(n.bytes as f64, "B"),
            n.intensity,
            percent(n.weight_sparsity),
            percent(n.weight_zeros.map(|z| z.two_of_four)),
            percent(n.activation_sparsity),
            channels.map_or_else(
                || "-".to_owned(),
                |[least, _, most]| format!("{} to {}", percent(Some(least)), percent(Some(most)))
            ),
            class(n),
            n.quadrant,
            escape(&verdict(n)),
        );
    }
    html.push_str("</table></div>\n");
    html
}
