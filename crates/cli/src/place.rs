//! Where commands go: a store, or a server in front of one. Both answer with the same documents, so what is printed does
//! not tell them apart.

use std::ops::ControlFlow;
use std::sync::Arc;

use lastbeat_client::{Api, RunsQuery};
use lastbeat_domain::decide::Command;
use lastbeat_domain::token::TokenSpec;
use lastbeat_domain::{Name, RunId, Terms, Timestamp};
use lastbeat_store::secret::Secret;
use lastbeat_store::{Filter, Store};
use lastbeat_wire::{
    AnswerDocument, BacktestDocument, BacktestRequest, ClaimBy, ClaimRequest, CompleteRequest, CreateRequest,
    EventDocument, FailRequest, HeartbeatDocument, HeartbeatRequest, HoldsPage, IssuedTokenDocument, LaneDocument,
    LanesPage, ReleaseDocument, ReplayDocument, RunDocument, RunsPage, TokenDocument, TokenRequest, TokensPage,
    WhyDocument, answers,
};
use uuid::Uuid;

use crate::args;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::run::{execute, person};

/// How many facts are read at a time.
const PAGE_FACTS: u32 = 500;
/// How many runs a server gives at a time.
const PAGE_RUNS: u32 = 500;

/// Where commands go.
#[derive(Clone)]
pub(crate) enum Place {
    /// A store, which is written to directly.
    Store(Arc<dyn Store>),
    /// A server.
    Server(Api),
}

/// What became of a command.
pub(crate) enum Done {
    /// The run after it.
    Run(Box<AnswerDocument>),
    /// A heartbeat was taken.
    Heard(HeartbeatDocument),
    /// It was about no run.
    Nothing,
}

impl Place {
    /// Carries out a command about a run.
    pub(crate) async fn execute(&self, command: Command) -> Result<Done, Failure> {
        match self {
            Place::Store(store) => {
                let answer = execute(store.as_ref(), command).await?;
                Ok(match (&answer.heard, AnswerDocument::after(&answer)) {
                    (Some(heard), _) => Done::Heard(heard.into()),
                    (None, Some(document)) => Done::Run(Box::new(document)),
                    (None, None) => Done::Nothing,
                })
            }
            Place::Server(api) => ask_server(api, command).await,
        }
    }

    /// Shows a run.
    pub(crate) async fn run(&self, run: RunId) -> Result<RunDocument, Failure> {
        match self {
            Place::Store(store) => Ok(answers::run(store.as_ref(), run).await?),
            Place::Server(api) => Ok(api.run(run).await?),
        }
    }

    /// Lists runs.
    pub(crate) async fn runs(&self, arguments: args::List) -> Result<RunsPage, Failure> {
        let args::List { lane, goal, status, verdict, limit, after } = arguments;
        match self {
            Place::Store(store) => {
                let parsed = after.map(|after| after.parse::<RunId>()).transpose();
                let after = parsed.map_err(|error| Failure::new("invalid", format!("--after: {error}")))?;
                let filter = Filter { lane, goal, statuses: status.into_iter().collect() };
                Ok(answers::runs(store.as_ref(), &filter, verdict, after, limit as usize).await?)
            }
            Place::Server(api) => {
                let mut page = RunsPage { runs: Vec::new(), next: after };
                loop {
                    let left = limit - u32::try_from(page.runs.len()).unwrap_or(limit);
                    let (lane, goal, limit) = (lane.clone(), goal.clone(), Some(left.min(PAGE_RUNS)));
                    let query = RunsQuery { lane, goal, status, verdict, limit, after: page.next.take() };
                    let more = api.runs(&query).await?;
                    page.runs.extend(more.runs);
                    page.next = more.next;
                    if page.next.is_none() || page.runs.len() >= arguments.limit as usize {
                        return Ok(page);
                    }
                }
            }
        }
    }

    /// Says why a run is as it is.
    pub(crate) async fn why(
        &self,
        run: RunId,
        at: Option<Timestamp>,
        attempt: Option<u32>,
    ) -> Result<WhyDocument, Failure> {
        match self {
            Place::Store(store) => Ok(answers::why(store.as_ref(), run, at, attempt).await?),
            Place::Server(api) => Ok(api.why(run, at, attempt).await?),
        }
    }

