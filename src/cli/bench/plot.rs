//! The rows as a picture: bars where every test has one depth, and otherwise lines over the depth.

use plotters::prelude::*;
use plotters::style::text_anchor::HPos;
use torchless::bench::Test;

use super::{Row, Setting};
use crate::cli::plot::{
    Area, GREY, HEADER, INK, PALE, chart, colour, font, header, number, plain, round_up, write,
};

/// Pixels wide.
const WIDTH: u32 = 860;
/// Pixels that a diagram over the depth is high.
const CHART: u32 = 250;
/// Pixels that explain its lines.
const LEGEND: u32 = 210;
/// Pixels that a bar takes, with its text.
const BAR: u32 = 46;
/// Pixels above a panel's bars.
const BAR_TITLE: u32 = 36;
/// Pixels of the scale below a panel's bars.
const SCALE: u32 = 34;

/// Pixels that explain the bars.
const NOTE: u32 = 30;

/// The rows of a kind of test that is measured on the same scale.
struct Panel<'r> {
    title: &'static str,
    series: Vec<Series<'r>>,
}

/// A test with one number of threads and one instruction set, at all depths.
struct Series<'r> {
    name: String,
    colour: RGBColor,
    rows: Vec<&'r Row<'r>>,
}

impl Series<'_> {
    /// The name of a row of it.
    fn at(&self, row: &Row) -> String {
        match row.depth {
            0 => self.name.clone(),
            depth => format!("{} behind {depth} tokens", self.name),
        }
    }
}

/// What is drawn of a row: a mean, and how far the runs are from it.
type Value = fn(&Row) -> (f64, f64);
/// Whether a row is of a panel.
type Belongs = fn(&Row) -> bool;

/// A picture of some rows.
pub struct Plot<'r> {
    panels: Vec<Panel<'r>>,
    setting: &'r Setting,
    subtitle: String,
    by_depth: bool,
}

#[expect(clippy::indexing_slicing, reason = "there is at least one row")]
impl<'r> Plot<'r> {
    /// Arranges at least one row.
    pub fn new(rows: &'r [Row<'r>], setting: &'r Setting) -> Self {
        let differ = |key: fn(&Row) -> String| rows.iter().any(|row| key(row) != key(&rows[0]));
        let keys: [fn(&Row) -> String; 2] = [|row| count(row.threads, "thread"), |row| row.isa.to_owned()];
        let parts = keys.map(|key| (key, differ(key)));
        let name = |row: &Row| {
            let test = Test { prompt: row.prompt_tokens, generate: row.gen_tokens, depth: 0 };
            let varying = parts.iter().filter(|(_, differs)| *differs).map(|(part, _)| part(row));
            std::iter::once(test.to_string()).chain(varying).collect::<Vec<_>>().join(", ")
        };
        let kinds: [(&'static str, Belongs); 3] = [
            ("Reading a prompt", |row| row.gen_tokens == 0),
            ("Generating", |row| row.prompt_tokens == 0),
            ("Reading a prompt and generating", |row| row.prompt_tokens > 0 && row.gen_tokens > 0),
        ];
        let panel = |(title, belongs): (&'static str, Belongs)| {
            let mut series: Vec<Series> = Vec::new();
            for row in rows.iter().filter(|row| belongs(row)) {
                let name = name(row);
                match series.iter_mut().find(|series| series.name == name) {
                    Some(series) => series.rows.push(row),
                    None => series.push(Series { name, colour: colour(series.len()), rows: vec![row] }),
                }
            }
            (!series.is_empty()).then_some(Panel { title, series })
        };
        let same = parts.iter().filter(|(_, differs)| !differs).map(|(part, _)| part(&rows[0]));
        let mut subtitle: Vec<_> = same.chain([format!("kv {}", rows[0].kv)]).collect();
        subtitle.extend(setting.cpu.clone());
        subtitle.push(format!("torchless {} ({})", setting.version, setting.revision));
        Self {
            panels: kinds.into_iter().filter_map(panel).collect(),
            setting,
            subtitle: subtitle.join(", "),
            by_depth: differ(|row| row.depth.to_string()),
        }
    }

    /// Pixels wide and high.
    pub fn size(&self) -> (u32, u32) {
        let panels: u32 = self.panels.iter().map(|panel| panel.height(self.by_depth)).sum();
        let below = match self.limited() {
            Some(_) if self.by_depth => CHART,
            Some(_) => NOTE,
            None => 0,
        };
        (WIDTH, HEADER + panels + below)
    }

