//! A call for each route of the API.

use lastbeat_domain::{Liveness, Name, RunId, Status, Terms, Timestamp};
use lastbeat_wire::{
    AnswerDocument, BacktestDocument, BacktestRequest, BeatsDocument, BeatsRequest, ClaimRequest, CompleteRequest,
    CreateRequest, EventsPage, ExecutorsPage, FailRequest, GoalDocument, GoalsPage, HeartbeatDocument,
    HeartbeatRequest, HoldsPage, IssuedTokenDocument, LaneDocument, LanesPage, ReasonRequest, ReleaseDocument,
    ReplayDocument, ReportRequest, RunDocument, RunsPage, TokenDocument, TokenRequest, TokensPage, WhyDocument,
};
use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Duration;
use uuid::Uuid;

use crate::error::ClientError;
use crate::lease::Lease;
use crate::options::Options;
use crate::send::{Reply, Request, Sender, problem};

/// A client of a service. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Api {
    sender: Sender,
    options: Options,
}

/// How long a server may take for a backtest.
const BACKTEST_WAIT: Duration = Duration::from_secs(40);

/// Which runs to list.
#[derive(Clone, Debug, Default)]
pub struct RunsQuery {
    /// Only runs of this lane.
    pub lane: Option<Name>,
    /// Only runs of this goal.
    pub goal: Option<Name>,
    /// Only runs of this status.
    pub status: Option<Status>,
    /// Only runs with this verdict.
    pub verdict: Option<Liveness>,
    /// How many at the most.
    pub limit: Option<u32>,
    /// `next` of the page before.
    pub after: Option<String>,
}

type Answered<T> = Result<T, ClientError>;

impl Api {
    /// Makes a client. Nothing is sent.
    ///
    /// # Errors
    /// If the system's certificates cannot be read, or the token is none.
    pub fn new(options: Options) -> Answered<Api> {
        Ok(Api { sender: Sender::new(&options)?, options })
    }

    /// Returns the same client with connections of its own, for another runtime, that sends each request to each
    /// server at most once, for `timeout` each.
    pub(crate) fn apart(&self, timeout: Duration) -> Answered<Api> {
        let options = self.options.clone().patience(Duration::ZERO);
        Ok(Api { sender: self.sender.apart(&options, timeout)?, options })
    }

    /// Returns for how long the end of a run is reported again.
    pub fn report_patience(&self) -> Duration {
        self.options.report_patience
    }

    /// Returns the same client with another patience for everything but reports of ends.
    #[must_use]
    pub fn with_patience(&self, patience: Duration) -> Api {
        Api { sender: self.sender.clone(), options: self.options.clone().patience(patience) }
    }

    /// Makes a run; with a claim, also takes it in the same breath. `existing` in the answer says that the unique key
    /// was open already. Sent with an idempotency key of its own, so a lost answer makes no second run.
    ///
    /// # Errors
    /// If it is refused, or no server answers.
    pub async fn create(&self, request: &CreateRequest) -> Answered<AnswerDocument> {
        self.create_as(request, &new_key()).await
    }

    /// Makes a run, known by an idempotency key that the caller made and keeps: whoever repeats it within a day with the
    /// same key and request gets the first answer.
    ///
    /// # Errors
    /// If it is refused, or no server answers.
    pub async fn create_as(&self, request: &CreateRequest, key: &str) -> Answered<AnswerDocument> {
        let call = self.post(&["runs"], request)?.header("Idempotency-Key", key.to_owned()).repeatable();
        self.answer(call).await
    }

    /// Takes the run that waits longest in the lanes, or the named one; `None` if none waits. Sent with an idempotency
    /// key of its own, so a lost answer takes no second run.
    ///
    /// # Errors
    /// If it is refused, or no server answers.
    pub async fn claim(&self, request: &ClaimRequest) -> Answered<Option<AnswerDocument>> {
        let mut call = self.post(&["claims"], request)?.header("Idempotency-Key", new_key()).repeatable();
        call.wait = Duration::try_from_secs_f64(request.wait_seconds.unwrap_or(0.0)).unwrap_or_default();
        let reply = self.reply(call).await?;
        if reply.status == StatusCode::NO_CONTENT { Ok(None) } else { read(&reply).map(Some) }
    }

    /// Reports that an attempt began.
    ///
    /// # Errors
    /// If it is refused, or no server answers.
    pub async fn start(&self, run: RunId, report: &ReportRequest) -> Answered<AnswerDocument> {
        self.answer(self.post(&["runs", &run.to_string(), "start"], report)?.repeatable()).await
    }

