//! Credentials, renewed once for all requests: before they expire, and when the store refuses them.
//!
//! Each renewal asks a new chain of providers, because the SDK's chain reads a file once: rotated
//! files and tokens are read again, a credential process runs again. It is a task of its own, so
//! that it ends well although those that wait for it give up.

use std::error::Error as _;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials as _, SharedCredentialsProvider};
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, timeout};

use super::clock::system_now;
use crate::base::text::innermost;
use crate::store::StoreError;

/// The renewal begins this long before they expire, as in the AWS SDKs: time for a provider to
/// fail.
pub(super) const AHEAD: Duration = Duration::from_mins(5);
/// Requests wait for the renewal when less is left: the store may check a request that late.
const LAST: Duration = Duration::from_secs(10);
/// A provider that has failed, or gave the same credentials again, is not asked again before this.
const PAUSE: Duration = Duration::from_secs(1);
/// A refusal without a reason makes credentials suspect no more often than this: most are for names
/// without permission, and must not cost a renewal and a request each.
const DOUBT_EVERY: Duration = Duration::from_mins(1);
/// Credentials are at least this old before they are renewed ahead: those of a short life would be
/// renewed without an end.
const YOUNGEST: Duration = Duration::from_secs(30);
/// A provider that takes longer has failed: a metadata service may be away.
pub(super) const LIMIT: Duration = Duration::from_secs(5);
/// The same where credentials come from a program. The AWS CLI waits without an end, and programs
/// that ask a person or a slow service take up to a minute.
pub(super) const HELPER_LIMIT: Duration = Duration::from_secs(75);

type Chain = Pin<Box<dyn Future<Output = Option<SharedCredentialsProvider>> + Send>>;

/// The credentials of all requests. Clones are the same.
#[derive(Clone)]
pub(super) struct Renewing(Arc<Inner>);

struct Inner {
    /// Makes a chain of providers that has read nothing yet.
    chain: Box<dyn Fn() -> Chain + Send + Sync>,
    kept: Mutex<Kept>,
    /// The longest answer of a provider.
    limit: Duration,
    /// From the beginning of a renewal to their end.
    ahead: Duration,
    /// Held by the one renewal for all, while the provider is asked (up to `limit`).
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Kept {
    credentials: Option<(Credentials, Instant)>,
    refused: bool,
    /// No provider is asked before this time, and the reason.
    pause: Option<(Instant, String)>,
    /// The last time that a refusal without a reason counted against them.
    doubted: Option<Instant>,
}

enum Need {
    Nothing(Credentials),
    /// These are good for some time; a renewal is due.
    Soon(Credentials),
    Now,
}

impl fmt::Debug for Renewing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewing").finish_non_exhaustive()
    }
}

impl Renewing {
    /// A provider that takes longer than `limit` has failed.
    pub(super) fn new(
        limit: Duration,
        ahead: Duration,
        chain: impl Fn() -> Chain + Send + Sync + 'static,
    ) -> Self {
        let (kept, turn) = (Mutex::default(), Arc::default());
        Self(Arc::new(Inner { chain: Box::new(chain), kept, limit, ahead, turn }))
    }

    /// The store has refused the signature of a request that began at `begun`. Credentials of
    /// before are not used again, unless they were just renewed and are still the same.
    pub(super) fn refused(&self, begun: Instant) {
        let mut kept = self.0.kept.lock();
        let is_old = kept.credentials.as_ref().is_some_and(|(_, since)| *since <= begun);
        let paused = kept.pause.as_ref().is_some_and(|(until, _)| Instant::now() < *until);
        if is_old && !paused {
            kept.refused = true;
        }
    }

    /// The store has refused a request that began at `begun`, without a reason. `true` if the
    /// reason may be the credentials, so that another signature is worth a request.
    pub(super) fn doubted(&self, begun: Instant) -> bool {
        let mut kept = self.0.kept.lock();
        let Some((_, since)) = kept.credentials else { return false };
        // They were refused or renewed meanwhile.
        if kept.refused || since > begun {
            return true;
        }
        let now = Instant::now();
        let doubts = kept.doubted.is_none_or(|doubted| now - doubted >= DOUBT_EVERY);
        if doubts {
            kept.doubted = Some(now);
        }
        doubts
    }