    /// The panel that memory limits.
    fn limited(&self) -> Option<&Panel<'r>> {
        self.panels.iter().find(|panel| panel.has_limit())
    }

    /// Draws it.
    pub fn draw(&self, area: &Area) -> anyhow::Result<()> {
        header(area, &format!("{}: tokens a second", self.setting.model), &self.subtitle)?;
        let (_, mut rest) = area.split_vertically(HEADER);
        for panel in &self.panels {
            let (here, below) = rest.split_vertically(panel.height(self.by_depth));
            match self.by_depth {
                true => panel.draw_lines(&here)?,
                false => panel.draw_bars(&here)?,
            }
            rest = below;
        }
        match self.limited() {
            Some(panel) if self.by_depth => panel.draw_shares(&rest),
            Some(_) => {
                let what = "Pale: what the memory's speed allows, by a plain loop over the same weights";
                write(&rest, what, (20, 12), font(11.0, GREY), HPos::Left)
            }
            None => Ok(()),
        }
    }
}

impl Row<'_> {
    /// Tokens a second if memory were read as fast as a plain loop does; `None` where arithmetic is the limit.
    fn limit(&self) -> Option<f64> {
        (self.prompt_tokens == 0).then(|| self.tokens_per_s / self.bandwidth_share)
    }
}

impl<'r> Panel<'r> {
    fn rows(&self) -> impl Iterator<Item = &'r Row<'r>> {
        self.series.iter().flat_map(|series| series.rows.iter().copied())
    }

    fn has_limit(&self) -> bool {
        self.rows().any(|row| row.limit().is_some())
    }

    /// Pixels that it takes.
    fn height(&self, by_depth: bool) -> u32 {
        if by_depth { CHART } else { BAR_TITLE + BAR * self.rows().count() as u32 + SCALE }
    }

    fn bars(&self) -> impl Iterator<Item = (&Series<'r>, &'r Row<'r>)> {
        self.series.iter().flat_map(|series| series.rows.iter().map(move |&row| (series, row)))
    }

    /// Above all that is drawn, in tokens a second.
    fn top(&self) -> f64 {
        let reach = |row: &Row| row.limit().unwrap_or(0.0).max(row.tokens_per_s + row.stddev);
        self.rows().map(reach).fold(f64::MIN_POSITIVE, f64::max)
    }

    /// A bar a row, with what it says above it, and the limit behind it.
    fn draw_bars(&self, area: &Area) -> anyhow::Result<()> {
        write(area, self.title, (20, 18), font(14.0, INK), HPos::Left)?;
        let width = (WIDTH - 40) as f64 / self.top();
        let mut y = BAR_TITLE as i32;
        for (series, row) in self.bars() {
            let mut says = format!("{} ± {} tokens/s", number(row.tokens_per_s), number(row.stddev));
            if let Some(limit) = row.limit() {
                let share = 100.0 * row.bandwidth_share;
                says += &format!(", {share:.0} % of the {} that memory allows", number(limit));
            }
            write(area, &series.at(row), (20, y + 6), font(12.0, INK), HPos::Left)?;
            write(area, &says, (WIDTH as i32 - 20, y + 6), font(12.0, INK), HPos::Right)?;
            let bar = |value: f64| [(20, y + 17), (20 + (value * width).round() as i32, y + 33)];
            if let Some(limit) = row.limit() {
                area.draw(&Rectangle::new(bar(limit), PALE.filled()))?;
            }
            area.draw(&Rectangle::new(bar(row.tokens_per_s), series.colour.filled()))?;
            y += BAR as i32;
        }
        self.draw_scale(area, y, width)
    }

    /// Tokens a second below the bars, each of `width` pixels.
    fn draw_scale(&self, area: &Area, y: i32, width: f64) -> anyhow::Result<()> {
        area.draw(&PathElement::new([(20, y), (WIDTH as i32 - 20, y)], GREY))?;
        let step = round_up(self.top() / 6.0);
        let marks = (0..).map(|i| f64::from(i) * step).take_while(|&at| at <= self.top());
        for at in marks {
            let x = 20 + (at * width).round() as i32;
            area.draw(&PathElement::new([(x, y), (x, y + 5)], GREY))?;
            let text = if at == 0.0 { "0".to_owned() } else { number(at) };
            write(
                area,
                &text,
                (x, y + 14),
                font(11.0, GREY),
                if at == 0.0 { HPos::Left } else { HPos::Center },
            )?;
        }
        Ok(())
    }

