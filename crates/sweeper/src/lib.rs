//! The sweeper: plans what to reap, re-arm and hold, then carries it out.