    fn need(&self) -> Need {
        let kept = self.0.kept.lock();
        let Some((credentials, since)) = kept.credentials.clone().filter(|_| !kept.refused) else {
            return Need::Now;
        };
        let until = |expiry: SystemTime| expiry.duration_since(system_now()).unwrap_or_default();
        let left = credentials.expiry().map(until);
        match left {
            Some(left) if left <= LAST => Need::Now,
            Some(left) if left <= self.0.ahead && since.elapsed() >= YOUNGEST => {
                Need::Soon(credentials)
            }
            _ => Need::Nothing(credentials),
        }
    }

    /// The credentials to sign a request with, renewed if they must be. Nobody waits while they are
    /// good: a renewal that is due runs in the background.
    pub(super) async fn current(&self) -> provider::Result {
        let turn = match self.need() {
            Need::Nothing(credentials) => return Ok(credentials),
            Need::Soon(credentials) => {
                if let Ok(turn) = self.0.turn.clone().try_lock_owned() {
                    tokio::spawn(self.clone().renew(turn));
                }
                return Ok(credentials);
            }
            Need::Now => self.0.turn.clone().lock_owned().await,
        };
        let renewal = tokio::spawn(self.clone().renew(turn));
        renewal.await.unwrap_or_else(|died| Err(CredentialsError::unhandled(died)))
    }

    /// Asks for new credentials, unless those before had the same need.
    async fn renew(self, _turn: OwnedMutexGuard<()>) -> provider::Result {
        let old = match self.need() {
            Need::Nothing(credentials) => return Ok(credentials),
            Need::Soon(credentials) => Some(credentials),
            Need::Now => None,
        };
        let paused = {
            let kept = self.0.kept.lock();
            let pause = kept.pause.as_ref().filter(|(until, _)| Instant::now() < *until);
            pause.map(|(_, cause)| cause.clone())
        };
        if let Some(cause) = paused {
            return old.ok_or_else(|| CredentialsError::provider_error(cause));
        }
        let limit = self.0.limit;
        let asked = timeout(limit, self.ask()).await;
        self.keep(asked.unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(limit))), old)
    }

    async fn ask(&self) -> provider::Result {
        match (self.0.chain)().await {
            Some(provider) => checked(provider.provide_credentials().await?),
            None => Err(CredentialsError::not_loaded("no provider is configured")),
        }
    }

    /// Keeps the new credentials; without any, the old ones are good until they expire.
    fn keep(&self, came: provider::Result, old: Option<Credentials>) -> provider::Result {
        let now = Instant::now();
        let mut kept = self.0.kept.lock();
        match came {
            Ok(credentials) => {
                let same = kept.credentials.as_ref().is_some_and(|(old, _)| *old == credentials);
                if kept.credentials.is_some() && !same {
                    let id = credentials.access_key_id();
                    tracing::info!(access_key = id, "credentials were renewed");
                }
                let cause = "the provider gives the same credentials again".to_owned();
                kept.pause = same.then(|| (now + PAUSE, cause));
                kept.credentials = Some((credentials.clone(), now));
                kept.refused = false;
                Ok(credentials)
            }
            Err(error) => {
                let cause = innermost(&error);
                // At the start the kind of error matters. Later, a file may be half written.
                let again = kept.credentials.is_some();
                kept.pause = Some((now + PAUSE, cause.clone()));
                if again {
                    tracing::warn!(cause, "credentials could not be renewed");
                }
                let error = if again { CredentialsError::provider_error(cause) } else { error };
                old.ok_or(error)
            }
        }
    }
}

/// What no request can carry would fail each of them. Never shows a value.
fn checked(credentials: Credentials) -> provider::Result {
    let is_visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    let odd = if !is_visible(credentials.access_key_id()) {
        "access key's id"
    } else if !credentials.session_token().is_none_or(is_visible) {
        "session token"
    } else {
        return Ok(credentials);
    };
    let cause = format!("the {odd} holds a character that cannot be sent");
    Err(CredentialsError::invalid_configuration(cause))
}

