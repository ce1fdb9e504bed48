//! What can be said of a conversation without the model: what its template adds, and which turns are the oldest.

use torchless::chat::{ChatTemplate, Message, Role};

/// What the template itself tells the model where nobody does: the default that some templates have.
pub fn told_by(template: &ChatTemplate) -> Option<String> {
    const SYSTEM: &str = "\u{10fffc}";
    const USER: &str = "\u{10fffd}";
    let (system, user) = (Message::new(Role::System, SYSTEM), Message::new(Role::User, USER));
    let with = template.render(&[system, user.clone()], true).ok()?;
    let without = template.render(&[user], true).ok()?;
    // What stands where a system's message would, between what the template writes around one.
    let (before, rest) = with.split_once(SYSTEM)?;
    let (after, _) = rest.split_once(USER)?;
    let (beginning, _) = without.split_once(USER)?;
    let told = beginning.strip_prefix(before)?.strip_suffix(after)?.trim();
    (!told.is_empty()).then(|| told.to_owned())
}

/// A conversation without its `n` oldest turns, or without the older half of them, and how many that were. What the system
/// says stays.
pub fn without_oldest(messages: &[Message], n: Option<usize>) -> (Vec<Message>, usize) {
    let is_start = |(i, message): (usize, &Message)| (message.role == Role::User).then_some(i);
    let starts: Vec<usize> = messages.iter().enumerate().filter_map(is_start).collect();
    let dropped = n.unwrap_or(starts.len().div_ceil(2)).min(starts.len());
    let from = match dropped {
        0 => 0,
        _ => starts.get(dropped).copied().unwrap_or(messages.len()),
    };
    let kept = messages.iter().enumerate().filter(|(i, m)| m.role == Role::System || *i >= from);
    (kept.map(|(_, message)| message.clone()).collect(), dropped)
}
