//! The arguments of a call, by place or by name.

use minijinja::value::{Kwargs, Rest, Value, ValueOrKwargs, from_args};
use minijinja::{Error, ErrorKind};

/// An operation that Python refuses.
pub(super) fn refuse<T>(why: impl Into<String>) -> Result<T, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, why.into()))
}

/// What a filter, a function or a method is given.
pub(super) struct Args {
    placed: Vec<Value>,
    named: Kwargs,
}

impl Args {
    pub(super) fn new(values: &[Value]) -> Result<Self, Error> {
        let (placed, named): (&[Value], Kwargs) = from_args(values)?;
        Ok(Self { placed: placed.to_vec(), named })
    }

    pub(super) fn of(rest: Rest<ValueOrKwargs>) -> Result<Self, Error> {
        Self::new(&rest.into_values())
    }

    /// The argument at this place, or of this name.
    pub(super) fn get(&self, place: usize, name: &str) -> Result<Option<Value>, Error> {
        let named: Option<Value> = if self.named.has(name) { self.named.get(name)? } else { None };
        Ok(self.placed.get(place).cloned().or(named))
    }

    /// The same, where `None` stands for the default.
    pub(super) fn some(&self, place: usize, name: &str) -> Result<Option<Value>, Error> {
        Ok(self.get(place, name)?.filter(|value| !value.is_none()))
    }

    pub(super) fn text(&self, place: usize, name: &str) -> Result<Option<String>, Error> {
        match self.some(place, name)? {
            None => Ok(None),
            Some(value) => match value.as_str() {
                Some(text) => Ok(Some(text.to_owned())),
                None => refuse(format!("{name}: a string is needed, not {}", value.kind())),
            },
        }
    }

    /// A text that there must be.
    pub(super) fn need(&self, place: usize, name: &str) -> Result<String, Error> {
        self.text(place, name)?.map_or_else(|| refuse(format!("{name}: a string is missing")), Ok)
    }

    pub(super) fn int(&self, place: usize, name: &str) -> Result<Option<i64>, Error> {
        match self.some(place, name)? {
            None => Ok(None),
            Some(value) if value.is_integer() => Ok(Some(value.as_i64().unwrap_or(i64::MAX))),
            Some(value) => refuse(format!("{name}: a whole number is needed, not {}", value.kind())),
        }
    }

    pub(super) fn flag(&self, place: usize, name: &str) -> Result<bool, Error> {
        Ok(self.get(place, name)?.is_some_and(|value| value.is_true()))
    }

    /// Refuses more than `most` arguments by place, and names that nobody asked for.
    pub(super) fn finish(&self, most: usize) -> Result<(), Error> {
        if self.placed.len() > most {
            return Err(ErrorKind::TooManyArguments.into());
        }
        self.named.assert_all_used()
    }
}
