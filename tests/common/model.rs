//! The `.bin` files of `tests/fixtures/models`.

use torchless::model::Model;

use super::fixture::fixture;

/// The model of this file.
pub fn model(file: &str) -> Model {
    Model::open(fixture(file)).unwrap()
}
