//! Stop strings in streamed text, wherever the token borders fall.

/// Lets text through up to the first stop string, holding back what may be the beginning of one.
#[derive(Debug)]
pub struct StopFilter {
    stops: Vec<String>,
    held: String,
}

impl StopFilter {
    /// A filter for these strings; empty ones are ignored.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        Self { stops: stops.into_iter().filter(|s| !s.is_empty()).collect(), held: String::new() }
    }

    /// Appends `text`; returns what can be shown, and whether a stop string was found: then this is the end, and
    /// neither the stop string nor what follows it is shown.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let safe = self.held.len() - self.longest_beginning();
        let rest = self.held.split_off(safe);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What is still held back, when no more text comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of the held text that may be the beginning of a stop string.
    fn longest_beginning(&self) -> usize {
        let held = self.held.as_str();
        let starts = held.char_indices().map(|(i, _)| i);
        starts
            .map(|i| &held[i..])
            .find(|tail| self.stops.iter().any(|s| s.starts_with(tail)))
            .map_or(0, str::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way to cut `text` into two pushes, and character by character.
    fn all_splits(stops: &[&str], text: &str) -> Vec<(String, bool)> {
        let run = |parts: &[&str]| {
            let mut filter = StopFilter::new(stops.iter().map(|s| (*s).to_owned()));
            let mut out = String::new();
            for part in parts {
                let (shown, stopped) = filter.push(part);
                out.push_str(&shown);
                if stopped {
                    return (out, true);
                }
            }
            (out + &filter.finish(), false)
        };
        let cuts = text.char_indices().map(|(i, _)| i);
        let mut results: Vec<_> = cuts.map(|i| run(&[&text[..i], &text[i..]])).collect();
        let chars: Vec<String> = text.chars().map(String::from).collect();
        results.push(run(&chars.iter().map(String::as_str).collect::<Vec<_>>()));
        results.dedup();
        results
    }

    #[test]
    fn cuts_before_the_stop_string_wherever_the_borders_are() {
        assert_eq!(all_splits(&["\nUser:"], "Hello.\nUser: hi"), [("Hello.".to_owned(), true)]);
        assert_eq!(all_splits(&["ab", "ü!"], "xaü!ab"), [("xa".to_owned(), true)]);
    }

    #[test]
    fn loses_nothing_without_one() {
        assert_eq!(all_splits(&["aab", "日本"], "aaaa 日"), [("aaaa 日".to_owned(), false)]);
    }

    #[test]
    fn shows_text_as_soon_as_it_cannot_be_a_stop_string() {
        let mut filter = StopFilter::new(["END".to_owned()]);
        assert_eq!(filter.push("the E"), ("the ".to_owned(), false));
        assert_eq!(filter.push("N"), (String::new(), false));
        assert_eq!(filter.push("tropy"), ("ENtropy".to_owned(), false));
    }

    #[test]
    fn an_empty_stop_string_never_stops() {
        assert_eq!(StopFilter::new([String::new()]).push("a"), ("a".to_owned(), false));
    }
}