    /// Reports that an attempt is still worked on. [`Heart`](crate::Heart) does it in the background.
    ///
    /// # Errors
    /// If it is refused, or no server answers. [`ClientError::is_fenced`] says whether the run is lost.
    pub async fn heartbeat(&self, run: RunId, request: &HeartbeatRequest) -> Answered<HeartbeatDocument> {
        self.answer(self.post(&["runs", &run.to_string(), "heartbeat"], request)?.repeatable()).await
    }

    /// Reports that many attempts are still worked on, 1,000 at the most.
    ///
    /// # Errors
    /// If it is refused, or no server answers. What became of each heartbeat stands in the answer.
    pub async fn heartbeats(&self, request: &BeatsRequest) -> Answered<BeatsDocument> {
        self.answer(self.post(&["heartbeats"], request)?.repeatable()).await
    }

    /// Reports that the work of a lease is done, again and again until the answer is known
    /// ([`Options::report_patience`]).
    ///
    /// # Errors
    /// If it is refused, or no server answers for that long.
    pub async fn complete(&self, lease: &Lease, output: Option<Value>) -> Answered<AnswerDocument> {
        let request = CompleteRequest { attempt: lease.attempt, claim: lease.claim.clone(), output };
        self.report_completed(lease.run, &request).await
    }

    /// Reports that the work of a lease failed, again and again until the answer is known.
    ///
    /// # Errors
    /// If it is refused, or no server answers for that long.
    pub async fn fail(&self, lease: &Lease, error: impl Into<String>) -> Answered<AnswerDocument> {
        let request = FailRequest { attempt: lease.attempt, claim: lease.claim.clone(), error: error.into() };
        self.report_failed(lease.run, &request).await
    }

    /// Reports that the work of a lease was stopped because somebody asked for it, again and again until the answer is
    /// known.
    ///
    /// # Errors
    /// If it is refused, or no server answers for that long.
    pub async fn cancelled(&self, lease: &Lease) -> Answered<AnswerDocument> {
        let request = ReportRequest { attempt: lease.attempt, claim: lease.claim.clone() };
        self.report_cancelled(lease.run, &request).await
    }

    /// Reports that an attempt is done, as [`complete`](Self::complete) does.
    ///
    /// # Errors
    /// If it is refused, or no server answers for that long.
    pub async fn report_completed(&self, run: RunId, request: &CompleteRequest) -> Answered<AnswerDocument> {
        self.answer(self.ending(run, "complete", request)?).await
    }

    /// Reports that an attempt failed, as [`fail`](Self::fail) does.
    ///
    /// # Errors
    /// If it is refused, or no server answers for that long.
    pub async fn report_failed(&self, run: RunId, request: &FailRequest) -> Answered<AnswerDocument> {
        self.answer(self.ending(run, "fail", request)?).await
    }

    /// Reports that an attempt was stopped on request, as [`cancelled`](Self::cancelled) does.
    ///
    /// # Errors
    /// If it is refused, or no server answers for that long.
    pub async fn report_cancelled(&self, run: RunId, request: &ReportRequest) -> Answered<AnswerDocument> {
        self.answer(self.ending(run, "cancelled", request)?).await
    }

    fn ending(&self, run: RunId, word: &str, request: &impl Serialize) -> Answered<Request> {
        let mut call = self.post(&["runs", &run.to_string(), word], request)?.repeatable();
        call.patience = self.options.report_patience;
        Ok(call)
    }

    /// Asks the executor of a run to stop; a run that nobody holds is cancelled at once.
    ///
    /// # Errors
    /// If it is refused, or no server answers.
    pub async fn cancel(&self, run: RunId, reason: Option<String>) -> Answered<AnswerDocument> {
        // Asking twice is asking once.
        self.answer(self.act(run, "cancel", reason)?.repeatable()).await
    }

    /// Lets an ended run wait for another attempt.
    ///
    /// # Errors
    /// If it is refused, no server answers, or the answer was lost.
    pub async fn requeue(&self, run: RunId, reason: Option<String>) -> Answered<AnswerDocument> {
        self.answer(self.act(run, "requeue", reason)?).await
    }

    /// Reaps a run by hand, if it has lapsed.
    ///
    /// # Errors
    /// If it is refused, no server answers, or the answer was lost.
    pub async fn reap(&self, run: RunId, reason: Option<String>) -> Answered<AnswerDocument> {
        self.answer(self.act(run, "reap", reason)?).await
    }

    fn act(&self, run: RunId, word: &str, reason: Option<String>) -> Answered<Request> {
        self.post(&["runs", &run.to_string(), word], &ReasonRequest { reason })
    }

