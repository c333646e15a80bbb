//! How a [`View`] looks: on a terminal, and as one plain table.
//!
//! What is told of a workload stands in [`WORKLOADS`], one [`Column`] each; both looks follow it.

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span, Text},
    widgets::{Block, Borders, Cell, Clear, Paragraph, Row, Table, TableState},
};

use super::{
    super::{
        explain_domain,
        look::{Look, Mood, clean, count, duration, rate, value},
        refusals,
        table::{self, Side},
    },
    screen::{LimitRow, Screen, WorkloadRow, bars},
    view::View,
};
use crate::{
    app::view::{RecentSecond, Refusal},
    rls::view::Offender,
};

/// Between two columns.
const GAP: u16 = 2;
/// Bars are narrower only where they would be nothing.
const NARROWEST_BARS: u16 = 8;
/// A minute.
const WIDEST_BARS: u16 = 60;
/// Lines that limits and refusals get before workloads get more.
const LEAST_BELOW: u16 = 12;

/// One thing that is told of each row.
struct Column<R> {
    title: &'static str,
    side: Side,
    /// Whether it goes where the terminal is too narrow for all; the last one goes first.
    is_extra: bool,
    cell: fn(&R, &Look) -> (String, Mood),
}

/// Of each workload, left of its last minute.
const WORKLOADS: &[Column<WorkloadRow>] = &[
    Column {
        title: "WORKLOAD",
        side: Side::Left,
        is_extra: false,
        cell: |row, _| (row.name.clone(), Mood::Plain),
    },
    Column { title: "CONDITION", side: Side::Left, is_extra: false, cell: condition },
    Column {
        title: "ATTACHED",
        side: Side::Left,
        is_extra: true,
        cell: |row, _| (row.attached.clone().unwrap_or_else(|| "-".to_owned()), Mood::Plain),
    },
    Column {
        title: "ADMITTED",
        side: Side::Right,
        is_extra: false,
        cell: |row, _| (rate(row.admitted_per_second), Mood::Plain),
    },
    Column {
        title: "REFUSED",
        side: Side::Right,
        is_extra: false,
        cell: |row, _| (rate(row.refused_per_second), bad_if(row.refused_per_second > 0.0)),
    },
];

/// Of each limit.
const LIMITS: &[Column<LimitRow>] = &[
    Column {
        title: "LIMIT",
        side: Side::Left,
        is_extra: false,
        cell: |row, _| (format!("{} {}", row.workload, row.limit), Mood::Plain),
    },
    Column {
        title: "VALUE",
        side: Side::Left,
        is_extra: true,
        cell: |row, _| (value(&row.limit, &row.value), Mood::Plain),
    },
    Column {
        title: "OFFERED",
        side: Side::Right,
        is_extra: false,
        cell: |row, _| (rate(row.offered_per_second), Mood::Plain),
    },
    Column { title: "USE", side: Side::Right, is_extra: false, cell: used },
    Column { title: "NOW", side: Side::Right, is_extra: false, cell: |row, _| state(row) },
    Column {
        title: "REFUSED",
        side: Side::Right,
        is_extra: false,
        cell: |row, _| perhaps(row.refused_per_second, Mood::Bad),
    },
    Column {
        title: "SHADOWED",
        side: Side::Right,
        is_extra: true,
        cell: |row, _| perhaps(row.shadowed_per_second, Mood::Notable),
    },
];

/// Of each refusal.
const REFUSALS: &[Column<Refusal>] = &[
    Column {
        title: "REFUSED AT",
        side: Side::Left,
        is_extra: false,
        cell: |refusal, look| ((look.local)(refusal.time), Mood::Plain),
    },
    Column {
        title: "WORKLOAD",
        side: Side::Left,
        is_extra: false,
        cell: |refusal, _| (refusal.workload.clone(), Mood::Plain),
    },
    Column {
        title: "CONNECTION",
        side: Side::Left,
        is_extra: false,
        cell: |refusal, _| (refusals::connection(refusal), Mood::Plain),
    },
    Column {
        title: "LIMIT",
        side: Side::Left,
        is_extra: false,
        cell: |refusal, _| (refusals::limit(refusal).to_owned(), Mood::Plain),
    },
    Column {
        title: "REASON",
        side: Side::Left,
        is_extra: true,
        cell: |refusal, _| (refusal.reason.clone(), Mood::of_verdict(&refusal.verdict)),
    },
];

