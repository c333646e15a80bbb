//! "Did you mean": the known word nearest to what was written.

/// The candidate with the fewest typing errors, if they are few enough to be errors.
///
/// One error per three characters, three at most: `conections` is a slip, `limit` is not.
pub fn nearest<'a>(
    written: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let written: Vec<char> = written.chars().take(64).collect();
    let allowed = (written.len() / 3).min(3);
    candidates
        .into_iter()
        .map(|candidate| (distance(&written, &candidate.chars().collect::<Vec<_>>()), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, substitutions and swaps of neighbours that turn one word into the other.
fn distance(a: &[char], b: &[char]) -> usize {
    // Rows of the usual table: the one before the last, the last, and the one being filled.
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut row = vec![i + 1; b.len() + 1];
        for (j, to) in b.iter().enumerate() {
            let mut cost = (last[j] + usize::from(from != to)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i - 1] == *to && *from == b[j - 1] {
                cost = cost.min(before[j - 1] + 1);
            }
            row[j + 1] = cost;
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_word_and_another_word_finds_none() {
        let keys = ["connections", "outbound-connections", "mode"];
        assert_eq!(nearest("conections", keys), Some("connections"));
        assert_eq!(nearest("conenctions", keys), Some("connections"));
        assert_eq!(nearest("mdoe", keys), Some("mode"));
        assert_eq!(nearest("bandwidth", keys), None);
        assert_eq!(nearest("", keys), None);
    }

    #[test]
    fn distances_count_swaps_as_one() {
        let letters = |word: &str| word.chars().collect::<Vec<_>>();
        for (a, b, errors) in [
            ("abc", "abc", 0),
            ("abc", "acb", 1),
            ("abc", "", 3),
            ("", "ab", 2),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(&letters(a), &letters(b)), errors, "{a} {b}");
        }
    }
}
