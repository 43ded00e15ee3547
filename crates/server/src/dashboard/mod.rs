//! The dashboard: what is alive now, and why a run died, for people who would rather look than read.
//!
//! Pages are made on the server and say everything without a script; a script then keeps them current. It asks for the
//! page that it is on again and puts what changed in its place, so what is shown live is made by the same code as what is
//! shown first. Nothing here decides who is alive: verdicts come judged from the store, and so do the silences that a
//! timeline draws.
//!
//! **Invariant:** a page asks the store for no more than a number of runs that is written down, however many there are.
//!
//! **Invariant:** no page holds a script, a style or a link to another origin; the content security policy forbids them.

mod acts;
mod assets;
mod backtest;
mod executors;
mod frame;
mod gathered;
mod goals;
mod lanes;
mod live;
mod overview;
mod policy;
mod posted;
mod refused;
mod run;
mod runs;
mod session;
mod start;
mod timeline;
mod why;
mod words;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};

use crate::app::App;
use crate::gate;

pub(crate) use gathered::Kept;

/// The routes of the dashboard, behind the gate that all requests but heartbeats and claims share.
pub(crate) fn routes(app: &App) -> Router<App> {
    let pages = Router::new()
        .route("/", get(overview::page))
        .route("/goals", get(goals::page))
        .route("/runs", get(runs::page))
        .route("/runs/{id}", get(run::page))
        .route("/runs/{id}/why", get(run::why))
        .route("/runs/{id}/timeline", get(run::timeline))
        .route("/runs/{id}/document", get(run::document))
        .route("/runs/{id}/bundle", get(run::bundle))
        .route("/runs/{id}/{act}", post(acts::on_run))
        .route("/lanes", get(lanes::list))
        .route("/lanes/{lane}", get(lanes::page).post(lanes::set))
        .route("/lanes/{lane}/release", post(acts::release))
        .route("/lanes/{lane}/backtest", get(backtest::page))
        .route("/executors", get(executors::page))
        .route("/live", get(live::follow))
        .layer(from_fn_with_state(app.clone(), gate::share))
        .layer(from_fn_with_state(app.clone(), session::admit));
    let signing = Router::new()
        .route("/sign-in", get(session::ask).post(session::sign_in))
        .route("/sign-out", post(session::sign_out))
        .layer(from_fn_with_state(app.clone(), gate::share));
    // A request goes through the gate once: with two places each, as many as there are would wait for one another.
    let shared = pages.merge(signing).layer(from_fn(refused::shown));
    // They tell nothing of what is in the store.
    shared.route("/assets/{file}", get(assets::file))
}
