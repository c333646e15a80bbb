use ratatui::{Terminal, backend::TestBackend, buffer::Buffer};

use super::{
    super::{
        super::look::tests::PLAIN,
        screen::{
            Snapshot,
            tests::{later, snapshot},
        },
        view::tests::press,
    },
    *,
};

/// What stands on a terminal of this size.
fn drawn(view: &View, look: &Look, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, view, look)).unwrap();
    terminal.backend().buffer().clone()
}

fn text(buffer: &Buffer) -> String {
    let line = |row: u16| -> String {
        let symbols = (0..buffer.area.width).map(|column| buffer[(column, row)].symbol());
        symbols.collect::<String>().trim_end().to_owned() + "\n"
    };
    (0..buffer.area.height).map(line).collect()
}

fn shown(view: &View, width: u16, height: u16) -> String {
    text(&drawn(view, &PLAIN, width, height)).replace(env!("CARGO_PKG_VERSION"), "0.1.0")
}

fn view() -> View {
    let mut view = View::new(snapshot(), 43_198.0);
    view.update(Ok(later()), 43_200.0);
    view
}

#[test]
fn everything_is_shown_on_a_hundred_columns() {
    let expected = "\
weir 0.1.0  ready  up 3h12m  12 sources, 3 handshakes  12:00:00  1 problem: weir status
WORKLOAD  CONDITION         ATTACHED  ADMITTED  REFUSED  ADMITTED IN 60 S      REFUSED IN 60 S
web       enforced          tcx         40.0/s   20.5/s  ▂▃▃▄▄▅▅▆▆▇▇█████████  ▁▁▁▁▁▁▁▁▁▁▁▁▁▂▂▃▃▄▄▅
mysql     not-enforced      -              0/s      0/s
batch     paused, 14m left  clsact       7.0/s      0/s            ██████████            ▁▁▁▁▁▁▁▁▁▁

LIMIT                                      VALUE            OFFERED    USE       NOW  REFUSED
web connections.80                         100/s burst=200    812/s   812%    7 left   15.0/s
web connections.80 (shadow)                80/s shadow        812/s  >999%    7 left      0/s
web outbound-connections to=10.0.0.0/8     50/s               812/s   812%    7 left      0/s
web outbound-connections to=192.0.2.10/32  50/s               812/s   812%    7 left      0/s
web connections-per-source                 20/s               812/s      -         -      0/s
web max-connections.80                     500                812/s      -   40 open      0/s
web max-handshakes.80                      100                812/s      -   40 open      0/s
web breaker.80                             errors=5           812/s      -  open 12s      0/s

REFUSED AT  WORKLOAD  CONNECTION             LIMIT           REASON
11:59:57    web       10.0.0.9:51234 -> :80  connections.80  connection_rate
11:59:57    web       10.0.0.7:40000 -> :80  connections.80  connection_rate




q quit  j/k select  enter details  s sort: file  p freeze  ? help
";
    assert_eq!(shown(&view(), 100, 24), expected);
}

#[test]
fn the_plain_table_has_the_same_columns() {
    let expected = "\
WORKLOAD  CONDITION         ATTACHED  ADMITTED  REFUSED
web       enforced          tcx         40.0/s   20.5/s
mysql     not-enforced      -              0/s      0/s
batch     paused, 14m left  clsact       7.0/s      0/s
";
    assert_eq!(plain(&view().screen, &PLAIN), expected);
}

#[test]
fn a_small_terminal_loses_what_is_extra_and_nothing_panics() {
    let mut view = view();
    for (width, height) in [(80, 24), (60, 10), (40, 6), (20, 3), (1, 1), (300, 100)] {
        for keys in ["", "j\n", "?", "q", "\x1b"] {
            let _ = press(&mut view, keys);
            let text = shown(&view, width, height);
            assert_eq!(text.lines().count(), usize::from(height));
        }
    }
    let text = shown(&self::view(), 50, 20);
    assert!(text.contains("REFUSED") && !text.contains("ATTACHED"), "{text}");
    let _ = shown(&View::new(Snapshot::default(), 0.0), 80, 24);
}

#[test]
fn many_workloads_scroll_with_the_selected_one() {
    let mut many = snapshot();
    let web = many.status.workloads[0].clone();
    many.status.workloads = (0..100)
        .map(|number| {
            let name = format!("web-{number:02}");
            crate::app::view::WorkloadStatus { name, ..web.clone() }
        })
        .collect();
    let mut view = View::new(many, 0.0);
    assert!(shown(&view, 100, 30).contains("web-00 "));
    let _ = press(&mut view, "G");
    let text = shown(&view, 100, 30);
    assert!(text.contains("web-99 ") && !text.contains("nothing was refused"), "{text}");
    assert!(text.contains("connections.80") && text.contains("10.0.0.9:51234"), "{text}");
}

#[test]
fn details_help_freeze_and_loss_are_told() {
    let mut view = view();
    let _ = press(&mut view, "jj\n");
    let text = shown(&view, 100, 24);
    assert!(text.contains("no limit holds for mysql"), "{text}");
    assert!(text.contains("nothing was refused lately") && text.contains("enter all"), "{text}");
    let _ = press(&mut view, "\x1b?");
    assert!(shown(&view, 100, 24).contains("any key: back"));
    let _ = press(&mut view, "xps");
    let text = shown(&view, 120, 24);
    assert!(text.contains("frozen at 12:00:00") && text.contains("sort: refused"), "{text}");
    view.update(Err("no agent listens".to_owned()), 43_140.0);
    let text = shown(&view, 100, 24);
    assert!(text.contains("the agent is gone for 1m, trying again: no agent listens"), "{text}");
    assert!(text.contains("web "), "{text}");
}

#[test]
fn colours_are_for_whoever_wants_them_and_escapes_for_nobody() {
    let mut odd = snapshot();
    odd.status.workloads[0].name = "\x1b[2J".to_owned();
    let view = View::new(odd, 0.0);
    let colourless = drawn(&view, &PLAIN, 100, 24);
    let is_plain = |cell: &ratatui::buffer::Cell| cell.fg == Color::Reset;
    assert!(colourless.content.iter().all(is_plain));
    assert!(!text(&colourless).contains('\x1b'));
    let colourful = drawn(&view, &Look { colours: true, ..PLAIN }, 100, 24);
    assert!(colourful.content.iter().any(|cell| cell.fg == Color::Red));
}

#[test]
fn descriptors_stand_above_refusals_where_some_are_refused() {
    let offender = |user: u64| Offender {
        domain: "shop".to_owned(),
        descriptor: format!("user={user}"),
        caller: "shop/web".to_owned(),
        refused: 100 - user,
        error: 0,
        last: PLAIN.now,
    };
    let mut latest = later();
    latest.recent.time += 1.0;
    latest.refused_most = (0..40).map(offender).collect();
    let mut view = view();
    view.update(Ok(latest), 43_201.0);
    let text = shown(&view, 100, 40);
    let line = |start: &str| text.lines().position(|line| line.trim_start().starts_with(start));
    let (descriptors, refusals) = (line("REFUSED  DOMAIN"), line("REFUSED AT"));
    assert!(descriptors.is_some() && descriptors < refusals, "{text}");
    assert!(text.contains("100  shop    user=0"), "{text}");
    // Of one workload nothing is known there; and no size panics.
    let _ = press(&mut view, "j\n");
    assert!(!shown(&view, 100, 40).contains("user=0"));
    let _ = press(&mut view, "\x1b");
    for (width, height) in [(1, 1), (20, 5), (60, 12)] {
        shown(&view, width, height);
    }
}