/// The meaning of a chain of providers without credentials.
pub(super) fn failure(error: &CredentialsError) -> StoreError {
    if let Some(error) = error.source().and_then(|source| source.downcast_ref::<StoreError>()) {
        // The store's own answer to the question for a session.
        return error.clone();
    }
    let cause = innermost(error);
    let cause = cause.trim_end_matches('.');
    match error {
        // A provider that exists and fails, such as an STS endpoint, may work a moment later.
        CredentialsError::ProviderTimedOut(_) => {
            StoreError::TimedOut(format!("credentials: {cause}"))
        }
        CredentialsError::ProviderError(_) => {
            StoreError::Unavailable(format!("credentials: {cause}"))
        }
        CredentialsError::CredentialsNotLoaded(_) => StoreError::NoCredentials(tried(cause)),
        // The enum is open.
        _ => StoreError::NoCredentials(cause.to_owned()),
    }
}

/// The chain reports each of its providers in a line; those that are not set up are left out.
fn tried(report: &str) -> String {
    let lines = report.lines().skip(1).map(str::trim);
    let failed: Vec<&str> = lines.filter(|line| !line.contains("was not enabled")).collect();
    if !failed.is_empty() {
        return failed.join(", ");
    }
    "neither in the environment nor in a profile, and no web identity, container or instance role \
     gave any"
        .to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use aws_credential_types::provider::{ProvideCredentials, future};
    use tokio::task::JoinSet;
    use tokio::time::{advance, sleep};

    use super::*;

    /// What the next asking gives: how long the credentials live, or nothing.
    type Life = Option<Duration>;

    #[derive(Clone)]
    struct Scripted(Arc<(AtomicUsize, Vec<Option<Life>>)>);

    impl fmt::Debug for Scripted {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Scripted")
        }
    }

    impl ProvideCredentials for Scripted {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            future::ProvideCredentials::new(async {
                let time = self.0.0.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(100)).await;
                let Some(life) = self.0.1[time.min(self.0.1.len() - 1)] else {
                    return Err(CredentialsError::provider_error("down"));
                };
                let expiry = life.map(|life| system_now() + life);
                Ok(Credentials::new(format!("ID{time}"), "hush", None, expiry, "test"))
            })
        }
    }

    impl Scripted {
        fn new(lives: impl Into<Vec<Option<Life>>>) -> (Self, Renewing) {
            let scripted = Self(Arc::new((AtomicUsize::new(0), lives.into())));
            let provider = SharedCredentialsProvider::new(scripted.clone());
            let renewing = Renewing::new(LIMIT, AHEAD, move || {
                let provider = provider.clone();
                Box::pin(async move { Some(provider) })
            });
            (scripted, renewing)
        }

        fn asked(&self) -> usize {
            self.0.0.load(Ordering::Relaxed)
        }
    }

    async fn id(renewing: &Renewing) -> Result<String, String> {
        let given = renewing.current().await;
        given.map(|keys| keys.access_key_id().to_owned()).map_err(|error| innermost(&error))
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_refused_readers_cost_one_renewal() {
        let (scripted, renewing) = Scripted::new([Some(None)]);
        assert_eq!(id(&renewing).await, Ok("ID0".into()));
        let begun = Instant::now();
        advance(Duration::from_secs(5)).await;
        let mut readers = JoinSet::new();
        for reader in 0..1000 {
            let renewing = renewing.clone();
            readers.spawn(async move {
                // Their refusals come one after the other, some after the renewal.
                sleep(Duration::from_millis(reader)).await;
                renewing.refused(begun);
                id(&renewing).await
            });
        }
        for id in readers.join_all().await {
            assert_eq!(id, Ok("ID1".into()));
        }
        assert_eq!(scripted.asked(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_without_a_reason_are_laid_to_credentials_once_a_minute() {
        let (scripted, renewing) = Scripted::new([Some(None)]);
        assert_eq!(id(&renewing).await, Ok("ID0".into()));
        // As each of many requests does that are refused for ever: an hour of one in a second.
        let mut doubted = 0;
        for _ in 0..3600 {
            id(&renewing).await.unwrap();
            let begun = Instant::now();
            if renewing.doubted(begun) {
                doubted += 1;
                renewing.refused(begun);
            }
            advance(Duration::from_secs(1)).await;
        }
        assert_eq!((doubted, scripted.asked()), (60, 61));
        // Those that were on their way while others found out are signed anew, too.
        let begun = Instant::now();
        advance(2 * PAUSE).await;
        renewing.refused(begun);
        assert!(renewing.doubted(begun));
        id(&renewing).await.unwrap();
        assert!(renewing.doubted(begun));
        assert!(renewing.doubted(Instant::now()));
        assert!(!renewing.doubted(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_credentials_that_are_good_for_a_while() {
        let soon = Duration::from_mins(4);
        let (scripted, renewing) = Scripted::new([Some(Some(soon)), Some(None)]);
        assert_eq!(id(&renewing).await, Ok("ID0".into()));
        assert_eq!(id(&renewing).await, Ok("ID0".into()));
        assert_eq!(scripted.asked(), 1, "they are young");
        advance(YOUNGEST).await;
        let begun = Instant::now();
        for _ in 0..3 {
            assert_eq!(id(&renewing).await, Ok("ID0".into()));
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
        sleep(Duration::from_millis(101)).await;
        assert_eq!(id(&renewing).await, Ok("ID1".into()));
        assert_eq!(scripted.asked(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_ends_its_work_for_others_when_a_caller_gives_up() {
        let (scripted, renewing) = Scripted::new([Some(None)]);
        let impatient = timeout(Duration::from_millis(50), id(&renewing)).await;
        assert!(impatient.is_err());
        let begun = Instant::now();
        assert_eq!(id(&renewing).await, Ok("ID0".into()));
        assert_eq!((scripted.asked(), begun.elapsed()), (1, Duration::from_millis(50)));
    }

    #[test]
    fn what_cannot_be_sent_is_named_and_not_shown() {
        let token = |token: &str| Credentials::new("id", "s", Some(token.to_owned()), None, "test");
        assert!(checked(token("a+/=")).is_ok());
        for (odd, says) in [
            (Credentials::new("i\nd", "s", None, None, "test"), "access key's id"),
            (token("hush hush"), "session token"),
            (token("hush\r"), "session token"),
        ] {
            let cause = innermost(&checked(odd).unwrap_err());
            assert!(cause.contains(says) && !cause.contains("hush"), "{cause}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn old_credentials_do_while_the_provider_is_down() {
        let (scripted, renewing) =
            Scripted::new([Some(Some(Duration::from_mins(4))), None, None, Some(None)]);
        assert_eq!(id(&renewing).await, Ok("ID0".into()));
        advance(YOUNGEST).await;
        assert_eq!(id(&renewing).await, Ok("ID0".into()));
        sleep(Duration::from_millis(101)).await;
        // It has failed just now, so nobody asks it again.
        assert_eq!(id(&renewing).await, Ok("ID0".into()));
        sleep(Duration::from_millis(101)).await;
        assert_eq!(scripted.asked(), 2);
        // The store takes them no more.
        renewing.refused(Instant::now());
        assert_eq!(id(&renewing).await, Ok("ID0".into()), "asked too soon");
        advance(2 * PAUSE).await;
        renewing.refused(Instant::now());
        assert_eq!(id(&renewing).await, Err("down".to_owned()));
        advance(2 * PAUSE).await;
        assert_eq!((id(&renewing).await, scripted.asked()), (Ok("ID3".into()), 4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_that_hangs_has_failed() {
        let renewing = Renewing::new(LIMIT, AHEAD, || Box::pin(std::future::pending()));
        let start = Instant::now();
        assert!(id(&renewing).await.is_err());
        assert_eq!(start.elapsed(), LIMIT);
    }

    #[tokio::test]
    async fn no_secret_is_ever_shown() {
        let (_, renewing) = Scripted::new([Some(None)]);
        let keys = renewing.current().await.unwrap();
        assert_eq!(keys.secret_access_key(), "hush");
        let shown = format!("{renewing:?} {keys:?}");
        assert!(!shown.contains("hush"), "{shown}");
    }
}
