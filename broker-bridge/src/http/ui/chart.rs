//! A group's lag over time as inline SVG.

use maud::{Markup, html};

use super::text;

const HEIGHT: f64 = 150.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 128.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 730.0;
const WIDTH: f64 = 740.0;

/// `(time in ms, records)`, oldest first.
pub(super) fn lag(points: &[(i64, i64)]) -> Markup {
    let (Some((first, _)), Some((last, newest))) = (points.first().copied(), points.last().copied()) else {
        return html! { figure.chart { figcaption { strong { "Lag" } span.muted { "nothing was looked at yet" } } } };
    };
    let highest = points.iter().map(|(_, lag)| *lag).max().unwrap_or(0);
    let max = nice_max(highest as f64);
    let x = |at: i64| {
        if first == last { (LEFT + RIGHT) / 2.0 } else { LEFT + (at - first) as f64 / (last - first) as f64 * (RIGHT - LEFT) }
    };
    let y = |lag: f64| BOTTOM - (lag / max) * (BOTTOM - TOP);
    let path: Vec<String> = points.iter().map(|(at, lag)| format!("{:.1},{:.1}", x(*at), y(*lag as f64))).collect();
    let area = format!("{:.1},{BOTTOM} {} {:.1},{BOTTOM}", x(first), path.join(" "), x(last));
    let shown = |lag: i64| text::count(u64::try_from(lag).unwrap_or(0));
    html! {
        figure.chart {
            figcaption { strong { "Lag" } span.muted { "highest " (shown(highest)) " records" } }
            svg.timeline viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(format!("Lag: newest {}, highest {} records", shown(newest), shown(highest))) preserveAspectRatio="xMinYMid meet" {
                @for tick in [0.0, max / 2.0, max] {
                    line.grid x1=(LEFT) x2=(RIGHT) y1=(y(tick)) y2=(y(tick)) {}
                    text.axis x=(LEFT - 6.0) y=(y(tick) + 3.5) text-anchor="end" { (text::short(tick)) }
                }
                polygon.area points=(area) {}
                polyline.line points=(path.join(" ")) {}
                @for (at, lag) in points {
                    circle.dot.alone[first == last] cx=(format!("{:.1}", x(*at))) cy=(format!("{:.1}", y(*lag as f64))) r="3" {
                        title { (text::clock(*at)) ": " (shown(*lag)) " records" }
                    }
                }
                text.axis x=(LEFT) y=(HEIGHT - 6.0) { (text::clock(first)) }
                text.axis x=(RIGHT) y=(HEIGHT - 6.0) text-anchor="end" { (text::clock(last)) }
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_points_can_be_drawn() {
        for points in [&[][..], &[(5, 0)], &[(5, 7), (5, 7)], &[(0, 0), (10_000, i64::MAX)]] {
            let text = lag(points).into_string();
            assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        }
        for (value, end) in [(0.0, 1.0), (3.0, 5.0), (730.0, 1000.0), (1200.0, 2000.0)] {
            assert_eq!(nice_max(value), end, "{value}");
        }
    }
}
