"""Steps of the pipeline: what is recorded of them."""