    /// Replays a run.
    pub(crate) async fn replay(&self, run: RunId, at: Option<Timestamp>) -> Result<ReplayDocument, Failure> {
        match self {
            Place::Store(store) => Ok(answers::replay(store.as_ref(), run, at).await?),
            Place::Server(api) => Ok(api.replay(run, at).await?),
        }
    }

    /// Returns all facts of a run after a version, and moves the version on to the last of them.
    pub(crate) async fn history(&self, run: RunId, after: &mut u64) -> Result<Vec<EventDocument>, Failure> {
        let mut events = Vec::new();
        loop {
            let page = match self {
                Place::Store(store) => answers::history(store.as_ref(), run, *after, PAGE_FACTS as usize).await?,
                Place::Server(api) => api.history(run, Some(&after.to_string()), PAGE_FACTS).await?,
            };
            *after = page.events.last().and_then(EventDocument::version).unwrap_or(*after);
            events.extend(page.events);
            if page.next.is_none() {
                return Ok(events);
            }
        }
    }

    /// Shows a lane.
    pub(crate) async fn lane(&self, lane: &Name) -> Result<LaneDocument, Failure> {
        match self {
            Place::Store(store) => Ok(answers::lane(store.as_ref(), lane).await?),
            Place::Server(api) => Ok(api.lane(lane).await?),
        }
    }

    /// Shows all lanes.
    pub(crate) async fn lanes(&self) -> Result<LanesPage, Failure> {
        match self {
            Place::Store(store) => Ok(answers::lanes(store.as_ref()).await?),
            Place::Server(api) => {
                let mut page = api.lanes(None).await?;
                while let Some(next) = page.next.take() {
                    let more = api.lanes(Some(&next)).await?;
                    page.lanes.extend(more.lanes);
                    page.next = more.next;
                }
                Ok(page)
            }
        }
    }

    /// Gives a lane another policy, in place of the version from which it was made.
    pub(crate) async fn set_policy(
        &self,
        lane: &Name,
        terms: Terms,
        expected: u32,
        force: bool,
    ) -> Result<LaneDocument, Failure> {
        match self {
            Place::Store(store) => {
                if !force {
                    answers::nothing_would_lapse(store.as_ref(), lane, &terms).await?;
                }
                let (lane, terms, by) = (lane.clone(), Box::new(terms), Some(person()?));
                let command = Command::SetPolicy { lane: lane.clone(), terms, expected_version: Some(expected), by };
                execute(store.as_ref(), command).await?;
                self.lane(&lane).await
            }
            Place::Server(api) => Ok(api.set_policy(lane, &terms, Some(expected), force).await?),
        }
    }

    /// Judges a lane's recorded past under other policies.
    pub(crate) async fn backtest(&self, lane: &Name, request: &BacktestRequest) -> Result<BacktestDocument, Failure> {
        match self {
            Place::Store(store) => {
                let progress = Progress::of("judging", "runs");
                let watch = |done, all| {
                    progress.at(done, all);
                    ControlFlow::Continue(())
                };
                Ok(answers::backtest(store.as_ref(), lane.clone(), request, &watch).await?)
            }
            Place::Server(api) => Ok(api.backtest(lane, request).await?),
        }
    }

    /// Shows the lanes that are held or drained.
    pub(crate) async fn holds(&self) -> Result<HoldsPage, Failure> {
        match self {
            Place::Store(store) => Ok(answers::holds(store.as_ref()).await?),
            Place::Server(api) => Ok(api.holds().await?),
        }
    }

    /// Lets reaping by silence go on in a lane.
    pub(crate) async fn release_hold(&self, lane: Name, reason: Option<String>) -> Result<ReleaseDocument, Failure> {
        match self {
            Place::Store(store) => {
                let command = Command::ReleaseHold { lane: lane.clone(), by: person()?, reason };
                execute(store.as_ref(), command).await?;
                Ok(answers::released(store.as_ref(), lane).await?)
            }
            Place::Server(api) => Ok(api.release_hold(&lane, reason).await?),
        }
    }

    /// Shows the tokens, in the order in which they were made.
    pub(crate) async fn tokens(&self) -> Result<TokensPage, Failure> {
        match self {
            Place::Store(store) => {
                let (service, now) = (store.service_log().await?, store.now().await?);
                let tokens = service.tokens.iter().map(|token| TokenDocument::of(token, now)).collect();
                Ok(TokensPage { tokens, next: None })
            }
            Place::Server(api) => Ok(api.tokens().await?),
        }
    }

