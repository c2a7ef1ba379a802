//! A report as one page: plots inline, pictures as data, no script, nothing fetched.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart::{COLOURS, STYLE};
use super::content::{Block, Section, Table};
use super::data_uri;
use crate::reproduce::findings::Verdict;

/// A report as one HTML page that fetches nothing.
pub fn page(title: &str, sections: &[Section]) -> String {
    let colours = |dark: bool| {
        COLOURS
            .map(|(name, light, night)| format!("{name}:{}", if dark { night } else { light }))
            .join(";")
    };
    let style = format!(
        ":root{{color-scheme:light dark;{}}}\n@media \
         (prefers-color-scheme:dark){{:root{{{}}}}}\n{}{}",
        colours(false),
        colours(true),
        include_str!("page.css"),
        STYLE.trim_start()
    );
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width,initial-scale=1";
                title { (title) }
                link rel="icon" href="data:,";
                style { (PreEscaped(style)) }
            }
            body {
                main {
                    h1 { (title) }
                    p class="about" { "Augmentation-augmented variational autoencoders, reproduced \
                        by " code { "aavae" } }
                    @for section in sections {
                        section {
                            h2 { (section.title) }
                            @for block in &section.blocks { (self::block(block)) }
                        }
                    }
                }
            }
        }
    };
    page.into_string()
}

/// A paragraph, with `code` between backticks.
fn paragraph(text: &str) -> Markup {
    html! {
        @for (i, part) in text.split('`').enumerate() {
            @if i % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

fn block(block: &Block) -> Markup {
    match block {
        Block::Text(text) => html! { p { (paragraph(text)) } },
        Block::Note(text) => html! { p class="note" { (paragraph(text)) } },
        Block::Table(table) => self::table(table),
        Block::Figure(figure) => html! { figure { (figure.svg) figcaption { (figure.caption) } } },
        Block::Picture(caption, _, png) => {
            html! { figure { img alt=(caption) src=(data_uri(png)); figcaption { (caption) } } }
        }
        Block::Code(lines) => html! { pre { code { (lines) } } },
    }
}

/// The class of a cell, by what it says.
fn class(text: &str, number: bool) -> Option<&'static str> {
    match text {
        _ if number => Some("number"),
        _ if text == Verdict::Holds.text() => Some("holds"),
        _ if text == Verdict::Fails.text() => Some("fails"),
        _ if text == Verdict::Open.text() => Some("undecided"),
        _ if text.starts_with("failed: ") => Some("failed"),
        _ => None,
    }
}

fn table(table: &Table) -> Markup {
    html! {
        div class="wide" {
            table {
                thead {
                    tr {
                        @for (i, name) in table.head.iter().enumerate() {
                            th class=[(i >= table.words).then_some("number")] { (name) }
                        }
                    }
                }
                tbody {
                    @for row in &table.rows {
                        tr {
                            @for (i, cell) in row.iter().enumerate() {
                                td class=[class(cell, i >= table.words)] { (cell) }
                            }
                        }
                    }
                }
            }
        }
    }
}