    /// Shows a run, judged now.
    ///
    /// # Errors
    /// If there is none that the token may see, or no server answers.
    pub async fn run(&self, run: RunId) -> Answered<RunDocument> {
        self.answer(self.get(&["runs", &run.to_string()])).await
    }

    /// Lists runs, newest first, judged now.
    ///
    /// # Errors
    /// If it is refused, or no server answers.
    pub async fn runs(&self, query: &RunsQuery) -> Answered<RunsPage> {
        let RunsQuery { lane, goal, status, verdict, limit, after } = query;
        let call = self
            .get(&["runs"])
            .query("lane", lane.as_ref())
            .query("goal", goal.as_ref())
            .query("status", status.as_ref())
            .query("verdict", verdict.as_ref())
            .query("limit", limit.as_ref())
            .query("after", after.as_ref());
        self.answer(call).await
    }

    /// Says why a run is as it is, now or at log time `at`; of an attempt: why that was reaped.
    ///
    /// # Errors
    /// If there is nothing to say, or no server answers.
    pub async fn why(&self, run: RunId, at: Option<Timestamp>, attempt: Option<u32>) -> Answered<WhyDocument> {
        let call = self.get(&["runs", &run.to_string(), "why"]);
        self.answer(call.query("at", at.as_ref()).query("attempt", attempt.as_ref())).await
    }

    /// Returns a run as a bundle, from which an import makes a database that answers every `why` about it the same: the
    /// lines of an import file.
    ///
    /// # Errors
    /// If there is none that the token may see, no server answers, or it breaks off.
    pub async fn bundle(&self, run: RunId) -> Answered<String> {
        let reply = self.reply(self.get(&["runs", &run.to_string(), "bundle"])).await?;
        let address = reply.address;
        String::from_utf8(reply.body).map_err(|error| ClientError::BadAnswer { address, why: error.to_string() })
    }

    /// Replays a run up to log time `at`, or up to now.
    ///
    /// # Errors
    /// If there is none that the token may see, it was not there by then, or no server answers.
    pub async fn replay(&self, run: RunId, at: Option<Timestamp>) -> Answered<ReplayDocument> {
        self.answer(self.get(&["runs", &run.to_string(), "replay"]).query("at", at.as_ref())).await
    }

    /// Returns a page of the facts of a run: those after a version, or after `next` of the page before.
    ///
    /// # Errors
    /// If there is none that the token may see, or no server answers.
    pub async fn history(&self, run: RunId, after: Option<&str>, limit: u32) -> Answered<EventsPage> {
        let call = self.get(&["runs", &run.to_string(), "events"]);
        self.answer(call.query("after", after).query("limit", Some(limit))).await
    }

    /// Returns a page of the facts of the whole service, plain heartbeats aside: those after `next` of the page before.
    ///
    /// # Errors
    /// If it is refused, or no server answers.
    pub async fn events(&self, after: Option<&str>, limit: u32) -> Answered<EventsPage> {
        self.answer(self.get(&["events"]).query("after", after).query("limit", Some(limit))).await
    }

    /// Lists goals.
    ///
    /// # Errors
    /// If it is refused, or no server answers.
    pub async fn goals(&self, after: Option<&str>, limit: u32) -> Answered<GoalsPage> {
        self.answer(self.get(&["goals"]).query("after", after).query("limit", Some(limit))).await
    }

    /// Shows a goal and a page of its runs.
    ///
    /// # Errors
    /// If there is none that the token may see, or no server answers.
    pub async fn goal(&self, goal: &Name, after: Option<&str>, limit: u32) -> Answered<GoalDocument> {
        let call = self.get(&["goals", goal.as_str()]);
        self.answer(call.query("after", after).query("limit", Some(limit))).await
    }

    /// Lists a page of the lanes.
    ///
    /// # Errors
    /// If it is refused, or no server answers.
    pub async fn lanes(&self, after: Option<&str>) -> Answered<LanesPage> {
        self.answer(self.get(&["lanes"]).query("after", after)).await
    }

    /// Shows a lane.
    ///
    /// # Errors
    /// If it is refused, or no server answers.
    pub async fn lane(&self, lane: &Name) -> Answered<LaneDocument> {
        self.answer(self.get(&["lanes", lane.as_str()])).await
    }

    /// Gives a lane another policy, in place of version `expected`; `force` even if open runs would lapse at once.
    ///
    /// # Errors
    /// If it is refused, no server answers, or the answer was lost.
    pub async fn set_policy(
        &self,
        lane: &Name,
        terms: &Terms,
        expected: Option<u32>,
        force: bool,
    ) -> Answered<LaneDocument> {
        let mut call = self.call(Method::PUT, &["lanes", lane.as_str()]);
        call.body = Some(write(terms)?);
        if let Some(version) = expected {
            call = call.header("If-Match", format!("\"{version}\""));
        }
        self.answer(call.query("force", force.then_some(true))).await
    }

