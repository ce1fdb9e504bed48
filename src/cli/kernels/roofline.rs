//! The kernels' speed over their arithmetic intensity, below the roofs that memory and arithmetic are (S. Williams,
//! A. Waterman, D. Patterson: Roofline, 2009).

use std::hint::black_box;
use std::ops::Range;
use std::time::Duration;

use plotters::element::DynElement;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;
use torchless::bench::bandwidth::read;

use super::measure::{Row, Timer};
use crate::cli::machine::cpu_name;
use crate::cli::plot::{Area, GREY, HEADER, INK, colour, font, header, number, plain, write};

/// Pixels wide and high.
pub const SIZE: (u32, u32) = (960, 600);
/// Pixels of it that explain the rest.
const LEGEND: u32 = 250;
/// More than caches hold.
const MEMORY: usize = 256 << 20;
/// What the first-level cache holds.
const CACHE: usize = 16 << 10;

/// Times that the roofs are measured, each for a moment.
const PASSES: usize = 3;

/// What one core reads here with a plain loop, in 10⁹ bytes a second.
#[derive(Default, Clone, Copy)]
pub struct Roofs {
    pub memory: f64,
    pub cache: f64,
}

impl Roofs {
    /// Measures them, in several passes of which the best counts: others use the memory too.
    pub fn measure() -> Self {
        let bytes = vec![1u8; MEMORY];
        let speed = |bytes: &[u8]| {
            let mut timer = Timer::default();
            while timer.wants_more(Duration::from_millis(200)) {
                timer.sample(|| _ = black_box(read(black_box(bytes))));
            }
            bytes.len() as f64 * 1e-9 / timer.fastest
        };
        let pass = |_| Self { memory: speed(&bytes), cache: speed(&bytes[..CACHE]) };
        (0..PASSES).map(pass).fold(Self::default(), Self::max)
    }

    /// The higher of each.
    pub fn max(self, other: Self) -> Self {
        Self { memory: self.memory.max(other.memory), cache: self.cache.max(other.cache) }
    }
}

/// What kind of kernel a point is.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Gemm,
    Gemv,
    Attention,
    Vector,
}

impl Kind {
    const ALL: [(Self, &str); 4] = [
        (Self::Gemm, "matrix × matrix (gemm)"),
        (Self::Gemv, "matrix × vector (gemv)"),
        (Self::Attention, "attention"),
        (Self::Vector, "vectors; an element counts 1"),
    ];

    fn of(row: &Row) -> Self {
        match row.kernel {
            name if name.starts_with("gemm") => Self::Gemm,
            name if name.starts_with("gemv") => Self::Gemv,
            name if name.starts_with("attn_scores") || name.starts_with("attn_accumulate") => Self::Attention,
            _ => Self::Vector,
        }
    }

    fn marker<'s, T: Clone + 'static>(
        self,
        at: T,
        colour: RGBColor,
    ) -> DynElement<'static, SVGBackend<'s>, T> {
        let style = colour.mix(0.8).filled();
        let line = ShapeStyle::from(colour).stroke_width(1);
        match self {
            Self::Gemm => Circle::new(at, 4, style).into_dyn(),
            Self::Gemv => TriangleMarker::new(at, 5, style).into_dyn(),
            Self::Attention => Circle::new(at, 4, line).into_dyn(),
            Self::Vector => Cross::new(at, 3, line).into_dyn(),
        }
    }
}

/// The best row of an instruction set.
struct Best<'r> {
    isa: &'static str,
    row: &'r Row,
    colour: RGBColor,
}

/// Draws rows, a point each.
pub fn draw(area: &Area, rows: &[Row], roofs: &Roofs) -> anyhow::Result<()> {
    let rows: Vec<_> = rows.iter().filter(|row| row.goperations_per_s > 0.0).collect();
    let best = best(&rows);
    // The plain loop is not what a cache can do at most: a kernel with wider registers reads more of it, and stands below its
    // own roof.
    let speed = |row: &&Row| row.goperations_per_s / row.operations_a_byte;
    let fastest = rows.iter().copied().max_by(|a, b| speed(a).total_cmp(&speed(b)));
    let fastest = fastest.filter(|row| speed(row) > roofs.cache);
    let roofs = &Roofs { cache: fastest.map_or(roofs.cache, |row| speed(&row)), ..*roofs };
    let cpu = cpu_name().unwrap_or_else(|| "unknown CPU".to_owned());
    let isas: Vec<_> = best.iter().map(|best| best.isa).collect();
    header(
        area,
        &format!("Kernels on one core of {cpu}"),
        &format!("{}: a point for each shape", isas.join(", ")),
    )?;
    let (_, below) = area.split_vertically(HEADER);
    let (left, right) = below.split_horizontally(SIZE.0 - LEGEND);
    draw_chart(&left, &rows, &best, roofs)?;
    draw_legend(&right, &best, roofs, fastest)
}