    /// Tokens a second over the depth, and the limit as a dashed line.
    fn draw_lines(&self, area: &Area) -> anyhow::Result<()> {
        let (left, legend) = area.split_horizontally(WIDTH - LEGEND);
        let value: Value = |row| (row.tokens_per_s, row.stddev);
        self.draw_chart(&left, self.title, "tokens/s", round_up(self.top()), value, |row| row.limit())?;
        self.draw_legend(&legend, self.has_limit())
    }

    /// The share of the limit over the depth.
    fn draw_shares(&self, area: &Area) -> anyhow::Result<()> {
        let (left, legend) = area.split_horizontally(WIDTH - LEGEND);
        let percent: Value = |row| (100.0 * row.bandwidth_share, 0.0);
        let top = round_up(self.rows().map(|row| percent(row).0).fold(100.0, f64::max));
        let title = "Generating: share of what the memory allows";
        self.draw_chart(&left, title, "%", top, percent, |_| None)?;
        self.draw_legend(&legend, false)
    }

    /// A line a series of `value`: the mean, and the deviation as a stroke.
    fn draw_chart(
        &self,
        area: &Area,
        title: &str,
        unit: &str,
        top: f64,
        value: Value,
        limit: fn(&Row) -> Option<f64>,
    ) -> anyhow::Result<()> {
        write(area, title, (20, 14), font(14.0, INK), HPos::Left)?;
        let deepest = self.rows().map(|row| row.depth).max().unwrap_or(0).max(1) as f64;
        let mut chart = chart(area).build_cartesian_2d(0.0..deepest, 0.0..top)?;
        plain(&mut chart.configure_mesh())
            .axis_desc_style(font(12.0, INK))
            .x_labels(8)
            .y_labels(6)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| if top < 10.0 { format!("{y:.1}") } else { format!("{y:.0}") })
            .x_desc("tokens in the cache before the test")
            .y_desc(unit)
            .draw()?;
        for Series { rows, colour, .. } in &self.series {
            let line = ShapeStyle::from(*colour).stroke_width(2);
            let mut rows = rows.clone();
            rows.sort_by_key(|row| row.depth);
            let limits: Vec<_> =
                rows.iter().filter_map(|row| Some((row.depth as f64, limit(row)?))).collect();
            chart.draw_series(DashedLineSeries::new(limits, 5, 4, colour.stroke_width(1)))?;
            let point = |row: &&Row| (row.depth as f64, value(row).0);
            chart.draw_series(LineSeries::new(rows.iter().map(point), line))?;
            chart.draw_series(rows.iter().map(|row| {
                let (mean, deviation) = value(row);
                let ends = [mean - deviation, mean + deviation].map(|y| (row.depth as f64, y));
                PathElement::new(ends, line)
            }))?;
            chart.draw_series(rows.iter().map(|row| Circle::new(point(row), 4, colour.filled())))?;
        }
        Ok(())
    }

    fn draw_legend(&self, area: &Area, with_limit: bool) -> anyhow::Result<()> {
        let mut y = 40;
        for Series { name, colour, .. } in &self.series {
            area.draw(&PathElement::new([(0, y), (18, y)], colour.stroke_width(3)))?;
            write(area, name, (26, y), font(12.0, INK), HPos::Left)?;
            y += 20;
        }
        if with_limit {
            for x in [0, 7, 14] {
                area.draw(&PathElement::new([(x, y), (x + 4, y)], GREY))?;
            }
            write(area, "what the memory allows", (26, y), font(12.0, INK), HPos::Left)?;
        }
        Ok(())
    }
}

