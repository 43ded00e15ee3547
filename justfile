# What there is to run.
default:
    @just --list

# Set up what the tests need, then run all of them. Arguments go to `cargo test`.
test *ARGS:
    cargo xtask test {{ARGS}}

# All checks that a change must pass.
ci:
    .ci/run

# The whole story, with real processes, in under a minute.
demo:
    cargo run --quiet -- demo

# Build the API documentation; a warning is an error.
doc:
    cargo xtask doc

# Format everything.
fmt:
    cargo fmt --all
