//! Pictures of what was measured: SVG, by plotters.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use plotters::chart::MeshStyle;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use torchless::format::AtomicFile;

/// What is drawn on.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Colours that the colour-blind tell apart (Okabe and Ito 2008, <https://jfly.uni-koeln.de/color/>).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];
/// Text.
pub const INK: RGBColor = RGBColor(40, 40, 40);
/// What is less important.
pub const GREY: RGBColor = RGBColor(120, 120, 120);
/// Lines behind everything.
pub const PALE: RGBColor = RGBColor(225, 225, 225);

/// The colour of the i-th series.
#[expect(clippy::indexing_slicing, reason = "a remainder by the length")]
pub fn colour(i: usize) -> RGBColor {
    COLOURS[i % COLOURS.len()]
}

/// Checks the name of a picture, on the command line.
///
/// # Errors
/// If it promises another format.
pub fn path(text: &str) -> Result<PathBuf, String> {
    match Path::new(text).extension() {
        Some(ending) if ending.eq_ignore_ascii_case("svg") => Ok(text.into()),
        _ => Err("the picture is SVG: give a name that ends in .svg".to_owned()),
    }
}

/// A file that will be a picture. It is opened before anything is measured, so that a name that will not do is no surprise
/// at the end.
pub struct Picture(AtomicFile);

impl Picture {
    /// Starts a picture, which appears under its name when it is complete. `inputs` are the files that this run reads.
    ///
    /// # Errors
    /// If there can be no file of that name, or it is one of `inputs`.
    pub fn create(path: &Path, inputs: &[PathBuf]) -> Result<Self, torchless::Error> {
        Ok(Self(AtomicFile::create(path, inputs)?))
    }

    /// Draws it, `size` pixels wide and high.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(
        mut self,
        size: (u32, u32),
        draw: impl FnOnce(&Area) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let svg = svg(size, draw)?;
        let written = self.0.file().write_all(svg.as_bytes());
        written.with_context(|| self.0.destination().display().to_string())?;
        Ok(self.0.commit()?)
    }
}

/// A picture as text.
pub fn svg(size: (u32, u32), draw: impl FnOnce(&Area) -> anyhow::Result<()>) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE)?;
        draw(&area)?;
        area.present()?;
    }
    Ok(svg)
}

/// Text `pixels` high.
pub fn font(pixels: f64, colour: RGBColor) -> TextStyle<'static> {
    // SVG's font size is what plotters is given less its line spacing.
    ("sans-serif", pixels * 1.24).into_font().color(&colour)
}

/// Writes a line whose left end, or right end, is at `at`; `at` is half-way up its letters.
pub fn write(area: &Area, text: &str, at: (i32, i32), style: TextStyle, end: HPos) -> anyhow::Result<()> {
    let style = style.pos(Pos::new(end, VPos::Center));
    area.draw(&Text::new(text.to_owned(), at, style))?;
    Ok(())
}

/// Begins a chart that has a title above it and two axes with their descriptions.
pub fn chart<'a, 'b>(area: &'a Area<'b>) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut chart = ChartBuilder::on(area);
    chart.margin(8).margin_top(34).margin_right(20).x_label_area_size(40).y_label_area_size(62);
    chart
}

/// Gives a chart's axes, and the lines behind it, the colours and letters that all charts have.
pub fn plain<'s, 'a, 'b, X: Ranged, Y: Ranged, DB: DrawingBackend>(
    mesh: &'s mut MeshStyle<'a, 'b, X, Y, DB>,
) -> &'s mut MeshStyle<'a, 'b, X, Y, DB> {
    mesh.max_light_lines(1).bold_line_style(PALE).axis_style(GREY).label_style(font(12.0, INK))
}

/// What is above all pictures.
pub fn header(area: &Area, title: &str, subtitle: &str) -> anyhow::Result<()> {
    let bold = ("sans-serif", 17.0 * 1.24, FontStyle::Bold).into_font().color(&INK);
    write(area, title, (20, 24), bold, HPos::Left)?;
    write(area, subtitle, (20, 46), font(12.0, GREY), HPos::Left)
}

/// Pixels that [`header`] takes.
pub const HEADER: u32 = 62;

/// A round number that `x` does not exceed.
pub fn round_up(x: f64) -> f64 {
    let power = 10f64.powf(x.max(f64::MIN_POSITIVE).log10().floor());
    let steps = [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
    steps.into_iter().map(|step| step * power).find(|&round| round >= x).unwrap_or(x)
}

/// A number for an axis or beside a point, with no more digits than it needs.
pub fn number(x: f64) -> String {
    match x.abs() {
        100.0.. => format!("{x:.0}"),
        10.0.. => format!("{x:.1}"),
        _ => format!("{x:.2}"),
    }
}
