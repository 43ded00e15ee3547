//! Who asks: the holder of a token, or anybody where there are no tokens yet; and whether it may have what it asks for.
//!
//! What may be done is said by [`access`](lastbeat_domain::access) alone. Here its answers become problems: what is
//! hidden looks to the last byte like what is not there.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use lastbeat_domain::access::{Access, Action, Grant, Relation, Role};
use lastbeat_domain::decide::IdempotencyKey;
use lastbeat_domain::{ClaimId, Name, Recorded, Run, RunEvent, RunId};
use lastbeat_store::secret::digest_of;

use lastbeat_wire::{EventDocument, RunDocument};

use crate::app::App;
use crate::problem::Problem;

/// What acts are recorded under, and idempotency keys kept under, where there are no tokens.
const OPEN: &str = "open";

/// What is said of a token that is sent in vain.
const ADMITS_NOBODY: &str = "this token admits nobody: it is not known here, was revoked, or its time is over";

/// Who asks; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Caller(Arc<Identity>);

#[derive(Debug)]
struct Identity {
    /// The token's id.
    scope: Name,
    /// The token's name.
    name: Name,
    /// What it may do; `None`: everything.
    grant: Option<Grant>,
}

impl Caller {
    fn open() -> Result<Caller, Problem> {
        let name = Name::new(OPEN).map_err(|_| Problem::internal())?;
        Ok(Caller(Arc::new(Identity { scope: name.clone(), name, grant: None })))
    }

    /// Tells who sends a request. A token that is not known yet may have been made a moment ago on another replica, so
    /// the log is looked at once more before it is refused.
    ///
    /// # Errors
    /// 401 if a token is needed and none is sent, or none that admits anybody.
    pub(crate) async fn of(app: &App, headers: &HeaderMap) -> Result<Caller, Problem> {
        Caller::presenting(app, headers, None).await
    }

    /// The same of a request that may carry its token elsewhere than in its header, which goes before.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub(crate) async fn presenting(app: &App, headers: &HeaderMap, token: Option<&str>) -> Result<Caller, Problem> {
        let presented = bearer(headers).or(token);
        if app.is_open() && presented.is_none() {
            return if is_from_here(headers) { Caller::open() } else { Err(from_elsewhere()) };
        }
        let Some(presented) = presented else {
            return Err(unauthorized("send a token: `Authorization: Bearer lb_…`"));
        };
        let digest = digest_of(presented);
        let mut service = app.service();
        if service.token(&digest).is_none() {
            service = app.fresh_service().await?;
        }
        let now = app.store().clock().now();
        let known = service.token(&digest);
        match known.and_then(|token| Some((token, token.admits(now)?))) {
            Some((token, grant)) => Ok(Caller(Arc::new(Identity {
                scope: token.id.clone(),
                name: token.name.clone(),
                grant: Some(grant.clone()),
            }))),
            None => Err(unauthorized(ADMITS_NOBODY)),
        }
    }

    /// Returns what acts by hand are recorded under.
    pub(crate) fn name(&self) -> Name {
        self.0.name.clone()
    }

    /// Returns the token's id, by which its rate is limited; `None` where there are no tokens.
    pub(crate) fn token(&self) -> Option<&Name> {
        self.0.grant.as_ref().map(|_| &self.0.scope)
    }

    /// Returns an idempotency key of this caller.
    pub(crate) fn idempotency_key(&self, key: Name) -> IdempotencyKey {
        IdempotencyKey { scope: self.0.scope.clone(), key }
    }

    /// Returns what its token is for; `None` where there are no tokens.
    pub(crate) fn role(&self) -> Option<Role> {
        self.0.grant.as_ref().map(|grant| grant.role)
    }

    /// Returns the executor that it speaks for, if it is bound to one.
    pub(crate) fn executor(&self) -> Option<&Name> {
        self.0.grant.as_ref().and_then(|grant| grant.executor.as_ref())
    }

    /// Returns the device that its executor presents, if it is bound to one.
    pub(crate) fn device(&self) -> Option<&Name> {
        self.0.grant.as_ref().and_then(|grant| grant.device.as_ref())
    }

    /// Returns the lanes that it is bound to; none: all.
    pub(crate) fn lanes(&self) -> &[Name] {
        self.0.grant.as_ref().map_or(&[], |grant| &grant.lanes)
    }

    /// Says whether it may do something whatever it is done to.
    pub(crate) fn may_always(&self, action: Action) -> bool {
        let Some(grant) = &self.0.grant else { return true };
        Relation::ALL.into_iter().all(|relation| grant.access(action, relation) == Access::Allowed)
    }

    /// Checks that it may do something that is about no run and no lane.
    ///
    /// # Errors
    /// 403 if it may not.
    pub(crate) fn check(&self, action: Action) -> Result<(), Problem> {
        if self.may_always(action) { Ok(()) } else { Err(self.forbidden()) }
    }

    /// Checks that it may do something to a run.
    ///
    /// # Errors
    /// 404 if it may not see the run, 403 if it may not do that.
    pub(crate) fn check_run(&self, action: Action, run: &Run) -> Result<(), Problem> {
        let Some(grant) = &self.0.grant else { return Ok(()) };
        self.said(grant.access(action, grant.to_run(run)), || unknown_run(run.id))
    }

    /// Checks that it may report on an attempt of a run under a claim. An executor may speak of the attempts that it holds
    /// or held, whatever became of them, and never of one that another holds or may get.
    ///
    /// # Errors
    /// As [`Self::check_run`].
    pub(crate) fn check_report(&self, run: &Run, attempt: u32, claim: Option<&ClaimId>) -> Result<(), Problem> {
        let Some(own) = self.executor() else { return self.check_run(Action::Report, run) };
        self.check_run(Action::SeeRun, run)?;
        let is_own = run.executor() == Some(own);
        let current = run.claim.as_ref().and_then(|held| held.id.as_ref());
        let is_current = attempt == run.attempt && (claim.is_none() || claim == current);
        if (is_current && !is_own) || attempt > run.attempt { Err(self.forbidden()) } else { Ok(()) }
    }

    /// Says whether a claim is the one under which it holds a run now. Nothing less is kept as known: of an earlier attempt
    /// it may speak whatever claim it quotes, and so it could have another's taken for its own.
    pub(crate) fn holds(&self, run: &Run, claim: &ClaimId) -> bool {
        let current = run.claim.as_ref().filter(|held| Some(&held.executor) == self.executor());
        current.and_then(|held| held.id.as_ref()) == Some(claim)
    }

    /// Checks that it would still be admitted.
    ///
    /// # Errors
    /// 401 if not.
    pub(crate) fn check_admitted(&self, app: &App) -> Result<(), Problem> {
        if self.is_still_admitted(app) { Ok(()) } else { Err(unauthorized(ADMITS_NOBODY)) }
    }

    /// Says whether it would still be admitted: its token was not revoked meanwhile and its time is not over, or there are
    /// still no tokens. What goes on for long asks this again.
    pub(crate) fn is_still_admitted(&self, app: &App) -> bool {
        let Some(scope) = self.token() else { return app.is_open() };
        let now = app.store().clock().now();
        app.service().tokens.of_id(scope).is_some_and(|token| token.admits(now).is_some())
    }

    /// Takes the fencing token out of what an executor is shown of another's claim: with it, it could speak for the other.
    pub(crate) fn veil(&self, shown: &mut RunDocument) {
        if self.executor().is_some() && shown.executor.as_ref() != self.executor() {
            shown.claim = None;
        }
    }

    /// Does the same to a fact.
    pub(crate) fn veil_fact(&self, fact: &mut EventDocument) {
        let Some(own) = self.executor() else { return };
        if let EventDocument::Run(Recorded { event: RunEvent::Claimed { executor, claim, .. }, .. }) = fact
            && executor != own
        {
            *claim = None;
        }
    }

    /// Says whether it may see a run.
    pub(crate) fn sees(&self, run: &Run) -> bool {
        self.check_run(Action::SeeRun, run).is_ok()
    }

    /// Checks that it may do something to a lane.
    ///
    /// # Errors
    /// 404 if it may not see the lane, 403 if it may not do that.
    pub(crate) fn check_lane(&self, action: Action, lane: &Name) -> Result<(), Problem> {
        let Some(grant) = &self.0.grant else { return Ok(()) };
        self.said(grant.access(action, grant.to_lane(lane)), || unknown_lane(lane))
    }

    /// Checks that it may claim in a lane for an executor.
    ///
    /// # Errors
    /// 403 if it may not.
    pub(crate) fn check_claim(
        &self,
        action: Action,
        lane: &Name,
        executor: &Name,
        device: Option<&Name>,
    ) -> Result<(), Problem> {
        let Some(grant) = &self.0.grant else { return Ok(()) };
        self.said(grant.access(action, grant.to_claim(lane, executor, device)), || unknown_lane(lane))
    }

    fn said(&self, access: Access, hidden: impl FnOnce() -> Problem) -> Result<(), Problem> {
        match access {
            Access::Allowed => Ok(()),
            Access::Forbidden => Err(self.forbidden()),
            Access::Hidden => Err(hidden()),
        }
    }

    fn forbidden(&self) -> Problem {
        let role = self.0.grant.as_ref().map_or(Role::Admin, |grant| grant.role);
        Problem::forbidden(format!("a token of role {role} like this one may not do that"))
    }
}

