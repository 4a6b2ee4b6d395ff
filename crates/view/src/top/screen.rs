//! What `top` shows: the figures, and what became of them since the look before.

use control::figures::{Figures, Pages, Tlb};
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Cell, Paragraph, Row, Sparkline, Table};
use std::collections::VecDeque;

/// Rates that the chart remembers.
const CHART: usize = 120;
/// Columns from which on tables stand side by side.
const WIDE: u16 = 96;
const ACCENT: Color = Color::Cyan;

/// Which of the TLB's counts.
type Count = fn(&Tlb) -> u64;

/// Everything that is shown.
#[derive(Debug)]
pub(super) struct Screen {
    now: Figures,
    before: Figures,
    /// Instructions a microsecond, the oldest first.
    mips: VecDeque<u64>,
}

impl Screen {
    pub fn new(figures: Figures) -> Self {
        Self { before: figures.clone(), now: figures, mips: VecDeque::new() }
    }

    /// Takes new figures.
    pub fn take(&mut self, figures: Figures) {
        self.before = std::mem::replace(&mut self.now, figures);
        if self.mips.len() == CHART {
            self.mips.pop_front();
        }
        let mips = self.now.vcpus.iter().filter_map(|vcpu| vcpu.rate).sum::<f64>() / 1e6;
        // No rate is negative, and none exceeds what fits.
        self.mips.push_back(mips.round() as u64);
    }

    /// Whether the machine runs.
    pub fn runs(&self) -> bool {
        self.now.status == "running"
    }

    /// How much a count has grown in a second of the machine's time.
    fn rate(&self, now: u64, before: u64) -> f64 {
        let seconds = self.now.time.saturating_sub(self.before.time) as f64 / 1e9;
        if seconds > 0.0 { now.saturating_sub(before) as f64 / seconds } else { 0.0 }
    }

    /// Draws all of it.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let watches = self.watches();
        let set = self.working_set();
        let wide = frame.area().width >= WIDE;
        let [first, second] = [watches.len(), set.len()].map(|lines| lines.clamp(1, 8) as u16 + 2);
        let below = if wide { first.max(second) } else { first + second };
        let [head, chart, tables, lower, keys] = Layout::vertical([
            Constraint::Length(2),
            Constraint::Length(4),
            Constraint::Min(6),
            Constraint::Length(below),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(Paragraph::new(self.head()), head);
        self.chart(frame, chart);
        let panels = [self.tlb(), self.faults(), self.devices()];
        let areas = if wide {
            Layout::horizontal([Constraint::Fill(1); 3]).areas::<3>(tables)
        } else {
            Layout::vertical([Constraint::Fill(1); 3]).areas::<3>(tables)
        };
        for (panel, area) in panels.into_iter().zip(areas) {
            frame.render_widget(panel, area);
        }
        let [left, right] = if wide {
            Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).areas(lower)
        } else {
            Layout::vertical([Constraint::Length(first), Constraint::Length(second)]).areas(lower)
        };
        frame.render_widget(list(watches, "Watches", "nothing is watched"), left);
        frame.render_widget(list(set, "Working set", "m sets a mark"), right);
        self.keys(frame, keys);
    }