/// Of each descriptor of rate limit requests.
const DESCRIPTORS: &[Column<Offender>] = &[
    Column {
        title: "REFUSED",
        side: Side::Right,
        is_extra: false,
        cell: |row, _| (explain_domain::refusals(row), Mood::Bad),
    },
    Column {
        title: "DOMAIN",
        side: Side::Left,
        is_extra: false,
        cell: |row, _| (row.domain.clone(), Mood::Plain),
    },
    Column {
        title: "DESCRIPTOR",
        side: Side::Left,
        is_extra: false,
        cell: |row, _| (row.descriptor.clone(), Mood::Plain),
    },
    Column {
        title: "LAST CALLER",
        side: Side::Left,
        is_extra: true,
        cell: |row, _| (row.caller.clone(), Mood::Plain),
    },
    Column {
        title: "AGO",
        side: Side::Right,
        is_extra: true,
        cell: |row, look| (look.ago(row.last), Mood::Plain),
    },
];

fn condition(row: &WorkloadRow, _: &Look) -> (String, Mood) {
    let left = row.paused_seconds.map(|left| format!(", {} left", duration(left)));
    let text = format!("{}{}", row.condition, left.unwrap_or_default());
    (text, Mood::of_condition(&row.condition))
}

fn used(row: &LimitRow, _: &Look) -> (String, Mood) {
    let Some(used) = row.used else { return ("-".to_owned(), Mood::Plain) };
    let mood = if used > 1.0 { Mood::Bad } else { Mood::Plain };
    // Above that, a percentage is harder to read than what was offered.
    if used >= 10.0 { (">999%".to_owned(), mood) } else { (format!("{:.0}%", used * 100.0), mood) }
}

/// A rate that may not be known yet, and what it means if it is not zero.
fn perhaps(per_second: Option<f64>, mood: Mood) -> (String, Mood) {
    let Some(per_second) = per_second else { return ("-".to_owned(), Mood::Plain) };
    (rate(per_second), if per_second > 0.0 { mood } else { Mood::Plain })
}

const fn bad_if(is_bad: bool) -> Mood {
    if is_bad { Mood::Bad } else { Mood::Plain }
}

/// All workloads as one table, for whoever has no terminal.
pub(super) fn plain(screen: &Screen, look: &Look) -> String {
    let columns: Vec<_> = WORKLOADS.iter().map(|column| (column.title, column.side)).collect();
    let mut table = table::Table::new(&columns);
    for row in &screen.workloads {
        let cells = WORKLOADS.iter().map(|column| {
            let (text, mood) = (column.cell)(row, look);
            table::Cell::new(text, mood)
        });
        table.push(cells.collect());
    }
    let mut text = table.render(look);
    if !screen.refused_most.is_empty() {
        text.push('\n');
        text.push_str(&explain_domain::refused(&screen.refused_most, true, look).render(look));
    }
    text
}

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View, look: &Look) {
    let rows = view.rows();
    let height = frame.area().height;
    let above = (rows.len() as u16).saturating_add(1).max(2);
    let above = above.min(height.saturating_sub(LEAST_BELOW).max(3));
    let below = view.limits().len().min(usize::from(height)) as u16 + 1;
    let below = below.max(2).min(height.saturating_sub(above + 4) / 2 + 1);
    let [head, workloads, _, limits, _, refusals, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(above),
        Constraint::Length(1),
        Constraint::Length(below),
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(headline(view, look), head);
    draw_workloads(frame, workloads, view, &rows, look);
    let shown: Vec<_> = view.limits();
    let empty = match view.detailed() {
        Some(name) => format!("no limit holds for {}", clean(name)),
        None => "no limit holds".to_owned(),
    };
    draw_table(frame, limits, LIMITS, &shown, &empty, look);
    let shown: Vec<_> =
        view.screen.refusals.iter().filter(|refusal| view.shows(&refusal.workload)).collect();
    let refusals = draw_descriptors(frame, refusals, view, look);
    draw_table(frame, refusals, REFUSALS, &shown, "nothing was refused lately", look);
    frame.render_widget(footline(view, look), foot);
    if view.help {
        draw_help(frame);
    }
}

/// Descriptors stand in the upper half where some are refused; the rest of the room comes back. Of
/// one workload nothing is known there.
fn draw_descriptors(frame: &mut Frame<'_>, area: Rect, view: &View, look: &Look) -> Rect {
    let rows: Vec<_> = view.screen.refused_most.iter().collect();
    if rows.is_empty() || view.detailed().is_some() {
        return area;
    }
    let height = u16::try_from(rows.len() + 1).unwrap_or(u16::MAX).min(area.height / 2);
    let [above, _, rest] =
        Layout::vertical([Constraint::Length(height), Constraint::Length(1), Constraint::Min(0)])
            .areas(area);
    draw_table(frame, above, DESCRIPTORS, &rows, "", look);
    rest
}

/// What a limit stands at.
fn state(row: &LimitRow) -> (String, Mood) {
    if let Some(breaker) = &row.breaker {
        return match breaker.state.as_str() {
            "open" => (format!("open {}", duration(breaker.open_seconds)), Mood::Bad),
            "half-open" => (breaker.state.clone(), Mood::Notable),
            state => (clean(state), Mood::Good),
        };
    }
    let text = match (row.tokens, row.connections) {
        (Some(tokens), _) => format!("{tokens} left"),
        (None, Some(connections)) => format!("{connections} open"),
        (None, None) => "-".to_owned(),
    };
    (text, Mood::Plain)
}

fn headline(view: &View, look: &Look) -> Line<'static> {
    let Screen { version, ready, uptime_seconds, live_sources, problems, .. } = &view.screen;
    let mut spans =
        vec![Span::styled(format!("weir {}", clean(version)), style(Mood::Title, look))];
    if let Some(lost) = &view.lost {
        let ago = duration((look.now - lost.since).max(0.0));
        let text = format!("  the agent is gone for {ago}, trying again: {}", clean(&lost.why));
        spans.push(Span::styled(text, style(Mood::Bad, look)));
        return Line::from(spans);
    }
    let (word, mood) = if *ready { ("ready", Mood::Good) } else { ("not ready", Mood::Bad) };
    spans.push(Span::raw("  "));
    spans.push(Span::styled(word, style(mood, look)));
    let sources = count(*live_sources, "source", "sources");
    let handshakes = count(view.screen.live_handshakes, "handshake", "handshakes");
    let up = duration(*uptime_seconds);
    spans
        .push(Span::raw(format!("  up {up}  {sources}, {handshakes}  {}", (look.local)(look.now))));
    if view.frozen {
        let text = format!("  frozen at {}", (look.local)(view.screen.time));
        spans.push(Span::styled(text, style(Mood::Notable, look)));
    }
    if *problems > 0 {
        let problems = count(*problems as u64, "problem", "problems");
        let text = format!("  {problems}: weir status");
        spans.push(Span::styled(text, style(Mood::Bad, look)));
    }
    Line::from(spans)
}