/// Says that there is no such run, as the command line says it.
pub(crate) fn unknown_run(run: RunId) -> Problem {
    Problem::not_found("unknown_run", format!("there is no run {run}; `lastbeat run list` shows what there is"))
}

fn unknown_lane(lane: &Name) -> Problem {
    Problem::not_found("unknown_lane", format!("there is no lane {lane}"))
}

/// Where everybody on this machine may do everything, a web page from elsewhere that a browser on it shows must not: not
/// by a form that it sends, nor by a name of its own that it lets lead to this machine.
fn is_from_here(headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    // A browser always says it.
    let host = text(header::HOST).unwrap_or("localhost");
    let origin = text(header::ORIGIN);
    let own = |origin: &str| origin.split_once("://").is_some_and(|(_, of)| of.eq_ignore_ascii_case(host));
    is_this_machine(host) && origin.is_none_or(own)
}

fn is_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or_default(),
    };
    let is_loopback = name.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    is_loopback || name.eq_ignore_ascii_case("localhost")
}

fn from_elsewhere() -> Problem {
    Problem::forbidden(
        "without tokens only this machine is served, by the name localhost or its loopback address; \
         `lastbeat token create` makes the first token",
    )
}

fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().unwrap_or_default();
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Some(token.trim()),
        // Sent, and of no use: that is not the same as not sent.
        _ => Some(""),
    }
}

impl FromRequestParts<App> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Caller, Problem> {
        // Put there by the gate; without it nobody is admitted.
        parts.extensions.get::<Caller>().cloned().ok_or_else(|| unauthorized("no token was looked at"))
    }
}

/// Reads a run and checks that the caller may do something to it.
///
/// # Errors
/// 404 if there is no such run or the caller may not see it, 403 if it may not do that, or if the store fails.
pub(crate) async fn permitted_run(app: &App, caller: &Caller, action: Action, id: RunId) -> Result<Run, Problem> {
    let run = app.store().run(id).await?.ok_or_else(|| unknown_run(id))?;
    caller.check_run(action, &run)?;
    Ok(run)
}
