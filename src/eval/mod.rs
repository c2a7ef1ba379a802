//! Measuring a trained encoder, frozen: features, the linear probe, kNN, pictures.

pub mod evaluator;
pub mod grid;
pub mod knn;
pub mod probe;

impl From<knn::KnnError> for crate::run::RunError {
    fn from(error: knn::KnnError) -> Self {
        Self::Features(error.to_string())
    }
}
