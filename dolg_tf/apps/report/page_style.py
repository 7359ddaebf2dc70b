"""The style sheet of the report's page."""

# Pictures are drawn on white; in the dark they stay light cards, dimmed.
STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1d1d1f; --quiet: #5a5a60;
  --line: #d8d8dc; --soft: #f4f4f6; --link: #0b5cad; --note: #fff6df; --note-line: #c58a00; }
@media (prefers-color-scheme: dark) {
  :root { --page: #141416; --ink: #e8e8ea; --quiet: #a5a5ad; --line: #3a3a40; --soft: #1f1f23;
    --link: #7db8f5; --note: #2c2512; --note-line: #d9a520; }
  figure img { filter: brightness(.88); }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.3rem; line-height: 1.25; margin: 2.5rem 0 .5rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .25rem; }
h2 a, h3 a { color: inherit; text-decoration: none; }
h2 a:hover, h3 a:hover { text-decoration: underline; }
a { color: var(--link); }
p { max-width: 46rem; margin: .5rem 0; }
.lead { color: var(--quiet); }
nav ul { display: flex; flex-wrap: wrap; gap: .5rem; list-style: none; margin: 1rem 0; padding: 0; }
nav a { display: block; padding: .4rem .75rem; background: var(--soft); border-radius: 1rem;
  border: 1px solid var(--line); text-decoration: none; font-size: .95rem; }
.row { display: grid; gap: 1rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; min-width: 0; }
figure.wide { margin: 1rem 0; }
figure img { display: block; width: 100%; height: auto; background: #ffffff;
  border: 1px solid var(--line); border-radius: .5rem; padding: .4rem; }
figure.wide img { width: auto; max-width: 100%; min-width: 26rem; }
figure.wide img.broad { min-width: 46rem; }
figcaption { color: var(--quiet); font-size: .9rem; margin: .4rem 0 0; max-width: 46rem; }
.scroll { overflow-x: auto; max-width: 100%; border-radius: .5rem; }
.scroll:focus-visible, a:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .95rem; margin: .75rem 0;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: left; color: var(--quiet); font-size: .9rem; padding: .25rem 0; }
th, td { text-align: left; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
thead th { color: var(--quiet); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 600; }
table.numbers tbody th { min-width: 8rem; }
table.numbers td, table.numbers thead th:not(:first-child) { text-align: right;
  white-space: nowrap; padding: .35rem .5rem; }
.note { background: var(--note); border-left: .25rem solid var(--note-line); padding: .5rem .75rem;
  border-radius: .25rem; }
code { white-space: nowrap; font-size: .95em; }
@media print { nav { display: none; } .scroll { overflow: visible; } }
"""
