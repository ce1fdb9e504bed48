//! The `.bin` files of `tests/fixtures/models`.

use std::sync::Arc;
use torchless::Model;

use super::fixture::fixture;

/// The model of this file.
pub fn model(file: &str) -> Arc<Model> {
    Arc::new(Model::open(fixture(file)).unwrap())
}