    fn head(&self) -> Vec<Line<'static>> {
        let state = if self.runs() { Style::new().green().bold() } else { Style::new().yellow().bold() };
        let first = Line::from(vec![
            Span::styled("Vitrine ", Style::new().fg(ACCENT).add_modifier(Modifier::BOLD)),
            Span::styled(self.now.status.clone(), state),
            Span::raw(format!("  {:.1} s  {} MiB", self.now.time as f64 / 1e9, self.now.memory >> 20)),
        ]);
        let vcpu = |(index, vcpu): (usize, &control::figures::Vcpu)| {
            let place = vcpu.symbol.clone().unwrap_or_else(|| format!("rip {}", vcpu.rip.trim_start_matches('0')));
            let place = if vcpu.halted { "halted".to_owned() } else { place };
            let process = vcpu.process.as_ref().map(|process| format!(" of {process}")).unwrap_or_default();
            format!(
                "cpu{index} {place}{process}, CPL {}, {}, CR3 {}",
                vcpu.cpl,
                vcpu.paging,
                vcpu.cr3.trim_start_matches('0')
            )
        };
        let vcpus: Vec<String> = self.now.vcpus.iter().enumerate().map(vcpu).collect();
        vec![first, Line::from(vcpus.join("   ")).dim()]
    }

    fn chart(&self, frame: &mut Frame<'_>, area: Rect) {
        let now = self.mips.back().copied().unwrap_or(0);
        let block = block(&format!("{now} million instructions a second"));
        let inner = block.inner(area);
        frame.render_widget(block, area);
        let shown = usize::from(inner.width).min(self.mips.len());
        let data: Vec<u64> = self.mips.iter().skip(self.mips.len() - shown).copied().collect();
        frame.render_widget(Sparkline::default().data(&data).style(Style::new().fg(ACCENT)), inner);
    }

    fn tlb(&self) -> Table<'static> {
        let of = |figures: &Figures, count: Count| figures.vcpus.iter().map(|vcpu| count(&vcpu.tlb)).sum::<u64>();
        let rows: [(&str, Count); 9] = [
            ("slow-path hits", |tlb| tlb.hits),
            ("victim hits", |tlb| tlb.victim_hits),
            ("global hits", |tlb| tlb.global_hits),
            ("page walks", |tlb| tlb.walks),
            ("that faulted", |tlb| tlb.faults),
            ("page flushes", |tlb| tlb.page_flushes),
            ("context flushes", |tlb| tlb.context_flushes),
            ("full flushes", |tlb| tlb.full_flushes),
            ("tables grown", |tlb| tlb.grown),
        ];
        let rows = rows.map(|(name, count)| (name.to_owned(), of(&self.now, count), of(&self.before, count)));
        self.table("TLB", rows)
    }

    fn faults(&self) -> Table<'static> {
        let of = |figures: &Figures, vector: u8| {
            let all = figures.vcpus.iter().flat_map(|vcpu| &vcpu.delivered);
            all.filter(|delivered| delivered.vector == vector).map(|delivered| delivered.count).sum::<u64>()
        };
        let mut vectors: Vec<(u8, String)> = Vec::new();
        for delivered in self.now.vcpus.iter().flat_map(|vcpu| &vcpu.delivered) {
            if !vectors.iter().any(|(vector, _)| *vector == delivered.vector) {
                let number = if delivered.vector < 32 { String::new() } else { format!(" {:x}h", delivered.vector) };
                vectors.push((delivered.vector, delivered.name.clone() + &number));
            }
        }
        let row = |(vector, name): (u8, String)| (name, of(&self.now, vector), of(&self.before, vector));
        let mut rows: Vec<_> = vectors.into_iter().map(row).collect();
        rows.sort_by_key(|(_, count, _)| std::cmp::Reverse(*count));
        self.table("Faults and interrupts", rows)
    }

    fn devices(&self) -> Table<'static> {
        let mut rows: Vec<(String, u64, u64)> = Vec::new();
        for device in &self.now.devices {
            let same = |other: &&control::figures::Device| (&other.name, other.ports) == (&device.name, device.ports);
            let before = self.before.devices.iter().find(same).map_or(0, |device| device.reads + device.writes);
            let bus = if device.ports { "ports" } else { "memory" };
            rows.push((format!("{} ({bus})", device.name), device.reads + device.writes, before));
        }
        rows.retain(|(_, count, _)| *count > 0);
        rows.sort_by_key(|(_, count, _)| std::cmp::Reverse(*count));
        self.table("Devices", rows)
    }

    /// A table of counts and rates, from names, counts now and counts before.
    fn table(&self, title: &str, rows: impl IntoIterator<Item = (String, u64, u64)>) -> Table<'static> {
        let right = |text: String| Cell::from(Line::from(text).alignment(Alignment::Right));
        let rows = rows.into_iter().map(|(name, now, before)| {
            let rate = self.rate(now, before);
            let style = if rate > 0.0 { Style::new() } else { Style::new().dim() };
            Row::new([Cell::from(name), right(compact(now as f64)), right(compact(rate))]).style(style)
        });
        let widths = [Constraint::Fill(1), Constraint::Length(8), Constraint::Length(8)];
        let head = Row::new([Cell::from(""), right("total".to_owned()), right("/s".to_owned())]).dim();
        Table::new(rows, widths).header(head).block(block(title))
    }

    fn watches(&self) -> Vec<Line<'static>> {
        let watched = &self.now.watched;
        let watch = |watching: &control::look::Watching| {
            let hits = Span::styled(format!("{:>8} ", compact(watching.hits as f64)), Style::new().fg(ACCENT));
            let place = watching.place.as_ref().err().map(|why| format!("  {why}")).unwrap_or_default();
            Line::from(vec![hits, Span::raw(format!("{}: {}{place}", watching.id, watching.watch))])
        };
        let mut lines: Vec<Line<'static>> = watched.watches.iter().map(watch).collect();
        if let Some(last) = &watched.last {
            let dash = |address: &Option<String>| address.as_deref().map_or("-".to_owned(), trimmed);
            let by = last.by.clone().or(last.device.clone()).unwrap_or_else(|| format!("rip {}", dash(&last.rip)));
            lines.push(Line::from(format!(
                "last: {}{} by {by}  gva {} → gpa {} → hva {} → hpa {}  val {}",
                last.kind,
                last.size,
                dash(&last.gva),
                trimmed(&last.gpa),
                dash(&last.hva),
                dash(&last.hpa),
                last.value
            )));
        }
        lines
    }

    fn working_set(&self) -> Vec<Line<'static>> {
        let Some(set) = &self.now.working_set else { return Vec::new() };
        let seconds = self.now.time.saturating_sub(set.since) as f64 / 1e9;
        let line = |name: String, Pages { all, read, written, fetched }: Pages| {
            Line::from(format!("{name:<20} {:>5} MiB  r{read} w{written} x{fetched}", all.div_ceil(256)))
        };
        let mut lines = vec![line(format!("all, {seconds:.0} s"), set.total)];
        lines.extend(set.spaces.iter().map(|space| {
            let name = space.process.clone().unwrap_or_else(|| format!("CR3 {}", trimmed(&space.root)));
            line(name, space.pages)
        }));
        lines
    }

    fn keys(&self, frame: &mut Frame<'_>, area: Rect) {
        let toggle = if self.runs() { "stop" } else { "continue" };
        let keys = format!(" q quit   space {toggle}   m mark a working set   u unmark");
        frame.render_widget(Line::from(keys).style(Style::new().dim()), area);
    }
}

/// An address without leading zeros.
fn trimmed(address: &str) -> String {
    let digits = address.trim_start_matches('0');
    if digits.is_empty() { "0".to_owned() } else { digits.to_owned() }
}

fn block(title: &str) -> Block<'static> {
    Block::bordered()
        .border_type(BorderType::Rounded)
        .border_style(Style::new().dark_gray())
        .title(Span::styled(format!(" {title} "), Style::new().bold()))
}

fn list(lines: Vec<Line<'static>>, title: &str, empty: &str) -> Paragraph<'static> {
    let lines = if lines.is_empty() { vec![Line::from(empty.to_owned()).dim()] } else { lines };
    Paragraph::new(lines).block(block(title))
}

/// A number in at most six characters.
fn compact(number: f64) -> String {
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")];
    match units.into_iter().find(|(unit, _)| number >= *unit) {
        Some((1e4, _)) => format!("{:.1}k", number / 1e3),
        Some((unit, letter)) => format!("{:.1}{letter}", number / unit),
        None if number > 0.0 && number < 10.0 && number.fract() != 0.0 => format!("{number:.1}"),
        None => format!("{number:.0}"),
    }
}
