//! aavae
