//! "did you mean": the known word that is nearest to one that is not known.

/// The word of `known` that differs from `written` by at most two letters (one for words of up to four) left out, added,
/// exchanged or swapped with a neighbour; the nearest, of equals the first.
pub fn did_you_mean<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = if written.chars().count() <= 4 { 1 } else { 2 };
    let written = written.to_ascii_lowercase().replace('_', "-");
    let near = known.into_iter().map(|word| (distance(&written, word), word));
    near.filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// Number of edits between two words, a swap of neighbours being one (optimal string alignment distance).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before_last = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let exchange = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = exchange.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before_last[j - 2] + 1);
            }
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misses_are_recognised_and_others_are_not() {
        let known = ["bridge", "host-local", "install", "list", "ptp", "static"];
        for (written, meant) in [
            ("bridg", Some("bridge")),
            ("Bridge", Some("bridge")),
            ("bride", Some("bridge")),
            ("host_local", Some("host-local")),
            ("hostlocal", Some("host-local")),
            ("instlal", Some("install")),
            ("lsit", Some("list")),
            ("ptpp", Some("ptp")),
            ("xyz", None),
            ("pt", Some("ptp")),
            ("", None),
            ("completely-else", None),
        ] {
            assert_eq!(did_you_mean(written, known), meant, "{written}");
        }
    }
}
