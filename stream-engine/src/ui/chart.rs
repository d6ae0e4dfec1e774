//! Charts as inline SVG: a timeline of the newest batches, and beside it how often each value occurs, on the same scale.

use maud::{Markup, html};

use super::text;

const HEIGHT: f64 = 150.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 128.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 560.0;
const WIDTH: f64 = 566.0;
const BARS_WIDTH: f64 = 160.0;
const HISTOGRAM_WIDTH: f64 = 166.0;
const BINS: usize = 10;

/// One value per batch.
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    /// `records/s`, `ms`.
    pub(super) unit: &'a str,
    /// `(batch time in ms, value)`, oldest first.
    pub(super) points: &'a [(i64, f64)],
    /// A horizontal line with its name.
    pub(super) line: Option<(f64, &'a str)>,
}

impl Chart<'_> {
    pub(super) fn render(&self) -> Markup {
        let average = self.points.iter().map(|(_, value)| value).sum::<f64>() / self.points.len().max(1) as f64;
        html! {
            figure.chart {
                figcaption {
                    strong { (self.title) }
                    span.muted {
                        @if self.points.is_empty() { "no batches yet" }
                        @else { "average " (self.shown(average)) }
                    }
                }
                @if !self.points.is_empty() { (self.plots()) }
            }
        }
    }

    /// A value with its unit; long times in seconds.
    fn shown(&self, value: f64) -> String {
        if self.unit == "ms" && value >= 1000.0 {
            format!("{} s", text::short(value / 1000.0))
        } else {
            format!("{} {}", text::short(value), self.unit)
        }
    }

    /// The same beside an axis: times with their unit, since it changes with their size.
    fn tick(&self, value: f64) -> String {
        if self.unit == "ms" { self.shown(value) } else { text::short(value) }
    }

    fn plots(&self) -> Markup {
        let highest = self.points.iter().map(|(_, value)| *value).fold(0.0, f64::max);
        let wanted = self.line.map_or(highest, |(value, _)| highest.max(value));
        let max = nice_max(wanted);
        let y = |value: f64| BOTTOM - (value / max) * (BOTTOM - TOP);
        let (first, last) = (self.points[0].0, self.points[self.points.len() - 1].0);
        let span = ((last - first) as f64).max(1.0);
        let x = |time: i64| {
            if first == last { (LEFT + RIGHT) / 2.0 } else { LEFT + (time - first) as f64 / span * (RIGHT - LEFT) }
        };
        let path: Vec<String> = self.points.iter().map(|(time, value)| format!("{:.1},{:.1}", x(*time), y(*value))).collect();
        let area = format!("{:.1},{BOTTOM} {} {:.1},{BOTTOM}", x(first), path.join(" "), x(last));
        let bins = histogram(self.points.iter().map(|(_, value)| *value), max);
        let most = bins.iter().copied().max().unwrap_or(0).max(1);
        let bin_height = (BOTTOM - TOP) / BINS as f64;
        let newest = self.points[self.points.len() - 1].1;
        let label = format!("{}: newest {}, highest {}", self.title, self.shown(newest), self.shown(highest));
        let batches = |count: u64| if count == 1 { "1 batch".to_owned() } else { format!("{count} batches") };
        html! { div.plots {
            svg.timeline viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(label) preserveAspectRatio="xMinYMid meet" {
                @for tick in [0.0, max / 2.0, max] {
                    line.grid x1=(LEFT) x2=(RIGHT) y1=(y(tick)) y2=(y(tick)) {}
                    text.axis x=(LEFT - 6.0) y=(y(tick) + 3.5) text-anchor="end" { (self.tick(tick)) }
                }
                text.axis x=(LEFT) y=(HEIGHT - 6.0) { (text::clock(first)) }
                @if first != last {
                    text.axis x=(RIGHT) y=(HEIGHT - 6.0) text-anchor="end" { (text::clock(last)) }
                }
                polygon.area points=(area) {}
                polyline.line points=(path.join(" ")) {}
                @for (time, value) in self.points {
                    circle.dot.alone[first == last] cx=(format!("{:.1}", x(*time))) cy=(format!("{:.1}", y(*value))) r="3" {
                        title { (text::time(*time)) ": " (self.shown(*value)) }
                    }
                }
                @if let Some((value, name)) = self.line {
                    line.limit x1=(LEFT) x2=(RIGHT) y1=(y(value)) y2=(y(value)) {}
                    text.axis.limit-name x=(RIGHT) y=(if y(value) < TOP + 12.0 { y(value) + 12.0 } else { y(value) - 4.0 }) text-anchor="end" { (name) }
                }
            }
            svg.histogram viewBox=(format!("0 0 {HISTOGRAM_WIDTH} {HEIGHT}")) role="img" aria-label=(format!("How often: at most {}", batches(most))) preserveAspectRatio="xMinYMid meet" {
                @for (n, count) in bins.iter().enumerate() {
                    @let from = max / BINS as f64 * n as f64;
                    @let width = *count as f64 / most as f64 * BARS_WIDTH;
                    rect.bar x="1" width=(format!("{width:.1}")) y=(format!("{:.1}", BOTTOM - bin_height * (n + 1) as f64 + 1.0)) height=(format!("{:.1}", bin_height - 2.0)) rx="1.5" {
                        title { (batches(*count)) " from " (self.shown(from)) " to " (self.shown(from + max / BINS as f64)) }
                    }
                }
                line.grid x1="1" x2="1" y1=(TOP) y2=(BOTTOM) {}
                text.axis x="1" y=(HEIGHT - 6.0) { "0" }
                text.axis x=(BARS_WIDTH) y=(HEIGHT - 6.0) text-anchor="end" { (batches(most)) }
            }
        } }
    }
}

/// The next of 1, 2, 5 · 10ⁿ: axis ends that read well.
fn nice_max(value: f64) -> f64 {
    if value <= 0.0 || !value.is_finite() {
        return 1.0;
    }
    let magnitude = 10_f64.powf(value.log10().floor());
    let nice = [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * magnitude).find(|nice| *nice >= value * (1.0 - 1e-9));
    nice.unwrap_or(value)
}

fn histogram(values: impl Iterator<Item = f64>, max: f64) -> [u64; BINS] {
    let mut bins = [0; BINS];
    for value in values {
        let bin = ((value / max * BINS as f64) as usize).min(BINS - 1);
        bins[bin] += 1;
    }
    bins
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_readable_numbers() {
        for (value, end) in [(0.0, 1.0), (0.7, 1.0), (1.0, 1.0), (3.0, 5.0), (5.0, 5.0), (730.0, 1000.0), (1200.0, 2000.0)] {
            assert_eq!(nice_max(value), end, "{value}");
        }
    }

    #[test]
    fn every_value_is_in_one_bin() {
        assert_eq!(histogram([0.0, 9.9, 10.0, 55.0, 100.0].into_iter(), 100.0), [2, 1, 0, 0, 0, 1, 0, 0, 0, 1]);
    }

    #[test]
    fn one_batch_and_all_zeroes_can_be_drawn() {
        for points in [&[(5000, 0.0)][..], &[(5000, 0.0), (10_000, 0.0)], &[]] {
            let text = Chart { title: "Input rate", unit: "records/s", points, line: Some((0.0, "x")) }.render().into_string();
            assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        }
    }
}