fn footline(view: &View, look: &Look) -> Line<'static> {
    let text = format!(
        "q quit  j/k select  enter {}  s sort: {}  p {}  ? help",
        if view.details { "all" } else { "details" },
        view.sort.name(),
        if view.frozen { "go on" } else { "freeze" },
    );
    Line::from(Span::styled(text, dim(look)))
}

fn draw_workloads(
    frame: &mut Frame<'_>,
    area: Rect,
    view: &View,
    rows: &[&WorkloadRow],
    look: &Look,
) {
    if rows.is_empty() {
        frame.render_widget(
            Paragraph::new("no workload is protected: the node file names none"),
            area,
        );
        return;
    }
    let least = 2 * (NARROWEST_BARS + GAP);
    let laid = lay(WORKLOADS, rows, area.width.saturating_sub(least), look);
    let used: u16 = laid.iter().map(|(_, width)| width + GAP).sum();
    let bars_width = (area.width.saturating_sub(used + GAP) / 2).min(WIDEST_BARS);
    let with_bars = bars_width >= NARROWEST_BARS;
    let mut titles = header(&laid);
    let mut widths: Vec<_> = laid.iter().map(|(_, width)| Constraint::Length(*width)).collect();
    if with_bars {
        let long = ["ADMITTED IN 60 S", "REFUSED IN 60 S"];
        let fits = long.iter().all(|title| title.len() <= usize::from(bars_width));
        for title in if fits { long } else { ["ADMITTED", "REFUSED"] } {
            titles.push(title.into());
            widths.push(Constraint::Length(bars_width));
        }
    }
    let drawn = rows.iter().map(|row| {
        let mut cells: Vec<Cell<'_>> =
            laid.iter().map(|(column, width)| cell(column, row, *width, look)).collect();
        if with_bars {
            let highest = |second: &RecentSecond| second.admitted.max(second.refused);
            let highest = row.seconds.iter().map(highest).max().unwrap_or_default();
            let mut minute = |of: fn(&RecentSecond) -> u32, mood| {
                let values: Vec<_> = row.seconds.iter().map(of).collect();
                // One scale for both, so that they can be compared.
                let bars = bars(&values, highest, usize::from(bars_width));
                let bars = format!("{bars:>width$}", width = usize::from(bars_width));
                cells.push(Cell::from(Span::styled(bars, style(mood, look))));
            };
            minute(|second| second.admitted, Mood::Good);
            minute(|second| second.refused, Mood::Bad);
        }
        Row::new(cells)
    });
    let table = Table::new(drawn, widths)
        .header(Row::new(titles).style(style(Mood::Title, look)))
        .column_spacing(GAP)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(view.selected_row());
    frame.render_stateful_widget(table, area, &mut state);
}