/// A number of things.
fn count(n: usize, thing: &str) -> String {
    if n == 1 { format!("1 {thing}") } else { format!("{n} {thing}s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::plot::svg;
    use approx::assert_abs_diff_eq;
    use roxmltree::{Document, Node};

    fn setting() -> Setting {
        Setting {
            model: "a<b> & \"c\"".to_owned(),
            model_bytes: 1000,
            model_params: 1000,
            load_ms: 1.0,
            cpu: Some("Some CPU".to_owned()),
            version: "1.2.3",
            revision: "abc",
        }
    }

    /// `tokens_per_s` of the test, and half of it where the memory would allow more.
    fn row(setting: &Setting, test: Test, threads: usize, tokens_per_s: f64) -> Row<'_> {
        Row {
            test: test.to_string(),
            threads,
            isa: "portable",
            tokens_per_s,
            stddev: 0.0,
            gb_per_s: 1.0,
            bandwidth_share: 0.5,
            memory_gb_per_s: 2.0,
            prompt_tokens: test.prompt,
            gen_tokens: test.generate,
            depth: test.depth,
            kv: "f16".to_owned(),
            samples: vec![],
            resident_anonymous_bytes: None,
            resident_file_bytes: None,
            resident_file_huge_bytes: None,
            setting,
        }
    }

    fn drawn(rows: &[Row], setting: &Setting) -> String {
        let plot = Plot::new(rows, setting);
        svg(plot.size(), |area| plot.draw(area)).unwrap()
    }

    fn attribute(node: Node, name: &str) -> f64 {
        node.attribute(name).unwrap().parse().unwrap()
    }

    /// Elements of this name and colour.
    fn elements<'a>(xml: &'a Document, name: &str, colour: RGBColor) -> Vec<Node<'a, 'a>> {
        let RGBColor(r, g, b) = colour;
        let fill = format!("#{r:02X}{g:02X}{b:02X}");
        let wanted = |node: &Node| node.tag_name().name() == name && node.attribute("fill") == Some(&*fill);
        xml.descendants().filter(wanted).collect()
    }

    fn texts(xml: &Document) -> Vec<String> {
        let texts = xml.descendants().filter(|n| n.tag_name().name() == "text");
        texts.map(|n| n.text().unwrap_or_default().trim().to_owned()).collect()
    }

    fn test(prompt: usize, generate: usize, depth: usize) -> Test {
        Test { prompt, generate, depth }
    }

    #[test]
    fn bars_are_as_long_as_the_speeds() {
        let setting = setting();
        let rows =
            [(1, 30.0), (2, 60.0)].map(|(threads, speed)| row(&setting, test(0, 9, 0), threads, speed));
        let svg = drawn(&rows, &setting);
        let xml = Document::parse(&svg).unwrap();
        let width = |i| {
            let bars = elements(&xml, "rect", i);
            assert_eq!(bars.len(), 1);
            attribute(bars[0], "width")
        };
        // The faster one's limit, 120 tokens a second, takes the whole width.
        let whole = f64::from(WIDTH - 40);
        assert_abs_diff_eq!(width(colour(0)), whole / 4.0, epsilon = 1.0);
        assert_abs_diff_eq!(width(colour(1)), whole / 2.0, epsilon = 1.0);
        let limits: Vec<_> =
            elements(&xml, "rect", PALE).iter().map(|&bar| attribute(bar, "width")).collect();
        assert_abs_diff_eq!(limits[..2], [whole / 2.0, whole][..], epsilon = 1.0);
        let texts = texts(&xml);
        for text in [
            "a<b> & \"c\": tokens a second",
            "portable, kv f16, Some CPU, torchless 1.2.3 (abc)",
            "tg9, 1 thread",
            "tg9, 2 threads",
            "60.0 ± 0.00 tokens/s, 50 % of the 120 that memory allows",
            "0",
            "20.0",
            "120",
        ] {
            assert!(texts.iter().any(|found| found == text), "{text:?} is not in {texts:?}");
        }
    }

    #[test]
    fn points_are_as_high_as_the_speeds() {
        let setting = setting();
        let rows = [(9, 0, 0, 400.0), (9, 0, 64, 200.0), (0, 9, 0, 40.0), (0, 9, 64, 30.0), (0, 9, 32, 35.0)]
            .map(|(p, n, depth, speed)| row(&setting, test(p, n, depth), 1, speed));
        let svg = drawn(&rows, &setting);
        let xml = Document::parse(&svg).unwrap();
        // Two of the prompt, three of the generation, and their three shares.
        let points = elements(&xml, "circle", colour(0));
        assert_eq!(points.len(), 8);
        let at = |i: usize, name| attribute(points[i], name);
        assert!(at(0, "cy") < at(1, "cy") && at(0, "cx") == at(2, "cx") && at(1, "cx") == at(4, "cx"));
        // In order of the depth, evenly apart both ways.
        for name in ["cx", "cy"] {
            let (first, second) = (at(3, name) - at(2, name), at(4, name) - at(3, name));
            assert!(first > 0.0, "{name}");
            assert_abs_diff_eq!(first, second, epsilon = 1.0);
            assert_eq!(name == "cy", at(5, name) == at(6, name), "the shares are equal");
        }
        assert!(texts(&xml).iter().any(|text| text == "what the memory allows"));
    }
}