/// The fastest row of each instruction set, in the order in which they first appear; of products, where there are any.
fn best<'r>(rows: &[&'r Row]) -> Vec<Best<'r>> {
    let mut all: Vec<Best> = Vec::new();
    let is_product = |row: &&&Row| Kind::of(row) != Kind::Vector;
    let all_vectors = !rows.iter().any(|row| is_product(&row));
    for &row in rows.iter().filter(|row| all_vectors || is_product(row)) {
        match all.iter_mut().find(|best| best.isa == row.isa) {
            Some(best) if best.row.goperations_per_s >= row.goperations_per_s => {}
            Some(best) => best.row = row,
            None => all.push(Best { isa: row.isa, row, colour: colour(all.len()) }),
        }
    }
    all
}

fn draw_chart(area: &Area, rows: &[&Row], best: &[Best], roofs: &Roofs) -> anyhow::Result<()> {
    let xs = around(rows.iter().map(|row| row.operations_a_byte));
    let ys = around(rows.iter().map(|row| row.goperations_per_s));
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .margin_top(0)
        .x_label_area_size(46)
        .y_label_area_size(62)
        .build_cartesian_2d(xs.clone().log_scale(), ys.clone().log_scale())?;
    plain(&mut chart.configure_mesh())
        .axis_desc_style(font(13.0, INK))
        .x_labels(10)
        .y_labels(10)
        .x_label_formatter(&|x| power(*x))
        .y_label_formatter(&|y| power(*y))
        .x_desc("multiply-adds a byte read or written")
        .y_desc("10⁹ multiply-adds a second")
        .draw()?;
    let top = best.iter().map(|best| best.row.goperations_per_s).fold(0.0, f64::max);
    for (bytes_per_s, width) in [(roofs.memory, 2), (roofs.cache, 1)] {
        let ends = [xs.start.max(ys.start / bytes_per_s), xs.end.min(top / bytes_per_s)];
        if ends[0] < ends[1] {
            let line = ends.map(|x| (x, x * bytes_per_s));
            chart.draw_series(LineSeries::new(line, ShapeStyle::from(INK).stroke_width(width)))?;
        }
    }
    for Best { row, colour, .. } in best {
        let y = row.goperations_per_s;
        let line = [(xs.start.max(y / roofs.cache).min(xs.end), y), (xs.end, y)];
        chart.draw_series(DashedLineSeries::new(line, 6, 4, ShapeStyle::from(*colour).stroke_width(1)))?;
    }
    for Best { isa, colour, .. } in best {
        let points = rows.iter().filter(|row| row.isa == *isa);
        chart.draw_series(
            points.map(|row| Kind::of(row).marker((row.operations_a_byte, row.goperations_per_s), *colour)),
        )?;
    }
    Ok(())
}

fn draw_legend(area: &Area, best: &[Best], roofs: &Roofs, fastest: Option<&Row>) -> anyhow::Result<()> {
    let mut y = 16;
    let mut line =
        |text: &str, style: TextStyle, x: i32, sign: Option<&dyn Fn(i32) -> anyhow::Result<()>>| {
            if let Some(sign) = sign {
                sign(y)?;
            }
            write(area, text, (x, y), style, HPos::Left)?;
            y += 20;
            anyhow::Ok(())
        };
    let (title, small) = (font(13.0, INK), font(12.0, INK));
    line("Instruction set, and its best point", title.clone(), 0, None)?;
    for Best { isa, row, colour } in best {
        let square = |y| Ok(area.draw(&Rectangle::new([(2, y - 5), (12, y + 5)], colour.filled()))?);
        let speed = number(row.goperations_per_s);
        line(&format!("{isa}: {speed} · 10⁹/s"), small.clone(), 22, Some(&square))?;
        line(&format!("{} {}", row.kernel, row.shape), font(11.0, GREY), 22, None)?;
    }
    line("", small.clone(), 0, None)?;
    line("Kernels", title.clone(), 0, None)?;
    for (kind, name) in Kind::ALL {
        line(name, small.clone(), 22, Some(&|y| Ok(area.draw(&kind.marker((7, y), GREY))?)))?;
    }
    line("", small.clone(), 0, None)?;
    line("Roofs, the best of several passes", title, 0, None)?;
    let (kib, mib) = (CACHE >> 10, MEMORY >> 20);
    let plain = "read by a plain loop".to_owned();
    let (cache, reader) = match fastest {
        Some(row) => ("caches".to_owned(), format!("read by {} ({})", row.kernel, row.isa)),
        None => (format!("first-level cache, {kib} KiB"), plain.clone()),
    };
    let roofs = [(format!("memory, {mib} MiB"), roofs.memory, 2, plain), (cache, roofs.cache, 1, reader)];
    for (name, speed, width, reader) in roofs {
        let sign = |y| {
            let stroke = ShapeStyle::from(INK).stroke_width(width);
            Ok(area.draw(&PathElement::new([(0, y + 5), (14, y - 5)], stroke))?)
        };
        line(&format!("{name}: {} GB/s", number(speed)), small.clone(), 22, Some(&sign))?;
        line(&reader, font(11.0, GREY), 22, None)?;
    }
    Ok(())
}

