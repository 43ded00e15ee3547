//! Which path leads where, and through which gate.

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{answer, panicked, unknown_path};
use crate::app::App;
use crate::{
    backtest, claims, dashboard, events, executors, gate, goals, health, heartbeats, lanes, openapi, reports, runs,
    tokens,
};

/// The routes of heartbeats.
fn beats() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(heartbeats::one)).routes(routes!(heartbeats::many))
}

/// The routes that may wait for work.
fn waiting() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(claims::claim))
}

/// The other routes of the API.
fn shared() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(runs::create, runs::list))
        .routes(routes!(runs::show))
        .routes(routes!(runs::why))
        .routes(routes!(runs::replay))
        .routes(routes!(events::of_run))
        .routes(routes!(events::bundle))
        .routes(routes!(reports::start))
        .routes(routes!(reports::complete))
        .routes(routes!(reports::fail))
        .routes(routes!(reports::cancelled))
        .routes(routes!(reports::cancel))
        .routes(routes!(reports::requeue))
        .routes(routes!(reports::reap))
        .routes(routes!(goals::list))
        .routes(routes!(goals::show))
        .routes(routes!(lanes::list))
        .routes(routes!(lanes::show, lanes::set))
        .routes(routes!(backtest::backtest))
        .routes(routes!(lanes::holds))
        .routes(routes!(lanes::release))
        .routes(routes!(events::feed))
        .routes(routes!(executors::list))
        .routes(routes!(tokens::create, tokens::list))
        .routes(routes!(tokens::revoke))
}

/// The description of all routes.
pub(crate) fn document() -> utoipa::openapi::OpenApi {
    let routes = OpenApiRouter::with_openapi(openapi::about()).merge(beats()).merge(waiting()).merge(shared());
    routes.into_openapi()
}

/// Makes the router of a server.
pub(crate) fn router(app: &App) -> Router {
    let through = |routes: OpenApiRouter<App>| Router::from(routes);
    let beats = through(beats()).layer(from_fn_with_state(app.clone(), gate::beat));
    let waiting = through(waiting()).layer(from_fn_with_state(app.clone(), gate::queue));
    let shared = through(shared())
        .route("/metrics", get(health::metrics))
        .route("/openapi.json", get(openapi::document))
        .layer(from_fn_with_state(app.clone(), gate::share));
    let admitted =
        Router::new().merge(beats).merge(waiting).merge(shared).layer(from_fn_with_state(app.clone(), gate::admit));
    Router::new()
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        // A browser sends no token of its own accord. The page tells nothing; the document that it shows does.
        .route("/docs", get(openapi::page))
        .route("/docs/page.js", get(openapi::script))
        .route("/docs/page.css", get(openapi::style))
        .merge(admitted)
        .merge(dashboard::routes(app))
        .fallback(unknown_path)
        .with_state(app.clone())
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(app.clone(), answer))
}