    /// Judges a lane's recorded past under other policies. It may take the server half a minute.
    ///
    /// # Errors
    /// If it is refused, it would take longer, or no server answers.
    pub async fn backtest(&self, lane: &Name, request: &BacktestRequest) -> Answered<BacktestDocument> {
        let mut call = self.post(&["lanes", lane.as_str(), "backtest"], request)?.repeatable();
        // Each server is asked once: one that was too slow, or too busy, is so a moment later, too.
        (call.wait, call.patience) = (BACKTEST_WAIT, Duration::ZERO);
        self.answer(call).await
    }

    /// Lists the lanes that are held or drained.
    ///
    /// # Errors
    /// If it is refused, or no server answers.
    pub async fn holds(&self) -> Answered<HoldsPage> {
        self.answer(self.get(&["holds"])).await
    }

    /// Lets reaping by silence go on in a lane.
    ///
    /// # Errors
    /// If it is refused, no server answers, or the answer was lost.
    pub async fn release_hold(&self, lane: &Name, reason: Option<String>) -> Answered<ReleaseDocument> {
        self.answer(self.post(&["holds", lane.as_str(), "release"], &ReasonRequest { reason })?).await
    }

    /// Lists the executors that hold runs.
    ///
    /// # Errors
    /// If it is refused, or no server answers.
    pub async fn executors(&self) -> Answered<ExecutorsPage> {
        self.answer(self.get(&["executors"])).await
    }

    /// Lists the tokens, without their secrets.
    ///
    /// # Errors
    /// If it is refused, or no server answers.
    pub async fn tokens(&self) -> Answered<TokensPage> {
        self.answer(self.get(&["tokens"])).await
    }

    /// Makes a token; the answer is the only place where its secret stands.
    ///
    /// # Errors
    /// If it is refused, no server answers, or the answer was lost.
    pub async fn issue_token(&self, request: &TokenRequest) -> Answered<IssuedTokenDocument> {
        self.answer(self.post(&["tokens"], request)?).await
    }

    /// Revokes a token; `None` where the server has nothing more to say.
    ///
    /// # Errors
    /// If it is refused, or no server answers.
    pub async fn revoke_token(&self, id: &Name) -> Answered<Option<TokenDocument>> {
        let reply = self.reply(self.call(Method::DELETE, &["tokens", id.as_str()]).repeatable()).await?;
        if reply.status == StatusCode::NO_CONTENT { Ok(None) } else { read(&reply).map(Some) }
    }

    fn get(&self, path: &[&str]) -> Request {
        self.call(Method::GET, path).repeatable()
    }

    fn post(&self, path: &[&str], body: &impl Serialize) -> Answered<Request> {
        let mut call = self.call(Method::POST, path);
        call.body = Some(write(body)?);
        Ok(call)
    }

    fn call(&self, method: Method, path: &[&str]) -> Request {
        Request {
            method,
            path: path.iter().map(ToString::to_string).collect(),
            query: Vec::new(),
            body: None,
            headers: Vec::new(),
            repeatable: false,
            wait: Duration::ZERO,
            patience: self.options.patience,
        }
    }

    async fn answer<T: DeserializeOwned>(&self, request: Request) -> Answered<T> {
        read(&self.reply(request).await?)
    }

    async fn reply(&self, request: Request) -> Answered<Reply> {
        let reply = self.sender.send(&request).await?;
        if reply.status.is_success() {
            return Ok(reply);
        }
        Err(ClientError::Refused(Box::new(problem(reply.status, &reply.body))))
    }
}

impl Request {
    fn repeatable(mut self) -> Request {
        self.repeatable = true;
        self
    }

    fn header(mut self, name: &'static str, value: String) -> Request {
        self.headers.push((name, value));
        self
    }

    fn query(mut self, name: &'static str, value: Option<impl ToString>) -> Request {
        if let Some(value) = value {
            self.query.push((name, value.to_string()));
        }
        self
    }
}

fn new_key() -> String {
    Uuid::new_v4().to_string()
}

fn write(body: &impl Serialize) -> Answered<Vec<u8>> {
    serde_json::to_vec(body).map_err(|error| ClientError::Setup(format!("the request cannot be written: {error}")))
}

fn read<T: DeserializeOwned>(reply: &Reply) -> Answered<T> {
    serde_json::from_slice(&reply.body)
        .map_err(|error| ClientError::BadAnswer { address: reply.address.clone(), why: error.to_string() })
}
