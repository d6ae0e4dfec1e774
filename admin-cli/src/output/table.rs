//! Tables for people: a header, two spaces between columns, numbers to the right, no lines.

use std::io::{self, IsTerminal as _};

use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, presets};

use super::{Output, human};

/// Below this many columns, cells broken into syllables read worse than lines that the terminal wraps.
const WIDTH_MIN: u16 = 40;

pub(crate) struct Table {
    inner: comfy_table::Table,
    color: bool,
}

/// What a cell says about the thing it describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Watch,
    Bad,
    Plain,
}

pub(crate) fn left(text: impl AsRef<str>) -> Cell {
    Cell::new(human::line(text.as_ref()))
}

pub(crate) fn right(text: impl AsRef<str>) -> Cell {
    Cell::new(human::line(text.as_ref())).set_alignment(CellAlignment::Right)
}

pub(crate) fn toned(out: &Output, text: impl AsRef<str>, tone: Tone) -> Cell {
    let cell = left(text);
    match tone {
        _ if !out.color() => cell,
        Tone::Good => cell.fg(Color::Green),
        Tone::Watch => cell.fg(Color::Yellow),
        Tone::Bad => cell.fg(Color::Red),
        Tone::Plain => cell,
    }
}

impl Table {
    /// Header cells made with [`right`] set their column's alignment by example only: give the rows the same.
    pub(crate) fn new(out: &Output, header: Vec<Cell>) -> Self {
        let mut table = Self::plain(out);
        let color = table.color;
        table
            .inner
            .set_header(header.into_iter().map(|cell| if color { cell.add_attribute(Attribute::Bold) } else { cell }).collect::<Vec<_>>());
        table
    }

    /// Without a header: names on the left, values on the right.
    pub(crate) fn plain(out: &Output) -> Self {
        let mut inner = comfy_table::Table::new();
        inner.load_style(presets::NOTHING);
        // Only a terminal has a width to keep to; a pipe gets whole lines, and so does a terminal that does not say how wide it is.
        let narrow = io::stdout().is_terminal() && inner.width().is_some_and(|width| width >= WIDTH_MIN);
        inner.set_content_arrangement(if narrow { ContentArrangement::Dynamic } else { ContentArrangement::Disabled });
        Self { inner, color: out.color() }
    }

    pub(crate) fn row(&mut self, cells: Vec<Cell>) -> &mut Self {
        self.inner.add_row(cells);
        self
    }

    pub(crate) fn fact(&mut self, name: &str, value: impl AsRef<str>) -> &mut Self {
        self.row(vec![left(name), left(value)])
    }

    pub(crate) fn render(mut self) -> String {
        for column in self.inner.column_iter_mut() {
            column.set_padding((0, 2));
        }
        self.inner.trim_fmt()
    }
}
