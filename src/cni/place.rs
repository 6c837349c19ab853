//! Where in a file a value stands. The decoder does not keep positions; this second small walk over a text that is known
//! to be JSON does.

use std::fmt;

/// A value's place, and those of what it contains.
#[derive(Debug, Default, PartialEq)]
pub struct Place {
    /// Byte at which the value begins.
    at: usize,
    /// Members of an object in document order: key, where the key begins, value.
    members: Vec<(String, usize, Place)>,
    items: Vec<Place>,
}

/// Line and column, both from 1; columns count characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl Place {
    /// The places of a document that [`super::json::Value::parse`] accepted (which also bounds the nesting).
    pub fn of(text: &str) -> Place {
        Walk { text, at: 0 }.value()
    }

    /// The place that a path such as `plugins[0].ipam.subnet` leads to, or the nearest one around it. Keys match without
    /// regard to case; of several the last.
    pub fn find(&self, path: &str) -> usize {
        let mut here = self;
        for step in path.split(['.', '[', ']']).filter(|step| !step.is_empty()) {
            let item = step.parse::<usize>().ok().and_then(|n| here.items.get(n));
            let member = || here.members.iter().rev().find(|(key, ..)| key.eq_ignore_ascii_case(step));
            match item.or_else(|| member().map(|(_, _, place)| place)) {
                Some(next) => here = next,
                None => break,
            }
        }
        here.at
    }

    /// Where the key at the end of a path stands; the nearest value around it when there is no such key.
    pub fn find_key(&self, path: &str) -> usize {
        let (parent, key) = path.rsplit_once('.').unwrap_or(("", path));
        let found = self.object(parent).and_then(|place| place.members.iter().rev().find(|(k, ..)| k == key));
        found.map_or_else(|| self.find(path), |(_, at, _)| *at)
    }

    fn object(&self, path: &str) -> Option<&Place> {
        let mut here = self;
        for step in path.split(['.', '[', ']']).filter(|step| !step.is_empty()) {
            let item = step.parse::<usize>().ok().and_then(|n| here.items.get(n));
            let member = || here.members.iter().rev().find(|(key, ..)| key.eq_ignore_ascii_case(step));
            here = item.or_else(|| member().map(|(_, _, place)| place))?;
        }
        Some(here)
    }
}

/// Line and column of a byte.
pub fn position(text: &str, at: usize) -> Position {
    let before = text.get(..at).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    Position { line: before.matches('\n').count() + 1, column: line.chars().count() + 1 }
}

struct Walk<'a> {
    text: &'a str,
    at: usize,
}

impl Walk<'_> {
    /// The next byte that is no white space, comma or colon.
    fn next(&mut self) -> u8 {
        let bytes = self.text.as_bytes();
        while bytes.get(self.at).is_some_and(|b| b" \t\r\n,:".contains(b)) {
            self.at += 1;
        }
        bytes.get(self.at).copied().unwrap_or_default()
    }

    fn value(&mut self) -> Place {
        let mut place = Place::default();
        let first = self.next();
        place.at = self.at;
        match first {
            b'{' => {
                self.at += 1;
                while self.next() == b'"' {
                    let at = self.at;
                    let key = self.string();
                    place.members.push((key, at, self.value()));
                }
                self.at += 1;
            }
            b'[' => {
                self.at += 1;
                while !matches!(self.next(), b']' | 0) {
                    place.items.push(self.value());
                }
                self.at += 1;
            }
            b'"' => drop(self.string()),
            _ => {
                let rest = self.text.get(self.at..).unwrap_or_default();
                self.at += rest.find([',', '}', ']', ' ', '\t', '\r', '\n']).unwrap_or(rest.len()).max(1);
            }
        }
        place
    }

    fn string(&mut self) -> String {
        let (start, bytes) = (self.at, self.text.as_bytes());
        self.at += 1;
        while !matches!(bytes.get(self.at), None | Some(b'"')) {
            self.at += if bytes[self.at] == b'\\' { 2 } else { 1 };
        }
        self.at += 1;
        serde_json::from_str(self.text.get(start..self.at).unwrap_or_default()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_to_line_and_column_of_its_value() {
        let text = "{ \"name\": \"a\\\"}\",\n  \"plugins\": [ {}, {\n    \"é\": 1, \"ipam\" : {\"ranges\":[[{\"subnet\":5}]]}}]}";
        let places = Place::of(text);
        for (path, line, column) in [
            ("", 1, 1),
            ("name", 1, 11),
            ("plugins", 2, 14),
            ("plugins[1]", 2, 20),
            ("plugins[1].IPAM.ranges[0][0].subnet", 3, 44),
            ("plugins[1].nothing.here", 2, 20),
        ] {
            assert_eq!(position(text, places.find(path)), Position { line, column }, "{path}");
        }
        assert_eq!(position(text, places.find_key("plugins[1].ipam")), Position { line: 3, column: 13 });
    }
}