fn draw_table<R>(
    frame: &mut Frame<'_>,
    area: Rect,
    columns: &'static [Column<R>],
    rows: &[&R],
    empty: &str,
    look: &Look,
) {
    if rows.is_empty() {
        frame.render_widget(Line::from(Span::styled(empty.to_owned(), dim(look))), area);
        return;
    }
    let visible = rows.get(..usize::from(area.height).min(rows.len())).unwrap_or_default();
    let laid = lay(columns, visible, area.width, look);
    let drawn = visible
        .iter()
        .map(|row| Row::new(laid.iter().map(|(column, width)| cell(column, row, *width, look))));
    let widths = laid.iter().map(|(_, width)| Constraint::Length(*width));
    let table = Table::new(drawn, widths)
        .header(Row::new(header(&laid)).style(style(Mood::Title, look)))
        .column_spacing(GAP);
    frame.render_widget(table, area);
}

/// The columns that there is room for, with their widths.
fn lay<R>(
    columns: &'static [Column<R>],
    rows: &[&R],
    room: u16,
    look: &Look,
) -> Vec<(&'static Column<R>, u16)> {
    let width = |column: &'static Column<R>| {
        let texts = rows.iter().map(|row| clean(&(column.cell)(row, look).0).chars().count());
        let widest = texts.max().unwrap_or_default().max(column.title.len());
        (column, u16::try_from(widest).unwrap_or(u16::MAX))
    };
    let mut laid: Vec<_> = columns.iter().map(width).collect();
    let needed = |laid: &[(&Column<R>, u16)]| -> usize {
        laid.iter().map(|(_, width)| usize::from(*width) + usize::from(GAP)).sum()
    };
    while needed(&laid) > usize::from(room.saturating_add(GAP)) {
        let Some(extra) = laid.iter().rposition(|(column, _)| column.is_extra) else { break };
        laid.remove(extra);
    }
    laid
}

fn header<R>(laid: &[(&'static Column<R>, u16)]) -> Vec<Cell<'static>> {
    laid.iter().map(|(column, _)| aligned(column.title, column.side, Style::new())).collect()
}

fn cell<R>(column: &Column<R>, row: &R, _: u16, look: &Look) -> Cell<'static> {
    let (text, mood) = (column.cell)(row, look);
    aligned(&clean(&text), column.side, style(mood, look))
}

fn aligned(text: &str, side: Side, style: Style) -> Cell<'static> {
    let alignment = match side {
        Side::Left => Alignment::Left,
        Side::Right => Alignment::Right,
    };
    Cell::from(Text::styled(text.to_owned(), style).alignment(alignment))
}

fn draw_help(frame: &mut Frame<'_>) {
    const HELP: &str = "\
j k, arrows   select a workload
g G           the first, the last
enter         its limits and refusals only; again: all
esc           back
s             sort by file, refused, admitted, name
p             freeze, go on
q, ctrl-c     quit

ADMITTED and REFUSED are new connections per second.
USE is what was offered, of a limit's rate.
Refusals are sampled; the counts are exact.";
    let lines = HELP.lines().count() as u16 + 2;
    let widest = HELP.lines().map(str::len).max().unwrap_or_default() as u16 + 4;
    let area = frame.area();
    let (width, height) = (widest.min(area.width), lines.min(area.height));
    let area = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    frame.render_widget(Clear, area);
    let block = Block::new().borders(Borders::ALL).title(" any key: back ");
    frame.render_widget(Paragraph::new(HELP).block(block), area);
}

fn style(mood: Mood, look: &Look) -> Style {
    match mood {
        Mood::Title => Style::new().add_modifier(Modifier::BOLD),
        Mood::Good if look.colours => Style::new().fg(Color::Green),
        Mood::Notable if look.colours => Style::new().fg(Color::Yellow),
        Mood::Bad if look.colours => Style::new().fg(Color::Red),
        _ => Style::new(),
    }
}

fn dim(look: &Look) -> Style {
    if look.colours { Style::new().add_modifier(Modifier::DIM) } else { Style::new() }
}

#[cfg(test)]
#[path = "draw_tests.rs"]
mod tests;
