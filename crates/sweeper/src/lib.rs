//! The sweeper: plans what to reap and re-arm, then carries it out.
//!
//! Any number of sweepers work on one store at once, and none leads. A pass reads what is due, plans on what it read
//! ([`SweepPlan`], pure), and hands the plan to the store, which judges every run again under its lock. So a plan made
//! on stale state reaps nobody: a heartbeat that came in between wins, and the pass counts a lost race.

mod pass;
mod plan;
mod report;
mod run;

pub use pass::{Sweeper, dry_run};
pub use plan::SweepPlan;
pub use report::{Deaf, Held, ReapedRun, Released, SweepReport};
pub use run::sweep_until;