/// A range that has all values, with some room at its ends.
fn around(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (least, most) = values.fold((f64::MAX, 0.0), |(a, b), x| (x.min(a), x.max(b)));
    least / 1.5..most * 1.5
}

/// The name of a power of ten.
fn power(x: f64) -> String {
    if x >= 1.0 { format!("{x:.0}") } else { format!("{x}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::plot::svg;
    use roxmltree::Document;

    /// A row of a kernel that does `operations_a_byte` at `goperations_per_s`.
    fn row(kernel: &'static str, isa: &'static str, operations_a_byte: f64, goperations_per_s: f64) -> Row {
        let (shape, max_ulp, throughput, unit, speedup) = ("4×4".to_owned(), 0, 1.0, "GB/s", 1.0);
        Row { kernel, isa, shape, max_ulp, throughput, unit, speedup, operations_a_byte, goperations_per_s }
    }

    #[test]
    fn points_lie_where_the_rows_say() {
        let rows = [
            row("read", "scalar", 0.0, 0.0),
            row("gemm_i8", "scalar", 1.0, 1.0),
            row("gemm_i8", "scalar", 10.0, 10.0),
            row("gemm_i8", "scalar", 100.0, 100.0),
            row("gemv_i8", "avx2", 1.0, 50.0),
            row("gemm_i8", "avx2", 100.0, 300.0),
        ];
        let svg = svg(SIZE, |area| draw(area, &rows, &Roofs { memory: 20.0, cache: 100.0 })).unwrap();
        let xml = Document::parse(&svg).unwrap();
        let marks = |name: &str, colour: RGBColor| {
            let RGBColor(r, g, b) = colour;
            let fill = format!("#{r:02X}{g:02X}{b:02X}");
            let wanted =
                |n: &roxmltree::Node| n.tag_name().name() == name && n.attribute("fill") == Some(&*fill);
            let at = |n: roxmltree::Node, key| n.attribute(key).unwrap_or("0").parse::<f64>().unwrap();
            xml.descendants().filter(wanted).map(|n| (at(n, "cx"), at(n, "cy"))).collect::<Vec<_>>()
        };
        let scalar = marks("circle", colour(0));
        assert_eq!(
            (scalar.len(), marks("circle", colour(1)).len(), marks("polygon", colour(1)).len()),
            (3, 1, 1)
        );
        // Ten times as much is as far again, on both axes.
        let (a, b, c) = (scalar[0], scalar[1], scalar[2]);
        assert!(b.0 - a.0 > 20.0 && (b.0 - a.0 - (c.0 - b.0)).abs() <= 1.0, "{scalar:?}");
        assert!(a.1 - b.1 > 20.0 && (a.1 - b.1 - (b.1 - c.1)).abs() <= 1.0, "{scalar:?}");
        let texts: Vec<_> = xml.descendants().filter_map(|n| n.text()).map(str::trim).collect();
        for text in [
            "scalar: 100 · 10⁹/s",
            "avx2: 300 · 10⁹/s",
            "memory, 256 MiB: 20.0 GB/s",
            "first-level cache, 16 KiB: 100 GB/s",
        ] {
            assert!(texts.contains(&text), "{text} is not in {texts:?}");
        }
    }

    #[test]
    fn no_point_lies_above_the_roofs() {
        let rows = [row("gemv_i8", "avx2", 1.0, 50.0), row("attn_scores_f32", "avx2", 0.25, 100.0)];
        let svg = svg(SIZE, |area| draw(area, &rows, &Roofs { memory: 20.0, cache: 100.0 })).unwrap();
        let xml = Document::parse(&svg).unwrap();
        let texts: Vec<_> = xml.descendants().filter_map(|n| n.text()).map(str::trim).collect();
        for text in ["caches: 400 GB/s", "read by attn_scores_f32 (avx2)"] {
            assert!(texts.contains(&text), "{text} is not in {texts:?}");
        }
    }
}
