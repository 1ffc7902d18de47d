//! The text format of Prometheus, version 0.0.4: families of samples, each with help and type before it.

use std::fmt::Write as _;

/// What a family's numbers mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size.
    Histogram,
}

/// A page of metrics in the making.
#[derive(Debug, Default)]
pub(super) struct Page(String);

/// A family in the making; ends when the next one begins.
pub(super) struct Family<'a> {
    page: &'a mut String,
    name: &'static str,
}

impl Page {
    /// Begins a family.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // Writing into a string can't fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        Family { page: &mut self.0, name }
    }

    /// A family of one number.
    pub(super) fn one(&mut self, name: &'static str, kind: Kind, help: &str, value: f64) {
        self.family(name, kind, help).sample("", &[], value);
    }

    /// The whole page.
    pub(super) fn end(self) -> String {
        self.0
    }
}

impl Family<'_> {
    /// One number, `suffix` after the family's name.
    pub(super) fn sample(&mut self, suffix: &str, labels: &[(&str, &str)], value: f64) {
        let _ = write!(self.page, "{}{suffix}", self.name);
        for (i, (name, value)) in labels.iter().enumerate() {
            let _ = write!(self.page, "{}{name}=\"", if i == 0 { '{' } else { ',' });
            for c in value.chars() {
                match c {
                    '\\' => self.page.push_str("\\\\"),
                    '"' => self.page.push_str("\\\""),
                    '\n' => self.page.push_str("\\n"),
                    c => self.page.push(c),
                }
            }
            self.page.push('"');
        }
        let _ = writeln!(self.page, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_written_as_the_format_wants() {
        let mut page = Page::default();
        page.one("a_total", Kind::Counter, "Things.", 3.0);
        let mut family = page.family("b", Kind::Gauge, "Others.");
        family.sample("", &[("x", "1"), ("y", "a\"b\\c\nd")], 0.25);
        family.sample("", &[("x", "2"), ("y", "")], f64::INFINITY);
        let wanted = "# HELP a_total Things.\n# TYPE a_total counter\na_total 3\n# HELP b Others.\n# TYPE b gauge\n\
                      b{x=\"1\",y=\"a\\\"b\\\\c\\nd\"} 0.25\nb{x=\"2\",y=\"\"} inf\n";
        assert_eq!(page.end(), wanted);
    }
}
