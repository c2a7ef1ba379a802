//! A report as Markdown, with the plots and pictures as links to their files. What comes from files
//! (errors, devices, commands) reads as it is, and is no markup.

use super::content::{Block, Section, Table};
use crate::text::{clean, longest_fence, markdown, markdown_code};

/// `report.md`: the report as Markdown.
pub(super) fn text(title: &str, sections: &[Section]) -> String {
    let mut text = format!("# {title}\n");
    for section in sections {
        text += &format!("\n## {}\n", section.title);
        for block in &section.blocks {
            text += "\n";
            text += &match block {
                Block::Text(text) => format!("{}\n", paragraph(text)),
                Block::Note(text) => format!("> **Note.** {}\n", paragraph(text)),
                Block::Table(table) => self::table(table),
                Block::Figure(figure) => format!(
                    "![{0}](plots/{0}.png)\n\n{1}\n",
                    figure.name,
                    paragraph(&figure.caption)
                ),
                Block::Picture(caption, path, _) => {
                    format!("![{0}]({path})\n\n{0}\n", paragraph(caption))
                }
                Block::Code(lines) => {
                    let fence = "`".repeat(3.max(longest_fence(lines) + 1));
                    format!("{fence}sh\n{}\n{fence}\n", clean(lines))
                }
            };
        }
    }
    text
}

/// A paragraph, with code between backticks, as on the page.
fn paragraph(text: &str) -> String {
    let parts: Vec<&str> = text.split('`').collect();
    // An even number of parts: one backtick has no fellow.
    let pairs = if parts.len().is_multiple_of(2) { parts.len() - 2 } else { parts.len() };
    let part = |(i, part): (usize, &&str)| match i {
        i if i > pairs => format!("\\`{}", markdown(part)),
        i if i % 2 == 1 => markdown_code(part),
        _ => markdown(part),
    };
    parts.iter().enumerate().map(part).collect()
}

fn table(table: &Table) -> String {
    // A table is cut into cells before anything else, in code too.
    let cell = |text: &String| paragraph(text).replace("\\|", "|").replace('|', "\\|");
    let row = |cells: &[String]| {
        format!("| {} |\n", cells.iter().map(cell).collect::<Vec<_>>().join(" | "))
    };
    let rule: Vec<String> = (0..table.head.len())
        .map(|i| if i < table.words { "---".into() } else { "---:".into() })
        .collect();
    let rows: String = table.rows.iter().map(|r| row(r)).collect();
    row(&table.head) + &row(&rule) + &rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_no_markup() {
        assert_eq!(paragraph("see `a|b` and <c>"), r"see `a|b` and \<c\>");
        assert_eq!(paragraph("`a` and `b"), r"`a` and \`b");
        assert_eq!(paragraph("a `b"), r"a \`b");
        let table = Table {
            head: vec!["x".into()],
            rows: vec![vec!["failed: `a|b` | <c>\nd\u{1b}[2J".into()]],
            words: 1,
        };
        assert_eq!(
            self::table(&table).lines().last(),
            Some(r"| failed: `a\|b` \| \<c\> d\\u{1b}\[2J |")
        );
        let section = Section { title: "t", blocks: vec![Block::Code("a\n```\n# b\u{7}".into())] };
        assert!(text("r", &[section]).ends_with("````sh\na\n```\n# b\\u{7}\n````\n"));
    }
}