    /// Makes a token.
    pub(crate) async fn issue_token(&self, arguments: args::CreateToken) -> Result<IssuedTokenDocument, Failure> {
        let args::CreateToken { role, name, executor, lanes, device, expires } = arguments;
        let internal = |message: String| Failure::new("internal", message);
        let role = Name::new(role.as_str()).map_err(|error| internal(error.to_string()))?;
        match self {
            Place::Store(store) => {
                let secret = Secret::random()?;
                let id = Name::new(Uuid::now_v7().to_string()).map_err(|error| internal(error.to_string()))?;
                let now = store.now().await?;
                let (expires_at, digest) = (expires.map(|after| now.plus(after)), secret.digest());
                let spec = Box::new(TokenSpec { name, role, executor, lanes, device, expires_at, digest });
                execute(store.as_ref(), Command::IssueToken { token: id.clone(), spec, by: person()? }).await?;
                Ok(IssuedTokenDocument { token: secret.reveal().to_owned(), issued: self.token(&id).await? })
            }
            Place::Server(api) => {
                let expires_in_seconds = expires;
                let request =
                    TokenRequest { name, role, executor, lanes, device, expires_at: None, expires_in_seconds };
                Ok(api.issue_token(&request).await?)
            }
        }
    }

    /// Lets the token with an id admit nobody any more.
    pub(crate) async fn revoke_token(&self, id: &Name) -> Result<TokenDocument, Failure> {
        let revoked = match self {
            Place::Store(store) => {
                execute(store.as_ref(), Command::RevokeToken { token: id.clone(), by: person()? }).await?;
                None
            }
            Place::Server(api) => api.revoke_token(id).await?,
        };
        match revoked {
            Some(document) => Ok(document),
            None => self.token(id).await,
        }
    }

    /// Shows a token that was just written.
    async fn token(&self, id: &Name) -> Result<TokenDocument, Failure> {
        let token = self.tokens().await?.tokens.into_iter().find(|document| document.id == *id);
        token.ok_or_else(|| Failure::new("internal", format!("the token {id} is not there")))
    }
}

/// Has a server carry out a command about a run. Who acts by hand is whom the token names, and the server makes the ids.
async fn ask_server(api: &Api, command: Command) -> Result<Done, Failure> {
    let answer = match command {
        Command::Create { run: _, spec, claim } => {
            let claim = claim.map(|claim| ClaimBy { executor: claim.executor, device: claim.device });
            api.create(&CreateRequest { claim, ..(*spec).into() }).await?
        }
        Command::Claim { lanes, claimant } => {
            let (executor, device) = (claimant.executor, claimant.device);
            let request = ClaimRequest { executor, lanes, device, wait_seconds: None, run: None };
            match api.claim(&request).await? {
                Some(answer) => answer,
                None => return Err(nothing_to_claim()),
            }
        }
        Command::Start(report) => api.start(report.run, &(&report).into()).await?,
        Command::Heartbeat { report, progress } => {
            let request = HeartbeatRequest { attempt: report.attempt, claim: report.claim, progress };
            return Ok(Done::Heard(api.heartbeat(report.run, &request).await?));
        }
        Command::Complete { report, output } => {
            let request = CompleteRequest { attempt: report.attempt, claim: report.claim, output };
            api.report_completed(report.run, &request).await?
        }
        Command::Fail { report, error } => {
            let request = FailRequest { attempt: report.attempt, claim: report.claim, error };
            api.report_failed(report.run, &request).await?
        }
        Command::AcknowledgeCancel(report) => api.report_cancelled(report.run, &(&report).into()).await?,
        Command::RequestCancel { run, by: _, reason } => api.cancel(run, reason).await?,
        Command::Requeue { run, by: _, reason } => api.requeue(run, reason).await?,
        Command::Reap { run, by: _, by_hand } => api.reap(run, by_hand.and_then(|by_hand| by_hand.reason)).await?,
        _ => return Err(Failure::new("unsupported", "a server does not do that for others; give --database")),
    };
    Ok(Done::Run(Box::new(answer)))
}

fn nothing_to_claim() -> Failure {
    Failure::new("nothing_to_claim", "no run waits in the lane that this executor may claim now")
}
