//! What every page that this program writes has: one file, light and dark.

/// Style of all pages; those of one kind add their own.
const STYLE: &str = "
:root { color-scheme: light dark; --bg: #ffffff; --fg: #1c2024; --dim: #6b7280; --line: #d7dbe0; }
@media (prefers-color-scheme: dark) { :root { --bg: #14171a; --fg: #e6e8ea; --dim: #9aa4ae;
  --line: #32383e; } }
body { background: var(--bg); color: var(--fg); font: 15px/1.5 system-ui, sans-serif;
  max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.35rem; margin: 0 0 .25rem; }
p { margin: .25rem 0; color: var(--dim); }
svg { width: 100%; height: auto; margin: 1rem 0; }
svg text { fill: var(--dim); font: 12px system-ui, sans-serif; }
svg .axis { stroke: var(--line); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; white-space: nowrap; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th { color: var(--dim); font-weight: 600; position: sticky; top: 0; background: var(--bg); }
";

/// A page of this title with a style and a body of its own.
pub fn page(title: &str, style: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width\">\n<title>{title}</title>\n<style>{STYLE}{style}</style>\n\
         <h1>{title}</h1>\n{body}</html>\n"
    )
}

/// Text as HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
