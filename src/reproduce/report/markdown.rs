//! A report as Markdown, with the plots and pictures as links to their files.

use super::content::{Block, Section, Table};

/// The file.
pub(super) fn text(title: &str, sections: &[Section]) -> String {
    let mut text = format!("# {title}\n");
    for section in sections {
        text += &format!("\n## {}\n", section.title);
        for block in &section.blocks {
            text += "\n";
            text += &match block {
                Block::Text(paragraph) => format!("{paragraph}\n"),
                Block::Note(paragraph) => format!("> **Note.** {paragraph}\n"),
                Block::Table(table) => self::table(table),
                Block::Figure(figure) => format!("![{0}](plots/{0}.png)\n\n{1}\n", figure.name, figure.caption),
                Block::Picture(caption, path, _) => format!("![{caption}]({path})\n\n{caption}\n"),
                Block::Code(lines) => format!("```sh\n{lines}\n```\n"),
            };
        }
    }
    text
}

fn table(table: &Table) -> String {
    let row = |cells: &[String]| {
        format!("| {} |\n", cells.iter().map(|c| c.replace('|', "\\|").replace('\n', " ")).collect::<Vec<_>>().join(" | "))
    };
    let rule: Vec<String> = (0..table.head.len()).map(|i| if i < table.words { "---".into() } else { "---:".into() }).collect();
    let rows: String = table.rows.iter().map(|r| row(r)).collect();
    row(&table.head) + &row(&rule) + &rows
}
