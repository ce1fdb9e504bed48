//! The names of GGUF files that come in parts.

/// `NAME` and 3 of `NAME-00001-of-00003`.
pub fn part_of(stem: &str) -> Option<(&str, usize)> {
    let (rest, parts) = stem.rsplit_once("-of-")?;
    let (base, number) = rest.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts = parts.parse().ok().filter(|_| is_number(parts) && is_number(number))?;
    Some((base, parts))
}

/// What part `number`, from 1 on, of `NAME`'s is called.
pub fn named(base: &str, number: usize, parts: usize) -> String {
    format!("{base}-{number:05}-of-{parts:05}")
}

/// What the first part is called, of the same model as `NAME-00002-of-00003`.
pub fn first_part(stem: &str) -> Option<String> {
    part_of(stem).map(|(base, parts)| named(base, 1, parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_by_their_names() {
        assert_eq!(part_of("a-b-00002-of-00003"), Some(("a-b", 3)));
        assert_eq!(first_part("a-b-00002-of-00003").as_deref(), Some("a-b-00001-of-00003"));
        for whole in ["a", "a-of-b", "a-00001-of-3", "a-1-of-00003", "00001-of-00003", "a-0000x-of-00003"] {
            assert_eq!(part_of(whole), None, "{whole}");
        }
    }
}
