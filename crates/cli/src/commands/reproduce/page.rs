//! The tables as a page, with speed-ups and energies as bars.

use std::fmt::Write;

use sparoa::Policy;

use super::{
    document::{Document, TargetRows},
    rows::PolicyRow,
    text::summary_rows,
};
use crate::{
    page::{self, escape},
    table::ms,
};

/// Of a chart, in user units.
const WIDTH: f64 = 1040.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 48.0;
const BOTTOM: f64 = 52.0;
const TOP: f64 = 16.0;

/// Colours of the bars, in the policies' order.
const STYLE: &str = "
:root { --c0: #8b949e; --c1: #57606a; --c2: #b06a00; --c3: #d4a72c; --c4: #2da44e; --c5: #0d7a8f;
  --c6: #7a4dd8; --c7: #bf3989; --c8: #1f6feb; }
@media (prefers-color-scheme: dark) { :root { --c0: #6e7681; --c1: #b1bac4; --c2: #f0a742;
  --c3: #e3c565; --c4: #56d364; --c5: #45c4d6; --c6: #b79bff; --c7: #f778ba; --c8: #6cb0ff; } }
.c0 { fill: var(--c0); } .c1 { fill: var(--c1); } .c2 { fill: var(--c2); } .c3 { fill: var(--c3); }
.c4 { fill: var(--c4); } .c5 { fill: var(--c5); } .c6 { fill: var(--c6); } .c7 { fill: var(--c7); }
.c8 { fill: var(--c8); }
figure { margin: 1.5rem 0; } figcaption, caption { color: var(--dim); text-align: left;
  font-size: 13px; padding-bottom: .25rem; }
table { margin: 1rem 0; }
th:first-child, td:first-child { text-align: left; }
";

/// Policies that a chart shows. What comes after them, the ablations, is in the tables.
const COLOURS: usize = 9;

/// The page.
pub fn page(d: &Document) -> String {
    let mut body = format!(
        "<p>Simulated: every figure comes from published figures of the boards, none was \
         measured. Means over {} states of the hardware (seed {}): load of others on CPU and GPU, \
         power mode, temperature. All but sac are planned once, for the idle board; sac: \
         {}.</p>\n",
        d.states,
        d.seed,
        escape(&d.sac)
    );
    body.push_str(&summary(d));
    for t in &d.targets {
        let name = escape(&t.title);
        body.push_str(&chart(
            t,
            &format!("{name}: speed-up over the CPU alone (simulated)"),
            |row, cpu| Some(cpu.latency_ms / row.latency_ms),
        ));
        body.push_str(&chart(
            t,
            &format!("{name}: energy of an inference, the CPU alone = 1 (simulated)"),
            |row, cpu| Some(row.energy_j? / cpu.energy_j?),
        ));
        body.push_str(&table(t, "ms per inference (simulated)", |r| Some(ms(r.latency_ms))));
        body.push_str(&table(t, "ms if every policy plans anew in every state (simulated)", |r| {
            Some(ms(r.replanned_latency_ms))
        }));
        body.push_str(&table(t, "J per inference (simulated)", |r| {
            r.energy_j.map(|j| format!("{j:.4}"))
        }));
        body.push_str(&table(
            t,
            "median &micro;s of a decision on the computer that simulated; the rest is simulated",
            |r| Some(format!("{:.0}", r.decision_us)),
        ));
    }
    for t in &d.pruned {
        body.push_str(&table(t, "ms, 90 % of the weights zero (simulated)", |r| {
            Some(ms(r.latency_ms))
        }));
    }
    page::page("SparOA: the paper's tables, simulated", STYLE, &body)
}

/// Models as groups of bars, a bar per policy; `value` of a policy's row and the CPU's.
fn chart(
    t: &TargetRows,
    caption: &str,
    value: impl Fn(&PolicyRow, &PolicyRow) -> Option<f64>,
) -> String {
    let groups: Vec<(&str, Vec<(&str, f64)>)> = t
        .models
        .iter()
        .filter_map(|m| {
            let cpu = m.policies.get(Policy::Cpu)?;
            let bars = m.policies.0.iter().take(COLOURS);
            let bars = bars.filter_map(|(name, row)| Some((name.as_str(), value(row, cpu)?)));
            Some((m.model.as_str(), bars.collect()))
        })
        .collect();
    let most = groups.iter().flat_map(|(_, bars)| bars).map(|(_, v)| *v).fold(0.0, f64::max);
    if most <= 0.0 {
        return String::new();
    }
    let step = tick(most);
    let high = (most / step).ceil() * step;
    // As many as a line's value has.
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    let base = HEIGHT - BOTTOM;
    let y = |v: f64| base - v / high * (base - TOP);
    let mut svg = format!(
        "<figure><figcaption>{caption}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         role=\"img\" aria-label=\"{caption}\">\n"
    );
    for i in 0..=(high / step).round() as u32 {
        let v = f64::from(i) * step;
        let at = y(v);
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{v:.decimals$}</text>",
            LEFT - 6.0,
            at + 4.0
        );
    }
    let group = (WIDTH - LEFT) / groups.len() as f64;
    for (g, (model, bars)) in groups.iter().enumerate() {
        let from = LEFT + group * g as f64;
        let wide = group * 0.86 / bars.len().max(1) as f64;
        for (b, (policy, v)) in bars.iter().enumerate() {
            let (x, top) = (from + group * 0.07 + wide * b as f64, y(*v));
            let _ = writeln!(
                svg,
                "<rect class=\"c{}\" x=\"{x:.1}\" y=\"{top:.1}\" width=\"{:.1}\" \
                 height=\"{:.1}\"><title>{model}, {policy}: {v:.2} (simulated)</title></rect>",
                b,
                wide * 0.9,
                (base - top).max(0.0),
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            from + group / 2.0,
            base + 18.0,
            escape(model)
        );
    }
    let names: Vec<&str> =
        groups.first().map_or(Vec::new(), |(_, b)| b.iter().map(|b| b.0).collect());
    let key = (WIDTH - LEFT) / names.len().max(1) as f64;
    for (i, name) in names.iter().enumerate() {
        let x = LEFT + key * i as f64;
        let _ = writeln!(
            svg,
            "<rect class=\"c{}\" x=\"{x:.1}\" y=\"{}\" width=\"10\" height=\"10\"/><text \
             x=\"{:.1}\" y=\"{}\">{}</text>",
            i,
            HEIGHT - 18.0,
            x + 14.0,
            HEIGHT - 9.0,
            escape(name)
        );
    }
    svg.push_str("</svg></figure>\n");
    svg
}

/// A round distance of lines, of which about five make `most`.
fn tick(most: f64) -> f64 {
    let rough = most / 5.0;
    let decade = 10f64.powf(rough.log10().floor());
    let round = [1.0, 2.0, 5.0, 10.0].into_iter().find(|r| r * decade >= rough);
    round.unwrap_or(10.0) * decade
}

/// Models by policies.
fn table(t: &TargetRows, caption: &str, cell: impl Fn(&PolicyRow) -> Option<String>) -> String {
    let Some(first) = t.models.first() else { return String::new() };
    let mut html = format!(
        "<div class=\"wide\"><table><caption>{}: {caption}</caption><thead><tr><th>model",
        escape(&t.target)
    );
    for (name, _) in &first.policies.0 {
        let _ = write!(html, "<th>{}", escape(name));
    }
    html.push_str("</thead>\n");
    for m in &t.models {
        let _ = write!(html, "<tr><td>{}", escape(&m.model));
        for (_, row) in &m.policies.0 {
            let _ = write!(html, "<td>{}", cell(row).unwrap_or("-".to_owned()));
        }
        html.push('\n');
    }
    html.push_str("</table></div>\n");
    html
}

fn summary(d: &Document) -> String {
    let mut html = String::from(
        "<div class=\"wide\"><table><caption>Summary (simulated) beside the paper's \
         figures</caption><thead><tr><th>figure",
    );
    for s in &d.summary.settings {
        let _ = write!(html, "<th>{}", s.setting.name());
    }
    html.push_str("<th>paper</thead>\n");
    for row in summary_rows(d) {
        html.push_str("<tr>");
        for cell in row {
            let _ = write!(html, "<td>{}", escape(&cell));
        }
        html.push('\n');
    }
    html.push_str("</table></div>\n");
    for s in &d.summary.settings {
        let _ = writeln!(html, "<p>{}: {}</p>", s.setting.name(), escape(s.says));
        for note in &s.assumed {
            let _ = writeln!(html, "<p>{}</p>", escape(note));
        }
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_at_round_numbers() {
        assert_eq!(tick(8.3), 2.0);
        assert_eq!(tick(1.0), 0.2);
        assert_eq!(tick(47.0), 10.0);
    }
}
